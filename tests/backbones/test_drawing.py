import numpy as np
import pytest

from featx.backbones.build import build_network, build_tap_model
from featx.backbones.drawing import draw_images
from featx.backbones.source import resolve_backbone


def test_the_same_seed_draws_the_same_images():
    first, again, other = (draw_images((3, 20, 30), seed) for seed in (0, 0, 1))
    assert (first.shape, first.dtype) == ((3, 20, 30, 3), np.uint8)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_drawn_images_go_from_rough_to_smooth_in_colour():
    images = draw_images((8, 64, 64), 0).astype(np.float64)
    steps = np.abs(np.diff(images, axis=1)).mean((1, 2, 3)) / images.std((1, 2, 3))
    assert steps[0] > 3 * steps[-1]
    assert images.std((1, 2)).min() > 5
    grey = images.mean(3, keepdims=True)
    assert np.abs(images - grey).mean() > 5


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (8, 1)])
def test_images_may_be_as_small_as_one_pixel(size):
    assert draw_images((2, *size), 0).shape == (2, *size, 3)


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


def test_no_image_drowns_the_others(built, vectors_of):
    source, network = built("efficientnet_b0")
    (vectors,) = vectors_of(
        build_tap_model(source, ("avg",), network=network), draw_images((32, 64, 64), 5)
    )
    centred = vectors - vectors.mean(0)
    length = np.linalg.norm(centred, axis=1)
    assert length.max() < 3 * np.median(length)
    spectrum = np.linalg.svd(centred, compute_uv=False) ** 2
    assert spectrum.sum() ** 2 / (spectrum**2).sum() > 5


@pytest.mark.parametrize("size", [32, 96])
def test_activations_neither_vanish_nor_overflow_at_small_inputs(size, keras, vectors_of):
    source = resolve_backbone("efficientnet_b0", weights="random:0", input_size=size)
    coarse = np.random.default_rng(7).integers(0, 256, (4, 4, 4, 3), dtype=np.uint8)
    images = coarse.repeat(size // 4, axis=1).repeat(size // 4, axis=2)
    (vectors,) = vectors_of(build_tap_model(source, ("avg",)), images)
    assert np.isfinite(vectors).all()
    assert 1e-3 < np.abs(vectors).mean() < 1e3
