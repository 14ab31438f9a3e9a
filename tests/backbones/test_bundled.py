"""The backbone that comes with featx: no download, no setting."""

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from featx.backbones import weights as weights_module
from featx.backbones.build import build_network, build_tap_model
from featx.backbones.registry import find_backbone
from featx.backbones.source import resolve_backbone
from featx.backbones.weights import BUNDLED, bundled_folder, find_weights_file, resolve_weights
from featx.exceptions import WeightsError

ROW = find_backbone(BUNDLED)
WEIGHTS = bundled_folder() / ROW.weights_file


@pytest.fixture(autouse=True)
def nothing_elsewhere(tmp_path, monkeypatch):
    monkeypatch.delenv("FEATX_WEIGHTS", raising=False)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras-home"))


@pytest.mark.parametrize("weights", [None, "bundled"])
def test_it_is_here_and_whole(weights):
    found = resolve_weights(ROW, weights)
    assert (found.source, found.path, found.sha256) == ("bundled", WEIGHTS, ROW.weights_hash)
    assert find_weights_file(ROW) == WEIGHTS


def test_it_is_small_enough_to_ship():
    assert WEIGHTS.stat().st_size <= 4e6


def test_file_card_and_table_agree():
    card = json.loads(WEIGHTS.with_name("tiny.json").read_text("utf-8"))
    assert card["sha256"] == ROW.weights_hash == hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()
    assert card["bytes"] == WEIGHTS.stat().st_size
    assert card["parameters"] == ROW.parameters
    assert (card["input_size_px"], card["alpha"]) == (
        ROW.input_size_px,
        dict(ROW.arguments)["alpha"],
    )
    assert card["pooled_features"] == ROW.features
    assert "127.5 - 1" in card["preprocessing"]
    assert ROW.shared.preprocessing == "tf"
    for part in ("data", "method", "licence_note", "figures", "not_for"):
        assert card[part], part


def test_its_network_is_as_the_table_says_and_gives_features(pixels, vectors_of):
    source = resolve_backbone(BUNDLED)
    network = build_network(source)
    assert network.count_params() == ROW.parameters
    assert network.output_shape[-1] == ROW.features
    images = pixels(3, *source.input_size_px, 3)
    (vectors,) = vectors_of(build_tap_model(source, ("avg",), network=network), images)
    assert vectors.shape == (3, ROW.features)
    assert np.isfinite(vectors).all()
    assert np.linalg.norm(vectors[0] - vectors[1]) > 1e-3 * np.linalg.norm(vectors[0])


def test_it_decodes_as_the_table_says():
    assert resolve_backbone(BUNDLED).spec().image.draft == ROW.draft
    assert not resolve_backbone("mobilenet_v2", weights="random:0").spec().image.draft


def test_it_has_no_imagenet_weights():
    with pytest.raises(WeightsError, match="tiny has no ImageNet weights: leave --weights out"):
        resolve_backbone(BUNDLED, weights="imagenet")


@pytest.fixture
def another_folder(tmp_path, monkeypatch):
    """A broken installation stands for what the tests must not do to the real one."""
    monkeypatch.setattr(weights_module, "bundled_folder", lambda: tmp_path)
    return tmp_path


def test_a_damaged_file_is_refused(another_folder):
    path = Path(shutil.copy(WEIGHTS, another_folder))
    with path.open("r+b") as file:
        file.seek(1000)
        file.write(b"damage")
    with pytest.raises(WeightsError, match=r"bundled weights are damaged.*reinstall featx"):
        resolve_backbone(BUNDLED)


def test_a_missing_file_is_an_error(another_folder):
    with pytest.raises(
        WeightsError, match=r"not where they belong, .*tiny\.weights\.h5: reinstall"
    ):
        resolve_backbone(BUNDLED)


def test_a_row_of_the_table_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot assign to field 'features'"):
        ROW.features = 1
