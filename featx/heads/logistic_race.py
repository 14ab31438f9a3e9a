"""Racing along a path of rising C: when no larger C can win any more."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

# A value of C has lost when it trails the best by so many standard errors of the difference.
_LOST_ERRORS = 2.0
_LOST_RATIO = 10**0.5


class Race:
    """Tells when no larger C can win any more."""

    def __init__(self, Cs: NDArray[np.float64], shares: NDArray[np.float64]) -> None:
        self.Cs, self.shares = Cs, shares / len(shares)
        self.best: NDArray[Any] | None = None
        self.best_mean, self.bound, self.behind = -np.inf, np.inf, 0

    def lost(self, place: int, each: NDArray[Any]) -> bool:
        """Enter the scores (f, n) of the rows at the next C."""
        mean = float((each * self.shares).sum())
        if self.best is None or mean > self.best_mean:
            self.best, self.best_mean, self.behind = each, mean, 0
            self.bound = self.Cs[place] * _LOST_RATIO * (1 - 1e-9)
            return False
        lead = self.best_mean - mean
        error = float(np.sqrt(((self.best - each - lead) ** 2 * self.shares**2).sum()))
        trails = self.Cs[place] >= self.bound and lead > _LOST_ERRORS * error
        self.behind = self.behind + 1 if trails else 0
        return self.behind >= 2
