"""Keras's own file, which Keras loads in safe mode."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.exporting.conversion import Opened, conversion_errors
from featx.quiet import quiet_import


def write_keras(network: Any, path: Path, **_: Any) -> None:
    """Write a ``.keras`` file."""
    with conversion_errors("a .keras file"):
        network.save(path)


def run_keras(path: Path) -> Opened:
    """Open a ``.keras`` file in safe mode."""
    with quiet_import():
        import keras

        # A GPU may round to fewer bits than are compared.
        with keras.device("cpu:0"):
            network = keras.models.load_model(path, compile=False, safe_mode=True)

    def run(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        with keras.device("cpu:0"):
            return np.asarray(network.predict_on_batch(pixels), np.float32)

    return Opened(run, f"Keras {keras.__version__}")
