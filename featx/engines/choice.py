"""Which engine runs a network."""

from __future__ import annotations

import logging
import os
import sys
from functools import lru_cache
from pathlib import Path

from featx.backbones.source import BackboneSource
from featx.engines.backends import load_adapter
from featx.engines.engine import Engine
from featx.exceptions import EngineError, UnknownNameError
from featx.forks import require_threads
from featx.quiet import quiet_import
from featx.spec import HALVES, INT8, Precision

ENGINES: dict[str, str] = {
    "auto": "keras where there is a GPU, else openvino",
    "keras": "Keras 3 on its backend (TensorFlow by default)",
    "openvino": "OpenVINO on the CPU, converted once from the Keras model",
}
"""Engines by name, with what they are."""

_PRECISIONS: dict[str, tuple[Precision, ...]] = {
    "keras": ("f32", "mixed"),
    "openvino": ("f32", *HALVES, "int8"),
}
_LOG = logging.getLogger("featx")
_ROOT = Path("/")
# What drivers of GPUs put there, and the variables that hide their devices from a process. Under
# WSL a driver of any maker is behind one file.
_TRACES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("dev", "nvidia[0-9]*", ("CUDA_VISIBLE_DEVICES",)),
    ("proc/driver/nvidia/gpus", "*", ("CUDA_VISIBLE_DEVICES",)),
    ("dev", "dxg", ("CUDA_VISIBLE_DEVICES",)),
    ("dev", "kfd", ("HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")),
)


def make_engine(
    name: str,
    source: BackboneSource,
    taps: tuple[str, ...],
    *,
    batch_size: int | None = None,
    precision: Precision = "f32",
    folder: Path | None = None,
) -> Engine:
    """Return an engine, by a name of `ENGINES`; converted models are kept in `folder`, if given."""
    if name not in ENGINES:
        raise UnknownNameError("engine", name, ENGINES)
    if name != "auto" and precision.partition(":")[0] not in _PRECISIONS[name]:
        raise EngineError(
            f"the engine {name!r} computes in {' or '.join(_PRECISIONS[name])}, received "
            f"{precision!r}: take another --precision, or leave --engine out"
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
    native = source.is_native
    if native and (name == "keras" or precision == "mixed"):
        raise EngineError(
            f"{source.name} runs with OpenVINO, and Keras cannot read it: leave --engine keras and "
            "--precision mixed out"
        )
    only = native or name == "openvino" or precision in HALVES or precision.startswith(INT8)
    if only or (name == "auto" and precision == "f32" and not _has_gpu()):
        require_threads("OpenVINO")
        try:
            from featx.engines.openvino import OpenVinoEngine

            engine = OpenVinoEngine(
                source, taps, batch_size=batch_size, precision=precision, folder=folder
            )
        except (EngineError, ImportError) as error:
            if only:
                raise
            # With another backend Keras is what the user chose: no warning then.
            chosen = os.environ.get("KERAS_BACKEND", "tensorflow") != "tensorflow"
            _LOG.log(
                logging.DEBUG if chosen else logging.WARNING,
                "OpenVINO cannot run %s, Keras steps in: %s",
                source.name,
                error,
            )
        else:
            engine.network = None  # compiled, it has its weights a second time
            return engine
    from featx.engines.keras import KerasEngine

    return KerasEngine(source, taps, batch_size=batch_size, precision=precision)


def settle_precision(choice: str, name: str, source: BackboneSource) -> Precision:
    """Return the arithmetic that a choice stands for with an engine on this machine.

    ``fast`` is mixed precision where Keras runs the network, else the half precision that the
    processor has, else f32.
    """
    if choice != "fast":
        return choice
    if not source.is_native and (name == "keras" or (name == "auto" and _has_gpu())):
        return "mixed"
    from featx.engines.openvino import half_precision

    half = half_precision()
    if half is None:
        _LOG.warning("this processor has neither bf16 nor f16: --precision fast is f32 here")
    return half or "f32"


def _has_gpu() -> bool:
    # Asking a backend for GPUs imports it, so only where the machine could have one.
    return may_have_gpu() and bool(gpus())


def may_have_gpu() -> bool:
    """Tell whether there may be a GPU (on Linux and WSL), in well under a millisecond."""
    return sys.platform.startswith("linux") and any(
        not any(os.environ.get(name) in ("", "-1") for name in hiding)
        and any((_ROOT / folder).glob(pattern))
        for folder, pattern, hiding in _TRACES
    )


def gpus() -> list[str]:
    """Return the GPUs that the backend of Keras can use, such as ``gpu:0``, by its own names."""
    try:
        with quiet_import():
            return load_adapter().accelerators()
    except EngineError:  # featx does not know the backend
        return []
