"""Under which names features and their columns are found in a file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from featx.exceptions import DatasetError

# fmt: off
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "X": ("x", "features", "feature", "embeddings", "embedding", "vectors", "data", "arr_0"),
    "y": ("y", "labels", "label", "targets", "target"),
    "classes": ("classes", "class_names"),
    "paths": ("paths", "path", "files", "filenames", "filename", "ids", "id"),
    "groups": ("groups", "group"),
    "splits": ("splits", "split"),
}
# fmt: on
"""Names that are understood, in lower case, the first one preferred."""


def find_names(present: Iterable[str]) -> dict[str, str]:
    """Return the name in the file of each column that is there.

    Examples
    --------
    >>> find_names(["Embeddings", "labels", "other"])
    {'X': 'Embeddings', 'y': 'labels'}
    """
    by_lower = {name.lower(): name for name in present}
    found = {}
    for column, names in COLUMNS.items():
        name = next((name for name in names if name in by_lower), None)
        if name is not None:
            found[column] = by_lower[name]
    return found


def require_features(
    found: Mapping[str, str], matrices: Iterable[str], present: Iterable[str], file: Path
) -> str:
    """Return the name of the features: one that is understood, else the only matrix.

    Raises
    ------
    DatasetError
        If there is none, or no telling which.
    """
    if "X" in found:
        return found["X"]
    candidates = list(matrices)
    if len(candidates) == 1:
        return candidates[0]
    raise DatasetError(
        f"expected features under the name X, features or embeddings in {str(file)!r}, found: "
        f"{', '.join(sorted(present)[:20]) or 'nothing'}"
    )
