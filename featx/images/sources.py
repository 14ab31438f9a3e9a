"""What a user may give as data, told apart without reading it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from featx.exceptions import DatasetError
from featx.files.claims import missing_path_error
from featx.images.containers import sniff
from featx.images.files import is_image_name, local_path
from featx.images.scan import images_below

Kind = Literal["folder", "table", "npz", "hdf5", "files", "arrays"]
_SUFFIXES: dict[str, Kind] = {
    ".csv": "table",
    ".tsv": "table",
    ".npz": "npz",
    ".h5": "hdf5",
    ".hdf5": "hdf5",
    ".hdf": "hdf5",
}
_LONGEST_PATH = 4096


@dataclass(frozen=True, kw_only=True)
class Source:
    """Data of a recognised kind: a path, or items (image files, or arrays)."""

    kind: Kind
    path: Path = Path()
    items: Any = None


def recognise(data: Any) -> Source:
    """Return what was given as data: one path, or image files, folders, pictures or arrays."""
    pictures = listed_pictures(data)
    if pictures is not None:
        return Source(kind="arrays", items=pictures)
    paths = listed_paths(data)
    if paths is not None:
        return Source(kind="files", items=[path for item in paths for path in _expand(item)])
    if isinstance(data, np.ndarray | list | tuple):
        return Source(kind="arrays", items=data)
    if isinstance(data, bytes):
        data = _text(data)
    if not isinstance(data, str | os.PathLike):
        raise DatasetError(
            "expected a folder, a table, an array file, images or arrays, received "
            f"{type(data).__name__}"
        )
    path = Path(data)
    if path.is_dir():
        return Source(kind="folder", path=path)
    if not path.exists():
        raise missing_path_error(path, f"no such file or folder: {str(path)!r}")
    kind = _SUFFIXES.get(path.suffix.lower())
    if kind is not None:
        return Source(kind=kind, path=path)
    if is_image_name(path.name) or sniff(_head(path)):
        return Source(kind="files", path=path, items=[path])
    raise DatasetError(
        "expected a folder, a .csv or .tsv table, a .npz or .h5 file, or an image, received "
        f"{str(path)!r}"
    )


def listed_paths(data: Any) -> list[Any] | None:
    """Return the paths in a list, an array, or a column of pandas or polars; None for no path.

    An array has the shape (n,) or (n, 1). The paths are not checked one by one.

    >>> listed_paths(np.array([[b"a.jpg"], [b"b.jpg"]]))
    [b'a.jpg', b'b.jpg']
    """
    items = _items(data)
    return items if items is not None and any(map(_is_path, items)) else None


def listed_pictures(data: Any) -> list[Any] | None:
    """Return PIL images, contents of image files and open files, one or several; None for others.

    They are not checked one by one.
    """
    if is_picture(data):
        return [data]
    items = _items(data)
    return items if items and is_picture(items[0]) else None


def is_picture(value: Any) -> bool:
    """Return whether this is a PIL image, the content of an image file, or an open file."""
    if isinstance(value, bytes):
        # Paths have no null byte, and none is as long as this; text-only PPM files have lines.
        return (
            b"\0" in value
            or len(value) > _LONGEST_PATH
            or (b"\n" in value and sniff(value) == "PPM")
        )
    if isinstance(value, bytearray | memoryview) or hasattr(value, "getbands"):
        return True
    return hasattr(value, "read") and hasattr(value, "seek") and not isinstance(value, os.PathLike)


def _items(data: Any) -> list[Any] | None:
    """Return the items of a list, or of a column of text, bytes or objects."""
    if hasattr(data, "to_numpy") and hasattr(data, "shape"):
        # One row tells whether a wide table holds paths, without a copy of it.
        data = np.asarray((data if data.shape[1:] in ((), (1,)) else data[:1]).to_numpy())
    if isinstance(data, np.ndarray):
        if data.dtype.kind not in "USTO" or data.ndim not in (1, 2):
            return None
        if data.shape[1:] not in ((), (1,)):
            if any(map(_is_path, data[:1].flat)):
                raise DatasetError(
                    f"expected one column of paths, received {data.shape[1]} columns: select the "
                    "one with the paths"
                )
            return None
        items: list[Any] = data.ravel().tolist()
        return items
    if isinstance(data, list | tuple):
        return [row[0] for row in data] if data and all(map(_is_row_of_one, data)) else list(data)
    return None


def _is_row_of_one(row: object) -> bool:
    return (
        isinstance(row, list | tuple | np.ndarray)
        and getattr(row, "ndim", 1) == 1
        and len(row) == 1
    )


def _is_path(value: object) -> bool:
    return isinstance(value, str | bytes | os.PathLike) and not is_picture(value)


def check_paths(paths: Iterable[Any]) -> list[str]:
    """Return paths as text, with ``/`` on every system."""
    if isinstance(paths, str | bytes | os.PathLike):
        raise DatasetError(f"expected a list of paths, received one: {paths!r}; give [path]")
    items = list(paths)
    if not items:
        raise DatasetError("expected at least one path, received none")
    return [_text(item) for item in items]


def _text(item: Any) -> str:
    if isinstance(item, bytes) and is_picture(item):
        raise DatasetError(
            "expected a path, received the content of a file: give a list of paths only, or a list "
            "of images only"
        )
    text = os.fsdecode(item) if _is_path(item) else ""
    if not text:
        raise DatasetError(f"expected a path, received {type(item).__name__}: {str(item)[:80]!r}")
    text = local_path(text)
    return text.replace("\\", "/") if os.sep == "\\" else text


def _expand(item: Any) -> list[str]:
    """Return the images in a folder, or the path itself."""
    text = _text(item)
    return list(images_below(text)) if Path(text).is_dir() else [text]


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(256)
    except OSError as error:
        raise DatasetError(f"cannot read {str(path)!r}: {error.strerror}") from error
