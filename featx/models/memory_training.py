"""Train and measure a classifier on features that are held in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.cache.features import Features
from featx.exceptions import HeadError
from featx.heads.rows import Fold
from featx.heads.table import read_head
from featx.models.classifier import ImageClassifier
from featx.models.metrics import ScoreSums
from featx.selection.fold_data import FeatureBlock, FoldData, fold_data
from featx.selection.space import Candidate
from featx.selection.sweeping import find_sweep, held_out_together


class MemoryFit:
    """Fits heads on rows of a block, and scores them, in memory; see `StreamedFit`."""

    def __init__(
        self, features: Features, place: dict[str, Any], y: NDArray[Any], views: list[int]
    ) -> None:
        self._place = place
        self._parts = [
            features.matrix(**place),
            *(features.matrix(**place, view=view) for view in views),
        ]
        self._y = y

    def fit(self, head: Any, rows: NDArray[np.intp]) -> Any:
        """Fit an unfitted head on rows and their views, one view below the other."""
        parts = [part[rows] for part in self._parts]
        X = parts[0] if len(parts) == 1 else np.concatenate(parts)
        if X.dtype not in (np.float32, np.float64):
            X = X.astype(np.float32)
        return head.fit(X, np.concatenate([self._y[rows]] * len(parts)))

    def probabilities(
        self, model: ImageClassifier, head: Any, rows: NDArray[np.intp]
    ) -> NDArray[np.floating[Any]]:
        """Return what a head says of rows, (len(rows), classes), the mean over averaged views."""
        looked_at = [part[rows] for part in self._parts[: 1 + model.views_averaged]]
        found: NDArray[np.floating[Any]] = np.mean(
            [head.predict_proba(part) for part in looked_at], axis=0
        )
        return found

    def score(
        self, model: ImageClassifier, head: Any, rows: NDArray[np.intp], sums: ScoreSums
    ) -> tuple[NDArray[Any], NDArray[np.float64]]:
        """Add what a head says of rows to sums; return the likeliest labels and how likely."""
        proba = np.zeros((len(rows), len(sums.classes)))
        columns = np.searchsorted(sums.classes, head.classes_)
        proba[:, columns] = self.probabilities(model, head, rows)
        return _count(proba, self._y[rows], sums)

    def score_together(
        self, model: ImageClassifier, rows: NDArray[np.intp], folds: Sequence[Fold]
    ) -> tuple[ScoreSums, NDArray[Any], NDArray[np.float64]] | None:
        """Fit the folds of one head together and score them, as a search of one candidate does."""
        candidate = self._candidate(model)
        sweep = None if candidate is None else find_sweep(candidate, probabilities=True)
        if candidate is None or sweep is None:
            return None
        classes, codes = np.unique(self._y[rows], return_inverse=True)
        views = 1 + model.views_averaged
        data = self._fold_data(rows, codes, folds, views)
        sums = ScoreSums(classes)
        predicted = np.empty(len(rows), dtype=classes.dtype)
        probability = np.empty(len(rows))
        try:
            for held in held_out_together(
                sweep, [candidate], data, seed=model.random_state, probabilities=True
            ):
                if held.stopped:  # it diverged, of which its own fit says more
                    return None
                test = folds[held.fold][1]
                each = held.values.reshape(views, len(test), len(classes))
                proba = each.mean(axis=0, dtype=np.float64)
                found = _count(proba, self._y[rows[test]], sums)
                predicted[test], probability[test] = found
        except HeadError:  # likewise
            return None
        return sums, predicted, probability

    def _candidate(self, model: ImageClassifier) -> Candidate | None:
        if not isinstance(model.head, str):
            return None
        name, params = read_head(model.head)
        backbone, tap = self._place["backbone"], self._place["tap"]
        return Candidate(backbone, tap, "standard", name, tuple(params.items()))

    def _fold_data(
        self,
        rows: NDArray[np.intp],
        codes: NDArray[np.intp],
        folds: Sequence[Fold],
        views: int,
    ) -> FoldData:
        block = FeatureBlock(**self._place, X=self._parts[0], views=tuple(self._parts[1:]))
        order = np.arange(len(rows))
        data = fold_data(block, rows, codes, folds, share=1.0, order=order, sizes=[])
        data.folds = [
            (train, np.concatenate([test + view * len(rows) for view in range(views)]))
            for train, test in data.folds
        ]
        return data


def _count(
    proba: NDArray[np.float64], y: NDArray[Any], sums: ScoreSums
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    sums.add(y, proba)
    best = proba.argmax(axis=1)
    return sums.classes[best], proba[np.arange(len(best)), best]
