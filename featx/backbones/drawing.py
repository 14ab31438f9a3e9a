"""Random weights that are the same on every machine and under every Keras backend."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.backbones.catalog import Preprocessing

_SAMPLES = 256
_LEAST_IMAGES = 4
_STRIDE_PX = 32
_OFFSET = 1.0
_STEEPEST = 2.0
_COLOUR = 0.5
_BRIGHTNESS = (64.0, 192.0)
_CONTRAST = (20.0, 80.0)


def draw_images(shape: tuple[int, int, int], seed: int | np.random.Generator) -> NDArray[np.uint8]:
    """Draw images that a network takes for photographs, from rough to smooth.

    Their amplitude spectra fall as 1/f**a, and their channels go together. Photographs have a
    around 1, see Field, "Relations between the statistics of natural images and the response
    properties of cortical cells" (1987); here a goes from 0 (noise) to 2 through the images.

    Parameters
    ----------
    shape : tuple of three int
        Number of images, height and width in pixels.
    seed : int or numpy.random.Generator
        The same seed gives the same images.

    Returns
    -------
    images : ndarray of shape (n, h, w, 3), uint8
    """
    generator = np.random.default_rng(seed)
    count, height, width = shape
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency = np.maximum(frequency, 1.0 / max(height, width))[:, :, None]
    images = np.empty((count, height, width, 3), np.uint8)
    for index, fall in enumerate((np.arange(count) + generator.uniform(size=count)) / count):
        white = generator.standard_normal((height, width, 1))
        white = white + _COLOUR * generator.standard_normal((height, width, 3))
        spectrum = np.fft.rfft2(white, axes=(0, 1)) * frequency ** (-_STEEPEST * fall)
        waves = np.fft.irfft2(spectrum, (height, width), axes=(0, 1))
        waves *= generator.uniform(*_CONTRAST) / max(float(waves.std()), 1e-12)
        waves += generator.uniform(*_BRIGHTNESS, 3)
        images[index] = np.clip(np.rint(waves), 0, 255)
    return images


def draw_weights(network: Any, seed: int, preprocessing: Preprocessing) -> None:
    """Fill a network with random weights whose activations neither vanish nor overflow.

    Kernels are drawn as in He et al., "Delving deep into rectifiers" (2015), equation 10, from
    NumPy's PCG64. The statistics of BatchNorm layers are then set by one pass over drawn images in
    training mode, since deep networks with drawn statistics lose their signal.

    The offsets of those layers are 1, one standard deviation. With offsets of 0, rectifiers fold
    every map in the middle, and differences grow by a factor a layer (Yang et al., "A mean field
    theory of batch normalization", 2019): a few images outgrow all others, and rounding shows in
    the fourth digit.

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
            continue  # scales and biases keep the values that Keras gives them
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
    # nothing, and dividing by it overflows some layers on, or magnifies rounding.
    positions = max(1, height // _STRIDE_PX) * max(1, width // _STRIDE_PX)
    count = max(_LEAST_IMAGES, -(-_SAMPLES // positions))
    pixels = draw_images((count, height, width), generator)
    images = pixels * np.asarray(preprocessing.scale, np.float32)
    images += np.asarray(preprocessing.offset, np.float32)
    for layer in norms:
        layer.momentum = 0.0
        if layer.center:
            layer.beta.assign(np.full(layer.beta.shape, _OFFSET, np.float32))
    for layer in drops:
        layer.rate = 0.0
    try:
        network(images, training=True)
    finally:
        for layer, attribute, value in kept:
            setattr(layer, attribute, value)
