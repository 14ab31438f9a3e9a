import logging
import os
import threading

import numpy as np
import pytest

from featx.backbones.source import resolve_backbone
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
    }


def test_the_size_of_a_batch_can_be_set(source):
    assert KerasEngine(source, ("avg",)).batch_size == 32
    assert KerasEngine(source, ("avg",), batch_size=5).batch_size == 5


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
    engine = KerasEngine(source, ("avg",))

    def exhausted(_):  # memory running out stands for what cannot be had in a test
        raise MemoryError("OOM when allocating tensor\nand a long trace")

    monkeypatch.setattr(engine._model, "predict_on_batch", exhausted)
    with pytest.raises(
        EngineError, match=r"\(2, 24, 32, 3\) failed: OOM when allocating tensor\. .*--batch-size"
    ):
        engine.run(pixels(2))


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
