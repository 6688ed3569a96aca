"""Files of images for tests."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from paths import REAL_DATA
from PIL import Image

CIFAR10_TARS = REAL_DATA / "cifar10"
rng = np.random.default_rng(0)


def mnist_csv(labels: list[int], edit: Callable[[list[list[str]]], object] = lambda rows: None) -> bytes:
    """Rows of 784 random pixels and a label; `edit` may break them."""
    rows = [[*map(str, rng.integers(0, 256, 784)), str(label)] for label in labels]
    edit(rows)
    return "".join(",".join(row) + "\n" for row in rows).encode()


def picture(size: tuple[int, int] = (4, 3), mode: str = "RGB") -> bytes:
    """A random PNG of (width, height)."""
    stream = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).convert(mode).save(stream, "PNG")
    return stream.getvalue()


def tar(members: dict[str, bytes | str]) -> bytes:
    """A tar of files; a text instead of bytes makes a link to it."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            if isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
                archive.addfile(member)
            else:
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder
