"""Count on how many images an exported file says what the model says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.heads.targets import LABEL_THRESHOLD
from featx.images.labels import SEPARATOR, label_matrix, read_label_sets

_NAMED = 20


@dataclass(slots=True)
class Agreement:
    """What was counted so far, batch by batch.

    An answer is the most probable class, or, where an image has any number of labels, the set of
    those that are more probable than not.

    Parameters
    ----------
    names : ndarray of shape (k,) of str
        What the columns stand for.
    multilabel : bool
        Whether an image has any number of labels.

    Attributes
    ----------
    images, changes : int
        How many were compared, and of how many the answer is another one.
    changed : list of dict
        The first of these, with both answers.
    largest : float
        Largest difference of a probability; infinite where one is not finite.
    labelled, model_right, export_right : int
        Images whose labels are known, and on how many of them each answers right.
    """

    names: NDArray[np.str_]
    multilabel: bool = False
    images: int = 0
    changes: int = 0
    changed: list[dict[str, Any]] = field(default_factory=list)
    largest: float = 0.0
    labelled: int = 0
    model_right: int = 0
    export_right: int = 0

    def add(
        self,
        paths: Sequence[str],
        y: NDArray[Any] | None,
        expected: NDArray[Any],
        found: NDArray[np.float32],
    ) -> None:
        """Compare probabilities of the model and of the export."""
        self.images += len(paths)
        difference = np.abs(found - expected)
        # NaN is no difference that a comparison would notice.
        worst = float(difference.max()) if np.isfinite(difference).all() else float("inf")
        self.largest = max(self.largest, worst)
        model, export = self._answers(expected), self._answers(found)
        changed = np.flatnonzero((model != export).any(axis=1))
        self.changes += len(changed)
        for row in changed[: _NAMED - len(self.changed)]:
            self.changed.append(
                {
                    "path": paths[row],
                    "model": self._said(model[row], expected[row], export[row]),
                    "export": self._said(export[row], found[row], model[row]),
                }
            )
        if y is not None:
            rows, truth = self._truth(y)
            self.labelled += len(rows)
            self.model_right += int((model[rows] == truth).all(axis=1).sum())
            self.export_right += int((export[rows] == truth).all(axis=1).sum())

    def _answers(self, proba: NDArray[Any]) -> NDArray[np.bool_]:
        """Return which labels are given, shape (n, k)."""
        given: NDArray[np.bool_] = proba > LABEL_THRESHOLD
        if not self.multilabel:
            given = np.arange(proba.shape[1]) == proba.argmax(axis=1)[:, None]
        return given

    def _truth(self, y: NDArray[Any]) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """Return the rows whose labels are all known here, and these labels as in `_answers`."""
        if not self.multilabel:
            rows = np.flatnonzero(np.isin(y, self.names))
            return rows, y[rows][:, None] == self.names
        rows = np.flatnonzero(y != "")
        labels, matrix = read_label_sets(y[rows].tolist())
        kept = ~matrix[:, ~np.isin(labels, self.names)].any(axis=1)
        rows = rows[kept]
        return rows, label_matrix(y[rows].tolist(), self.names.tolist()) > 0

    def _said(
        self, own: NDArray[np.bool_], proba: NDArray[Any], other: NDArray[np.bool_]
    ) -> dict[str, Any]:
        """Return an answer, with the probability of what the two differ in."""
        column = int(np.flatnonzero(own != other)[0]) if self.multilabel else int(own.argmax())
        label = SEPARATOR.join(self.names[own]) or SEPARATOR
        return {"label": label, "probability": float(proba[column])}
