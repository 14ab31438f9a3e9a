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
from featx.images.files import is_image_name, missing_path_error
from featx.images.scan import scan_folder

__all__ = ["Source", "check_paths", "recognise"]

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
    data : str, path-like, list, tuple or ndarray
        One path; a list of image files and folders, or of arrays; an array of images or of paths.

    Raises
    ------
    DatasetError
        If it is nothing that images can be read from.

    Examples
    --------
    >>> recognise(["a.jpg", "b.jpg"]).kind
    'files'
    """
    if isinstance(data, np.ndarray) and data.dtype.kind in "UO" and data.ndim == 1:
        data = data.tolist()
    if isinstance(data, np.ndarray):
        return Source(kind="arrays", items=data)
    if isinstance(data, list | tuple):
        if data and not isinstance(data[0], str | os.PathLike):
            return Source(kind="arrays", items=data)
        return Source(kind="files", items=[path for item in data for path in _expand(item)])
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
    text = os.fspath(item) if isinstance(item, str | os.PathLike) else ""
    if not isinstance(text, str) or not text:
        raise DatasetError(f"expected a path, received {type(item).__name__}: {str(item)[:80]!r}")
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
