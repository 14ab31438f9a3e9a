"""The engine for CPUs: OpenVINO runs what Keras built, converted once and kept."""

from __future__ import annotations

import ctypes
import logging
import os
import weakref
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from featx.backbones.source import BackboneSource
from featx.engines.engine import Engine, Pixels, Provenance, Vectors
from featx.engines.openvino_conversion import (
    FALL_BACK,
    Conversion,
    StoredConversion,
    convert,
    load_openvino,
    output_name,
    translated,
)
from featx.exceptions import EngineError
from featx.forks import require_threads

_PRECISION = "f32"
# Pixels of a batch: 4 images of 224 x 224, since the maps of more leave the processor's caches. A
# batch of more than eight times as many is run in parts: it would only take memory, and where that
# runs out, Linux may end the process without an error.
_BATCH_PX = 4 * 224 * 224
_MOST_PX = 8 * _BATCH_PX
_MOST_IMAGES = 64
# Batches computed at the same time, each by threads of its own: threads that share one wait for
# each other after every layer, and longer where one of them gives way to a decoding thread.
_MOST_STREAMS = 16
_MEMORY_WORDS = ("memory", "alloc")
_LOGGER = logging.getLogger("featx")
_unkept: set[Path] = set()
_in_use: weakref.WeakSet[OpenVinoEngine | _Part] = weakref.WeakSet()


class OpenVinoEngine(Engine):
    """Runs a network with OpenVINO on the CPU.

    A full batch has 4 images of 224 px, and more or fewer of other sizes. The conversion is
    compared with Keras before it is used for the first time. It is kept in `folder`, so that the
    next engine starts without TensorFlow; without a folder every engine converts anew.
    """

    name = "openvino"

    def __init__(
        self,
        source: BackboneSource,
        taps: tuple[str, ...],
        *,
        batch_size: int | None = None,
        folder: Path | None = None,
    ) -> None:
        super().__init__(source, taps)
        height, width = source.input_size_px
        self._most = max(1, _MOST_PX // (height * width))
        usual = min(max(1, _BATCH_PX // (height * width)), _MOST_IMAGES)
        self.batch_size = batch_size or usual
        self._options = _options(_usable_processors())
        self.in_flight = self._options["NUM_STREAMS"] + 1
        self._openvino = load_openvino()
        self._core = self._openvino.Core()
        # A mapped file that somebody cuts short would end the process.
        self._core.set_property({"ENABLE_MMAP": False})
        self._free: list[Any] = []
        _in_use.add(self)
        self._open(source, StoredConversion.of(folder, source, taps) if folder else None)

    def provenance(self) -> Provenance:
        """Return the versions of OpenVINO and of the Keras converted from, and the precision."""
        return {
            "engine": self.name,
            "openvino": version("openvino"),
            "keras": version("keras"),
            "precision": self._precision,
        }

    def submit(self, pixels: Pixels) -> _Batch:
        """Start on a batch, and return without waiting."""
        self.require_pixels(pixels)
        require_threads("OpenVINO")
        return _Batch(self, pixels)

    def _open(self, source: BackboneSource, stored: StoredConversion | None) -> None:
        if stored and stored.is_whole():
            try:
                self._load(stored.model)
            except EngineError as error:
                stored.report(str(error))
            else:
                return
        conversion = convert(source, self.taps)
        self._load(conversion.model)
        conversion.check(self.run)
        if stored:
            self._store(conversion, stored)

    def _store(self, conversion: Conversion, stored: StoredConversion) -> None:
        """Write a conversion and go on with what was written, if it can be written."""
        try:
            with stored.writing() as path:
                self._openvino.save_model(conversion.model, path, compress_to_fp16=False)
                # A full disk may cut a file short without an error.
                self._load(path)
                conversion.check(self.run)
        except (OSError, RuntimeError, EngineError) as error:
            parent = stored.folder.parent
            if parent not in _unkept:
                _unkept.add(parent)
                _LOGGER.warning(
                    "conversions to OpenVINO cannot be kept in %s (%s): every start converts anew",
                    parent,
                    error,
                )
            self._load(conversion.model)

    def _load(self, model: Any) -> None:
        self._free = []
        with translated("reading the network with OpenVINO"):
            if isinstance(model, Path):
                model = self._core.read_model(model)
            self._compiled = self._core.compile_model(model, "CPU", self._options)
            self._outputs = {
                tap: self._compiled.output(output_name(index))
                for index, tap in enumerate(self.taps)
            }
            received = self._compiled.get_property("INFERENCE_PRECISION_HINT")
            self._precision = received.get_type_name()
        if self._precision != _PRECISION:
            raise EngineError(
                f"expected OpenVINO to compute in {_PRECISION}, received {self._precision}: "
                f"{FALL_BACK}"
            )

    def _shrink(self, failed: int) -> None:
        self._most = max(1, failed // 2)
        self.batch_size = min(self.batch_size, self._most)
        _LOGGER.warning(
            "a batch of %d images does not fit into memory: going on with %d", failed, self._most
        )


class _Batch:
    """A batch under way, in parts that fit into memory."""

    def __init__(self, engine: OpenVinoEngine, pixels: Pixels) -> None:
        most = engine._most
        starts = range(0, max(len(pixels), 1), most)
        self._parts = [_Part(engine, pixels[start : start + most]) for start in starts]

    def result(self) -> Vectors:
        """Wait for the batch, and return vectors of shape (n, d) by tap."""
        parts = [part.result() for part in self._parts]
        if len(parts) == 1:
            return parts[0]
        return {tap: np.concatenate([part[tap] for part in parts]) for tap in parts[0]}


class _Part:
    """What one request of OpenVINO's computes."""

    def __init__(self, engine: OpenVinoEngine, pixels: Pixels) -> None:
        self._engine = engine
        # Held until the result is there, since OpenVINO reads from this very memory.
        self._pixels = np.require(pixels, requirements=["C", "W"])
        _in_use.add(self)
        with self._translated():
            free = engine._free
            self._request = free.pop() if free else engine._compiled.create_infer_request()
            self._tensor = engine._openvino.Tensor(self._pixels, shared_memory=True)
            self._request.set_input_tensor(self._tensor)
            self._request.start_async()

    def result(self) -> Vectors:
        """Wait for the part, and return vectors of shape (n, d) by tap."""
        engine, count = self._engine, len(self._pixels)
        require_threads("OpenVINO")
        try:
            with self._translated():
                self._request.wait()
                # The next batch of this request is written into the same memory.
                vectors = {
                    tap: np.array(self._request.get_tensor(output).data, np.float32)
                    for tap, output in engine._outputs.items()
                }
        except EngineError as error:
            cause = str(error.__cause__).lower()
            if count < 2 or not any(word in cause for word in _MEMORY_WORDS):
                raise
            engine._shrink(count)
            return engine.run(self._pixels)
        engine._free.append(self._request)
        return vectors

    def _translated(self) -> Any:
        return translated(
            f"the forward pass of a batch of shape {self._pixels.shape}",
            "a smaller --batch-size needs less memory",
        )


def _after_fork() -> None:
    for lost in list(_in_use):
        # Ending it would wait for threads that are not here, so it stays.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(lost))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _options(processors: int) -> dict[str, Any]:
    return {
        # OpenVINO takes bfloat16 by itself where the processor has it.
        "INFERENCE_PRECISION_HINT": _PRECISION,
        "NUM_STREAMS": min(processors, _MOST_STREAMS),
        "INFERENCE_NUM_THREADS": processors,
        # Pinned threads wait for the processor that a decoding thread is on.
        "ENABLE_CPU_PINNING": False,
    }


def _usable_processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
