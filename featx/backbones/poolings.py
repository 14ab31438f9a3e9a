"""How a feature map becomes one vector an image."""

from __future__ import annotations

from typing import Any

from featx.backbones.taps import Tap
from featx.exceptions import BackboneError

_GEM_FLOOR = 1e-6


def pool(features: Any, tap: Tap) -> Any:
    """Pool a feature map.

    Parameters
    ----------
    features : keras tensor of shape (n, h, w, c), (n, t, c) or (n, d)
        A layer's output. Vectors pass unchanged.
    tap : Tap
        Which pooling. ``gem`` is the generalised mean of Radenovic et al., "Fine-tuning CNN image
        retrieval with no human annotation" (2018), equation 3, of the values clipped at 1e-6.

    Returns
    -------
    keras tensor of shape (n, d)

    Raises
    ------
    BackboneError
        If the output has no positions to pool over, or fewer than a grid has cells.
    """
    from keras import ops

    rank = len(features.shape)
    if rank == 2:
        return features
    if rank not in (3, 4):
        raise BackboneError(f"tap {tap} has an output of shape {features.shape}: not poolable")
    axes = tuple(range(1, rank - 1))
    if tap.pooling == "avg":
        return ops.mean(features, axis=axes)
    if tap.pooling == "max":
        return ops.max(features, axis=axes)
    if tap.pooling == "gem":
        powered = ops.power(ops.maximum(features, _GEM_FLOOR), float(tap.argument))
        return ops.power(ops.mean(powered, axis=axes), 1.0 / tap.argument)
    if tap.pooling == "flatten":
        size = 1
        for extent in features.shape[1:]:
            size *= int(extent)
        return ops.reshape(features, (-1, size))
    return _grid(features, tap, ops)


def _grid(features: Any, tap: Tap, ops: Any) -> Any:
    # Cells as in adaptive average pooling: from floor(i*h/k) to ceil((i+1)*h/k).
    cells = tap.argument
    if len(features.shape) != 4 or min(features.shape[1:3]) < cells:
        raise BackboneError(
            f"tap {tap} needs a feature map of at least {cells}x{cells} positions, received shape "
            f"{features.shape}"
        )
    height, width = (int(extent) for extent in features.shape[1:3])
    means = []
    for row in range(cells):
        top, bottom = row * height // cells, -(-(row + 1) * height // cells)
        for column in range(cells):
            left, right = column * width // cells, -(-(column + 1) * width // cells)
            means.append(ops.mean(features[:, top:bottom, left:right, :], axis=(1, 2)))
    return ops.concatenate(means, axis=-1)
