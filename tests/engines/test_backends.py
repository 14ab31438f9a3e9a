"""The adapters of the backends; other backends than the suite's run in processes of their own."""

import importlib.util
import json
from types import SimpleNamespace

import numpy as np
import pytest

from featx.engines.backends import load_adapter
from featx.engines.keras import KerasEngine
from featx.exceptions import EngineError

BACKENDS = ("tensorflow", "jax", "torch")
TAPS = ("stem:max", "avg", "stem:gem")
RUN = """
import json
import numpy as np
from featx.backbones.source import resolve_backbone
from featx.engines.choice import gpus
from featx.engines.keras import KerasEngine
source = resolve_backbone("file:{path}", preprocessing="tf")
images = np.random.default_rng(0).integers(0, 256, (7, 24, 32, 3), dtype=np.uint8)
outcome = [gpus()]
for precision in ("f32", "mixed"):
    engine = KerasEngine(source, {taps}, batch_size=4, precision=precision)
    batches = [engine.submit(images[:4]), engine.submit(images[4:])]
    vectors = [batch.result() for batch in batches]
    outcome += [
        engine.provenance(),
        {{tap: np.concatenate([v[tap] for v in vectors]).tolist() for tap in engine.taps}},
    ]
print(json.dumps(outcome))
"""


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_gives_the_same_vectors(backend, source, pixels, run_python):
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    code = RUN.format(path=source.weights.path, taps=TAPS)
    gpus, full, received, mixed, rounded = json.loads(
        run_python(code, KERAS_BACKEND=backend).stdout
    )
    expected = KerasEngine(source, TAPS).run(pixels(7))
    assert full["backend"] == backend
    assert list(full["devices"]) == gpus or not gpus
    assert mixed["precision"] in ("mixed_bfloat16", "mixed_float16")
    for tap in TAPS:
        scale = np.abs(expected[tap]).max()
        np.testing.assert_allclose(received[tap], expected[tap], rtol=1e-4, atol=1e-4 * scale)
        assert 1e-6 < np.abs(rounded[tap] - expected[tap]).max() / scale < 0.03


@pytest.mark.slow
def test_memory_that_ran_out_is_told_from_other_failures(keras):
    adapter = load_adapter()
    # No machine has so much: the error is the backend's own. TensorFlow tries for ten seconds.
    with pytest.raises(Exception, match=r"(?i)memory|OOM|RESOURCE_EXHAUSTED") as more_than_there_is:
        adapter.to_numpy([keras.ops.zeros((1 << 46,), "uint8")])
    with pytest.raises(Exception, match=".") as other:
        keras.ops.matmul(np.ones((2, 3), np.float32), np.ones((2, 3), np.float32))
    assert adapter.out_of_memory(more_than_there_is.value)
    assert not adapter.out_of_memory(other.value)
    assert not adapter.out_of_memory(ValueError("out of memory, says a layer"))
    adapter.clean_up()


def test_what_cuda_says_of_its_memory_is_understood(keras):
    # As seen on GPUs, which a test cannot have.
    adapter = load_adapter()
    if keras.backend.backend() == "tensorflow":
        import tensorflow

        kind = lambda text: tensorflow.errors.InternalError(None, None, text)  # noqa: E731
    elif keras.backend.backend() == "jax":
        import jax

        kind = jax.errors.JaxRuntimeError
    else:
        import torch

        kind = torch.OutOfMemoryError
    assert adapter.out_of_memory(kind("CUDA_ERROR_OUT_OF_MEMORY: out of memory"))
    assert adapter.out_of_memory(kind("RESOURCE_EXHAUSTED: failed to allocate 2.00GiB"))


def test_a_backend_without_an_adapter_is_an_error(source, keras, monkeypatch):
    monkeypatch.setattr(keras, "backend", SimpleNamespace(backend=lambda: "numpy"))
    with pytest.raises(EngineError, match="one of tensorflow, jax, torch, received 'numpy'.*KERAS"):
        KerasEngine(source, ("avg",))


def test_outputs_are_float32_arrays_of_numpy(keras):
    (received,) = load_adapter().to_numpy([keras.ops.ones((2, 3), "float16")])
    assert isinstance(received, np.ndarray)
    assert (received.dtype, received.shape) == (np.float32, (2, 3))
