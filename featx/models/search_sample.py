"""A search within a bound of memory: which images it looks at, and how its winner is trained."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.cache.features import Features
from featx.exceptions import HeadError
from featx.heads.streaming import require_streamable
from featx.heads.table import make_head
from featx.heads.targets import label_strata
from featx.memory import shown_bytes
from featx.models.feature_stream import block_bytes
from featx.selection.space import DEFAULT_HEADS, SearchSpace
from featx.selection.splits import named_fold
from featx.selection.transforms import parse_transform

_STREAMED_TRANSFORMS = ("standard", "none", "l2")
# A search holds the rows, those of a fold, and both standardised.
_COPIES = 5
_LEAST_OF_CLASS = 10
_LEAST_ROWS = 100


@dataclass(frozen=True, slots=True, eq=False)
class SearchSample:
    """The rows that candidates are measured on.

    Parameters
    ----------
    rows : ndarray of int, ascending
        Rows of the features.
    training : ndarray of int, ascending
        Rows that the winner is to be trained on.
    """

    rows: NDArray[np.intp]
    training: NDArray[np.intp]

    @property
    def digest(self) -> str:
        """What tells it from another sample of the same features."""
        return hashlib.sha256(np.ascontiguousarray(self.rows).data).hexdigest()[:16]

    @property
    def note(self) -> str:
        """What a user should know of it."""
        seen = int(np.isin(self.rows, self.training).sum())
        return (
            f"candidates were measured on {seen:,} images, as many as --max-ram allows; "
            f"the winner was trained on all {len(self.training):,}"
        )


def default_heads() -> list[str]:
    """Names of the heads that a search tries within a bound when none are named."""
    from featx.heads.table import HEADS

    return [name for name in DEFAULT_HEADS if HEADS[name].streamed]


def require_streamable_space(space: SearchSpace) -> None:
    """Refuse a space whose winner might not train on batches."""
    for part in space.parts:
        for head in part.heads:
            require_streamable(make_head(head.label if head.estimator is None else head.estimator))
        for text in part.transforms:
            if parse_transform(text).kind not in _STREAMED_TRANSFORMS:
                raise HeadError(
                    f"{text!r} has to see all rows at once, which --max-ram (max_ram=...) does not "
                    f"allow: take {', '.join(_STREAMED_TRANSFORMS)}, or give it the memory"
                )


def sample_rows(
    features: Features,
    labels: NDArray[Any],
    rows: NDArray[np.intp],
    groups: NDArray[np.int64],
    places: list[dict[str, Any]],
    *,
    bound: int,
    seed: int,
) -> SearchSample | None:
    """Draw rows whose search stays within a bound."""
    whole = _COPIES * sum(block_bytes(features, place) for place in places)
    most = int(len(features) * bound / whole)
    if most >= len(rows):
        return None
    if most < _LEAST_ROWS:
        needed = shown_bytes(whole * _LEAST_ROWS // len(features))
        raise HeadError(
            f"a search on {_LEAST_ROWS} images of {features.name!r} needs {needed}, more than the "
            f"{shown_bytes(bound)} of --max-ram (max_ram=...): raise it"
        )
    splits = features.splits
    training = rows
    if splits is not None and (splits[rows] == "test").any():
        training = rows[named_fold(splits[rows], "test", groups[rows])[0]]
    if labels.ndim == 2:
        return SearchSample(
            _share_of_labels(labels, rows, splits, most / len(rows), seed), training
        )
    strata = labels[rows].astype(str)
    if splits is not None:
        strata = np.char.add(np.char.add(splits[rows].astype(str), "\0"), strata)
    _, codes, counts = np.unique(strata, return_inverse=True, return_counts=True)
    wanted = np.maximum(np.round(counts * most / len(rows)), _LEAST_OF_CLASS)
    order = np.random.default_rng(seed).permutation(len(rows))
    order = order[np.argsort(codes[order], kind="stable")]
    # The place of each row among those of its stratum.
    turn = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    chosen = order[turn < wanted[codes[order]]]
    return SearchSample(np.sort(rows[chosen]), training)


def _share_of_labels(
    labels: NDArray[Any],
    rows: NDArray[np.intp],
    splits: NDArray[np.str_] | None,
    share: float,
    seed: int,
) -> NDArray[np.intp]:
    """Return a share of the rows, of each split and of every label in it."""
    names = np.zeros(len(rows)) if splits is None else splits[rows]
    found = []
    for name in np.unique(names):
        part = rows[names == name]
        found.append(part[label_strata(labels[part], [share, 1 - share], seed=seed) == 0])
    return np.sort(np.concatenate(found))
