"""Scored images: what each is, what a model says of it, and with which probability."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from featx.cache.features import Features
from featx.files.identity import whole_keys
from featx.files.safe_json import Json
from featx.heads.targets import LABEL_THRESHOLD
from featx.images.labels import SEPARATOR
from featx.selection.metrics import Judged, bootstrap_intervals_of, bootstrap_label_sets
from featx.selection.value_metrics import bootstrap_values


@dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """Answers for labelled images, from which their scores come.

    Attributes
    ----------
    features : Features
        Of the images, and of others beside them.
    backbone, tap : str
        The block of the features that the answers are of.
    rows : ndarray of shape (m,)
        The rows of the features that were scored.
    names : ndarray of shape (k,)
        Classes, or labels where an image has several.
    scores : dict
        ``protocol`` and the scores, as `featx.train` and `featx.evaluate` give them.
    judged : Judged, optional
        The answers where an image has one class.
    label_sets : tuple of ndarray, optional
        Labels (m, k) of 0 and 1, and their probabilities (m, k), where an image has several.
    answers : ndarray of shape (m, k) of bool, optional
        Which labels are given, where an image has several; by default those above 0.5.
    values : tuple of ndarray, optional
        True and predicted numbers (m, k) of a regression; `names` are what they are called.
    trained_on : ndarray of shape (m,) of bool, optional
        Which of the images the model was trained on, where that counts against the scores.
    """

    features: Features
    backbone: str
    tap: str
    rows: NDArray[np.intp]
    names: NDArray[np.str_]
    scores: Json = field(default_factory=dict)
    judged: Judged | None = None
    label_sets: tuple[NDArray[np.integer], NDArray[np.floating]] | None = None
    answers: NDArray[np.bool_] | None = None
    values: tuple[NDArray[np.float64], NDArray[np.floating]] | None = None
    trained_on: NDArray[np.bool_] | None = None

    @cached_property
    def decided(self) -> NDArray[np.bool_]:
        """Which labels the model gives, shape (m, k); of several labels an image only."""
        assert self.label_sets is not None
        decided: NDArray[np.bool_] = self.label_sets[1] > LABEL_THRESHOLD
        return decided if self.answers is None else self.answers

    @cached_property
    def right(self) -> NDArray[np.bool_]:
        """Whether the answer is the class, or every label is right, shape (m,)."""
        if self.judged is not None:
            return self.judged.right
        assert self.label_sets is not None
        right: NDArray[np.bool_] = (self.decided == (self.label_sets[0] > 0)).all(axis=1)
        return right

    @cached_property
    def doubtful(self) -> NDArray[np.intp]:
        """The label of each image that the model is furthest from being right about, shape (m,)."""
        assert self.label_sets is not None
        truth, proba = self.label_sets
        doubtful: NDArray[np.intp] = np.abs(truth - proba).argmax(axis=1)
        return doubtful

    @property
    def confidence(self) -> NDArray[np.float64]:
        """Probability of the predicted class, shape (m,).

        Where an image has several labels: that the label which the model is least sure of is as
        it says.
        """
        if self.judged is not None:
            return self.judged.confidence
        assert self.label_sets is not None
        proba = self.label_sets[1]
        least = np.where(self.decided, proba, 1 - proba).min(axis=1)
        return np.asarray(least, np.float64)

    @property
    def likelihood(self) -> NDArray[np.float64]:
        """Probability of the true class, or of the truth of the most doubtful label, (m,)."""
        if self.judged is not None:
            return self.judged.likelihood
        assert self.label_sets is not None
        truth, proba = self.label_sets
        places = np.arange(len(self.rows)), self.doubtful
        likelihood: NDArray[np.float64] = 1 - np.abs(truth[places] - proba[places].astype(float))
        return likelihood

    def table(self, most: int | None = None) -> Json:
        """Return what is said of images by column, the most confident error first.

        ``row`` is that of the features; then ``path``, ``label``, ``predicted``, ``probability``
        (see `confidence`) and ``right``. Of a regression ``row``, ``path``, and of each number the
        true and the predicted one and their difference, the greatest error first.
        """
        if self.values is not None:
            return self._value_table(most)
        certain = np.where(self.right, 2 - self.confidence, -self.confidence)
        order = np.argsort(certain, kind="stable")[:most]
        rows = self.rows[order]
        return {
            "row": rows.tolist(),
            "path": self.features[rows].paths,
            "label": self._labels(order, predicted=False),
            "predicted": self._labels(order, predicted=True),
            "probability": self.confidence[order].tolist(),
            "right": self.right[order].tolist(),
        }

    @property
    def error(self) -> NDArray[np.float64]:
        """How far predicted numbers are off, in deviations of each number, shape (m,)."""
        assert self.values is not None
        truth, predicted = self.values
        spread = truth.std(axis=0)
        scaled = np.abs(truth - predicted) / np.where(spread > 0, spread, 1.0)
        error: NDArray[np.float64] = scaled.mean(axis=1)
        return error

    def _value_table(self, most: int | None) -> Json:
        assert self.values is not None
        truth, predicted = self.values
        order = np.argsort(-self.error, kind="stable")[:most]
        rows = self.rows[order]
        columns: Json = {"row": rows.tolist(), "path": self.features[rows].paths}
        for number, name in enumerate(self.names.tolist()):
            mine, theirs = truth[order, number], predicted[order, number]
            columns[name] = mine.tolist()
            columns[f"{name} predicted"] = theirs.tolist()
            columns[f"{name} error"] = (theirs - mine).tolist()
        return columns

    def _labels(self, places: NDArray[np.intp], *, predicted: bool) -> list[str]:
        """Return the classes of images, or their labels with ``|``: the true or predicted ones."""
        if self.judged is not None:
            codes = self.judged.predicted if predicted else self.judged.truth
            return list(self.names[codes[places]].tolist())
        assert self.label_sets is not None
        sets = self.decided if predicted else self.label_sets[0] > 0
        return [SEPARATOR.join(self.names[row].tolist()) for row in sets[places]]

    def intervals(self, *, samples: int = 1000, seed: int = 0) -> Json:
        """Return 95 % intervals of the scores, by drawing images again, copies together."""
        keys = self.features.keys[self.rows]
        copies = np.unique(whole_keys(keys), return_inverse=True)[1]
        if self.judged is not None:
            return bootstrap_intervals_of(self.judged, groups=copies, samples=samples, seed=seed)
        if self.values is not None:
            return bootstrap_values(
                *self.values, self.names.tolist(), groups=copies, samples=samples, seed=seed
            )
        assert self.label_sets is not None
        return bootstrap_label_sets(
            *self.label_sets,
            self.names,
            predicted=self.decided,
            groups=copies,
            samples=samples,
            seed=seed,
        )
