import dataclasses
import logging
import sys

import numpy as np
import pytest

from featx.backbones.source import resolve_backbone
from featx.engines import openvino as engine_module
from featx.engines.keras import KerasEngine
from featx.engines.openvino import (
    TOLERANCE,
    Conversion,
    OpenVinoEngine,
    disagreement,
    load_openvino,
    translated,
)
from featx.exceptions import EngineError, UnknownNameError

TAPS = ("stem:max", "avg", "flatten", "stem:grid:2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("conversions")


@pytest.fixture(scope="module")
def engine(source, folder):
    return OpenVinoEngine(source, TAPS, folder=folder)


@pytest.fixture(scope="module")
def reference(source):
    return KerasEngine(source, TAPS)


class FailingRequest:
    """Memory running out, and faults of OpenVINO, cannot be had in a test."""

    def __init__(self, message):
        self.message = message

    def set_input_tensor(self, tensor):
        pass

    def start_async(self):
        pass

    def wait(self):
        raise RuntimeError(self.message)


def assert_same(ours, theirs):
    assert tuple(ours) == tuple(theirs)
    for tap, values in theirs.items():
        assert disagreement(ours[tap], values) <= TOLERANCE, tap


@pytest.mark.parametrize("known", [True, False])
def test_it_converts_alike_where_openvino_s_reader_is_another(known, source, reference, pixels):
    from openvino.frontend.tensorflow import graph_iterator

    reader = graph_iterator.TFGraphNodeDecoder
    usual = reader.get_variable
    with pytest.MonkeyPatch.context() as patch:
        if not known:
            patch.setitem(sys.modules, "openvino.frontend.tensorflow.node_decoder", None)
        assert_same(OpenVinoEngine(source, TAPS).run(pixels(4)), reference.run(pixels(4)))
    assert reader.get_variable is usual


def test_a_network_whose_taps_are_one_tensor(keras, tmp_path, pixels):
    images = keras.Input((24, 32, 3))
    x = keras.layers.Conv2D(4, 3)(images)
    path = tmp_path / "vector.keras"
    keras.Model(images, keras.layers.GlobalAveragePooling2D(name="mean")(x)).save(path)
    source = resolve_backbone(f"file:{path}")
    out = OpenVinoEngine(source, ("avg", "max", "mean:avg")).run(pixels(3))
    np.testing.assert_array_equal(out["avg"], out["max"])
    np.testing.assert_array_equal(out["avg"], out["mean:avg"])


def test_vectors_outlive_the_batches_that_follow(engine, pixels):
    result = engine.run(pixels(4, seed=1))
    kept = {tap: values.copy() for tap, values in result.items()}
    for seed in range(2, 6):
        engine.run(pixels(4, seed=seed))
    for tap, values in result.items():
        np.testing.assert_array_equal(values, kept[tap])
        assert values.flags.owndata
        assert values.flags.writeable


def test_a_batch_that_nobody_waits_for_disturbs_nothing(engine, reference, pixels):
    for seed in range(5):
        engine.submit(pixels(16, seed=seed))
    assert_same(engine.run(pixels(4)), reference.run(pixels(4)))


def test_bfloat16_would_differ(source, folder, engine, pixels):
    openvino = load_openvino()
    core = openvino.Core()
    if "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this processor has no bfloat16")
    (path,) = folder.glob("*/model.xml")
    coarse = core.compile_model(core.read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "bf16"})
    ours = coarse([pixels(4)])["tap_0001"]
    assert disagreement(ours, engine.run(pixels(4))["avg"]) > 2 * TOLERANCE


def test_batches_follow_the_size_of_the_images(source, folder, engine):
    assert engine.batch_size == 64
    assert OpenVinoEngine(source, TAPS, folder=folder, batch_size=5).batch_size == 5


@pytest.mark.parametrize(("processors", "streams"), [(1, 1), (2, 2), (16, 16), (64, 16)])
def test_many_processors_run_many_batches(processors, streams):
    options = engine_module._options(processors)
    assert (options["NUM_STREAMS"], options["INFERENCE_NUM_THREADS"]) == (streams, processors)


def test_a_huge_batch_is_run_in_parts(engine, pixels, monkeypatch):
    expected = engine.run(pixels(10))
    monkeypatch.setattr(engine, "_most", 3)
    assert_same(engine.run(pixels(10)), expected)


def test_a_batch_that_does_not_fit_into_memory_is_halved(source, folder, pixels, caplog):
    engine = OpenVinoEngine(source, TAPS, folder=folder, batch_size=12)
    expected = engine.run(pixels(12))
    engine._free.append(FailingRequest("Exception from src/a.cpp:1:\nstd::bad_alloc"))
    with caplog.at_level(logging.WARNING, "featx"):
        assert_same(engine.run(pixels(12)), expected)
    assert engine.batch_size == 6
    assert caplog.messages == ["a batch of 12 images does not fit into memory: going on with 6"]


def test_one_image_that_does_not_fit_into_memory_is_an_error(source, folder, pixels):
    engine = OpenVinoEngine(source, TAPS, folder=folder)
    engine._free.append(FailingRequest("std::bad_alloc"))
    with pytest.raises(EngineError, match=r"\(1, 24, 32, 3\) failed: std::bad_alloc\. A smaller"):
        engine.run(pixels(1))


def test_a_failure_in_the_network_names_the_batch_and_a_way_out(source, folder, pixels):
    engine = OpenVinoEngine(source, TAPS, folder=folder)
    engine._free.append(FailingRequest("Exception from src/a.cpp:1:\nno such kernel\nmore"))
    with pytest.raises(
        EngineError, match=r"\(2, 24, 32, 3\) failed: no such kernel\. A smaller --batch-size"
    ):
        engine.run(pixels(2))
    assert engine.run(pixels(2))["avg"].shape == (2, 6)


def test_a_network_that_does_not_convert_is_an_error(tmp_path, keras):
    import tensorflow as tf

    @keras.saving.register_keras_serializable("featx-tests")
    class Foreign(keras.layers.Layer):
        def call(self, images):
            doubled = tf.numpy_function(lambda values: values * 2, [images], tf.float32)
            return tf.ensure_shape(doubled, (None, 8, 8, 3))

        def compute_output_shape(self, shape):
            return shape

    path = tmp_path / "foreign.keras"
    keras.Sequential([keras.Input((8, 8, 3)), Foreign()]).save(path)
    with pytest.raises(EngineError, match="conversion of file:foreign to OpenVINO failed: .*Keras"):
        OpenVinoEngine(resolve_backbone(f"file:{path}"), ("avg",))


def test_another_backend_of_keras_is_an_error(source, keras, monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(
        EngineError, match="expected the Keras backend 'tensorflow', received 'jax'"
    ):
        OpenVinoEngine(source, TAPS)


def test_a_conversion_that_differs_from_keras_is_refused_and_not_kept(
    source, tmp_path, monkeypatch
):
    usual = engine_module.convert

    def convert(*args):
        conversion = usual(*args)
        wrong = {tap: values * 1.001 for tap, values in conversion.expected.items()}
        return dataclasses.replace(conversion, expected=wrong)

    monkeypatch.setattr(engine_module, "convert", convert)
    with pytest.raises(
        EngineError, match=r"differs from Keras by 1\.0e-03 relative at the tap stem:max; expected"
    ):
        OpenVinoEngine(source, TAPS, folder=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("fault", ["alone", "nan", "shape"])
def test_the_check_sees_what_is_wrong(fault):
    expected = np.ones((2, 3), np.float32)

    def run(images):
        vectors = expected[: len(images)].copy()
        if fault == "alone" and len(images) == 1:
            vectors *= 1.01
        elif fault == "nan":
            vectors[0, 0] = np.nan
        elif fault == "shape":
            vectors = vectors[:, :2]
        return {"avg": vectors}

    conversion = Conversion("net", None, np.zeros((2, 8, 8, 3), np.uint8), {"avg": expected})
    with pytest.raises(EngineError, match="net under OpenVINO differs from Keras by .* tap avg"):
        conversion.check(run)


def test_errors_of_featx_are_not_translated():
    with pytest.raises(UnknownNameError, match="unknown tap"), translated("anything"):
        raise UnknownNameError("tap", "x", ["y"])


def test_an_error_that_says_nothing_is_named():
    with (
        pytest.raises(EngineError, match=r"this failed: RuntimeError\. Use the Keras"),
        translated("this"),
    ):
        raise RuntimeError


def test_telemetry_writes_nothing_and_is_not_even_imported(run_python, tmp_path):
    code = (
        "import sys, threading\n"
        "from featx.engines.openvino import load_openvino\n"
        "load_openvino().Core()\n"
        "print('openvino_telemetry' in sys.modules, threading.active_count())\n"
    )
    done = run_python(code, HOME=str(tmp_path), CI="", TF_BUILD="", JENKINS_URL="")
    assert (done.stdout, done.stderr) == ("False 1\n", "")
    assert not list(tmp_path.iterdir())
