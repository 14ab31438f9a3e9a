"""The reference engine, and the one for GPUs: Keras 3 on whichever backend it is set to."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from concurrent.futures import Future, wait
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.backbones.build import HalfType, build_tap_model
from featx.backbones.source import BackboneSource
from featx.engines.backends.adapter import load_adapter
from featx.engines.backends.batch_size import best_batch_size
from featx.engines.backends.replica import Replica
from featx.exceptions import EngineError, reason
from featx.forks import require_threads
from featx.quiet import quiet_import
from featx.spec import Precision

_LOG = logging.getLogger("featx")
_CPU_BATCH = 32
# A batch is in host memory several times: being filled, under way on each device, and padded.
_MOST_IMAGES, _MOST_BYTES = 1024, 1 << 28
_LEAST_GAIN_OF_JIT = 1.1


class KerasEngine:
    """Runs a network with Keras, on all GPUs that its backend sees, else on the processor.

    Tested on processors, and with devices that stand in for GPUs; never on a GPU.

    Where memory runs out, the batch is halved and run again, and later ones are as small.

    Parameters
    ----------
    source : BackboneSource
        The backbone.
    taps : tuple of str
        Canonical names of taps.
    batch_size : int, optional
        Number of images in a full batch. By default 32 on a processor; on a GPU sizes are doubled
        for as long as that makes it faster, and whether compiling pays is tried as well.
    precision : {"f32", "mixed"}, default "f32"
        With ``mixed`` layers compute in float16 on a GPU and in bfloat16 elsewhere, with weights
        and vectors in float32.

    Raises
    ------
    WeightsError, BackboneError, UnknownNameError
        If the network cannot be built, or has no such layer.
    EngineError
        If Keras is set to a backend that featx does not know, or a device fails.
    """

    name = "keras"

    def __init__(
        self,
        source: BackboneSource,
        taps: tuple[str, ...],
        *,
        batch_size: int | None = None,
        precision: Precision = "f32",
    ) -> None:
        if batch_size is not None and batch_size < 1:
            raise EngineError(f"expected a batch of 1 image or more, received {batch_size}")
        require_threads("Keras")
        self.taps = taps
        self._source_name = source.name
        self._input_shape = (*source.input_size_px, 3)
        self._lock = threading.Lock()
        with quiet_import():  # asking for devices starts them
            self._adapter = load_adapter()
            devices = self._adapter.accelerators() or self._adapter.processors()
        half: HalfType = "float16" if devices[0].startswith("gpu") else "bfloat16"
        self._half = half if precision == "mixed" else None
        if self._half is None and not devices[0].startswith("cpu"):
            self._adapter.compute_in_float32()
        self._replicas = [
            Replica(self._adapter, lambda: build_tap_model(source, taps, mixed=self._half), device)
            for device in devices
        ]
        self._turn = itertools.cycle(self._replicas)
        self._batch_size = batch_size or _CPU_BATCH
        if not self._replicas[0].on_cpu:
            self._fit(choose_size=batch_size is None)

    @property
    def batch_size(self) -> int:
        """Number of images in a full batch; halved where memory runs out."""
        return self._batch_size

    @property
    def in_flight(self) -> int:
        """Two batches a device: one runs, the pixels of the other are copied."""
        return 2 * len(self._replicas)

    def provenance(self) -> dict[str, Any]:
        """Return versions, precision, devices by name, and whether the network was compiled."""
        import keras

        return {
            "engine": self.name,
            "keras": keras.__version__,
            "backend": keras.backend.backend(),
            "precision": f"mixed_{self._half}" if self._half else "f32",
            "devices": {one.device: self._adapter.kind(one.device) for one in self._replicas},
            "jit": self._replicas[0].jit,
        }

    def run(self, pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Map pixels of shape (n, h, w, 3) to vectors of shape (n, d) by tap."""
        return self.submit(pixels).result()

    def submit(self, pixels: NDArray[np.uint8]) -> _Pending:
        """Start on pixels of shape (n, h, w, 3), on the device whose turn it is.

        The first batch of a shape on each device is waited for: it compiles.
        """
        require_threads("Keras")
        if pixels.dtype != np.uint8 or pixels.shape[1:] != self._input_shape:
            height, width, _ = self._input_shape
            raise EngineError(
                f"expected uint8 pixels of shape (n, {height}, {width}, 3), received "
                f"{pixels.dtype} of shape {pixels.shape}"
            )
        return _Pending(self.taps, self._start(pixels))

    def _start(
        self, pixels: NDArray[np.uint8], *, halving: bool = True
    ) -> Future[list[NDArray[np.float32]]]:
        replica = next(self._turn)
        size = self._batch_size
        future = replica.start(self._forward, replica, pixels, halving)
        if replica.will_compile(min(len(pixels), size), size):
            wait([future])
        return future

    def _forward(
        self, replica: Replica, pixels: NDArray[np.uint8], halving: bool
    ) -> list[NDArray[np.float32]]:
        """Run pixels in pieces of the size of a batch, which may shrink from piece to piece."""
        parts: list[list[NDArray[np.float32]]] = []
        begin = 0
        while begin < len(pixels) or not parts:
            size = self._batch_size
            piece = pixels[begin : begin + size]
            try:
                parts.append(replica.run(piece, size))
            except Exception as error:  # each backend raises errors of its own
                tried = replica.images_run(len(piece), size)
                if not isinstance(error, MemoryError) and not self._adapter.out_of_memory(error):
                    raise self._failed(replica, pixels, error) from error
                if not halving:
                    raise MemoryError from error
                if tried <= 1:
                    raise self._too_large(replica, error) from error
                self._shrink(replica, tried // 2)
            else:
                begin += len(piece)
                continue
            self._adapter.clean_up()  # the error, which holds what it reached, is gone by now
        return [np.concatenate(values) for values in zip(*parts, strict=True)]

    def _shrink(self, replica: Replica, size: int) -> None:
        with self._lock:
            if size >= self._batch_size:  # another batch has met the same limit
                return
            self._batch_size = size
        _LOG.warning(
            "%s: no more memory on %s; going on with batches of %d images",
            self._source_name,
            replica.device,
            size,
        )

    def _failed(self, replica: Replica, pixels: NDArray[np.uint8], error: Exception) -> EngineError:
        where = "" if replica.on_cpu else f" on {replica.device}"
        mixed = "The network may not take mixed precision: try f32. " if self._half else ""
        return EngineError(
            f"the forward pass of a batch of shape {pixels.shape}{where} failed: {reason(error)}. "
            f"{mixed}Another --engine or --input-size may work"
        )

    def _too_large(self, replica: Replica, error: Exception) -> EngineError:
        mixed = "" if self._half else ", or mixed precision"
        return EngineError(
            f"{self._source_name} does not fit into the memory of {replica.device}, not even with "
            f"one image at a time: {reason(error)}. A smaller input (--input-size){mixed} needs "
            "less; another engine or backbone may fit"
        )

    def _fit(self, *, choose_size: bool) -> None:
        """Find out by trial how many images fill the devices, and whether compiling pays."""
        if choose_size:
            most = _MOST_BYTES // int(np.prod(self._input_shape))
            self._batch_size = best_batch_size(self._rate, max(1, min(_MOST_IMAGES, most)))
        plain, *compiled = self._adapter.jit_choices(self._replicas[0].device)
        if not compiled:
            return
        plain_per_s = self._rate(self._batch_size) or np.inf
        self._use(jit=compiled[0])
        try:
            compiled_per_s = self._rate(self._batch_size) or 0.0
        except EngineError as error:  # XLA needs tools that a machine may not have
            _LOG.debug("%s cannot be compiled: %s", self._source_name, error)
            compiled_per_s = 0.0
        if compiled_per_s < _LEAST_GAIN_OF_JIT * plain_per_s:
            self._use(jit=plain)

    def _use(self, *, jit: bool) -> None:
        for replica in self._replicas:
            replica.use(jit=jit)

    def _rate(self, batch_size: int) -> float | None:
        """Return images a second with batches of a size, None where memory does not hold them."""
        self._batch_size = batch_size
        pixels = np.zeros((batch_size, *self._input_shape), np.uint8)
        count, times_s = 2 * self.in_flight, []
        for _ in range(3):
            begin = time.perf_counter()
            if not self._all_fit([self._start(pixels, halving=False) for _ in range(count)]):
                self._adapter.clean_up()
                return None
            times_s.append(time.perf_counter() - begin)
        # The first time kernels are chosen or compiled; of the others, one may have been disturbed.
        return batch_size * count / min(times_s[1:])

    @staticmethod
    def _all_fit(batches: list[Future[list[NDArray[np.float32]]]]) -> bool:
        wait(batches)
        try:
            for batch in batches:
                batch.result()
        except MemoryError:
            return False
        return True


class _Pending:
    """A batch in a thread of a device."""

    def __init__(self, taps: tuple[str, ...], future: Future[list[NDArray[np.float32]]]) -> None:
        self._taps, self._future = taps, future

    def result(self) -> dict[str, NDArray[np.float32]]:
        """Wait for the batch, and return vectors of shape (n, d) by tap."""
        return dict(zip(self._taps, self._future.result(), strict=True))
