"""Fetch the files of a source that is pinned in params.yaml.

All files are checked against their pin before they are read, and none is installed, executed or unpickled. The exception is
CIFAR-10, which is published as pickles: torchvision reads them after it has checked their MD5 sums.
"""

import logging
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from prefdag.config.sources import (
    Cifar10Source,
    DvcSource,
    HubSource,
    ImageSource,
    PathSource,
    PypiSource,
    UrlSource,
)
from prefdag.lifecycle.errors import SourceError
from prefdag.runtime.dvc_files import target
from prefdag.sources import local
from prefdag.sources.dvc_project import fetch_dvc
from prefdag.sources.hub import fetch_hub
from prefdag.sources.pins import PinError, check_hash, masked
from prefdag.sources.pypi import fetch_pypi
from prefdag.sources.url import download, fetch_url

logger = logging.getLogger(__name__)


def fetch(source: ImageSource, into: Path, key: str) -> None:
    """Put the files of `source` into the folder `into`, which is created if it does not exist.

    `into` should be a temporary folder (see `artifacts.writing`), since after an error it may have only some of the files.
    `key` is the key of the source in params.yaml, such as "download_pairs.source".

    Raises:
        SourceError: the source is not found, not reachable, or differs from its pin; one line that starts with
            `params.yaml: KEY`.
    """
    into.mkdir(parents=True, exist_ok=True)
    try:
        match source:
            case PypiSource():
                fetch_pypi(source, into)
            case HubSource():
                fetch_hub(source, into)
            case PathSource():
                _fetch_path(source, into, key)
            case UrlSource():
                fetch_url(source, into)
            case DvcSource():
                fetch_dvc(source, into)
            case Cifar10Source():
                _fetch_cifar10(source, into)
    except PinError as error:
        raise SourceError(f"params.yaml: {key}: {error}, or run `prefdag pin {key}`") from None
    except SourceError as error:
        raise SourceError(f"params.yaml: {key}: {error}") from None


def _fetch_path(source: PathSource, into: Path, key: str) -> None:
    """Copy a file, or the content of a folder."""
    actual = local.copy(local.find(source.path), into, source.path)  # of the copy, since the copy is what is used
    if source.sha256 is not None:
        check_hash(f"'{source.path}'", actual=actual, pinned=source.sha256)
        return
    logger.warning(
        "%s: sha256 is null, so a later change of '%s' goes unnoticed; this stage made a copy, which DVC tracks, "
        "with sha256: %s; after a change run `dvc repro --force %s`, or pin it with `prefdag pin`",
        key,
        source.path,
        actual,
        target(key.partition(".")[0]),
    )


# --- kind: cifar10 ----------------------------------------------------------------------------------------------------


def _fetch_cifar10(source: Cifar10Source, into: Path) -> None:
    """Write cifar10.safetensors: images uint8 (60000, 3, 32, 32), labels int64 (60000,); the first 50,000 are the train set."""
    import numpy as np
    from safetensors.numpy import save_file
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_integrity

    with TemporaryDirectory(dir=into) as root:
        copy = Path(root, CIFAR10.filename)
        if source.archive is None:
            download(UrlSource(kind="url", url=f"{CIFAR10.url}#{CIFAR10.filename}", sha256=None), Path(root))
            what, advice = f"what {masked(CIFAR10.url)} sends", "try again"
        else:
            archive = local.find(source.archive)
            if archive.is_dir():
                raise SourceError(f"archive '{source.archive}' is a folder; name the file {CIFAR10.filename} in it")
            shutil.copyfile(archive, copy)
            what, advice = f"archive '{source.archive}'", "fetch it again or set archive to null"
        if not check_integrity(copy, CIFAR10.tgz_md5):  # otherwise torchvision would download it by itself
            expected = f"the MD5 sum that torchvision expects of {CIFAR10.filename}"
            raise SourceError(f"{what} does not have {expected}; {advice}")
        parts = [CIFAR10(root, train=train, download=True) for train in (True, False)]  # unpacks it
    images = np.concatenate([part.data for part in parts]).transpose(0, 3, 1, 2)
    labels = np.concatenate([part.targets for part in parts])
    save_file(
        {"images": np.ascontiguousarray(images), "labels": labels.astype(np.int64)},
        into / "cifar10.safetensors",
    )
