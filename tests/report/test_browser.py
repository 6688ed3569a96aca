"""The report in a real browser: reading, sorting and filtering, on wide and narrow screens, with hostile data too."""

import re
import shutil
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from playwright.sync_api import Browser, Page, sync_playwright
from report_inputs import N_TEST, write_inputs, write_rounds

from prefdag.check_params import load_params
from prefdag.config.params import Params
from prefdag.report import run_details
from prefdag.report.compare import frontier
from prefdag.runtime.artifacts import write_json
from stages import report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on this machine"),
    pytest.mark.slow,
]

# Each would set window.ran or break the page if it were not escaped.
HOSTILE = [
    "<script>window.ran = 1</script>",
    "</script><script>window.ran = 1</script>",
    "</style></head></details></table></article><h1>heading</h1>",
    '"><img src=x onerror="window.ran = 1"><svg onload="window.ran = 1">',
    "<!-- --> <![CDATA[ <meta http-equiv=refresh content='0;url=http://evil.example'> <base href=http://evil.example>",
    "{{ 7 * 7 }} {% raw %} ${7*7} <%= 7*7 %>",
    "<a href='javascript:window.ran=1'>x</a> <iframe srcdoc='<script>parent.ran=1</script>'></iframe>",
    "\u202eright to left\u202c مرحبا بالعالم שלום",
    "x" * 3000,
    "👩‍🔬 🏳️‍🌈 Zalgo: h̷̨̢e̶̢͝l̴̕͜l̸̛͝o",
    "<|im_end|>\x00\x0b\x1b[31m\ufffe",
    "white\n\n\n\tspace   kept",
]
SCHEMES = ("light", "dark")
WIDTHS = (400, 1400)


def make_hostile(folder: Path) -> None:
    """Put hostile text into the report's inputs, wherever a user's data can be."""
    path = folder / "data/validated/pairs.parquet"
    frame = pd.read_parquet(path)
    texts = [HOSTILE[i % len(HOSTILE)] for i in range(len(frame))]
    changed = {
        "source": [f"{text[:200]}:{i}" for i, text in enumerate(texts)],
        "prompt": [[{"role": text[:60], "content": text}, {"role": "user", "content": text}] for text in texts],
        "chosen": texts,
        "rejected": [f"no {text}" for text in texts],
    }
    frame.assign(**changed).to_parquet(path)
    path = folder / "reports/text/tokens.parquet"
    tokens = pd.read_parquet(path)
    by_key = {(i, side): row[side] for row, i in zip(frame.assign(**changed).to_dict("records"), frame["id"], strict=True)
            for side in ("chosen", "rejected")}  # fmt: skip
    texts = [by_key[row["id"], row["side"]] for row in tokens.to_dict("records")]
    pieces = [[text[: len(text) // 2], text[len(text) // 2 :]] for text in texts]
    tokens.assign(tokens=[[1, 2]] * len(texts), texts=pieces, logratios=[[0.5, -0.5]] * len(texts)).to_parquet(path)
    samples = [{"id": text[:40], "prompt": text, "reference": text, "policy": text} for text in HOSTILE]
    write_json(folder / "reports/text/samples.json", samples)
    classes = [HOSTILE[i][:300] for i in range(10)]
    write_json(folder / "data/validated/images/classes.json", classes)
    for name in ("classes", "confusion"):
        path = folder / f"reports/image/{name}.csv"
        table = pd.read_csv(path, dtype=str)
        for column in {"class", "true", "predicted"} & set(table):
            table[column] = [classes[int(digit)] for digit in table[column]]
        table.to_csv(path, index=False)


def points() -> pd.DataFrame:
    """Three experiments with hostile names."""
    values = dict.fromkeys(frontier.KEYS, 0.5)
    return pd.DataFrame(
        [
            {"name": name, "beta": beta, "loss": "sigmoid", **values, "text/heldout/kl": kl, "image/kl": kl}
            for name, beta, kl in ((HOSTILE[0], 0.1, 0.3), ("exp-b " + HOSTILE[3], 0.5, 0.1), ("exp-c", 0.3, 0.2))
        ]
    )


@pytest.fixture(scope="module")
def params(root: Path) -> Params:
    return load_params(root / "params.yaml")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory, params: Params) -> dict[str, Path]:
    """The paths of a report on ordinary data, its published copy, a report on hostile data, and a frontier."""
    paths = {}
    for name in ("report", "hostile"):
        folder = tmp_path_factory.mktemp(name)
        write_inputs(folder)
        if name == "hostile":
            make_hostile(folder)
            write_rounds(folder)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            report.main(params)
        paths[name] = folder / "reports/index.html"
    paths["published"] = paths["report"].with_name("published.html")
    seconds = {"dpo_text": 187.4, "sft_ref": None}
    revision = {"dvc.exp_name": HOSTILE[0]}
    html = run_details.fill(paths["report"].read_text("utf-8"), seconds, revision, "today", points())
    paths["published"].write_text(html, "utf-8")
    paths["frontier"] = tmp_path_factory.mktemp("frontier") / "frontier.html"
    paths["frontier"].write_text(frontier.render(points()), "utf-8")
    return paths


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


Open = Callable[..., Page]


@pytest.fixture
def open_page(browser: Browser, pages: dict[str, Path]) -> Iterator[Open]:
    """Opens a page by name. When the test ends, no page may have logged an error or requested another file."""
    complaints: list[str] = []
    contexts = []

    def opened(name: str, *, width: int = 1400, scheme: str = "light", **options: Any) -> Page:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, **options)  # type: ignore[arg-type]
        contexts.append(context)
        page = context.new_page()
        address = pages[name].as_uri()
        page.on("console", lambda message: complaints.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        page.on("dialog", lambda dialog: complaints.append(f"dialog: {dialog.message}"))

        def check_request(url: str) -> None:
            if url != address and not url.startswith("data:"):
                complaints.append(f"request: {url}")

        page.on("request", lambda request: check_request(request.url))
        page.goto(address)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []


def first_cells(page: Page, column: int) -> list[str]:
    """The first word of each visible example in a column."""
    return page.eval_on_selector_all(
        "#examples tbody:not([hidden])",
        "(bodies, column) => bodies.map(body => body.rows[0].cells[column].textContent.trim().split(/\\s/)[0])",
        column,
    )


def numbers(page: Page, column: int) -> list[float]:
    return [float(cell.replace("−", "-")) for cell in first_cells(page, column)]


@pytest.mark.parametrize("name", ["report", "published", "hostile", "frontier"])
def test_pages_open_without_errors_and_run_nothing_from_the_data(open_page: Open, name: str) -> None:
    page = open_page(name)
    assert page.evaluate("window.ran") is None
    assert page.locator("h1").count() == 1
    assert page.locator("img[src=x], iframe, base, svg[onload], meta[http-equiv=refresh]").count() == 0
    assert page.url.startswith("file:")


def test_hostile_text_is_shown_unchanged(open_page: Open) -> None:
    page = open_page("hostile")
    shown = page.evaluate("document.body.textContent")
    for text in HOSTILE:
        for part in re.split("[\x00\x0b\x1b\ufffe]", text):  # HTML cannot contain these
            assert part[:400] in shown or part in shown
    # The tokens of a response join to its text, although each token is an element.
    scored = page.eval_on_selector_all(".example .shaded", "all => all.map(example => example.textContent)")
    assert f"no {HOSTILE[1]}" in scored
    assert len(scored) == 2 * N_TEST


def test_the_security_policy_stops_a_script_that_was_not_escaped(open_page: Open, pages: dict[str, Path]) -> None:
    """In a copy of the page with two scripts, an event handler, a picture and a font that our template did not write."""
    html = pages["report"].read_text("utf-8")
    attack = (
        '<script>window.ran = 1</script><script src="http://evil.example/x.js"></script>'
        '<img src="http://evil.example/x.png" onerror="window.ran = 1"><a id="bait" href="javascript:window.ran=1">x</a>'
        "<style>@font-face { font-family: x; src: url(http://evil.example/x.woff) } #bait { font-family: x }</style>"
    )
    assert html.count("<main>") == 1
    pages["attacked"] = pages["report"].with_name("attacked.html")
    pages["attacked"].write_text(html.replace("<main>", f"<main>{attack}"), "utf-8")
    context_page = open_page("report")  # its errors would fail the test; those of the attacked page are expected
    page = context_page.context.new_page()
    messages: list[str] = []
    sent: list[str] = []
    page.on("console", lambda message: messages.append(message.text))
    page.on("requestfinished", lambda request: sent.append(request.url))
    page.goto(pages["attacked"].as_uri())
    page.click("#bait")
    page.wait_for_timeout(100)
    assert page.evaluate("window.ran") is None
    assert sum("Content Security Policy" in line for line in messages) >= 4
    assert {url for url in sent if not url.startswith("data:")} == {pages["attacked"].as_uri()}
    assert page.locator("#examples th button").count() == 5  # our own script ran


def test_examples_sort_by_mouse_and_by_keyboard(open_page: Open) -> None:
    page = open_page("report")
    margins = numbers(page, 1)
    assert len(margins) == N_TEST
    assert margins == sorted(margins, reverse=True)
    heads = page.locator("#examples thead th")
    assert heads.nth(1).get_attribute("aria-sort") == "descending"
    page.click("#examples th:nth-child(2) button")
    assert numbers(page, 1) == sorted(margins)
    assert heads.nth(1).get_attribute("aria-sort") == "ascending"
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    chosen = numbers(page, 2)
    assert chosen == sorted(chosen)
    assert [heads.nth(i).get_attribute("aria-sort") for i in (1, 2)] == [None, "ascending"]
    page.keyboard.press("Space")
    assert numbers(page, 2) == sorted(chosen, reverse=True)
    for column in (3, 4):
        page.click(f"#examples th:nth-child({column + 1}) button")
        assert numbers(page, column) == sorted(numbers(page, column))
    page.click("#examples th:nth-child(1) button")  # as text, but numbers in it by value
    assert first_cells(page, 0) == [f"demo.json:{i + 1}" for i in range(N_TEST)]
    # The details moved with their row.
    shown = page.locator("#examples tbody").first
    shown.locator("summary").first.press("Enter")
    assert shown.locator("article").is_visible()


def test_examples_filter_by_kind_and_by_text(open_page: Open) -> None:
    page = open_page("report")
    margins = numbers(page, 1)
    wrong = [margin for margin in margins if margin < 0]
    assert 0 < len(wrong) < N_TEST
    page.get_by_label("Show").select_option("wrong")
    assert numbers(page, 1) == wrong
    assert page.locator(".filters output").text_content() == f"{len(wrong)} of {N_TEST}"
    page.get_by_label("containing").fill("EIN LÄNGERER satz")  # in the responses, even if they are folded
    with_text = numbers(page, 1)
    assert 0 < len(with_text) < len(wrong)
    assert set(with_text) < set(wrong)
    page.get_by_label("Show").select_option("")
    page.get_by_label("containing").fill("nowhere in the data")
    assert numbers(page, 1) == []
    assert page.locator(".filters output").text_content() == f"0 of {N_TEST}"
    page.get_by_label("containing").fill("")
    assert numbers(page, 1) == margins


PAGE = 20  # examples


def shown(page: Page) -> list[float]:
    """The margins of the examples on the page of the table that is open."""
    cells = page.locator("#examples tbody:visible > tr:first-child > td:nth-child(2)").all_text_contents()
    return [float(cell.split()[0].replace("−", "-")) for cell in cells]


def test_examples_are_paged(open_page: Open) -> None:
    page = open_page("report")
    margins = numbers(page, 1)
    pager = page.get_by_role("group", name="Pages of the examples")
    position, back, on = (
        pager.locator("output"),
        pager.get_by_role("button", name="Previous"),
        pager.get_by_role("button", name="Next"),
    )
    assert N_TEST == 2 * PAGE
    assert (shown(page), position.text_content()) == (margins[:PAGE], f"1–{PAGE} of {N_TEST}")
    assert (back.is_disabled(), on.is_disabled()) == (True, False)
    on.click()
    assert (shown(page), position.text_content()) == (margins[PAGE:], f"{PAGE + 1}–{N_TEST} of {N_TEST}")
    assert (back.is_disabled(), on.is_disabled()) == (False, True)
    page.click("#examples th:nth-child(2) button")  # another order begins at its first page
    assert shown(page) == sorted(margins)[:PAGE]
    on.click()
    page.get_by_label("Show").select_option("wrong")  # so does a filter
    wrong = sorted(margin for margin in margins if margin < 0)
    assert (shown(page), position.text_content()) == (wrong[:PAGE], f"1–{PAGE} of {len(wrong)}")
    page.get_by_label("containing").fill("EIN LÄNGERER satz")  # one page needs no pager
    assert 0 < len(shown(page)) < PAGE
    assert set(shown(page)) < set(wrong)
    assert not pager.is_visible()
    page.get_by_label("containing").fill("")
    page.get_by_label("Show").select_option("")
    assert shown(page) == sorted(margins)[:PAGE]
    assert pager.is_visible()


def test_without_javascript_the_examples_are_a_plain_list(open_page: Open) -> None:
    page = open_page("report", java_script_enabled=False)
    assert page.locator("#examples tbody").count() == N_TEST
    assert page.locator("th button").count() == 0
    assert not page.locator(".filters").is_visible()
    page.locator("#examples summary").nth(5).click()
    assert page.locator("#examples article:visible").count() >= 1
    assert page.locator("#examples tbody:visible").count() == N_TEST
    assert not page.locator(".pager").is_visible()


def test_experiments_on_the_frontier_can_be_sorted(open_page: Open) -> None:
    page = open_page("frontier")
    betas = "all => all.map(row => row.cells[1].textContent)"
    assert page.eval_on_selector_all("tbody tr", betas) == ["0.1", "0.5", "0.3"]
    page.click("th:nth-child(2) button")
    assert page.eval_on_selector_all("tbody tr", betas) == ["0.1", "0.3", "0.5"]
    page.click("th:nth-child(3) button")
    assert page.eval_on_selector_all("tbody tr", betas) == ["0.5", "0.3", "0.1"]


UNFOLD = "document.querySelectorAll('details').forEach(details => { details.open = true })"


@pytest.mark.parametrize(
    ("name", "width"),
    [
        *(("report", width) for width in WIDTHS),
        *(("frontier", width) for width in WIDTHS),
        ("published", 400),
        ("hostile", 400),
        ("hostile", 1400),
    ],
)
def test_nothing_is_wider_than_the_screen(open_page: Open, name: str, width: int) -> None:
    """Folded and unfolded. Wide tables scroll in their own region, which can be reached by keyboard."""
    page = open_page(name, width=width)
    for unfold in ("", UNFOLD):
        page.evaluate(unfold)
        page.evaluate("new Promise(requestAnimationFrame)")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    regions = page.eval_on_selector_all(
        ".scroll", "all => all.map(table => [table.tabIndex, table.getAttribute('role'), !!table.ariaLabel])"
    )
    assert regions
    assert all(region == [0, "region", True] for region in regions)


# WCAG 2.2, 1.4.3: the contrast of every element that has its own text with its background, blended from all layers.
CONTRAST = """() => {
    const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    const rgba = new Map();
    const parse = color => {
        if (!rgba.has(color)) {
            canvas.clearRect(0, 0, 1, 1);
            canvas.fillStyle = color;
            canvas.fillRect(0, 0, 1, 1);
            const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
            rgba.set(color, [r, g, b, a / 255]);
        }
        return rgba.get(color);
    };
    const over = (top, under) => under.map((value, i) => i === 3 ? 1 : top[i] * top[3] + value * (1 - top[3]));
    const luminance = color => color.slice(0, 3).map(value => value / 255)
        .map(value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
        .reduce((sum, value, i) => sum + value * [0.2126, 0.7152, 0.0722][i], 0);
    const groundOf = element =>
        element ? over(parse(getComputedStyle(element).backgroundColor), groundOf(element.parentElement)) : [255, 255, 255, 1];
    const low = {};
    let seen = 0;
    for (const element of document.body.querySelectorAll("*")) {
        const own = [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
        if (!own || ["SCRIPT", "STYLE", "OPTION"].includes(element.tagName) || !element.checkVisibility()) continue;
        const style = getComputedStyle(element);
        const ground = groundOf(element);
        const ink = over(parse(element.closest("svg") ? style.fill : style.color), ground);
        const [light, dark] = [luminance(ink), luminance(ground)].sort((a, b) => b - a);
        const ratio = (light + 0.05) / (dark + 0.05);
        seen += 1;
        if (ratio < 4.5) low[element.outerHTML.slice(0, 120)] = ratio;
    }
    return [seen, low];
}"""


@pytest.mark.parametrize("name", ["report", "frontier"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_text_has_enough_contrast(open_page: Open, name: str, scheme: str) -> None:
    page = open_page(name, scheme=scheme)
    page.evaluate(UNFOLD)
    seen, low = page.evaluate(CONTRAST)
    assert seen > (2000 if name == "report" else 30)
    assert low == {}
    # The check can fail: paragraphs in a colour close to the background.
    page.add_style_tag(content="p { color: color-mix(in srgb, var(--ink) 30%, var(--paper)); }")
    assert page.evaluate(CONTRAST)[1]


def test_positive_and_negative_shades_differ_by_more_than_colour(open_page: Open) -> None:
    page = open_page("report")
    style = (
        "token => { const s = getComputedStyle(token); return [s.textDecorationStyle, s.backgroundColor, token.title] }"
    )
    up, down = (page.eval_on_selector(f".example .{kind}-4", style) for kind in ("up", "down"))
    assert (up[0], down[0]) == ("solid", "dashed")
    assert up[1] != down[1]
    assert up[2].startswith("+")
    assert down[2].startswith("−")
    paler = page.eval_on_selector(".example .up-1", style)
    assert paler[1] != up[1]


@pytest.mark.parametrize("name", ["report", "hostile", "frontier"])
def test_everything_has_a_name_and_headings_skip_no_level(open_page: Open, name: str) -> None:
    page = open_page(name)
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("img, svg, button, input, select")].filter(element =>
            !(element.alt || element.ariaLabel || element.textContent.trim() || element.labels?.length)
            || element.matches("svg:not([role=img][aria-label]), :is(input, select):not(label *)")
        ).map(element => element.outerHTML.slice(0, 100))"""
    )
    assert nameless == []
    levels = page.eval_on_selector_all(
        "h1, h2, h3, h4, h5, h6", "all => all.map(heading => Number(heading.tagName[1]))"
    )
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_printing_uses_light_colours_and_shows_what_is_unfolded(open_page: Open) -> None:
    """Dozens of pages are printed as they are on screen: each pair with its rewards, and the first with its responses."""
    page = open_page("report", scheme="dark")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "light"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 254, 251)"
    assert not page.locator(".filters").is_visible()
    assert page.locator("#examples tbody:visible").count() == N_TEST
    assert page.locator("#examples article:visible").count() == 1
    assert page.evaluate(CONTRAST)[1] == {}
    assert page.evaluate("document.documentElement.scrollWidth") <= 1400
    folded = len(page.pdf())
    page.evaluate(UNFOLD)
    assert len(page.pdf()) > 1.2 * folded
