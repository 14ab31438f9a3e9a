"""A network small enough to run in a blink."""

from __future__ import annotations

import numpy as np
import pytest

from featx.backbones.source import resolve_backbone
from featx.quiet import quiet_import


@pytest.fixture(scope="session")
def keras():
    with quiet_import():
        import keras
    return keras


@pytest.fixture(scope="session")
def source(keras, tmp_path_factory):
    keras.utils.set_random_seed(0)
    images = keras.Input((24, 32, 3))
    x = keras.layers.Conv2D(8, 3, strides=2, activation="relu", name="stem")(images)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Conv2D(6, 3, activation="relu", name="last_conv")(x)
    x = keras.layers.Dropout(0.5)(x)
    path = tmp_path_factory.mktemp("engines") / "small.keras"
    keras.Model(images, x).save(path)
    return resolve_backbone(f"file:{path}", preprocessing="tf")


@pytest.fixture
def pixels():
    def draw(count, height=24, width=32, seed=0):
        generator = np.random.default_rng(seed)
        return generator.integers(0, 256, (count, height, width, 3), dtype=np.uint8)

    return draw
