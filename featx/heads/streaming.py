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
from featx.heads.rows import BatchSource, require_batch
from featx.heads.table import HEADS
from featx.heads.validation import few_images_allowed

_LEAST_JUDGED = 1000
_BYTES_JUDGED = 64


def streamed_heads() -> list[str]:
    """Names of the heads that can be fitted on a stream, sorted."""
    return sorted(name for name, row in HEADS.items() if row.streamed)


def require_streamable(head: Any) -> None:
    """Refuse a head that has to see all rows at once."""
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
    """Fit a head on a stream of batches."""
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
    """Draw as many rows as a temperature can be fitted on within a bound, all if they fit."""
    most = max(_LEAST_JUDGED, max_ram_bytes // (_BYTES_JUDGED * classes))
    if len(rows) <= most:
        return rows
    return np.sort(np.random.default_rng(0).choice(rows, most, replace=False))


class ChosenRows:
    """Some rows of a stream, numbered anew from 0 in their order."""

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
    """Give the function that fits an estimator for all labels in the same passes, or nothing."""
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
