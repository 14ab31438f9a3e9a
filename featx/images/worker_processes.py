"""Processes that read and decode images, so that a decoder's crash costs one image.

A thread here tends each process: hands it tasks, asks for keys, takes pixels out of shared memory,
and puts another in its place when it dies.
"""

from __future__ import annotations

import logging
import os
import struct
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import DatasetError
from featx.images.dataset import ImageDataset
from featx.images.limits import budget
from featx.images.line import Line
from featx.images.messages import HEADER_BYTES, NO_IMAGE, slot_bytes
from featx.images.one_image import Loaded, Status
from featx.images.shared_block import SharedBlock
from featx.images.target import Target
from featx.images.worker_process import ProcessDiedError, WorkerProcess
from featx.images.worker_threads import load_one

_LOG = logging.getLogger("featx")
# Chunks a process has: one that it decodes, one that it has the answers for, one that it reads, so
# that it waits for nobody.
_CHUNKS_AHEAD = 3
# So often a process may die while it works on no image, before the first of its images is blamed.
_MOST_FRUITLESS = 2


@dataclass(slots=True)
class _Item:
    """An image that a process has."""

    place: int
    index: int
    slot: int
    path: str
    key: bytes | None = None
    read_s: float = 0.0


class _StartError(Exception):
    """A process cannot be started."""


class WorkerProcesses:
    """Processes that work off a line, from the start to `close`.

    Parameters
    ----------
    line : Line
        Where tasks come from and results go.
    dataset : ImageDataset
        Files.
    targets : sequence of Target
        What is made of each image.
    known : callable
        Asked for each key, in this process.
    workers : int
        Number of processes.
    insist : bool
        Whether processes that cannot be started are an error; threads do their work otherwise.
    """

    def __init__(
        self,
        line: Line,
        dataset: ImageDataset,
        targets: Sequence[Target],
        known: Callable[[bytes], bool],
        workers: int,
        *,
        insist: bool,
    ) -> None:
        self._line = line
        self._insist = insist
        self._warned = threading.Lock()
        self._tenders = [
            _Tender(line, dataset, targets, known, self._start_failed) for _ in range(workers)
        ]
        # Daemons: the end of the interpreter is the end of the processes too.
        self._threads = [
            threading.Thread(target=tender.run, name=f"featx-images-{i}", daemon=True)
            for i, tender in enumerate(self._tenders)
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop at once, and wait until everything has stopped."""
        self._line.close()
        for tender in self._tenders:
            tender.kill()
        for thread in self._threads:
            thread.join()

    def _start_failed(self, error: Exception) -> None:
        """Raise, or say once that threads do the work."""
        if self._insist:
            raise DatasetError(
                f"expected to start a process that decodes images, received: {error}; leave "
                "isolate=True out to decode in this process"
            ) from error
        if self._warned.acquire(blocking=False):
            _LOG.warning(
                "images are decoded in this process, as no other can be started: %s", error
            )


class _Tender:
    """One process at a time, and what it has."""

    def __init__(
        self,
        line: Line,
        dataset: ImageDataset,
        targets: Sequence[Target],
        known: Callable[[bytes], bool],
        start_failed: Callable[[Exception], None],
    ) -> None:
        self._line, self._dataset, self._targets, self._known = line, dataset, targets, known
        self._start_failed = start_failed
        self._slot_bytes = slot_bytes(targets)
        slots = _CHUNKS_AHEAD * line.chunk
        self._free = list(range(slots))
        self._block_bytes = HEADER_BYTES + slots * self._slot_bytes
        self._block: SharedBlock | None = None
        self._items: dict[int, _Item] = {}
        self._process: WorkerProcess | None = None
        self._lock = threading.Lock()
        self._ready = False
        self._fruitless = 0
        self._taken = 0

    def run(self) -> None:
        """Work until the line is closed."""
        try:
            while not self._line.closed:
                try:
                    if self._process is None:
                        # What one that died had; nothing at first.
                        self._hand_over(list(self._items.values()))
                    self._top_up()
                    if self._items:
                        self._listen()
                except ProcessDiedError:
                    self._bury()
        except _StartError as error:
            self._do_without(error)
        except BaseException as error:
            self._line.fail(error)
        finally:
            self.kill()
            if self._process is not None:
                self._process.end()
            self._give_back(self._taken)
            if self._block is not None:
                self._block.close()

    def kill(self) -> None:
        """End the process; for any thread, at any time."""
        with self._lock:
            if self._process is not None:
                self._process.kill()

    def _top_up(self) -> None:
        """Take tasks while there is room; wait for them when there is nothing else to do."""
        while len(self._free) >= self._line.chunk:
            tasks = self._line.take(wait=not self._items)
            if not tasks:
                return
            items = []
            for place, index in tasks:
                try:
                    path = os.fsencode(self._dataset.file(index)).decode("latin-1")
                except Exception:
                    # No way to a file: this says in the same words why.
                    loaded = load_one(self._dataset, index, self._targets, self._known)
                    self._line.give([(place, loaded)])
                    continue
                items.append(_Item(place, index, self._free.pop(), path))
            self._items.update((item.place, item) for item in items)
            self._hand_over(items)

    def _hand_over(self, items: Sequence[_Item]) -> None:
        if not items:
            return
        process = self._process or self._start()
        if process is not None:
            process.send({"images": [(item.place, item.slot, item.path) for item in items]})

    def _start(self) -> WorkerProcess | None:
        try:
            if self._block is None:
                self._block = SharedBlock(self._block_bytes)
            hello = {
                "targets": [
                    (size, image.to_dict(), None if view is None else view.to_dict())
                    for size, image, view in self._targets
                ],
                "block": self._block.handle,
                "block_bytes": self._block_bytes,
            }
            with self._lock:
                if self._line.closed:
                    return None
                self._process = WorkerProcess(hello, self._block.inherited)
        except OSError as error:
            raise _StartError(str(error)) from error
        self._ready = False
        struct.pack_into("<q", self._block.memory, 0, NO_IMAGE)
        self._process.greet()
        return self._process

    def _listen(self) -> None:
        if self._process is None:
            return
        message = self._process.receive()
        self._ready = self._ready or "ready" in message
        if "take" in message:
            budget().take(message["take"])
            self._taken += message["take"]
            self._process.send({"go": True})
        if "give_back" in message:
            self._give_back(message["give_back"])
        for place, reason, decode_s in message.get("done", ()):
            item = self._items[place]
            self._fruitless = 0
            pixels = [] if reason else self._pixels(item.slot)
            self._settle(item, "failed" if reason else "decoded", reason, pixels, decode_s)
        if "keys" in message:
            answers = [answer for image in message["keys"] for answer in self._answer(*image)]
            # New tasks go first, so that the process finds them when it has done what it has.
            if self._items:
                self._top_up()
            if answers:
                self._process.send({"decode": answers})

    def _answer(self, place: int, key: str | None, reason: str, read_s: float) -> list[bool]:
        """Return whether an image that was read is wanted; nothing for one that could not be."""
        item = self._items[place]
        item.read_s = read_s
        if key is None:
            self._settle(item, "failed", reason)
            return []
        # Not asked twice, for a process in a dead one's place: the caller may count a key that it
        # was asked for as known from then on.
        wanted = item.key == bytes.fromhex(key) or not self._known(bytes.fromhex(key))
        item.key = bytes.fromhex(key)
        if not wanted:
            self._settle(item, "known")
        return [wanted]

    def _settle(
        self,
        item: _Item,
        status: Status,
        reason: str = "",
        pixels: Sequence[NDArray[np.uint8]] = (),
        decode_s: float = 0.0,
    ) -> None:
        del self._items[item.place]
        self._free.append(item.slot)
        loaded = Loaded(
            index=item.index,
            key=item.key,
            status=status,
            reason=reason,
            pixels=list(pixels),
            read_s=item.read_s,
            decode_s=decode_s,
        )
        self._line.give([(item.place, loaded)])

    def _pixels(self, slot: int) -> list[NDArray[np.uint8]]:
        assert self._block is not None
        at = HEADER_BYTES + slot * self._slot_bytes
        out = []
        for (height, width), _, _ in self._targets:
            shared = np.frombuffer(self._block.memory, np.uint8, height * width * 3, at)
            out.append(shared.reshape(height, width, 3).copy())
            at += shared.size
        return out

    def _give_back(self, taken_bytes: int) -> None:
        """Give back memory that the process took to decode an image."""
        self._taken -= taken_bytes
        budget().give_back(taken_bytes)

    def _bury(self) -> None:
        """Find out what a process died of, and on which image."""
        assert self._process is not None
        assert self._block is not None
        how = self._process.end()
        self._give_back(self._taken)
        with self._lock:
            self._process = None
        if self._line.closed:
            return
        if not self._ready:
            raise _StartError(f"it ended at its start ({how})")
        (place,) = struct.unpack_from("<q", self._block.memory, 0)
        item = self._items.get(place)
        if item is None:
            self._fruitless += 1
            if self._fruitless > _MOST_FRUITLESS:
                item = next(iter(self._items.values()), None)
        if item is not None:
            self._fruitless = 0
            self._settle(item, "failed", f"the decoder ended its process ({how})")

    def _do_without(self, error: _StartError) -> None:
        """Load what is left in this thread."""
        try:
            self._start_failed(error)
            for item in list(self._items.values()):
                self._load_here(item.place, item.index, item.key)
            while tasks := self._line.take():
                for place, index in tasks:
                    self._load_here(place, index, None)
        except BaseException as failure:
            self._line.fail(failure)

    def _load_here(self, place: int, index: int, asked: bytes | None) -> None:
        if not self._line.closed:

            def known(key: bytes) -> bool:
                return key != asked and self._known(key)

            self._line.give([(place, load_one(self._dataset, index, self._targets, known))])
