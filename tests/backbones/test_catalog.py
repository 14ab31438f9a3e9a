"""The catalogue, and its networks built with random weights: each of them once in this file."""

import gc
import itertools
import re

import numpy as np
import pytest

from featx.backbones.build import build_network, build_tap_model, draw_images, preprocess
from featx.backbones.catalog import BUNDLED, CATALOG, find_backbone
from featx.backbones.preprocessing import PREPROCESSINGS
from featx.backbones.source import resolve_backbone
from featx.backbones.taps import block_outputs, layer_outputs
from featx.exceptions import BackboneError, UnknownNameError

PUBLISHED = [name for name in CATALOG if name != BUNDLED]
SIX = [
    "mobilenet_v2",
    "efficientnet_b0",
    "resnet50",
    "densenet121",
    "convnext_tiny",
    "mobilenet_v3_small",
]
LONGEST = ("convnext_tiny", "densenet121", "efficientnet_b0", "resnet50")


class StopError(Exception):
    """Ends the building of a network once it has said what is wanted."""


def test_every_keras_application_is_there_once(keras):
    applications = [name for name in dir(keras.applications) if name[0].isupper()]
    assert len(applications) == 40
    assert sorted(CATALOG[name].keras_name for name in PUBLISHED) == sorted(applications)


def test_every_row_is_found_by_its_name_and_has_a_family():
    for name, row in CATALOG.items():
        assert row.name == name
        assert re.fullmatch(r"[a-z0-9_]+", name)
        assert row.shared.preprocessing in PREPROCESSINGS
        assert not row.shared.own_preprocessing or row.shared.own_preprocessing in PREPROCESSINGS
        assert row.size_mb == pytest.approx(row.parameters * 4 / 1e6)


@pytest.mark.parametrize("name", PUBLISHED)
def test_preprocessing_is_that_of_the_application(name, application_module, keras):
    family = CATALOG[name].shared
    images = np.random.default_rng(0).uniform(0, 255, (2, 5, 7, 3)).astype(np.float32)
    expected = application_module(name).preprocess_input(images.copy(), data_format="channels_last")
    received = preprocess(images, family.own_preprocessing or family.preprocessing)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(received) / scale, expected / scale, rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("name", [n for n in PUBLISHED if CATALOG[n].family != "MobileNetV3"])
def test_input_sizes_are_those_of_the_application(name, keras, application_module, monkeypatch):
    def stop(input_shape, *, default_size, min_size, **_):
        raise StopError(default_size, min_size)

    monkeypatch.setattr(application_module(name).imagenet_utils, "obtain_input_shape", stop)
    row = CATALOG[name]
    with pytest.raises(StopError, match=r"\d") as stopped:
        getattr(keras.applications, row.keras_name)(weights=None)
    assert stopped.value.args == (row.input_size_px, row.shared.min_size_px)


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "mobilenet_v3_large"])
def test_input_sizes_of_mobilenet_v3_which_keras_does_not_settle(name, keras):
    row = CATALOG[name]
    assert f"_{row.input_size_px}_" in row.weights_file
    too_small = row.shared.min_size_px - 1
    with pytest.raises(ValueError, match=f"at least {row.shared.min_size_px}x"):
        getattr(keras.applications, row.keras_name)(
            weights=None, include_top=False, input_shape=(too_small, too_small, 3)
        )


def check_published_file(name, keras, monkeypatch):
    from keras.src.utils import file_utils

    asked = {}

    def download(fname, origin, *, cache_subdir, file_hash=None):
        asked.update(file=fname, url=origin, folder=cache_subdir, hash=file_hash or "")
        raise StopError("here a download would begin")

    monkeypatch.setattr(file_utils, "get_file", download)
    row = CATALOG[name]
    size = (row.input_size_px, row.input_size_px, 3)
    with pytest.raises(StopError, match="download would begin"):
        getattr(keras.applications, row.keras_name)(
            weights="imagenet", include_top=False, input_shape=size
        )
    assert asked == {
        "file": row.weights_file,
        "url": row.weights_url,
        "folder": "models",
        "hash": row.weights_hash,
    }


@pytest.mark.parametrize("name", ["mobilenet", "mobilenet_v3_small", "vgg16"])
def test_published_weights_are_those_that_keras_asks_for(name, keras, monkeypatch):
    check_published_file(name, keras, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_all_published_weights_are_those_that_keras_asks_for(name, keras, monkeypatch):
    check_published_file(name, keras, monkeypatch)
    keras.backend.clear_session()
    gc.collect()


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_every_network_at_its_smallest_input(name, application_module, keras, vectors_of):
    row = CATALOG[name]
    size = row.shared.min_size_px
    source = resolve_backbone(name, weights="random:0", input_size=size)
    network = build_network(source)
    assert network.count_params() == row.parameters
    assert network.output_shape[-1] == row.features
    blocks = block_outputs(network, source)
    assert len(blocks) >= 4
    images = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), dtype=np.uint8)
    model = build_tap_model(source, ("avg", f"{list(blocks)[-1]}:max"), network=network)
    vectors = vectors_of(model, images)
    inputs = application_module(name).preprocess_input(images.astype(np.float32))
    expected = keras.ops.convert_to_numpy(network(inputs)).mean(axis=(1, 2))
    assert all(np.isfinite(v).all() and v.std() > 0 for v in vectors)
    # Rounding grows through hundreds of random layers; a wrong preprocessing is off by far more.
    np.testing.assert_allclose(vectors[0], expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())
    keras.backend.clear_session()
    gc.collect()


@pytest.mark.parametrize("name", list(CATALOG))
def test_a_backbone_is_found_by_its_name_and_by_that_of_keras(name):
    row = CATALOG[name]
    spellings = {name, name.upper(), name.replace("_", "-")}
    if name != BUNDLED:
        spellings.add(row.keras_name)
    assert {find_backbone(spelling).name for spelling in spellings} == {name}


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("mobilnet_v2", "mobilenet_v2"),
        ("resnet_5O", "resnet50"),
        ("efficentnet_b0", "efficientnet_b0"),
        ("ConvNextTinny", "convnext_tiny"),
    ],
)
def test_a_mistyped_name_is_answered_with_the_nearest(typed, meant):
    with pytest.raises(
        UnknownNameError, match=rf"unknown backbone '{typed}': did you mean.*'{meant}'"
    ):
        find_backbone(typed)


def test_an_unknown_name_is_answered_with_the_table_and_the_way_to_an_own_network():
    with pytest.raises(UnknownNameError, match=r"Known: .*vgg16.*'file:PATH\.keras'"):
        find_backbone("zzzz")


@pytest.mark.parametrize(
    ("name", "weights", "preprocessing"),
    [("mobilenet_v2", "random:0", "tf"), ("efficientnet_b0", "own.weights.h5", "none")],
)
def test_settling_a_backbone_imports_no_numerical_framework(
    name, weights, preprocessing, run_python, tmp_path
):
    if weights.endswith(".h5"):
        weights = str(tmp_path / weights)
        (tmp_path / "own.weights.h5").write_bytes(b"not read as a network here")
    code = (
        "import sys; from featx.backbones.source import resolve_backbone;"
        f"source = resolve_backbone({name!r}, weights={weights!r});"
        "print(source.spec().name.partition('-')[0], source.preprocessing,"
        " sorted({'keras', 'tensorflow', 'torch', 'jax', 'sklearn'} & set(sys.modules)))"
    )
    assert run_python(code).stdout.strip() == f"{name} {preprocessing} []"


# Networks


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow if n in LONGEST else ()) for n in SIX],
)
def test_pixels_go_in_and_the_features_of_the_application_come_out(
    name, built, application_module, keras, pixels, vectors_of
):
    source, network = built(name)
    assert network.count_params() == CATALOG[name].parameters
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
        pytest.param("resnet50", 64, 16, marks=pytest.mark.slow),
        pytest.param("densenet121", 64, 58, marks=pytest.mark.slow),
        ("convnext_tiny", 64, 18),
        ("mobilenet_v3_small", 64, 11),
        pytest.param("xception", 71, 14, marks=pytest.mark.slow),
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


@pytest.mark.parametrize("size", [32, pytest.param(96, marks=pytest.mark.slow)])
def test_activations_neither_vanish_nor_overflow_at_small_inputs(size, keras, vectors_of):
    source = resolve_backbone("efficientnet_b0", weights="random:0", input_size=size)
    coarse = np.random.default_rng(7).integers(0, 256, (4, 4, 4, 3), dtype=np.uint8)
    images = coarse.repeat(size // 4, axis=1).repeat(size // 4, axis=2)
    (vectors,) = vectors_of(build_tap_model(source, ("avg",)), images)
    assert np.isfinite(vectors).all()
    assert 1e-3 < np.abs(vectors).mean() < 1e3
