"""Fetch files of a repository on the Hugging Face hub at a commit, checked against the hub's own listing."""

import hashlib
import logging
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from prefdag.lifecycle.errors import SourceError
from prefdag.runtime.artifacts import remove, sha256
from prefdag.sources.model_files import mixture_fault
from prefdag.sources.pins import COMMIT, PinError, check_hash, is_pin, masked, not_found, one_line
from prefdag.sources.resuming import kept_transfer

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoFile

    from prefdag.config.sources import HubSource

# A model may only have data that no loader executes, with weights as safetensors or GGUF.
MODEL_FILES = {".gguf", ".jinja", ".json", ".model", ".safetensors", ".txt"}
# A dataset may not have code, or formats that are or may contain pickles.
CODE_FILES = {".bin", ".ckpt", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth", ".py"}

logger = logging.getLogger(__name__)


def fetch_hub(source: "HubSource", into: Path) -> None:
    """Fetch the files that match the patterns, in their folders, and check them against the hub's own listing."""
    if not is_pin(source.revision, COMMIT):
        raise PinError(
            ("revision",), source.revision, current_commit(source), f"{source.repo_type} '{source.repo}'", COMMIT
        )
    with kept_transfer(source) as folder:
        wanted = _download(source, list(source.files), folder)
        remove(folder / ".cache")  # the library's metadata, which has times in it
        for path in folder.iterdir():
            shutil.move(path, into)
    for name, listed in wanted.items():
        path = into / name
        # Small files are in Git itself, the others in a separate store, under their SHA-256.
        actual, expected = (sha256(path), listed.lfs.sha256) if listed.lfs else (_git_blob(path), listed.blob_id)
        if actual != expected:
            raise SourceError(
                f"{_where(source)}: '{name}' has hash {actual}, but the hub lists {expected}; fetch it again"
            )
        if isinstance(source.files, dict):
            check_hash(f"'{name}'", actual=sha256(path), pinned=source.files[name], key=("files", name))


def current_commit(source: "HubSource") -> str:
    """The commit that the branch or tag in `revision` names now; without one, that of the main branch."""
    from huggingface_hub import HfApi

    with _one_line_errors(source):
        commit = HfApi().repo_info(source.repo, repo_type=source.repo_type, revision=_branch(source)).sha
    if commit is None or not is_pin(commit, COMMIT):
        raise SourceError(f"{_where(source)}: the hub does not say which commit that is; write 40 hex digits")
    return commit


def file_hashes(source: "HubSource", names: list[str]) -> dict[str, str]:
    """The SHA-256 of files at the pinned commit. The hub lists those of large files; small ones are downloaded."""
    with TemporaryDirectory() as folder:
        into = Path(folder)
        listed = {name: file.lfs.sha256 for name, file in _listing(source, names).items() if file.lfs}
        if small := [name for name in names if name not in listed]:
            _download(source, small, into)
        return {name: listed[name] if name in listed else sha256(into / name) for name in names}


def _download(source: "HubSource", patterns: list[str], into: Path) -> "dict[str, RepoFile]":
    """Fetch the files that match. Returns what the hub lists of them, by name."""
    from huggingface_hub import snapshot_download

    wanted = _listing(source, patterns)
    for name in wanted:
        _reject_code(name, source)
    if source.repo_type == "model" and (fault := mixture_fault(wanted)):
        raise SourceError(f"{_where(source)}: {fault}; narrow `files`")
    logger.info("fetching %s from the %s", " ".join(patterns), _where(source))
    with _one_line_errors(source):
        snapshot_download(
            source.repo,
            repo_type=source.repo_type,
            revision=source.revision,
            allow_patterns=patterns,
            local_dir=into,
        )
    return wanted


def _listing(source: "HubSource", patterns: list[str]) -> "dict[str, RepoFile]":
    """What the hub lists of the files that match the patterns, by name. Raises `SourceError` if one matches none."""
    from huggingface_hub import HfApi, utils
    from huggingface_hub.hf_api import RepoFile

    with _one_line_errors(source):
        tree = HfApi().list_repo_tree(source.repo, recursive=True, repo_type=source.repo_type, revision=source.revision)
        files = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
    for pattern in patterns:
        if not any(utils.filter_repo_objects(files, allow_patterns=pattern)):
            raise not_found(f"files '{pattern}' in the {_where(source)}", pattern, files)
    return {name: files[name] for name in utils.filter_repo_objects(files, allow_patterns=patterns)}


@contextmanager
def _one_line_errors(source: "HubSource") -> Iterator[None]:
    """Word the errors of the hub's library."""
    from huggingface_hub import errors as hub

    try:
        yield
    except hub.GatedRepoError:
        raise SourceError(f"{_where(source)}: accept its terms on its page, then run `hf auth login`") from None
    except hub.RepositoryNotFoundError:
        raise SourceError(
            f"{_where(source)}: there is no such repository; if it is private, run `hf auth login`"
        ) from None
    except hub.RevisionNotFoundError:
        raise SourceError(f"{_where(source)}: there is no such commit, branch or tag") from None
    except hub.HFValidationError as error:
        if inside := re.match(r"(?:https?://[^/]+/|hf://)(?:datasets/)?([\w.-]+/[\w.-]+)", source.repo):
            raise SourceError(f"repo '{masked(source.repo)}' is a URL; write '{inside[1]}'") from None
        raise SourceError(f"{_where(source)}: {one_line(error)}") from None
    except (
        hub.HTTPError,  # of whichever client the hub library uses
        hub.LocalEntryNotFoundError,
        hub.FileMetadataError,
        hub.XetDownloadError,
        ConnectionError,  # also offline mode, HF_HUB_OFFLINE=1
    ) as error:
        raise SourceError(f"{_where(source)}: cannot be fetched: {one_line(error)}") from None


def _branch(source: "HubSource") -> str | None:
    """The branch or tag that `revision` names; None for null and for placeholders such as `...`."""
    return source.revision if source.revision and source.revision.strip(".") else None


def _where(source: "HubSource") -> str:
    return f"{source.repo_type} repository '{source.repo}' at {_branch(source) or 'its newest commit'}"


def _git_blob(path: Path) -> str:
    """The id that Git gives to a file's content."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _reject_code(file: str, source: "HubSource") -> None:
    suffix = PurePosixPath(file).suffix.lower()
    if source.repo_type == "model" and suffix not in MODEL_FILES:
        raise SourceError(
            f"'{file}' of '{source.repo}' is refused: a model may only have {' '.join(sorted(MODEL_FILES))}; narrow `files`"
        )
    if suffix in CODE_FILES:
        raise SourceError(f"'{file}' of '{source.repo}' is refused: {suffix} files can run code; narrow `files`")
