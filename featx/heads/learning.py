"""One way to fit every head: on rows in memory or in batches, for classes or label sets."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import clone, is_regressor
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from sklearn.utils.validation import has_fit_parameter

from featx.exceptions import HeadError
from featx.heads.estimators import (
    check_labels,
    check_values,
    few_images_allowed,
    refuse_unlearnable,
    require_two_classes,
)
from featx.heads.rows import BatchSource, Doubles, Floats, Rows
from featx.heads.table import HEADS, VALUE_HEADS, HeadSpec, heads_for, learns_label_sets
from featx.heads.targets import Targets
from featx.threads import worthwhile_threads


def fit_rows(estimator: Any, rows: Rows, targets: Targets) -> Any:
    """Fit an estimator and return it: by its ``fit_rows``, the table's function, or its ``fit``."""
    with worthwhile_threads(rows.count * rows.width):
        return _fit_rows(estimator, rows, targets)


def _fit_rows(estimator: Any, rows: Rows, targets: Targets) -> Any:
    if isinstance(estimator, Pipeline):
        for _, step in estimator.steps[:-1]:
            rows = _through(step, rows, targets)
        fit_rows(estimator.steps[-1][1], rows, targets)
        return estimator
    if targets.weights is not None and not _takes_weights(estimator):
        raise HeadError(
            f"{type(estimator).__name__} takes no sample weights: leave sample_weight out, or take "
            "the head logistic, svm, ridge, nearest-mean, forest, extra-trees or dense"
        )
    if hasattr(estimator, "fit_rows"):
        return estimator.fit_rows(rows, targets)
    fitted = _fitted_by_table(estimator, rows, targets)
    if fitted is not None:
        return fitted[0]
    return estimator.fit(rows.gather(), targets.shown(), **_known_weights(estimator, targets))


def fit_labels(estimator: Any, rows: Rows, targets: Targets) -> tuple[list[Any], Doubles]:
    """Return fitted copies, one a label or one for all, and what its margins are divided by."""
    if targets.columns >= 2:
        if hasattr(estimator, "fit_labels"):
            together = estimator.fit_labels(rows, targets)
            if together is not None:
                return together[0], together[1]
        elif (fitted := _fitted_by_table(estimator, rows, targets)) is not None:
            return fitted, np.empty(0)
    columns = range(targets.columns)
    copies = [fit_rows(clone(estimator), rows, targets.label(column)) for column in columns]
    return copies, np.empty(0)


def _fitted_by_table(estimator: Any, rows: Rows, targets: Targets) -> list[Any] | None:
    """Return what the function of the table's row makes of an estimator, where there is one."""
    row = _row_of(estimator)
    if row is None or not row.fit:
        return None
    fitted: list[Any] | None = _imported(row.fit)(estimator, rows, targets)
    return fitted


def _known_weights(step: object, targets: Targets) -> dict[str, Doubles]:
    if targets.weights is None or not _takes_weights(step):
        return {}
    return {"sample_weight": targets.weights}


def fit_head_streamed(head: Any, source: BatchSource, y: ArrayLike, *, max_ram_bytes: int) -> Any:
    """Fit a head on a stream of batches, and return it."""
    require_streamable(head)
    labels = np.asarray(y)
    if is_regressor(head):
        targets = Targets.of_values(labels)
    elif learns_label_sets(head) and (labels.ndim == 2 or not _is_dense(head)):
        targets = Targets.of_labels(check_labels(labels, len(labels)))
    else:
        if labels.ndim != 1:
            raise HeadError(
                f"expected one label a row, shape (n,), received labels of shape {labels.shape}: "
                "for several labels an image, make the head with multilabel=True"
            )
        require_two_classes(np.unique(labels))
        targets = Targets.of_classes(labels)
    with few_images_allowed():
        return fit_rows(head, Rows.stream(source, len(labels), max_ram_bytes), targets)


def fit_weighted(head: Any, X: Floats, y: ArrayLike, weights: Doubles) -> None:
    """Fit a head on weighted rows: a weight of 2 counts like the row twice."""
    if is_regressor(head):
        targets = Targets.of_values(check_values(y, len(X)), weights)
    else:
        refuse_unlearnable(X, y)
        labels = np.asarray(y)
        make = Targets.of_labels if labels.ndim == 2 else Targets.of_classes
        targets = make(labels, weights)
    with few_images_allowed():
        fit_rows(head, Rows.of(X), targets)


def streamed_heads(*, regression: bool = False) -> list[str]:
    """Return the names of the heads that can be fitted on batches, sorted."""
    rows = heads_for(regression=regression)
    return sorted(name for name, row in rows.items() if row.streamed)


def require_streamable(head: object) -> None:
    """Refuse a head that has to see all rows at once."""
    *before, last = _steps(head)
    core = last
    names = streamed_heads(regression=is_regressor(last))
    while hasattr(core, "estimator"):
        core = core.estimator
    for step in before:
        if not isinstance(step, StandardScaler | Normalizer):
            core = step
    row = _row_of(core)
    if row is None or not row.streamed:
        raise HeadError(
            f"{type(core).__name__} has to see all rows at once, which --max-ram (max_ram=...) "
            f"does not allow: take one of {', '.join(names)}, or give it the memory"
        )


def _steps(head: object) -> list[object]:
    if not isinstance(head, Pipeline):
        return [head]
    return [part for _, step in head.steps for part in _steps(step)]


def _is_dense(head: object) -> bool:
    row = _row_of(_steps(head)[-1])
    return row is not None and row.name == "dense"


def _row_of(estimator: object) -> HeadSpec | None:
    """Return the row of the table for an estimator's very class."""
    for row in (*HEADS.values(), *VALUE_HEADS.values()):
        if type(estimator).__name__ == row.estimator.rpartition(".")[2] and type(
            estimator
        ) is _imported(row.estimator):
            return row
    return None


def _imported(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


def _takes_weights(estimator: object) -> bool:
    return bool(has_fit_parameter(estimator, "sample_weight"))


def _through(step: Any, rows: Rows, targets: Targets) -> Rows:
    """Fit a transformer on rows, and return the rows behind it."""
    if step is None or step == "passthrough":
        return rows
    if rows.matrix is not None:
        step.fit(rows.matrix, targets.shown(), **_known_weights(step, targets))
        return Rows.of(step.transform(rows.matrix))
    if isinstance(step, Normalizer):
        step.fit(next(iter(rows.batches()))[0])
        return rows.through(step.transform)
    if isinstance(step, Pipeline):
        for _, part in step.steps:
            rows = _through(part, rows, targets)
        return rows
    step._reset()
    seen = np.zeros(len(rows), dtype=bool)
    for X, numbers in rows.batches():
        seen[numbers] = True
        step.partial_fit(X)
    if not seen.all():
        raise HeadError(
            f"expected each of {len(rows)} labelled rows in a pass, received {int(seen.sum())}: "
            "number the rows as the labels are"
        )
    if not step.var_.any():
        raise HeadError(
            f"every column of the features is constant: all {len(rows)} rows are the same, so that "
            "nothing tells the classes apart; look at the images, or take another layer"
        )
    return rows.through(step.transform)
