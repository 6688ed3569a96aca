"""How a failure ends a stage or a command: one line on stderr, and an exit code. The only place that turns errors into lines.

A user's mistake, and a machine that cannot do what it is asked, end with one line. Any other exception is a bug of prefdag: its
traceback is shown, with a note that says so.
"""

import errno
import os
import re
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from prefdag.lifecycle.errors import DataError, PrefdagError
from prefdag.lifecycle.launcher import another_failed, launched, note_failure

# Errors of the operating system. Of the machine, which may pass: exit code 1. Of a path that the user has to change: 2.
MACHINE = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOLCK),
    *(errno.ESTALE, errno.EBUSY, errno.ETXTBSY),
}
PLACE = {
    *(errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY),
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.EXDEV, errno.ENXIO, errno.ENODEV),
}
FIXABLE = MACHINE | {errno.EROFS, errno.EACCES}  # what a download is not repeated for
# Errors that libraries raise for a user's mistake, such as a damaged dvc.yaml or no Git repository. Named, not imported.
LIBRARIES = {
    *("dvc.exceptions.DvcException", "scmrepo.exceptions.SCMError", "_pygit2.GitError", "git.exc.GitError"),
}
DATABASES = {"sqlite3.DatabaseError", "sqlalchemy.exc.DatabaseError"}  # of MLflow or DVC, such as on a full disk
# What makes a stage need less memory, in params.yaml.
LIGHTER = {
    **{
        stage: f"lower {section}.training.micro_batch_size, set {section}.gradient_checkpointing to true, or "
        f"{section}.training.optimizer to adamw_8bit"
        for stage, section in {
            "sft_ref": "sft_ref",
            "reward_model": "reward_model",
            "dpo_text": "dpo_text",
            "control_text": "dpo_text",
            "dpo_round": "dpo_text",
        }.items()
    },
    **{stage: f"lower {stage}.training.micro_batch_size" for stage in ("resnet_warmup", "dpo_image")},
    "control_image": "lower dpo_image.training.micro_batch_size",
    **{stage: f"lower {stage}.tokens_per_batch" for stage in ("ref_logps", "evaluate_text", "judge_text")},
    "ref_evals": "lower evaluate_text.tokens_per_batch",
    "ref_answers": "lower answer_text.batch_size",
    "answer_text": "lower answer_text.batch_size",
    "sample_round": "lower rounds.batch_size",
    "judge_round": "lower rounds.tokens_per_batch",
    "evaluate_round": "lower rounds.batch_size and rounds.tokens_per_batch",
}
BUG = "This is a bug in prefdag, not a mistake of yours. Please report it with the lines above."
PIPE_CLOSED = 141  # as a shell reports a program that SIGPIPE ended


@contextmanager
def one_line_errors(name: str, *passed: type[BaseException]) -> Iterator[None]:
    """Turn an exception in the block into one line on stderr and an exit code.

    The code is that of the error (see `errors`): 1 for the machine, 2 for a user's mistake, 3 for a numeric error; 130 after
    Ctrl-C; 141 if whoever reads our output has closed it. An exception that is none of these gets a note that it is a bug.

    Args:
        name: of the stage or command.
        passed: exceptions that are left alone.
    """
    try:
        yield
        flush(sys.stdout)
    except passed:
        raise
    except KeyboardInterrupt:
        _fail(f"{name}: interrupted; run it again to continue", 130)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and error.filename is None and stdout_is_closed():
            end("", PIPE_CLOSED)
        line = "" if "PREFDAG_TRACEBACK" in os.environ else one_line(error, name)
        if not line:
            if another_failed():  # so this failure follows from that one
                end("", 0)
            if launched():
                note_failure(f"error: {name}: {type(error).__name__}; its traceback is above", 1)
            if BUG not in getattr(error, "__notes__", ()):
                error.add_note(BUG)
            raise
        _fail(f"error: {line}", exit_code(error))


def _fail(line: str, code: int) -> None:
    """End the process with a line and an exit code. Of several processes that a launcher started, the first one's are passed
    on to the process that launched them, which prints the line."""
    if launched():
        line, code = "", note_failure(line, code)
    end(line, code)


@contextmanager
def as_stages_write(what: str) -> Iterator[None]:
    """Turn what the block finds in results of another shape into a `DataError`: somebody or another version wrote them.

    Stages read what the current version wrote. A command may read anything: a file that was edited, an experiment of last year.

    Args:
        what: the files or the experiment, for the message.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        found = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:200]
        raise DataError(
            f"{what}: not as this version of prefdag writes it ({found}); restore it, or `dvc repro` makes it again"
        ) from error


def quiet_interrupts() -> None:
    """Let Ctrl-C end the process with one line outside `one_line_errors` too: while modules are imported."""
    shown = sys.excepthook

    def show(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        if not issubclass(kind, KeyboardInterrupt):
            shown(kind, error, traceback)
            return
        with suppress(OSError, ValueError):
            print("interrupted; run it again", file=sys.stderr, flush=True)
        os._exit(130)

    sys.excepthook = show


def end(line: str, code: int) -> None:
    """Print a line on stderr, if any, and end the process. Nothing that is still buffered can fail afterwards."""
    if line and sys.stderr is not None:
        with suppress(OSError, ValueError):
            print(line, file=sys.stderr, flush=True)
    try:
        flush(sys.stdout)
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def flush(stream: Any) -> None:
    """Flush a stream that may not exist: without a stdout, as after `>&-`, it is None."""
    if stream is not None:
        stream.flush()


def stdout_is_closed() -> bool:
    """Whether the reader of our output is gone, as after `| head -1`. Another pipe may break too, such as a server's."""
    try:
        reader = select.poll()
        reader.register(sys.stdout, select.POLLOUT)
        return any(event & select.POLLERR for _, event in reader.poll(0))
    except (AttributeError, OSError, TypeError, ValueError):  # no stdout, or none of the operating system's
        return False


def one_line(error: Exception, name: str) -> str:
    """What a failure is, on one line; empty if it is a bug."""
    if isinstance(error, PrefdagError):
        return f"{error}{how_to_restore(str(error))}"
    if _no_memory(error):
        remedy = f"; params.yaml: {LIGHTER[name]}" if name in LIGHTER else ""
        return f"{name}: not enough memory{remedy}"
    number = system_error(error)
    if number in MACHINE | PLACE:
        path = getattr(error, "filename", None) or getattr(error.__cause__, "filename", None)
        where = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else name
        # A library may have words of its own, such as for no usable temporary folder.
        words = (not path and getattr(error, "strerror", None)) or os.strerror(number or 0)
        return str(PrefdagError(f"{where}: {words}"))
    if _classes(error) & (LIBRARIES | DATABASES):
        return str(PrefdagError(f"{name}: {' '.join(str(error).split())[:500]}{of_another_user(str(error))}"))
    return ""


def of_another_user(message: str) -> str:
    """What to add to Git's error about a repository of another user, as in a container: how to trust it."""
    found = re.search(r"repository path '(.+?)/?' is not owned by current user", message)
    return f"; if you trust it: `git config --global --add safe.directory {found[1]}`" if found else ""


def exit_code(error: Exception) -> int:
    """The exit code of a failure that is told in one line."""
    if isinstance(error, PrefdagError):
        return error.exit_code
    machine = _no_memory(error) or system_error(error) in MACHINE or _classes(error) & DATABASES
    return 1 if machine else 2


def _no_memory(error: Exception) -> bool:
    """Whether memory ran out: Python's, a GPU's, or that of torch on a CPU."""
    on_cpu = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return isinstance(error, MemoryError) or on_cpu or "torch.OutOfMemoryError" in _classes(error)


def _classes(error: Exception) -> set[str]:
    """The names of an exception's classes, with their modules."""
    return {f"{kind.__module__}.{kind.__name__}" for kind in type(error).__mro__}


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


def system_error(error: BaseException) -> int | None:
    """The operating system's error number behind an exception, if any.

    Libraries written in other languages, such as safetensors and Arrow, raise their own exceptions, which quote the number.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    quoted = re.search(r"\(os error (\d+)\)|\[[Ee]rrno (\d+)\]", str(error))
    if quoted:
        return int(quoted[1] or quoted[2])
    return system_error(error.__cause__) if error.__cause__ else None
