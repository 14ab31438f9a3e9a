"""Processes that read and decode images, so that a decoder's crash costs one image.

A thread here serves each process: hands it tasks, asks for keys, takes pixels out of shared memory,
and puts another in its place when it dies.
"""

from __future__ import annotations

import logging
import mmap
import os
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featx.exceptions import DatasetError
from featx.images.decode import Rgb
from featx.images.limits import budget
from featx.images.line import Job, Loaded, Status, ThreadWorker
from featx.images.worker_main import HEADER_BYTES, NO_IMAGE, Message, receive, send, slot_bytes

_LOG = logging.getLogger("featx")
# Chunks a process has: one that it decodes, one that it has the answers for, one that it reads, so
# that it waits for nobody.
_CHUNKS_AHEAD = 3
# So often a process may die while it works on no image, before the first of its images is blamed.
_MOST_FRUITLESS = 2


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


@dataclass(slots=True)
class _Item:
    """An image that a process has."""

    position: int
    index: int
    slot: int
    path: str
    key: bytes | None = None
    read_s: float = 0.0


class _StartError(Exception):
    """A process cannot be started."""


class StartFailures:
    """What is done about processes that cannot be started: raise, or warn once for all workers."""

    def __init__(self, *, insist: bool) -> None:
        self._insist, self._warned = insist, threading.Lock()

    def note(self, error: Exception) -> None:
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


class ProcessWorker:
    """Loads files in one process at a time: another takes the place of one that dies."""

    def __init__(self, job: Job, failures: StartFailures) -> None:
        self._job, self._line, self._failures = job, job.line, failures
        self._slot_bytes = slot_bytes(job.targets)
        slots = _CHUNKS_AHEAD * job.line.chunk
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
                    self._note_death()
        except _StartError as error:
            self._do_without(error)
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
            for position, index in tasks:
                try:
                    path = os.fsencode(self._job.dataset.file(index)).decode("latin-1")
                except Exception:
                    # No way to a file: this says in the same words why.
                    loaded = self._job.load_one(index)
                    self._line.give([(position, loaded)])
                    continue
                items.append(_Item(position, index, self._free.pop(), path))
            self._items.update((item.position, item) for item in items)
            self._hand_over(items)

    def _hand_over(self, items: Sequence[_Item]) -> None:
        if not items:
            return
        process = self._process or self._start()
        if process is not None:
            process.send({"images": [(item.position, item.slot, item.path) for item in items]})

    def _start(self) -> WorkerProcess | None:
        try:
            if self._block is None:
                self._block = SharedBlock(self._block_bytes)
            hello = {
                "targets": [
                    (size, image.to_dict(), None if view is None else view.to_dict())
                    for size, image, view in self._job.targets
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
        for position, reason, decode_s in message.get("done", ()):
            item = self._items[position]
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

    def _answer(self, position: int, key: str | None, reason: str, read_s: float) -> list[bool]:
        """Return whether an image that was read is wanted; nothing for one that could not be."""
        item = self._items[position]
        item.read_s = read_s
        if key is None:
            self._settle(item, "failed", reason)
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
        reason: str = "",
        pixels: Sequence[Rgb] = (),
        decode_s: float = 0.0,
    ) -> None:
        del self._items[item.position]
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
        self._line.give([(item.position, loaded)])

    def _pixels(self, slot: int) -> list[Rgb]:
        assert self._block is not None
        at = HEADER_BYTES + slot * self._slot_bytes
        out = []
        for (height, width), _, _ in self._job.targets:
            shared = np.frombuffer(self._block.memory, np.uint8, height * width * 3, at)
            out.append(shared.reshape(height, width, 3).copy())
            at += shared.size
        return out

    def _give_back(self, taken_bytes: int) -> None:
        """Give back memory that the process took to decode an image."""
        self._taken -= taken_bytes
        budget().give_back(taken_bytes)

    def _note_death(self) -> None:
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
        (position,) = struct.unpack_from("<q", self._block.memory, 0)
        item = self._items.get(position)
        if item is None:
            self._fruitless += 1
            if self._fruitless > _MOST_FRUITLESS:
                item = next(iter(self._items.values()), None)
        if item is not None:
            self._fruitless = 0
            self._settle(item, "failed", f"the decoder ended its process ({how})")

    def _do_without(self, error: _StartError) -> None:
        """Load what is left in this thread."""
        self._failures.note(error)
        for item in list(self._items.values()):
            if not self._line.closed:
                self._line.give([(item.position, self._job.load_one(item.index, item.key))])
        ThreadWorker(self._job).run()


class ProcessDiedError(Exception):
    """The process is gone, or talks nonsense."""


class WorkerProcess:
    """A process that runs `featx.images.worker_main`; ``OSError`` if none can be started.

    It is started by hand: `multiprocessing` would run the user's main module again in it, which
    needs a guard that scripts forget and notebooks cannot have. A pool of `concurrent.futures` or
    `loky` also breaks as a whole, without a word of the image, when one process crashes, and
    pickles pixels through a pipe.
    """

    def __init__(self, hello: Message, inherited: tuple[int, ...]) -> None:
        options: dict[str, Any] = {}
        # A group of its own: Ctrl-C in a terminal is the parent's to handle, even before the worker
        # has said so itself.
        if sys.platform == "win32":
            options["creationflags"] = subprocess.CREATE_NEW_PROCESS_GROUP
        else:
            options.update(process_group=0, pass_fds=inherited)
        if not sys.executable:
            raise OSError("Python does not know its own executable (sys.executable)")
        self._process = subprocess.Popen(
            [sys.executable, "-E", "-P", *_flags(), "-c", _BOOT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **_ENVIRONMENT},
            **options,
        )
        self._hello = {**hello, "packages": _package_folders()}
        pil = sys.modules.get("PIL.Image")
        if pil is not None:
            # The user's own limit holds there too.
            self._hello["most_pixels"] = pil.MAX_IMAGE_PIXELS

    def greet(self) -> None:
        """Send the first message."""
        self.send(self._hello)

    def send(self, message: Message) -> None:
        """Send a message."""
        assert self._process.stdin is not None
        try:
            send(self._process.stdin, message)
        except (OSError, ValueError) as error:
            raise ProcessDiedError(str(error)) from error

    def receive(self) -> Message:
        """Wait for a message."""
        assert self._process.stdout is not None
        try:
            message = receive(self._process.stdout)
        except (OSError, ValueError) as error:
            raise ProcessDiedError(str(error)) from error
        if message is None:
            raise ProcessDiedError("it closed its output")
        return message

    def kill(self) -> None:
        """End it at once; it keeps nothing that could be lost."""
        self._process.kill()

    def end(self) -> str:
        """Wait for its end, and return how it came, for example ``"signal 11"``."""
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
        if code >= 0:
            return f"exit status {code}"
        lack = ", often for lack of memory" if code == -getattr(signal, "SIGKILL", 9) else ""
        return f"signal {-code}{lack}"


def _flags() -> list[str]:
    """Return the flags of this interpreter that variables of the environment may have set."""
    no_user_site = ["-s"] if sys.flags.no_user_site else []
    return [*no_user_site, *(["-B"] if sys.dont_write_bytecode else [])]


def _package_folders() -> dict[str, str]:
    """Return the folder from which this process imported each package that decoding needs."""
    files = {name: getattr(sys.modules.get(name), "__file__", None) for name in _PACKAGES}
    return {name: str(Path(file).absolute().parents[1]) for name, file in files.items() if file}


class SharedBlock:
    """Memory that a process started later attaches to, and that no crash can leave behind.

    It has no name in any folder: the kernel frees it with the last process that has it open,
    however that process ends. So there is nothing to unlink, and no tracker that could warn of it.
    The other process needs the `handle`, and inherits the file descriptors `inherited`.
    """

    def __init__(self, size_bytes: int) -> None:
        self.handle: int | str
        self.inherited: tuple[int, ...] = ()
        if sys.platform == "win32":
            self.handle = f"featx-{os.getpid()}-{os.urandom(8).hex()}"
            self.memory = mmap.mmap(-1, size_bytes, tagname=self.handle)
            return
        fd = _anonymous_file()
        os.ftruncate(fd, size_bytes)
        self.memory = mmap.mmap(fd, size_bytes)
        self.handle, self.inherited = fd, (fd,)

    def close(self) -> None:
        """Give the memory up; it goes when the other process has ended too."""
        self.memory.close()
        for fd in self.inherited:
            os.close(fd)
        self.inherited = ()


def _anonymous_file() -> int:
    if sys.platform == "linux":
        try:
            return os.memfd_create("featx-images", os.MFD_CLOEXEC)
        except OSError:
            pass
    import tempfile

    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
