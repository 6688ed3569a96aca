"""What a new user may give as a source by mistake: each is one line with a remedy and exit code 2, and shows no secret."""

import hashlib
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import refused_sources
from refused_sources import KEY

from prefdag.config.sources import DvcSource, HubSource, PathSource, UrlSource
from prefdag.lifecycle.errors import SourceError
from prefdag.project.pinning import pins
from prefdag.sources import url as urls
from prefdag.sources.fetching import fetch

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d" * 32 + b"\nsize 12345\n"
SECRET = "hunter2"
ANSWERS = {  # by the first part of the path: status, headers, body
    "login": (302, {"Location": f"/page?next=rows&sig={SECRET}"}, b""),
    "page": (200, {"Content-Type": "text/html"}, b"\n<!DOCTYPE html><html>Sign in"),
    "xhtml": (200, {}, b'\xef\xbb\xbf<?xml version="1.0"?><!DOCTYPE html PUBLIC "x"><html>'),
    "comment": (200, {}, b"<!-- a page --><html>"),
    "circle": (302, {"Location": "/circle"}, b""),
    "elsewhere": (302, {"Location": f"ftp://me:{SECRET}@host/rows"}, b""),
    "unauthorized": (401, {}, b""),
    "forbidden": (403, {}, b""),
    "nothing": (204, {}, b""),
    "empty": (200, {}, b""),
    "pointer": (200, {}, POINTER),
}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        first = self.path.strip("/").partition("/")[0].partition("?")[0]
        if first == "garbage":
            self.wfile.write(b"garbage\r\n\r\n")
            return
        status, headers, body = ANSWERS[first]
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(urls, "PAUSES", (0.0, 0.0))
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(source: PathSource | UrlSource | DvcSource | HubSource) -> str:
    """What both the stage and `prefdag pin` say."""
    message = refused_sources.refusal(source, Path("out"))
    with pytest.raises(SourceError) as caught:
        pins(source, again=True)
    said = message.removeprefix(f"params.yaml: {KEY}: ")
    assert str(caught.value) == said
    assert caught.value.exit_code == 2
    assert SECRET not in message
    return said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("answer", "says"),
    [
        *[(page, "answers with a web page, not a file; find") for page in ("login", "page", "xhtml", "comment")],
        ("circle", "sends from one address to another without an end; check the address"),
        ("elsewhere", "the address, or one that the server sends to, is not valid; check the address"),
        *[(status, "it may want credentials, as in https://$USER") for status in ("unauthorized", "forbidden")],
        *[(nothing, "is an empty file; check that it is the right one") for nothing in ("nothing", "empty")],
        ("pointer", "'rows.jsonl' is a pointer of Git LFS, not the file itself; find the address of the file itself"),
        ("garbage", "the server does not answer as a web server does; check the address"),
    ],
)
def test_answers_that_are_no_file(answer: str, says: str, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", SECRET)
    for address in (f"{server}/{answer}/rows.jsonl", f"{server}/{answer}/rows.jsonl?token=$TOKEN"):
        assert says in refusal(UrlSource(kind="url", url=address, sha256=None))


@pytest.mark.slow
def test_what_is_pinned_may_look_like_anything(server: str) -> None:
    page = ANSWERS["page"][2]
    source = UrlSource(kind="url", url=f"{server}/page/rows.txt", sha256=hashlib.sha256(page).hexdigest())
    fetch(source, Path("out"), KEY)
    assert Path("out/rows.txt").read_bytes() == page


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http:///rows.csv", "is not valid; check the address"),
        ("ftp://127.0.0.1:9/rows.csv", "the server cannot be reached; check the address and the network"),
        ("http://host.invalid/a b.csv", "the server cannot be reached; check the address and the network"),
    ],
)
def test_addresses_that_lead_nowhere(url: str, says: str) -> None:
    assert says in refusal(UrlSource(kind="url", url=url, sha256=None))


@pytest.fixture
def files(here: Path) -> None:
    Path("empty.jsonl").touch()
    Path("pointer.jsonl").write_bytes(POINTER)
    Path("model").mkdir()
    Path("model/config.json").write_text("{}")
    Path("model/model.safetensors").write_bytes(POINTER)
    Path("ring").symlink_to("ring")
    Path("rows.jsonl.dvc").write_text("outs:\n- path: rows.jsonl\n")
    os.mkfifo("pipe")


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("empty.jsonl", "'empty.jsonl' is an empty file; check that it is the right one, and complete"),
        ("pointer.jsonl", "'pointer.jsonl' is a pointer of Git LFS, not the file itself; run `git lfs pull` in its"),
        ("model", "'model.safetensors' is a pointer of Git LFS, not the file itself; run `git lfs pull` in its"),
        ("ring", "path 'ring' not found; it is a link that leads back to itself"),
        ("ring/rows.jsonl", "ring is a link that leads back to itself"),
        ("rows.jsonl.dvc", "is DVC's note of a file, not the file itself; write it without .dvc"),
        ("pipe", "path 'pipe' is neither a file nor a folder"),
        ("empty.jsonl/rows", "empty.jsonl is a file, not a folder"),
        ("x" * 300, "cannot be a file: File name too long; check `path`"),
        ("rows\n.jsonl", "path 'rows\\n.jsonl' not found"),
        (f"https://host/rows?token={SECRET}", "path 'https://host/rows?***' is a URL; a source of kind url fetches it"),
        (f"https://me:{SECRET}@host/rows", "path 'https://host/rows' is a URL; a source of kind url fetches it"),
        ("git@host:me/rows.git", "is a Git repository; a source of kind dvc fetches files from it"),
    ],
)
def test_paths_that_are_no_data(path: str, says: str, files: None) -> None:
    assert says in refusal(PathSource(kind="path", path=path, sha256=None))


def test_names_with_accents_and_spaces_are_read(here: Path) -> None:
    name = "été à la plage.jsonl"
    Path(name).write_text("{}\n")
    fetch(PathSource(kind="path", path=name, sha256=None), Path("out"), KEY)
    assert Path("out", name).exists()


def test_an_empty_file_in_a_folder_may_be_meant(here: Path) -> None:
    Path("mine").mkdir()
    Path("mine/.gitkeep").touch()
    Path("mine/rows.jsonl").write_text("{}\n")
    fetch(PathSource(kind="path", path="mine", sha256=None), Path("out"), KEY)
    assert sorted(path.name for path in Path("out").iterdir()) == [".gitkeep", "rows.jsonl"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("repo", "says"),
    [
        ("nowhere", "there is no such Git repository, or it does not let this machine in; check `repo`"),
        ("https://me:$TOKEN@127.0.0.1:9/a.git", "there is no such Git repository, or it does not let this machine in"),
        ("plain", "it is not a Git repository; a local file or folder is a source of kind path"),
    ],
)
def test_repositories_that_are_not_there(repo: str, says: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(here.parent))
    monkeypatch.setenv("TOKEN", SECRET)
    Path("plain").mkdir()
    assert says in refusal(DvcSource(kind="dvc", repo=repo, path="rows.csv", revision=None))


@pytest.mark.parametrize(
    "repo", ["https://huggingface.co/a/b", "https://huggingface.co/datasets/a/b/tree/main", "hf://a/b"]
)
def test_a_repository_on_the_hub_is_named_without_its_address(repo: str) -> None:
    says = refusal(HubSource(kind="hub", repo=repo, repo_type="dataset", revision=None, files=["*"]))
    assert says == f"repo '{repo}' is a URL; write 'a/b'"
