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
from featx.exceptions import BackboneError, EngineError, UnknownNameError

TAPS = ("stem:max", "avg", "flatten", "stem:grid:2")


@pytest.fixture(scope="module")
def engine(source):
    return KerasEngine(source, TAPS)


def test_one_float32_array_a_tap_in_the_order_asked_for(engine, pixels):
    out = engine.run(pixels(5))
    assert tuple(out) == engine.taps == TAPS
    assert [values.shape for values in out.values()] == [(5, 8), (5, 6), (5, 9 * 13 * 6), (5, 32)]
    assert {values.dtype for values in out.values()} == {np.dtype(np.float32)}


def test_vectors_are_those_of_the_network(engine, source, keras, pixels):
    images = pixels(4)
    model = keras.models.load_model(source.weights.path)
    maps = keras.ops.convert_to_numpy(model(images.astype(np.float32) / 127.5 - 1, training=False))
    out = engine.run(images)
    np.testing.assert_allclose(out["avg"], maps.mean((1, 2)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(out["flatten"], maps.reshape(4, -1), rtol=1e-4, atol=1e-5)


def test_a_batch_of_any_size_gives_the_same_vectors(engine, pixels):
    images = pixels(7)
    together = engine.run(images)
    for tap in TAPS:
        alone = np.concatenate([engine.run(images[i : i + 1])[tap] for i in range(7)])
        np.testing.assert_allclose(alone, together[tap], rtol=1e-5, atol=1e-5)


def test_no_image_gives_no_vector(engine, pixels):
    assert {tap: values.shape for tap, values in engine.run(pixels(0)).items()} == {
        "stem:max": (0, 8),
        "avg": (0, 6),
        "flatten": (0, 702),
        "stem:grid:2": (0, 32),
    }


def test_batches_may_be_waited_for_in_any_order(engine, pixels):
    assert engine.in_flight == 2
    images = [pixels(count, seed=count) for count in (3, 1, 4, 2, 5)]
    batches = [engine.submit(one) for one in images]
    received = [batch.result() for batch in reversed(batches)][::-1]
    for one, vectors in zip(images, received, strict=True):
        assert tuple(vectors) == TAPS
        np.testing.assert_array_equal(vectors["avg"], engine.run(one)["avg"])


def test_pixels_that_may_not_be_written_to_are_taken(engine, pixels):
    images = pixels(4)
    expected = engine.run(images)["avg"]
    images.flags.writeable = False
    np.testing.assert_allclose(engine.run(images[::-1])["avg"], expected[::-1], rtol=1e-5)


def test_dropout_is_off_and_runs_repeat(engine, pixels):
    first, second = engine.run(pixels(3)), engine.run(pixels(3))
    for tap in TAPS:
        np.testing.assert_array_equal(first[tap], second[tap])


def test_a_single_tap_is_still_named(source, pixels):
    out = KerasEngine(source, ("avg",)).run(pixels(2))
    assert {tap: values.shape for tap, values in out.items()} == {"avg": (2, 6)}


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


@pytest.mark.parametrize(
    "shape", [(2, 32, 24, 3), (2, 24, 32), (24, 32, 3), (2, 24, 32, 4), (2, 48, 64, 3)]
)
def test_a_batch_of_another_shape_is_an_error(shape, engine):
    with pytest.raises(
        EngineError, match=r"uint8 pixels of shape \(n, 24, 32, 3\), received uint8"
    ):
        engine.run(np.zeros(shape, np.uint8))


def test_pixels_that_are_scaled_already_are_an_error(engine, pixels):
    with pytest.raises(EngineError, match=r"expected uint8 pixels .* received float32 of shape"):
        engine.run(pixels(2).astype(np.float32) / 255)


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


def test_an_unknown_layer_is_an_error_before_anything_runs(source):
    with pytest.raises(
        UnknownNameError, match="unknown layer or block of file:small 'stm'.*'stem'"
    ):
        KerasEngine(source, ("stm:avg",))


def test_a_network_that_cannot_be_built_is_an_error(tmp_path, keras):
    path = tmp_path / "grey.keras"
    keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()]).save(path)
    with pytest.raises(BackboneError, match="expected RGB pixels"):
        KerasEngine(resolve_backbone(f"file:{path}", input_size=8), ("avg",))


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
@pytest.mark.parametrize(("name", "least"), [("own", 0.999), ("tiny", 0.99), ("mobilenet", 0.9)])
def test_mixed_precision_gives_nearly_the_same_vectors_in_float32(name, least, source):
    arguments = {"weights": "random:0", "input_size": 64} if name == "mobilenet" else {}
    source = source if name == "own" else resolve_backbone(name, **arguments)
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
