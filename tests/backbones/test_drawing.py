import numpy as np
import pytest

from featx.backbones.build import build_network, build_tap_model
from featx.backbones.source import resolve_backbone


@pytest.fixture(scope="module")
def drawn(keras):
    return {
        seed: build_network(resolve_backbone("mobilenet", weights=f"random:{seed}", input_size=32))
        for seed in (0, 1)
    }


def test_another_seed_draws_another_network(drawn):
    kernels = [
        [weight for weight in network.get_weights() if weight.ndim > 1]
        for network in drawn.values()
    ]
    assert all(not np.array_equal(a, b) for a, b in zip(*kernels, strict=True))


def test_the_same_seed_draws_the_same_network(drawn):
    again = build_network(resolve_backbone("mobilenet", weights="random:1", input_size=32))
    for ours, theirs in zip(again.get_weights(), drawn[1].get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_drawing_leaves_the_training_rules_of_the_layers_as_they_were(drawn, keras):
    fresh = keras.applications.MobileNet(include_top=False, weights=None, input_shape=(32, 32, 3))
    for ours, theirs in zip(drawn[0].layers, fresh.layers, strict=True):
        for attribute in ("momentum", "rate"):
            assert getattr(ours, attribute, None) == getattr(theirs, attribute, None)


def test_features_of_a_drawn_network_tell_images_apart(built, pixels, vectors_of):
    source, network = built("resnet50")
    images = np.concatenate([pixels(2, 64, 64, 3), np.full((1, 64, 64, 3), 128, np.uint8)])
    (vectors,) = vectors_of(build_tap_model(source, ("avg",), network=network), images)
    assert np.isfinite(vectors).all()
    for a, b in [(0, 1), (0, 2)]:
        assert np.linalg.norm(vectors[a] - vectors[b]) > 1e-3 * np.linalg.norm(vectors[a])


@pytest.mark.parametrize("size", [32, 96])
def test_activations_neither_vanish_nor_overflow_at_small_inputs(size, keras, vectors_of):
    source = resolve_backbone("efficientnet_b0", weights="random:0", input_size=size)
    coarse = np.random.default_rng(7).integers(0, 256, (4, 4, 4, 3), dtype=np.uint8)
    images = coarse.repeat(size // 4, axis=1).repeat(size // 4, axis=2)
    (vectors,) = vectors_of(build_tap_model(source, ("avg",)), images)
    assert np.isfinite(vectors).all()
    assert 1e-3 < np.abs(vectors).mean() < 1e3
