"""What may stand between features and a head: scaling, unit length, principal components."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import HeadError

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
    """A transform, as data.

    Parameters
    ----------
    kind : {"standard", "none", "l2", "pca", "whiten"}
        Which one.
    size : int or float, optional
        Of ``pca`` and ``whiten``: number of components, or the share of the variance (below 1).
    """

    kind: str
    size: float | None = None

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


def parse_transform(text: Any) -> Transform:
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
class Components:
    """Standardisation and all principal components that some candidate asks for.

    Parameters
    ----------
    scaler, pca : estimator
        Fitted on training rows.
    """

    scaler: Any
    pca: Any

    def count(self, size: float) -> int:
        """Return how many components a size stands for, as scikit-learn's PCA counts them."""
        if size >= 1:
            return min(int(size), len(self.pca.components_))
        share = np.cumsum(self.pca.explained_variance_ratio_)
        return min(int(np.searchsorted(share, size, side="right")) + 1, len(share))

    def project(self, X: NDArray[Any]) -> NDArray[Any]:
        """Return the components of rows, shape (m, most components)."""
        projected: NDArray[Any] = self.pca.transform(self.scaler.transform(X))
        return projected


def fit_components(X: NDArray[Any], sizes: list[float]) -> Components:
    """Fit what all sizes need; smaller ones are cut from it."""
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(X)
    most = min(X.shape)
    wanted = most if min(sizes) < 1 else min(most, int(max(sizes)))
    return Components(scaler, _pca(wanted, X.shape).fit(scaler.transform(X)))


def _pca(size: float, shape: tuple[int, ...]) -> Any:
    from sklearn.decomposition import PCA

    # Both are exact and draw nothing; the covariance is the cheaper one where rows abound.
    solver = "covariance_eigh" if shape[0] > shape[1] else "full"
    return PCA(size, svd_solver=solver)


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A transform that has learnt what it needs from training rows.

    Parameters
    ----------
    transform : Transform
        Which one.
    components : Components, optional
        Of ``pca`` and ``whiten``.
    """

    transform: Transform
    components: Components | None = None

    def apply(self, X: NDArray[Any]) -> NDArray[Any]:
        """Return transformed rows."""
        if self.components is not None and self.transform.size is not None:
            return self.components.project(X)[:, : self.components.count(self.transform.size)]
        if self.transform.kind == "l2":
            from sklearn.preprocessing import normalize

            unit: NDArray[Any] = normalize(X)
            return unit
        return X

    def learnt(self) -> list[Any]:
        """Return the arrays that applying it needs."""
        if self.components is None or self.transform.size is None:
            return []
        pca = self.components.pca
        count = self.components.count(self.transform.size)
        return [self.components.scaler, pca.mean_, pca.components_[:count]]

    def head(self, estimator: Any) -> Any:
        """Return what is fitted on the transformed rows."""
        return without_scaler(estimator) if self.transform.bare else estimator


def without_scaler(estimator: Any) -> Any:
    """Return a head of `make_head` without the standardisation before it."""
    steps = getattr(estimator, "steps", None)
    if steps and len(steps) > 1 and type(steps[0][1]).__name__ == "StandardScaler":
        rest = steps[1:]
        return rest[0][1] if len(rest) == 1 else type(estimator)(rest)
    return estimator


def pipeline(transform: Transform, estimator: Any, shape: tuple[int, int]) -> Any:
    """Put a transform before a head, as one estimator that an artefact can keep."""
    if transform.kind == "standard":
        return estimator
    if transform.kind == "none":
        return without_scaler(estimator)
    from sklearn.preprocessing import Normalizer, StandardScaler

    from featx.heads.head_pipeline import HeadPipeline

    if transform.kind == "l2":
        return HeadPipeline([("l2", Normalizer()), ("head", estimator)])
    assert transform.size is not None
    size = transform.size if transform.size < 1 else min(int(transform.size), *shape)
    head = without_scaler(estimator) if transform.bare else estimator
    return HeadPipeline([("scale", StandardScaler()), ("pca", _pca(size, shape)), ("head", head)])
