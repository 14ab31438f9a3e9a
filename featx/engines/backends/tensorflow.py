"""TensorFlow as Keras's backend."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.engines.backends.adapter import Forward


class TensorFlowAdapter:
    """TensorFlow; see `featx.engines.backends.adapter.Adapter`."""

    def __init__(self) -> None:
        import tensorflow as tf

        self._tf = tf

    def accelerators(self) -> list[str]:
        """Return the GPUs that TensorFlow has started."""
        return [f"gpu:{index}" for index in range(len(self._tf.config.list_logical_devices("GPU")))]

    def processors(self) -> list[str]:
        """Return the logical processors: one, unless a program set up more."""
        return [f"cpu:{index}" for index in range(len(self._tf.config.list_logical_devices("CPU")))]

    def kind(self, device: str) -> str:
        """Return the maker's name of a GPU, else ``"CPU"``."""
        family, _, index = device.partition(":")
        visible = self._tf.config.get_visible_devices(family.upper())
        if family != "gpu" or int(index) >= len(visible):  # a GPU can be split into several
            return family.upper()
        details = self._tf.config.experimental.get_device_details(visible[int(index)])
        return str(details.get("device_name", "GPU"))

    def jit_choices(self, device: str) -> tuple[bool, ...]:
        """Return plain kernels first; XLA is slower than they are on a CPU, so not tried there."""
        return (False,) if device.startswith("cpu") else (False, True)

    def compute_in_float32(self) -> None:
        """Switch TensorFloat-32 off, for the process."""
        self._tf.config.experimental.enable_tensor_float_32_execution(False)

    def compile_model(self, model: Any, device: str, *, jit: bool) -> Forward:
        """Trace a model into a function whose number of images is left open."""
        tf = self._tf
        signature = tf.TensorSpec(model.input_shape, tf.uint8)

        @tf.function(input_signature=[signature], jit_compile=jit, autograph=False)  # type: ignore[untyped-decorator, unused-ignore]
        def traced(pixels: Any) -> Any:
            with tf.device(device):
                return model(pixels, training=False)

        def forward(pixels: NDArray[np.uint8]) -> list[Any]:
            with tf.device(device):
                return list(tf.nest.flatten(traced(tf.convert_to_tensor(pixels))))

        return forward

    def to_numpy(self, outputs: list[Any]) -> list[NDArray[np.float32]]:
        """Copy tensors to the host."""
        return [np.asarray(output.numpy(), np.float32) for output in outputs]

    def out_of_memory(self, error: BaseException) -> bool:
        """Tell whether an allocator of TensorFlow gave up, or a library under it."""
        if isinstance(error, self._tf.errors.ResourceExhaustedError):
            return True
        # cuDNN, cuBLAS and XLA have allocations of their own, and errors of a general kind.
        text = str(error)
        return isinstance(error, self._tf.errors.OpError) and any(
            sign in text
            for sign in ("out of memory", "OOM when", "RESOURCE_EXHAUSTED", "ALLOC_FAILED")
        )

    def clean_up(self) -> None:
        """Free tensors that a traceback held; TensorFlow's allocator takes them back by itself."""
        gc.collect()
