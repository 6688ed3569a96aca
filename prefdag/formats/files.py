"""The files of a folder: which of them are data, their text, and the published split that their names say."""

import codecs
import logging
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from prefdag.formats.archives import unpacked
from prefdag.formats.faults import shown
from prefdag.lifecycle.errors import DataError

logger = logging.getLogger(__name__)

# What repositories of data have beside it. Files and folders whose names start with a dot are passed over too.
BESIDE = re.compile(
    r"(readme|licen[cs]e|notice|citation|changelog)([._-].*)?|.*\.(md|rst)|"
    r"dataset_infos?\.json|dataset_dict\.json|state\.json|thumbs\.db|desktop\.ini|"
    r"cache-[0-9a-f]+(_\d+_of_\d+)?\.arrow",  # copies of the rows that the library datasets keeps
    re.IGNORECASE,
)
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training", "trainset"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "devset", "eval", "evaluation"), "val"),
    **dict.fromkeys(("test", "testing", "testset", "holdout", "heldout"), "test"),
}
# With a byte order mark. UTF-32 comes first, since its mark begins with that of UTF-16.
ENCODINGS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def data_files(folder: Path, named_by: str) -> list[tuple[Path, str]]:
    """The files of data in `folder` with their names, in the order of the names. Logs those that are passed over.

    Args:
        named_by: the key of params.yaml that names the files, for error messages.

    Raises:
        DataError: there are none, or a name cannot be printed.
    """
    files = [(path, file_name(path, folder)) for path in sorted(folder.rglob("*")) if path.is_file()]
    passed = [name for _, name in files if beside(name)]
    data = [(path, name) for path, name in files if not beside(name)]
    if not data:
        only = f" but {listed(passed)}" if passed else ""
        raise DataError(f"{folder}: no files{only}; check {named_by} in params.yaml")
    if passed:
        logger.info("%s: not read, since they are no data: %s", named_by, listed(passed))
    return data


def beside(name: str) -> bool:
    """Whether a file is no data by its name: README.md, .gitattributes, LICENSE, dataset_infos.json."""
    path = PurePosixPath(name)
    return any(part.startswith(".") for part in path.parts) or BESIDE.fullmatch(path.name) is not None


def file_name(path: Path, folder: Path) -> str:
    """The name of a file in `folder` for errors and sources. Raises `DataError` if it cannot be printed on one line."""
    return printable(path.relative_to(folder).as_posix())


def printable(name: str) -> str:
    """`name`, the name of a file. Raises `DataError` if it has characters such as line breaks, or bytes that are not UTF-8."""
    if not name.isprintable():
        raise DataError(f"{name!r}: the name has characters that cannot be printed; rename the file")
    return name


def read_text(path: Path, name: str) -> str:
    """A file's text, unpacked, without a byte order mark. Bytes that are not UTF-8 become lone surrogates.

    A file with the mark of UTF-16 or UTF-32 is read as such. Raises `DataError` if it is not.
    """
    content = unpacked(path, name)
    for mark, encoding in ENCODINGS.items():
        if content.startswith(mark):
            try:
                return content.decode(encoding)
            except UnicodeDecodeError as error:
                raise DataError(f"{name}: not {encoding.upper()} ({error.reason}); save it as UTF-8") from None
    return content.decode("utf-8", errors="surrogateescape").removeprefix("\ufeff")


def split_of_name(name: str) -> str | None:
    """The published split that a name says: train, val or test; None if it says none, or several.

    The words count that stand alone between other characters: data/train-00000-of-00001.parquet, test_prefs, dev/a.jsonl.
    The file's own name counts first, then the folder next to it.
    """
    for part in reversed(PurePosixPath(name).parts):
        words = re.split("[^a-z]+", part.lower())
        splits = {SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS}
        if splits:
            return splits.pop() if len(splits) == 1 else None
    return None


def delimiter(header: str, name: str) -> str:
    """The character that divides the first line of a CSV file: the one of comma, semicolon, tab and bar that it has.

    Raises `DataError` if there are several.
    """
    bare = re.sub('"[^"]*"', "", header)
    there = [character for character in ",;\t|" if character in bare]
    if len(there) > 1:
        names = " and ".join(repr(character) for character in there)
        raise DataError(
            f"{name}:header: has {names}, so it is unclear which divides it; quote the names: {shown(header)}"
        )
    return there[0] if there else ","


def listed(names: Iterable[str]) -> str:
    """The first names, at least one, and the number of the others."""
    first, *others = names
    return f"{', '.join([first, *others[:4]])}{f' and {len(others) - 4} more' if len(others) > 4 else ''}"
