"""How good predictions are, as one number of which more is better."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import HeadError, UnknownNameError

_ROUNDING = 1e-6
_DRAWS_OF_LABELS = 200

Codes: TypeAlias = NDArray[np.intp]
Values: TypeAlias = NDArray[np.floating[Any]]


def _accuracy(truth: Codes, values: Values) -> float:
    return float((values.argmax(axis=1) == truth).mean())


def _counts(truth: Codes, values: Values) -> tuple[Codes, Codes, Codes]:
    """Return of each class that has rows how many were right, how many there are and were said."""
    k, predicted = values.shape[1], values.argmax(axis=1)
    own, said = (np.bincount(codes, minlength=k) for codes in (truth, predicted))
    right = np.bincount(truth[truth == predicted], minlength=k)
    present = own > 0
    return right[present], own[present], said[present]


def _balanced_accuracy(truth: Codes, values: Values) -> float:
    right, own, _ = _counts(truth, values)
    return float((right / own).mean())


def _macro_f1(truth: Codes, values: Values) -> float:
    right, own, said = _counts(truth, values)
    return float((2 * right / (own + said)).mean())


def _negative_log_loss(truth: Codes, values: Values) -> float:
    chosen = np.clip(values[np.arange(len(truth)), truth], 1e-15, 1.0)
    return float(np.log(chosen).mean())


def _top5(truth: Codes, values: Values) -> float:
    own = values[np.arange(len(truth)), truth]
    return float(((values > own[:, None]).sum(axis=1) < 5).mean())


def _mean_average_precision(truth: Codes, values: Values) -> float:
    from sklearn.metrics import average_precision_score

    present = np.flatnonzero(truth.any(axis=0))
    found = [average_precision_score(truth[:, label], values[:, label]) for label in present]
    return float(np.mean(found)) if found else 0.0


def _micro_f1(truth: Codes, values: Values) -> float:
    given = values > 0.5
    decided = int(truth.sum() + given.sum())
    return float(2 * (truth * given).sum() / decided) if decided else 0.0


@dataclass(frozen=True, slots=True)
class Scorer:
    """A way of scoring, as data.

    Parameters
    ----------
    name : str
        What a user types.
    function : callable
        Takes true codes (n,), or labels (n, k) of 0 and 1, and values (n, k), and returns a number
        of which more is better.
    needs : {"labels", "order", "probabilities"}
        What the values have to be: the best class only, the order of all, or probabilities.
    sign : {1, -1}, default 1
        What `function` is multiplied by where it is shown.
    multilabel : bool, default False
        Whether it is of several labels an image.
    """

    name: str
    function: Callable[[Codes, Values], float]
    needs: str = "labels"
    sign: int = 1
    multilabel: bool = False

    def shown(self, score: float) -> float:
        """Return a score as it is shown to people."""
        return self.sign * score

    def allows(self, score: float) -> bool:
        """Return whether it is a score that there can be: a share, or a negative loss."""
        lowest, highest = (-np.inf, 0.0) if self.sign < 0 else (0.0, 1.0)
        return lowest - _ROUNDING <= score <= highest + _ROUNDING


SCORERS: Mapping[str, Scorer] = MappingProxyType(
    {
        scorer.name: scorer
        for scorer in (
            Scorer("accuracy", _accuracy),
            Scorer("balanced_accuracy", _balanced_accuracy),
            Scorer("macro_f1", _macro_f1),
            Scorer("log_loss", _negative_log_loss, "probabilities", -1),
            Scorer("top5", _top5, "order"),
            Scorer(
                "mean_average_precision", _mean_average_precision, "probabilities", multilabel=True
            ),
            Scorer("micro_f1", _micro_f1, "probabilities", multilabel=True),
        )
    }
)
"""Every way of scoring by its name."""


def find_scorer(name: str, classes: int, *, multilabel: bool = False) -> Scorer:
    """Return a way of scoring."""
    if name not in SCORERS:
        raise UnknownNameError("scoring", str(name), SCORERS)
    if SCORERS[name].multilabel != multilabel:
        fit = [one.name for one in SCORERS.values() if one.multilabel == multilabel]
        raise HeadError(
            f"{name!r} is no score of {'several labels' if multilabel else 'one class'} an image: "
            f"take one of {', '.join(fit)}"
        )
    if name == "top5" and classes <= 5:
        raise HeadError(
            f"top5 needs more than 5 classes, received {classes}: every prediction would count as "
            "right; take scoring='accuracy'"
        )
    return SCORERS[name]


def score_interval(
    scorer: Scorer, truth: Codes, values: Values, *, seed: int = 0, draws: int = 1000
) -> tuple[float, float]:
    """Return the 95 % interval of a score as it is shown."""
    n = len(truth)
    if scorer.name in ("accuracy", "top5"):
        share, z = scorer.function(truth, values), 1.959964
        centre = (share + z * z / (2 * n)) / (1 + z * z / n)
        half = z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
        return max(0.0, float(centre - half)), min(1.0, float(centre + half))
    draws = min(draws, _DRAWS_OF_LABELS) if scorer.multilabel else draws
    generator = np.random.default_rng(seed)
    drawn = (generator.integers(0, n, n) for _ in range(draws))
    scores = [scorer.shown(scorer.function(truth[rows], values[rows])) for rows in drawn]
    low, high = np.percentile(scores, [2.5, 97.5])
    return float(low), float(high)
