"""What an adapter of a backend is, and which one Keras runs on."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import EngineError

Forward = Callable[[NDArray[np.uint8]], list[Any]]
"""Takes pixels of shape (n, h, w, 3), starts the forward pass and returns its outputs on the
device, without waiting for them where the backend allows. May be called from several threads."""

# Modules and classes by the names that Keras has for its backends.
_ADAPTERS = {
    "tensorflow": ("featx.engines.backends.tensorflow", "TensorFlowAdapter"),
    "jax": ("featx.engines.backends.jax", "JaxAdapter"),
    "torch": ("featx.engines.backends.torch", "TorchAdapter"),
}


class Adapter(Protocol):
    """One backend; a row of `_ADAPTERS`.

    Devices are named as `keras.device` takes them, ``"gpu:0"`` for the first GPU.
    """

    def accelerators(self) -> list[str]:
        """Return the accelerators that can be used; none where there is only a processor."""

    def processors(self) -> list[str]:
        """Return what to run on where there is no accelerator: one, unless more were set up."""

    def kind(self, device: str) -> str:
        """Return what a device is, for example ``"NVIDIA H100 80GB HBM3"``."""

    def jit_choices(self, device: str) -> tuple[bool, ...]:
        """Return whether compiling is worth a trial on a device; what is safe comes first.

        A compiled network is compiled anew for every shape of a batch.
        """

    def compute_in_float32(self) -> None:
        """Keep GPUs from rounding the factors of float32 products to 10 bits (TensorFloat-32)."""

    def compile_model(self, model: Any, device: str, *, jit: bool) -> Forward:
        """Make a model that was built on a device a function of pixels."""

    def to_numpy(self, outputs: list[Any]) -> list[NDArray[np.float32]]:
        """Wait for outputs and bring them to the host; in the thread that started them."""

    def out_of_memory(self, error: BaseException) -> bool:
        """Tell whether an error says that a device has no more memory."""

    def clean_up(self) -> None:
        """Give back memory that the backend keeps after a failure."""


def load_adapter() -> Adapter:
    """Return the adapter of the backend that Keras is set to.

    Raises
    ------
    EngineError
        If featx has none.
    """
    import keras

    backend = keras.backend.backend()
    if backend not in _ADAPTERS:
        raise EngineError(
            f"expected Keras on one of {', '.join(_ADAPTERS)}, received {backend!r}: set "
            "KERAS_BACKEND, or use another engine"
        )
    return _made(backend)


@cache
def _made(backend: str) -> Adapter:
    module, name = _ADAPTERS[backend]
    return cast(Adapter, getattr(import_module(module), name)())
