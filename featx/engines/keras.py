"""The reference engine: Keras 3 on whichever backend it is set to."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.backbones.build import build_tap_model
from featx.backbones.source import BackboneSource
from featx.exceptions import EngineError
from featx.quiet import quiet_import

__all__ = ["KerasEngine"]

_DEFAULT_BATCH = 32


class KerasEngine:
    """Runs a network with Keras.

    Parameters
    ----------
    source : BackboneSource
        The backbone.
    taps : tuple of str
        Canonical names of taps.
    batch_size : int, default 32
        Number of images in a full batch.

    Raises
    ------
    WeightsError, BackboneError, UnknownNameError
        If the network cannot be built, or has no such layer.
    """

    name = "keras"

    def __init__(
        self, source: BackboneSource, taps: tuple[str, ...], *, batch_size: int = _DEFAULT_BATCH
    ) -> None:
        self.taps = taps
        self.batch_size = batch_size
        self._input_shape = (*source.input_size_px, 3)
        self._traced: set[tuple[int, ...]] = set()
        self._model = build_tap_model(source, taps)
        # XLA is slower than TensorFlow's own kernels on a CPU.
        self._model.compile(jit_compile=False)

    def provenance(self) -> dict[str, Any]:
        """Return the versions of Keras and of its backend."""
        import keras

        backend = keras.backend.backend()
        return {"engine": self.name, "keras": keras.__version__, "backend": backend}

    def run(self, pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Map pixels of shape (n, h, w, 3) to vectors of shape (n, d) by tap."""
        if pixels.dtype != np.uint8 or pixels.shape[1:] != self._input_shape:
            height, width, _ = self._input_shape
            raise EngineError(
                f"expected uint8 pixels of shape (n, {height}, {width}, 3), received "
                f"{pixels.dtype} of shape {pixels.shape}"
            )
        # Standard error is taken away for the whole process, progress bars of other threads
        # included, so only where there is something to hide: in the first batch of a shape.
        noisy = pixels.shape not in self._traced
        try:
            with quiet_import() if noisy else nullcontext():
                vectors = self._model.predict_on_batch(pixels)
        except Exception as error:  # each backend raises errors of its own
            lines = str(error).strip().splitlines() or [repr(error)]
            raise EngineError(
                f"the forward pass of a batch of shape {pixels.shape} failed: {lines[0]}. "
                "A smaller --batch-size needs less memory"
            ) from error
        self._traced.add(pixels.shape)
        vectors = vectors if isinstance(vectors, (list, tuple)) else [vectors]
        return {
            tap: np.asarray(values, np.float32)
            for tap, values in zip(self.taps, vectors, strict=True)
        }
