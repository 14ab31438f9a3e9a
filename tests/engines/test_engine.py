"""What every engine does, which one is chosen, and whether there could be a GPU."""

import json
import logging
import threading
from importlib.metadata import version

import numpy as np
import pytest

from featx.backbones.source import resolve_backbone
from featx.engines import choice as choice_module
from featx.engines.choice import ENGINES, make_engine, may_have_gpu
from featx.engines.openvino import TOLERANCE, OpenVinoEngine, disagreement
from featx.exceptions import BackboneError, EngineError, UnknownNameError

TAPS = ("stem:max", "avg", "flatten", "stem:grid:2")
WIDTHS = (8, 6, 9 * 13 * 6, 32)
BOTH = pytest.mark.parametrize("name", ["keras", "openvino"])


@pytest.fixture(scope="module", params=["keras", "openvino"])
def engine(request, source):
    return make_engine(request.param, source, TAPS)


def assert_same(ours, theirs):
    assert tuple(ours) == tuple(theirs)
    for tap, values in theirs.items():
        assert disagreement(ours[tap], values) <= TOLERANCE, tap


@pytest.mark.parametrize("count", [0, 1, 5, 32])
def test_one_float32_array_a_tap_in_the_order_asked_for(count, engine, pixels):
    out = engine.run(pixels(count))
    assert tuple(out) == engine.taps == TAPS
    assert [values.shape for values in out.values()] == [(count, width) for width in WIDTHS]
    assert {values.dtype for values in out.values()} == {np.dtype(np.float32)}


def test_vectors_are_those_of_the_network_without_dropout(engine, source, keras, pixels):
    images = pixels(7)
    model = keras.models.load_model(source.weights.path)
    maps = keras.ops.convert_to_numpy(model(images.astype(np.float32) / 127.5 - 1, training=False))
    out = engine.run(images)
    np.testing.assert_allclose(out["avg"], maps.mean((1, 2)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(out["flatten"], maps.reshape(7, -1), rtol=1e-4, atol=1e-5)
    again = engine.run(images)
    for tap in TAPS:
        np.testing.assert_array_equal(again[tap], out[tap])
        alone = np.concatenate([engine.run(images[i : i + 1])[tap] for i in range(7)])
        np.testing.assert_allclose(alone, out[tap], rtol=1e-5, atol=1e-5)


def test_batches_under_way_do_not_disturb_each_other(engine, pixels):
    assert engine.in_flight >= 2
    batches = [pixels(1 + seed % 5, seed=seed) for seed in range(3 * engine.in_flight)]
    expected = [engine.run(batch) for batch in batches]
    pending = [engine.submit(batch) for batch in batches]
    results = [batch.result() for batch in reversed(pending)][::-1]
    for ours, theirs in zip(results, expected, strict=True):
        assert_same(ours, theirs)


def test_several_threads_may_run_one_engine(engine, pixels):
    expected = {seed: engine.run(pixels(3, seed=seed))["avg"] for seed in range(4)}
    wrong = []

    def repeat(seed):
        for _ in range(20):
            if not np.array_equal(engine.run(pixels(3, seed=seed))["avg"], expected[seed]):
                wrong.append(seed)

    threads = [threading.Thread(target=repeat, args=(seed,)) for seed in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("kind", ["read-only", "strided", "backwards"])
def test_pixels_may_lie_in_memory_in_any_way(kind, engine, pixels):
    images = pixels(6)
    if kind == "read-only":
        batch = images.copy()
        batch.flags.writeable = False
    elif kind == "strided":
        batch = np.repeat(images, 2, axis=0)[::2]
    else:
        batch = np.asfortranarray(images)
    before = batch.copy()
    assert_same(engine.run(batch), engine.run(images))
    np.testing.assert_array_equal(batch, before)


@pytest.mark.parametrize(
    "shape", [(2, 32, 24, 3), (2, 24, 32), (24, 32, 3), (2, 24, 32, 4), (2, 48, 64, 3)]
)
def test_a_batch_of_another_shape_is_an_error(shape, engine):
    with pytest.raises(
        EngineError, match=r"uint8 pixels of shape \(n, 24, 32, 3\), received uint8"
    ):
        engine.submit(np.zeros(shape, np.uint8))


def test_pixels_that_are_scaled_already_are_an_error(engine, pixels):
    with pytest.raises(EngineError, match=r"expected uint8 pixels .* received float32 of shape"):
        engine.run(pixels(2).astype(np.float32) / 255)


def test_provenance_names_versions_and_precision(engine):
    provenance = json.loads(json.dumps(engine.provenance()))
    assert provenance["engine"] == engine.name
    assert provenance["keras"] == version("keras")
    assert provenance["precision"] == "f32"
    if engine.name == "openvino":
        assert provenance["openvino"] == version("openvino")


@BOTH
def test_an_unknown_layer_is_an_error_before_anything_runs(name, source):
    with pytest.raises(
        UnknownNameError, match="unknown layer or block of file:small 'stm'.*'stem'"
    ):
        make_engine(name, source, ("stm:avg",))


@BOTH
def test_a_network_that_cannot_be_built_is_an_error(name, tmp_path, keras):
    path = tmp_path / "grey.keras"
    keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()]).save(path)
    with pytest.raises(BackboneError, match="expected RGB pixels"):
        make_engine(name, resolve_backbone(f"file:{path}", input_size=8), ("avg",))


@pytest.mark.parametrize("name", ["auto", "keras"])
def test_an_engine_is_made_by_name_and_only_once(name, source, pixels):
    assert name in ENGINES
    engine = make_engine(name, source, ("avg",), batch_size=3)
    assert (engine.taps, engine.batch_size) == (("avg",), 3)
    assert engine.run(pixels(2))["avg"].shape == (2, 6)
    assert engine.provenance()["engine"] == engine.name
    assert make_engine(name, source, ("avg",), batch_size=3) is engine
    assert make_engine(name, source, ("max",), batch_size=3) is not engine


def test_an_unknown_engine_is_answered_with_the_nearest(source):
    with pytest.raises(UnknownNameError, match="unknown engine 'kears': did you mean 'keras'"):
        make_engine("kears", source, ("avg",))


@pytest.mark.parametrize(
    ("backend", "level"), [(None, "WARNING"), ("tensorflow", "WARNING"), ("jax", "DEBUG")]
)
def test_keras_steps_in_for_openvino(backend, level, source, monkeypatch, caplog):
    def refuse(*_args, **_options):
        raise EngineError("it does not convert")

    monkeypatch.setattr(OpenVinoEngine, "__init__", refuse)
    monkeypatch.setattr(choice_module, "may_have_gpu", lambda: False)
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    if backend:
        monkeypatch.setenv("KERAS_BACKEND", backend)
    with caplog.at_level(logging.DEBUG, "featx"):
        assert make_engine("auto", source, ("avg",), batch_size=5).name == "keras"
    (record,) = [one for one in caplog.records if "Keras steps in" in one.message]
    assert record.levelname == level
    assert "it does not convert" in record.message
    choice_module._built.cache_clear()


@pytest.mark.parametrize(
    ("trace", "environment", "expected"),
    [
        ("", {}, False),
        ("dev/nvidia0", {}, True),
        ("dev/nvidia12", {"CUDA_VISIBLE_DEVICES": "1"}, True),
        ("dev/nvidiactl", {}, False),
        ("proc/driver/nvidia/gpus/0000:01:00.0", {}, True),
        ("dev/dxg", {}, True),
        ("dev/kfd", {}, True),
        ("dev/nvidia0", {"CUDA_VISIBLE_DEVICES": ""}, False),
        ("dev/dxg", {"CUDA_VISIBLE_DEVICES": "-1"}, False),
        ("dev/kfd", {"HIP_VISIBLE_DEVICES": "-1"}, False),
        ("dev/nvidia0", {"HIP_VISIBLE_DEVICES": "-1"}, True),
    ],
)
def test_a_driver_leaves_traces(trace, environment, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(choice_module, "_ROOT", tmp_path)
    monkeypatch.setattr(choice_module.sys, "platform", "linux")
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if trace:
        (tmp_path / trace).parent.mkdir(parents=True)
        (tmp_path / trace).touch()
    assert may_have_gpu() is expected
    monkeypatch.setattr(choice_module.sys, "platform", "darwin")
    assert may_have_gpu() is False


def test_whether_there_could_be_a_gpu_is_known_without_a_backend(run_python):
    code = (
        "import sys; from featx.engines.choice import may_have_gpu; may_have_gpu()\n"
        "print({'keras', 'tensorflow', 'jax', 'torch'} & set(sys.modules))"
    )
    assert run_python(code).stdout == "set()\n"
