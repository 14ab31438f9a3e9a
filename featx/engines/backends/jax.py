"""JAX as Keras's backend."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.engines.backends.adapter import Forward


class JaxAdapter:
    """JAX; see `featx.engines.backends.adapter.Adapter`."""

    def __init__(self) -> None:
        import jax  # type: ignore[import-not-found, unused-ignore]

        self._jax = jax

    def accelerators(self) -> list[str]:
        """Return the GPUs and TPUs of this process."""
        return [name for name in self._devices() if not name.startswith("cpu")]

    def processors(self) -> list[str]:
        """Return the processors: one, unless XLA was told to make it several."""
        return [f"cpu:{device.id}" for device in self._jax.local_devices(backend="cpu")]

    def kind(self, device: str) -> str:
        """Return what JAX calls a device."""
        return "CPU" if device.startswith("cpu") else str(self._devices()[device].device_kind)

    def jit_choices(self, device: str) -> tuple[bool, ...]:
        """Return compiling only: JAX one operation at a time is slow everywhere."""
        return (True,)

    def compute_in_float32(self) -> None:
        """Ask for float32 products, for the process; XLA's default on a GPU is TensorFloat-32."""
        self._jax.config.update("jax_default_matmul_precision", "highest")

    def compile_model(self, model: Any, device: str, *, jit: bool) -> Forward:
        """Compile a model without its state, which is put on the device once."""
        jax = self._jax
        family, _, index = device.partition(":")
        place = next(d for d in jax.local_devices(backend=family) if d.id == int(index))
        state = jax.device_put(
            (
                [variable.value for variable in model.trainable_variables],
                [variable.value for variable in model.non_trainable_variables],
            ),
            place,
        )

        def call(trainable: Any, frozen: Any, pixels: Any) -> Any:
            outputs, _ = model.stateless_call(trainable, frozen, pixels, training=False)
            return outputs

        compiled = jax.jit(call)

        def forward(pixels: NDArray[np.uint8]) -> list[Any]:
            return list(jax.tree.leaves(compiled(*state, jax.device_put(pixels, place))))

        return forward

    def to_numpy(self, outputs: list[Any]) -> list[NDArray[np.float32]]:
        """Copy arrays to the host, all at once."""
        return [np.asarray(output, np.float32) for output in self._jax.device_get(outputs)]

    def out_of_memory(self, error: BaseException) -> bool:
        """Tell whether XLA gave up allocating."""
        return isinstance(error, self._jax.errors.JaxRuntimeError) and any(
            sign in str(error) for sign in ("RESOURCE_EXHAUSTED", "out of memory", "Out of memory")
        )

    def clean_up(self) -> None:
        """Free arrays that a traceback held."""
        gc.collect()

    def _devices(self) -> dict[str, Any]:
        return {f"{device.platform}:{device.id}": device for device in self._jax.local_devices()}
