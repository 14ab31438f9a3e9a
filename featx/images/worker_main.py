"""What runs in a process that reads and decodes images for another one.

Messages are lines of JSON. From the parent: ``images`` (what to read), ``decode`` (which of the
images whose keys were sent are wanted), ``go`` (there is memory). To the parent: ``ready``,
``keys`` (what was read), ``take`` and ``give_back`` (memory that one image takes), and ``done``
(what was decoded); pixels go into shared memory. Nothing is unpickled on either side.
"""

from __future__ import annotations

import os
import signal
import struct
import sys
import time
from collections import deque
from functools import partial
from typing import IO, Any, NamedTuple

import numpy as np

from featx.images.files import read_file
from featx.images.keys import file_key
from featx.images.limits import Budget, set_budget
from featx.images.messages import HEADER_BYTES, NO_IMAGE, receive, send, slot_bytes
from featx.images.one_image import decode_one, read_one
from featx.images.shared_block import attach_block
from featx.images.target import Target
from featx.spec import ImagePolicy, ViewPolicy

# Files that wait for their decoding are kept up to this size, and read one by one beyond.
_MOST_WAITING_BYTES = 32 << 20
# Results are sent when this much time has gone by, as each message wakes the parent.
_HAND_OVER_S = 0.005


class _Waiting(NamedTuple):
    place: int
    slot: int
    data: bytes
    key: bytes


def main(hello: dict[str, Any]) -> None:
    """Serve until the parent closes the pipe, which its end does too.

    Parameters
    ----------
    hello : dict
        The parent's first message: targets, and where the shared memory is.
    """
    # Ctrl-C is the parent's to handle.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    source, sink = sys.stdin.buffer, _own_stdout()
    # Imported now: what is wrong with the installation is no fault of the first image.
    from PIL import Image

    import featx.images.decode  # noqa: F401

    if "most_pixels" in hello:
        Image.MAX_IMAGE_PIXELS = hello["most_pixels"]
    worker = _Worker(hello, sink)
    try:
        send(sink, {"ready": True})
        parents = _ParentsBudget(source, sink)
        set_budget(parents)
        while message := parents.next_message():
            worker.handle(message)
    except BrokenPipeError:
        # The parent is gone. Without this, closing the pipe at exit would complain again.
        os._exit(0)


def _own_stdout() -> IO[bytes]:
    """Return standard output, and lead whatever a library prints elsewhere."""
    own = os.fdopen(os.dup(1), "wb")
    try:
        os.dup2(2, 1)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return own


class _ParentsBudget(Budget):
    """The memory that all decoders share, asked for from the parent."""

    def __init__(self, source: IO[bytes], sink: IO[bytes]) -> None:
        super().__init__()
        self._source, self._sink = source, sink
        self._later: deque[dict[str, Any]] = deque()

    def take(self, need_bytes: int) -> None:
        send(self._sink, {"take": need_bytes})
        while message := receive(self._source):
            if "go" in message:
                return
            self._later.append(message)
        os._exit(0)  # the parent is gone

    def give_back(self, need_bytes: int) -> None:
        send(self._sink, {"give_back": need_bytes})

    def next_message(self) -> dict[str, Any] | None:
        """Return a message that came while another one was waited for, or the next one."""
        return self._later.popleft() if self._later else receive(self._source)


class _Worker:
    def __init__(self, hello: dict[str, Any], sink: IO[bytes]) -> None:
        self._sink = sink
        self._targets = [_target(*parts) for parts in hello["targets"]]
        self._block = attach_block(hello["block"], hello["block_bytes"])
        self._slot_bytes = slot_bytes(self._targets)
        self._unread: deque[tuple[int, int, str]] = deque()
        self._waiting: deque[_Waiting] = deque()
        self._waiting_bytes = 0

    def handle(self, message: dict[str, Any]) -> None:
        self._unread.extend(message.get("images", ()))
        self._decode(message.get("decode", ()))
        self._read()

    def _read(self) -> None:
        keys = []
        while self._unread and self._waiting_bytes < _MOST_WAITING_BYTES:
            place, slot, path = self._unread.popleft()
            self._work_on(place)
            # The path came as Latin-1, one character a byte.
            read = partial(read_file, os.fsdecode(path.encode("latin-1")))
            data, key, reason, read_s = read_one(read, file_key)
            self._work_on(NO_IMAGE)
            keys.append((place, None if key is None else key.hex(), reason, read_s))
            if key is not None:
                self._waiting.append(_Waiting(place, slot, data, key))
                self._waiting_bytes += len(data)
        if keys:
            send(self._sink, {"keys": keys})

    def _decode(self, wanted: list[bool]) -> None:
        done: list[tuple[int, str, float]] = []
        handed_over = time.monotonic()
        for is_wanted in wanted:
            place, slot, data, key = self._waiting.popleft()
            self._waiting_bytes -= len(data)
            if not is_wanted:
                continue
            self._work_on(place)
            pixels, reason, decode_s = decode_one(data, self._targets, key)
            at = HEADER_BYTES + slot * self._slot_bytes
            for array in pixels:
                into = np.frombuffer(self._block, np.uint8, array.size, at)
                into.reshape(array.shape)[...] = array
                at += array.size
            self._work_on(NO_IMAGE)
            done.append((place, reason, decode_s))
            if time.monotonic() - handed_over > _HAND_OVER_S:
                send(self._sink, {"done": done})
                done, handed_over = [], time.monotonic()
        if done:
            send(self._sink, {"done": done})

    def _work_on(self, place: int) -> None:
        """Leave word of the image in work where it outlasts this process."""
        struct.pack_into("<q", self._block, 0, place)


def _target(size: list[int], image: dict[str, Any], view: dict[str, Any] | None) -> Target:
    height, width = size
    drawn = None if view is None else ViewPolicy.from_dict(view)
    return Target((height, width), ImagePolicy(**image), drawn)
