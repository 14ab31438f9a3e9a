"""Build a network with its taps: uint8 RGB pixels in, one vector a tap out."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from featx.backbones.catalog import Backbone
from featx.backbones.networks import NETWORK_KINDS
from featx.backbones.preprocessing import Preprocessing, find_preprocessing
from featx.backbones.source import BackboneSource
from featx.backbones.taps import parse_tap, pool, require_channels_last, tap_tensors
from featx.backbones.weights import misfit, readable
from featx.exceptions import BackboneError, WeightsError, reason
from featx.forks import require_threads
from featx.quiet import quiet_import, quiet_loading

if TYPE_CHECKING:
    import keras

HalfType = Literal["float16", "bfloat16"]

_SAMPLES = 256
_LEAST_IMAGES = 4
_STRIDE_PX = 32
_OFFSET = 1.0
_STEEPEST = 2.0
_COLOUR = 0.5
_BRIGHTNESS = (64.0, 192.0)
_CONTRAST = (20.0, 80.0)


def build_network(source: BackboneSource, *, mixed: HalfType | None = None) -> keras.Model:
    """Return a frozen network with its weights, without its top, from preprocessed float input.

    `mixed` is the number type to compute in; weights stay float32.
    """
    require_threads("Keras")
    with quiet_import():
        import keras  # noqa: F401
    row = source.row
    network = _load_own(source) if row is None else _build_catalogued(source, row)
    network.trainable = False
    if mixed is not None:
        if row is None and NETWORK_KINDS[source.kind].opaque:
            raise BackboneError(
                f"{source.name} computes in the number types that it was saved with: expected the "
                "precision 'f32', received 'mixed'; leave --precision out"
            )
        # Layer by layer, afterwards: the policy for new layers belongs to the process, does not
        # reach the layers of a saved network, and would calibrate random weights.
        for layer in network._flatten_layers():
            if layer.dtype_policy.name == "float32":  # others were chosen by the network's maker
                layer.dtype_policy = f"mixed_{mixed}"
    return network


def _load_own(source: BackboneSource) -> keras.Model:
    path, (height, width) = source.weights.path, source.input_size_px
    assert path is not None
    kind = NETWORK_KINDS[source.kind]
    model = kind.load(path, source.input_size_px, source.preprocessing)
    inputs, outputs = model.inputs or [], model.outputs or []
    if len(inputs) != 1 or (len(outputs) != 1 and not kind.opaque):
        raise BackboneError(
            f"{path} has {len(inputs)} inputs and {len(outputs)} outputs; expected one of each"
        )
    shape = tuple(inputs[0].shape[1:])
    if len(shape) != 3 or any(
        extent not in (None, expected)
        for extent, expected in zip(shape, (height, width, 3), strict=True)
    ):
        raise BackboneError(
            f"{path} takes inputs of shape {shape}; expected RGB pixels, here ({height}, {width}, "
            "3): leave --input-size out, or save a model that takes this size"
        )
    return model


def _build_catalogued(source: BackboneSource, row: Backbone) -> keras.Model:
    import keras

    builder = getattr(keras.applications, row.keras_name)
    network = builder(
        include_top=False,
        weights=None,
        input_shape=(*source.input_size_px, 3),
        **dict(row.arguments),
    )
    path, seed = source.weights.path, source.weights.seed
    if path is None:
        assert seed is not None
        draw_weights(network, seed, find_preprocessing(source.preprocessing)[1])
        return network
    try:
        with readable(path) as file, quiet_loading():
            network.load_weights(file)
    except WeightsError:
        raise
    except Exception as error:  # h5py and Keras raise many kinds
        with readable(path) as file:
            raise misfit(row, path, file, error) from error
    return network


def preprocess(pixels: keras.KerasTensor, name: str) -> keras.KerasTensor:
    """Map pixels (n, h, w, 3), 0 to 255 RGB of any type, to a network's float32 input."""
    from keras import layers, ops

    _, rule = find_preprocessing(name)
    x = ops.cast(pixels, "float32")
    if rule.bgr:
        x = ops.flip(x, axis=-1)
    if set(rule.scale) == {1.0} and set(rule.offset) == {0.0}:
        return x
    scale, offset = list(rule.scale), list(rule.offset)
    return layers.Rescaling(scale, offset, dtype="float32", name="featx_preprocessing")(x)


def build_tap_model(
    source: BackboneSource,
    taps: tuple[str, ...],
    *,
    network: keras.Model | None = None,
    mixed: HalfType | None = None,
) -> keras.Model:
    """Return the model of an engine, from uint8 pixels (n, h, w, 3) to float32 vectors (n, d).

    It has one output a tap, in their order. `network` is the network where it has been built
    already, `mixed` or not; preprocessing, pooling and vectors are float32 all the same.
    """
    with quiet_import():
        import keras
    if network is None:
        network = build_network(source, mixed=mixed)
    parsed = [parse_tap(name) for name in taps]
    by_tap = [tap_tensors(network, source, tap) for tap in parsed]
    pooled = [(tap, tensor) for tap, part in zip(parsed, by_tap, strict=True) for tensor in part]
    for tap, tensor in pooled:
        require_channels_last(tensor, source, tap)
    height, width = source.input_size_px
    pixels = keras.Input((height, width, 3), dtype="uint8", name="pixels")
    trunk = keras.Model(network.inputs, [tensor for _, tensor in pooled], name="featx_trunk")
    try:
        maps = trunk(preprocess(pixels, source.preprocessing), training=False)
    except Exception as error:  # Keras raises what the network's layers raise
        raise BackboneError(
            f"{source.name} cannot be applied to inputs of {height}x{width} px: {reason(error)}. "
            "Give the size that it takes with --input-size (input_size=...)"
        ) from error
    maps = maps if isinstance(maps, (list, tuple)) else [maps]
    # Powers and sums over a map leave the range of half precision.
    maps = [keras.ops.cast(x, "float32") for x in maps]
    each = iter([pool(x, tap) for x, (tap, _) in zip(maps, pooled, strict=True)])
    joint = [list(islice(each, len(part))) for part in by_tap]
    vectors = [one[0] if len(one) == 1 else keras.ops.concatenate(one, axis=-1) for one in joint]
    model = keras.Model(pixels, vectors, name="featx_taps")
    model.trainable = False
    return model


def draw_images(shape: tuple[int, int, int], seed: int | np.random.Generator) -> NDArray[np.uint8]:
    """Return images (n, h, w, 3) that a network takes for photographs, from rough to smooth.

    Notes
    -----
    Their amplitude spectra fall as 1/f**a, and their channels go together. Photographs have a
    around 1, see Field, "Relations between the statistics of natural images and the response
    properties of cortical cells" (1987); here a goes from 0 (noise) to 2 through the images.
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


def draw_weights(network: keras.Model, seed: int, preprocessing: Preprocessing) -> None:
    """Fill a network with random weights whose activations neither vanish nor overflow.

    The same seed gives the same kernels on every machine and under every Keras backend; the
    statistics of BatchNorm layers agree to rounding.

    Notes
    -----
    Kernels are drawn as in He et al., "Delving deep into rectifiers" (2015), equation 10, from
    NumPy's PCG64. The statistics of BatchNorm layers are then set by one pass over drawn images in
    training mode, since deep networks with drawn statistics lose their signal.

    The offsets of those layers are 1, one standard deviation. With offsets of 0, rectifiers fold
    every map in the middle, and differences grow by a factor a layer (Yang et al., "A mean field
    theory of batch normalization", 2019): a few images outgrow all others, and rounding shows in
    the fourth digit.
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


def _calibrate(
    network: keras.Model, generator: np.random.Generator, preprocessing: Preprocessing
) -> None:
    from keras import layers

    norms = [layer for layer in network.layers if isinstance(layer, layers.BatchNormalization)]
    if not norms:
        return
    drops = [layer for layer in network.layers if hasattr(layer, "rate")]
    before = [(layer, "momentum", layer.momentum) for layer in norms]
    before += [(layer, "rate", layer.rate) for layer in drops]
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
        for layer, attribute, value in before:
            setattr(layer, attribute, value)
