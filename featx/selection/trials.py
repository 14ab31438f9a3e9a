"""What is known of a candidate that was measured."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from featx.selection.space import Candidate


@dataclass(frozen=True, slots=True)
class Measured:
    """Figures of one candidate on all folds.

    Parameters
    ----------
    scores : list of float
        One a fold, of which more is better; empty where it failed.
    fit_s, score_s : list of float
        Seconds of training and of predicting, one a fold. Candidates that were measured together
        have an equal share each.
    stopped : bool
        Whether it was given up early.
    failed : str
        Why it could not be measured, empty if it could.
    ms : float, optional
        Milliseconds an image of transform and head, where they were fitted by themselves.
    bytes : int, optional
        Size of what transform and head have learnt, likewise.
    """

    scores: list[float]
    fit_s: list[float]
    score_s: list[float]
    stopped: bool = False
    failed: str = ""
    ms: float | None = None
    bytes: int | None = None

    @classmethod
    def from_dict(cls, given: dict[str, Any]) -> Measured:
        """Read what `dataclasses.asdict` gave."""
        measured = cls(**{field.name: given[field.name] for field in fields(cls)})
        seconds = (measured.fit_s, measured.score_s)
        for numbers in (measured.scores, *seconds):
            if not (isinstance(numbers, list) and all(map(_is_finite, numbers))):
                raise TypeError("figures are finite numbers, one a fold")
        costs = [cost for cost in (measured.ms, measured.bytes) if cost is not None]
        if (
            not all(map(_is_finite, costs))
            or min([*costs, *seconds[0], *seconds[1]], default=0) < 0
        ):
            raise ValueError("times and sizes are finite and not negative")
        if not measured.failed and {*map(len, seconds)} != {len(measured.scores)}:
            raise ValueError("there are as many times as scores")
        if not (isinstance(measured.stopped, bool) and isinstance(measured.failed, str)):
            raise TypeError("expected whether it was stopped, and why it failed")
        return measured


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and type(value) is not bool and math.isfinite(value)


@dataclass(frozen=True, slots=True)
class Trial:
    """A candidate and its figures.

    Parameters
    ----------
    candidate : Candidate
        What was tried.
    measured : Measured
        What came of it.
    share : float, default 1.0
        The share of the training rows that it was trained on.
    """

    candidate: Candidate
    measured: Measured
    share: float = 1.0

    @property
    def score(self) -> float:
        """Mean over the folds; minus infinity where it failed."""
        return float(np.mean(self.measured.scores)) if self.measured.scores else -np.inf

    @property
    def std(self) -> float:
        """Standard deviation over the folds."""
        return float(np.std(self.measured.scores)) if self.measured.scores else 0.0

    @property
    def standard_error(self) -> float:
        """Standard error of the mean over the folds."""
        folds = len(self.measured.scores)
        return float(np.std(self.measured.scores, ddof=1) / np.sqrt(folds)) if folds > 1 else 0.0
