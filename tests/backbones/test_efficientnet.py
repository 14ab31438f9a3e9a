"""Keras rescales once more for EfficientNet's published weights, and only for those."""

import h5py
import numpy as np
import pytest

from featx.backbones.build import build_network, build_tap_model
from featx.backbones.catalog import CATALOG
from featx.backbones.source import resolve_backbone
from featx.exceptions import WeightsError

MEAN = np.array([0.485, 0.456, 0.406], np.float32)
VARIANCE = np.array([0.229, 0.224, 0.225], np.float32) ** 2


@pytest.fixture(scope="module")
def weights_files(keras, tmp_path_factory):
    """Files with and without ImageNet's statistics, in every format, from one network."""
    from keras.src.legacy.saving import legacy_h5_format

    keras.utils.set_random_seed(0)
    network = keras.applications.EfficientNetB0(
        include_top=False, weights=None, input_shape=(64, 64, 3)
    )
    (layer,) = (one for one in network.layers if isinstance(one, keras.layers.Normalization))
    before = layer.get_weights()
    folder = tmp_path_factory.mktemp("efficientnet")
    files = {}
    for kind, statistics in (("plain", before), ("imagenet", [MEAN, VARIANCE, before[2]])):
        layer.set_weights(statistics)
        files[kind] = [
            folder / f"{kind}.h5",
            folder / f"{kind}.weights.h5",
            folder / f"{kind}.keras",
        ]
        with h5py.File(files[kind][0], "w") as file:
            legacy_h5_format.save_weights_to_hdf5_group(file, network)
        network.save_weights(files[kind][1])
        network.save(files[kind][2])
    return files


@pytest.mark.slow
def test_published_weights_give_the_features_that_keras_gives(
    weights_files, keras, pixels, vectors_of, monkeypatch
):
    from keras.src.utils import file_utils

    path, asked = weights_files["imagenet"][0], []

    def download(fname, origin, **options):
        asked.append((fname, origin, options["file_hash"]))
        return str(path)

    monkeypatch.setattr(file_utils, "get_file", download)
    images = pixels(2, 64, 64, 3)
    application = keras.applications.EfficientNetB0(
        weights="imagenet", include_top=False, pooling="avg", input_shape=(64, 64, 3)
    )
    expected = keras.ops.convert_to_numpy(application(images.astype(np.float32), training=False))
    row = CATALOG["efficientnet_b0"]
    assert asked == [(row.weights_file, row.weights_url, row.weights_hash)]

    source = resolve_backbone("efficientnet_b0", weights=path, input_size=64)
    network = build_network(source)
    (received,) = vectors_of(build_tap_model(source, ("avg",), network=network), images)
    np.testing.assert_allclose(received, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())

    without = keras.ops.convert_to_numpy(network(images.astype(np.float32))).mean((1, 2))
    assert np.abs(without - expected).max() > 0.01 * np.abs(expected).max(), "it matters"


@pytest.mark.parametrize("number", range(3), ids=["legacy", "weights", "model"])
@pytest.mark.parametrize(
    ("kind", "preprocessing"), [("imagenet", "efficientnet-imagenet"), ("plain", "none")]
)
def test_what_the_file_carries_decides(number, kind, preprocessing, weights_files):
    source = resolve_backbone("efficientnet_b0", weights=weights_files[kind][number])
    assert source.preprocessing == preprocessing
    assert source.spec().preprocessing == preprocessing


@pytest.mark.parametrize("number", range(3), ids=["legacy", "weights", "model"])
def test_a_damaged_file_is_reported_at_once_or_left_for_the_loader(number, weights_files, tmp_path):
    whole = weights_files["imagenet"][number]
    cut = tmp_path / whole.name
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    if number == 2:
        with pytest.raises(WeightsError, match="received a zip that is cut short or damaged"):
            resolve_backbone("efficientnet_b0", weights=cut)
        return
    assert resolve_backbone("efficientnet_b0", weights=cut).preprocessing == "none"


def test_random_weights_are_not_rescaled():
    assert resolve_backbone("efficientnet_b0", weights="random:0").preprocessing == "none"


def test_its_successor_has_no_such_rule(tmp_path):
    path = tmp_path / "any.weights.h5"
    path.write_bytes(b"any")
    assert resolve_backbone("efficientnet_v2_b0", weights=path).preprocessing == "none"
