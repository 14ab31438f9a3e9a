"""How good predicted numbers are: scores of each column, their intervals, prediction intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from featx.exceptions import HeadError
from featx.files.safe_json import Json
from featx.selection.metrics import (
    Codes,
    Doubles,
    Values,
    drawn_weights,
    middle_95,
    value_scores,
)

COVERAGE = 0.9
"""Share of images whose number lies within its prediction interval, by default."""

VALUE_SCORES: Mapping[str, str] = MappingProxyType(
    {"r2": "R²", "mae": "mean absolute error", "rmse": "root mean squared error"}
)
"""Scores of predicted numbers by name, and how they are written out."""

_MOST_RESIDUALS = 999


def score_values(truth: Values, predicted: Values, names: Sequence[str]) -> Json:
    """Return the scores of predicted numbers (n, k): the mean over columns, and of each column."""
    scores = value_scores(truth, predicted)
    return {
        "images": len(truth),
        **{name: float(row.mean()) for name, row in zip(VALUE_SCORES, scores, strict=True)},
        "values": [
            {"value": name, **dict(zip(VALUE_SCORES, column.tolist(), strict=True))}
            for name, column in zip(names, scores.T, strict=True)
        ],
    }


def bootstrap_values(
    truth: Values,
    predicted: Values,
    names: Sequence[str],
    *,
    groups: Codes | None = None,
    samples: int = 1000,
    seed: int = 0,
) -> Json:
    """Return 95 % intervals of the scores of `score_values`."""
    n, k = truth.shape
    drawn = np.array(
        [
            value_scores(truth, predicted, weights)
            for weights in drawn_weights(n, groups, samples, seed, n * k)
        ]
    )
    return {
        **{
            name: middle_95(drawn[:, number].mean(axis=1))
            for number, name in enumerate(VALUE_SCORES)
        },
        "values": [
            {
                "value": name,
                **{s: middle_95(drawn[:, number, column]) for number, s in enumerate(VALUE_SCORES)},
            }
            for column, name in enumerate(names)
        ],
    }


def kept_residuals(truth: Values, predicted: Values) -> Doubles:
    """Return absolute errors of each column, ascending, (m, k): of many, some evenly by rank.

    The predictions have to be of images that the heads had not seen. `half_widths` takes them.
    """
    errors = np.sort(np.abs(truth - predicted).astype(np.float64), axis=0)
    if len(errors) <= _MOST_RESIDUALS:
        return errors
    # The greatest of each part of equal size, so that an interval is rather too wide.
    last = np.ceil(np.arange(1, _MOST_RESIDUALS + 1) * len(errors) / _MOST_RESIDUALS) - 1
    return np.asarray(errors[last.astype(np.intp)])


def half_widths(residuals: Doubles, coverage: float = COVERAGE) -> Doubles:
    """Return how far an interval reaches from a prediction to either side, a number a column.

    Notes
    -----
    Split conformal prediction with the residuals of a cross-validation: of n ascending absolute
    errors the one of rank ceil((n + 1) * coverage). Lei, G'Sell, Rinaldo, Tibshirani, Wasserman:
    "Distribution-Free Predictive Inference for Regression", JASA 113 (2018). Of fewer errors than
    that rank, the greatest is taken, and the interval covers less.
    """
    check_coverage(coverage)
    rank = int(np.ceil((len(residuals) + 1) * coverage - 1e-9))
    return np.asarray(residuals[min(rank, len(residuals)) - 1])


def check_coverage(coverage: float) -> None:
    """Refuse a coverage that is no share."""
    if not 0 < coverage < 1:
        raise HeadError(f"expected a coverage between 0 and 1, such as 0.9, received {coverage!r}")
