"""Images read and decoded in parallel, given out in order, each with what became of it.

A worker reads the bytes of an image once, and the key and the pixels come from those very bytes,
so a file that changes meanwhile cannot put one image's features under another's key.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized

from featx.exceptions import DatasetError
from featx.images.dataset import ImageDataset
from featx.images.line import Line
from featx.images.messages import slot_bytes
from featx.images.one_image import Loaded
from featx.images.target import AnyTarget, Target, as_targets
from featx.images.worker_processes import WorkerProcesses
from featx.images.worker_threads import WorkerThreads

# Images a worker is given at once: one would cost a hand-over each, many hold back the first.
_CHUNK = 4
_MOST_WORKERS = 16
_MOST_HELD_BYTES = 512 << 20
# Files from which on processes decode them. One takes 0.15 s of a CPU to start, in which a thread
# decodes 50 photographs: little beside 500, and too much beside the few of a prediction.
_ENOUGH_FOR_PROCESSES = 500


def never(key: bytes) -> bool:
    """Return False: no key is known."""
    return False


def load_images(
    dataset: ImageDataset,
    indices: Iterable[int],
    targets: Sequence[AnyTarget],
    *,
    known: Callable[[bytes], bool] = never,
    workers: int | None = None,
    ahead: int | None = None,
    isolate: bool | None = None,
) -> Iterator[Loaded]:
    """Read and decode images in parallel, in order.

    Parameters
    ----------
    dataset : ImageDataset
        Files or arrays.
    indices : iterable of int
        Positions in the dataset; may be endless, it is read only as far as needed.
    targets : sequence of Target, or of ((height, width), ImagePolicy)
        The sizes and views to decode to; a file is decoded once for all of them.
    known : callable, default `never`
        Asked for each key, from threads; where it returns True nothing is decoded. What it raises
        is raised here.
    workers : int or None, default None
        Number of threads or processes; by default one a CPU, at least 2 and at most 16.
    ahead : int or None, default None
        Most images that are held beyond the one given out, which bounds the memory; by default 16
        a worker and at least 64, but no more than 512 MiB of pixels or 2 a worker.
    isolate : bool or None, default None
        Read and decode files in processes of their own: one that a decoder crashes is replaced,
        and its image is ``failed``. By default only for many files, as a process takes a moment to
        start. Arrays stay in threads.

    Yields
    ------
    Loaded
        Exactly one for each index, whatever happens: a missing or damaged file is ``failed`` with a
        reason. The order is that of `indices`, except that an image that holds up the rest is
        overtaken. Closing the iterator stops the workers.

    Raises
    ------
    DatasetError
        If `workers` or `ahead` is less than 1, or processes that are asked for cannot be started.
    ImageError
        If ``PIL.ImageFile.LOAD_TRUNCATED_IMAGES`` is set, which would pass damaged files.
    """
    if workers is None:
        workers = max(2, min(_MOST_WORKERS, _cpus()))
    wanted = as_targets(targets)
    if ahead is None:
        fitting = _MOST_HELD_BYTES // max(1, slot_bytes(wanted))
        ahead = max(1, 2 * workers, min(fitting, max(64, 16 * workers)))
    if workers < 1 or ahead < 1:
        raise DatasetError(
            f"workers and ahead must be at least 1, received workers={workers}, ahead={ahead}"
        )
    if dataset.arrays is None:
        from featx.images.opening import check_truncation_setting

        check_truncation_setting()
    few = not isinstance(indices, Sized) or len(indices) < _ENOUGH_FOR_PROCESSES
    if dataset.arrays is not None or (isolate is None and few):
        isolate = False
    return _load(dataset, iter(indices), wanted, known, workers, ahead, isolate)


def _load(
    dataset: ImageDataset,
    indices: Iterator[int],
    targets: list[Target],
    known: Callable[[bytes], bool],
    workers: int,
    ahead: int,
    isolate: bool | None,
) -> Iterator[Loaded]:
    process = os.getpid()
    line = Line(indices, ahead=ahead, chunk=max(1, min(_CHUNK, ahead // (2 * workers))))
    crew: WorkerThreads | WorkerProcesses
    if isolate is False:
        crew = WorkerThreads(line, dataset, targets, known, workers)
    else:
        crew = WorkerProcesses(line, dataset, targets, known, workers, insist=isolate is True)
    # An iterator that nobody closed must not outlive the interpreter.

    def close() -> None:
        # A process that was forked off meanwhile has a copy of this, and none of the workers.
        if os.getpid() == process:
            crew.close()

    atexit.register(close)
    try:
        yield from line
    finally:
        close()
        atexit.unregister(close)


def _cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
