"""Environment variables of a stage: no telemetry, and no spinning threads while other stages run."""

import os
import sys

import psutil

# Set before any library is imported.
ENVIRONMENT = {
    "GX_ANALYTICS_ENABLED": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
# Waiting threads sleep. A stage that runs alone is a quarter slower with these; beside another one, more than twice as fast.
BESIDE_OTHERS = {"KMP_BLOCKTIME": "0", "OMP_WAIT_POLICY": "PASSIVE"}


def set_environment() -> None:
    """Set `ENVIRONMENT`, and `BESIDE_OTHERS` if other stages run, for this process and its children.

    Variables that the user has set are kept.
    """
    for name, value in {**ENVIRONMENT, **(BESIDE_OTHERS if other_stages() else {})}.items():
        os.environ.setdefault(name, value)


def use_utf8() -> None:
    """Start this process again in Python's UTF-8 mode, unless file names are UTF-8 here already.

    With LC_ALL=C and PYTHONUTF8=0, or in an old locale, Python cannot read a path with accents as text, nor print one. What the
    terminal cannot show is printed as an escape.
    """
    if sys.getfilesystemencoding().lower() != "utf-8" and not sys.flags.utf8_mode:
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
        new = {
            "PYTHONUTF8": "1",
            "PYTHONIOENCODING": os.environ.get("PYTHONIOENCODING", f"{encoding}:backslashreplace"),
        }
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | new)


def other_stages() -> bool:
    """Whether another process on this machine runs a stage: from a queue, in another clone, or as a rank of the same stage."""
    commands = (
        process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"]) if process.pid != os.getpid()
    )
    return any("-m" in command and any(part.startswith("stages.") for part in command) for command in commands)
