"""Images read and decoded in parallel, given out in order, each with what became of it.

A worker reads the bytes of an image once, and the key and the pixels come from those very bytes,
so a file that changes meanwhile cannot put one image's features under another's key. Many files are
read and decoded in processes, so that a decoder's crash costs one image. A thread here serves each
process: hands it tasks, asks for keys, takes pixels out of shared memory, and puts another in its
place when it dies.
"""

from __future__ import annotations

import atexit
import logging
import mmap
import os
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import DatasetError, ImageError
from featx.images.dataset import ImageDataset
from featx.images.decode import (
    AnyTarget,
    Decoded,
    Extent,
    Rgb,
    Target,
    as_targets,
    check_truncation_setting,
    check_type,
    check_values,
)
from featx.images.files import ImageSource, PackedImages, why_failed
from featx.images.limits import budget, most_decode_bytes
from featx.images.line import Job, Line, Loaded, Status, work_off
from featx.images.worker_main import HEADER_BYTES, NO_IMAGE, Message, receive, send, slot_bytes
from featx.threads import usable_processors

_LOG = logging.getLogger("featx")
# Images a worker is given at once: one would cost a hand-over each, many hold back the first.
_CHUNK = 4
_MOST_WORKERS = 16
_MOST_HELD_BYTES = 512 << 20
# Files from which on processes decode them. One takes 0.15 s of a CPU to start, in which a thread
# decodes 50 photographs: little beside 500, and too much beside the few of a prediction.
_ENOUGH_FOR_PROCESSES = 500
# Chunks a process has: one that it decodes, one that it has the answers for, one that it reads, so
# that it waits for nobody.
_CHUNKS_AHEAD = 3
_NO_PIXELS = Decoded([], "", 0.0)
_PIPE_BYTES = 1 << 20
# So often a process may die while it works on no image, before the first of its images is blamed.
_MOST_FRUITLESS = 2
# So often a worker that waits for a store looks whether the run was stopped.
_LOOK_S = 0.2

_PACKAGES = ("featx", "numpy", "PIL", "pillow_heif")
# Neither the working folder (-P) nor PYTHONPATH or other variables (-E) decide what the process
# imports, as a folder of images may hold a json.py. These packages come from where this process has
# them, found by name, so that nothing else beside them takes precedence.
_BOOT = """
import json, sys
from importlib.machinery import PathFinder
hello = json.loads(sys.stdin.buffer.readline())
class SamePackages:
    @staticmethod
    def find_spec(name, path=None, target=None):
        folder = hello["packages"].get(name)
        return folder and PathFinder.find_spec(name, [folder])
sys.meta_path.insert(0, SamePackages)
sys.path += hello["packages"].values()
from featx.images.worker_main import main
main(hello)
"""
_ENVIRONMENT = {
    # Pixels need no linear algebra: its threads would be started for nothing, one a CPU.
    **dict.fromkeys(("MKL_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
    # For glibc: up to 128 MiB are kept from one image to the next, as to have them anew, zeroed by
    # the kernel, took an eighth of the time of a large photograph.
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(128 << 20),
}


def load_images(
    dataset: ImageDataset,
    indices: Iterable[int],
    targets: Sequence[AnyTarget],
    *,
    known: Callable[[bytes], bool] | None = None,
    workers: int | None = None,
    ahead: int | None = None,
    isolate: bool | None = None,
) -> Iterator[Loaded]:
    """Yield what became of each image, read and decoded in parallel, in order.

    There is exactly one `Loaded` for each index, whatever happens. The order is that of `indices`
    (which may be endless, and are read only as far as needed), except that an image that holds up
    the rest is overtaken. Closing the iterator stops the workers.

    `known` is asked for each key, from threads: where it returns True nothing is decoded, and what
    it raises is raised here. By default there is one worker a CPU, at least 2 and at most 16, and
    at most 16 images `ahead` a worker and at least 64 are held beyond the one given out, but no
    more than 512 MiB of pixels or 2 a worker. `isolate` decodes files in processes, one that a
    decoder crashes is replaced, and its image is ``failed``; by default only many files, as a
    process takes a moment to start. Arrays stay in threads.
    """
    if workers is None:
        workers = max(2, min(_MOST_WORKERS, usable_processors()))
    if ahead is None:
        fitting = _MOST_HELD_BYTES // max(1, slot_bytes(as_targets(targets)))
        ahead = max(1, 2 * workers, min(fitting, max(64, 16 * workers)))
    if workers < 1 or ahead < 1:
        raise DatasetError(
            f"workers and ahead must be at least 1, received workers={workers}, ahead={ahead}"
        )
    most_decode_bytes()  # that it is misstated is known before the first image
    packed = isinstance(dataset.arrays, PackedImages)
    if dataset.arrays is None or packed:
        check_truncation_setting()
    elif any(target.image.window is None for target in as_targets(targets)):
        _check_arrays(dataset.arrays)
    few = not isinstance(indices, Sized) or len(indices) < _ENOUGH_FOR_PROCESSES
    if (dataset.arrays is not None and not packed) or (isolate is None and few):
        isolate = False
    order = iter(indices)
    if isinstance(dataset.arrays, PackedImages) and dataset.arrays.reads_at_once > 1:
        ahead_of = ReadAhead(dataset)
        dataset, order = ahead_of.dataset, ahead_of.begun(order)
    line = Line(order, ahead=ahead, chunk=max(1, min(_CHUNK, ahead // (2 * workers))))
    job = Job(line, dataset, as_targets(targets), known or (lambda key: False))
    return _load(job, workers, isolate)


def _check_arrays(arrays: ImageSource) -> None:
    """Refuse array images of a wrong type or scale: better said once than in a row each."""
    try:
        if isinstance(arrays, np.ndarray):
            check_values(arrays)
        elif isinstance(arrays, list):
            for array in arrays:
                if isinstance(array, np.ndarray):
                    check_type(array.dtype)
    except ImageError as error:
        raise DatasetError(str(error)) from error


def _load(job: Job, count: int, isolate: bool | None) -> Iterator[Loaded]:
    process, warned = os.getpid(), threading.Lock()

    def without_process(error: Exception) -> None:
        if isolate:
            raise DatasetError(
                f"expected to start a process that decodes images, received: {error}; leave "
                "isolate=True out to decode in this process"
            ) from error
        if warned.acquire(blocking=False):  # once for all workers
            _LOG.warning(
                "images are decoded in this process, as no other can be started: %s", error
            )

    def run(worker: ProcessWorker | None) -> None:
        try:
            work_off(job) if worker is None else worker.run()
        except BaseException as error:
            job.line.fail(error)

    workers = [
        None if isolate is False else ProcessWorker(job, without_process) for _ in range(count)
    ]
    # Daemons: the end of the interpreter is the end of processes too, and a thread that hangs in a
    # file system must not hold it up.
    threads = [
        threading.Thread(target=run, args=(worker,), name=f"featx-images-{i}", daemon=True)
        for i, worker in enumerate(workers)
    ]
    for thread in threads:
        thread.start()

    def close() -> None:
        # A process that was forked off meanwhile has a copy of this, and none of the workers.
        if os.getpid() == process:
            job.line.close()
            if isinstance(job.dataset.arrays, ReadAhead):
                job.dataset.arrays.close()
            for worker in filter(None, workers):
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


class ReadAhead(PackedImages):
    """Reads images of a store, where each takes a while, before they are asked for."""

    # By hand: the threads of a pool are waited for when the interpreter ends, also where a store
    # does not answer.

    def __init__(self, dataset: ImageDataset) -> None:
        assert isinstance(dataset.arrays, PackedImages)
        self._images = dataset.arrays
        self._tasks: SimpleQueue[tuple[Future[bytes], int] | None] = SimpleQueue()
        self._begun: dict[int, Future[bytes]] = {}
        self._closed = False
        self.dataset = replace(dataset, arrays=self)

    def begun(self, indices: Iterator[int]) -> Iterator[int]:
        """Yield what is given, with the reading of each begun."""
        for number in range(self._images.reads_at_once):
            name = f"featx-reads-{number}"
            threading.Thread(target=self._work, name=name, daemon=True).start()
        for index in indices:
            if index not in self._begun:
                self._begun[index] = Future()
                self._tasks.put((self._begun[index], index))
            yield index
        self._tasks.put(None)

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None and not self._closed:
            future, index = task
            try:
                future.set_result(self._images[index])
            except BaseException as error:
                future.set_exception(error)
        self._tasks.put(None)  # for the next thread too

    def close(self) -> None:
        """Let nobody wait for what is being read."""
        self._closed = True
        self._tasks.put(None)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> bytes:
        begun = self._begun.pop(index, None)
        if begun is None:  # of a process that died, or twice the same
            return self._images[index]
        while not wait([begun], timeout=_LOOK_S).done:
            if self._closed:
                raise ImageError("not read: the run was stopped")
        return begun.result()

    def stamps(self) -> NDArray[np.int64]:
        """Return those of the images."""
        return self._images.stamps()


# Processes


@dataclass(slots=True)
class _Item:
    """An image that a process has."""

    position: int
    index: int
    slot: int
    # Its path, or its place in an archive; None where its bytes are sent.
    path: str | list[Any] | None
    key: bytes | None = None
    read_s: float = 0.0


class _StartError(Exception):
    """A process cannot be started."""


class _DiedError(Exception):
    """The process is gone, or talks nonsense."""


class ProcessWorker:
    """Loads files in one process at a time: another takes the place of one that dies."""

    def __init__(self, job: Job, without_process: Callable[[Exception], None]) -> None:
        self._job, self._line, self._without_process = job, job.line, without_process
        self._slots = _CHUNKS_AHEAD * job.line.chunk
        self._free = list(range(self._slots))
        self._items: dict[int, _Item] = {}
        self._settled: list[tuple[int, Loaded]] = []
        self._process: WorkerProcess | None = None
        self._lock = threading.Lock()
        self._fruitless = self._taken = 0

    def run(self) -> None:
        """Work until the line is closed."""
        try:
            while not self._line.closed:
                try:
                    if self._process is None:
                        # What one that died had; nothing at first.
                        self._hand_over(list(self._items.values()))
                    self._top_up()
                    if self._items and self._process is not None:
                        self._listen(self._process)
                except _DiedError:
                    self._note_death()
        except _StartError as error:
            self._without_process(error)
            for item in list(self._items.values()):
                if not self._line.closed:
                    self._line.give([(item.position, self._job.load(item.index, item.key))])
            work_off(self._job)
        finally:
            self.kill()
            if self._process is not None:
                self._process.end()
            self._give_back(self._taken)

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
            for position, index in tasks:
                try:
                    path = self._path(index)
                except Exception:
                    # No way to a file: this says in the same words why.
                    loaded = self._job.load(index)
                    self._line.give([(position, loaded)])
                    continue
                items.append(_Item(position, index, self._free.pop(), path))
            self._items.update((item.position, item) for item in items)
            self._hand_over(items)

    def _path(self, index: int) -> str | list[Any] | None:
        """Return where the process finds an image, with names as Latin-1, a character a byte."""
        dataset = self._job.dataset
        if dataset.arrays is None:
            return os.fsencode(dataset.file(index)).decode("latin-1")
        place = dataset.place(index)
        return None if place is None else [os.fsencode(place[0]).decode("latin-1"), *place[1:]]

    def _hand_over(self, items: Sequence[_Item]) -> None:
        if not items:
            return
        with self._lock:
            if self._process is None and not self._line.closed:
                try:
                    self._process = WorkerProcess(self._job.targets, self._slots)
                except OSError as error:
                    raise _StartError(str(error)) from error
        if self._process is not None:
            contents = self._contents(items)
            images = [
                (item.position, item.slot, item.path)
                for item in items
                if item.position in self._items
            ]
            if images:
                self._process.send({"images": images}, contents)

    def _contents(self, items: Sequence[_Item]) -> list[bytes]:
        """Return the bytes of images that are no files; one that cannot be read has failed."""
        contents = []
        for item in items:
            if item.path is not None:
                continue
            start = time.perf_counter()
            try:
                content = self._job.dataset.image(item.index)
                assert isinstance(content, bytes)
                contents.append(content)
            except Exception as error:
                item.read_s = time.perf_counter() - start
                self._settle(item, "failed", _NO_PIXELS._replace(reason=why_failed(error)))
            item.read_s = time.perf_counter() - start
        self._give_settled()
        return contents

    def _listen(self, process: WorkerProcess) -> None:
        message = process.receive()
        if "take" in message:
            budget().take(message["take"])
            self._taken += message["take"]
            process.send({"go": True})
        if "give_back" in message:
            self._give_back(message["give_back"])
        for position, reason, decode_s, extent in message.get("done", ()):
            item = self._items[position]
            self._fruitless = 0
            pixels = [] if reason else process.pixels(item.slot)
            decoded = Decoded(pixels, reason, decode_s, extent and Extent(*extent))
            self._settle(item, "failed" if reason else "decoded", decoded)
        answers = [answer for image in message.get("keys", ()) for answer in self._answer(*image)]
        self._give_settled()
        if "keys" in message:
            # New tasks go first, so that the process finds them when it has done what it has.
            if self._items:
                self._top_up()
            if answers:
                process.send({"decode": answers})

    def _answer(self, position: int, key: str | None, reason: str, read_s: float) -> list[bool]:
        """Return whether an image that was read is wanted; nothing for one that could not be."""
        item = self._items[position]
        item.read_s += read_s
        if key is None:
            self._settle(item, "failed", _NO_PIXELS._replace(reason=reason))
            return []
        # Not asked twice, for a process in a dead one's place: the caller may count a key that it
        # was asked for as known from then on.
        is_new = item.key == bytes.fromhex(key) or not self._job.known(bytes.fromhex(key))
        item.key = bytes.fromhex(key)
        if not is_new:
            self._settle(item, "known")
        return [is_new]

    def _settle(
        self,
        item: _Item,
        status: Status,
        decoded: Decoded = _NO_PIXELS,
    ) -> None:
        del self._items[item.position]
        self._free.append(item.slot)
        loaded = Loaded(
            index=item.index,
            key=item.key,
            status=status,
            reason=decoded.reason,
            pixels=decoded.pixels,
            read_s=item.read_s,
            decode_s=decoded.decode_s,
            extent=decoded.extent,
        )
        self._settled.append((item.position, loaded))

    def _give_settled(self) -> None:
        """Hand results over together, as each hand-over wakes the consumer."""
        results, self._settled = self._settled, []
        if results:
            self._line.give(results)

    def _give_back(self, taken_bytes: int) -> None:
        """Give back memory that the process took to decode an image."""
        self._taken -= taken_bytes
        budget().give_back(taken_bytes)

    def _note_death(self) -> None:
        """Find out what a process died of, and on which image."""
        process = self._process
        assert process is not None
        how = process.end()
        self._give_back(self._taken)
        with self._lock:
            self._process = None
        if self._line.closed:
            return
        if not process.ready:
            raise _StartError(f"it ended at its start ({how})")
        item = self._items.get(process.position)
        if item is None:
            self._fruitless += 1
            if self._fruitless > _MOST_FRUITLESS:
                item = next(iter(self._items.values()), None)
        if item is not None:
            self._fruitless = 0
            ended = f"the decoder ended its process ({how})"
            self._settle(item, "failed", _NO_PIXELS._replace(reason=ended))
            self._give_settled()


class WorkerProcess:
    """A process that runs `featx.images.worker_main`; ``OSError`` if none can be started.

    It is started by hand: `multiprocessing` would run the user's main module again in it, which
    needs a guard that scripts forget and notebooks cannot have. A pool of `concurrent.futures` or
    `loky` also breaks as a whole, without a word of the image, when one process crashes, and
    pickles pixels through a pipe.

    The memory that it shares has no name in any folder: the kernel frees it with the last process
    that has it open, however that process ends.
    """

    def __init__(self, targets: Sequence[Target], slots: int) -> None:
        if not sys.executable:
            raise OSError("Python does not know its own executable (sys.executable)")
        self._targets, self._slot_bytes = targets, slot_bytes(targets)
        self.ready, self.position = False, NO_IMAGE
        size_bytes = HEADER_BYTES + slots * self._slot_bytes
        hello: Message = {
            "targets": [
                (size, image.to_dict(), None if view is None else view.to_dict())
                for size, image, view in targets
            ],
            "block_bytes": size_bytes,
            "packages": _package_folders(),
            "most_bytes": most_decode_bytes(),
        }
        if (pil := sys.modules.get("PIL.Image")) is not None:
            # The user's own limit holds there too.
            hello["most_pixels"] = pil.MAX_IMAGE_PIXELS
        # A group of its own: Ctrl-C in a terminal is the parent's to handle, even before the worker
        # has said so itself.
        if sys.platform == "win32":
            hello["block"] = f"featx-{os.getpid()}-{os.urandom(8).hex()}"
            self._memory = mmap.mmap(-1, size_bytes, tagname=hello["block"])
            self._start(hello, creationflags=subprocess.CREATE_NEW_PROCESS_GROUP)
            return
        with _anonymous_file() as file:
            file.truncate(size_bytes)
            hello["block"] = file.fileno()
            self._memory = mmap.mmap(file.fileno(), size_bytes)
            self._start(hello, process_group=0, pass_fds=(file.fileno(),))

    def _start(
        self,
        hello: Message,
        *,
        creationflags: int = 0,
        process_group: int | None = None,
        pass_fds: tuple[int, ...] = (),
    ) -> None:
        struct.pack_into("<q", self._memory, 0, NO_IMAGE)
        # Flags that variables of the environment may have set.
        flags = [*["-s"] * sys.flags.no_user_site, *["-B"] * sys.dont_write_bytecode]
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-E", "-P", *flags, "-c", _BOOT],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, **_ENVIRONMENT},
                creationflags=creationflags,
                process_group=process_group,
                pass_fds=pass_fds,
            )
        except OSError:
            self._memory.close()
            raise
        _widen(self._process.stdin)
        with suppress(_DiedError):  # what asks it for something will find out
            self.send(hello)

    def send(self, message: Message, contents: Sequence[bytes] = ()) -> None:
        """Send a message, with the contents of files."""
        assert self._process.stdin is not None
        try:
            send(self._process.stdin, message, contents)
        except (OSError, ValueError) as error:
            raise _DiedError(str(error)) from error

    def receive(self) -> Message:
        """Wait for a message."""
        assert self._process.stdout is not None
        try:
            message = receive(self._process.stdout)
        except (OSError, ValueError) as error:
            raise _DiedError(str(error)) from error
        if message is None:
            raise _DiedError("it closed its output")
        self.ready = self.ready or "ready" in message
        return message

    def pixels(self, slot: int) -> list[Rgb]:
        """Return the pixels of the image in a slot, for all targets."""
        at = HEADER_BYTES + slot * self._slot_bytes
        arrays = []
        for (height, width), _, _ in self._targets:
            shared = np.frombuffer(self._memory, np.uint8, height * width * 3, at)
            arrays.append(shared.reshape(height, width, 3).copy())
            at += shared.size
        return arrays

    def kill(self) -> None:
        """End it at once; it keeps nothing that could be lost."""
        self._process.kill()

    def end(self) -> str:
        """Wait for its end, and return how it came, such as ``signal 11``; note what it was on."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                # What was not sent yet cannot be sent any more.
                with suppress(OSError):
                    pipe.close()
        try:
            code = self._process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        (self.position,) = struct.unpack_from("<q", self._memory, 0)
        self._memory.close()
        if code >= 0:
            return f"exit status {code}"
        lack = ", often for lack of memory" if code == -getattr(signal, "SIGKILL", 9) else ""
        return f"signal {-code}{lack}"


def _widen(pipe: IO[bytes] | None) -> None:
    """Let a pipe hold the content of a photograph, so that its writer need not wait."""
    if pipe is not None and sys.platform == "linux":
        import fcntl

        with suppress(OSError):  # the system allows so much, or less
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)


def _package_folders() -> dict[str, str]:
    """Return the folder from which this process imported each package that decoding needs."""
    files = {name: getattr(sys.modules.get(name), "__file__", None) for name in _PACKAGES}
    return {name: str(Path(file).absolute().parents[1]) for name, file in files.items() if file}


def _anonymous_file() -> IO[bytes]:
    if sys.platform == "linux":
        with suppress(OSError):
            return os.fdopen(os.memfd_create("featx-images", os.MFD_CLOEXEC), "r+b")
    return tempfile.TemporaryFile()
