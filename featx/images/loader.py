"""Images read and decoded in parallel, given out in order, each with what became of it.

A worker reads the bytes of an image once, and the key and the pixels come from those very bytes,
so a file that changes meanwhile cannot put one image's features under another's key.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized

from featx.exceptions import DatasetError
from featx.images.dataset import ImageDataset
from featx.images.decode import AnyTarget, as_targets, check_truncation_setting
from featx.images.line import Job, Line, Loaded, ThreadWorker
from featx.images.processes import ProcessWorker, StartFailures
from featx.images.worker_main import slot_bytes

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
    """Yield what became of each image, read and decoded in parallel, in order.

    There is exactly one `Loaded` for each index, whatever happens. The order is that of `indices`
    (which may be endless, and are read only as far as needed), except that an image that holds up
    the rest is overtaken. Closing the iterator stops the workers.

    Parameters
    ----------
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
    """
    if workers is None:
        workers = max(2, min(_MOST_WORKERS, _cpus()))
    if ahead is None:
        fitting = _MOST_HELD_BYTES // max(1, slot_bytes(as_targets(targets)))
        ahead = max(1, 2 * workers, min(fitting, max(64, 16 * workers)))
    if workers < 1 or ahead < 1:
        raise DatasetError(
            f"workers and ahead must be at least 1, received workers={workers}, ahead={ahead}"
        )
    if dataset.arrays is None:
        check_truncation_setting()
    few = not isinstance(indices, Sized) or len(indices) < _ENOUGH_FOR_PROCESSES
    if dataset.arrays is not None or (isolate is None and few):
        isolate = False
    line = Line(iter(indices), ahead=ahead, chunk=max(1, min(_CHUNK, ahead // (2 * workers))))
    return _load(Job(line, dataset, as_targets(targets), known), workers, isolate)


def _load(job: Job, workers: int, isolate: bool | None) -> Iterator[Loaded]:
    process = os.getpid()
    crew: list[ThreadWorker] | list[ProcessWorker]
    if isolate is False:
        crew = [ThreadWorker(job) for _ in range(workers)]
    else:
        failures = StartFailures(insist=isolate is True)
        crew = [ProcessWorker(job, failures) for _ in range(workers)]
    # Daemons: the end of the interpreter is the end of processes too, and a thread that hangs in a
    # file system must not hold it up.
    threads = [
        threading.Thread(target=_run, args=(worker, job), name=f"featx-images-{i}", daemon=True)
        for i, worker in enumerate(crew)
    ]
    for thread in threads:
        thread.start()

    def close() -> None:
        # A process that was forked off meanwhile has a copy of this, and none of the workers.
        if os.getpid() == process:
            job.line.close()
            for worker in crew:
                worker.kill()
            for thread in threads:
                thread.join()

    # An iterator that nobody closed must not outlive the interpreter.
    atexit.register(close)
    try:
        yield from job.line
    finally:
        close()
        atexit.unregister(close)


def _run(worker: ThreadWorker | ProcessWorker, job: Job) -> None:
    try:
        worker.run()
    except BaseException as error:
        job.line.fail(error)


def _cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
