"""Heads of layers and lines in NumPy, made from an artefact's files without scikit-learn.

Importing scikit-learn and skops takes longer than everything else that predicting one image does.
What is read here is what `featx.heads.storage.load_head` reads, under the same rules and with the
same answers; a head that is none of these is left to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.heads.dense_storage import ARRAYS, DESCRIPTION, read_layers
from featx.heads.network import logits
from featx.heads.skops_contents import check_head, read_stored

Rows = NDArray[Any]
Step = Callable[[Rows], Rows]
State = Mapping[str, Any]


class QuickHead:
    """A head that answers as the one it was saved from, to 1e-6.

    Parameters
    ----------
    classes : ndarray of shape (k,)
        Labels.
    width : int
        Number of features.
    steps : sequence of callable
        From features of shape (n, d) to probabilities of shape (n, k).
    """

    def __init__(self, classes: NDArray[Any], width: int, steps: list[Step]) -> None:
        self.classes_ = classes
        self.n_features_in_ = width
        self._steps = steps

    def predict_proba(self, X: Rows) -> NDArray[np.floating[Any]]:
        """Return the probability of each class, shape (n, k)."""
        values = np.asarray(X)
        for step in self._steps:
            values = step(values)
        return values


class _Other(Exception):  # noqa: N818 (it is no error: somebody else reads the head)
    """The head is none of those that are read here."""


def quick_head(files: Mapping[str, bytes]) -> QuickHead | None:
    """Make a head from the files of an artefact, or return None where `load_head` has to.

    Parameters
    ----------
    files : mapping of str to bytes
        As `featx.heads.storage.dump_head` gave them.

    Examples
    --------
    >>> from featx.heads.registry import make_head
    >>> from featx.heads.storage import dump_head
    >>> X, y = [[0.0, 1.0], [1.0, 0.0]], ["ants", "bees"]
    >>> head = make_head("logistic").fit(X, y)
    >>> np.allclose(quick_head(dump_head(head)).predict_proba(X), head.predict_proba(X))
    True
    >>> quick_head(dump_head(make_head("knn").fit(X, y))) is None
    True
    """
    try:
        if "head.skops" not in files:
            return _dense(files[DESCRIPTION], files[ARRAYS])
        return _from_skops(files["head.skops"])
    # Whatever is wrong with the file is for `load_head` to say.
    except Exception:
        return None


def _dense(description: bytes, arrays: bytes) -> QuickHead:
    said, classes, layers = read_layers(description, arrays)
    if said.get("multilabel"):
        raise _Other
    steps: list[Step] = []
    if said["scaler"] is not None:
        mean, scale = (
            None if said["scaler"][name] is None else np.array(said["scaler"][name])
            for name in ("mean_", "scale_")
        )
        steps.append(_scaling(mean, scale))
    steps.append(lambda X: _softmax(logits(np.asarray(X, np.float32), layers)))
    return QuickHead(classes, layers[0][0].shape[0], steps)


def _from_skops(data: bytes) -> QuickHead:
    head = read_stored(data)
    steps = [head]
    if head.type == "featx.heads.head_pipeline.HeadPipeline":
        steps = [step for _, step in head.state["steps"]]
    *before, last = steps
    # Before the rest: the arrays of other heads are for `load_head` to look at.
    transforms = [_TRANSFORMERS[step.type] for step in before]
    classifier = _CLASSIFIERS[last.type]
    check_head(head)
    made = [transform(step.state) for transform, step in zip(transforms, before, strict=True)]
    return QuickHead(
        last.state["classes_"],
        int(steps[0].state["n_features_in_"]),
        [*made, classifier(last.state)],
    )


def _scaling(mean: NDArray[Any] | None, scale: NDArray[Any] | None) -> Step:
    def apply(X: Rows) -> Rows:
        scaled = np.array(X)
        if mean is not None:
            scaled -= mean
        if scale is not None:
            scaled /= scale
        return scaled

    return apply


def _standard(state: State) -> Step:
    return _scaling(
        state["mean_"] if state["with_mean"] else None,
        state["scale_"] if state["with_std"] else None,
    )


def _unit_length(state: State) -> Step:
    if state["norm"] != "l2":
        raise _Other
    return lambda X: X / _lengths(X)[:, None]


def _components(state: State) -> Step:
    if state["whiten"]:
        raise _Other
    mean, components = state["mean_"], state["components_"]
    return lambda X: (X - mean) @ components.T


def _line(state: State) -> Step:
    """Return scores of shape (n, k), of two classes the one line and its negative."""
    coef, intercept = np.atleast_2d(state["coef_"]), state["intercept_"]

    def scores(X: Rows) -> Rows:
        found = X @ coef.T + intercept
        return np.column_stack([-found, found]) if found.shape[1] == 1 else found

    return scores


def _logistic(state: State) -> Step:
    if state["solver"] == "liblinear":
        raise _Other
    scores = _line(state)
    # A sigmoid of the line is the softmax of half of it and its negative.
    shrink = 0.5 if len(state["classes_"]) == 2 else 1.0
    return lambda X: _softmax(shrink * scores(X))


def _calibrated(state: State) -> Step:
    inner, temperature = state["estimator_"], state["temperature_"]
    if inner.type not in _LINES:
        raise _Other
    scores = _line(inner.state)
    return lambda X: _softmax(scores(X) / temperature)


def _nearest_mean(state: State) -> Step:
    means, temperature = state["means_"], state["temperature_"]
    cosine = state["metric"] == "cosine"

    def proba(X: Rows) -> Rows:
        products = X @ means.T
        if cosine:
            products /= _lengths(X)[:, None]
        else:
            products -= 0.5 * np.einsum("ij,ij->i", means, means)
        return _softmax(products / temperature)

    return proba


def _lengths(X: Rows) -> Rows:
    lengths: Rows = np.sqrt(np.einsum("ij,ij->i", X, X))
    lengths[lengths == 0] = 1
    return lengths


def _softmax(scores: Rows) -> Rows:
    powers: Rows = np.exp(scores - scores.max(axis=1, keepdims=True))
    powers /= powers.sum(axis=1, keepdims=True)
    return powers


_TRANSFORMERS: Mapping[str, Callable[[State], Step]] = {
    "sklearn.preprocessing._data.StandardScaler": _standard,
    "sklearn.preprocessing._data.Normalizer": _unit_length,
    "sklearn.decomposition._pca.PCA": _components,
}
_LINES = frozenset(
    (
        "sklearn.linear_model._ridge.RidgeClassifier",
        "sklearn.svm._classes.LinearSVC",
        "featx.heads.discriminant.ShrinkageLDA",
    )
)
_CLASSIFIERS: Mapping[str, Callable[[State], Step]] = {
    "sklearn.linear_model._logistic.LogisticRegression": _logistic,
    "featx.heads.calibrated.TemperatureCalibrated": _calibrated,
    "featx.heads.nearest_mean.NearestMean": _nearest_mean,
}
