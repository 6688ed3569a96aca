"""Tars for tests."""

import io
import tarfile
from collections.abc import Mapping
from typing import Literal


def tar(members: Mapping[str, bytes | str], mode: Literal["w", "w:gz"] = "w") -> bytes:
    """A tar of files; a text instead of bytes becomes a symbolic link to that path."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            if isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
                archive.addfile(member)
            else:
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()
