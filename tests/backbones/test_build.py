import itertools
import re

import numpy as np
import pytest

from featx.backbones.build import block_outputs, build_network, build_tap_model, layer_outputs
from featx.backbones.catalog import CATALOG
from featx.backbones.source import resolve_backbone
from featx.exceptions import BackboneError, UnknownNameError

SIX = [
    "mobilenet_v2",
    "efficientnet_b0",
    "resnet50",
    "densenet121",
    "convnext_tiny",
    "mobilenet_v3_small",
]


@pytest.mark.parametrize("name", SIX)
def test_pixels_go_in_and_the_features_of_the_application_come_out(
    name, built, application_module, keras, pixels, vectors_of
):
    source, network = built(name)
    images = pixels(3, 64, 64, 3)
    (received,) = vectors_of(build_tap_model(source, ("avg",), network=network), images)

    application = getattr(keras.applications, CATALOG[name].keras_name)(
        include_top=False, weights=None, input_shape=(64, 64, 3)
    )
    application.set_weights(network.get_weights())
    inputs = application_module(name).preprocess_input(images.astype(np.float32))
    pooled = keras.layers.GlobalAveragePooling2D()(application(inputs, training=False))
    expected = keras.ops.convert_to_numpy(pooled)

    assert received.dtype == np.float32
    assert received.shape == (3, CATALOG[name].features)
    assert received.std(axis=0).max() > 0
    np.testing.assert_allclose(received, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_a_network_is_frozen(built):
    _, network = built("mobilenet_v2")
    assert network.trainable_weights == []


def test_several_taps_in_one_model_equal_one_at_a_time(built, pixels, vectors_of):
    source, network = built("mobilenet_v2")
    taps = ("avg", "block_12:gem", "block_5:grid:2", "block_12_depthwise_relu:max", "flatten")
    images = pixels(2, 64, 64, 3)
    together = vectors_of(build_tap_model(source, taps, network=network), images)
    widths = [1280, 96, 32 * 4, 576, 2 * 2 * 1280]
    for tap, width, vector in zip(taps, widths, together, strict=True):
        (alone,) = vectors_of(build_tap_model(source, (tap,), network=network), images)
        assert vector.shape == (2, width)
        np.testing.assert_allclose(vector, alone, rtol=1e-6, atol=1e-6)


def test_layer_names_do_not_depend_on_what_was_built_before(built, keras):
    _, network = built("mobilenet_v3_small")
    later = keras.applications.MobileNetV3Small(
        include_top=False, weights=None, input_shape=(64, 64, 3)
    )
    raw, raw_later = ({layer.name for layer in one.layers} for one in (network, later))
    assert raw != raw_later, "Keras numbers layers through the process: else this shows nothing"
    assert list(layer_outputs(later)) == list(layer_outputs(network))
    assert {"expanded_conv_1_project", "activation_1"} <= set(layer_outputs(later))


def stage(block):
    """What comes before the number of the block: transitions lie between stages."""
    return re.sub(r"_?(block|expanded_conv).*", "", block)


@pytest.mark.parametrize(
    ("name", "size", "blocks"),
    [
        ("mobilenet_v2", 64, 17),
        ("efficientnet_b0", 64, 16),
        ("resnet50", 64, 16),
        ("densenet121", 64, 58),
        ("convnext_tiny", 64, 18),
        ("mobilenet_v3_small", 64, 11),
        ("xception", 71, 14),
    ],
)
def test_the_output_of_a_block_is_what_the_next_block_reads(name, size, blocks, built):
    source, network = built(name, size)
    outputs = block_outputs(network, source)
    assert len(outputs) == blocks
    pattern = re.compile(source.row.shared.block)
    first_layers = {}
    for layer in network.layers:
        if match := pattern.match(layer.name):
            first_layers.setdefault(match.group(1), layer)
    names = list(outputs)
    pairs = [(a, b) for a, b in itertools.pairwise(names) if stage(a) == stage(b)]
    assert len(pairs) >= blocks - 4
    wrong = [(a, b) for a, b in pairs if first_layers[b].input is not outputs[a]]
    assert not wrong


@pytest.mark.parametrize(
    ("name", "typed", "meant"),
    [
        ("mobilenet_v2", "blok_12", "block_12"),
        ("resnet50", "conv5_blck3", "conv5_block3"),
        ("convnext_tiny", "stage_3_blok_2", "stage_3_block_2"),
    ],
)
def test_an_unknown_block_is_answered_with_the_nearest_of_that_network(name, typed, meant, built):
    source, network = built(name)
    message = f"unknown layer or block of {name} '{typed}': did you mean .*'{meant}'"
    with pytest.raises(UnknownNameError, match=rf"{message}.*`featx backbones {name}` lists"):
        build_tap_model(source, (f"{typed}:avg",), network=network)


def test_a_grid_finer_than_the_last_map_is_an_error(built):
    source, network = built("mobilenet_v2")
    with pytest.raises(BackboneError, match=r"tap grid:3 needs a feature map of at least 3x3"):
        build_tap_model(source, ("grid:3",), network=network)


@pytest.mark.parametrize(
    ("name", "size", "smallest"),
    [("mobilenet_v2", 31, 32), ("inception_v3", (299, 74), 75), ("xception", 70, 71)],
)
def test_an_input_smaller_than_the_network_takes_is_an_error(name, size, smallest):
    with pytest.raises(BackboneError, match=f"{name} takes inputs of {smallest} px or more"):
        resolve_backbone(name, weights="random:0", input_size=size)


def test_height_comes_before_width(keras):
    source = resolve_backbone("mobilenet", weights="random:0", input_size=(32, 64))
    assert source.input_size_px == (32, 64)
    assert build_network(source).input_shape == (None, 32, 64, 3)


def small(keras, layers, path, size=16):
    images = x = keras.Input((size, size, 3))
    for layer in layers:
        x = layer(x)
    keras.Model(images, x).save(path)
    return f"file:{path}"


def test_maps_with_channels_first_are_not_averaged_over_channels(keras, tmp_path):
    layers = keras.layers
    first = [layers.Permute((3, 1, 2)), layers.ZeroPadding2D(data_format="channels_first")]
    first.append(layers.ReLU(name="map"))
    turned = small(keras, [layers.Permute((3, 1, 2))], tmp_path / "turned.keras")
    with pytest.raises(BackboneError, match=r"channels first, in shape \(3, 16, 16\)"):
        build_tap_model(resolve_backbone(turned), ("avg",))
    back = layers.Permute((2, 3, 1))
    source = resolve_backbone(small(keras, first, tmp_path / "first.keras"))
    with pytest.raises(BackboneError, match=r"channels first.*\(3, 18, 18\).*--tap flatten"):
        build_tap_model(source, ("avg",))
    assert build_tap_model(source, ("flatten",)).output_shape == (None, 972)
    source = resolve_backbone(small(keras, [*first, back], tmp_path / "last.keras"))
    assert build_tap_model(source, ("max",)).output_shape == (None, 3)
    with pytest.raises(BackboneError, match=r"Take --tap map:flatten"):
        build_tap_model(source, ("map:avg",))


def test_a_size_that_a_network_of_one_s_own_does_not_take_is_an_error(keras, tmp_path):
    images = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(2, 9)(images)
    keras.Model(images, x).save(tmp_path / "any.keras")
    source = resolve_backbone(f"file:{tmp_path / 'any.keras'}", input_size=7)
    with pytest.raises(BackboneError, match=r"any cannot be applied to inputs of 7x7 px.*--inp"):
        build_tap_model(source, ("avg",))
