"""How far the numbers of an exported file are from those of its model."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import DatasetError
from featx.files.safe_json import Json
from featx.heads.rows import Doubles, Floats
from featx.images.values import read_values
from featx.selection.metrics import value_scores

LOST_R2 = 0.02
"""By how much R² of an int8 export may be lower than that of the model."""
MEAN_DIFFERENCE = 0.1
"""How far an int8 export may be off in the mean, in deviations of the number in training."""

_NAMED = 20


@dataclass(slots=True)
class ValueAgreement:
    """What was counted so far, batch by batch; differences are in deviations of training."""

    names: Sequence[str]
    spread: Doubles
    images: int = 0
    largest: float = 0.0
    summed: float = 0.0
    worst: list[Json] = field(default_factory=list)
    truth: list[Doubles] = field(default_factory=list)
    said: list[tuple[Floats, Floats]] = field(default_factory=list)

    def relative(self, difference: Floats) -> float:
        """Return the largest of some differences (n, k); infinite where one is not finite."""
        if not np.isfinite(difference).all():
            return float("inf")
        scaled = np.abs(difference) / np.where(self.spread > 0, self.spread, 1.0)
        return float(scaled.max(initial=0.0))

    def add(
        self, paths: Sequence[str], y: NDArray[np.str_] | None, expected: Floats, received: Floats
    ) -> None:
        """Compare numbers of the model and of the export."""
        self.images += len(paths)
        difference = received - expected
        self.largest = max(self.largest, self.relative(difference))
        scaled = np.abs(difference) / np.where(self.spread > 0, self.spread, 1.0)
        self.summed += float(scaled.mean(axis=1).sum())
        for row in np.argsort(-scaled.max(axis=1))[:_NAMED]:
            self.worst.append(
                {
                    "path": paths[row],
                    "difference": float(scaled[row].max()),
                    "model": expected[row].tolist(),
                    "export": received[row].tolist(),
                }
            )
        self.worst = sorted(self.worst, key=lambda each: -each["difference"])[:_NAMED]
        if y is None:
            return
        rows = np.flatnonzero(y != "")
        with suppress(DatasetError):  # labels that are no numbers of the model say nothing here
            self.truth.append(read_values(y[rows].tolist(), "", names=self.names)[1])
            self.said.append((expected[rows], received[rows]))

    def report(self) -> Json:
        """Return the figures as JSON types."""
        labelled = sum(map(len, self.truth))
        scores: list[float | None] = [None, None]
        if labelled > 1:
            truth = np.concatenate(self.truth)
            for number in (0, 1):
                answers = np.concatenate([said[number] for said in self.said])
                scores[number] = float(value_scores(truth, answers)[0].mean())
        return {
            "images": self.images,
            "largest_difference": self.largest,
            "mean_difference": self.summed / max(1, self.images),
            "worst": self.worst,
            "labelled": labelled,
            "r2_of_model": scores[0],
            "r2_of_export": scores[1],
        }

    def problems(self, precision: str, tolerance: float, batch: float) -> list[str]:
        """Return why the export does not do; ``batch`` is how far images alone are from a batch."""
        if not np.isfinite(self.largest):
            return ["it gives numbers that are not finite"]
        if precision == "int8":
            figures = self.report()
            before, after = figures["r2_of_model"], figures["r2_of_export"]
            if before is not None and after is not None and before - after > LOST_R2:
                return [
                    f"int8 loses {before - after:.3f} of R², at most {LOST_R2} is allowed: "
                    "calibrate on more typical images"
                ]
            if before is None and figures["mean_difference"] > MEAN_DIFFERENCE:
                return [
                    f"int8 is off by {figures['mean_difference']:.2f} deviations in the mean, at "
                    f"most {MEAN_DIFFERENCE} is allowed: calibrate on more typical images"
                ]
            return []
        problems = []
        if not self.largest <= tolerance:
            problems.append(
                f"a number is off by {self.largest:.1e} deviations of training, at most "
                f"{tolerance:.0e} is allowed (the image {self.worst[0]['path']})"
            )
        if not batch <= tolerance:
            problems.append(f"an image alone differs from it in a batch by {batch:.1e} deviations")
        return problems
