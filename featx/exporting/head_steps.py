"""From a fitted head to the steps of arithmetic that it comes down to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import ExportError
from featx.exporting.steps import (
    Linear,
    Rectify,
    Scale,
    Sigmoid,
    Softmax,
    Step,
    UnitLength,
    apply_steps,
    joined,
)

EXPORTABLE_HEADS = ("dense", "lda", "logistic", "nearest-mean", "ridge", "svm")
"""Names of heads that can be exported."""

_CHECKED_ROWS = 64
_LARGEST_DIFFERENCE = 1e-4
# The logit of a probability that float32 cannot tell from 0 or 1.
_CERTAIN = 100.0


def head_steps(head: Any) -> list[Step]:
    """Return a fitted head as steps from features to probabilities.

    Parameters
    ----------
    head : estimator
        Fitted: a named head of featx, or a pipeline of what is listed in the tables below.

    Returns
    -------
    steps : list of Step
        Compared with the head's own ``predict_proba`` on drawn rows before they are returned.

    Raises
    ------
    ExportError
        If the head is none that can be exported, or the steps do not give its probabilities.

    Examples
    --------
    >>> from featx.heads.registry import make_head
    >>> head = make_head("logistic").fit([[0.0], [1.0], [2.0]], ["ant", "bee", "bee"])
    >>> [type(step).__name__ for step in head_steps(head)]
    ['Linear', 'Softmax']
    """
    steps = joined(_translate(head))
    _require_equal(head, steps)
    return steps


def _translate(estimator: Any) -> list[Step]:
    if _kind(estimator) in ("Pipeline", "HeadPipeline"):
        *before, last = (step for _, step in estimator.steps if step not in (None, "passthrough"))
        return [step for part in before for step in _transform(part)] + _translate(last)
    rule = _HEADS.get(_kind(estimator))
    if rule is None:
        raise ExportError(
            f"a model with the head {_kind(estimator) or type(estimator).__name__} cannot be "
            f"exported: expected one of {', '.join(EXPORTABLE_HEADS)}, or a linear classifier of "
            "scikit-learn. Train one of these, or serve the .featx file with featx itself"
        )
    return rule(estimator)


def _kind(estimator: Any) -> str:
    """Return the name of a class of scikit-learn or featx, nothing for anybody else's.

    A class derived from one of these may do anything in its methods.
    """
    cls = type(estimator)
    return cls.__name__ if cls.__module__.split(".")[0] in ("sklearn", "featx") else ""


def _transform(transformer: Any) -> list[Step]:
    rule = _TRANSFORMS.get(_kind(transformer))
    if rule is None:
        raise ExportError(
            f"a head behind {type(transformer).__name__} cannot be exported: expected "
            f"{', '.join(_TRANSFORMS)} before it"
        )
    return rule(transformer)


def _scaler(scaler: Any) -> list[Step]:
    width = scaler.n_features_in_
    factor = np.ones(width) if scaler.scale_ is None else 1 / np.asarray(scaler.scale_, np.float64)
    mean = np.asarray(scaler.mean_, np.float64) if scaler.with_mean else np.zeros(width)
    return [Scale(factor, -mean * factor)]


def _components(pca: Any) -> list[Step]:
    kernel = np.asarray(pca.components_, np.float64).T
    if pca.whiten:
        spread = np.sqrt(np.asarray(pca.explained_variance_, np.float64))
        kernel = kernel / np.maximum(spread, np.finfo(pca.explained_variance_.dtype).eps)
    return [Linear(kernel, -np.asarray(pca.mean_, np.float64) @ kernel)]


def _normalizer(normalizer: Any) -> list[Step]:
    if normalizer.norm != "l2":
        raise ExportError(
            f"a Normalizer with norm={normalizer.norm!r} cannot be exported: expected 'l2'"
        )
    return [UnitLength()]


def _linear(estimator: Any) -> Linear:
    """Return the margins of a linear classifier, one column where there are two classes."""
    coef = np.atleast_2d(np.asarray(estimator.coef_, np.float64))
    bias = np.broadcast_to(np.asarray(estimator.intercept_, np.float64), len(coef))
    return Linear(coef.T, bias)


def _pair(margins: Linear, low: float) -> Linear:
    """Make of one margin of two classes the two scores that a softmax takes."""
    if margins.kernel.shape[1] != 1:
        return margins
    signs = np.array([low, 1.0])
    return Linear(margins.kernel * signs, margins.bias * signs)


def _softmax_of_scores(estimator: Any) -> list[Step]:
    return [_pair(_linear(estimator), 0.0), Softmax()]


def _calibrated(head: Any) -> list[Step]:
    inner = head.estimator_
    if _kind(inner) not in _MARGINS:
        raise ExportError(
            f"a model with the head {_kind(inner) or type(inner).__name__} cannot be exported: "
            f"expected one of {', '.join(EXPORTABLE_HEADS)}. Train one of these, or serve the "
            ".featx file with featx itself"
        )
    margins = _pair(_linear(inner), -1.0)
    cooled = 1 / float(head.temperature_)
    return [Linear(margins.kernel * cooled, margins.bias * cooled), Softmax()]


def _nearest_mean(head: Any) -> list[Step]:
    means, cooled = np.asarray(head.means_, np.float64), 1 / float(head.temperature_)
    if head.metric == "cosine":
        return [UnitLength(), Linear(means.T * cooled, np.zeros(len(means))), Softmax()]
    halves = -0.5 * np.einsum("ij,ij->i", means, means)
    return [Linear(means.T * cooled, halves * cooled), Softmax()]


def _dense(head: Any) -> list[Step]:
    steps: list[Step] = []
    for kernel, bias in head.weights_:
        steps += [Linear(kernel, bias), Rectify()]
    steps[-1] = Sigmoid() if head.multilabel_ else Softmax()
    return steps


def _multilabel(head: Any) -> list[Step]:
    """Put the heads of all labels side by side; one that does not vary is certain."""
    varying, temperatures = head.varying_, head.temperatures_
    if temperatures.size:
        shared = _linear(head.estimators_[0])
        before: list[Step] = []
        columns = [
            (shared.kernel[:, c] * 2 / t, shared.bias[c] * 2 / t)
            for c, t in enumerate(temperatures)
        ]
    elif len(head.estimators_) == len(varying):
        parts = [joined(_translate(estimator)) for estimator in head.estimators_]
        before = parts[0][:-2] if parts else []
        columns = [_log_odds(part, before) for part in parts]
    else:
        raise ExportError(
            "a multi-label model whose labels share one nearest-neighbours head cannot be "
            f"exported: expected one of {', '.join(EXPORTABLE_HEADS)}"
        )
    kernel = np.zeros((head.n_features_in_, len(head.shares_)))
    bias = np.where(head.shares_ > 0.5, _CERTAIN, -_CERTAIN)
    for label, (weights, offset) in zip(varying, columns, strict=True):
        kernel[:, label], bias[label] = weights, offset
    return [*before, Linear(kernel, bias), Sigmoid()]


def _log_odds(part: list[Step], before: list[Step]) -> tuple[NDArray[np.float64], float]:
    """Return the margin of having a label over not having it."""
    *first, linear, last = part
    alike = all(isinstance(step, UnitLength) for step in [*first, *before])
    if not (isinstance(linear, Linear) and isinstance(last, Softmax)) or not alike:
        raise ExportError(
            "a model of several labels with a dense network for each label cannot be exported: "
            "head='dense' is one network for all labels, which can; so can logistic, svm, ridge, "
            "lda and nearest-mean"
        )
    kernel, bias = linear.kernel.astype(np.float64), linear.bias.astype(np.float64)
    return kernel[:, 1] - kernel[:, 0], float(bias[1] - bias[0])


_TRANSFORMS: dict[str, Callable[[Any], list[Step]]] = {
    "StandardScaler": _scaler,
    "PCA": _components,
    "Normalizer": _normalizer,
}
_MARGINS = (
    "LinearDiscriminantAnalysis",
    "LinearSVC",
    "LogisticRegression",
    "Perceptron",
    "RidgeClassifier",
    "RidgeClassifierCV",
    "SGDClassifier",
    "ShrinkageLDA",
)
_HEADS: dict[str, Callable[[Any], list[Step]]] = {
    "DenseClassifier": _dense,
    "LinearDiscriminantAnalysis": _softmax_of_scores,
    "LogisticPathCV": _softmax_of_scores,
    "LogisticRegression": _softmax_of_scores,
    "LogisticRegressionCV": _softmax_of_scores,
    "MultiLabelHead": _multilabel,
    "NearestMean": _nearest_mean,
    "ShrinkageLDA": _softmax_of_scores,
    "TemperatureCalibrated": _calibrated,
}


def _require_equal(head: Any, steps: list[Step]) -> None:
    """Compare with the head on rows like those that it was trained on, as its scaler knows them."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((_CHECKED_ROWS, int(head.n_features_in_)))
    first = head.steps[0][1] if hasattr(head, "steps") else head
    if _kind(first) == "StandardScaler":
        X = first.inverse_transform(X)
    expected = np.asarray(head.predict_proba(X), np.float64)
    found = apply_steps(X, steps)
    worst = float(np.abs(found - expected).max()) if found.shape == expected.shape else np.inf
    if not worst <= _LARGEST_DIFFERENCE:
        raise ExportError(
            f"the head {type(head).__name__} has probabilities of another form than expected: its "
            f"layers differ from it by {worst:.1e}, at most {_LARGEST_DIFFERENCE:.0e} is allowed. "
            f"Use one of {', '.join(EXPORTABLE_HEADS)}"
        )
