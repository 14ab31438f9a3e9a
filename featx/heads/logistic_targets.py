"""What logistic regression learns from a stream: one class a row, or any number of labels."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, log_expit, logsumexp

# A share below this is taken for it, so that its logarithm is a number.
LEAST = 1e-6


class Targets(Protocol):
    """What an objective over rows is made of."""

    outputs: int
    totals: NDArray[np.float64]

    def shares(self) -> NDArray[np.float64]:
        """Give the log odds (outputs,) that the shares of classes or labels say."""

    def spread(self) -> NDArray[np.float64]:
        """Give the mean of ``p (1 - p)`` of each output where the shares are all that is known."""

    def judge(
        self, Z: NDArray[np.float64], rows: NDArray[np.intp]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Judge logits (b, outputs) of rows; they may be overwritten."""


class ClassTargets:
    """One class a row; see `Targets`. Two classes have one output."""

    def __init__(self, codes: NDArray[np.intp], by_class: NDArray[np.float64]) -> None:
        self._codes, self._by_class = codes, by_class
        counts = by_class * np.bincount(codes, minlength=len(by_class))
        self.totals = counts.sum(keepdims=True)
        self._shares = counts / self.totals
        self.outputs = 1 if len(by_class) == 2 else len(by_class)

    def shares(self) -> NDArray[np.float64]:
        """Give log odds of the classes' shares."""
        logs = np.log(np.maximum(self._shares, LEAST))
        odds: NDArray[np.float64] = logs[1:] - logs[:1] if self.outputs == 1 else logs - logs.mean()
        return odds

    def spread(self) -> NDArray[np.float64]:
        """Give the mean of ``p (1 - p)`` by the classes' shares."""
        spread: NDArray[np.float64] = np.maximum(self._shares * (1 - self._shares), LEAST)
        return spread[1:] if self.outputs == 1 else spread

    def judge(
        self, Z: NDArray[np.float64], rows: NDArray[np.intp]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Judge logits; see `Targets`."""
        codes = self._codes[rows]
        weights = self._by_class[codes]
        losses, P = _class_losses(Z, codes)
        spread: NDArray[np.float64] = weights @ (P * (1 - P))
        single = P.shape[1] == 1
        P[np.arange(len(P)), codes - single] -= codes >= single
        P *= weights[:, None]
        return np.array([weights @ losses]), spread, P


class LabelTargets:
    """Any number of labels a row, each a problem of its own; see `Targets`."""

    def __init__(self, labels: NDArray[Any], weights: NDArray[np.float64]) -> None:
        self._labels, self._weights = labels.view(np.bool_), weights
        present = self._labels.sum(axis=0)
        counts = weights * np.stack([len(labels) - present, present])
        self.totals = counts.sum(axis=0)
        self._shares = np.maximum(counts / self.totals, LEAST)
        self.outputs = labels.shape[1]

    def take(self, columns: NDArray[np.intp]) -> LabelTargets:
        """Return some of the labels."""
        labels = np.ascontiguousarray(self._labels[:, columns])
        return LabelTargets(labels, self._weights[:, columns])

    def shares(self) -> NDArray[np.float64]:
        """Give log odds of the labels' shares."""
        odds: NDArray[np.float64] = np.log(self._shares[1]) - np.log(self._shares[0])
        return odds

    def spread(self) -> NDArray[np.float64]:
        """Give the mean of ``p (1 - p)`` by the labels' shares."""
        spread: NDArray[np.float64] = np.maximum(self._shares[0] * self._shares[1], LEAST)
        return spread

    def judge(
        self, Z: NDArray[np.float64], rows: NDArray[np.intp]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Judge logits; see `Targets`."""
        labels = self._labels[rows]
        weights = np.where(labels, self._weights[1], self._weights[0])
        P = expit(Z)
        np.negative(Z, out=Z, where=labels)
        losses = np.logaddexp(0, Z)
        spread = np.einsum("ij,ij,ij->j", weights, P, 1 - P)
        P -= labels
        P *= weights
        return np.einsum("ij,ij->j", weights, losses), spread, P


def _class_losses(
    Z: NDArray[np.float64], codes: NDArray[np.intp]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return each row's loss and the probabilities (b, k), of the second class alone for two."""
    if Z.shape[1] == 1:
        signed = np.where(codes == 1, Z[:, 0], -Z[:, 0])
        return -log_expit(signed), expit(Z)
    logs = logsumexp(Z, axis=1)
    losses = logs - Z[np.arange(len(Z)), codes]
    Z -= logs[:, None]
    return losses, np.exp(Z)
