"""The backends of Keras; only here are TensorFlow, JAX and PyTorch spoken to directly.

Keras's own `predict_on_batch` computes as fast with TensorFlow on a processor. It is not used since
it traces a network again for the second size of a batch, which takes as long as the first time
(TensorFlow), keeps state that threads share (JAX), and feeds a GPU by one stream from pageable
memory (PyTorch). `keras.distribution` spreads a model over devices with JAX only.
"""

from __future__ import annotations

import gc
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import EngineError

if TYPE_CHECKING:
    import keras

Native: TypeAlias = Any
"""A tensor or a device of a backend, which has no types of its own."""
Forward = Callable[[NDArray[np.uint8]], list[Native]]
"""Takes pixels of shape (n, h, w, 3), starts the forward pass and returns its outputs on the
device, without waiting for them where the backend allows. May be called from several threads."""


class Adapter(ABC):
    """One backend, whose devices are named as `keras.device` takes them, such as ``"gpu:0"``."""

    # An error says that memory ran out by being of `exhausted`, or by having a sign of `signs` in
    # its text and being of `general`: libraries below the backend have allocations of their own.
    exhausted: tuple[type[BaseException], ...] = ()
    general: type[BaseException]
    signs: tuple[str, ...]

    @abstractmethod
    def accelerators(self) -> list[str]:
        """Return the accelerators that can be used; none where there is only a processor."""

    @abstractmethod
    def processors(self) -> list[str]:
        """Return what to run on where there is no accelerator: one, unless more were set up."""

    @abstractmethod
    def kind(self, device: str) -> str:
        """Return the maker's name of an accelerator, else ``"CPU"``."""

    @abstractmethod
    def jit_choices(self, device: str) -> tuple[bool, ...]:
        """Return whether compiling (anew for every shape) is worth a trial; what is safe first."""

    @abstractmethod
    def compute_in_float32(self) -> None:
        """Keep GPUs from rounding the factors of float32 products to 10 bits (TensorFloat-32)."""

    @abstractmethod
    def compile_model(self, model: keras.Model, device: str, *, jit: bool) -> Forward:
        """Make a model that was built on a device a function of pixels."""

    @abstractmethod
    def to_numpy(self, outputs: list[Native]) -> list[NDArray[np.float32]]:
        """Wait for outputs and bring them to the host; in the thread that started them."""

    def out_of_memory(self, error: BaseException) -> bool:
        """Tell whether an error says that a device has no more memory."""
        if isinstance(error, self.exhausted):
            return True
        text = str(error)
        return isinstance(error, self.general) and any(sign in text for sign in self.signs)

    def clean_up(self) -> None:
        """Free what a traceback held, and memory that the backend keeps after a failure."""
        gc.collect()


class TensorFlowAdapter(Adapter):
    """TensorFlow, with its own kernels on a processor: XLA is slower than they are there."""

    # Of cuDNN, cuBLAS and XLA too.
    signs = ("out of memory", "OOM when", "RESOURCE_EXHAUSTED", "ALLOC_FAILED")

    def __init__(self) -> None:
        import tensorflow as tf

        self._tf = tf
        self.exhausted, self.general = (tf.errors.ResourceExhaustedError,), tf.errors.OpError

    def accelerators(self) -> list[str]:
        return self._devices("gpu")

    def processors(self) -> list[str]:
        return self._devices("cpu")

    def _devices(self, family: str) -> list[str]:
        count = len(self._tf.config.list_logical_devices(family.upper()))
        return [f"{family}:{index}" for index in range(count)]

    def kind(self, device: str) -> str:
        family, _, index = device.partition(":")
        visible = self._tf.config.get_visible_devices(family.upper())
        if family != "gpu" or int(index) >= len(visible):  # a GPU can be split into several
            return family.upper()
        details = self._tf.config.experimental.get_device_details(visible[int(index)])
        return str(details.get("device_name", "GPU"))

    def jit_choices(self, device: str) -> tuple[bool, ...]:
        return (False,) if device.startswith("cpu") else (False, True)

    def compute_in_float32(self) -> None:
        self._tf.config.experimental.enable_tensor_float_32_execution(False)

    def compile_model(self, model: keras.Model, device: str, *, jit: bool) -> Forward:
        tf = self._tf
        # The number of images is left open, so that one trace serves every batch.
        signature = tf.TensorSpec(model.input_shape, tf.uint8)

        @tf.function(input_signature=[signature], jit_compile=jit, autograph=False)  # type: ignore[untyped-decorator, unused-ignore]
        def traced(pixels: Native) -> Native:
            with tf.device(device):
                return model(pixels, training=False)

        def forward(pixels: NDArray[np.uint8]) -> list[Native]:
            with tf.device(device):
                return list(tf.nest.flatten(traced(tf.convert_to_tensor(pixels))))

        return forward

    def to_numpy(self, outputs: list[Native]) -> list[NDArray[np.float32]]:
        return [np.asarray(output.numpy(), np.float32) for output in outputs]


class JaxAdapter(Adapter):
    """JAX, always compiled: one operation at a time is slow everywhere."""

    signs = ("RESOURCE_EXHAUSTED", "out of memory", "Out of memory")

    def __init__(self) -> None:
        import jax  # type: ignore[import-not-found, unused-ignore]

        self._jax = jax
        self.general = jax.errors.JaxRuntimeError

    def accelerators(self) -> list[str]:
        return [name for name in self._devices() if not name.startswith("cpu")]

    def processors(self) -> list[str]:
        return [f"cpu:{device.id}" for device in self._jax.local_devices(backend="cpu")]

    def _devices(self) -> dict[str, Native]:
        return {f"{device.platform}:{device.id}": device for device in self._jax.local_devices()}

    def kind(self, device: str) -> str:
        return "CPU" if device.startswith("cpu") else str(self._devices()[device].device_kind)

    def jit_choices(self, device: str) -> tuple[bool, ...]:
        return (True,)

    def compute_in_float32(self) -> None:
        self._jax.config.update("jax_default_matmul_precision", "highest")

    def compile_model(self, model: keras.Model, device: str, *, jit: bool) -> Forward:
        jax = self._jax
        family, _, index = device.partition(":")
        target = next(d for d in jax.local_devices(backend=family) if d.id == int(index))
        # The state is put on the device once.
        state = jax.device_put(
            (
                [variable.value for variable in model.trainable_variables],
                [variable.value for variable in model.non_trainable_variables],
            ),
            target,
        )

        def call(trainable: list[Native], frozen: list[Native], pixels: Native) -> Native:
            outputs, _ = model.stateless_call(trainable, frozen, pixels, training=False)
            return outputs

        compiled = jax.jit(call)

        def forward(pixels: NDArray[np.uint8]) -> list[Native]:
            return list(jax.tree.leaves(compiled(*state, jax.device_put(pixels, target))))

        return forward

    def to_numpy(self, outputs: list[Native]) -> list[NDArray[np.float32]]:
        return [np.asarray(output, np.float32) for output in self._jax.device_get(outputs)]


class TorchAdapter(Adapter):
    """PyTorch, never compiled: TorchDynamo needs a compiler on the machine, and minutes."""

    signs = ("out of memory", "ALLOC_FAILED", "DefaultCPUAllocator: can't allocate")
    general = RuntimeError

    def __init__(self) -> None:
        import torch  # type: ignore[import-not-found, unused-ignore]

        self._torch = torch
        self._local = threading.local()
        self.exhausted = (torch.OutOfMemoryError,)

    def accelerators(self) -> list[str]:
        return [f"gpu:{index}" for index in range(self._torch.cuda.device_count())]

    def processors(self) -> list[str]:
        return ["cpu"]

    def kind(self, device: str) -> str:
        return "CPU" if device == "cpu" else str(self._torch.cuda.get_device_name(_index(device)))

    def jit_choices(self, device: str) -> tuple[bool, ...]:
        return (False,)

    def compute_in_float32(self) -> None:
        self._torch.backends.cudnn.allow_tf32 = False
        self._torch.backends.cuda.matmul.allow_tf32 = False

    def compile_model(self, model: keras.Model, device: str, *, jit: bool) -> Forward:
        import keras

        torch = self._torch
        on_gpu = device != "cpu"
        if on_gpu:  # its weights came by the stream of the thread that built it
            torch.cuda.synchronize(_index(device))

        def forward(pixels: NDArray[np.uint8]) -> list[Native]:
            # Each thread has its own device, mode and stream.
            with keras.device(device), torch.inference_mode():
                batch = torch.from_numpy(np.require(pixels, requirements=["C", "W"]))
                if on_gpu:
                    # The default stream is shared by all threads, and in one nothing overlaps.
                    streams = self._local.__dict__.setdefault("streams", {})
                    if (index := _index(device)) not in streams:
                        streams[index] = torch.cuda.Stream(index)
                        torch.cuda.set_stream(streams[index])
                    # Only from pinned memory is a copy not waited for.
                    batch = batch.pin_memory().to(f"cuda:{_index(device)}", non_blocking=True)
                outputs = model(batch, training=False)
            return list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]

        return forward

    def to_numpy(self, outputs: list[Native]) -> list[NDArray[np.float32]]:
        return [output.to("cpu", self._torch.float32).numpy() for output in outputs]

    def clean_up(self) -> None:
        super().clean_up()
        if self._torch.cuda.is_available():
            self._torch.cuda.empty_cache()


def _index(device: str) -> int:
    return int(device.partition(":")[2])


# By the names that Keras has for its backends.
_ADAPTERS: dict[str, Callable[[], Adapter]] = {
    "tensorflow": cache(TensorFlowAdapter),
    "jax": cache(JaxAdapter),
    "torch": cache(TorchAdapter),
}


def load_adapter() -> Adapter:
    """Return the adapter of the backend that Keras is set to."""
    import keras

    backend = keras.backend.backend()
    if backend not in _ADAPTERS:
        raise EngineError(
            f"expected Keras on one of {', '.join(_ADAPTERS)}, received {backend!r}: set "
            "KERAS_BACKEND, or use another engine"
        )
    return _ADAPTERS[backend]()
