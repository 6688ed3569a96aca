"""The provenance that is the same in every rebuild: versions, hardware and names of sources.

It leaves out times, the host name and paths of the machine. It also leaves out the Git revision: the page is built before the
commit that will contain it. `publish` adds the revision as MLflow tags and to its copy of the page (`run_details.py`).
"""

import os
import platform
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from prefdag.config.sources import DvcSource, HubSource, ImageSource, PathSource, PypiSource, UrlSource

if TYPE_CHECKING:
    from prefdag.config.download_model import DownloadModel

# Packages whose version can change a number or a figure. Importing them to read the version would take seconds.
PACKAGES = (
    "accelerate", "datasets", "dvc", "great-expectations", "matplotlib", "mlflow", "numpy", "pandas", "peft", "pyarrow",
    "safetensors", "tokenizers", "torch", "torchvision", "transformers",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Installed versions of Python, prefdag and PACKAGES."""
    installed = {"Python": platform.python_version()}
    for package in ("prefdag", *PACKAGES):
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            installed[package] = "not installed"
    return installed


def hardware() -> dict[str, str]:
    """What floating-point results depend on: system, instruction set, processor, threads."""
    threads = os.environ.get("OMP_NUM_THREADS")
    return {
        "System": f"{platform.system()}, {platform.machine()}",
        "Processor": _processor(),
        "Threads": f"{threads} (OMP_NUM_THREADS)"
        if threads
        else f"{os.cpu_count()} (all cores, OMP_NUM_THREADS is not set)",
    }


def source_name(source: ImageSource) -> str:
    """A short name of a source, without folders of the user's machine."""
    match source:
        case PypiSource():
            return f"{PurePosixPath(source.member).name} ({source.package} {source.version})"
        case HubSource():
            return f"{source.repo} at {str(source.revision)[:12]}"
        case PathSource() | DvcSource():
            return PurePosixPath(source.path).name
        case UrlSource():
            address, _, label = source.url.partition("#")
            return label or PurePosixPath(address.partition("?")[0]).name
        case _:
            return "CIFAR-10"


def model_name(model: "DownloadModel") -> str:
    """A short name of the model that everything starts from."""
    name = source_name(model.source)
    return name if model.adapter is None else f"{name} with the adapter {source_name(model.adapter)} merged into it"


def _processor() -> str:
    """The processor's model name, if the system reports it."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"
