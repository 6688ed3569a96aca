"""`prefdag pin` writes hashes and commits into params.yaml, and changes nothing else."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paths import ROOT
from ruamel.yaml import YAML
from sites import COMMIT, Site, serving
from typer.testing import CliRunner, Result

from prefdag.check_params import load_params
from prefdag.cli import app
from prefdag.config.sources import PathSource
from prefdag.lifecycle.errors import ParamsError
from prefdag.project.edit_yaml import set_values
from prefdag.runtime.artifacts import sha256

HASH = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
DIGITS = "1234567890" * 6 + "1234"  # YAML would read it as a number


def pin(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["pin", *arguments])


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This project's params.yaml and eval sets, and a file and a folder of one's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    for name in ("evals", "examples"):
        shutil.copytree(ROOT / name, name)
    Path("pictures/cats").mkdir(parents=True)
    Path("pictures/cats/one.png").write_bytes(b"1")
    Path("rows.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    return tmp_path


def put(old: str, new: str) -> str:
    """Replace a source in params.yaml. Returns the file's new content."""
    text = Path("params.yaml").read_text()
    start = text.index(f"{old}:\n  source:")
    end = text.index("\n\n", start)
    text = f"{text[:start]}{old}:\n  source:{new}{text[end:]}"
    Path("params.yaml").write_text(text)
    return text


ROWS = "\n    kind: path   # mine\n    path: rows.jsonl\n    sha256: {}   # later"


@pytest.mark.slow
def test_it_pins_an_adapter(project: Path) -> None:
    adapter = "adapter: {kind: path, path: pictures, sha256: null}"
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(re.sub(r"(download_model:\n(?:  .*\n)*?  )adapter: null", rf"\1{adapter}", text))
    assert "download_model.adapter" in pin("--check").output
    assert pin().exit_code == 0
    assert load_params().download_model.adapter == PathSource(
        kind="path", path="pictures", sha256=sha256(Path("pictures"))
    )


@pytest.mark.slow
def test_it_pins_the_sources_in_a_list(project: Path) -> None:
    """Several judges of rounds."""
    judge = "{kind: reward_model, source: {kind: path, path: PATH}}"
    judges = f"[{{kind: implicit}}, {judge.replace('PATH', 'rows.jsonl')}, {judge.replace('PATH', 'pictures')}]"
    text = Path("params.yaml").read_text()
    start = text.index("  judge: ", text.index("\nrounds:"))
    new = f"{text[:start]}  judge: {judges}{text[text.index(chr(10), start) :]}"
    Path("params.yaml").write_text(new)
    assert pin("rounds.judge.1").exit_code == 0
    assert pin().exit_code == 0
    after = new
    for path in ("rows.jsonl", "pictures"):
        after = after.replace(
            f"{{kind: path, path: {path}}}", f"{{kind: path, sha256: {sha256(Path(path))}, path: {path}}}"
        )
    tree = YAML(typ="safe").load(Path("params.yaml").read_text())
    assert tree == YAML(typ="safe").load(after)
    assert load_params().rounds.count == 0


@pytest.mark.slow
def test_it_writes_files_and_folders_and_changes_nothing_else(project: Path) -> None:
    put("download_images", " {kind: path, path: pictures, sha256: null}  # a folder")
    before = put("download_pairs", ROWS.format("..."))
    assert pin("--check").exit_code == 1
    assert Path("params.yaml").read_text() == before
    result = pin()
    rows, pictures = sha256(Path("rows.jsonl")), sha256(Path("pictures"))
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        f"download_pairs.source.sha256: ... -> {rows}",
        f"download_images.source.sha256: null -> {pictures}",
        "params.yaml: 2 pins written; `dvc repro` runs what depends on them",
    ]
    after = before.replace("...   # later", f"{rows}   # later").replace(
        "pictures, sha256: null", f"pictures, sha256: {pictures}"
    )
    assert Path("params.yaml").read_text() == after
    assert pin().stdout == "every source is pinned\n"
    assert pin("--check").exit_code == 0
    Path("rows.jsonl").write_text("changed")
    result = pin("--check")
    assert (result.exit_code, result.stderr) == (1, "error: params.yaml: 1 pins differ; `prefdag pin` writes them\n")
    assert result.stdout == f"download_pairs.source.sha256: {rows} -> {sha256(Path('rows.jsonl'))}\n"
    assert Path("params.yaml").read_text() == after
    assert pin("download_pairs").exit_code == 0
    assert load_params().download_pairs.source.sha256 == sha256(Path("rows.jsonl"))  # type: ignore[union-attr]


@pytest.mark.slow
@pytest.mark.parametrize(
    "source",
    [
        "\n    kind: path   # mine\n    path: rows.jsonl",
        "\n      path: rows.jsonl\n      kind: path",
        " {kind: path, path: rows.jsonl}",
        "\n    kind: path\n    path: rows.jsonl\n    sha256:",
        "\n    kind: path\n    path: rows.jsonl\n    sha256: 'abc'",
        "\n    kind: path\n    path: rows.jsonl\n    sha256: 0",
    ],
)
def test_a_key_that_is_missing_or_empty(source: str, project: Path) -> None:
    before = put("download_pairs", source)
    assert pin().exit_code == 0
    digest = sha256(Path("rows.jsonl"))
    assert load_params().download_pairs.source.sha256 == digest  # type: ignore[union-attr]
    lines = before.splitlines()
    new = [line for line in Path("params.yaml").read_text().splitlines() if line not in lines]
    assert len(new) == 1
    assert digest in new[0]


def test_windows_line_ends_stay(project: Path) -> None:
    text = put("download_pairs", "\n    kind: path\n    path: rows.jsonl").replace("\n", "\r\n")
    Path("params.yaml").write_bytes(text.encode())
    assert pin().exit_code == 0
    content = Path("params.yaml").read_bytes()
    assert content.count(b"\r\n") == content.count(b"\n") == text.count("\n") + 1


def test_a_source_that_cannot_be_pinned_does_not_keep_the_others_from_it(project: Path) -> None:
    put("download_images", "\n    kind: path\n    path: picture\n    sha256: ...")
    put("download_pairs", ROWS.format("null"))
    result = pin()
    assert result.exit_code == 2
    assert result.stderr.startswith("error: params.yaml: download_images.source: path 'picture' not found; ")
    assert load_params().download_pairs.source.sha256 == sha256(Path("rows.jsonl"))  # type: ignore[union-attr]


def test_other_mistakes_are_one_line(project: Path) -> None:
    result = pin("download_pair")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: params.yaml: download_pair: no source; there is download_pairs.source")
    Path("params.yaml").write_text(Path("params.yaml").read_text().replace("beta: 0.1", "beta: -1"))
    result = pin()
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "error: params.yaml: beta: input should be greater than 0, not -1\n"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving() as site:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", site.address)
        yield site


@pytest.mark.slow
def test_a_hub_source_gets_its_commit_and_hashes(project: Path, hub: Site) -> None:
    put(
        "download_pairs",
        "\n    kind: hub\n    repo: some/rows\n    repo_type: dataset\n    revision: null  # newest"
        "\n    files: {train.jsonl: null}",
    )
    tree = [
        {
            "type": "file",
            "path": "train.jsonl",
            "size": 1,
            "oid": "0" * 40,
            "lfs": {"oid": HASH, "size": 1, "pointerSize": 1},
        }
    ]
    hub.pages["/api/datasets/some/rows"] = json.dumps({"id": "some/rows", "sha": COMMIT}).encode(), "application/json"
    hub.pages[f"/api/datasets/some/rows/tree/{COMMIT}"] = json.dumps(tree).encode(), "application/json"
    assert pin().exit_code == 0
    source: Any = load_params().download_pairs.source
    assert (source.revision, source.files) == (COMMIT, {"train.jsonl": HASH})
    assert f"revision: {COMMIT}  # newest" in Path("params.yaml").read_text()


def test_the_hub_offline_is_one_line(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    before = put(
        "download_pairs",
        "\n    kind: hub\n    repo: some/rows\n    repo_type: dataset\n    revision: main\n    files: [a]",
    )
    result = pin()
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "dataset repository 'some/rows' at main: cannot be fetched: " in result.stderr
    assert Path("params.yaml").read_text() == before


# --- the text ---------------------------------------------------------------------------------------------------------

NAMES = st.text("abcxyz_", min_size=1, max_size=5)
SCALARS = st.sampled_from(["1", "null", "", "'quoted #'", '"two"', "text", "...", "2.0e-4", "[p, q]", "true"])


@st.composite
def documents(draw: st.DrawFn, depth: int = 2) -> tuple[str, list[tuple[str, ...]]]:
    """A YAML mapping in odd but legal formatting, and the keys of its scalars."""
    lines: list[str] = []
    keys: list[tuple[str, ...]] = []
    indent = " " * draw(st.integers(1, 5))
    for name in draw(st.lists(NAMES, min_size=1, max_size=4, unique=True)):
        comment = draw(st.sampled_from(["", "   # why", " #"]))
        if depth and draw(st.booleans()):
            text, below = draw(documents(depth - 1))
            lines += [f"{name}:{comment}", *(f"{indent}{line}" if line else "" for line in text.splitlines())]
            keys += [(name, *key) for key in below]
        else:
            value = draw(SCALARS)
            space = " " * draw(st.integers(1, 3))
            lines.append(f"{name}:{space}{value}{comment}" if value else f"{name}:{comment}")
            if not value.startswith("["):
                keys.append((name,))
        lines += draw(st.sampled_from([[], [""], ["# between"]]))
    return "\n".join(lines) + "\n", keys


@pytest.mark.slow
@given(document=documents(), data=st.data(), value=st.sampled_from([HASH, DIGITS]))
def test_only_the_value_changes(document: tuple[str, list[tuple[str, ...]]], data: st.DataObject, value: str) -> None:
    text, keys = document
    if not keys:
        return
    chosen = data.draw(st.sampled_from(keys))
    edited = set_values(text, {chosen: value})
    tree, expected = YAML(typ="safe").load(edited), YAML(typ="safe").load(text)
    for node in (tree, expected):
        for key in chosen[:-1]:
            node = node[key]
        if node is not tree:
            node[chosen[-1]] = value
    assert YAML(typ="safe").load(edited) == expected
    before, after = text.splitlines(), edited.splitlines()
    (changed,) = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert changed[1].partition("#")[2] == changed[0].partition("#")[2] or "quoted" in changed[0]


def test_an_alias_is_the_same_source() -> None:
    text = "a: &one {kind: path, path: x, sha256: null}\nb: *one\n"
    assert set_values(text, {("b", "sha256"): HASH}) == text.replace("null", HASH)


def test_what_cannot_be_replaced_is_refused() -> None:
    with pytest.raises(ParamsError, match=r"^params\.yaml: a\.sha256: cannot be written there; write sha256: 9f86"):
        set_values("a:\n  sha256: |\n    abc\nb: 1\n", {("a", "sha256"): HASH})
