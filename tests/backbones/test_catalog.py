import gc
import re

import numpy as np
import pytest

from featx.backbones.build import build_network, build_tap_model, preprocess
from featx.backbones.catalog import BUNDLED, CATALOG, PREPROCESSINGS, find_backbone
from featx.backbones.source import resolve_backbone
from featx.backbones.taps import block_outputs
from featx.exceptions import UnknownNameError

PUBLISHED = [name for name in CATALOG if name != BUNDLED]
SIX = [
    "mobilenet_v2",
    "efficientnet_b0",
    "resnet50",
    "densenet121",
    "convnext_tiny",
    "mobilenet_v3_small",
]


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


@pytest.mark.parametrize("name", SIX)
def test_parameters_and_features_are_those_of_the_network(name, built):
    row, (_, network) = CATALOG[name], built(name)
    assert network.count_params() == row.parameters
    assert network.output_shape[-1] == row.features


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


def test_settling_a_backbone_imports_no_numerical_framework(run_python):
    code = (
        "import sys; from featx.backbones.source import resolve_backbone;"
        "source = resolve_backbone('mobilenet_v2', weights='random:0');"
        "print(source.spec().name.startswith('mobilenet_v2-'),"
        " sorted({'keras', 'tensorflow', 'torch', 'jax', 'sklearn'} & set(sys.modules)))"
    )
    assert run_python(code).stdout.strip() == "True []"


def test_settling_efficientnet_with_a_file_imports_no_numerical_framework(run_python, tmp_path):
    path = tmp_path / "own.weights.h5"
    path.write_bytes(b"not read as a network here")
    code = (
        "import sys; from featx.backbones.source import resolve_backbone;"
        f"source = resolve_backbone('efficientnet_b0', weights={str(path)!r});"
        "print(source.preprocessing, sorted({'keras', 'tensorflow'} & set(sys.modules)))"
    )
    assert run_python(code).stdout.strip() == "none []"
