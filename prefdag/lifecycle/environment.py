"""Environment variables of a stage: no telemetry, and no spinning threads while other stages run."""

import os

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


def other_stages() -> bool:
    """Whether another process on this machine runs a stage: from a queue, in another clone, or as a rank of the same stage."""
    commands = (
        process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"]) if process.pid != os.getpid()
    )
    return any("-m" in command and any(part.startswith("stages.") for part in command) for command in commands)
