"""What a training tells: epoch by epoch, and in the end."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Epoch:
    """What an epoch came to; numbers of the hold-out are without augmentation.

    Parameters
    ----------
    epoch : int
        From 1; 0 is the start.
    loss : float
        Mean over the training images, with smoothing and mixing.
    val_loss, val_accuracy : float
        Of the hold-out: log loss, and share that is right.
    learning_rate : float
        Of the head, at the end of the epoch.
    seconds : float
        For training and hold-out.
    """

    epoch: int
    loss: float
    val_loss: float
    val_accuracy: float
    learning_rate: float
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return it as a line of the history."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(slots=True)
class Trained:
    """How a training ended.

    Parameters
    ----------
    history : list of dict
        The start, and one entry an epoch, see `Epoch`.
    best_epoch : int
        0 where no epoch was better than the start.
    stopped : str
        Why it ended before its last epoch; empty where it did not.
    interrupted : bool
        Whether the user ended it.
    probabilities : ndarray of shape (n, k)
        Of the hold-out, after the best epoch.
    """

    history: list[dict[str, Any]]
    best_epoch: int
    stopped: str = ""
    interrupted: bool = False
    probabilities: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), "f4"))


def hold_out_scores(
    probabilities: NDArray[np.floating[Any]], codes: NDArray[np.intp]
) -> tuple[float, float]:
    """Return accuracy and log loss."""
    right = float((probabilities.argmax(axis=1) == codes).mean())
    likely = probabilities[np.arange(len(codes)), codes].astype(np.float64)
    return right, float(-np.log(np.maximum(likely, 1e-12)).mean())
