"""Models on several backbones and taps: trained, saved, read and exported as those on one."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner
from sklearn.base import clone

import featx
from featx.cli.main import cli
from featx.exceptions import (
    ArtefactError,
    BackboneError,
    ExportError,
    FeaturesError,
    FineTuningError,
)
from featx.models.model_file import read_details

TAPS = {"tiny": ["avg", "max"]}


@pytest.fixture(scope="module")
def photos(tmp_path_factory, draw_photo):
    """A folder of 2 classes with 12 JPEG files each."""
    folder = tmp_path_factory.mktemp("joined") / "photos"
    for number in range(12):
        draw_photo(folder, f"red/{number}.jpg", seed=number, colour=(200, 60, 60))
        draw_photo(folder, f"blue/{number}.jpg", seed=100 + number, colour=(60, 60, 200))
    return folder


@pytest.fixture
def own(small_network):
    return f"file:{small_network}"


@pytest.fixture
def features(photos, own, tmp_path):
    taps = {**TAPS, own: ["avg", "first"]}
    return featx.extract(photos, backbone=["tiny", own], taps=taps, cache=tmp_path / "cache")


@pytest.fixture
def model(features, own):
    taps = {**TAPS, own: "first"}
    return featx.train(features, backbone=["tiny", own], tap=taps).model


def test_features_are_side_by_side_and_the_image_is_read_once(features, model, photos, own):
    parts = [("tiny", "avg"), ("tiny", "max"), ("file:small", "first:avg")]
    X = np.hstack([features.matrix(backbone=name, tap=tap) for name, tap in parts])
    assert model.block == {"backbone": "tiny + file:small", "tap": "avg,max + first:avg"}
    np.testing.assert_array_equal(features.matrix(**model.block), X)
    batches = features.batches(**model.block, batch_size=5)
    np.testing.assert_array_equal(np.vstack([batch for batch, _ in batches]), X)
    assert model.n_features_in_ == X.shape[1] == features.width(**model.block)
    files = [photos / path for path in features.paths]
    np.testing.assert_allclose(model.predict_proba(files), model.head_.predict_proba(X), atol=1e-5)
    assert [spec.backbone for spec in model.specs_] == ["tiny", "file:small"]


def test_shuffled_batches_keep_the_parts_of_a_row_together(features, model):
    X = features.matrix(**model.block)
    for batch, rows in features.batches(**model.block, batch_size=4, shuffle=True, seed=3):
        np.testing.assert_array_equal(batch, X[rows])


def test_a_saved_model_answers_alike_with_and_without_training_code(model, photos, tmp_path):
    model.save(tmp_path / "both.featx")
    loaded = featx.load(tmp_path / "both.featx")
    assert read_details(tmp_path / "both.featx")["version"] == 4
    expected = model.predict_proba(photos)
    np.testing.assert_allclose(loaded.predict_proba(photos), expected, atol=1e-6)
    assert loaded.block == model.block
    assert loaded.specs_ == model.specs_
    rows = list(featx.predict(loaded, photos, unknown=True))
    assert {row.status for row in rows} == {"ok"}
    assert rows[0].distance > 0
    assert clone(loaded).tap == loaded.tap


def test_it_is_evaluated_on_features_and_on_images(model, features, photos):
    on_features = featx.evaluate(model, features)
    on_images = featx.evaluate(model, featx.ImageDataset.from_any(photos))
    assert on_features["accuracy"] == on_images["accuracy"] == 1.0
    assert on_features["training_overlap"]["in_training"] == 24


def test_estimators_fit_on_images(photos, own):
    images = featx.ImageDataset.from_any(photos)
    fitted = featx.ImageClassifier(["tiny", own], tap={"tiny": "avg", own: ["avg", "first"]})
    fitted.fit(images, images.y)
    assert fitted.score(images, images.y) == 1.0
    reader = featx.FeatureExtractor(["tiny", own], tap="avg")
    X = reader.fit_transform(images)
    names = reader.get_feature_names_out().tolist()
    assert len(names) == X.shape[1] == len(set(names))
    assert names[0] == "tiny_avg_0"
    assert names[-1] == "small_avg_15"


def test_views_are_of_all_parts(photos, own, tmp_path):
    cache = tmp_path / "cache"
    feats = featx.extract(photos, backbone=["tiny", own], views=2, cache=cache)
    model = featx.train(feats, backbone=["tiny", own], tap="avg", average_views=True, cache=cache)
    assert model.model.views_averaged == 2
    assert featx.evaluate(model.model, feats)["accuracy"] == 1.0
    assert len(model.model.predict(photos)) == 24


def test_bounded_memory_gives_the_same_labels(features, own):
    chosen = {"backbone": ["tiny", own], "tap": "avg"}
    whole = featx.train(features, **chosen, head="ridge")
    bounded = featx.train(features, **chosen, head="ridge", max_ram="100MiB")
    X = features.matrix(**whole.model.block)
    np.testing.assert_array_equal(whole.model.predict(X), bounded.model.predict(X))


@pytest.mark.parametrize("style", ["keras", "openvino"])
def test_it_is_exported_as_one_network(photos, own, tmp_path, style):
    feats = featx.extract(
        photos, backbone=["tiny", own], input_size=32, taps=["avg", "max"], cache=tmp_path / "c"
    )
    model = featx.train(feats, backbone=["tiny", own], tap=["avg", "max"]).model
    path = tmp_path / ("m.keras" if style == "keras" else "m.xml")
    report = featx.export(model, path, verify=photos).verification
    assert report["passed"]
    assert report["top1_changed"] == 0


def test_networks_of_different_sizes_cannot_share_an_export(model, tmp_path):
    with pytest.raises(ExportError, match=r"images of .* and .* px, and an export takes one image"):
        featx.export(model, tmp_path / "m.keras")


def test_the_command_trains_one_model_on_all(photos, own, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photos = str(photos)
    args = ["train", photos, "-b", "tiny", "-b", own, "--tap", "avg", "--tap", "max"]
    done = CliRunner().invoke(cli, [*args, "-o", "both.featx"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    loaded = featx.load("both.featx")
    assert loaded.block == {"backbone": "tiny + file:small", "tap": "avg,max + avg,max"}
    predicted = CliRunner().invoke(cli, ["predict", "both.featx", photos], catch_exceptions=False)
    assert predicted.exit_code == 0, predicted.output
    scored = CliRunner().invoke(cli, ["evaluate", "both.featx", photos, "--json"])
    assert json.loads(scored.stdout)["accuracy"] == 1.0


def test_what_cannot_be_is_refused(features, model, own, photos, tmp_path):
    with pytest.raises(ArtefactError, match=r"--embed .* keeps one network, and the model reads 2"):
        model.save(tmp_path / "m.featx", embed=True)
    with pytest.raises(FeaturesError, match="expected one block for backbone='tiny', tap=None"):
        featx.train(features, backbone=["tiny", own])
    with pytest.raises(BackboneError, match="taps are given for resnet50, the backbones are tiny"):
        featx.ImageClassifier("tiny", tap={"resnet50": "avg"}).fit(photos, ["red"] * 24)
    with pytest.raises(FeaturesError, match="expected one block, received 3 side by side"):
        features.neighbours(0, **model.block)
    with pytest.raises(FineTuningError, match="fine-tuning takes one backbone. Train"):
        featx.finetune(model, photos, tmp_path / "t.featx", cache=tmp_path / "cache")
    model.save(tmp_path / "m.featx")
    with pytest.raises(ArtefactError, match="it reads 2 networks, and --weights"):
        featx.load(tmp_path / "m.featx", weights="some.h5")


def test_one_backbone_at_several_taps_can_carry_its_network(photos, own, tmp_path):
    feats = featx.extract(photos, backbone=own, taps=["avg", "first"], cache=tmp_path / "c")
    trained = featx.train(feats, backbone=own, tap=["avg", "first"]).model
    trained.save(tmp_path / "m.featx", embed=True)
    loaded = featx.load(tmp_path / "m.featx")
    assert loaded.backbone.startswith("file:")
    assert "m.featx" in loaded.backbone
    np.testing.assert_array_equal(loaded.predict(photos), trained.predict(photos))
