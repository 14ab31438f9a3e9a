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
from typing import Literal, NamedTuple

from featx.images.dataset import ImageDataset
from featx.images.decode import Rgb, Target, decode_one
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
        lock = threading.Lock()
        self._work = threading.Condition(lock)
        self._results = threading.Condition(lock)
        self._chunks: deque[list[Task]] = deque()
        self._numbers = itertools.count()
        # Positions that are still to be given out in order, and those that were overtaken.
        self._order: deque[int] = deque()
        self._overtaken: set[int] = set()
        self._ready: dict[int, Loaded] = {}
        self._late: deque[Loaded] = deque()
        self._held = 0
        self._ended = False
        self._idlers = 0
        self._idle_since: float | None = None
        self._error: BaseException | None = None
        self.closed = False

    def take(self, *, wait: bool = True) -> list[Task] | None:
        """Return what a worker is to do; None when there is nothing (now, or ever again)."""
        with self._work:
            if wait and not self._chunks:
                self._idlers += 1
                self._note_idleness()
                while not self._chunks and not self.closed:
                    self._work.wait()
                self._idlers -= 1
            if self.closed or not self._chunks:
                return None
            chunk = self._chunks.popleft()
            self._note_idleness()
            return chunk

    def give(self, results: Iterable[tuple[int, Loaded]]) -> None:
        """Take results of a worker, by position in the line."""
        with self._results:
            for position, loaded in results:
                if position in self._overtaken:
                    self._overtaken.remove(position)
                    self._late.append(loaded)
                else:
                    self._ready[position] = loaded
            self._results.notify()

    def fail(self, error: BaseException) -> None:
        """End the line with an error, which its consumer will see."""
        with self._results:
            self._error = self._error or error
            self._results.notify()

    def close(self) -> None:
        """Send all workers home."""
        with self._work:
            self.closed = True
            self._work.notify_all()

    def __iter__(self) -> Iterator[Loaded]:
        while True:
            self._fill()
            if not self._held:
                return
            # Never under a name: what was given out is the caller's alone.
            yield self._next()

    def _note_idleness(self) -> None:
        if self._idlers and not self._chunks and self._idle_since is None:
            self._idle_since = time.monotonic()
            self._results.notify()

    def _fill(self) -> None:
        while not self._ended and self._held + self.chunk <= self._ahead:
            chosen = [int(index) for index in itertools.islice(self._indices, self.chunk)]
            self._ended = len(chosen) < self.chunk
            if not chosen:
                return
            tasks = [Task(next(self._numbers), index) for index in chosen]
            with self._work:
                self._held += len(tasks)
                self._order.extend(task.position for task in tasks)
                self._chunks.append(tasks)
                self._idle_since = None
                self._work.notify()

    def _next(self) -> Loaded:
        with self._results:
            while self._error is None:
                if self._late:
                    self._held -= 1
                    return self._late.popleft()
                if self._order and self._order[0] in self._ready:
                    self._held -= 1
                    return self._ready.pop(self._order.popleft())
                patience = None
                if self._idle_since is not None and self._ready:
                    patience = self._idle_since + _PATIENCE_S - time.monotonic()
                    if patience <= 0:
                        self._overtaken.update(p for p in self._order if p not in self._ready)
                        self._order = deque(sorted(self._ready))
                        continue
                self._results.wait(patience)
            raise self._error


@dataclass(frozen=True, slots=True)
class Job:
    """Images to be loaded: the line, the dataset, what is made of each, and who knows a key."""

    line: Line
    dataset: ImageDataset
    targets: Sequence[Target]
    known: Callable[[bytes], bool]

    def load_one(self, index: int, counted: bytes | None = None) -> Loaded:
        """Return an image loaded here; a key that was `counted` before is not asked for again."""
        dataset = self.dataset
        read = dataset.read if dataset.arrays is None else dataset.image
        data, key, reason, read_s = read_one(lambda: read(index))
        if key is None:
            return Loaded(index=index, key=None, status="failed", reason=reason, read_s=read_s)
        if key != counted and self.known(key):
            return Loaded(index=index, key=key, status="known", read_s=read_s)
        pixels, reason, decode_s = decode_one(data, self.targets, key)
        return Loaded(
            index=index,
            key=key,
            status="failed" if reason else "decoded",
            reason=reason,
            pixels=pixels,
            read_s=read_s,
            decode_s=decode_s,
        )


class ThreadWorker:
    """Loads images in the thread that runs it."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def run(self) -> None:
        """Work until the line is closed."""
        line = self._job.line
        while chunk := line.take():
            results: list[tuple[int, Loaded]] = []
            handed_over = time.monotonic()
            for position, index in chunk:
                if line.closed:
                    return
                results.append((position, self._job.load_one(index)))
                if time.monotonic() - handed_over > _HAND_OVER_S:
                    line.give(results)
                    results, handed_over = [], time.monotonic()
            if results:
                line.give(results)

    def kill(self) -> None:
        """Do nothing: a thread stops after the image in work."""
