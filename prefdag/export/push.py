"""`prefdag export --push`: one part of an export as a repository on the Hugging Face hub, in one commit."""

import os
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HFValidationError

from prefdag.lifecycle.errors import ParamsError, PrefdagError

TOKEN, ENDPOINT = "HF_TOKEN", "HF_ENDPOINT"


def check(repo: str) -> None:
    """Check what can be checked before anything is exported. Raises `ParamsError`."""
    if not os.environ.get(TOKEN):
        raise ParamsError(f"{TOKEN}: not set; --push takes the hub's token from this environment variable only")
    owner, _, name = repo.partition("/")
    if not owner or not name or "/" in name:
        raise ParamsError(f"--push {repo}: expected OWNER/NAME")


def push(folder: Path, repo: str, *, public: bool) -> str:
    """Upload the files of `folder` to the model repository `repo`, which is created if needed. Returns its address.

    Args:
        public: whether anybody may see it. A repository that exists keeps its visibility.

    Raises:
        PrefdagError: the folder is missing, the hub refuses, or an existing repository is public and `public` is false.
    """
    check(repo)
    if not folder.is_dir():
        raise PrefdagError(f"{folder}: not in this export; choose another --part")
    api = HfApi(endpoint=os.environ.get(ENDPOINT) or None, token=os.environ[TOKEN])
    try:
        api.create_repo(repo, private=not public, exist_ok=True)
        if not public and not api.model_info(repo).private:
            raise PrefdagError(f"{repo}: exists and is public; add --public, or choose another repository")
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        operations = [
            CommitOperationAdd(
                path.relative_to(folder).as_posix(),
                for_hub(path.read_text("utf-8"), repo).encode() if path == folder / "README.md" else path,
            )
            for path in files
        ]
        commit = api.create_commit(repo, operations, commit_message="prefdag export")
    except HFValidationError as error:
        raise ParamsError(f"--push {repo}: {_one_line(error)}") from None
    except PrefdagError:
        raise
    except Exception as error:  # the hub's answer, or whatever its HTTP library raises without one
        raise PrefdagError(
            f"the hub did not take {repo}: {_one_line(error)}; nothing in {folder} was changed"
        ) from None
    return f"{api.endpoint}/{repo} ({commit.oid[:12]}, {'public' if public else 'private'})"


def for_hub(readme: str, repo: str) -> str:
    """The README with the repository in place of the folder in its code."""
    return readme.replace('("./reference")', f'("{repo}", subfolder="reference")').replace('"."', f'"{repo}"')


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()).replace(os.environ[TOKEN], "***")
    return f"{type(error).__name__}: {text[:300]}"
