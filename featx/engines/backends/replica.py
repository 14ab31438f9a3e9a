"""A network on one device, with the threads that feed it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.engines.backends.adapter import Adapter, Forward
from featx.quiet import quiet_import


class Replica:
    """A network on one device.

    A GPU has two threads: while the kernels of one batch run, the other's pixels are copied. A
    processor has one, which leaves the caller free to decode and to write; kernels hold no lock of
    Python's.

    Parameters
    ----------
    adapter : Adapter
        The backend.
    build : callable
        Builds the model; called once, with `device` as Keras's own.
    device : str
        One of the adapter's.
    """

    def __init__(self, adapter: Adapter, build: Callable[[], Any], device: str) -> None:
        import keras

        self.device = device
        self.on_cpu = device.startswith("cpu")
        self._adapter = adapter
        with keras.device(device):
            self._model = build()
        self._pool = ThreadPoolExecutor(1 if self.on_cpu else 2, f"featx-{device}")
        self._forwards: dict[bool, Forward] = {}
        self._seen: dict[bool, set[int]] = {False: set(), True: set()}
        self.jit = adapter.jit_choices(device)[0]
        self.use(jit=self.jit)

    def use(self, *, jit: bool) -> None:
        """Go over to a compiled network, or back to the plain one; nothing may be under way."""
        if jit not in self._forwards:
            self._forwards[jit] = self._adapter.compile_model(self._model, self.device, jit=jit)
        self.jit = jit

    def start(
        self, work: Callable[..., list[NDArray[np.float32]]], *arguments: Any
    ) -> Future[list[NDArray[np.float32]]]:
        """Begin on work in a thread of this device."""
        return self._pool.submit(work, *arguments)

    def will_compile(self, images: int, batch_size: int) -> bool:
        """Tell whether a batch is the first of its shape, which takes long."""
        return self._shape(images, batch_size) not in self._seen[self.jit]

    def images_run(self, images: int, batch_size: int) -> int:
        """Return the number of images that a batch is filled up to; kernels fail on none."""
        return self._shape(images, batch_size) if self.jit else max(images, 1)

    def run(self, pixels: NDArray[np.uint8], batch_size: int) -> list[NDArray[np.float32]]:
        """Run a batch of `batch_size` images or fewer; in a thread of this device.

        Parameters
        ----------
        pixels : ndarray of shape (n, h, w, 3), uint8
            A batch.
        batch_size : int
            Number of images in a full batch.

        Returns
        -------
        list of ndarray of shape (n, d), float32
            Vectors, a tap each.
        """
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
        """Return the number of images to compile for; 0 where one network takes any number.

        Compiling takes longer than running a batch that is partly empty, but a single image should
        not cost a full batch for ever: so what was compiled is used, or else a power of two.
        """
        if not self.jit:
            return 0
        fitting = [size for size in tuple(self._seen[True]) if images <= size <= batch_size]
        power = 1 << max(images - 1, 0).bit_length()
        return min(fitting, default=min(power, batch_size))
