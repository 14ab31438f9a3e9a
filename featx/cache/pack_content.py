"""What a packed file holds: one matrix of a dataset's features, and what belongs to its rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.cache.features import Features
from featx.exceptions import DatasetError
from featx.spec import FeatureSpec

_CHUNK_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class PackContent:
    """One matrix and its columns; the matrix itself comes in `chunks`.

    Parameters
    ----------
    dataset, backbone, tap : str
        Where the matrix comes from.
    spec : FeatureSpec
        What identifies its features.
    keys : ndarray of shape (n, 32), uint8
        Keys of the rows.
    paths : list of str
        One a row.
    classes : tuple of str or None
        Names of the classes; None for unlabelled data.
    labels : ndarray of shape (n,), int32
        Codes of classes, -1 for none.
    groups, splits : list of str or None
        One a row, empty text for none; None where there are none at all.
    width : int
        Number of features a row.
    """

    dataset: str
    backbone: str
    tap: str
    spec: FeatureSpec
    keys: NDArray[np.uint8]
    paths: Sequence[str]
    classes: tuple[str, ...] | None
    labels: NDArray[np.int32]
    groups: Sequence[str] | None
    splits: Sequence[str] | None
    width: int
    _features: Features = field(repr=False)

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the matrix, little-endian."""
        return np.dtype(self.spec.dtype).newbyteorder("<")

    @property
    def chunk_rows(self) -> int:
        """Number of rows of a chunk: about 8 MiB."""
        return max(1, _CHUNK_BYTES // (self.width * self.dtype.itemsize))

    def chunks(self) -> Iterator[NDArray[Any]]:
        """Yield the features of one chunk of rows after the other, each of shape (m, d)."""
        for values, _ in self._features.batches(
            backbone=self.backbone,
            tap=self.tap,
            batch_size=self.chunk_rows,
            max_ram_bytes=4 * max(_CHUNK_BYTES, self.width * self.dtype.itemsize),
        ):
            yield np.ascontiguousarray(values, self.dtype)

    def texts(self) -> dict[str, Sequence[str]]:
        """Return the columns of text that there are, by name."""
        columns = {"paths": self.paths, "groups": self.groups, "splits": self.splits}
        return {name: values for name, values in columns.items() if values is not None}

    def facts(self) -> dict[str, str]:
        """Return what holds for the whole matrix, by name: text, the specification as JSON."""
        return {
            "dataset": valid_text(self.dataset),
            "backbone": valid_text(self.backbone),
            "tap": self.tap,
            "spec": self.spec.canonical_json(),
        }


def valid_text(text: str) -> str:
    r"""Return text that is valid UTF-8: bytes of a file name that are not become ``\xNN``.

    Examples
    --------
    >>> valid_text("蟻"), valid_text("odd\udcff.jpg")
    ('蟻', 'odd\\xff.jpg')
    """
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def collect_content(
    features: Features, *, backbone: str | None = None, tap: str | None = None
) -> PackContent:
    """Return the content of a packed file.

    Parameters
    ----------
    features : Features
        From `featx.extract` or `Features.open`.
    backbone, tap : str, optional
        Which matrix, where there are several.

    Raises
    ------
    FeaturesError
        If not exactly one matrix fits, or its rows are not all in the cache.
    DatasetError
        If there are no rows.
    """
    block = features.block(backbone=backbone, tap=tap)
    if not len(features):
        raise DatasetError(f"{features.name!r} has no rows to pack: none of its inputs was read")
    # The file gets digests of its own, which must not vouch for damage.
    features.recheck(backbone=block.backbone, tap=block.tap)
    first, _ = next(features.batches(backbone=block.backbone, tap=block.tap, batch_size=1))
    groups, splits = features.groups, features.splits
    return PackContent(
        dataset=features.name,
        backbone=block.backbone,
        tap=block.tap,
        spec=features.spec(backbone=block.backbone, tap=block.tap),
        keys=features.keys,
        paths=features.paths,
        classes=features.classes,
        labels=features.labels,
        groups=None if groups is None else groups.tolist(),
        splits=None if splits is None else splits.tolist(),
        width=first.shape[1],
        _features=features,
    )
