"""A model on a small network, the pictures it knows, and what trains it."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import featx
from featx.finetuning.tuning import finetune

CLASSES = ("ant", "bee", "moth")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """A folder of 3 classes with 16 noisy pictures each; one class differs in its texture."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(5)
    rows = np.arange(48)[:, None, None]
    for code, name in enumerate(CLASSES):
        (folder / name).mkdir()
        for number in range(16):
            texture = 60 * np.sin(rows * (0.3 + 0.9 * code) + rng.uniform(0, 6))
            picture = rng.normal(0, 60, (48, 48, 3)) + 120 + texture
            image = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))
            image.save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def trained(pictures, cache, small_network, tmp_path_factory):
    """A function that gives the path of a model with a head."""
    folder = tmp_path_factory.mktemp("models")
    backbone = f"file:{small_network}"
    features = featx.extract(pictures, backbone=backbone, cache=cache)

    def train(head="logistic"):
        path = folder / f"{head.replace(':', '_')}.featx"
        if not path.exists():
            result = featx.train(features, head=head, backbone=backbone, cv=0, cache=cache)
            result.model.save(path, training=result.training)
        return path

    return train


@pytest.fixture
def tune(trained, pictures, cache, tmp_path):
    """Fine-tune the model with a logistic head; the layer `second` on, unless asked otherwise."""

    def run(output="tuned.featx", *, model=None, data=pictures, **options):
        usual = {"unfreeze": "second", "epochs": 3, "batch_size": 8, "views": 0}
        options = {**usual, "learning_rate": 1e-3, **options}
        return finetune(model or trained(), data, tmp_path / output, cache=cache, **options)

    return run
