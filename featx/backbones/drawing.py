"""Random weights that are the same on every machine and under every Keras backend."""

from __future__ import annotations

from typing import Any

import numpy as np

from featx.backbones.catalog import Preprocessing

__all__ = ["draw_weights"]

_SAMPLES = 64
_LEAST_IMAGES = 2
_STRIDE_PX = 32


def draw_weights(network: Any, seed: int, preprocessing: Preprocessing) -> None:
    """Fill a network with random weights whose activations neither vanish nor overflow.

    Kernels are drawn as in He et al., "Delving deep into rectifiers" (2015), equation 10, from
    NumPy's PCG64. The statistics of BatchNorm layers are then set by one pass over noise images in
    training mode, since deep networks with drawn statistics lose their signal.

    Parameters
    ----------
    network : keras.Model
        Changed in place.
    seed : int
        The same seed gives the same kernels; statistics agree to rounding.
    preprocessing : Preprocessing
        How pixels become the network's input.
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    for variable in network.weights:
        shape = tuple(variable.shape)
        if len(shape) < 2:
            continue  # scales, offsets and statistics keep the values that Keras gives them
        depthwise = len(shape) == 4 and "depthwise" in variable.path
        fan_in = shape[0] * shape[1] if depthwise else int(np.prod(shape[:-1]))
        values = generator.standard_normal(shape, dtype=np.float32) * np.sqrt(2.0 / fan_in)
        variable.assign(values.astype(np.float32))
    _calibrate(network, generator, preprocessing)


def _calibrate(network: Any, generator: np.random.Generator, preprocessing: Preprocessing) -> None:
    from keras import layers

    norms = [layer for layer in network.layers if isinstance(layer, layers.BatchNormalization)]
    if not norms:
        return
    drops = [layer for layer in network.layers if hasattr(layer, "rate")]
    kept = [(layer, "momentum", layer.momentum) for layer in norms]
    kept += [(layer, "rate", layer.rate) for layer in drops]
    height, width = (int(n) for n in network.inputs[0].shape[1:3])
    # The last map of a small input has few positions: a variance of so few values may be next to
    # nothing, and dividing by it overflows some layers on.
    positions = max(1, height // _STRIDE_PX) * max(1, width // _STRIDE_PX)
    images = max(_LEAST_IMAGES, -(-_SAMPLES // positions))
    pixels = generator.uniform(0.0, 255.0, (images, 8, 8, 3))
    coarse = (pixels * preprocessing.scale + preprocessing.offset).astype(np.float32)
    noise = np.repeat(np.repeat(coarse, -(-height // 8), axis=1), -(-width // 8), axis=2)
    for layer in norms:
        layer.momentum = 0.0
    for layer in drops:
        layer.rate = 0.0
    try:
        network(noise[:, :height, :width], training=True)
    finally:
        for layer, attribute, value in kept:
            setattr(layer, attribute, value)
