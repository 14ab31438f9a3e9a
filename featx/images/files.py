"""Image files on disk: which names are images, how one is read, what identifies it."""

from __future__ import annotations

import hashlib
import os
import stat
import time
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import FeatxError, ImageError
from featx.files.claims import names_in

AnyArray: TypeAlias = NDArray[Any]
ImageData: TypeAlias = bytes | AnyArray
"""An image before it is decoded: the bytes of its file, or an array."""


class ImageSource(Protocol):
    """Anything that gives array images by position."""

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    def __getitem__(self, index: int, /) -> object:
        """Return one image as an array."""
        ...


class PackedImages(ABC):
    """The bytes of image files that lie inside other files, or in a store.

    They pickle, and are read from any thread.
    """

    reads_at_once: int = 1
    """Reads that may be under way at the same time. Above 1, images are read ahead in threads."""
    in_memory: bool = False
    """Whether only this process has them."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of images."""

    @abstractmethod
    def __getitem__(self, index: int, /) -> bytes:
        """Return the bytes of one image file; `ImageError` says in short why not."""

    def taken(self, rows: NDArray[np.int64]) -> PackedImages:
        """Return some of the images, as a value that pickles to little more than they take."""
        return SomeImages(self, rows)

    def place(self, index: int) -> tuple[Any, ...] | None:
        """Return the place of one for `featx.images.members`; None where only this reads it."""
        return None

    @abstractmethod
    def stamps(self) -> NDArray[np.int64]:
        """Return what tells, unread, that an image is the same: a row of `STAMP` for each."""


class SomeImages(PackedImages):
    """Some of other images, by their rows; -1 is no image any more."""

    def __init__(self, images: PackedImages, rows: NDArray[np.int64]) -> None:
        self._images, self._rows = images, rows
        self.reads_at_once, self.in_memory = images.reads_at_once, images.in_memory

    def taken(self, rows: NDArray[np.int64]) -> PackedImages:
        """Return some of these."""
        chosen = self._rows[rows]
        return (
            SomeImages(self._images, chosen) if (chosen < 0).any() else self._images.taken(chosen)
        )

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> bytes:
        row = int(self._rows[index])
        if row < 0:
            raise ImageError("not in the archive any more")
        return self._images[row]

    def place(self, index: int) -> tuple[Any, ...] | None:
        """Return the place of one among the others."""
        row = int(self._rows[index])
        return None if row < 0 else self._images.place(row)

    def stamps(self) -> NDArray[np.int64]:
        """Return their stamps among those of the others."""
        return np.where(self._rows[:, None] < 0, -1, self._images.stamps()[self._rows])


@dataclass(frozen=True, kw_only=True)
class Listing:
    """Images as a folder, a table or a file of arrays lists them; None for what it does not say."""

    paths: Sequence[str]
    labels: Iterable[object] | None = None
    as_written: bool = False  # whether any text is a label, as the name of a folder is
    splits: list[str] | None = None
    split_names: Sequence[tuple[str, str]] = ()  # which names were taken for which split
    groups: list[str] | None = None
    strays: Sequence[tuple[str, str]] = ()  # what is not used, and why
    empty_classes: Sequence[str] = ()
    notes: Sequence[str] = ()  # what could have been decided otherwise
    arrays: ImageSource | None = None
    column: str = ""  # of a table, in which the contents of images lie


# fmt: off
IMAGE_EXTENSIONS = frozenset((
    ".avif", ".bmp", ".dib", ".gif", ".heic", ".heif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg",
    ".jpg", ".mpo", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp",
))
# fmt: on
ARCHIVES: Mapping[str, str] = MappingProxyType(
    {
        ".tar": "tar",
        ".zip": "zip",
        ".tar.gz": "gz",
        ".tgz": "gz",
        ".tar.bz2": "bz2",
        ".tbz2": "bz2",
        ".tar.xz": "xz",
        ".txz": "xz",
        ".parquet": "parquet",
        ".arrow": "arrow",
        ".feather": "arrow",
    }
)
"""Ends of the names of files of many images: zips, tars and their compression, and tables."""
ARROW_FILES = ("parquet", "arrow")
"""Those of `ARCHIVES` that are tables, in whose columns the images lie."""
MAX_FILE_BYTES = 512 << 20


def is_image_name(name: str) -> bool:
    """Return whether a file name has the extension of an image, in upper or lower case."""
    # By hand: `PurePath` takes a third of the time in which a large folder is looked through.
    stem, _, extension = name.rpartition(".")
    return stem[-1:] not in ("", "/") and f".{extension.lower()}" in IMAGE_EXTENSIONS


def archive_ending(name: str) -> str:
    """Return the end by which a name is that of an archive, ``""`` for none."""
    lower = name.lower()
    return next((ending for ending in ARCHIVES if lower.endswith(ending)), "")


def read_file(path: str | os.PathLike[str]) -> bytes:
    """Return the bytes of an image file; `ImageError` says in short why not, without the path."""
    try:
        # A pipe or a device would block, so the kind is asked before anything is opened.
        # Without `Path` and a buffer, which cost as much as reading a small file.
        status = os.stat(path)
        if stat.S_ISREG(status.st_mode) and status.st_size <= MAX_FILE_BYTES:
            with open(path, "rb", buffering=0) as file:
                return file.readall()
    except FileNotFoundError as error:
        raise ImageError("no such file") from error
    except PermissionError as error:
        raise ImageError("permission denied") from error
    except OSError as error:
        raise ImageError(f"cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ImageError(f"not a path: {error}") from error
    if not stat.S_ISREG(status.st_mode):
        what = "a folder" if stat.S_ISDIR(status.st_mode) else "a device or pipe"
        raise ImageError(f"expected a file, found {what}")
    raise ImageError(
        f"too large: a file of {status.st_size:,} bytes, the limit is {MAX_FILE_BYTES:,}"
    )


# Keys: what identifies an image, whatever it is called.


def array_key(array: AnyArray) -> bytes:
    """Return the key of an array: SHA-256 of shape, dtype and little-endian bytes in C order."""
    array = np.asarray(array)
    array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    head = f"featx-array-1 {array.dtype.str} {'x'.join(map(str, array.shape))}\n"
    digest = hashlib.sha256(head.encode("ascii"))
    digest.update(array.tobytes() if array.ndim == 0 else array.data)
    return digest.digest()


def image_key(image: ImageData) -> bytes:
    """Return the key of an image: the SHA-256 of its file's bytes, or that of an array."""
    return hashlib.sha256(image).digest() if isinstance(image, bytes) else array_key(image)


class Read(NamedTuple):
    """An image before it is decoded; `key` is None and `reason` says why when it cannot be read."""

    data: ImageData
    key: bytes | None
    reason: str
    read_s: float


def read_one(read: Callable[[], ImageData]) -> Read:
    """Return an image, read once, with the key of these very bytes."""
    start = time.perf_counter()
    try:
        data = read()
        key = image_key(data)
    except Exception as error:
        return Read(b"", None, why_failed(error), time.perf_counter() - start)
    return Read(data, key, "", time.perf_counter() - start)


def why_failed(error: Exception) -> str:
    """Return why an image could not be read or decoded, as the ledger says it."""
    if isinstance(error, MemoryError):
        return "not enough memory to decode it"
    return str(error) if isinstance(error, FeatxError) else f"{type(error).__name__}: {error}"


# Paths as people write them.


def local_path(path: str, base: Path | str | None = None) -> str:
    """Return the path that ``file://`` and ``~`` stand for, any other as it is."""
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

    def plain(text: str) -> str:
        return unicodedata.normalize("NFC", text.strip()).casefold()

    folder, parts = base, []
    for part in Path(path.strip()).parts:
        if part == folder.anchor:
            continue
        if not (folder / part).exists():
            names, stem = names_in(folder), plain(PurePath(part.strip()).stem)
            same = [name for name in names if plain(name) == plain(part)]
            same += [n for n in names if is_image_name(n) and plain(PurePath(n).stem) == stem]
            if not same:
                return ""
            part = same[0]
        folder /= part
        parts.append(part)
    return str(Path(base.anchor, *parts) if Path(path).is_absolute() else Path(*parts))
