"""What an engine is: it runs one network, batches of pixels in, vectors of its taps out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from featx.backbones.source import BackboneSource
from featx.exceptions import EngineError

Pixels = NDArray[np.uint8]
Vectors = dict[str, NDArray[np.float32]]
"""Vectors of shape (n, d) by tap."""
Provenance = dict[str, str | bool | dict[str, str]]


class Pending(Protocol):
    """A batch under way."""

    def result(self) -> Vectors:
        """Wait for the batch, and return its vectors; to be called once."""


class Engine(ABC):
    """Runs one network with its taps: batches of pixels in, one float32 array a tap out.

    Engines are provenance, not identity: on a CPU every engine agrees at ``f32`` with Keras to
    1e-4 relative. Failures are `EngineError`.
    """

    name: str
    batch_size: int  # images in a full batch; it may shrink where memory runs out
    in_flight: int  # batches worth having under way at once

    def __init__(self, source: BackboneSource, taps: tuple[str, ...]) -> None:
        self.taps = taps  # canonical names, in the order of the vectors
        self.input_shape = (*source.input_size_px, 3)

    @abstractmethod
    def provenance(self) -> Provenance:
        """Return what a shard says of how its features were made, as JSON types."""

    @abstractmethod
    def submit(self, pixels: Pixels) -> Pending:
        """Start on pixels (n, h, w, 3), 0 to 255 RGB, and return without waiting.

        The pixels are the engine's until the result is there. Batches may be waited for in any
        order, all from one thread.
        """

    def run(self, pixels: Pixels) -> Vectors:
        """Map pixels (n, h, w, 3) to vectors."""
        return self.submit(pixels).result()

    def require_pixels(self, pixels: Pixels) -> None:
        """Raise `EngineError` if pixels are of another shape or type."""
        if pixels.dtype != np.uint8 or pixels.shape[1:] != self.input_shape:
            height, width, _ = self.input_shape
            raise EngineError(
                f"expected uint8 pixels of shape (n, {height}, {width}, 3), received "
                f"{pixels.dtype} of shape {pixels.shape}"
            )
