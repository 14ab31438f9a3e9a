"""Images mixed in pairs, and their labels with them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.finetuning.options import Mixing


def mix(
    inputs: list[NDArray[Any]],
    targets: NDArray[np.float32],
    how: Mixing,
    alpha: float,
    rng: np.random.Generator,
) -> tuple[list[NDArray[Any]], NDArray[np.float32]]:
    """Mix every image of a batch with another one of it."""
    if how == "none" or len(targets) < 2:
        return inputs, targets
    share = float(rng.beta(alpha, alpha))
    partner = rng.permutation(len(targets))
    if how == "mixup":
        inputs = [_blend(x, x[partner], share) for x in inputs]
    else:
        box = _box(share, rng)
        inputs = [_paste(x, x[partner], box) for x in inputs]
        share = _left(inputs[0].shape, box)
    blended: NDArray[np.float32] = share * targets + (1 - share) * targets[partner]
    return inputs, blended.astype(np.float32)


def _blend(a: NDArray[Any], b: NDArray[Any], share: float) -> NDArray[Any]:
    mixed = share * a.astype(np.float32) + (1 - share) * b.astype(np.float32)
    return np.rint(mixed).astype(np.uint8) if a.dtype == np.uint8 else mixed.astype(a.dtype)


def _box(share: float, rng: np.random.Generator) -> tuple[float, float, float, float]:
    """Draw top, bottom, left and right, as fractions; what lies inside the image counts."""
    side = math.sqrt(1 - share)
    y, x = rng.random(), rng.random()
    return (
        max(0.0, y - side / 2),
        min(1.0, y + side / 2),
        max(0.0, x - side / 2),
        min(1.0, x + side / 2),
    )


def _sides(shape: tuple[int, ...], box: tuple[float, float, float, float]) -> tuple[int, ...]:
    (height, width), (top, bottom, left, right) = shape[1:3], box
    return round(top * height), round(bottom * height), round(left * width), round(right * width)


def _paste(
    a: NDArray[Any], b: NDArray[Any], box: tuple[float, float, float, float]
) -> NDArray[Any]:
    if a.ndim != 4:
        return a
    top, bottom, left, right = _sides(a.shape, box)
    pasted = a.copy()
    pasted[:, top:bottom, left:right] = b[:, top:bottom, left:right]
    return pasted


def _left(shape: tuple[int, ...], box: tuple[float, float, float, float]) -> float:
    """Return the share of an image that is its own, counted in its positions."""
    if len(shape) != 4:
        return 1.0
    top, bottom, left, right = _sides(shape, box)
    return 1 - (bottom - top) * (right - left) / (shape[1] * shape[2])
