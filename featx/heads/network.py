"""The forward pass of dense layers in NumPy, so that predicting needs no Keras."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

DenseWeights = list[tuple[NDArray[np.float32], NDArray[np.float32]]]
"""One (kernel of shape (inputs, outputs), bias of shape (outputs,)) a layer, float32."""


def initial_weights(sizes: Sequence[int], rng: np.random.Generator) -> DenseWeights:
    """Draw the weights that training starts from."""
    weights: DenseWeights = []
    for inputs, outputs in pairwise(sizes):
        limit = np.sqrt(6.0 / (inputs + outputs))
        kernel = rng.uniform(-limit, limit, size=(inputs, outputs)).astype(np.float32)
        weights.append((kernel, np.zeros(outputs, dtype=np.float32)))
    return weights


def logits(X: NDArray[np.float32], weights: DenseWeights) -> NDArray[np.float32]:
    """Run the features through the layers: rectified, but for the last one."""
    values = X
    for depth, (kernel, bias) in enumerate(weights, start=1):
        values = values @ kernel
        values += bias
        if depth < len(weights):
            np.maximum(values, 0, out=values)
    return values


def softmax(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Turn logits into probabilities; no logit is too large."""
    powers: NDArray[np.float32] = np.exp(scores - scores.max(axis=1, keepdims=True))
    powers /= powers.sum(axis=1, keepdims=True)
    return powers


def parameter_count(hidden: Sequence[int], width: int, outputs: int) -> int:
    """How many numbers layers hold."""
    return sum((a + 1) * b for a, b in pairwise([width, *hidden, outputs]))


def sigmoid(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Turn logits into the probability of each label by itself; no logit is too large."""
    probabilities: NDArray[np.float32] = np.exp(-np.logaddexp(0, -scores))
    return probabilities
