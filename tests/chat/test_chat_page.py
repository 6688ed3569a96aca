"""The chat page in a real browser: both answers are side by side, and text in them is shown and never run."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from chat_models import byte_tokenizer, saying
from paths import HELPERS

from prefdag.chat.dialogue import ChatModels, Generate
from prefdag.chat.server import bind, make_app

pytestmark = pytest.mark.slow

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
browses = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine")

HOSTILE = (
    "<script>window.hit = 1</script><img src=x onerror='window.hit = 2'></p></section></template>{{7*7}}${7*7}"
    "<svg onload='window.hit = 3'>&lt;b&gt;&amp; \u202eright to left\u202c \x07\x1b[31m שלום\n" + "w" * 300
)
PAUSE = "wait"


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """A server whose reference answers with hostile text and whose policy repeats the prompt.

    Both answer "wait" with one "x" after the other until the page stops them.
    """
    tokenizer = byte_tokenizer(tmp_path)

    def pausing(answer: Generate) -> Generate:
        def generate(prompt_ids: Any, listener: Any, **options: Any) -> tuple[int, bool]:
            if not tokenizer.decode(prompt_ids).endswith(f"{PAUSE}<|im_end|>\n<|im_start|>assistant\n"):
                return answer(prompt_ids, listener, **options)
            n = 1
            while listener("x"):
                time.sleep(0.02)
                n += 1
            return n, False

        return generate

    models = {"reference": saying(HOSTILE, tokenizer), "policy": saying(lambda prompt: prompt, tokenizer)}
    models = {name: pausing(answer) for name, answer in models.items()}
    listening = bind(0)
    app = make_app(ChatModels(models, tokenizer, 4000), 1000)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off", ws="none"))
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = server.force_exit = True
    thread.join(timeout=30)


@pytest.fixture
def faults() -> list[str]:
    """The browser's console messages and errors."""
    return []


@pytest.fixture
def page(address: str, faults: list[str]) -> Iterator[Any]:
    """The open page. When the test ends, there must be no error and no request to another address."""
    from playwright.sync_api import sync_playwright

    requests: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.on("console", lambda message: faults.append(message.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.set_default_timeout(60_000)
        page.goto(address)
        yield page
        browser.close()
    assert faults == []
    assert requests
    assert all(url.startswith(address + "/") for url in requests), requests


def send(page: Any, text: str) -> None:
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")


def finished(page: Any) -> None:
    page.get_by_role("button", name="Send").wait_for()


def texts(page: Any, name: str) -> list[str]:
    contents: list[str] = page.locator(f"section.{name} .text").all_text_contents()
    return contents


@browses
def test_messages_and_answers_are_shown_and_never_run(page: Any) -> None:
    send(page, HOSTILE)
    finished(page)
    assert texts(page, "reference") == [HOSTILE]
    assert page.locator(".user p").all_text_contents() == [HOSTILE]
    assert HOSTILE.split("\x07")[0] in texts(page, "policy")[0]
    assert page.evaluate("window.hit") is None
    # No text became an element of the page.
    assert page.locator("#log :is(script, img, svg, b, template)").count() == 0
    assert page.locator("#log section").count() == 2


@browses
def test_answers_are_side_by_side_and_on_a_phone_one_below_the_other(page: Any) -> None:
    send(page, HOSTILE)
    finished(page)
    boxes = {}
    for width in (1400, 400):
        page.set_viewport_size({"width": width, "height": 800})
        boxes[width] = [page.locator(f"section.{name}").bounding_box() for name in ("reference", "policy")]
        overflow = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert overflow == 0, f"{width} px: {overflow} too wide"
        assert all(box["x"] >= 0 and box["x"] + box["width"] <= width for box in boxes[width])
    left, right = boxes[1400]
    assert left["y"] == right["y"]
    assert left["x"] + left["width"] < right["x"]
    above, below = boxes[400]
    assert above["x"] == below["x"]
    assert above["y"] + above["height"] < below["y"]


@browses
def test_each_model_continues_with_its_own_answers(page: Any) -> None:
    """The policy repeats its prompt, so its second answer shows that its own first answer is in the history."""
    page.get_by_text("Settings").click()
    page.get_by_label("Maximum answer length").fill("60")
    for text in ("one", "two"):
        send(page, text)
        finished(page)
    first, second = texts(page, "policy")
    assert first == "<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\n"
    assert second == f"<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\n{first}"[:60]
    assert page.locator("section.policy .note").all_text_contents() == ["", "Truncated at 60 tokens."]
    page.get_by_role("button", name="New conversation").click()
    assert page.locator("article").count() == 0
    send(page, "two")
    finished(page)
    assert texts(page, "policy") == [first.replace("one", "two")]


@browses
def test_shift_enter_starts_a_new_line(page: Any) -> None:
    page.keyboard.type("a")  # the field has the focus
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("b")
    assert page.locator("article").count() == 0
    page.keyboard.press("Enter")
    finished(page)
    assert page.locator(".user p").all_text_contents() == ["a\nb"]


@browses
def test_an_answer_streams_and_stop_ends_it(page: Any) -> None:
    send(page, PAUSE)
    page.locator("section .text", has_text="xx").wait_for()  # of the model whose request came first
    assert page.locator("section[aria-busy=true]").count() == 2
    send(page, "too early")
    assert page.locator("article").count() == 1
    page.get_by_label("Message", exact=True).fill("")
    page.get_by_role("button", name="Stop").click()
    finished(page)
    assert page.locator(".note").all_text_contents() == ["Stopped.", "Stopped."]
    assert page.locator("section[aria-busy=false]").count() == 2
    assert page.get_by_role("status").text_content() == "Stopped"
    send(page, "next")  # the model is free again; the stopped message, without an answer, is not in the history
    finished(page)
    assert texts(page, "reference")[1] == HOSTILE
    assert texts(page, "policy")[1] == "<|im_start|>user\nnext<|im_end|>\n<|im_start|>assistant\n"


@browses
def test_a_shortened_conversation_and_a_refused_setting_are_reported(page: Any, address: str) -> None:
    page.get_by_text("Settings").click()
    page.get_by_label("Maximum answer length").fill("10")
    for text in ("a" * 3000, "b" * 3000):
        send(page, text)
        finished(page)
    note = page.locator("section.policy .note").nth(1).text_content()
    assert note.startswith("The conversation is too long for the model. Its oldest 2 messages were left out.")
    page.get_by_role("button", name="New conversation").click()
    page.get_by_text("Settings").click()
    page.get_by_label("Maximum answer length").fill("4096")
    page.get_by_label("Seed").fill("")
    send(page, "no seed")
    assert page.locator("article").count() == 0
    assert page.locator("details").get_attribute("open") is not None


@browses
def test_the_browser_enforces_the_security_policy(page: Any, faults: list[str]) -> None:
    """The browser refuses markup from text, code from text, and a script from another address."""
    refused = page.evaluate(
        """() => {
            const refused = [];
            for (const attempt of [
                () => { document.body.innerHTML = "<b>markup</b>"; },
                () => { setTimeout("window.hit = 1"); },
                () => { document.head.append(Object.assign(document.createElement("script"), {src: "data:,hit=1"})); },
            ]) {
                try { attempt(); refused.push(false); } catch { refused.push(true); }
            }
            return refused;
        }"""
    )
    assert refused == [True, True, True]
    assert page.evaluate("window.hit") is None
    fetched = page.evaluate("fetch('http://localhost:9/').then(() => true, () => false)")
    assert not fetched
    assert all("TrustedHTML" in f or "TrustedScript" in f or "Content Security Policy" in f for f in faults), faults
    assert any("connect-src" in fault for fault in faults)
    faults.clear()


def test_ctrl_c_stops_the_server_during_an_answer(tmp_path: Path) -> None:
    """It stops at once with exit code 0 and no traceback, although the model ignores its listener."""
    script = tmp_path / "serve.py"
    script.write_text(
        "import sys, time\n"
        "from pathlib import Path\n"
        "from chat_models import byte_tokenizer\n"
        "from prefdag.chat.dialogue import ChatModels\n"
        "from prefdag.chat.server import bind, make_app, serve\n"
        "def deaf(prompt_ids, listener, **options):\n"
        "    listener('x')\n"
        "    print('busy', flush=True)\n"
        "    time.sleep(600)\n"
        "listening = bind(0)\n"
        "app = make_app(ChatModels({'policy': deaf}, byte_tokenizer(Path(sys.argv[1])), None), 8)\n"
        "print(listening.getsockname()[1], flush=True)\n"
        "serve(app, listening)\n"
    )
    process = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path / "tokenizer")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(HELPERS)},
    )
    try:
        assert process.stdout is not None
        url = f"http://127.0.0.1:{process.stdout.readline().strip()}/v1/chat/completions"
        body = {"model": "policy", "messages": [{"role": "user", "content": "x"}], "stream": True}
        with httpx.stream("POST", url, json=body, timeout=60, trust_env=False) as response:
            assert response.status_code == 200
            assert process.stdout.readline() == "busy\n"
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0
    assert "Traceback" not in errors
