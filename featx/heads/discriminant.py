"""Linear discriminant analysis with shrinkage, down to one image a class."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from numbers import Real

import numpy as np
from numpy.typing import DTypeLike, NDArray
from sklearn.utils.class_weight import compute_class_weight

from featx.heads.estimators import CLASS_WEIGHT, Allowed, LinearScoring
from featx.heads.moments import (
    Moments,
    ShiftedSystems,
    class_sums,
    fold_moments,
    require_square,
    solve_shifted,
    standardise,
)
from featx.heads.rows import Batch, Doubles, Floats, Numbers, Rows
from featx.heads.sweep import HeldOut, SweepData, swept
from featx.heads.targets import ClassWeight, Targets, both_columns

_COPIES = 4
_PENDING_ROWS = 512
_FEW = 5


class ShrinkageLDA(LinearScoring):
    """LDA whose within-class covariance is shrunk, as wide features and few images need.

    Parameters
    ----------
    shrinkage : "auto" or float in [0, 1], default="auto"
        ``"auto"`` is the Ledoit-Wolf estimate of each class; a number goes from the empirical
        covariance (0) to a multiple of the identity (1).
    class_weight : "balanced" or dict, default=None
        How often a class is expected, relative to its share of the images; ``"balanced"`` expects
        all alike. The same as scikit-learn's ``priors``, for the covariance too.

    Attributes
    ----------
    coef_ : ndarray of shape (k, d), or (1, d) for two classes
    intercept_ : ndarray of shape (k,), or (1,) for two classes
    classes_ : ndarray of shape (k,)

    Notes
    -----
    The answers are those of ``LinearDiscriminantAnalysis(solver="lsqr", shrinkage=...)`` (a test
    compares them) wherever every class has five images. That one refuses one image a class, warns
    for a single class with one, and at two images a class fell to an accuracy of 0.12 where 0.21
    is to be had (MobileNetV2 features of CIFAR-10, 10 classes): its estimate is made class by
    class, and two images say nothing about 1,280 variances. So the classes with fewer than five
    images pool their deviations from their own means into one estimate, and where no class has
    two images the covariance is the identity, which makes it the nearest class mean. It also
    solves by Cholesky where scikit-learn takes a singular value decomposition.

    Ledoit, Wolf: "A well-conditioned estimator for large-dimensional covariance matrices",
    Journal of Multivariate Analysis 88 (2004), 365-411.

    Examples
    --------
    >>> head = ShrinkageLDA().fit([[0.0, 1.0], [1.0, 0.0]], ["ants", "bees"])
    >>> head.predict([[0.1, 0.9]]).tolist()
    ['ants']
    """

    # Models saved before it existed have none of their own.
    class_weight: ClassWeight = None
    _allowed = (
        CLASS_WEIGHT,
        Allowed(
            "shrinkage",
            '"auto" or a number from 0 to 1',
            'leave it at "auto"',
            ("auto",),
            Real,
            0,
            1,
        ),
    )

    def __init__(
        self, *, shrinkage: str | float = "auto", class_weight: ClassWeight = None
    ) -> None:
        self.shrinkage = shrinkage
        self.class_weight = class_weight

    def fit_rows(self, rows: Rows, targets: Targets) -> ShrinkageLDA:
        """Fit on rows in memory or in batches: a pass for means, and more for covariances."""
        self._validate_params()
        require_square(rows, _COPIES)
        codes = targets.values.astype(np.intp)
        counts = np.bincount(codes)
        shares = class_shares(self.class_weight, counts, targets.names)
        dtype = np.float32 if rows.matrix is None else rows.matrix.dtype
        if self.shrinkage == "auto":
            means, covariance = _estimated(rows, codes, counts, row_shares(counts, shares))
            coef = solve_shifted(covariance, means.T, [0.0], np.float64)[0]
        else:
            means = Moments.of(rows, replace(targets, weights=None), gram=False).means()
            within = replace(targets, factors=row_shares(counts, shares))
            (coef,) = _shrunk(rows, within, means, np.array([float(self.shrinkage)]))
        self._take(coef, means, shares, dtype)
        self.classes_, self.n_features_in_ = targets.names, rows.width
        return self

    def _take(self, columns: Floats, means: Doubles, shares: Doubles, dtype: DTypeLike) -> None:
        coef, intercept = columns.T, _constants(columns, means, shares)
        if len(means) == 2:
            coef, intercept = coef[1:] - coef[:1], intercept[1:] - intercept[:1]
        self.coef_ = np.ascontiguousarray(coef, dtype)
        self.intercept_ = intercept.astype(dtype)


def class_shares(
    class_weight: ClassWeight, counts: Numbers, classes: NDArray[np.generic]
) -> Doubles:
    """Return how often each class is expected."""
    weighted = counts.astype(np.float64)
    if class_weight is not None:
        labels = np.repeat(classes, counts)
        weighted *= compute_class_weight(class_weight, classes=classes, y=labels)
    return np.asarray(weighted / weighted.sum())


def row_shares(counts: Numbers, shares: Doubles) -> Doubles:
    """Return what one image of each class weighs in the covariance within classes."""
    weights = np.zeros(len(counts))
    for group in covariance_groups(counts):
        weights[group] = shares[group].sum() / counts[group].sum()
    total = float(counts @ weights)
    return weights / total if total else weights


def covariance_groups(counts: Numbers) -> list[Numbers]:
    """Put the classes that are too small for an estimate of their own together."""
    groups = [np.array([k]) for k in np.flatnonzero(counts >= _FEW)]
    few = np.flatnonzero((counts >= 2) & (counts < _FEW))
    return [*groups, few] if few.size else groups


def _constants(columns: Floats, means: Doubles, shares: Doubles) -> Doubles:
    """Return the intercept of each class."""
    return np.asarray(-0.5 * np.einsum("ij,ji->i", means, columns) + np.log(shares))


def _shrunk(rows: Rows, targets: Targets, means: Doubles, shrinkages: Doubles) -> Iterator[Floats]:
    """Yield the coefficients (d, k) of each shrinkage, rows weighing what ``targets`` say.

    Notes
    -----
    With S the covariance within classes and m the mean of its diagonal, the shrunk one is
    ``(1 - s) S + s m I``, which is ``1 - s`` times S plus a multiple of the identity: one reduction
    solves for all shrinkages. With fewer rows than columns they are solved among the rows, by
    Woodbury's identity.
    """
    codes = targets.values.astype(np.intp)

    def deviations() -> Iterator[Batch]:
        for X, numbers in rows.batches():
            yield X - means[codes[numbers]].astype(X.dtype), numbers

    if rows.matrix is not None and rows.count < rows.width and shrinkages.min() > 0:
        weights = targets.counted(np.arange(rows.count))
        assert weights is not None
        matrix = rows.matrix - means[codes]
        yield from _among_rows(matrix * np.sqrt(weights)[:, None], means, shrinkages)
        return
    moments = Moments.over(deviations(), targets, gram=True, shift=np.zeros(rows.width))
    assert moments.gram is not None
    yield from _solved(moments.gram, means, shrinkages, moments.dtype, least=0.0)


def _among_rows(deviations: Doubles, means: Doubles, shrinkages: Doubles) -> Iterator[Floats]:
    spread = float(np.sum(deviations**2)) / deviations.shape[1]
    if spread == 0:
        yield from (means.T for _ in shrinkages)
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
    covariance: Doubles, means: Doubles, shrinkages: Doubles, dtype: DTypeLike, *, least: float
) -> Iterator[Floats]:
    spread = float(np.trace(covariance)) / len(covariance)
    if spread <= least:
        # No class varies: every direction counts alike.
        yield from (means.T for _ in shrinkages)
        return
    partial = shrinkages < 1
    shifts = shrinkages[partial] / (1 - shrinkages[partial]) * spread
    solutions = iter(solve_shifted(covariance, means.T, shifts, dtype) if partial.any() else ())
    for part in shrinkages:
        yield next(solutions) / (1 - part) if part < 1 else means.T / spread


def _estimated(
    rows: Rows, codes: Numbers, counts: Numbers, of_row: Doubles
) -> tuple[Doubles, Doubles]:
    """Return the means (k, d) of classes, and the Ledoit-Wolf estimate of their covariance."""
    width = rows.width
    means, squares = _means_and_squares(rows, codes, counts)
    groups = covariance_groups(counts)
    covariance = np.zeros((width, width))
    at_once = 1
    if rows.max_ram_bytes is not None:
        each = 8 * width**2 + 4 * width * 2 * _PENDING_ROWS
        at_once = max(1, (rows.max_ram_bytes // 2 - 8 * width**2) // each)
    for start in range(0, len(groups), at_once):
        some = [_Group(group, counts, squares) for group in groups[start : start + at_once]]
        group_of = np.full(len(means), -1)
        for number, group in enumerate(some):
            group_of[group.classes] = number
        chosen = np.flatnonzero(group_of[codes] >= 0)
        for X, numbers in rows.take(chosen).batches():
            classes = codes[chosen[numbers]]
            for number, group in enumerate(some):
                inside = np.flatnonzero(group_of[classes] == number)
                if len(inside):
                    group.add(X[inside] - means[classes[inside]].astype(X.dtype))
        for group in some:
            part = group.covariance()
            part *= of_row[group.classes[0]]
            covariance += part
    return means, covariance if covariance.any() else np.eye(width)


def _means_and_squares(rows: Rows, codes: Numbers, counts: Numbers) -> tuple[Doubles, Doubles]:
    """Return the mean (k, d) of each class, and its sum of squared deviations (k, d)."""
    sums, squares = np.zeros((2, len(counts), rows.width))
    shift: Floats | None = None
    for X, numbers in rows.batches():
        if shift is None:
            shift = X.mean(axis=0, dtype=np.float64).astype(X.dtype)
        near = X - shift
        sums += class_sums(near, codes[numbers], len(counts))
        near *= near
        squares += class_sums(near, codes[numbers], len(counts))
    assert shift is not None
    centres = sums / counts[:, None]
    return centres + shift, np.maximum(squares - counts[:, None] * centres**2, 0)


class _Group:
    """The deviations of some classes: sums of their outer products, and of their lengths ** 4."""

    def __init__(self, classes: Numbers, counts: Numbers, squares: Doubles) -> None:
        self.classes, self.rows = classes, int(counts[classes].sum())
        # What deviations are divided by before they are shrunk.
        self.spread = np.sqrt(squares[classes].sum(axis=0) / self.rows)
        # What rounding leaves of a column that does not vary is no spread.
        self.spread[self.spread <= 1e-6 * self.spread.max(initial=0.0)] = 1.0
        self.gram, self.fourth = np.zeros((len(self.spread), len(self.spread))), 0.0
        self._pending: list[Floats] = []

    def add(self, deviations: Floats) -> None:
        """Take rows; few are put together, since a product costs a whole matrix."""
        self._pending.append(deviations / self.spread.astype(deviations.dtype))
        if sum(map(len, self._pending)) >= _PENDING_ROWS:
            self._multiply()

    def _multiply(self) -> None:
        if self._pending:
            rows = np.concatenate(self._pending)
            self.gram += rows.T @ rows
            lengths = np.einsum("ij,ij->i", rows, rows, dtype=np.float64)
            self.fourth += float(lengths @ lengths)
            self._pending = []

    def covariance(self) -> Doubles:
        """Return the shrunk covariance times the number of rows, in the place of the sums.

        Notes
        -----
        Ledoit, Wolf (2004), as scikit-learn's ``ledoit_wolf(assume_centered=True)`` has it.
        """
        self._multiply()
        if not self.gram.any():
            return self.gram
        width = len(self.gram)
        self.gram /= self.rows
        diagonal = self.gram.flat[:: width + 1]
        level = float(np.sum(diagonal)) / width
        norm = float(np.einsum("ij,ij->", self.gram, self.gram))
        noise = (self.fourth / self.rows - norm) / (width * self.rows)
        distance = norm / width - level**2
        noise = min(noise, distance)
        share = noise / distance if width > 1 and noise > 0 else 0.0
        self.gram *= 1 - share
        self.gram.flat[:: width + 1] += share * level
        self.gram *= self.rows * self.spread
        self.gram *= self.spread[:, None]
        return self.gram


@swept("lda")
def sweep_lda(data: SweepData) -> Iterator[HeldOut]:
    """Measure shrinkages of the head ``lda`` (see `Sweep`).

    Without class weights the sums of a fold are those of all rows less those of its testing rows.
    """
    groups: dict[str, tuple[ClassWeight, dict[int, float]]] = {}
    for number, setting in enumerate(data.settings):
        if setting.shrinkage != "auto":
            weight = setting.class_weight
            groups.setdefault(repr(weight), (weight, {}))[1][number] = float(setting.shrinkage)
    gram = data.least_trained >= data.X.shape[1] and repr(None) in groups
    parts = fold_moments(data.X, data.targets, data.folds, gram=gram)
    for fold, ((train, test), raw) in enumerate(zip(data.folds, parts, strict=True)):
        scale = raw.scale()
        moments, tested = raw.standardised(scale), standardise(data.X[test], scale)
        means, counts = moments.means(), raw.counts.astype(np.intp)
        learnt = data.targets.take(train)
        for number, setting in enumerate(data.settings):
            if setting.shrinkage == "auto":
                trained = Rows.of(standardise(data.X[train], scale))
                scores = setting.fit_rows(trained, learnt).decision_function(tested)
                yield HeldOut(number, fold, both_columns(scores), probabilities=False)
        for weight, shrinkages in groups.values():
            shares = class_shares(weight, counts, data.targets.names)
            values = np.array(list(shrinkages.values()))
            if weight is None and gram:
                coefs = _from_moments(moments, values)
            else:
                trained = Rows.of(standardise(data.X[train], scale))
                within = replace(learnt, factors=row_shares(counts, shares))
                coefs = _shrunk(trained, within, means, values)
            for number, coef in zip(shrinkages, coefs, strict=True):
                intercept = _constants(coef, means, shares).astype(tested.dtype)
                scores = tested @ coef.astype(tested.dtype) + intercept
                yield HeldOut(number, fold, scores, probabilities=False)


def weights_of_sums(
    moments: Moments, shrinkages: Doubles
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Yield weights (d, k) and constants (k,) of features as they are, for each shrinkage.

    A class without a row gets the share of half a row and no weights.
    """
    scale, counts = moments.scale(), moments.counts
    present = np.flatnonzero(counts)
    some = replace(moments, counts=counts[present], sums=moments.sums[present]).standardised(scale)
    shares = np.maximum(counts, 0.5) / counts.sum()
    for coef in _from_moments(some, shrinkages):
        weights, constants = np.zeros((len(scale.center), len(counts))), np.log(shares)
        weights[:, present] = coef / scale.scale[:, None]
        constants[present] = _constants(coef, some.means(), shares[present])
        constants -= scale.center @ weights
        yield weights.astype(np.float32), constants.astype(np.float32)


def _from_moments(moments: Moments, shrinkages: Doubles) -> Iterator[Floats]:
    assert moments.gram is not None
    # The sums of a class are of shifted rows; its mean takes out the same shift.
    between = moments.sums / np.sqrt(moments.counts)[:, None]
    within = moments.gram - between.T @ between
    within /= moments.counts[moments.counts > 1].sum() or 1
    least = float(np.finfo(np.dtype(moments.dtype)).eps)
    yield from _solved(within, moments.means(), shrinkages, moments.dtype, least=least)
