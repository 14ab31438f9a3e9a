"""The rows of each fold, and the transforms that learnt from its training rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.heads.rows import Fold
from featx.selection.space import Place
from featx.selection.transforms import Components, Prepared, Transform, fit_components


@dataclass(frozen=True, slots=True, eq=False)
class FeatureBlock:
    """One matrix of features of the dataset.

    Parameters
    ----------
    backbone, tap : str
        What it is of.
    X : ndarray of shape (n, d)
        Features.
    digest : str, default ""
        What identifies its content, for resuming.
    views : tuple of ndarray of shape (n, d)
        Features of augmented views of the same images: they are trained on, never tested on.
    ms : float, optional
        Milliseconds an image of the backbone.
    bytes : int, optional
        Size of the backbone's weights.
    cost : float, default 0.0
        Which backbone is cheaper, the same on every machine.
    """

    backbone: str
    tap: str
    X: NDArray[np.floating[Any]]
    digest: str = ""
    views: tuple[NDArray[np.floating[Any]], ...] = ()
    ms: float | None = None
    bytes: int | None = None
    cost: float = 0.0

    @property
    def place(self) -> Place:
        """Backbone and tap."""
        return self.backbone, self.tap

    def take(self, rows: NDArray[np.intp]) -> NDArray[Any]:
        """Return rows of the images and then of each view; no copy where it is all of one."""
        parts = [self.X, *self.views]
        if len(rows) < len(self.X):
            parts = [part[rows] for part in parts]
        X = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return X if X.dtype in (np.float32, np.float64) else X.astype(np.float32)


@dataclass(eq=False)
class FoldData:
    """Features and classes, cut into folds.

    Parameters
    ----------
    X : ndarray of shape (n, d)
        Features, views below the images.
    codes : ndarray of shape (n,), intp
        Classes.
    folds : list of (train, test)
        Row numbers of X.
    sizes : list of float
        Sizes of all transforms with principal components that will be asked for.
    sets : ndarray of shape (k, labels), int, optional
        Where an image has several labels, a class is a set of them: which each has.
    """

    X: NDArray[Any]
    codes: NDArray[np.intp]
    folds: list[Fold]
    sizes: list[float]
    sets: NDArray[np.intp] | None = None
    _components: dict[int, Components] = field(default_factory=dict)

    def targets(self, rows: NDArray[np.intp]) -> NDArray[np.intp]:
        """Return what heads learn of rows: classes (m,), or labels (m, labels) of 0 and 1."""
        return self.codes[rows] if self.sets is None else self.sets[self.codes[rows]]

    def prepare(self, transform: Transform, fold: int) -> Prepared:
        """Return a transform that has learnt from the training rows of one fold."""
        if transform.by_row:
            return Prepared(transform)
        if fold not in self._components:
            train = self.folds[fold][0]
            self._components[fold] = fit_components(self.X[train], self.sizes)
        return Prepared(transform, self._components[fold])

    def forget_components(self) -> None:
        """Fit principal components anew, since more are asked for."""
        self._components.clear()


def fold_data(
    block: FeatureBlock,
    rows: NDArray[np.intp],
    codes: NDArray[np.intp],
    folds: Sequence[Fold],
    *,
    share: float,
    order: NDArray[np.intp],
    sizes: list[float],
    sets: NDArray[np.intp] | None = None,
) -> FoldData:
    """Cut a block into folds."""
    copies = 1 + len(block.views)
    cut: list[Fold] = []
    for train, test in folds:
        kept = train if share >= 1 else _share_of(train, codes, order, share)
        seen = np.concatenate([kept + copy * len(rows) for copy in range(copies)])
        cut.append((seen, test))
    return FoldData(block.take(rows), np.tile(codes, copies), cut, sizes, sets)


def _share_of(
    train: NDArray[np.intp], codes: NDArray[np.intp], order: NDArray[np.intp], share: float
) -> NDArray[np.intp]:
    ranked = order[np.isin(order, train)]
    kept = []
    for code in np.unique(codes[train]):
        own = ranked[codes[ranked] == code]
        kept.append(own[: max(1, round(share * len(own)))])
    return np.sort(np.concatenate(kept))
