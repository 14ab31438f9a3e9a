"""`evaluate` knows images again that a model was trained on, with the model's file alone."""

from __future__ import annotations

import json

import numpy as np
import pytest

import featx
from featx.models import training_keys
from featx.models.training_keys import count_training_images, encode_keys, overlap_note


def features_of(folder, n=34, seed=0, splits=None):
    """Features that are of one specification for one `seed`, wherever they are imported."""
    generator = np.random.default_rng(seed)
    codes = np.arange(n) % 2
    X = (generator.normal(size=(n, 6)) + 3 * codes[:, None]).astype(np.float32)
    y = np.array(["a", "b"])[codes]
    return featx.import_features("numbers", X, y=y, splits=splits, cache=folder)


def saved(folder):
    features = features_of(folder / "trained-in")
    featx.train(features, head="ridge").model.save(folder / "m.featx")
    return folder / "m.featx", features


def test_training_images_are_named_by_a_model_and_nothing_else(tmp_path, caplog):
    path, _ = saved(tmp_path)
    model = featx.load(path)
    (tmp_path / "trained-in").rename(tmp_path / "gone")
    there = features_of(tmp_path / "elsewhere")
    overlap = featx.evaluate(model, there, bootstrap=0)["training_overlap"]
    assert overlap == {"images": 34, "compared": 34, "in_training": 34}
    assert "34 of 34 images were used in training: this is not a measure of accuracy" in caplog.text


def test_some_and_none_of_the_images(tmp_path, caplog):
    splits = ["train"] * 24 + ["test"] * 10
    features = features_of(tmp_path, splits=splits)
    model = featx.train(features, head="ridge").model
    overlap = featx.evaluate(model, features, bootstrap=0)["training_overlap"]
    assert overlap == {"images": 10, "compared": 10, "in_training": 0}
    assert "used in training" not in caplog.text
    every = features_of(tmp_path)
    overlap = featx.evaluate(model, every, bootstrap=0)["training_overlap"]
    assert overlap == {"images": 34, "compared": 34, "in_training": 24}
    assert "24 of 34 images were used in training" in caplog.text
    compared = featx.compare_models(model, model, every, bootstrap=0)
    assert compared["training_overlap"] == [overlap, overlap]


@pytest.mark.parametrize("keys", [None, "not base64!", "AAAA", 7])
def test_a_file_that_does_not_say_is_believed_to_say_nothing(tmp_path, rewrite, caplog, keys):
    path, features = saved(tmp_path)

    def change(said):
        del said["training"]["keys"]
        if keys is not None:
            said["training"]["keys"] = keys

    rewrite(path, change)
    found = featx.evaluate(featx.load(path), features, bootstrap=0)
    assert "training_overlap" not in found
    assert not caplog.text


def test_the_command_says_it_and_gives_it_as_json(tmp_path, featx_command):
    path, features = saved(tmp_path)
    options = ("--cache", tmp_path / "trained-in", "--bootstrap", "0")
    shown = featx_command("evaluate", path, features.name, *options)
    assert "34 of 34 images were used in training" in shown.stderr + shown.stdout
    told = featx_command("evaluate", path, features.name, *options, "--json")
    assert json.loads(told.stdout)["training_overlap"]["in_training"] == 34


def test_of_many_images_a_sample_is_kept_and_tells_of_the_share(monkeypatch):
    monkeypatch.setattr(training_keys, "MOST_KEYS", 1000)
    generator = np.random.default_rng(0)
    keys = generator.integers(0, 256, (20_000, 32), dtype=np.uint8)
    others = generator.integers(0, 256, (20_000, 32), dtype=np.uint8)
    stated = {"keys": encode_keys(keys)}
    assert len(stated["keys"]) < 1000 * 8 * 4 / 3 + 8
    seen = count_training_images(stated, np.concatenate([keys[:5000], others[:5000]]))
    assert seen["images"] == 10_000
    assert 400 < seen["compared"] < 600
    assert seen["in_training"] / seen["compared"] == pytest.approx(0.5, abs=0.1)
    assert "images were looked up" in overlap_note(seen)
    assert count_training_images(stated, others)["in_training"] == 0
