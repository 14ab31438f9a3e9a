"""What an engine is."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Pending(Protocol):
    """A batch under way."""

    def result(self) -> dict[str, NDArray[np.float32]]:
        """Wait for the batch, and return vectors of shape (n, d) by tap.

        To be called once.

        Raises
        ------
        EngineError
            If the forward pass failed.
        """


class Engine(Protocol):
    """Runs one network with its taps.

    Engines are provenance, not identity: on a CPU every engine agrees at ``f32`` with Keras to
    1e-4 relative.
    """

    @property
    def name(self) -> str:
        """Short name, for example ``"keras"``."""

    @property
    def taps(self) -> tuple[str, ...]:
        """Canonical names of the taps, in the order of what `run` returns."""

    @property
    def batch_size(self) -> int:
        """Number of images in a full batch; it may shrink where memory runs out."""

    @property
    def in_flight(self) -> int:
        """Number of batches worth having under way at once."""

    def provenance(self) -> dict[str, Any]:
        """Return what a shard says of how its features were made, as JSON types."""

    def submit(self, pixels: NDArray[np.uint8]) -> Pending:
        """Start on pixels of shape (n, h, w, 3), 0 to 255 RGB, and return without waiting.

        The pixels are the engine's until the result is there. Batches may be waited for in any
        order, all from one thread.

        Raises
        ------
        EngineError
            If the pixels are of another shape or type.
        """

    def run(self, pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Map pixels of shape (n, h, w, 3), 0 to 255 RGB, to vectors of shape (n, d) by tap.

        Raises
        ------
        EngineError
            If the forward pass fails.
        """
