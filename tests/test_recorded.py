"""An output that is not what dvc.lock records is refused."""

from collections.abc import Callable
from pathlib import Path

import pytest

from prefdag.lifecycle.errors import DataError, ParamsError
from prefdag.recorded import check_recorded, recorded
from prefdag.runtime import artifacts
from prefdag.runtime.running import running

CONTENT = "1\n"
# DVC's hashes: `printf '1\n' | md5sum`, and that of the list [{"md5": FILE, "relpath": "x.json"}].
FILE, FOLDER = "b026324c6904b2a9cb4b88d6d61c81d1", "12e76180981b7e8a3de70444a36163c2.dir"


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder and a file that dvc.lock records."""
    monkeypatch.chdir(tmp_path)
    Path("out").mkdir()
    for path in (Path("out/x.json"), Path("y.json")):
        path.write_text(CONTENT)
    outs = f"[{{path: out, md5: {FOLDER}}}, {{path: y.json, md5: {FILE}}}]"
    Path("dvc.lock").write_text(f"schema: '2.0'\nstages: {{make: {{cmd: make, outs: {outs}}}}}\n")


def test_what_dvc_wrote_is_read() -> None:
    for path in (Path("out"), Path("out/x.json"), Path("y.json"), Path("out/x.json").absolute()):
        assert recorded(path) == path
    assert artifacts.read_json(Path("out/x.json")) == 1


def test_a_stage_reads_what_it_has_just_written() -> None:
    """dvc.lock has the hash of its last run, with other parameters perhaps."""
    Path("y.json").write_text("2\n")
    with running("make", {}):
        assert artifacts.read_json(Path("y.json")) == 2
    with running("other", {}), pytest.raises(DataError, match=r"^y\.json: changed"):
        artifacts.read_json(Path("y.json"))


@pytest.mark.parametrize(
    "change",
    [
        lambda: Path("out/x.json").write_text("2\n"),
        lambda: Path("out/additional.json").write_text(CONTENT),
        lambda: Path("out/x.json").rename("out/z.json"),
        lambda: Path("out/x.json").unlink(),
    ],
    ids=["edited", "additional", "renamed", "lost"],
)
@pytest.mark.parametrize(
    "read",
    [
        artifacts.read_json,
        artifacts.read_csv,
        artifacts.read_table,
        artifacts.count_rows,
        lambda path: list(artifacts.read_batches(path, 1)),
        lambda path: artifacts.read_tensors(path, "numpy"),
    ],
    ids=["json", "csv", "table", "count", "batches", "tensors"],
)
def test_no_reader_takes_a_folder_that_changed(change: Callable[[], object], read: Callable[[Path], object]) -> None:
    recorded(Path("out"))
    change()
    with pytest.raises(
        DataError, match=r"^out: changed since its stage wrote it, as dvc\.lock shows; `prefdag verify`"
    ):
        read(Path("out/x.json"))


def test_a_file_that_changed_is_refused() -> None:
    Path("y.json").write_text("2\n")
    with pytest.raises(DataError, match=r"^y\.json: changed since"):
        recorded(Path("y.json"))


def test_a_new_record_is_read_at_once() -> None:
    Path("y.json").write_text("2\n")
    Path("dvc.lock").write_text(Path("dvc.lock").read_text().replace(FILE, "26ab0db90d72e28ad0ba1e22ee510510"))
    assert artifacts.read_json(Path("y.json")) == 2


def test_what_is_not_recorded_is_not_checked_unless_asked_for() -> None:
    Path("own.json").write_text("3")
    assert artifacts.read_json(Path("own.json")) == 3
    check_recorded(Path("out"))
    check_recorded(Path("y.json"))
    with pytest.raises(DataError, match=r"^own\.json: dvc\.lock does not record it"):
        check_recorded(Path("own.json"))
    with pytest.raises(DataError, match=r"^none\.json: not found"):
        check_recorded(Path("none.json"))
    Path("dvc.lock").unlink()
    with pytest.raises(DataError, match=r"^out: dvc\.lock does not record it"):
        check_recorded(Path("out"))


@pytest.mark.parametrize(
    "content", ["stages: 3", "a: b", "stages: {make: {outs: [x]}}", "stages: {make: []}", "<<<<<<< HEAD"]
)
def test_a_lock_of_another_shape_is_one_line(content: str) -> None:
    Path("dvc.lock").write_text(content)
    with pytest.raises(ParamsError, match=r"^dvc\.lock: ") as caught:
        recorded(Path("out"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"\x00" * 40, b"PAR1" + b"\xff" * 100 + b"PAR1", b"a,b\n1\n2,3,4\n"])
def test_a_broken_file_is_one_line(content: bytes, tmp_path: Path) -> None:
    """Of every kind, also where nothing records it."""
    path = tmp_path / "broken"
    path.write_bytes(content)
    readers: list[Callable[[Path], object]] = [
        *(artifacts.read_json, artifacts.read_table, artifacts.count_rows),
        lambda path: list(artifacts.read_batches(path, 1)),
        lambda path: artifacts.read_tensors(path, "torch"),
        lambda path: artifacts.read_tensors(path, "numpy"),
    ]
    for read in readers:
        with pytest.raises(DataError) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path}: not ")
        assert "\n" not in str(caught.value)


def test_an_output_of_a_stage_in_a_folder_is_checked() -> None:
    folder = Path("dag/more")
    folder.mkdir(parents=True)
    (folder / "dvc.lock").write_text(f"stages: {{more: {{cmd: x, outs: [{{path: own.json, md5: {FILE}}}]}}}}")
    Path("own.json").write_text(CONTENT)
    check_recorded(Path("own.json"))
    Path("own.json").write_text("3")
    with pytest.raises(DataError, match=r"^own\.json: changed since"):
        recorded(Path("own.json"))
