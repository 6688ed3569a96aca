"""How a failure ends a stage: one line on stderr, and an exit code."""

import errno
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from prefdag.lifecycle.errors import PrefdagError

# OS errors that a user can fix: disk full, quota, read-only, no permission. Any other is a bug and keeps its traceback.
FIXABLE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES}


@contextmanager
def one_line_errors(name: str) -> Iterator[None]:
    """Turn an exception in the block into one line on stderr and an exit code: 1, 2 or 3 (see `errors`), 130 if interrupted."""
    try:
        yield
    except PrefdagError as error:
        print(f"error: {error}", file=sys.stderr)
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


def system_error(error: Exception) -> int | None:
    """The operating system's error number behind an exception, if any.

    Libraries written in Rust, such as safetensors, raise their own exceptions, which quote the number.
    """
    if isinstance(error, OSError):
        return error.errno
    quoted = re.search(r"\(os error (\d+)\)", str(error))
    return int(quoted[1]) if quoted else None
