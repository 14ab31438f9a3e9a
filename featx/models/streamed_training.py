"""Train and measure a classifier on features that come in batches, within a bound of memory."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.cache.features import Features
from featx.exceptions import HeadError
from featx.heads.table import make_head
from featx.memory import as_bytes, machine_bytes, shown_bytes
from featx.models.classifier import ImageClassifier
from featx.models.feature_stream import FeatureStream, block_bytes
from featx.models.metrics import ScoreSums

logger = logging.getLogger("featx")

_MACHINE_SHARE = 2
_TAKEN_SHARE = 4


def memory_bound(
    features: Features, place: dict[str, Any], head: Any, max_ram: str | int | None
) -> int | None:
    """Say whether to train on batches, and within how many bytes."""
    from featx.heads.streaming import require_streamable

    if max_ram is not None:
        bound = as_bytes(max_ram)
        require_streamable(make_head(head))
        return bound
    whole, there = block_bytes(features, place), machine_bytes()
    if there is None or whole <= there // _MACHINE_SHARE:
        return None
    what = f"{features.name!r} has {shown_bytes(whole)} of features, the machine has "
    what += f"{shown_bytes(there)} of memory"
    try:
        require_streamable(make_head(head))
    except HeadError as error:
        logger.warning("%s: %s", what, error)
        return None
    bound = there // _TAKEN_SHARE
    logger.warning("%s: training on batches, within %s (--max-ram)", what, shown_bytes(bound))
    return bound


class StreamedFit:
    """Fits heads on rows of a block, and scores them, a batch at a time."""

    def __init__(
        self,
        features: Features,
        place: dict[str, Any],
        y: NDArray[Any],
        views: list[int],
        max_ram_bytes: int,
    ) -> None:
        self._features, self._place, self._y, self._views = features, place, y, views
        self._half = max_ram_bytes // 2

    def fit(self, head: Any, rows: NDArray[np.intp]) -> Any:
        """Fit an unfitted head on rows and their views, and return it."""
        from featx.heads.streaming import fit_head_streamed

        y = np.concatenate([self._y[rows]] * (1 + len(self._views)))
        return fit_head_streamed(head, self._stream(rows), y, max_ram_bytes=self._half)

    def score(
        self, model: ImageClassifier, head: Any, rows: NDArray[np.intp], sums: ScoreSums
    ) -> tuple[NDArray[Any], NDArray[np.float64]]:
        """Add what a head says of rows to sums."""
        classes = sums.classes
        columns = np.searchsorted(classes, head.classes_)
        predicted = np.empty(len(rows), dtype=classes.dtype)
        probability = np.empty(len(rows))
        for parts, places in self._stream(rows).together(model.views_averaged):
            proba = np.zeros((len(places), len(classes)))
            proba[:, columns] = np.mean([head.predict_proba(part) for part in parts], axis=0)
            sums.add(self._y[rows[places]], proba)
            best = proba.argmax(axis=1)
            predicted[places] = classes[best]
            probability[places] = proba[np.arange(len(best)), best]
        return predicted, probability

    def probabilities(
        self, model: ImageClassifier, head: Any, rows: NDArray[np.intp]
    ) -> NDArray[np.float32]:
        """Return what a head says of rows, (m, labels), where an image has several labels."""
        found: NDArray[np.float32] | None = None
        for parts, places in self._stream(rows).together(model.views_averaged):
            proba = np.mean([head.predict_proba(part) for part in parts], axis=0)
            if found is None:
                found = np.empty((len(rows), proba.shape[1]), np.float32)
            found[places] = proba
        assert found is not None
        return found

    def _stream(self, rows: NDArray[np.intp]) -> FeatureStream:
        return FeatureStream(self._features, self._place, rows, self._views, self._half)
