"""Choose an engine."""

from __future__ import annotations

import logging
import os
from functools import lru_cache
from pathlib import Path

from featx.backbones.source import BackboneSource
from featx.engines.protocol import Engine
from featx.exceptions import EngineError, UnknownNameError
from featx.forks import require_threads
from featx.spec import Precision

_LOG = logging.getLogger("featx")
_CONVERTED = "tensorflow"

ENGINES: dict[str, str] = {
    "auto": "keras where there is a GPU, else openvino",
    "keras": "Keras 3 on its backend (TensorFlow by default)",
    "openvino": "OpenVINO on the CPU, converted once from the Keras model",
}
"""Engines by name, with what they are."""


def make_engine(
    name: str,
    source: BackboneSource,
    taps: tuple[str, ...],
    *,
    batch_size: int | None = None,
    precision: Precision = "f32",
    folder: Path | None = None,
) -> Engine:
    """Build an engine for a backbone and its taps.

    Parameters
    ----------
    name : str
        Key of `ENGINES`.
    source : BackboneSource
        The backbone.
    taps : tuple of str
        Canonical names of taps.
    batch_size : int, optional
        Number of images in a batch; by default the engine's choice.
    precision : {"f32", "mixed"}, default "f32"
        Arithmetic of the forward pass; ``mixed`` is for Keras only.
    folder : Path, optional
        Where converted models are kept; by default nowhere.

    Raises
    ------
    UnknownNameError
        If there is no such engine.
    EngineError
        If it cannot run this network.
    WeightsError, BackboneError
        If the network cannot be built.
    """
    if name not in ENGINES:
        raise UnknownNameError("engine", name, ENGINES)
    if name == "openvino" and precision != "f32":
        raise EngineError(
            "the engine 'openvino' computes in f32 only: leave --precision out, or take "
            "--engine keras"
        )
    return _built(name, source, taps, batch_size, precision, folder)


# Repeated predictions share one network; two are kept, since networks are large.
@lru_cache(maxsize=2)
def _built(
    name: str,
    source: BackboneSource,
    taps: tuple[str, ...],
    batch_size: int | None,
    precision: Precision,
    folder: Path | None,
) -> Engine:
    if name == "openvino":
        return _openvino(source, taps, batch_size, folder)
    if name == "auto" and precision == "f32" and not _has_gpu():
        require_threads("OpenVINO")
        try:
            return _openvino(source, taps, batch_size, folder)
        except (EngineError, ImportError) as error:
            # Who has chosen JAX or PyTorch has chosen Keras on it, and is told nothing new.
            chosen = os.environ.get("KERAS_BACKEND", _CONVERTED) != _CONVERTED
            _LOG.log(
                logging.DEBUG if chosen else logging.WARNING,
                "OpenVINO cannot run %s, Keras steps in: %s",
                source.name,
                error,
            )
    from featx.engines.keras import KerasEngine

    return KerasEngine(source, taps, batch_size=batch_size, precision=precision)


def _openvino(
    source: BackboneSource, taps: tuple[str, ...], batch_size: int | None, folder: Path | None
) -> Engine:
    from featx.engines.openvino import OpenVinoEngine

    return OpenVinoEngine(source, taps, batch_size=batch_size, folder=folder)


def _has_gpu() -> bool:
    from featx.engines.accelerators import gpus, may_have_gpu

    # Asking the backend imports it, so only where the machine could have one.
    return may_have_gpu() and bool(gpus())
