"""Several devices, how full they are made, and running out of their memory.

There need be no GPU: processors are split into several, and adapters are given a memory that ends.
"""

import gc
import importlib.util
import json
import logging
import threading
import types
from functools import partial

import numpy as np
import pytest

from featx.engines import keras as keras_engine
from featx.engines.backends import TensorFlowAdapter, load_adapter
from featx.engines.choice import gpus
from featx.engines.keras import KerasEngine, best_batch_size
from featx.exceptions import EngineError

TAPS = ("avg", "stem:max")
SPLIT = {
    "tensorflow": (
        "import tensorflow as tf\n"
        "tf.config.set_logical_device_configuration(\n"
        "    tf.config.list_physical_devices('CPU')[0],\n"
        "    [tf.config.LogicalDeviceConfiguration()] * 3)\n"
    ),
    "jax": ("import os\nos.environ['XLA_FLAGS'] = '--xla_force_host_platform_device_count=3'\n"),
}
RUN_ON_THREE = """
import json
import numpy as np
from featx.backbones.source import resolve_backbone
from featx.engines.keras import KerasEngine
source = resolve_backbone("file:{path}", preprocessing="tf")
images = np.random.default_rng(0).integers(0, 256, (20, 24, 32, 3), dtype=np.uint8)
engine = KerasEngine(source, ("avg", "stem:max"), batch_size=3)
batches = [engine.submit(images[begin : begin + 3]) for begin in range(0, 20, 3)]
vectors = [batch.result() for batch in reversed(batches)][::-1]
places = [
    str(getattr(output, "device", "")) for replica in engine._replicas
    for output in replica._forwards[replica.jit](images[:3])[:1]
]
print(json.dumps([
    engine.in_flight, engine.provenance()["devices"], places,
    {{tap: np.concatenate([v[tap] for v in vectors]).tolist() for tap in engine.taps}},
]))
"""


@pytest.mark.parametrize("backend", SPLIT)
def test_all_devices_are_used_and_give_what_one_does(backend, source, pixels, run_python):
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    code = SPLIT[backend] + RUN_ON_THREE.format(path=source.weights.path)
    done = run_python(code, KERAS_BACKEND=backend)
    in_flight, devices, places, received = json.loads(done.stdout)
    assert in_flight == 6
    assert devices == {"cpu:0": "CPU", "cpu:1": "CPU", "cpu:2": "CPU"}
    assert len(set(places)) == 3
    expected = KerasEngine(source, TAPS).run(pixels(20))
    for tap in TAPS:
        np.testing.assert_allclose(received[tap], expected[tap], rtol=1e-4, atol=1e-5)


@pytest.fixture
def adapter(keras, monkeypatch):
    """The adapter of the suite's backend, its functions free to be replaced.

    It has a processor only, so that devices called GPUs are that processor.
    """
    found = load_adapter()
    monkeypatch.setattr(keras, "device", lambda _, own=keras.device: own("cpu"))
    compile_model, here = found.compile_model, found.processors()[0]
    monkeypatch.setattr(
        found, "compile_model", lambda model, device, jit: compile_model(model, here, jit=jit)
    )
    monkeypatch.setattr(found, "kind", lambda device: device)
    return found


@pytest.fixture
def give_gpus(adapter, monkeypatch):
    def give(count, jit=(False,)):
        monkeypatch.setattr(adapter, "accelerators", lambda: [f"gpu:{i}" for i in range(count)])
        monkeypatch.setattr(adapter, "jit_choices", lambda device: jit)

    return give


@pytest.fixture
def around_forward(adapter, monkeypatch):
    """Have a function look at every batch before it runs on a device."""

    def put(look):
        compile_model = adapter.compile_model

        def compiled(model, device, *, jit):
            forward = compile_model(model, device, jit=jit)

            def looked_at(batch):
                look(batch, device, jit)
                return forward(batch)

            return looked_at

        monkeypatch.setattr(adapter, "compile_model", compiled)

    return put


@pytest.fixture
def pass_seconds(monkeypatch):
    """A function that moves the clock by which engines try batches; it stands still otherwise."""
    now = [0.0]

    def pass_seconds(seconds):
        now[0] += seconds

    def clock():
        return now[0]

    monkeypatch.setattr(keras_engine, "time", types.SimpleNamespace(perf_counter=clock))
    monkeypatch.setattr(keras_engine, "best_batch_size", partial(best_batch_size, clock=clock))
    return pass_seconds


def holds(most):
    def look(batch, device, jit):
        if len(batch) > most:
            raise MemoryError(f"OOM when allocating tensor of {len(batch)} images\nand a trace")

    return look


def test_batches_that_do_not_fit_are_halved_and_none_is_lost(
    source, pixels, around_forward, caplog
):
    expected = KerasEngine(source, TAPS).run(pixels(32))
    around_forward(holds(5))
    engine = KerasEngine(source, TAPS, batch_size=16)
    with caplog.at_level(logging.WARNING, "featx"):
        received = [engine.submit(pixels(32)) for _ in range(3)]
        received = [batch.result() for batch in received]
    for vectors in received:
        for tap in TAPS:
            np.testing.assert_allclose(vectors[tap], expected[tap], rtol=1e-5, atol=1e-5)
    assert engine.batch_size == 4
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2, "once for each halving"
    assert "no more memory on cpu" in said[0]
    assert "batches of 8 images" in said[0]
    assert "batches of 4 images" in said[1]


def test_the_backends_own_error_halves_too(source, pixels, around_forward, keras):
    if keras.backend.backend() != "tensorflow":
        pytest.skip("needs TensorFlow as the backend")
    import tensorflow

    def look(batch, device, jit):
        if len(batch) > 2:
            raise tensorflow.errors.ResourceExhaustedError(None, None, "OOM when allocating")

    around_forward(look)
    engine = KerasEngine(source, ("avg",), batch_size=4)
    assert engine.run(pixels(5))["avg"].shape == (5, 6)
    assert engine.batch_size == 2


def test_memory_for_not_even_one_image_is_an_error(source, pixels, around_forward):
    around_forward(holds(0))
    engine = KerasEngine(source, ("avg",), batch_size=4)
    with pytest.raises(
        EngineError,
        match=r"file:small does not fit into the memory of cpu.*one image at a time: OOM when "
        r"allocating tensor of 1 images\. .*--input-size.*mixed",
    ):
        engine.run(pixels(4))


def test_batches_go_to_the_gpus_in_turn(source, pixels, give_gpus, around_forward):
    give_gpus(2)
    used = []
    around_forward(lambda batch, device, jit: used.append(device))
    engine = KerasEngine(source, TAPS, batch_size=4)
    images = pixels(16)
    batches = [engine.submit(images[begin : begin + 4]) for begin in range(0, 16, 4)]
    received = np.concatenate([batch.result()["avg"] for batch in batches])
    assert gpus() == ["gpu:0", "gpu:1"]
    assert engine.in_flight == 4
    assert sorted(used) == ["gpu:0", "gpu:0", "gpu:1", "gpu:1"]
    assert engine.provenance()["devices"] == {"gpu:0": "gpu:0", "gpu:1": "gpu:1"}
    expected = KerasEngine(source, TAPS).run(images)["avg"]
    np.testing.assert_allclose(received, expected, rtol=1e-5, atol=1e-5)


def test_a_device_that_dies_is_named(source, pixels, give_gpus, around_forward):
    give_gpus(2)

    def look(batch, device, jit):
        if device == "gpu:1":
            raise RuntimeError("CUDA_ERROR_ECC_UNCORRECTABLE")

    around_forward(look)
    engine = KerasEngine(source, ("avg",), batch_size=4)
    engine.submit(pixels(4)).result()
    with pytest.raises(EngineError, match=r"on gpu:1 failed: CUDA_ERROR_ECC"):
        engine.submit(pixels(4)).result()


def test_a_gpu_is_filled_by_trial(source, give_gpus, around_forward, pass_seconds, caplog):
    give_gpus(1)

    def look(batch, device, jit):
        holds(200)(batch, device, jit)
        pass_seconds(0.05)  # the same for every size: the larger the faster

    around_forward(look)
    with caplog.at_level(logging.WARNING, "featx"):
        assert KerasEngine(source, ("avg",)).batch_size == 128
        assert KerasEngine(source, ("avg",), batch_size=7).batch_size == 7
    assert caplog.records == []


@pytest.mark.parametrize(("faster", "expected"), [(True, True), (False, False), (None, False)])
def test_compiling_is_kept_where_it_pays(
    faster, expected, source, pixels, give_gpus, around_forward, pass_seconds
):
    give_gpus(1, jit=(False, True))

    def look(batch, device, jit):
        if jit and faster is None:
            raise RuntimeError("libdevice not found at ./libdevice.10.bc")
        pass_seconds(0.1 if not jit else 0.03 if faster else 0.2)

    around_forward(look)
    engine = KerasEngine(source, ("avg",), batch_size=2)
    assert engine.provenance()["jit"] is expected
    assert engine.run(pixels(3))["avg"].shape == (3, 6)


def test_a_short_batch_is_filled_up_where_shapes_are_compiled(
    source, pixels, give_gpus, around_forward
):
    expected = KerasEngine(source, TAPS).run(pixels(11))
    give_gpus(1, jit=(True,))
    shapes = []
    around_forward(lambda batch, device, jit: shapes.append(len(batch)))
    engine = KerasEngine(source, TAPS, batch_size=8)
    received = engine.run(pixels(11))
    assert shapes == [8, 8]
    for tap in TAPS:
        np.testing.assert_allclose(received[tap], expected[tap], rtol=1e-5, atol=1e-5)
    engine = KerasEngine(source, TAPS, batch_size=12)
    shapes.clear()
    for count in (1, 1, 3, 4, 2, 11, 9):
        assert engine.run(pixels(count))["avg"].shape == (count, 6)
    assert shapes == [1, 1, 4, 4, 4, 12, 12]


def test_a_caller_does_not_wait_for_a_batch(source, pixels, around_forward):
    running = threading.Event()
    go_on = threading.Event()

    def look(batch, device, jit):
        if running.is_set():
            assert go_on.wait(600)

    around_forward(look)
    engine = KerasEngine(source, ("avg",))
    engine.run(pixels(2))
    if load_adapter().jit_choices("cpu:0")[0]:
        engine.run(pixels(3))
    running.set()
    batches = [engine.submit(pixels(2, seed=seed)) for seed in (1, 2)]
    go_on.set()
    for seed, batch in zip((1, 2), batches, strict=True):
        expected = engine.run(pixels(2, seed=seed))["avg"]
        np.testing.assert_array_equal(batch.result()["avg"], expected)


def test_threads_end_with_their_engine(source, pixels):
    def threads():
        return {thread for thread in threading.enumerate() if thread.name.startswith("featx-")}

    before = threads()
    engine = KerasEngine(source, ("avg",))
    engine.run(pixels(2))
    own = threads() - before
    assert own
    del engine
    gc.collect()
    for thread in own:
        thread.join(timeout=600)
        assert not thread.is_alive()


def test_an_interrupt_is_felt_while_a_batch_is_waited_for(source, run_python):
    code = f"""
import os, signal, threading
import numpy as np
from featx.backbones.source import resolve_backbone
from featx.engines.keras import KerasEngine
engine = KerasEngine(resolve_backbone("file:{source.weights.path}"), ("avg",))
images = np.zeros((2, 24, 32, 3), np.uint8)
engine.run(images)
end = threading.Event()
forward = engine._replicas[0]._forwards[engine._replicas[0].jit]
engine._replicas[0]._forwards[engine._replicas[0].jit] = lambda x: end.wait(600) and forward(x)
batch = engine.submit(images)
try:
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    batch.result()
except KeyboardInterrupt:
    print("still computing" if not end.is_set() else "over", flush=True)
    end.set()
"""
    assert run_python(code).stdout == "still computing\n"


@pytest.mark.parametrize(
    ("rates", "most", "expected"),
    [
        ({32: 100, 64: 190, 128: 300, 256: 310, 512: 900}, 1024, 128),
        ({32: 100, 64: 101}, 1024, 32),
        ({32: 100, 64: 200, 128: None}, 1024, 64),
        ({32: None, 16: None, 8: 10}, 1024, 8),
        (dict.fromkeys((32, 16, 8, 4, 2, 1)), 1024, 1),
        ({32 << i: 100 << i for i in range(6)}, 1024, 1024),
        ({20: 1}, 20, 20),
        ({32: 1, 64: 2}, 100, 64),
    ],
)
def test_a_batch_grows_for_as_long_as_that_pays(rates, most, expected):
    assert best_batch_size(rates.__getitem__, most) == expected


def test_no_further_size_is_tried_after_a_while():
    clock = iter([0.0, 12.0, 24.0, 36.0])
    assert best_batch_size(lambda size: float(size), 1024, clock=lambda: next(clock)) == 64


def test_single_precision_on_a_gpu_is_not_tensor_float(source, adapter, give_gpus, monkeypatch):
    called = []
    monkeypatch.setattr(adapter, "compute_in_float32", lambda: called.append(1))
    KerasEngine(source, TAPS, batch_size=4)
    assert not called
    give_gpus(1)
    KerasEngine(source, TAPS, batch_size=4, precision="mixed")
    assert not called
    KerasEngine(source, TAPS, batch_size=4)
    assert called


def test_tensorflow_switches_tensor_float_off(tf):
    before = tf.config.experimental.tensor_float_32_execution_enabled()
    try:
        TensorFlowAdapter().compute_in_float32()
        assert not tf.config.experimental.tensor_float_32_execution_enabled()
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(before)
