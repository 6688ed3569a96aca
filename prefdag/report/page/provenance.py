"""What made these results, as far as it is the same in every rebuild: versions, hardware, names of sources.

No clock, no host name, no path of the machine. No Git revision either: a page is built before the commit that will hold it
exists, and in a queued experiment before the experiment has one at all. `publish` ties runs to revisions, in MLflow tags and in
the copy that it makes of the page (`published.py`).
"""

import os
import platform
from importlib import metadata
from pathlib import Path, PurePosixPath

from prefdag.config.sources import HubSource, ImageSource, PathSource, PypiSource

# Those whose version can change a number or a picture; importing them to ask would take seconds.
PACKAGES = (
    "accelerate", "datasets", "dvc", "great-expectations", "matplotlib", "mlflow", "numpy", "pandas", "peft", "pyarrow",
    "safetensors", "tokenizers", "torch", "torchvision", "transformers",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Installed versions of Python, prefdag and PACKAGES."""
    found = {"Python": platform.python_version()}
    for package in ("prefdag", *PACKAGES):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def hardware() -> dict[str, str]:
    """What floating point depends on: system, instruction set, processor, threads."""
    threads = os.environ.get("OMP_NUM_THREADS")
    return {
        "System": f"{platform.system()}, {platform.machine()}",
        "Processor": _processor(),
        "Threads": f"{threads} (OMP_NUM_THREADS)"
        if threads
        else f"{os.cpu_count()} (all cores; OMP_NUM_THREADS is not set)",
    }


def source_name(source: ImageSource) -> str:
    """A source in a few words, without the folders of a user's machine."""
    match source:
        case PypiSource():
            return f"{PurePosixPath(source.member).name} ({source.package} {source.version})"
        case HubSource():
            return f"{source.repo} at {source.revision[:12]}"
        case PathSource():
            return PurePosixPath(source.path).name
        case _:
            return "CIFAR-10"


def _processor() -> str:
    """The processor's model name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"
