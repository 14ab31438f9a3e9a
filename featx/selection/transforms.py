"""What may stand between features and a head: scaling, unit length, principal components."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import HeadError
from featx.heads.rows import Floats

Estimator: TypeAlias = Any
"""What has scikit-learn's ``fit``; there is no type that all of them share."""

_KINDS = {
    "standard": "the head as it is, most of which standardise",
    "none": "the head without standardisation",
    "l2": "rows of unit length, then the head as it is",
    "pca": "standardised, then principal components, as in pca:64 or pca:0.95",
    "whiten": "the same with components of unit variance, as in whiten:64",
}
_SIZED = ("pca", "whiten")


@dataclass(frozen=True, slots=True)
class Transform:
    """A transform, as data."""

    kind: str
    size: float | None = None  # number of components, or the share of the variance (below 1)

    def __str__(self) -> str:
        return self.kind if self.size is None else f"{self.kind}:{self.size}"

    @property
    def bare(self) -> bool:
        """Whether the head behind it goes without its own standardisation."""
        return self.kind in ("none", "pca")

    @property
    def by_row(self) -> bool:
        """Whether it learns nothing from the rows, so that one matrix serves all folds."""
        return self.kind not in _SIZED

    def head(self, estimator: Estimator) -> Estimator:
        """Return what is fitted on the transformed rows."""
        steps = getattr(estimator, "steps", None)
        if not (self.bare and steps and len(steps) > 1):
            return estimator
        if type(steps[0][1]).__name__ != "StandardScaler":
            return estimator
        rest = steps[1:]
        return rest[0][1] if len(rest) == 1 else type(estimator)(rest)


def parse_transform(text: object) -> Transform:
    """Read a transform."""
    kind, colon, size = str(text).strip().partition(":")
    if kind not in _KINDS:
        near = difflib.get_close_matches(kind.lower(), _KINDS, n=1, cutoff=0.5)
        meant = f"did you mean {near[0]!r}? " if near else ""
        raise HeadError(
            f"unknown transform {text!r}: {meant}Known: "
            + ", ".join(f"{name} ({what})" for name, what in _KINDS.items())
        )
    if (kind in _SIZED) != bool(colon):
        raise HeadError(
            f"{kind!r} takes the number of components, or the share of the variance that they are "
            f"to hold: write '{kind}:64' or '{kind}:0.95'"
            if kind in _SIZED
            else f"{kind!r} takes no size, received {text!r}: leave {':' + size!r} out"
        )
    if not colon:
        return Transform(kind)
    try:
        number = int(size) if size.strip().isdigit() else float(size)
    except ValueError:
        number = -1
    if not (isinstance(number, int) and number >= 1) and not 0 < number < 1:
        raise HeadError(
            f"expected a number of components of 1 or more, or a share of the variance between 0 "
            f"and 1, received {text!r}: write '{kind}:64' or '{kind}:0.95'"
        )
    return Transform(kind, number)


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A transform with what it has learnt from training rows."""

    transform: Transform
    scaler: Estimator = None
    pca: Estimator = None

    @property
    def count(self) -> int:
        """How many components the size stands for, as scikit-learn's PCA counts them."""
        size = self.transform.size or 0
        if size >= 1:
            return min(int(size), len(self.pca.components_))
        share = np.cumsum(self.pca.explained_variance_ratio_)
        return min(int(np.searchsorted(share, size, side="right")) + 1, len(share))

    def apply(self, X: Floats) -> Floats:
        """Return transformed rows."""
        if self.pca is not None:
            projected: Floats = self.pca.transform(self.scaler.transform(X))
            return projected[:, : self.count]
        if self.transform.kind == "l2":
            from sklearn.preprocessing import normalize

            unit: Floats = normalize(X)
            return unit
        return X

    def learnt(self) -> list[object]:
        """Return the arrays that applying it needs."""
        if self.pca is None:
            return []
        return [self.scaler, self.pca.mean_, self.pca.components_[: self.count]]


def fit_components(X: NDArray[np.floating], sizes: list[float]) -> tuple[Estimator, Estimator]:
    """Fit a scaler and the components that all sizes need; smaller ones are cut from them."""
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(X)
    most = min(X.shape)
    needed = most if min(sizes) < 1 else min(most, int(max(sizes)))
    return scaler, _pca(needed, X.shape).fit(scaler.transform(X))


def _pca(size: float, shape: tuple[int, ...]) -> Estimator:
    from sklearn.decomposition import PCA

    # Both are exact and draw nothing; the covariance is the cheaper one where rows abound.
    solver = "covariance_eigh" if shape[0] > shape[1] else "full"
    return PCA(size, svd_solver=solver)


def pipeline(transform: Transform, estimator: Estimator, shape: tuple[int, ...]) -> Estimator:
    """Put a transform before a head, as one estimator that a model file can hold."""
    head = transform.head(estimator)
    if transform.kind in ("standard", "none"):
        return head
    from sklearn.preprocessing import Normalizer, StandardScaler

    from featx.heads.head_pipeline import HeadPipeline

    if transform.kind == "l2":
        return HeadPipeline([("l2", Normalizer()), ("head", head)])
    assert transform.size is not None
    size = transform.size if transform.size < 1 else min(int(transform.size), *shape)
    return HeadPipeline([("scale", StandardScaler()), ("pca", _pca(size, shape)), ("head", head)])
