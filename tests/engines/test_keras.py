import json
import logging
import os
import threading

import numpy as np
import pytest

from featx.backbones.build import build_network, build_tap_model
from featx.backbones.source import resolve_backbone
from featx.engines.backends import load_adapter
from featx.engines.keras import KerasEngine
from featx.exceptions import EngineError

TAPS = ("stem:max", "avg", "flatten", "stem:grid:2")


@pytest.fixture(scope="module")
def engine(source):
    return KerasEngine(source, TAPS)


def test_provenance_names_the_versions(engine, keras):
    assert engine.provenance() == {
        "engine": "keras",
        "keras": keras.__version__,
        "backend": keras.backend.backend(),
        "precision": "f32",
        "devices": {engine._replicas[0].device: "CPU"},
        "jit": keras.backend.backend() == "jax",
    }
    json.dumps(engine.provenance())


def test_the_size_of_a_batch_can_be_set(source):
    assert KerasEngine(source, ("avg",)).batch_size == 32
    assert KerasEngine(source, ("avg",), batch_size=5).batch_size == 5
    with pytest.raises(EngineError, match="a batch of 1 image or more, received 0"):
        KerasEngine(source, ("avg",), batch_size=0)


def test_a_failure_in_the_network_names_the_batch_and_a_way_out(source, pixels, monkeypatch):
    def broken(_):  # stands for what cannot be had in a test
        raise RuntimeError("Graph execution error\nand a long trace")

    monkeypatch.setattr(load_adapter(), "compile_model", lambda *_, **__: broken)
    engine = KerasEngine(source, ("avg",))
    with pytest.raises(
        EngineError, match=r"\(2, 24, 32, 3\) failed: Graph execution error\. Another --engine"
    ):
        engine.run(pixels(2))
    with pytest.raises(EngineError, match=r"may not take mixed precision: try f32"):
        KerasEngine(source, ("avg",), precision="mixed").run(pixels(2))


def test_the_reason_is_found_behind_a_heading(source, pixels, monkeypatch):
    def broken(_):
        raise RuntimeError(
            "Graph execution error:\n\nDetected at node mul\n\nIncompatible shapes: [8] vs. [0]\n"
            "\t [[{{node mul}}]] [Op:__inference_traced_243]"
        )

    monkeypatch.setattr(load_adapter(), "compile_model", lambda *_, **__: broken)
    with pytest.raises(EngineError, match=r"Incompatible shapes: \[8\] vs\. \[0\]\. Another"):
        KerasEngine(source, ("avg",)).run(pixels(2))


def test_what_other_threads_write_is_seen_while_batches_run(engine, pixels, capfd):
    engine.run(pixels(4))
    stop = threading.Event()
    written = []

    def draw_progress():
        while not stop.wait(0.0005):
            os.write(2, b"progress\n")
            written.append(1)

    thread = threading.Thread(target=draw_progress)
    thread.start()
    for _ in range(50):
        engine.run(pixels(4))
    stop.set()
    thread.join()
    assert written
    assert capfd.readouterr().err.count("progress\n") == len(written)


def test_many_batch_sizes_bring_no_warning_of_tensorflow(engine, pixels, caplog):
    with caplog.at_level(logging.WARNING):
        for count in range(1, 9):
            engine.run(pixels(count))
    assert caplog.records == []


def close(ours, theirs):
    product = (ours * theirs).sum(axis=1)
    return (product / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)).min()


# Cosines. A network that was never trained makes much of small differences.
@pytest.mark.parametrize(
    ("name", "least"), [("own", 0.999), pytest.param("tiny", 0.99, marks=pytest.mark.slow)]
)
def test_mixed_precision_gives_nearly_the_same_vectors_in_float32(name, least, source):
    source = source if name == "own" else resolve_backbone(name)
    coarse = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    height, width = source.input_size_px
    images = coarse.repeat(height // 8, axis=1).repeat(width // 8, axis=2)
    full = KerasEngine(source, ("avg", "max", "gem")).run(images)
    engine = KerasEngine(source, ("avg", "max", "gem"), precision="mixed")
    mixed = engine.run(images)
    assert engine.provenance()["precision"] in ("mixed_bfloat16", "mixed_float16")
    for tap, expected in full.items():
        assert mixed[tap].dtype == np.float32
        assert close(mixed[tap], expected) > least
        assert np.abs(mixed[tap] - expected).max() > 1e-6 * np.abs(expected).max()


def test_mixed_precision_is_that_of_keras(keras):
    source = resolve_backbone("mobilenet", weights="random:0", input_size=32)
    network = build_network(source, mixed="bfloat16")
    before = keras.config.dtype_policy()
    assert before.name == "float32", "the policy of the process is left alone"
    try:
        keras.config.set_dtype_policy("mixed_bfloat16")
        theirs = keras.applications.MobileNet(
            include_top=False, weights=None, input_shape=(32, 32, 3)
        )
    finally:
        keras.config.set_dtype_policy(before)
    theirs.set_weights(network.get_weights())
    x = np.random.default_rng(0).normal(size=(3, 32, 32, 3)).astype(np.float32)
    ours, expected = (
        keras.ops.convert_to_numpy(keras.ops.cast(one(x, training=False), "float32"))
        for one in (network, theirs)
    )
    np.testing.assert_array_equal(ours, expected)


def test_weights_do_not_depend_on_the_precision():
    source = resolve_backbone("mobilenet", weights="random:3", input_size=32)
    full, mixed = build_network(source), build_network(source, mixed="bfloat16")
    for ours, expected in zip(mixed.get_weights(), full.get_weights(), strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)


def test_layers_that_chose_their_precision_keep_it(keras, tmp_path):
    images = keras.Input((16, 16, 3))
    inner = keras.Sequential([keras.layers.Conv2D(4, 3, name="inner"), keras.layers.ReLU()])
    x = keras.layers.Conv2D(4, 3, name="chosen", dtype="mixed_float16")(inner(images))
    path = tmp_path / "chosen.keras"
    keras.Model(images, keras.layers.Conv2D(4, 3, name="plain")(x)).save(path)
    source = resolve_backbone(f"file:{path}")
    network = build_network(source, mixed="bfloat16")
    policies = {layer.name: layer.dtype_policy.name for layer in network._flatten_layers()}
    assert policies["inner"] == policies["plain"] == "mixed_bfloat16"
    assert policies["chosen"] == "mixed_float16"
    model = build_tap_model(source, ("chosen:gem", "avg"), network=network)
    assert [output.dtype for output in model.outputs] == ["float32", "float32"]
