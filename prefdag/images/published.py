"""The splits in which images were published, by names: SPLIT/CLASS/NAME.jpg, test.tar, mnist_test.csv."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import PurePosixPath

from prefdag.formats.files import SPLIT_WORDS, split_of_name
from prefdag.lifecycle.errors import DataError

HELD_OUT = {"val", "test"}
REMEDY = "rename it to train, val or test, or remove it"


def splits_of_folders(names: Sequence[str]) -> list[str] | None:
    """The split of each image, None if they were not published in splits.

    A folder above those of the classes names a split if all folders beside it do. Otherwise it may be called so by chance:
    the vehicles train/steam and car/coupe are no splits.

    Args:
        names: paths CLASS/NAME, below the same number of folders (or tars).

    Raises:
        DataError: splits are below the classes; a folder beside a split has the same classes, but names no split; or an image
            is in two splits.
    """
    paths = [PurePosixPath(name) for name in names]
    _check_classes(paths)
    found: list[set[str]] = [set() for _ in paths]
    for level in range(len(paths[0].parts) - 2):
        split_of = _splits_at(level, paths)
        for splits, path in zip(found, paths, strict=True):
            if split_of:
                splits.add(split_of[path.parts[level]])
    for splits, name in zip(found, names, strict=True):
        if len(splits) > 1:
            raise DataError(f"{name}: its folders name the splits {' and '.join(sorted(splits))}; leave one of them")
    return [splits.pop() for splits in found] if found[0] else None


def splits_of_files(names: Sequence[str]) -> list[str] | None:
    """The split that each file names, None if they name none.

    Raises `DataError` if only some files name a split, and one of them names val or test.
    """
    splits = [split_of_name(name) if len(names) > 1 or _is_split(name) else None for name in names]
    named = {split: name for split, name in zip(splits, names, strict=True) if split}
    if None in splits:
        for split in sorted(HELD_OUT & set(named)):
            name = names[splits.index(None)]
            raise DataError(f"{name}: names no split, but {named[split]} beside it is {split}; {REMEDY}")
        return None
    return [split for split in splits if split]


def _check_classes(paths: Sequence[PurePosixPath]) -> None:
    """Check that the folders of images are those of classes, not of splits. Raises `DataError`."""
    classes = {path.parent.name for path in paths}
    splits = {SPLIT_WORDS[name.lower()] for name in classes if _is_split(name)}
    if len(splits) > 1 or (splits and len(classes) == 1):
        path = next(path for path in paths if _is_split(path.parent.name))
        raise DataError(f"{path}: the image's folder is its class, but it names a split; use SPLIT/CLASS/NAME")


def _splits_at(level: int, paths: Sequence[PurePosixPath]) -> dict[str, str]:
    """The split of each folder at this level; empty if they are no splits. Raises `DataError`."""
    classes = defaultdict(set)
    for path in paths:
        classes[path.parts[level]].add(path.parts[level + 1 : -1])
    split_of = {folder: split for folder in classes if (split := split_of_name(folder))}
    if len(classes) == 1 and not any(map(_is_split, classes)):
        return {}  # one folder around all others, such as my-test-photos
    for folder, split in split_of.items():
        surely = split in HELD_OUT or _is_split(folder)
        for other in classes.keys() - split_of.keys():
            if surely and classes[folder] & classes[other]:
                raise DataError(
                    f"{other}: has the same classes as the folder {folder} beside it, but names no split; {REMEDY}"
                )
    return split_of if len(split_of) == len(classes) else {}


def _is_split(name: str) -> bool:
    """Whether a name, without its suffixes, is nothing but that of a split."""
    return PurePosixPath(name).name.split(".")[0].lower() in SPLIT_WORDS
