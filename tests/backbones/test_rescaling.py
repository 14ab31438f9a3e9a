"""Networks that rescale pixels themselves get them raw, and every choice is said."""

import logging

import numpy as np
import pytest

from featx.backbones import source as source_module
from featx.backbones.build import build_tap_model
from featx.backbones.rescaling import range_of_graph, range_of_keras_config
from featx.backbones.source import log_preprocessing, resolve_backbone

RAW = {
    "divide": lambda keras: lambda x: x / 255.0 - 0.5,
    "caffe": lambda keras: keras.applications.resnet.preprocess_input,
    "torch": lambda keras: keras.applications.densenet.preprocess_input,
    "behind padding": lambda keras: (
        lambda x: keras.layers.Rescaling(1 / 127.5, -1)(keras.layers.ZeroPadding2D(1)(x))
    ),
    "nested": lambda keras: keras.Sequential(
        [keras.Input((16, 16, 3)), keras.layers.Rescaling(1 / 255)]
    ),
    "of pixels": lambda keras: keras.layers.Normalization(
        mean=[124.0, 116.0, 104.0], variance=[3400.0] * 3
    ),
    "lambda": lambda keras: keras.layers.Lambda(lambda x: x / 255),
}
UNIT = {
    "of unit": lambda keras: lambda x: x * 2 - 1,
    "unit normalised": lambda keras: keras.layers.Normalization(
        mean=[0.48, 0.46, 0.41], variance=[0.05] * 3
    ),
    "back to bytes": lambda keras: lambda x: keras.layers.Rescaling(1 / 127.5, -1)(x * 255),
}
UNKNOWN = {
    "batch norm": lambda keras: keras.layers.BatchNormalization(),
    "nothing": lambda keras: keras.layers.Identity(),
}
FIRST = RAW | UNIT | UNKNOWN


def network(keras, first):
    keras.utils.set_random_seed(3)
    images = keras.Input((16, 16, 3))
    return keras.Model(images, keras.layers.Conv2D(4, 3)(FIRST[first](keras)(images)))


@pytest.mark.parametrize("first", FIRST)
def test_an_exported_network_gives_its_own_features(
    keras, tmp_path, first, pixels, vectors_of, caplog, monkeypatch
):
    model = network(keras, first)
    model.export(tmp_path / "net", verbose=False)
    source = resolve_backbone(f"savedmodel:{tmp_path / 'net'}", trust=True)
    images = pixels(3, 16, 16, 3)
    (features,) = vectors_of(build_tap_model(source, ("avg",)), images)
    raw = first in RAW
    assert source.preprocessing == ("none" if raw else "unit")
    expected = keras.ops.convert_to_numpy(model(images.astype("f4") / (1 if raw else 255)))
    np.testing.assert_allclose(features, expected.mean((1, 2)), rtol=1e-4, atol=1e-4)
    monkeypatch.setattr(source_module, "_logged", set())
    with caplog.at_level(logging.INFO, "featx.preprocessing"):
        log_preprocessing(source)
    why = "by default. If" if first in UNKNOWN else "because the network"
    assert f"preprocessing {source.preprocessing} (" in caplog.text
    assert why in caplog.text
    assert source.doubtful == (first in UNKNOWN)


@pytest.mark.parametrize("first", ["divide", "nested", "of unit", "nothing"])
def test_a_keras_file_takes_bytes_and_doubt_is_said(keras, tmp_path, first):
    network(keras, first).save(tmp_path / "net.keras")
    source = resolve_backbone(f"file:{tmp_path / 'net.keras'}")
    assert source.preprocessing == "none"
    said = {
        "divide": "because the network rescales pixels itself",
        "nested": "because the network rescales pixels itself",
        "of unit": "seems to take pixels from 0 to 1: give --preprocessing",
        "nothing": "by default. If the network was trained on others, give --preprocessing",
    }
    assert said[first] in source.note
    assert source.doubtful == (first in ("of unit", "nothing"))


def test_rescaling_twice_is_said_where_it_was_asked_for(keras, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(source_module, "_logged", set())
    network(keras, "nested").save(tmp_path / "net.keras")
    for _ in range(2):
        source = resolve_backbone(f"file:{tmp_path / 'net.keras'}", preprocessing="tf")
        log_preprocessing(source)
    assert source.preprocessing == "tf"
    assert caplog.text.count("rescaled twice. Leave --preprocessing") == 1
    assert resolve_backbone(f"file:{tmp_path / 'net.keras'}", preprocessing="none").note


@pytest.mark.parametrize(
    "config",
    [
        None,
        [],
        {"class_name": "Functional"},
        {"class_name": "Sequential", "config": {"layers": [{"class_name": "Rescaling"}]}},
        {"class_name": "Functional", "config": {"layers": [], "input_layers": []}},
    ],
)
def test_a_strange_configuration_tells_nothing(config):
    assert range_of_keras_config(config) == ""


def test_functions_that_call_themselves_end():
    from featx.backbones.saved_model import graph_message

    graph = graph_message("Graph")()
    function = graph.library.functions.add()
    function.signature.name = "loop"
    function.signature.inputs.add(name="x")
    node = function.nodes.add(name="call", op="PartitionedCall", inputs=["x"])
    node.attributes.add(key="f").value.func.name = "loop"
    function.results.add(key="y", value="call:output:0")
    assert range_of_graph(graph, "loop", []) == ""
    assert range_of_graph(graph, "absent", []) == ""
