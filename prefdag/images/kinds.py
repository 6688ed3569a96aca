"""Which files of an image folder are images, by their names, and of which kind a file is, by its first bytes."""

from pathlib import PurePosixPath
from typing import NamedTuple

from prefdag.formats.files import beside

TARS = (".tar", ".tar.gz", ".tgz")
# The formats that are read, by Pillow's names, and their suffixes: those of torchvision's ImageFolder, and GIF.
READ = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "BMP": (".bmp", ".dib"),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
}
# Tables and texts: they may lie beside images, and hold none.
DOCUMENTS = (
    *(".csv", ".csv.gz", ".tsv", ".json", ".jsonl", ".parquet", ".xls", ".xlsx", ".mat", ".db", ".sqlite"),
    *(".txt", ".xml", ".yaml", ".yml", ".toml", ".ini", ".cfg", ".log", ".html", ".htm", ".pdf", ".names"),
    *(".py", ".ipynb", ".sh", ".md5", ".sha256"),
)
CONVERT = "convert it to JPEG, PNG or WebP"
REMOVE = "remove it"
UNPACK = "unpack it, or pack it again as a tar"


class FileKind(NamedTuple):
    """A kind of file that is not read, and what to do about it."""

    name: str
    remedy: str


HEIC, AVIF, RAW = FileKind("HEIC", CONVERT), FileKind("AVIF", CONVERT), FileKind("a camera's raw format", CONVERT)
JPEG_XL, JPEG_2000 = FileKind("JPEG XL", CONVERT), FileKind("JPEG 2000", CONVERT)
SVG, PSD, ICO = FileKind("SVG", CONVERT), FileKind("PSD (Photoshop)", CONVERT), FileKind("ICO (icons)", CONVERT)
VIDEO, ZIP, PICKLE = (
    FileKind("a video", REMOVE),
    FileKind("a zip archive", UNPACK),
    FileKind("a pickle, never opened", REMOVE),
)
NUMPY = FileKind("a NumPy array", "save each image as PNG")
IDX = FileKind("an IDX file, MNIST's own format", "convert it to a CSV file of pixels and label (mnist-csv)")
ARCHIVE, HDF5 = FileKind("an archive", UNPACK), FileKind("HDF5", "save each image as PNG")
LFS = FileKind("a Git LFS pointer, not the file itself", "run `git lfs pull` where it comes from")
HTML, EMPTY = (
    FileKind("a web page", "fetch the image again or remove it"),
    FileKind("an empty file", "fetch it again or remove it"),
)

BY_SUFFIX = {
    **dict.fromkeys((".heic", ".heif", ".hif"), HEIC),
    **dict.fromkeys((".avif", ".avifs"), AVIF),
    **dict.fromkeys((".dng", ".nef", ".nrw", ".cr2", ".cr3", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw"), RAW),
    **dict.fromkeys((".jp2", ".j2k", ".jpx", ".j2c", ".jpf"), JPEG_2000),
    ".jxl": JPEG_XL,
    **dict.fromkeys((".svg", ".svgz"), SVG),
    **dict.fromkeys((".psd", ".psb"), PSD),
    **dict.fromkeys((".ico", ".cur"), ICO),
    **{
        suffix: FileKind(suffix[1:].upper(), CONVERT)
        for suffix in (".tga", ".exr", ".hdr", ".dds", ".eps", ".pcx", ".qoi")
    },
    ".dcm": FileKind("DICOM", CONVERT),
    **dict.fromkeys((".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg"), VIDEO),
    ".zip": ZIP,
    **dict.fromkeys((".7z", ".rar", ".gz", ".bz2", ".xz", ".zst"), ARCHIVE),
    **dict.fromkeys((".npy", ".npz"), NUMPY),
    **dict.fromkeys((".pkl", ".pickle", ".pt", ".pth"), PICKLE),
    **dict.fromkeys((".h5", ".hdf5"), HDF5),
}
# An ISO media file names its kind in the four bytes after "ftyp".
BRANDS = {
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), HEIC),
    **dict.fromkeys((b"avif", b"avis"), AVIF),
    b"crx ": RAW,
}
BY_CONTENT: dict[bytes, str | FileKind] = {  # by the first bytes; a text is the name of a format that is read
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF8": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    **{b"P%d%c" % (n, space): "PPM" for n in range(1, 7) for space in b" \t\r\n"},
    b"BM": "BMP",
    b"\xff\x0a": JPEG_XL,
    b"\0\0\0\x0cJXL ": JPEG_XL,
    b"\0\0\0\x0cjP  ": JPEG_2000,
    b"\xff\x4f\xff\x51": JPEG_2000,
    b"8BPS": PSD,
    b"\0\0\1\0": ICO,
    b"\0\0\x08\x01": IDX,
    b"\0\0\x08\x03": IDX,
    b"\x93NUMPY": NUMPY,
    **{b"\x80%c" % protocol: PICKLE for protocol in range(2, 6)},
    b"\x89HDF\r\n": HDF5,
    b"PK\x03\x04": ZIP,
    **dict.fromkeys((b"7z\xbc\xaf\x27\x1c", b"Rar!\x1a", b"\x1f\x8b", b"BZh", b"\xfd7zXZ"), ARCHIVE),
    b"version https://git-lfs": LFS,
    b"%PDF": FileKind("a PDF", CONVERT),
}


def role(name: str) -> str:
    """What a file is for, by its name: "skipped", a "document", or an "image", which any other file should be.

    Names that start with a dot, and what programs leave in folders, are skipped, and so are READMEs and the like.
    """
    path = PurePosixPath(name)
    if any(part.startswith(".") or part.strip() in {"__MACOSX", "@eaDir", "Icon"} for part in path.parts):
        return "skipped"
    lower = path.name.lower()
    if has_image_suffix(lower):
        return "image"  # license-plate-1.jpg is no licence
    if beside(name):
        return "skipped"
    return "document" if lower.endswith(DOCUMENTS) else "image"


def has_image_suffix(name: str) -> bool:
    """Whether a file is called like an image, of a format that is read or not."""
    suffix = PurePosixPath(name.lower()).suffix
    other = BY_SUFFIX.get(suffix)
    return any(suffix in suffixes for suffixes in READ.values()) or (other is not None and other.remedy == CONVERT)


def kind_of(name: str, content: bytes) -> str | FileKind | None:
    """The kind of a file, by its first bytes or else by its name: a name of `READ`, or a `FileKind`; None if unknown."""
    by_suffix = BY_SUFFIX.get(PurePosixPath(name.lower()).suffix)
    if not content:
        return EMPTY
    if by_suffix is RAW:
        return RAW  # most are TIFFs, whose first picture is a small preview
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "WEBP"
    if content[4:8] == b"ftyp":
        return BRANDS.get(content[8:12], by_suffix or VIDEO)
    for start, kind in BY_CONTENT.items():
        if content.startswith(start):
            return kind
    text = content[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<svg", b"<?xml")) and b"<svg" in text:
        return SVG
    if text.startswith((b"<!doctype html", b"<html")):
        return HTML
    return by_suffix
