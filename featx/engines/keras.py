"""The reference engine, and the one for GPUs: Keras 3 on whichever backend it is set to."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import nullcontext
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from featx.backbones.build import HalfType, build_tap_model
from featx.backbones.source import BackboneSource
from featx.engines.backends import Adapter, Forward, load_adapter
from featx.engines.engine import Engine, Pixels, Provenance, Vectors
from featx.exceptions import EngineError, reason
from featx.forks import require_threads
from featx.quiet import quiet_import
from featx.spec import Precision

if TYPE_CHECKING:
    import keras

Outputs = list[NDArray[np.float32]]
"""Vectors of shape (n, d), a tap each."""

_LOG = logging.getLogger("featx")
_CPU_BATCH = 32
# A batch is in host memory several times: being filled, under way on each device, and padded.
_MOST_IMAGES, _MOST_BYTES = 1024, 1 << 28
_LEAST_GAIN_OF_JIT = 1.1
_FIRST_SIZE, _LEAST_GAIN_OF_SIZE, _MOST_TRIAL_S = 32, 1.05, 20.0


class KerasEngine(Engine):
    """Runs a network with Keras, on all GPUs that its backend sees, else on the processor.

    On a GPU, size of a batch and compiling are chosen by trial. Where memory runs out, the batch is
    halved and run again, and later ones are as small. Tested on processors, and with devices that
    stand in for GPUs; never on a GPU.
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
        super().__init__(source, taps)
        self._source_name = source.name
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
        # On each device one batch runs, and the pixels of another are copied.
        self.in_flight = 2 * len(devices)
        self.batch_size = batch_size or _CPU_BATCH
        if not self._replicas[0].on_cpu:
            self._fit(choose_size=batch_size is None)

    def provenance(self) -> Provenance:
        """Return versions, precision, devices by name, and whether the network was compiled."""
        import keras

        return {
            "engine": self.name,
            "keras": keras.__version__,
            "backend": keras.backend.backend(),
            "precision": f"mixed_{self._half}" if self._half else "f32",
            "devices": {
                replica.device: self._adapter.kind(replica.device) for replica in self._replicas
            },
            "jit": self._replicas[0].jit,
        }

    def submit(self, pixels: Pixels) -> Future[Vectors]:
        """Start on a batch on the device whose turn it is; the first of a shape compiles first."""
        require_threads("Keras")
        self.require_pixels(pixels)
        return self._start(pixels)

    def _start(self, pixels: Pixels, *, halving: bool = True) -> Future[Vectors]:
        replica = next(self._turn)
        size = self.batch_size
        future = replica.pool.submit(self._forward, replica, pixels, halving)
        if replica.will_compile(min(len(pixels), size), size):
            wait([future])
        return future

    def _forward(self, replica: Replica, pixels: Pixels, halving: bool) -> Vectors:
        """Run pixels in pieces of the size of a batch, which may shrink from piece to piece."""
        parts: list[Outputs] = []
        begin = 0
        while begin < len(pixels) or not parts:
            size = self.batch_size
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
        vectors = (np.concatenate(values) for values in zip(*parts, strict=True))
        return dict(zip(self.taps, vectors, strict=True))

    def _shrink(self, replica: Replica, size: int) -> None:
        with self._lock:
            if size >= self.batch_size:  # another batch has met the same limit
                return
            self.batch_size = size
        _LOG.warning(
            "%s: no more memory on %s; going on with batches of %d images",
            self._source_name,
            replica.device,
            size,
        )

    def _failed(self, replica: Replica, pixels: Pixels, error: Exception) -> EngineError:
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
            most = _MOST_BYTES // int(np.prod(self.input_shape))
            self.batch_size = best_batch_size(self._rate, max(1, min(_MOST_IMAGES, most)))
        plain, *compiled = self._adapter.jit_choices(self._replicas[0].device)
        if not compiled:
            return
        plain_per_s = self._rate(self.batch_size) or np.inf
        for replica in self._replicas:
            replica.use(jit=compiled[0])
        try:
            compiled_per_s = self._rate(self.batch_size) or 0.0
        except EngineError as error:  # XLA needs tools that a machine may not have
            _LOG.debug("%s cannot be compiled: %s", self._source_name, error)
            compiled_per_s = 0.0
        if compiled_per_s < _LEAST_GAIN_OF_JIT * plain_per_s:
            for replica in self._replicas:
                replica.use(jit=plain)

    def _rate(self, batch_size: int) -> float | None:
        """Return images a second with batches of a size, None where memory does not hold them."""
        self.batch_size = batch_size
        pixels = np.zeros((batch_size, *self.input_shape), np.uint8)
        count, times_s = 2 * self.in_flight, []
        for _ in range(3):
            begin = time.perf_counter()
            batches = [self._start(pixels, halving=False) for _ in range(count)]
            errors = [batch.exception() for batch in batches]
            del batches  # their vectors take memory, and errors hold what their batches reached
            if any(isinstance(error, MemoryError) for error in errors):
                del errors
                self._adapter.clean_up()
                return None
            for error in filter(None, errors):
                raise error
            times_s.append(time.perf_counter() - begin)
        # The first time kernels are chosen or compiled; of the others, one may have been disturbed.
        return batch_size * count / min(times_s[1:])


def best_batch_size(
    rate: Callable[[int], float | None],
    most: int,
    *,
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """Return the last size, doubled from 32, that was 5 % faster than the one before.

    `rate` returns images a second, None where memory ran out; where it does not even hold the first
    size, the largest that it holds is returned. Compiling may take long: sizes are tried for 20 s.
    """
    start, best, best_rate = clock(), 0, 0.0
    size = min(_FIRST_SIZE, most)
    while size <= most:
        images_per_s = rate(size)
        if images_per_s is None:
            if best or size == 1:
                return best or 1
            size //= 2
            most = size
            continue
        if images_per_s < best_rate * _LEAST_GAIN_OF_SIZE:
            return best
        best, best_rate = size, images_per_s
        if clock() - start > _MOST_TRIAL_S:
            return best
        size *= 2
    return best


class Replica:
    """A network on one device, with the threads that feed it."""

    def __init__(self, adapter: Adapter, build: Callable[[], keras.Model], device: str) -> None:
        import keras

        self.device = device
        self.on_cpu = device.startswith("cpu")
        self._adapter = adapter
        with keras.device(device):
            self._model = build()
        # A GPU has two: while the kernels of one batch run, the other's pixels are copied. On a
        # processor, one leaves the caller free to decode and to write: kernels hold no lock.
        self.pool = ThreadPoolExecutor(1 if self.on_cpu else 2, f"featx-{device}")
        self._forwards: dict[bool, Forward] = {}
        self._seen: dict[bool, set[int]] = {False: set(), True: set()}
        self.use(jit=adapter.jit_choices(device)[0])

    def use(self, *, jit: bool) -> None:
        """Go over to a compiled network, or back to the plain one; nothing may be under way."""
        if jit not in self._forwards:
            self._forwards[jit] = self._adapter.compile_model(self._model, self.device, jit=jit)
        self.jit = jit

    def will_compile(self, images: int, batch_size: int) -> bool:
        """Tell whether a batch is the first of its shape, which takes long."""
        return self._shape(images, batch_size) not in self._seen[self.jit]

    def images_run(self, images: int, batch_size: int) -> int:
        """Return the number of images that a batch is filled up to; kernels fail on none."""
        return self._shape(images, batch_size) if self.jit else max(images, 1)

    def run(self, pixels: Pixels, batch_size: int) -> Outputs:
        """Run a batch of `batch_size` images or fewer; in a thread of this device."""
        shape = self._shape(len(pixels), batch_size)
        missing = self.images_run(len(pixels), batch_size) - len(pixels)
        whole = np.pad(pixels, [(0, missing), (0, 0), (0, 0), (0, 0)]) if missing else pixels
        # Standard error is taken away for the whole process, progress bars of other threads
        # included, so only where there is something to hide: in the first batch of a shape.
        with quiet_import() if shape not in self._seen[self.jit] else nullcontext():
            vectors = self._adapter.to_numpy(self._forwards[self.jit](whole))
        self._seen[self.jit].add(shape)
        return [values[: len(pixels)] for values in vectors]

    def _shape(self, images: int, batch_size: int) -> int:
        """Return the number of images to compile for; 0 where one network takes any number."""
        if not self.jit:
            return 0
        # Compiling takes longer than running a batch that is partly empty, but a single image
        # should not cost a full batch for ever.
        fitting = [size for size in tuple(self._seen[True]) if images <= size <= batch_size]
        power = 1 << max(images - 1, 0).bit_length()
        return min(fitting, default=min(power, batch_size))
