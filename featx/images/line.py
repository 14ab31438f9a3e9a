"""The line between those who load images and the one who takes them: bounded, and in order.

An image that holds up the rest is overtaken: when the window is full, all else in it is done, and
a worker has had nothing to do for a while, the images behind it are given out before it.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Literal, NamedTuple

from featx.images.dataset import ImageDataset
from featx.images.decode import Extent, Rgb, Target, decode_targets
from featx.images.files import read_one

Status = Literal["decoded", "known", "failed"]
# A worker that idles for this long shows that an image is slow, not that threads take turns.
_PATIENCE_S = 0.5
# Results are handed over when this much time has gone by, as each hand-over costs a switch.
_HAND_OVER_S = 0.01


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Loaded:
    """What became of one image of a dataset."""

    index: int
    key: bytes | None  # None when nothing could be read
    status: Status  # ``known`` when the caller had the key already, so that nothing was decoded
    reason: str = ""
    pixels: list[Rgb] = field(default_factory=list)  # for each target, where it was decoded
    read_s: float = 0.0
    decode_s: float = 0.0
    extent: Extent | None = None  # of a deep picture without a window


class Task(NamedTuple):
    """An image to be loaded: its position in the line, and which of the dataset it is."""

    position: int
    image: int


class Line:
    """Hands tasks, `chunk` at once, to workers, and their results to one consumer.

    `indices` are read by the consumer only, as far as needed; at most `ahead` images are in work
    or wait to be taken.
    """

    def __init__(self, indices: Iterator[int], *, ahead: int, chunk: int) -> None:
        self._indices = indices
        self._ahead, self.chunk = ahead, min(chunk, ahead)
        self._tasks: SimpleQueue[list[Task] | None] = SimpleQueue()
        self._results: SimpleQueue[list[tuple[int, Loaded]] | BaseException] = SimpleQueue()
        self._idle_since: dict[int, float] = {}
        self._ready: dict[int, Loaded] = {}
        self._late: deque[Loaded] = deque()
        self._overtaken: set[int] = set()
        self.closed = False

    def take(self, *, wait: bool = True) -> list[Task] | None:
        """Return what a worker is to do; None when there is nothing (now, or ever again)."""
        try:
            tasks = self._tasks.get_nowait()
        except Empty:
            if not wait:
                return None
            worker = threading.get_ident()
            self._idle_since[worker] = time.monotonic()
            self._results.put([])  # so that the consumer does not wait without end
            tasks = self._tasks.get()
            del self._idle_since[worker]
        if tasks is None:  # for the next worker too
            self._tasks.put(None)
        return None if self.closed else tasks

    def give(self, results: Iterable[tuple[int, Loaded]]) -> None:
        """Take results of a worker, by position in the line."""
        self._results.put(list(results))

    def fail(self, error: BaseException) -> None:
        """End the line with an error, which its consumer will see."""
        self._results.put(error)

    def close(self) -> None:
        """Send all workers home."""
        self.closed = True
        self._tasks.put(None)

    def __iter__(self) -> Iterator[Loaded]:
        numbers = itertools.count()
        order: deque[int] = deque()
        held, ended, filled_s = 0, False, 0.0
        while True:
            while not ended and held + self.chunk <= self._ahead:
                chosen = itertools.islice(self._indices, self.chunk)
                tasks = [Task(n, int(index)) for index, n in zip(chosen, numbers, strict=False)]
                ended = len(tasks) < self.chunk
                if tasks:
                    held, filled_s = held + len(tasks), time.monotonic()
                    order.extend(task.position for task in tasks)
                    self._tasks.put(tasks)
            if not held:
                return
            # What is given out is never under a name: it is the caller's alone.
            if self._late:
                held -= 1
                yield self._late.popleft()
            elif order and order[0] in self._ready:
                held -= 1
                yield self._ready.pop(order.popleft())
            elif not self._receive(filled_s):
                self._overtaken.update(p for p in order if p not in self._ready)
                order = deque(sorted(self._ready))

    def _receive(self, filled_s: float) -> bool:
        """Wait for results; return False where those that are there have waited long enough."""
        patience_s = None
        idle_since = list(self._idle_since.values())
        if idle_since and self._ready and self._tasks.empty():
            since = max(min(idle_since), filled_s)
            patience_s = max(0.0, since + _PATIENCE_S - time.monotonic())
        try:
            results = self._results.get(timeout=patience_s)
        except Empty:
            return False
        if isinstance(results, BaseException):
            raise results
        for position, loaded in results:
            if position in self._overtaken:
                self._overtaken.remove(position)
                self._late.append(loaded)
            else:
                self._ready[position] = loaded
        return True


@dataclass(frozen=True, slots=True)
class Job:
    """Images to be loaded: the line, the dataset, what is made of each, and who knows a key."""

    line: Line
    dataset: ImageDataset
    targets: Sequence[Target]
    known: Callable[[bytes], bool]

    def load(self, index: int, counted: bytes | None = None) -> Loaded:
        """Return an image loaded here; a key that was `counted` before is not asked for again."""
        dataset = self.dataset
        read = dataset.read if dataset.arrays is None else dataset.image
        data, key, reason, read_s = read_one(lambda: read(index))
        if key is None:
            return Loaded(index=index, key=None, status="failed", reason=reason, read_s=read_s)
        if key != counted and self.known(key):
            return Loaded(index=index, key=key, status="known", read_s=read_s)
        pixels, reason, decode_s, extent = decode_targets(data, self.targets, key)
        return Loaded(
            index=index,
            key=key,
            status="failed" if reason else "decoded",
            reason=reason,
            pixels=pixels,
            read_s=read_s,
            decode_s=decode_s,
            extent=extent,
        )


def work_off(job: Job) -> None:
    """Load images in the thread that calls this, until the line is closed."""
    line = job.line
    while tasks := line.take():
        results: list[tuple[int, Loaded]] = []
        handed_over = time.monotonic()
        for position, index in tasks:
            if line.closed:
                return
            results.append((position, job.load(index)))
            if time.monotonic() - handed_over > _HAND_OVER_S:
                line.give(results)
                results, handed_over = [], time.monotonic()
        if results:
            line.give(results)
