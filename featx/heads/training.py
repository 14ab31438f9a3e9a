"""What the training of dense layers starts from, which rows it holds out, and how it judges."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.heads.network import DenseWeights
from featx.heads.targets import label_strata

_FEW_IN_CLASS = 5
_FEW_HELD_OUT = 10
_MOST_IN_SMALL_CLASSES = 0.2


@dataclass(frozen=True)
class TrainingPlan:
    """How to train one head: the parameters of `DenseClassifier` of the same names."""

    hidden: tuple[int, ...]
    dropout: float
    learning_rate: float
    weight_decay: float
    label_smoothing: float
    max_epochs: int
    patience: int
    verbose: int = 0


@dataclass(frozen=True, eq=False)
class Rows:
    """Some rows: features (n, d) float32, targets and what they count in the loss.

    Targets are class codes (n,), int32, with weights (n,); or labels (n, k) of 0 and 1 with
    weights (n, k), all float32.
    """

    X: NDArray[np.float32]
    targets: NDArray[Any]
    weights: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.X)


@dataclass(eq=False)
class Trained:
    """What training gave: the best epoch's weights, or the reason why there are none."""

    weights: DenseWeights = field(default_factory=list)
    epochs: int = 0
    best_epoch: int = 0
    history: dict[str, list[float]] = field(default_factory=dict)
    failure: str = ""


@dataclass(frozen=True, eq=False)
class Streams:
    """Seeds of everything random, each independent of how much the others are used.

    Two heads of one seed hold out the same rows, see the same batches, and, where their layers
    have the same sizes, start from the same weights and draw the same dropout.
    """

    held: np.random.SeedSequence
    weights: np.random.SeedSequence
    order: np.random.SeedSequence
    dropout: np.random.SeedSequence

    @classmethod
    def of(cls, seed: int) -> Streams:
        """Derive them from one number."""
        return cls(*np.random.SeedSequence(seed).spawn(4))


def hold_out(
    targets: NDArray[Any], fraction: float, rng: np.random.Generator, *, most: int | None = None
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Split rows into those to train on and those that say when to stop."""
    every = np.arange(len(targets))
    if most is not None and most < fraction * len(every):
        fraction = most / len(every)
    if fraction == 0:
        return every, every[:0]
    if targets.ndim == 2:
        held = np.flatnonzero(label_strata(targets, [fraction, 1 - fraction], seed=rng) == 0)
    else:
        counts = np.bincount(targets)
        large = np.flatnonzero(counts >= _FEW_IN_CLASS)
        if counts[large].sum() < (1 - _MOST_IN_SMALL_CLASSES) * len(every):
            return every, every[:0]
        # One sort finds the rows of a thousand classes; a search for each would be a thousand.
        parts = np.split(np.argsort(targets, kind="stable"), np.cumsum(counts)[:-1])
        chosen = [
            rng.choice(parts[code], max(1, round(fraction * counts[code])), replace=False)
            for code in large
        ]
        held = np.concatenate(chosen)
    if len(held) < _FEW_HELD_OUT:
        return every, every[:0]
    return np.setdiff1d(every, held), np.sort(held)


def judge(rows: Rows, logits: NDArray[np.float32]) -> tuple[float, float]:
    """Weighted loss and unweighted accuracy of logits for some rows."""
    # A training that diverges is for the caller to say, not for NumPy's warnings.
    with np.errstate(over="ignore", invalid="ignore"):
        scores = logits.astype(np.float64)
        if rows.targets.ndim == 2:
            losses = np.logaddexp(0, scores) - rows.targets * scores
            right = (scores > 0) == (rows.targets > 0)
        else:
            scores -= scores.max(axis=1, keepdims=True)
            losses = np.log(np.exp(scores).sum(axis=1))
            losses -= scores[np.arange(len(scores)), rows.targets]
            right = scores.argmax(axis=1) == rows.targets
        loss = float((rows.weights * losses).sum() / rows.weights.sum(dtype=np.float64))
    return loss, float(np.mean(right))
