"""Fit heads on more rows than memory holds: what they need comes in passes over batches."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import Normalizer, StandardScaler

from featx.exceptions import HeadError
from featx.heads.calibrated import TemperatureCalibrated, calibration_splits, fit_temperature
from featx.heads.dense import DenseClassifier
from featx.heads.dense_batches import BatchSource, require_batch
from featx.heads.table import HEADS
from featx.heads.validation import few_images_allowed

_LEAST_JUDGED = 1000
_BYTES_JUDGED = 64


def streamed_heads() -> list[str]:
    """Names of the heads that can be fitted on a stream, sorted."""
    return sorted(name for name, row in HEADS.items() if row.streamed)


def require_streamable(head: Any) -> None:
    """Refuse a head that has to see all rows at once.

    Parameters
    ----------
    head : estimator
        As `make_head` makes it.

    Raises
    ------
    HeadError
        It has to; the message names those that have not.

    Examples
    --------
    >>> from featx.heads.registry import make_head
    >>> require_streamable(make_head("ridge"))
    >>> require_streamable(make_head("knn"))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    featx.exceptions.HeadError: NearestNeighbours has to see all rows at once, ...
    """
    for step in _steps(head):
        if isinstance(step, StandardScaler | Normalizer):
            continue
        core = _core(step.estimator if _learns_labels(step) else step)
        if not _function(core, "streamed"):
            raise HeadError(
                f"{type(core).__name__} has to see all rows at once, which --max-ram (max_ram=...) "
                f"does not allow: take one of {', '.join(streamed_heads())}, or give it the memory"
            )


def fit_head_streamed(head: Any, source: BatchSource, y: Any, *, max_ram_bytes: int) -> Any:
    """Fit a head on a stream of batches.

    Parameters
    ----------
    head : estimator
        As `make_head` makes it; fitted in place.
    source : callable
        ``source(seed)`` yields, in one pass, every row once: pairs of features (b, d) and their
        row numbers (b,), in an order that the seed draws, or in any order for a seed of None.
    y : array-like of shape (n,) or (n, labels)
        Labels by row number; 0 and 1, a column a label, for heads of several labels an image.
    max_ram_bytes : int
        Bound on what fitting holds beside the source's batches and the labels.

    Returns
    -------
    head : estimator
        Fitted as ``fit`` would fit it, to rounding and its own tolerance; dense heads see their
        batches in another order. Of probabilities, the temperature comes from one fold instead of
        five, and from as many of its rows as fit.

    Raises
    ------
    HeadError
        The head cannot be fitted on a stream (see `require_streamable`), the data cannot be
        learned from, the labels are not as the head takes them, or the bound is too low for the
        head's sums.

    Examples
    --------
    >>> from featx.heads.registry import make_head
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(400, 4)).astype("f4")
    >>> y = np.where(X[:, 0] > 0, "ants", "bees")
    >>> def source(seed):
    ...     for rows in np.array_split(np.arange(400), 8):
    ...         yield X[rows], rows
    >>> head = fit_head_streamed(make_head("lda"), source, y, max_ram_bytes=1 << 20)
    >>> head.score(X, y) > 0.9
    True
    """
    require_streamable(head)
    labels = np.asarray(y)
    core = _steps(head)[-1]
    if not _learns_labels(core) and not (labels.ndim == 2 and isinstance(core, DenseClassifier)):
        _require_classes(labels)
    with few_images_allowed():
        _fit(head, _Checked(source, len(labels)), labels, max_ram_bytes)
    return head


def _require_classes(labels: NDArray[Any]) -> None:
    if labels.ndim != 1:
        raise HeadError(
            f"expected one label a row, shape (n,), received labels of shape {labels.shape}: for "
            "several labels an image, make the head with multilabel=True"
        )
    classes = np.unique(labels)
    if len(classes) < 2:
        raise HeadError(
            f"one class only: {classes.tolist()[0]!r}; a classifier needs at least two: "
            "add images of another class"
        )


def judged_rows(rows: NDArray[np.intp], classes: int, max_ram_bytes: int) -> NDArray[np.intp]:
    """Draw as many rows as a temperature can be fitted on within a bound, all if they fit.

    Parameters
    ----------
    rows : ndarray of int
    classes : int
    max_ram_bytes : int

    Returns
    -------
    drawn : ndarray of int, ascending
    """
    most = max(_LEAST_JUDGED, max_ram_bytes // (_BYTES_JUDGED * classes))
    if len(rows) <= most:
        return rows
    return np.sort(np.random.default_rng(0).choice(rows, most, replace=False))


class ChosenRows:
    """Some rows of a stream, numbered anew from 0 in their order.

    Parameters
    ----------
    source : BatchSource
    count : int
        How many rows it has.
    rows : ndarray of int, ascending
    """

    def __init__(self, source: BatchSource, count: int, rows: NDArray[np.intp]) -> None:
        self._source = source
        self._place = np.full(count, -1)
        self._place[rows] = np.arange(len(rows))

    def __call__(self, seed: Any) -> Iterator[tuple[NDArray[Any], NDArray[np.intp]]]:
        """Give one pass; see `BatchSource`."""
        for X, rows in self._source(seed):
            places = self._place[rows]
            kept = places >= 0
            if kept.all():
                yield X, places
            elif kept.any():
                yield X[kept], places[kept]


class _Checked:
    """A stream whose batches are float32 and finite."""

    def __init__(self, source: BatchSource, count: int) -> None:
        self._source, self._count = source, count

    def __call__(self, seed: Any) -> Iterator[tuple[NDArray[Any], NDArray[np.intp]]]:
        for X, rows in self._source(seed):
            yield require_batch(X, rows, self._count)


class _Transformed:
    """A stream behind a fitted transformer."""

    def __init__(self, source: BatchSource, transformer: Any) -> None:
        self._source, self._transformer = source, transformer

    def __call__(self, seed: Any) -> Iterator[tuple[NDArray[Any], NDArray[np.intp]]]:
        for X, rows in self._source(seed):
            yield self._transformer.transform(X), rows


def _steps(head: Any) -> list[Any]:
    if not isinstance(head, Pipeline):
        return [head]
    return [part for _, step in head.steps for part in _steps(step)]


def fit_core(core: Any, source: BatchSource, y: NDArray[Any], *, max_ram_bytes: int) -> Any:
    """Fit a head without what is before it, as `fit_head_streamed` fits a whole one."""
    if isinstance(core, TemperatureCalibrated):
        _fit_calibrated(core, source, y, max_ram_bytes)
    else:
        _function(core, "streamed")(core, source, y, max_ram_bytes=max_ram_bytes)
    return core


def labels_fitter(estimator: Any) -> Any:
    """Give the function that fits an estimator for all labels in the same passes, or nothing.

    It is called with the estimator, a source, the labels that vary (n, k) uint8, and
    ``max_ram_bytes``, and returns ``estimators_`` and ``temperatures_`` of `MultiLabelHead`; or
    None where the labels have to be fitted one by one.
    """
    return _function(_core(estimator), "streamed_labels")


def _core(estimator: Any) -> Any:
    return estimator.estimator if isinstance(estimator, TemperatureCalibrated) else estimator


def _learns_labels(step: Any) -> bool:
    from featx.heads.multilabel import MultiLabelHead

    return isinstance(step, MultiLabelHead)


def _function(core: Any, column: str) -> Any:
    """Give the function that a column of the table names for an estimator, or nothing."""
    for row in HEADS.values():
        module, _, name = row.estimator.rpartition(".")
        if getattr(row, column) and type(core) is getattr(import_module(module), name):
            module, _, name = getattr(row, column).rpartition(".")
            return getattr(import_module(module), name)
    return None


def _fit(head: Any, source: BatchSource, y: NDArray[Any], max_ram_bytes: int) -> None:
    from featx.heads.multilabel_streaming import fit_multilabel_streamed

    steps = _steps(head)
    for step in steps[:-1]:
        _learn(step, source, len(y))
        source = _Transformed(source, step)
    fit = fit_multilabel_streamed if _learns_labels(steps[-1]) else fit_core
    fit(steps[-1], source, y, max_ram_bytes=max_ram_bytes)


def _learn(step: Any, source: BatchSource, count: int) -> None:
    if isinstance(step, Normalizer):
        step.fit(next(iter(source(None)))[0])
        return
    step._reset()
    seen = np.zeros(count, dtype=bool)
    for X, rows in source(None):
        seen[rows] = True
        step.partial_fit(X)
    if not seen.all():
        raise HeadError(
            f"expected each of {count} labelled rows in a pass, received {int(seen.sum())}: number "
            "the rows as the labels are"
        )
    if not step.var_.any():
        raise HeadError(
            f"every column of the features is constant: all {count} rows are the same, so that "
            "nothing tells the classes apart; look at the images, or take another layer"
        )


def _fit_calibrated(
    head: TemperatureCalibrated, source: BatchSource, y: NDArray[Any], max_ram_bytes: int
) -> None:
    fit = _function(head.estimator, "streamed")
    head.classes_, codes = np.unique(y, return_inverse=True)
    head.estimator_ = fit(clone(head.estimator), source, y, max_ram_bytes=max_ram_bytes)
    head.n_features_in_ = head.estimator_.n_features_in_
    head.temperature_, head.n_folds_ = 1.0, 0
    for train, test in calibration_splits(codes, head.folds):
        held = judged_rows(test, len(head.classes_), max_ram_bytes)
        fold = fit(
            clone(head.estimator),
            ChosenRows(source, len(y), train),
            y[train],
            max_ram_bytes=max_ram_bytes,
        )
        margins = np.empty((len(held), len(head.classes_)))
        for X, places in ChosenRows(source, len(y), held)(None):
            found = fold.decision_function(X)
            margins[places] = np.column_stack([-found, found]) if found.ndim == 1 else found
        head.temperature_ = fit_temperature(margins, codes[held])
        head.n_folds_ = 1
        return
