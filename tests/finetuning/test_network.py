"""The network before the first step says what the head says."""

from __future__ import annotations

import numpy as np
import pytest

import featx
from featx.exceptions import FineTuningError
from featx.finetuning.network import build_tuned, trainable_steps
from featx.finetuning.start import FineTuneOptions, prepare_start
from featx.heads.making import make_head
from featx.heads.steps import Softmax

PARTS = {"mobilenet_v2": "block_16", "resnet50": "conv5_block3", "efficientnet_b0": "block7a"}


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 256, (24, 48, 48, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def activations(pixels, tmp_path_factory):
    """A function that gives cached features and activations of a backbone."""
    folder = tmp_path_factory.mktemp("activations")

    def extract(backbone, taps, **choice):
        images = featx.ImageDataset.from_arrays(pixels, np.arange(24) % 3, name="pixels")
        return featx.extract(images, backbone=backbone, taps=taps, cache=folder, **choice)

    return extract


@pytest.mark.parametrize(
    "head",
    ["logistic:C=0.1", pytest.param("dense:16,max_epochs=5", marks=pytest.mark.slow)],
)
@pytest.mark.parametrize(
    "backbone", ["own", *(pytest.param(name, marks=pytest.mark.slow) for name in PARTS)]
)
def test_the_probabilities_before_the_first_step_are_those_of_the_head(
    backbone, head, activations, small_network
):
    choice = {} if backbone == "own" else {"weights": "random:1", "input_size": 48}
    part = PARTS.get(backbone, "second")
    backbone = f"file:{small_network}" if backbone == "own" else backbone
    features = activations(backbone, "avg", **choice)
    X, y = np.array(features.X), np.asarray(features.y)
    fitted = make_head(head).fit(X, y)
    from featx.backbones.source import resolve_backbone

    source = resolve_backbone(backbone, **choice)
    network = build_tuned(source, "avg", trainable_steps(fitted), part)
    assert network.cut.layers
    taps = [f"{layer}:flatten" for layer in network.cut.layers]
    cached = activations(backbone, taps, **choice)
    inputs = [
        np.array(cached.matrix(tap=tap)).reshape(-1, *tensor.shape[1:])
        for tap, tensor in zip(taps, network.cut.tensors, strict=True)
    ]
    proba = Softmax().apply(network.logits(inputs))
    np.testing.assert_allclose(proba, fitted.predict_proba(X), atol=1e-5)


def test_frozen_layers_are_not_trained(trained, pictures, cache):
    start = prepare_start(trained(), pictures, FineTuneOptions(), cache=cache)
    network = build_tuned(
        start.source, "avg", trainable_steps(start.head), "second", from_pixels=True
    )
    trainable = {variable.path.split("/")[0] for variable in network.model.trainable_variables}
    assert "first" not in trainable
    assert "second" in trainable


def test_rates_fall_with_the_depth(trained, pictures, cache):
    start = prepare_start(trained(), pictures, FineTuneOptions(), cache=cache)
    assert start.views == start.options.views == 4
    network = build_tuned(start.source, "avg", trainable_steps(start.head), "all")
    # Kernel and bias of the layers first, second and head.
    assert network.rate_shares(0.5) == [0.25, 0.25, 0.5, 0.5, 1.0, 1.0]
    assert network.rate_shares(0.5, trained_blocks=1) == [0.0, 0.0, 0.5, 0.5, 1.0, 1.0]


@pytest.mark.parametrize("head", ["knn", "nearest-mean"])
def test_a_head_of_another_kind_is_refused(head, tune, trained):
    with pytest.raises(featx.FeatxError, match="logistic, ridge, lda"):
        tune(model=trained(head))


def test_a_head_of_another_backbone_is_refused(trained, pictures, cache):
    start = prepare_start(trained(), pictures, FineTuneOptions(), cache=cache)
    steps = trainable_steps(make_head("logistic").fit(np.eye(4), [0, 1, 0, 1]))
    with pytest.raises(FineTuningError, match="takes 4 features, .* gives 16"):
        build_tuned(start.source, "avg", steps, "second")
