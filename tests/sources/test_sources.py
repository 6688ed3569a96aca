"""Sources, against our own package index, hub and archive server on the loopback interface."""

import errno
import hashlib
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paths import ROOT
from refused_sources import KEY, refusal
from safetensors.numpy import load_file
from sites import COMMIT, Site, serving
from tars import tar

from prefdag.check_params import check_params
from prefdag.config.sources import Cifar10Source, HubSource, PathSource, PypiSource
from prefdag.lifecycle.errors import SourceError
from prefdag.project.pinning import pins
from prefdag.project.profiles import merge
from prefdag.runtime import artifacts
from prefdag.runtime.yaml import read_yaml
from prefdag.sources import pypi
from prefdag.sources.fetching import fetch

CONTENT = b'{"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}\n' * 4000


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    with serving() as server:
        for name in pypi.INDEX_VARIABLES:
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("UV_DEFAULT_INDEX", f"{server.address}/simple")
        monkeypatch.setattr(pypi, "PAUSES", (0.0, 0.0))
        yield server


def wheel(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def sdist(**members: bytes | str) -> bytes:
    """A .tar.gz; a member given as text is a symbolic link to that name."""
    return tar(members, "w:gz")


def pin(file: str, content: bytes, member: str, version: str = "1.2") -> PypiSource:
    digest = hashlib.sha256(content).hexdigest()
    return PypiSource(kind="pypi", package="toy", version=version, file=file, sha256=digest, member=member)


# --- pypi -------------------------------------------------------------------------------------------------------------

WHEEL, SDIST = "toy-1.2-py3-none-any.whl", "toy-1.2.tar.gz"


@pytest.mark.parametrize(
    ("file", "archive"),
    [
        (WHEEL, wheel(**{"toy/a/pairs.json": CONTENT, "toy/evil.py": b"1/0"})),
        (SDIST, sdist(**{"toy/a/pairs.json": CONTENT})),
    ],
)
def test_a_member_of_a_wheel_or_an_sdist_is_fetched(site: Site, tmp_path: Path, file: str, archive: bytes) -> None:
    site.offer("toy", **{"toy-1.1.tar.gz": b"", file: archive})
    fetch(pin(file, archive, "toy/a/pairs.json"), tmp_path / "out", KEY)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [
        "pairs.json"
    ]  # the base name; neither the archive nor other members
    assert (tmp_path / "out/pairs.json").read_bytes() == CONTENT


def test_the_index_may_be_json_and_have_a_name(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = wheel(member=CONTENT)
    site.offer("toy", **{WHEEL: archive})
    files = [{"filename": WHEEL, "url": f"/files/{WHEEL}", "hashes": {}}]
    page = {"meta": {"api-version": "1.0"}, "name": "toy", "files": files}
    site.pages["/simple/toy/"] = json.dumps(page).encode(), "application/vnd.pypi.simple.v1+json"
    monkeypatch.setenv("UV_DEFAULT_INDEX", f"mirror={site.address}/simple/")
    fetch(pin(WHEEL, archive, "member"), tmp_path, KEY)
    assert (tmp_path / "member").read_bytes() == CONTENT


def test_a_wrong_hash_is_refused_with_both_hashes(site: Site, tmp_path: Path) -> None:
    archive = wheel(member=CONTENT)
    site.offer("toy", **{WHEEL: archive})
    source = pin(WHEEL, b"something else", "member")
    message = refusal(source, tmp_path / "out")
    assert str(source.sha256) in message
    assert hashlib.sha256(archive).hexdigest() in message
    for placeholder in (None, "..."):
        message = refusal(replace(source, sha256=placeholder), tmp_path / "out")
        assert f"but {WHEEL} has sha256: {hashlib.sha256(archive).hexdigest()}; write that, or run" in message
        assert pins(replace(source, sha256=placeholder)) == {"sha256": hashlib.sha256(archive).hexdigest()}
    assert pins(source) == {}
    assert pins(source, again=True) == {"sha256": hashlib.sha256(archive).hexdigest()}


def test_a_hash_that_the_index_contradicts_costs_no_download(site: Site, tmp_path: Path) -> None:
    archive = wheel(member=CONTENT)
    site.offer("toy", **{WHEEL: archive})
    html = f'<a href="/files/{WHEEL}#sha256={hashlib.sha256(archive).hexdigest()}">{WHEEL}</a>'
    site.pages["/simple/toy/"] = html.encode(), "text/html"
    assert "has sha256: " + hashlib.sha256(archive).hexdigest() in refusal(pin(WHEEL, b"", "member"), tmp_path / "out")
    assert site.seen[f"/files/{WHEEL}"] == 0


def test_the_hash_on_the_index_is_not_trusted(site: Site, tmp_path: Path) -> None:
    promised, served = wheel(member=CONTENT), wheel(member=CONTENT + b"!")
    site.offer("toy", **{WHEEL: served})
    html = f'<a href="/files/{WHEEL}#sha256={hashlib.sha256(promised).hexdigest()}">{WHEEL}</a>'
    site.pages["/simple/toy/"] = html.encode(), "text/html"
    assert "has sha256: " + hashlib.sha256(served).hexdigest() in refusal(
        pin(WHEEL, promised, "member"), tmp_path / "out"
    )


def test_an_unknown_name_is_refused_with_the_nearest_one(site: Site, tmp_path: Path) -> None:
    archive, source = wheel(**{"toy/pairs.json": b"1"}), sdist(**{"toy-1.2/pairs.json": b"1"})
    site.offer("toy", **{WHEEL: archive, SDIST: source})
    out = tmp_path / "out"
    assert "version 1.3 of toy: not found; there is 1.2" in refusal(pin(WHEEL, archive, "x", version="1.3"), out)
    assert f"'toy-1.2-py3-any.whl' of toy 1.2: not found; there is {WHEEL}" in refusal(
        pin("toy-1.2-py3-any.whl", archive, "x"), out
    )
    assert "member 'toy/pair.json' of" in refusal(pin(WHEEL, archive, "toy/pair.json"), out)
    assert "there is toy-1.2/pairs.json" in refusal(pin(SDIST, source, "pairs.json"), out)
    del site.pages["/simple/toy/"]
    assert "package 'toy' is not on the index at 127.0.0.1" in refusal(pin(WHEEL, archive, "x"), out)


def linked_zip() -> bytes:
    entry = zipfile.ZipInfo("link")
    entry.external_attr = 0o120777 << 16
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(entry, "/etc/hostname")
        archive.writestr("folder/", "")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("file", "archive", "member"),
    [
        (SDIST, sdist(link="/etc/hostname"), "link"),
        (SDIST, sdist(real=b"1", link="real"), "link"),
        (WHEEL, linked_zip(), "link"),
        (WHEEL, linked_zip(), "folder/"),
    ],
)
def test_links_and_folders_are_refused_as_members(
    site: Site, tmp_path: Path, file: str, archive: bytes, member: str
) -> None:
    site.offer("toy", **{file: archive})
    assert "a folder or a link, not a file" in refusal(pin(file, archive, member), tmp_path / "out")


@pytest.mark.parametrize("file", [WHEEL, SDIST])
def test_a_file_that_is_not_an_archive_is_refused(site: Site, tmp_path: Path, file: str) -> None:
    site.offer("toy", **{file: CONTENT})
    assert f"{file} cannot be unpacked" in refusal(pin(file, CONTENT, "member"), tmp_path / "out")


def test_a_transfer_that_always_breaks_off_is_given_up(site: Site, tmp_path: Path) -> None:
    archive = wheel(member=CONTENT)
    site.offer("toy", **{WHEEL: archive})
    site.cut[f"/files/{WHEEL}"] = 99
    assert "127.0.0.1 interrupted the transfer" in refusal(pin(WHEEL, archive, "member"), tmp_path / "out")
    assert site.seen[f"/files/{WHEEL}"] == 3


def test_a_server_that_fails_once_is_asked_again(site: Site, tmp_path: Path) -> None:
    archive = wheel(member=CONTENT)
    site.offer("toy", **{WHEEL: archive})
    site.cut[f"/files/{WHEEL}"] = site.fail[f"/files/{WHEEL}"] = site.fail["/simple/toy/"] = 1
    fetch(pin(WHEEL, archive, "member"), tmp_path, KEY)
    assert (tmp_path / "member").read_bytes() == CONTENT


def test_a_server_that_is_absent_or_refuses_is_named(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = pin(WHEEL, b"", "member")
    site.pages["/simple/toy/"] = f'<a href="/files/{WHEEL}">{WHEEL}</a>'.encode(), "text/html"
    assert "127.0.0.1 answers 404" in refusal(source, tmp_path / "out")
    assert site.seen[f"/files/{WHEEL}"] == 1  # a refusal is final
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://user:secret@127.0.0.1:9/simple")  # port 9: nobody listens
    message = refusal(source, tmp_path / "out")
    assert "127.0.0.1 cannot be reached" in message
    assert "secret" not in message
    monkeypatch.setenv("UV_DEFAULT_INDEX", "not an address")
    assert "is not valid" in refusal(source, tmp_path / "out")


def test_a_file_of_an_unknown_kind_is_refused_before_any_request(site: Site, tmp_path: Path) -> None:
    assert "neither a zip" in refusal(pin("toy-1.2.exe", b"", "member"), tmp_path / "out")
    assert not site.seen


# --- hub --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Site:
    """A hub with one model and one dataset repository at `COMMIT`."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", site.address)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", site.address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    files = {
        "config.json": b"{}",
        "model.safetensors": b"\0" * 100,
        "pytorch_model.bin": b"x",
        "a/train.jsonl": CONTENT,
    }
    for kind, prefix in (("models", ""), ("datasets", "/datasets")):
        tree = [
            {"type": "file", "path": name, "size": len(content), **listed(content, large=name.endswith(".safetensors"))}
            for name, content in files.items()
        ]
        site.pages[f"/api/{kind}/some/repo/tree/{COMMIT}"] = json.dumps(tree).encode(), "application/json"
        for name, content in files.items():
            site.pages[f"{prefix}/some/repo/resolve/{COMMIT}/{name}"] = content, "application/octet-stream"
    return site


def listed(content: bytes, large: bool) -> dict[str, Any]:
    """A file's digests in the hub's listing: Git's own, and for a large file also its SHA-256."""
    oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    if not large:
        return {"oid": oid}
    return {"oid": oid, "lfs": {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}}


def at(repo_type: str, *files: str, repo: str = "some/repo") -> HubSource:
    return HubSource(kind="hub", repo=repo, repo_type=repo_type, revision=COMMIT, files=list(files))  # type: ignore[arg-type]


def test_a_hub_model_and_nothing_else(hub: Site, tmp_path: Path) -> None:
    fetch(at("model", "*.json", "*.safetensors"), tmp_path / "out", KEY)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_hub_file_that_differs_from_the_listing_is_refused(hub: Site, tmp_path: Path, name: str) -> None:
    """The size is the same, and the library compares only sizes."""
    path = f"/some/repo/resolve/{COMMIT}/{name}"
    content, kind = hub.pages[path]
    hub.pages[path] = b"!" + content[1:], kind
    message = refusal(at("model", "*.json", "*.safetensors"), tmp_path / "out")
    assert f"'{name}' has hash " in message
    assert "fetch it again" in message


def test_hub_files_may_be_pinned_by_sha256(hub: Site, tmp_path: Path) -> None:
    right = {
        "model.safetensors": hashlib.sha256(b"\0" * 100).hexdigest(),
        "config.json": hashlib.sha256(b"{}").hexdigest(),
    }
    source = at("model", "*")
    fetch(replace(source, files=right), tmp_path / "out", KEY)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["config.json", "model.safetensors"]
    wrong = right | {"config.json": "0" * 64}
    message = refusal(replace(source, files=wrong), tmp_path / "again")
    assert f"files: the hash of 'config.json' is {'0' * 64}, but it has config.json: {right['config.json']}" in message
    right["model.safetensors"] = None  # type: ignore[assignment]
    assert "has model.safetensors: " in refusal(replace(source, files=right), tmp_path / "again")


@pytest.mark.parametrize("revision", [None, "...", "main"])
def test_a_hub_source_without_a_commit_says_which_it_is(hub: Site, tmp_path: Path, revision: str | None) -> None:
    path = "/api/models/some/repo" + ("/revision/main" if revision == "main" else "")
    hub.pages[path] = json.dumps({"id": "some/repo", "sha": COMMIT}).encode(), "application/json"
    source = replace(at("model", "*.json"), revision=revision)
    message = refusal(source, tmp_path / "out")
    assert (
        f"revision is {revision or 'null'}, but model 'some/repo' has revision: {COMMIT}; write that, or run" in message
    )
    assert message.endswith(f"`prefdag pin {KEY}`")
    assert pins(source) == {"revision": COMMIT}
    hashed = replace(source, files={"config.json": None, "model.safetensors": "0" * 64})
    assert pins(hashed)["files"] == {
        "config.json": hashlib.sha256(b"{}").hexdigest(),
        "model.safetensors": hashlib.sha256(b"\0" * 100).hexdigest(),
    }
    hub.pages.clear()
    assert "some/repo" in refusal(source, tmp_path / "out")


def test_pins_of_the_hub_offline_are_one_line(hub: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = refusal(replace(at("model", "*.json"), revision=None), tmp_path / "out")
    assert "model repository 'some/repo' at its newest commit: cannot be fetched: " in message


def test_a_hub_model_with_an_adapter_is_refused_before_it_comes(hub: Site, tmp_path: Path) -> None:
    tree = json.loads(hub.pages[f"/api/models/some/repo/tree/{COMMIT}"][0])
    tree += [{"type": "file", "path": "adapter_config.json", "size": 2, **listed(b"{}", large=False)}]
    hub.pages[f"/api/models/some/repo/tree/{COMMIT}"] = json.dumps(tree).encode(), "application/json"
    message = refusal(at("model", "*.json", "*.safetensors"), tmp_path / "out")
    assert "adapter_config.json: an adapter beside a whole model (model.safetensors)" in message
    assert message.endswith("narrow `files`")
    assert not any("resolve" in path for path in hub.seen)
    fetch(at("model", "config.json", "*.safetensors"), tmp_path / "out", KEY)


def test_an_adapter_of_the_hub_comes_alone(hub: Site, tmp_path: Path) -> None:
    names = ("adapter_config.json", "adapter_model.safetensors")
    tree = [{"type": "file", "path": name, "size": 2, **listed(b"{}", large=False)} for name in names]
    hub.pages[f"/api/models/some/repo/tree/{COMMIT}"] = json.dumps(tree).encode(), "application/json"
    for name in names:
        hub.pages[f"/some/repo/resolve/{COMMIT}/{name}"] = b"{}", "application/json"
    fetch(at("model", "adapter_*"), tmp_path / "out", "download_model.adapter")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == list(names)


def test_a_hub_dataset_keeps_its_folders(hub: Site, tmp_path: Path) -> None:
    fetch(at("dataset", "a/*"), tmp_path / "out", KEY)
    assert [p for p in (tmp_path / "out").rglob("*") if p.is_file()] == [tmp_path / "out/a/train.jsonl"]
    assert (tmp_path / "out/a/train.jsonl").read_bytes() == CONTENT


def test_hub_files_that_can_run_code_are_refused_before_download(hub: Site, tmp_path: Path) -> None:
    assert "'pytorch_model.bin' of 'some/repo' is refused" in refusal(at("model", "*"), tmp_path / "out")
    assert "'pytorch_model.bin' of 'some/repo' is refused" in refusal(at("dataset", "*.bin"), tmp_path / "out")
    assert not any("resolve" in path for path in hub.seen)


def test_unknown_hub_names_are_refused(hub: Site, tmp_path: Path) -> None:
    message = refusal(at("model", "*.json", "modle.safetensors"), tmp_path / "out")
    assert "'modle.safetensors' in the model repository 'some/repo'" in message
    assert "there is model.safetensors" in message
    assert "'no/repo'" in refusal(at("model", "*", repo="no/repo"), tmp_path / "out")
    assert "'not a repo'" in refusal(at("model", "*", repo="not a repo"), tmp_path / "out")


@pytest.mark.slow
def test_an_absent_hub_is_one_line(hub: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nobody listens
    assert "cannot be fetched" in refusal(at("model", "*.json"), tmp_path / "out")


def test_a_hub_transfer_that_breaks_off_goes_on_or_is_one_line(
    hub: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    part = f"/some/repo/resolve/{COMMIT}/model.safetensors"
    hub.cut[part] = 99
    assert "cannot be fetched" in refusal(at("model", "model.safetensors"), tmp_path / "out")
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 5)  # bytes; only whole chunks are kept
    hub.cut[part] = 2
    fetch(at("model", "model.safetensors"), tmp_path / "out", KEY)
    assert hub.ranges == ["bytes=50-", "bytes=75-"]


def test_files_of_the_hub_that_came_whole_do_not_come_again(
    hub: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    wanted = at("model", "config.json", "model.safetensors")
    large, small = (f"/some/repo/resolve/{COMMIT}/{name}" for name in ("model.safetensors", "config.json"))
    hub.cut[large] = 99
    refusal(wanted, tmp_path / "out")
    hub.cut[large], before = 0, hub.asked.count((small, ""))
    fetch(wanted, tmp_path / "out", KEY)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["config.json", "model.safetensors"]
    assert hub.asked.count((small, "")) == before > 0


# --- path -------------------------------------------------------------------------------------------------------------


def here(path: Path | str, sha256: str | None) -> PathSource:
    return PathSource(kind="path", path=str(path), sha256=sha256)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "mine"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.jsonl").write_bytes(CONTENT)
    (folder / "sub/b.jsonl").write_bytes(b"{}\n")
    return folder


def test_a_path_may_be_a_file_or_a_folder(folder: Path, tmp_path: Path) -> None:
    fetch(here(folder / "a.jsonl", hashlib.sha256(CONTENT).hexdigest()), tmp_path / "file", KEY)
    assert (tmp_path / "file/a.jsonl").read_bytes() == CONTENT
    (folder / "link.jsonl").symlink_to("a.jsonl")
    fetch(here(folder, artifacts.sha256(folder)), tmp_path / "folder", KEY)
    assert artifacts.sha256(tmp_path / "folder") == artifacts.sha256(folder)
    assert not (tmp_path / "folder/link.jsonl").is_symlink()


def test_relative_paths_may_start_at_the_main_repository(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = tmp_path / ".dvc/tmp/exps/one"  # where a queued experiment runs
    workspace.mkdir(parents=True)
    monkeypatch.chdir(workspace)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    fetch(here("mine/a.jsonl", hashlib.sha256(CONTENT).hexdigest()), Path("out"), KEY)
    assert Path("out/a.jsonl").read_bytes() == CONTENT


def test_a_changed_file_is_refused_with_the_hash_to_pin(folder: Path, tmp_path: Path) -> None:
    for path in (folder, folder / "a.jsonl"):
        actual = artifacts.sha256(path)
        message = refusal(here(path, "0" * 64), tmp_path / "out")
        assert message.endswith(
            f"sha256 is {'0' * 64}, but '{path}' has sha256: {actual}; write that if the change is intended, "
            f"or run `prefdag pin {KEY}`"
        )
        placeholder = refusal(here(path, "..."), tmp_path / "out")
        assert placeholder.endswith(
            f"sha256 is ..., but '{path}' has sha256: {actual}; write that, or run `prefdag pin {KEY}`"
        )
        with artifacts.writing(tmp_path / "out") as out:  # the advice works
            fetch(here(path, actual), out, KEY)
        artifacts.remove(tmp_path / "out")


def test_a_local_path_may_stay_without_a_pin(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for path in (folder, folder / "a.jsonl"):
        caplog.clear()
        fetch(here(path, None), tmp_path / f"copy of {path.name}", KEY)
        (note,) = [record.getMessage() for record in caplog.records]
        assert note.startswith(f"{KEY}: sha256 is null, so a later change of '{path}' goes unnoticed")
        assert artifacts.sha256(path) in note
        assert "`dvc repro --force download_pairs`" in note
        caplog.clear()
        fetch(here(path, artifacts.sha256(path)), tmp_path / f"{path.name}-pinned", KEY)
        assert not caplog.records


def test_a_path_that_is_not_there_says_what_is(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    out = tmp_path / "out"
    for name, advice in {
        "mine/a.json": f"not found; in {folder} there is a.jsonl",
        "mien/a.jsonl": f"not found; relative paths start at {tmp_path}, where there is mine/; a repository on the hub is",
        "mine/sub/": None,
        "mine/sub/c.txt": f"in {folder}/sub there is b.jsonl",
        "mine/a.jsonl/train.jsonl": f"{folder}/a.jsonl is a file, not a folder",
        "https://127.0.0.1/a.jsonl": "is a URL; a source of kind url fetches it",
        "hf://datasets/some/repo": "is a URL; a source of kind hub fetches it",
        "$NO_SUCH_PLACE/a": "the environment variable NO_SUCH_PLACE is not set",
        "~no-such-user/a": "there is no such user",
        "mine/broken": "it is a link to elsewhere, which does not exist",
        "mine/empty": "is a folder without files",
        "mine/pipe": "is neither a file nor a folder",
    }.items():
        if name == "mine/broken":
            (folder / "broken").symlink_to("elsewhere")
        if name == "mine/empty":
            (folder / "empty/inside").mkdir(parents=True)
        if name == "mine/pipe":
            os.mkfifo(folder / "pipe")
        if advice:
            message = refusal(here(name, None), out)
            assert f"path '{name}'" in message or "NO_SUCH" in message
            assert advice in message


@pytest.mark.parametrize("name", ["$HERE/mine/a.jsonl", "~/mine/a.jsonl", "mine/a.jsonl/", "mine/link.jsonl"])
def test_other_ways_to_write_a_path(name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERE", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (folder / "link.jsonl").symlink_to("a.jsonl")
    fetch(here(name, hashlib.sha256(CONTENT).hexdigest()), tmp_path / "out", KEY)
    assert [path.read_bytes() for path in (tmp_path / "out").iterdir()] == [CONTENT]


def test_a_folder_with_a_trailing_slash(folder: Path, tmp_path: Path) -> None:
    fetch(here(f"{folder}/", artifacts.sha256(folder)), tmp_path / "out", KEY)
    assert artifacts.sha256(tmp_path / "out") == artifacts.sha256(folder)


@pytest.mark.parametrize("unreadable", ["a.jsonl", "sub"])
def test_what_cannot_be_read_is_never_left_out(
    unreadable: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a folder inside, too. Root may read all, so the refusal of the system is stood in for."""

    def denied(real: Any) -> Any:
        def call(path: Any, *rest: Any, **named: Any) -> Any:
            if str(path) == str(folder / unreadable):
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return real(path, *rest, **named)

        return call

    monkeypatch.setattr(shutil, "copyfile", denied(shutil.copyfile))
    monkeypatch.setattr(os, "scandir", denied(os.scandir))
    message = refusal(here(folder, None), tmp_path / "out")
    assert f"'{folder / unreadable}' cannot be read: permission denied" in message


@pytest.mark.parametrize("target", ["../secret", "/etc", "sub", "nowhere"])
def test_links_out_of_a_folder_are_refused(folder: Path, tmp_path: Path, target: str) -> None:
    (tmp_path / "secret").write_text("x")
    (folder / "link").symlink_to(target)
    assert "link" in refusal(here(folder, artifacts.sha256(folder)), tmp_path / "out")


# --- cifar10 ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def cifar(site: Site, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """Serve an archive in torchvision's format with three train images and one test image. Returns pixels and labels."""
    from torchvision.datasets import CIFAR10

    images = np.random.default_rng(0).integers(0, 256, (4, 3, 32, 32), dtype=np.uint8)
    labels = [3, 1, 9, 0]
    batches = {
        name: pickle.dumps({"data": images[part].reshape(-1, 3072), "labels": labels[part]})
        for name, part in {"one": slice(0, 2), "two": slice(2, 3), "test": slice(3, 4)}.items()
    }
    batches["meta"] = pickle.dumps({"label_names": list("abcdefghij")})
    archive = sdist(**{f"cifar-10-batches-py/{name}": content for name, content in batches.items()})
    site.pages["/cifar.tar.gz"] = archive, "application/octet-stream"
    md5 = {name: hashlib.md5(content).hexdigest() for name, content in batches.items()}
    monkeypatch.setattr(CIFAR10, "url", f"{site.address}/cifar.tar.gz")
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(archive).hexdigest())
    monkeypatch.setattr(CIFAR10, "train_list", [["one", md5["one"]], ["two", md5["two"]]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test", md5["test"]]])
    monkeypatch.setattr(CIFAR10, "meta", {"filename": "meta", "key": "label_names", "md5": md5["meta"]})
    return {"images": images, "labels": np.array(labels)}


def test_cifar10_becomes_one_safetensors_file(cifar: dict[str, np.ndarray], tmp_path: Path) -> None:
    fetch(Cifar10Source(kind="cifar10", archive=None), tmp_path / "out", KEY)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["cifar10.safetensors"]
    tensors = load_file(tmp_path / "out/cifar10.safetensors")
    assert tensors["images"].dtype == np.uint8
    assert tensors["labels"].dtype == np.int64
    np.testing.assert_array_equal(tensors["images"], cifar["images"])
    np.testing.assert_array_equal(tensors["labels"], cifar["labels"])


@pytest.mark.slow
def test_cifar10_that_cannot_be_fetched_is_one_line(site: Site, cifar: dict[str, np.ndarray], tmp_path: Path) -> None:
    right = site.pages["/cifar.tar.gz"]
    site.pages["/cifar.tar.gz"] = right[0] + b"more", right[1]
    assert "/cifar.tar.gz sends does not have the MD5 sum that torchvision expects" in refusal(
        Cifar10Source(kind="cifar10", archive=None), tmp_path / "out"
    )
    site.parts, site.cut["/cifar.tar.gz"] = False, 99
    assert "the server interrupted the transfer" in refusal(
        Cifar10Source(kind="cifar10", archive=None), tmp_path / "out"
    )
    del site.pages["/cifar.tar.gz"]
    assert "/cifar.tar.gz#cifar-10-python.tar.gz' is not there" in refusal(
        Cifar10Source(kind="cifar10", archive=None), tmp_path / "out"
    )


def test_a_local_archive_of_cifar10_is_not_downloaded(
    site: Site, cifar: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.tar.gz").write_bytes(site.pages.pop("/cifar.tar.gz")[0])
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    for archive in (str(tmp_path / "mine.tar.gz"), "mine.tar.gz"):
        with artifacts.writing(tmp_path / "out") as folder:
            fetch(Cifar10Source(kind="cifar10", archive=archive), folder, KEY)
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["cifar10.safetensors"]
        np.testing.assert_array_equal(load_file(tmp_path / "out/cifar10.safetensors")["images"], cifar["images"])


def test_an_archive_other_than_cifar10_is_refused(site: Site, cifar: dict[str, np.ndarray], tmp_path: Path) -> None:
    """It is not replaced by a download, although the server has one."""
    (tmp_path / "wrong.tar.gz").write_bytes(site.pages["/cifar.tar.gz"][0][:-1])
    wrong = Cifar10Source(kind="cifar10", archive=str(tmp_path / "wrong.tar.gz"))
    assert "does not have the MD5 sum that torchvision expects of cifar-10-python.tar.gz; fetch" in refusal(
        wrong, tmp_path / "out"
    )
    (tmp_path / "folder").mkdir()
    folder = Cifar10Source(kind="cifar10", archive=str(tmp_path / "folder"))
    assert "folder' is a folder; name the file cifar-10-python.tar.gz in it" in refusal(folder, tmp_path / "out")
    absent = Cifar10Source(kind="cifar10", archive="absent.tar.gz")
    assert "path 'absent.tar.gz' not found; relative paths start at " in refusal(absent, tmp_path / "out")


# --- stages -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["download_pairs", "download_evals", "download_images", "download_model"])
def test_download_stages_import_no_torch(name: str) -> None:
    code = f"import stages.{name}, sys; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_evals_stage_writes_one_folder_per_set_or_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefdag.config.download_evals import DownloadEvals
    from stages.download_evals import main

    monkeypatch.chdir(tmp_path)
    good = here("mine/a.jsonl", hashlib.sha256(CONTENT).hexdigest())
    with pytest.raises(SourceError, match=r"params\.yaml: download_evals\.winogrande: "):
        main(DownloadEvals(truthfulqa=good, winogrande=here("mine/a.jsonl", "0" * 64), pku=None))
    assert not list(Path("data/raw").iterdir())
    main(DownloadEvals(truthfulqa=good, winogrande=good, pku=None))
    assert Path("data/raw/evals/truthfulqa/a.jsonl").read_bytes() == CONTENT
    assert Path("data/raw/evals/winogrande/a.jsonl").read_bytes() == CONTENT
    assert not Path("data/raw/evals/pku").exists()
    main(DownloadEvals(truthfulqa=None, winogrande=None, pku=None))
    assert not list(Path("data/raw/evals").iterdir())


@pytest.mark.slow
def test_the_default_sources_can_be_fetched(tmp_path: Path) -> None:
    tree = read_yaml(ROOT / "params.yaml")
    params = check_params(tree, ROOT / "params.yaml")
    of_profile = check_params(merge(tree, read_yaml(ROOT / "profiles/dialogues.yaml")), ROOT / "params.yaml")
    fetch(params.download_pairs.source, tmp_path / "pairs", "download_pairs.source")
    fetch(of_profile.download_pairs.source, tmp_path / "dialogues", "download_pairs.source")
    fetch(params.download_images.source, tmp_path / "images", "download_images.source")
    fetch(params.download_model.source, tmp_path / "model", "download_model.source")
    assert (tmp_path / "pairs/pairs.jsonl").read_bytes() == (ROOT / "examples/instructions/pairs.jsonl").read_bytes()
    assert (tmp_path / "dialogues/dpo_en_demo.json").stat().st_size == 1_575_286
    assert (tmp_path / "images/mnist_5k.csv.gz").read_bytes()[:2] == b"\x1f\x8b"
    assert next((tmp_path / "model").iterdir()).read_bytes()[:4] == b"GGUF"
