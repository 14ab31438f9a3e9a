"""`read_feature_file`: features and their columns from a file, by its suffix."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from featx.exceptions import DatasetError, UnknownNameError
from featx.feature_files.hdf5 import read_hdf5
from featx.feature_files.label_file import LabelFile, read_label_file
from featx.feature_files.npy import read_npy, read_npz
from featx.feature_files.parquet import read_parquet
from featx.feature_files.table import FeatureTable

READERS: dict[str, Callable[[Path], FeatureTable]] = {
    ".h5": read_hdf5,
    ".hdf": read_hdf5,
    ".hdf5": read_hdf5,
    ".npy": read_npy,
    ".npz": read_npz,
    ".parquet": read_parquet,
    ".pq": read_parquet,
}
"""Readers of files of features, by their suffix."""


def read_feature_file(
    file: str | os.PathLike[str], *, labels: str | os.PathLike[str] | None = None
) -> FeatureTable:
    """Find features, labels, paths, groups and splits in a file.

    Nothing in the file is trusted: pickles, links out of it, data in other files, and arrays that
    it cannot hold are refused before they are read. The features are read chunk by chunk when
    they are asked for.

    Parameters
    ----------
    file : path
        ``.npz``, ``.npy``, ``.h5`` or ``.parquet``. Names that are understood: ``X``, ``features``
        or ``embeddings``; ``y`` or ``labels``, with ``classes``; ``paths``, ``groups``, ``splits``.
    labels : path, optional
        A CSV with the column ``label`` (and ``path``, ``split``, ``group``), or a ``.npy``, in the
        order of the features. Where both sides have paths, rows are matched by them.

    Returns
    -------
    FeatureTable

    Raises
    ------
    DatasetError
        If a file is missing, damaged, unsafe, or does not hold what is expected.
    UnknownNameError
        For another suffix.
    MissingExtraError
        For Parquet without pyarrow.
    """
    path = Path(file).expanduser()
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise UnknownNameError("kind of feature file", path.suffix, READERS)
    table = _named_classes(reader(path), path)
    if labels is None:
        return table
    return _with_labels(table, read_label_file(Path(labels).expanduser()), str(labels))


def _named_classes(table: FeatureTable, path: Path) -> FeatureTable:
    """Turn codes of classes into their names, where the file has both."""
    if table.y is None or table.classes is None:
        return table
    codes = np.asarray(table.y)
    if codes.ndim != 1 or codes.dtype.kind not in "iu":
        return replace(table, classes=None)
    if codes.size and not (codes.min() >= -1 and codes.max() < len(table.classes)):
        raise DatasetError(
            f"expected labels from -1 to {len(table.classes) - 1}, which index the classes of "
            f"{str(path)!r}, received {codes.min()} to {codes.max()}"
        )
    names = [*table.classes, ""]
    return replace(table, y=[names[code] for code in codes.tolist()])


def _with_labels(table: FeatureTable, found: LabelFile, name: str) -> FeatureTable:
    rows = table.rows.shape[0]
    order: Sequence[int] = range(rows)
    paths = table.paths
    if found.path is not None and paths is not None:
        order = _matched(paths, found.path, name)
    elif len(found.label) != rows:
        raise DatasetError(
            f"expected {rows:,} labels, one a row of the features, received {len(found.label):,} "
            f"in {name!r}"
        )

    def pick(values: Any, old: list[str] | None) -> Any:
        return old if values is None else [values[row] for row in order]

    return replace(
        table,
        y=pick(found.label, None),
        classes=None,
        paths=paths if paths is not None else found.path,
        groups=pick(found.group, table.groups),
        splits=pick(found.split, table.splits),
    )


def _matched(paths: list[str], given: list[str], name: str) -> list[int]:
    at = {path: row for row, path in enumerate(given)}
    missing = [path for path in paths if path not in at]
    if missing:
        raise DatasetError(
            f"{len(missing):,} of {len(paths):,} rows have no label in {name!r}, the first is "
            f"{missing[0]!r}: add them with an empty label, or leave its column 'path' out to go "
            "by the order"
        )
    return [at[path] for path in paths]
