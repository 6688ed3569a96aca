"""`prefdag export --push`: to a hub on this machine, private unless told otherwise, with the environment's token alone."""

from collections.abc import Iterator
from pathlib import Path

import fake_hub
import pytest
from fake_hub import Hub
from typer.testing import CliRunner

from prefdag.cli import app
from prefdag.export import pipeline
from prefdag.export.push import for_hub, push
from prefdag.lifecycle.errors import ParamsError, PrefdagError

pytestmark = pytest.mark.slow

TOKEN = "hf_secret"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with fake_hub.running() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A part of an export."""
    path = tmp_path / "export/text_adapter"
    (path / "reference").mkdir(parents=True)
    (path / "adapter_config.json").write_text("{}")
    (path / "reference/model.safetensors").write_bytes(bytes(range(256)))
    (path / "README.md").write_text('x("./reference"), ".")\n')
    return path


def test_a_folder_becomes_a_private_repository_in_one_commit(hub: Hub, folder: Path) -> None:
    address = push(folder, "me/model", public=False)
    assert address == f"{hub.url}/me/model (c0ffee000000, private)"
    assert hub.private == {"me/model": True}
    assert hub.commits == 1
    assert hub.files["me/model"] == {
        "README.md": b'x("me/model", subfolder="reference"), "me/model")\n',
        "adapter_config.json": b"{}",
        "reference/model.safetensors": bytes(range(256)),
    }
    assert hub.tokens == {TOKEN}
    assert (folder / "README.md").read_text() == 'x("./reference"), ".")\n'


def test_an_existing_private_repository_is_updated(hub: Hub, folder: Path) -> None:
    push(folder, "me/model", public=False)
    (folder / "adapter_config.json").write_text("[]")
    push(folder, "me/model", public=False)
    assert hub.files["me/model"]["adapter_config.json"] == b"[]"


def test_nothing_goes_to_a_public_repository_unasked(hub: Hub, folder: Path) -> None:
    assert push(folder, "me/open", public=True).endswith("public)")
    assert hub.private == {"me/open": False}
    hub.files["me/open"].clear()
    with pytest.raises(PrefdagError, match=r"^me/open: exists and is public; add --public"):
        push(folder, "me/open", public=False)
    assert hub.files["me/open"] == {}


@pytest.mark.parametrize("repo", ["model", "a/b/c", "/b", "a/"])
def test_a_repository_has_an_owner_and_a_name(hub: Hub, repo: str, folder: Path) -> None:
    with pytest.raises(ParamsError, match=r"expected OWNER/NAME$"):
        push(folder, repo, public=False)
    assert hub.tokens == set()


def test_a_name_that_the_hub_does_not_allow_is_one_line(hub: Hub, folder: Path) -> None:
    with pytest.raises(ParamsError, match=r"^--push me/a--b: "):
        push(folder, "me/a--b", public=False)


def test_the_token_comes_from_the_environment_only(
    hub: Hub, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was saved by a login is not used."""
    monkeypatch.delenv("HF_TOKEN")
    (tmp_path / "token").write_text("hf_saved")
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["export", "--push", "me/model"])
    assert done.exit_code == 2
    assert done.stderr.startswith(
        "error: HF_TOKEN: not set; --push takes the hub's token from this environment variable"
    )
    assert hub.tokens == set()


def test_a_refusal_is_one_line_without_the_token(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "refused")
    with pytest.raises(PrefdagError, match=r"^the hub did not take me/model: .*401") as caught:
        push(folder, "me/model", public=False)
    assert "refused" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_hub_that_is_away_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(PrefdagError, match=r"^the hub did not take me/model: "):
        push(folder, "me/model", public=False)


def test_a_part_that_was_not_exported_is_named(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(PrefdagError, match=r"absent: not in this export; choose another --part$"):
        push(tmp_path / "absent", "me/model", public=False)
    assert hub.private == {}


def test_a_readme_for_the_hub_names_the_repository() -> None:
    assert for_hub('load(".")\nload("./reference")', "a/b") == 'load("a/b")\nload("a/b", subfolder="reference")'


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_the_command_exports_and_pushes(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from export_project import write_project

    monkeypatch.chdir(write_project(tmp_path / "project"))
    done = CliRunner().invoke(app, ["export", "--push", "me/model", "--part", "text_adapter"])
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1] == f"pushed text_adapter to {hub.url}/me/model (c0ffee000000, private)"
    part = Path("export/text_adapter")
    there = {path.relative_to(part).as_posix() for path in part.rglob("*") if path.is_file()}
    assert set(hub.files["me/model"]) == there
    assert part.name == pipeline.ADAPTER
