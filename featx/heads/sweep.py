"""What a sweep is: many settings of one head, measured on every fold for the price of few fits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Fold: TypeAlias = tuple[NDArray[np.intp], NDArray[np.intp]]
"""Rows for training and rows for testing."""


@dataclass(frozen=True, slots=True, eq=False)
class HeldOut:
    """What one setting says of the rows of one fold that it has not seen.

    Parameters
    ----------
    candidate : int
        Which setting.
    fold : int
        Which fold.
    values : ndarray of shape (m, k)
        A column a class, in the order of the codes: probabilities, or margins of which only the
        order counts.
    probabilities : bool, default True
        Whether they are probabilities.
    stopped : bool, default False
        Whether the setting was given up early, since it could no longer win: its values are those
        of an unfinished fit.
    """

    candidate: int
    fold: int
    values: NDArray[np.floating[Any]]
    probabilities: bool = True
    stopped: bool = False


class Sweep(Protocol):
    """Measures many settings of one head together."""

    def __call__(
        self,
        X: NDArray[np.floating[Any]],
        y: NDArray[np.intp],
        folds: Sequence[Fold],
        candidates: Sequence[Mapping[str, Any]],
        *,
        seed: int = 0,
        sample_weight: NDArray[np.floating[Any]] | None = None,
    ) -> Iterator[HeldOut]:
        """Yield one `HeldOut` for each candidate and fold, in any order."""
