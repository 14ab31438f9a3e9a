"""Networks that several tests share: building one takes seconds."""

from __future__ import annotations

import functools
import importlib

import numpy as np
import pytest

from featx.backbones.build import build_network
from featx.backbones.catalog import CATALOG
from featx.backbones.source import resolve_backbone
from featx.quiet import quiet_import


@pytest.fixture(scope="session")
def keras():
    with quiet_import():
        import keras
    return keras


@pytest.fixture(scope="session")
def built(keras):
    """Build a backbone with ``random:0`` weights, once: its source and its network."""

    @functools.cache
    def build(name, size):
        source = resolve_backbone(name, weights="random:0", input_size=size)
        return source, build_network(source)

    return lambda name, size=64: build(name, size)


@pytest.fixture(scope="session")
def application_module(keras):
    """Find the module of `keras.applications` that a row's network and preprocessing are from."""

    def find(name):
        return importlib.import_module(
            getattr(keras.applications, CATALOG[name].keras_name).__module__
        )

    return find


@pytest.fixture
def pixels():
    def draw(*shape, seed=0):
        return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)

    return draw


@pytest.fixture(scope="session")
def vectors_of(keras):
    """Run a model with its taps: one array a tap."""

    def run(model, images):
        vectors = model(images)
        vectors = vectors if isinstance(vectors, (list, tuple)) else [vectors]
        return [keras.ops.convert_to_numpy(vector) for vector in vectors]

    return run


@pytest.fixture
def save_model(keras, tmp_path):
    """Save a small network of one's own, and return its name as a backbone."""

    def save(size=32, name="mine.keras", channels=3, tail=(), outputs=1):
        keras.utils.set_random_seed(1)
        images = keras.Input((size, size, channels))
        x = keras.layers.Conv2D(4, 3, strides=2, activation="relu")(images)
        x = keras.layers.Conv2D(5, 3, name="last_conv")(x)
        for layer in tail:
            x = layer(x)
        extra = [keras.layers.Conv2D(2, 1)(x) for _ in range(outputs - 1)]
        path = tmp_path / name
        keras.Model(images, [x, *extra] if extra else x).save(path)
        return f"file:{path}"

    return save


@pytest.fixture
def write_legacy_weights(keras):
    """Write weights in the format of the files that Keras publishes for its applications."""
    import h5py
    from keras.src.legacy.saving import legacy_h5_format

    def write(network, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w") as file:
            legacy_h5_format.save_weights_to_hdf5_group(file, network)
        return path

    return write
