"""Heads of layers and lines in NumPy, made from an artefact's files without scikit-learn.

Importing scikit-learn and skops takes longer than everything else that predicting one image does.
What is read here is what `featx.heads.storage.load_head` reads, under the same rules and with the
same answers; a head that is none of these is left to it.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.heads.dense_storage import ARRAYS, DESCRIPTION, read_layers
from featx.heads.network import logits
from featx.heads.skops_contents import check_contents, read_schema
from featx.plain_files import open_plain_zip

__all__ = ["QuickHead", "quick_head"]

Rows = NDArray[Any]


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

    def __init__(
        self, classes: NDArray[Any], width: int, steps: list[Callable[[Rows], Rows]]
    ) -> None:
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
    steps: list[Callable[[Rows], Rows]] = []
    if said["scaler"] is not None:
        mean, scale = (
            None if said["scaler"][name] is None else np.array(said["scaler"][name])
            for name in ("mean_", "scale_")
        )
        steps.append(_scaling(mean, scale))
    steps.append(lambda X: _softmax(logits(np.asarray(X, np.float32), layers)))
    return QuickHead(classes, layers[0][0].shape[0], steps)


def _from_skops(data: bytes) -> QuickHead:
    check_contents(data)
    with open_plain_zip(io.BytesIO(data), most_members=1000) as archive:
        reader = _Reader(archive)
        name, state = reader.object(read_schema(archive))
        steps = [(name, state)]
        if name == "featx.heads.head_pipeline.HeadPipeline":
            steps = [reader.object(reader.item(step, 1)) for step in reader.items(state["steps"])]
        made = [_TRANSFORMERS[name](reader, state) for name, state in steps[:-1]]
        name, state = steps[-1]
        step, classes = _CLASSIFIERS[name](reader, state)
        width = reader.value(steps[0][1]["n_features_in_"])
    return QuickHead(classes, int(width), [*made, step])


class _Reader:
    """Looks up values in the description of a skops file."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive

    def object(self, node: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
        """Return the class of an object, and its attributes as nodes."""
        if node["__loader__"] != "ObjectNode":
            raise _Other
        return f"{node['__module__']}.{node['__class__']}", node["content"]["content"]

    def items(self, node: Mapping[str, Any]) -> list[Any]:
        """Return the nodes in a list."""
        if node["__loader__"] not in ("ListNode", "TupleNode"):
            raise _Other
        found: list[Any] = node["content"]
        return found

    def item(self, node: Mapping[str, Any], place: int) -> Any:
        """Return a node in a tuple."""
        return self.items(node)[place]

    def value(self, node: Mapping[str, Any]) -> Any:
        """Return a number, a text or an array."""
        if node["__loader__"] == "JsonNode":
            return json.loads(node["content"])
        if node["__loader__"] != "NdArrayNode" or node["type"] != "numpy":
            raise _Other
        content = self._archive.read(node["file"])
        return np.load(io.BytesIO(content), allow_pickle=False)

    def classes(self, node: Mapping[str, Any]) -> NDArray[Any]:
        """Return labels."""
        if node["__loader__"] == "NdArrayNode" and node["type"] == "json":
            return np.array([self.value(item) for item in self.items(node["content"])], object)
        found: NDArray[Any] = self.value(node)
        return found


def _scaling(mean: NDArray[Any] | None, scale: NDArray[Any] | None) -> Callable[[Rows], Rows]:
    def apply(X: Rows) -> Rows:
        scaled = np.array(X)
        if mean is not None:
            scaled -= mean
        if scale is not None:
            scaled /= scale
        return scaled

    return apply


def _standard(reader: _Reader, state: Mapping[str, Any]) -> Callable[[Rows], Rows]:
    with_mean, with_std = reader.value(state["with_mean"]), reader.value(state["with_std"])
    return _scaling(
        reader.value(state["mean_"]) if with_mean else None,
        reader.value(state["scale_"]) if with_std else None,
    )


def _unit_length(reader: _Reader, state: Mapping[str, Any]) -> Callable[[Rows], Rows]:
    if reader.value(state["norm"]) != "l2":
        raise _Other
    return lambda X: X / _lengths(X)[:, None]


def _components(reader: _Reader, state: Mapping[str, Any]) -> Callable[[Rows], Rows]:
    if reader.value(state["whiten"]):
        raise _Other
    mean, components = reader.value(state["mean_"]), reader.value(state["components_"])
    return lambda X: (X - mean) @ components.T


def _line(reader: _Reader, state: Mapping[str, Any]) -> Callable[[Rows], Rows]:
    """Return scores of shape (n, k), of two classes the one line and its negative."""
    coef, intercept = np.atleast_2d(reader.value(state["coef_"])), reader.value(state["intercept_"])

    def scores(X: Rows) -> Rows:
        found = X @ coef.T + intercept
        return np.column_stack([-found, found]) if found.shape[1] == 1 else found

    return scores


def _logistic(
    reader: _Reader, state: Mapping[str, Any]
) -> tuple[Callable[[Rows], Rows], NDArray[Any]]:
    if reader.value(state["solver"]) == "liblinear":
        raise _Other
    scores, classes = _line(reader, state), reader.classes(state["classes_"])
    # A sigmoid of the line is the softmax of half of it and its negative.
    shrink = 0.5 if len(classes) == 2 else 1.0
    return (lambda X: _softmax(shrink * scores(X))), classes


def _calibrated(
    reader: _Reader, state: Mapping[str, Any]
) -> tuple[Callable[[Rows], Rows], NDArray[Any]]:
    name, inner = reader.object(state["estimator_"])
    if name not in _LINES:
        raise _Other
    scores, temperature = _line(reader, inner), reader.value(state["temperature_"])
    return (lambda X: _softmax(scores(X) / temperature)), reader.classes(state["classes_"])


def _nearest_mean(
    reader: _Reader, state: Mapping[str, Any]
) -> tuple[Callable[[Rows], Rows], NDArray[Any]]:
    means, temperature = reader.value(state["means_"]), reader.value(state["temperature_"])
    cosine = reader.value(state["metric"]) == "cosine"

    def proba(X: Rows) -> Rows:
        products = X @ means.T
        if cosine:
            products /= _lengths(X)[:, None]
        else:
            products -= 0.5 * np.einsum("ij,ij->i", means, means)
        return _softmax(products / temperature)

    return proba, reader.classes(state["classes_"])


def _lengths(X: Rows) -> Rows:
    lengths: Rows = np.sqrt(np.einsum("ij,ij->i", X, X))
    lengths[lengths == 0] = 1
    return lengths


def _softmax(scores: Rows) -> Rows:
    powers: Rows = np.exp(scores - scores.max(axis=1, keepdims=True))
    powers /= powers.sum(axis=1, keepdims=True)
    return powers


_TRANSFORMERS: Mapping[str, Callable[..., Callable[[Rows], Rows]]] = {
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
_CLASSIFIERS: Mapping[str, Callable[..., tuple[Callable[[Rows], Rows], NDArray[Any]]]] = {
    "sklearn.linear_model._logistic.LogisticRegression": _logistic,
    "featx.heads.calibrated.TemperatureCalibrated": _calibrated,
    "featx.heads.nearest_mean.NearestMean": _nearest_mean,
}
