"""How a failure ends a stage: one line on stderr, and an exit code."""

import errno
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from prefdag.runtime.errors import PrefdagError

# The operating system's refusals that a user can mend; any other OSError is a fault of ours and keeps its traceback.
REFUSALS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES}


@contextmanager
def one_line_errors(name: str) -> Iterator[None]:
    """End the process with the exit code of what the block raises: 1, 2 or 3 (see `errors`), or 130 if interrupted."""
    try:
        yield
    except PrefdagError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except Exception as error:
        number = system_error(error)
        if number not in REFUSALS:
            raise
        print(f"error: {getattr(error, 'filename', None) or name}: {os.strerror(number)}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print(f"{name}: interrupted; run it again to continue", file=sys.stderr)
        sys.exit(130)


def system_error(error: Exception) -> int | None:
    """The operating system's error number behind an exception, if there is one.

    Libraries written in Rust, such as safetensors, raise exceptions of their own that quote it.
    """
    if isinstance(error, OSError):
        return error.errno
    quoted = re.search(r"\(os error (\d+)\)", str(error))
    return int(quoted[1]) if quoted else None
