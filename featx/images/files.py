"""Image files on disk: which names are images, reading one, its key."""

from __future__ import annotations

import hashlib
import os
import stat
import unicodedata
from pathlib import Path, PurePath

from featx.exceptions import DatasetError, ImageError

# fmt: off
IMAGE_EXTENSIONS = frozenset((
    ".avif", ".bmp", ".dib", ".gif", ".heic", ".heif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg",
    ".jpg", ".mpo", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp",
))
# fmt: on
"""Extensions that make a file an image when a folder is scanned, in lower case."""

MAX_FILE_BYTES = 512 << 20
"""Largest file that is read as an image."""


def is_image_name(name: str) -> bool:
    """Return whether a file name has the extension of an image.

    Examples
    --------
    >>> is_image_name("cat.JPG"), is_image_name("notes.txt"), is_image_name("jpg")
    (True, False, False)
    """
    return PurePath(name).suffix.lower() in IMAGE_EXTENSIONS


def read_file(path: str | os.PathLike[str]) -> bytes:
    """Read a whole image file.

    Raises
    ------
    ImageError
        With a short reason that leaves the path out: no such file, no permission, a folder, a
        device, larger than `MAX_FILE_BYTES`, or an I/O error.
    """
    try:
        # A pipe or a device would block, so the kind is asked before anything is opened.
        # Without `Path` and a buffer, which cost as much as reading a small file.
        _check_regular(os.stat(path))
        with open(path, "rb", buffering=0) as file:
            return file.readall()
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError("no such file") from error
    except PermissionError as error:
        raise ImageError("permission denied") from error
    except OSError as error:
        raise ImageError(f"cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ImageError(f"not a path: {error}") from error


def _check_regular(info: os.stat_result) -> None:
    if not stat.S_ISREG(info.st_mode):
        what = "a folder" if stat.S_ISDIR(info.st_mode) else "a device or pipe"
        raise ImageError(f"expected a file, found {what}")
    if info.st_size > MAX_FILE_BYTES:
        raise ImageError(
            f"too large: a file of {info.st_size:,} bytes, the limit is {MAX_FILE_BYTES:,}"
        )


def hash_file(path: str | os.PathLike[str]) -> bytes:
    """Return the key of an image file: SHA-256 of its bytes, 32 bytes.

    Raises
    ------
    OSError
        If the file cannot be read.
    """
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def missing_path_error(path: Path, what: str) -> DatasetError:
    """Return the error for a path that does not exist, with the nearest names beside it."""
    import difflib

    parent = path.absolute().parent
    while not parent.exists() and parent != parent.parent:
        path, parent = parent, parent.parent
    try:
        names = sorted(entry.name for entry in parent.iterdir())
    except OSError:
        names = []
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.6)
    hint = " or ".join(repr(str(parent / name)) for name in near)
    advice = f"did you mean {hint}?" if near else f"{str(parent)!r} has no such entry"
    return DatasetError(f"{what}: {advice}")


def local_path(path: str, base: Path | None = None) -> str:
    """Return the path that ``file://`` and ``~`` stand for, any other as it is.

    Examples
    --------
    >>> local_path("file:///photos/a%20b.jpg"), local_path("~.jpg")
    ('/photos/a b.jpg', '~.jpg')
    """
    if path[:7].lower() == "file://":
        from urllib.parse import urlsplit
        from urllib.request import url2pathname

        return url2pathname(urlsplit(path).path)
    if path.startswith("~/") and not os.path.lexists(Path(base or "", path)):
        return os.path.expanduser(path)
    return path


def nearest_path(base: Path, path: str) -> str:
    """Return the file whose path differs from `path` least, relative to `base`; "" for none.

    It may differ in case, in spaces around a name, in the form of accents, and in the extension.
    """
    place, parts = base, []
    for part in Path(path.strip()).parts:
        if part == place.anchor:
            continue
        if not (place / part).exists():
            part = _alike(place, part)
            if not part:
                return ""
        place /= part
        parts.append(part)
    return str(Path(base.anchor, *parts) if Path(path).is_absolute() else Path(*parts))


def _alike(folder: Path, name: str) -> str:
    def plain(text: str) -> str:
        return unicodedata.normalize("NFC", text.strip()).casefold()

    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError:
        return ""
    same = [other for other in names if plain(other) == plain(name)]
    stem = plain(PurePath(name.strip()).stem)
    same += [n for n in names if is_image_name(n) and plain(PurePath(n).stem) == stem]
    return same[0] if same else ""
