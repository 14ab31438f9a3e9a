"""Threads of this process that read and decode images."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from featx.images.dataset import ImageDataset
from featx.images.keys import file_key, image_key
from featx.images.line import Line
from featx.images.one_image import Loaded, decode_one, read_one
from featx.images.target import Target

# Results are handed over when this much time has gone by, as each hand-over costs a switch.
_HAND_OVER_S = 0.01


class WorkerThreads:
    """Threads that work off a line, from the start to `close`.

    Parameters
    ----------
    line : Line
        Where tasks come from and results go.
    dataset : ImageDataset
        Files or arrays.
    targets : sequence of Target
        What is made of each image.
    known : callable
        Asked for each key.
    workers : int
        Number of threads.
    """

    def __init__(
        self,
        line: Line,
        dataset: ImageDataset,
        targets: Sequence[Target],
        known: Callable[[bytes], bool],
        workers: int,
    ) -> None:
        self._line, self._dataset, self._targets, self._known = line, dataset, targets, known
        # Daemons, as one that hangs in a file system must not hold up the end of the interpreter.
        self._threads = [
            threading.Thread(target=self._run, name=f"featx-images-{i}", daemon=True)
            for i in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop after the images in work, and wait until everything has stopped."""
        self._line.close()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        line = self._line
        try:
            while chunk := line.take():
                results: list[tuple[int, Loaded]] = []
                handed_over = time.monotonic()
                for place, index in chunk:
                    if line.closed:
                        return
                    loaded = load_one(self._dataset, index, self._targets, self._known)
                    results.append((place, loaded))
                    del loaded
                    if time.monotonic() - handed_over > _HAND_OVER_S:
                        line.give(results)
                        results = []
                        handed_over = time.monotonic()
                if results:
                    line.give(results)
        except BaseException as error:
            line.fail(error)


def load_one(
    dataset: ImageDataset,
    index: int,
    targets: Sequence[Target],
    known: Callable[[bytes], bool],
) -> Loaded:
    """Read, hash, ask, decode one image."""
    if dataset.arrays is None:
        data, key, reason, read_s = read_one(lambda: dataset.read(index), file_key)
    else:
        data, key, reason, read_s = read_one(lambda: dataset.image(index), image_key)
    if key is None:
        return Loaded(index=index, key=None, status="failed", reason=reason, read_s=read_s)
    if known(key):
        return Loaded(index=index, key=key, status="known", read_s=read_s)
    pixels, reason, decode_s = decode_one(data, targets, key)
    return Loaded(
        index=index,
        key=key,
        status="failed" if reason else "decoded",
        reason=reason,
        pixels=pixels,
        read_s=read_s,
        decode_s=decode_s,
    )
