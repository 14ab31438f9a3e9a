"""Backbones that are folders: a preset is trained like any network, a SavedModel is not."""

import json
import shutil

import numpy as np
import pytest

import featx
from featx.exceptions import FineTuningError


def train(backbone, pictures, cache, path):
    features = featx.extract(pictures, backbone=backbone, cache=cache, trust=True)
    result = featx.train(features, backbone=backbone, cv=0, cache=cache, trust=True)
    result.model.save(path)
    return path


def test_a_tuned_preset_lies_in_its_model(keras_hub, pictures, cache, tune, tmp_path):
    folder = tmp_path / "preset"
    folder.mkdir()
    described = {"registered_name": "keras_hub>VGG", "config": {"image_shape": [32, 32, 3]}}
    (folder / "config.json").write_text(json.dumps(described))
    converter = {"config": {"scale": 1 / 127.5, "offset": -1}}
    (folder / "image_converter.json").write_text(json.dumps(converter))
    model = train(f"hub:{folder}", pictures, cache, tmp_path / "m.featx")
    done = tune(model=model, unfreeze="stem", epochs=5)
    assert done.kept == "finetuned"
    images = sorted(pictures.glob("*/0.png"))
    expected = done.model.predict_proba(images)
    shutil.rmtree(folder)
    loaded = featx.load(done.path)
    np.testing.assert_allclose(loaded.predict_proba(images), expected, atol=1e-6)
    assert loaded.spec_.preprocessing == "tf"
    again = featx.extract(pictures, backbone=f"file:{done.path}", cache=cache)
    assert again.X.shape == (48, 4)


def test_a_saved_model_has_no_layers_to_train(hub_module, pictures, cache, tune, tmp_path):
    model = train(f"savedmodel:{hub_module}", pictures, cache, tmp_path / "m.featx")
    with pytest.raises(FineTuningError, match="one function without layers to train: expected"):
        tune(model=model, unfreeze="all")
