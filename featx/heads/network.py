"""The forward pass of dense layers in NumPy, so that predicting needs no Keras."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

DenseWeights = list[tuple[NDArray[np.float32], NDArray[np.float32]]]
"""One (kernel of shape (inputs, outputs), bias of shape (outputs,)) a layer, float32."""


def initial_weights(sizes: Sequence[int], rng: np.random.Generator) -> DenseWeights:
    """Draw the weights that training starts from.

    Drawn here and not by Keras, whose draws depend on its backend and consume global state.

    Parameters
    ----------
    sizes : sequence of int
        Width of the features, of every hidden layer, and the number of classes.
    rng : numpy.random.Generator

    Returns
    -------
    weights : list of (kernel, bias)
        Uniform kernels after Glorot and Bengio, "Understanding the difficulty of training deep
        feedforward neural networks", AISTATS 2010, eq. 16; biases 0.

    Examples
    --------
    >>> [kernel.shape for kernel, _ in initial_weights([4, 3, 2], np.random.default_rng(0))]
    [(4, 3), (3, 2)]
    """
    weights: DenseWeights = []
    for inputs, outputs in pairwise(sizes):
        limit = np.sqrt(6.0 / (inputs + outputs))
        kernel = rng.uniform(-limit, limit, size=(inputs, outputs)).astype(np.float32)
        weights.append((kernel, np.zeros(outputs, dtype=np.float32)))
    return weights


def logits(X: NDArray[np.float32], weights: DenseWeights) -> NDArray[np.float32]:
    """Run the features through the layers: rectified, but for the last one.

    Parameters
    ----------
    X : ndarray of shape (n, d), float32
    weights : list of (kernel, bias)

    Returns
    -------
    logits : ndarray of shape (n, k), float32

    Examples
    --------
    >>> layer = (np.eye(2, dtype="f4"), np.ones(2, dtype="f4"))
    >>> logits(np.array([[1.0, -3.0]], dtype="f4"), [layer, layer])
    array([[3., 1.]], dtype=float32)
    """
    values = X
    for depth, (kernel, bias) in enumerate(weights, start=1):
        values = values @ kernel
        values += bias
        if depth < len(weights):
            np.maximum(values, 0, out=values)
    return values


def softmax(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Turn logits into probabilities; no logit is too large.

    Parameters
    ----------
    scores : ndarray of shape (n, k), float32

    Returns
    -------
    probabilities : ndarray of shape (n, k), float32
        Rows sum to 1.

    Examples
    --------
    >>> softmax(np.array([[1000.0, 1000.0]], dtype="f4"))
    array([[0.5, 0.5]], dtype=float32)
    """
    powers: NDArray[np.float32] = np.exp(scores - scores.max(axis=1, keepdims=True))
    powers /= powers.sum(axis=1, keepdims=True)
    return powers


def parameter_count(hidden: Sequence[int], width: int, outputs: int) -> int:
    """How many numbers layers hold.

    Examples
    --------
    >>> parameter_count((8,), 4, 3)
    67
    """
    return sum((a + 1) * b for a, b in pairwise([width, *hidden, outputs]))


def sigmoid(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Turn logits into the probability of each label by itself; no logit is too large.

    Parameters
    ----------
    scores : ndarray of shape (n, k), float32

    Returns
    -------
    probabilities : ndarray of shape (n, k), float32

    Examples
    --------
    >>> sigmoid(np.array([[0.0, 1000.0, -1000.0]], dtype="f4"))
    array([[0.5, 1. , 0. ]], dtype=float32)
    """
    probabilities: NDArray[np.float32] = np.exp(-np.logaddexp(0, -scores))
    return probabilities
