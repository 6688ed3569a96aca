"""How a failure ends a stage: one line on stderr, and an exit code."""

import errno
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prefdag.lifecycle.errors import PrefdagError

# OS errors that a user can fix: disk full, quota, read-only, no permission. Any other is a bug and keeps its traceback.
FIXABLE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES}


@contextmanager
def one_line_errors(name: str) -> Iterator[None]:
    """Turn an exception in the block into one line on stderr and an exit code: 1, 2 or 3 (see `errors`), 130 if interrupted."""
    try:
        yield
    except PrefdagError as error:
        print(f"error: {error}{how_to_restore(str(error))}", file=sys.stderr)
        sys.exit(error.exit_code)
    except Exception as error:
        number = system_error(error)
        if number not in FIXABLE:
            raise
        print(f"error: {getattr(error, 'filename', None) or name}: {os.strerror(number)}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print(f"{name}: interrupted; run it again to continue", file=sys.stderr)
        sys.exit(130)


def how_to_restore(message: str) -> str:
    """What to add to an error about params.yaml, under DVC: `dvc exp run -S` leaves its values there if a stage fails.

    An experiment from the queue has a params.yaml of its own, in a temporary folder.
    """
    root = os.environ.get("DVC_ROOT")
    if not (message.startswith("params.yaml") and root and Path(root).resolve() == Path.cwd()):
        return ""
    differs = ["git", "diff", "--quiet", "HEAD", "--", "params.yaml"]
    try:
        if subprocess.run(differs, capture_output=True, check=False).returncode != 1:
            return ""
    except OSError:  # no Git
        return ""
    left = "`dvc exp run` leaves its values in params.yaml" if "DVC_EXP_NAME" in os.environ else "params.yaml has edits"
    return f"; {left}: `git diff params.yaml` shows them, `git restore params.yaml` undoes all that is not committed"


def system_error(error: Exception) -> int | None:
    """The operating system's error number behind an exception, if any.

    Libraries written in Rust, such as safetensors, raise their own exceptions, which quote the number.
    """
    if isinstance(error, OSError):
        return error.errno
    quoted = re.search(r"\(os error (\d+)\)", str(error))
    return int(quoted[1]) if quoted else None
