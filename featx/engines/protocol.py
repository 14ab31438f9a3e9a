"""What an engine is."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Engine"]


class Engine(Protocol):
    """Runs one network with its taps.

    Engines are provenance, not identity: at ``f32`` every engine agrees with Keras to 1e-4
    relative.
    """

    @property
    def name(self) -> str:
        """Short name, for example ``"keras"``."""

    @property
    def taps(self) -> tuple[str, ...]:
        """Canonical names of the taps, in the order of what `run` returns."""

    @property
    def batch_size(self) -> int:
        """Number of images in a full batch."""

    def provenance(self) -> dict[str, Any]:
        """Return what a shard says of how its features were made, as JSON types."""

    def run(self, pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Map pixels of shape (n, h, w, 3), 0 to 255 RGB, to vectors of shape (n, d) by tap.

        Raises
        ------
        EngineError
            If the forward pass fails.
        """
