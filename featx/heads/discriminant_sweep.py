"""Linear discriminant analysis for every shrinkage from one reduction of the covariance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.heads.candidates import checked_data, core_estimators
from featx.heads.discriminant import class_shares, row_shares
from featx.heads.scatter import Scale, Scatter, fold_scatters
from featx.heads.scores import both_columns
from featx.heads.shifted import ShiftedSystems
from featx.heads.sweep import Fold, HeldOut


def sweep_lda(
    X: NDArray[np.floating[Any]],
    y: NDArray[np.intp],
    folds: Sequence[Fold],
    candidates: Sequence[Mapping[str, Any]],
    *,
    seed: int = 0,
    sample_weight: NDArray[np.floating[Any]] | None = None,
) -> Iterator[HeldOut]:
    """Measure shrinkages of the head ``lda`` (see `Sweep`).

    Notes
    -----
    With S the covariance within classes and m the mean of its diagonal, the shrunk one is
    ``(1 - s) S + s m I``, which is ``1 - s`` times S plus a multiple of the identity: the systems
    of all shrinkages are `ShiftedSystems`. With fewer rows than columns they are solved among the
    rows, by Woodbury's identity. Without class weights the sums of a fold are those of all rows
    less those of its testing rows.
    """
    X, y = checked_data(X, y, folds, sample_weight, weights_refused_by="lda")
    settings = core_estimators("lda", candidates, seed=seed)
    groups: dict[str, tuple[Any, dict[int, float]]] = {}
    for number, setting in enumerate(settings):
        if setting.shrinkage != "auto":
            weight = setting.class_weight
            groups.setdefault(repr(weight), (weight, {}))[1][number] = float(setting.shrinkage)
    tall = min(len(train) for train, _ in folds) >= X.shape[1]
    scatters = fold_scatters(X, y, folds, gram=tall and repr(None) in groups)
    for fold, ((train, test), scatter) in enumerate(zip(folds, scatters, strict=True)):
        scale = scatter.scale()
        tested = scale.apply(X[test])
        for number, setting in enumerate(settings):
            if setting.shrinkage == "auto":
                fitted = setting.fit(scale.apply(X[train]), y[train])
                scores = both_columns(fitted.decision_function(tested))
                yield HeldOut(number, fold, scores, probabilities=False)
        means, counts = scatter.means(scale), scatter.counts.astype(np.intp)
        for weight, shrinkages in groups.values():
            shares = class_shares(weight, counts, np.arange(len(counts)))
            values = np.array(list(shrinkages.values()))
            if weight is None and scatter.gram is not None:
                coefs = _from_scatter(scatter, scale, means, values)
            else:
                rows = np.sqrt(row_shares(counts, shares)[y[train]])[:, None]
                deviations = scale.apply(X[train]) - means[y[train]]
                coefs = _from_rows(deviations * rows, means, values)
            for number, coef in zip(shrinkages, coefs, strict=True):
                intercept = -0.5 * np.einsum("ij,ji->i", means, coef) + np.log(shares)
                scores = tested @ coef.astype(X.dtype) + intercept.astype(X.dtype)
                yield HeldOut(number, fold, scores, probabilities=False)


def _from_scatter(
    scatter: Scatter, scale: Scale, means: NDArray[np.float64], shrinkages: NDArray[np.float64]
) -> Iterator[NDArray[np.floating[Any]]]:
    assert scatter.gram is not None
    dtype = scatter.gram.dtype
    # The sums of a class are of shifted rows; its mean takes out the same shift.
    between = (scatter.sums / np.sqrt(scatter.counts)[:, None]).astype(dtype)
    within = scatter.gram - between.T @ between
    within /= np.outer(scale.deviation, scale.deviation).astype(dtype)
    within /= dtype.type(scatter.counts[scatter.counts > 1].sum() or 1)
    yield from _solved(within, means.T, shrinkages, least=float(np.finfo(dtype).eps))


def _from_rows(
    deviations: NDArray[np.float64], means: NDArray[np.float64], shrinkages: NDArray[np.float64]
) -> Iterator[NDArray[np.floating[Any]]]:
    rows, width = deviations.shape
    spread = float(np.sum(deviations**2)) / width
    if rows >= width or spread == 0 or shrinkages.min() == 0:
        yield from _solved(deviations.T @ deviations, means.T, shrinkages, least=0.0)
        return
    systems = ShiftedSystems(deviations @ deviations.T)
    inner = systems.rotate(deviations @ means.T)
    for part in shrinkages:
        if part == 1:
            yield means.T / spread
            continue
        shift = part / (1 - part) * spread
        solved = systems.unrotate(systems.solve_rotated(inner, shift))
        yield (means.T - deviations.T @ solved) / (shift * (1 - part))


def _solved(
    covariance: NDArray[np.floating[Any]],
    means: NDArray[np.float64],
    shrinkages: NDArray[np.float64],
    *,
    least: float,
) -> Iterator[NDArray[np.floating[Any]]]:
    spread = float(np.trace(covariance)) / len(covariance)
    if spread <= least:
        # No class varies: every direction counts alike, as in the estimator.
        yield from (means for _ in shrinkages)
        return
    partial = shrinkages < 1
    shifts = shrinkages[partial] / (1 - shrinkages[partial]) * spread
    found = iter(ShiftedSystems(covariance).solve(means, shifts) if partial.any() else ())
    for part in shrinkages:
        yield next(found) / (1 - part) if part < 1 else means / spread
