"""What an extraction was given once, later steps find by themselves."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from onnx_files import NET, node, write_net

import featx
from featx.cache.layout import CacheLayout
from featx.cache.records import Origin, recall_origin, remember_origin
from featx.exceptions import BackboneError, WeightsError

SIZE = ("--input-size", "32")


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory):
    """Weights of a MobileNet that nobody published."""
    from featx.quiet import quiet_import

    with quiet_import():
        import keras
    keras.utils.set_random_seed(3)
    network = keras.applications.MobileNet(include_top=False, weights=None, input_shape=(32, 32, 3))
    path = tmp_path_factory.mktemp("weights") / "mine.weights.h5"
    network.save_weights(path)
    return path


@pytest.fixture(autouse=True)
def nowhere_else(monkeypatch, tmp_path):
    """No published weights, and no way to get them."""
    monkeypatch.setenv("FEATX_OFFLINE", "1")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "no-keras"))
    monkeypatch.delenv("FEATX_WEIGHTS", raising=False)


def test_weights_are_named_once(photos, weights_file, tmp_path, monkeypatch):
    weights = shutil.copy(weights_file, tmp_path / "w.weights.h5")
    asked = {"backbone": "mobilenet", "input_size": 32, "engine": "keras"}
    cache = tmp_path / "cache"
    features = featx.extract(photos, **asked, weights=weights, cache=cache)
    images = [str(path) for path in sorted(photos.rglob("*.jpg"))[:2]]
    for known in (features, featx.Features.open("photos", cache=cache)):
        result = featx.train(known, head="ridge", cv=0)
        result.model.save(tmp_path / "m.featx")
        expected = result.model.predict_proba(features.X[:2])
        found = featx.load(tmp_path / "m.featx").predict_proba(images)
        np.testing.assert_allclose(found, expected, atol=1e-4)
    assert featx.search(features, heads="ridge:alpha=1", score="none").model.weights == str(weights)
    again = featx.extract(photos, **asked, cache=cache)
    assert again.report["extracted"] == 0
    assert again.spec() == features.spec()
    assert featx.extract("photos", **asked, cache=cache).spec() == features.spec()

    # Moved, and found again by their digest, under whatever name.
    (tmp_path / "folder").mkdir()
    shutil.move(weights, tmp_path / "folder" / "renamed.weights.h5")
    shutil.copy(weights_file, tmp_path / "folder" / "other.h5")
    with (tmp_path / "folder" / "other.h5").open("ab") as file:
        file.write(b"changed")
    digest = features.spec().weights_sha256[:16]
    expected_error = (
        rf"'photos' was extracted with weights of mobilenet \(SHA-256 {digest}\.\.\.\) that were "
        r"'.*w\.weights\.h5' .* with --weights .*FEATX_WEIGHTS; --weights imagenet takes"
    )
    for data in (photos, "photos"):
        with pytest.raises(WeightsError, match=expected_error):
            featx.extract(data, **asked, cache=cache, taps="max")
    model = featx.load(tmp_path / "m.featx")
    with pytest.raises(WeightsError, match=rf"was trained with .*\(SHA-256 {digest}.*--weights"):
        model.predict(images)
    monkeypatch.setenv("FEATX_WEIGHTS", str(tmp_path / "folder"))
    np.testing.assert_allclose(model.predict_proba(images), expected, atol=1e-4)
    assert featx.extract(photos, **asked, cache=cache).report["extracted"] == 0


def test_commands_do_not_ask_again(photos, featx_command):
    extract = ("-b", "mobilenet", *SIZE, "--engine", "keras")
    first = featx_command("extract", photos, *extract, "--weights", "random:3")
    assert first.returncode == 0, first.stderr
    train = featx_command("train", photos, *extract, "-o", "m.featx", "--head", "ridge")
    assert train.returncode == 0, train.stderr
    assert "photos was extracted with the weights random:3, which are used" in train.stderr
    image = next(photos.rglob("*.jpg"))
    for command in (("predict", "m.featx", image), ("evaluate", "m.featx", photos)):
        result = featx_command(*command)
        assert result.returncode == 0, result.stderr


def test_networks_of_ones_own_are_found_by_path_and_preprocessing(photos, small_network, tmp_path):
    cache = tmp_path / "cache"
    backbone = f"file:{small_network}"
    features = featx.extract(photos, backbone=backbone, preprocessing="tf", cache=cache)
    images = [str(path) for path in sorted(photos.rglob("*.jpg"))[:2]]
    for known in (features, featx.Features.open("photos", cache=cache)):
        model = featx.train(known, head="ridge", cv=0).model
        assert (model.backbone, model.preprocessing) == (backbone, "tf")
        model.save(tmp_path / "m.featx")
        found = featx.load(tmp_path / "m.featx").predict_proba(images)
        np.testing.assert_allclose(found, model.predict_proba(features.X[:2]), atol=1e-4)


def test_how_pixels_go_in_is_asked_once_a_network(photos, tmp_path):
    path = write_net(tmp_path / "net.onnx")
    own = {"backbone": f"onnx:{path}", "cache": tmp_path / "cache"}
    with pytest.raises(BackboneError, match="states no preprocessing"):
        featx.extract(photos, **own)
    first = featx.extract(photos, preprocessing="torch", **own)
    for data in (photos, "photos"):
        again = featx.extract(data, **own)
        assert again.report["cached"] == len(first)
        assert again.spec().preprocessing == "torch"
    write_net(path, nodes=[NET[0], node("Abs", "conv", "map")])  # another network
    with pytest.raises(BackboneError, match="states no preprocessing"):
        featx.extract(photos, **own)


def test_trust_is_of_these_features_and_in_no_file(photos, small_network, tmp_path):
    cache = tmp_path / "cache"
    features = featx.extract(photos, backbone=f"file:{small_network}", trust=True, cache=cache)
    assert featx.train(features, head="ridge", cv=0).model.trust
    opened = featx.Features.open("photos", cache=cache)
    assert not featx.train(opened, head="ridge", cv=0).model.trust
    kept = [path.read_text() for path in (cache / "origins").iterdir()]
    assert kept
    assert not any("trust" in text for text in kept)


@pytest.mark.parametrize("damage", ["", "{}", "[]", '{"backbone": "tiny", "weights": "x"}', None])
def test_a_damaged_record_is_no_record(tmp_path, damage):
    layout = CacheLayout(tmp_path)
    identity = ("mobilenet", "0" * 64)
    remember_origin(layout, identity, Origin("mobilenet", "/w.h5", trust=True))
    assert recall_origin(layout, identity) == Origin("mobilenet", "/w.h5")
    (path,) = (tmp_path / "origins").iterdir()
    path.write_text(path.read_text().replace("/w.h5", "/v.h5") if damage is None else damage)
    assert recall_origin(layout, identity) is None
    remember_origin(layout, identity, Origin("mobilenet", "random:0"))
    assert recall_origin(layout, identity) == Origin("mobilenet", "random:0")
