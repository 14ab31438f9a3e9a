"""What a user may give as data, told apart without reading it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from featx.exceptions import DatasetError
from featx.images.containers import sniff
from featx.images.files import is_image_name, local_path, missing_path_error
from featx.images.scan import scan_folder

__all__ = ["Source", "check_paths", "listed_paths", "recognise"]

Kind = Literal["folder", "table", "npz", "hdf5", "files", "arrays"]
_SUFFIXES: dict[str, Kind] = {
    ".csv": "table",
    ".tsv": "table",
    ".npz": "npz",
    ".h5": "hdf5",
    ".hdf5": "hdf5",
    ".hdf": "hdf5",
}


@dataclass(frozen=True, kw_only=True)
class Source:
    """Data of a recognised kind: a path, or items (image files, or arrays)."""

    kind: Kind
    path: Path = Path()
    items: Any = None


def recognise(data: Any) -> Source:
    """Tell what was given as data.

    Parameters
    ----------
    data : str, bytes, path-like, list, tuple, ndarray or column of a table
        One path; image files and folders, as `listed_paths` takes them; arrays, or one array of
        images.

    Raises
    ------
    DatasetError
        If it is nothing that images can be read from.

    Examples
    --------
    >>> recognise(["a.jpg", "b.jpg"]).kind
    'files'
    """
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
    """Return the paths that a list, an array or a column of a table holds.

    Parameters
    ----------
    data : object
        A list or tuple; an array of shape (n,) or (n, 1) of text, bytes or objects; a column, an
        index or a frame of one column of pandas or polars.

    Returns
    -------
    paths : list or None
        Not checked one by one; None where there is no path among the items.

    Raises
    ------
    DatasetError
        If there are several columns of paths.

    Examples
    --------
    >>> listed_paths(np.array([[b"a.jpg"], [b"b.jpg"]]))
    [b'a.jpg', b'b.jpg']
    >>> listed_paths([[0.5, 1.5]]) is None
    True
    """
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
    elif isinstance(data, list | tuple):
        items = [row[0] for row in data] if data and all(map(_is_row_of_one, data)) else list(data)
    else:
        return None
    return items if any(map(_is_path, items)) else None


def _is_row_of_one(row: Any) -> bool:
    return (
        isinstance(row, list | tuple | np.ndarray)
        and getattr(row, "ndim", 1) == 1
        and len(row) == 1
    )


def _is_path(value: Any) -> bool:
    return isinstance(value, str | bytes | os.PathLike)


def check_paths(paths: Iterable[Any]) -> list[str]:
    """Return paths as text, with ``/`` on every system.

    Raises
    ------
    DatasetError
        If there are none, or one of them is no path.
    """
    if isinstance(paths, str | bytes | os.PathLike):
        raise DatasetError(f"expected a list of paths, received one: {paths!r}; give [path]")
    given = list(paths)
    if not given:
        raise DatasetError("expected at least one path, received none")
    return [_text(item) for item in given]


def _text(item: Any) -> str:
    if isinstance(item, bytes) and b"\0" in item:
        raise DatasetError(
            "expected a path, received the bytes of a file: name the file, or give the image as an "
            "array or a PIL image"
        )
    text = os.fsdecode(item) if _is_path(item) else ""
    if not text:
        raise DatasetError(f"expected a path, received {type(item).__name__}: {str(item)[:80]!r}")
    text = local_path(text)
    return text.replace("\\", "/") if os.sep == "\\" else text


def _expand(item: Any) -> list[str]:
    """Return the images in a folder, or the path itself."""
    text = _text(item)
    if not Path(text).is_dir():
        return [text]
    return [f"{text.rstrip('/')}/{name}" for name in scan_folder(Path(text), labels=False).paths]


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(256)
    except OSError as error:
        raise DatasetError(f"cannot read {str(path)!r}: {error.strerror}") from error
