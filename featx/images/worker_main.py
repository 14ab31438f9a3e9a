"""What runs in a process that reads and decodes images for another one.

Messages are lines of JSON, perhaps with the bytes of images behind. From the parent: ``images``
(what to read, or how many bytes of it follow), ``decode`` (which of the images whose keys were sent
are wanted), ``go`` (there is memory). To the parent: ``ready``,
``keys`` (what was read), ``take`` and ``give_back`` (memory that one image takes), and ``done``
(what was decoded). Nothing is unpickled on either side.

Pixels go into shared memory. It begins with the position of the image that the process is on
(`HEADER_BYTES`, little-endian, `NO_IMAGE` for none); then come slots, each of one image's pixels
for all targets.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import struct
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import IO, Any, TypeAlias

import numpy as np

from featx.images.decode import Extent, Target, decode_targets
from featx.images.files import ImageData, read_file, read_one
from featx.images.limits import Budget, set_budget, set_most_decode_bytes
from featx.images.members import MemberReader, Place
from featx.spec import ImagePolicy, ViewPolicy

Message: TypeAlias = dict[str, Any]
CONTENTS, _LENGTHS = "contents", "lengths"
HEADER_BYTES = 64
NO_IMAGE = -1
# Files that wait for their decoding are kept up to this size, and read one by one beyond.
_MOST_WAITING_BYTES = 32 << 20
# Results are sent when this much time has gone by, as each message wakes the parent.
_HAND_OVER_S = 0.005


def slot_bytes(targets: Sequence[Target]) -> int:
    """Return the size of one image's pixels for all targets."""
    return sum(height * width * 3 for (height, width), _, _ in targets)


def send(pipe: IO[bytes], message: Message, contents: Sequence[bytes] = ()) -> None:
    """Write a message, and the contents of files that go with it."""
    if contents:
        message = {**message, _LENGTHS: [len(content) for content in contents]}
    pipe.write(json.dumps(message, separators=(",", ":")).encode("ascii") + b"\n")
    for content in contents:
        pipe.write(content)
    pipe.flush()


def receive(pipe: IO[bytes]) -> Message | None:
    """Return the next message, None at the end; one that is cut short raises ``ValueError``."""
    while line := pipe.readline():
        # Python's start-up files may print before the pipe is the worker's own.
        if line.startswith(b'{"'):
            message: Message = json.loads(line)
            message[CONTENTS] = [pipe.read(length) for length in message.pop(_LENGTHS, ())]
            return message
    return None


def main(hello: Message) -> None:
    """Serve until the parent closes the pipe, which its end does too; `hello` was sent first."""
    # Ctrl-C is the parent's to handle.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sink = os.fdopen(os.dup(1), "wb")
    # Whatever a library prints goes elsewhere.
    try:
        os.dup2(2, 1)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    # Imported now: what is wrong with the installation is no fault of the first image.
    from PIL import Image

    if "most_pixels" in hello:
        Image.MAX_IMAGE_PIXELS = hello["most_pixels"]
    set_most_decode_bytes(hello["most_bytes"])
    worker = _Worker(hello, sys.stdin.buffer, sink)
    set_budget(worker)
    try:
        worker.serve()
    except BrokenPipeError:
        # The parent is gone. Without this, closing the pipe at exit would complain again.
        os._exit(0)


class _Worker(Budget):
    """Reads and decodes images; memory for large ones is asked for from the parent."""

    def __init__(self, hello: Message, source: IO[bytes], sink: IO[bytes]) -> None:
        super().__init__()
        self._source, self._sink = source, sink
        self._targets = [
            Target((height, width), ImagePolicy(**image), view and ViewPolicy.from_dict(view))
            for (height, width), image, view in hello["targets"]
        ]
        self._slot_bytes = slot_bytes(self._targets)
        if sys.platform == "win32":
            self._block = mmap.mmap(-1, hello["block_bytes"], tagname=hello["block"])
        else:
            self._block = mmap.mmap(hello["block"], hello["block_bytes"])
        # Messages that came while memory was waited for, what is to be read, and to be decoded.
        self._later: deque[Message] = deque()
        self._unread: deque[tuple[int, int, Callable[[], ImageData]]] = deque()
        self._waiting: deque[tuple[int, int, ImageData, bytes]] = deque()
        self._waiting_bytes = 0
        self._members = MemberReader()

    def take(self, need_bytes: int) -> None:
        send(self._sink, {"take": need_bytes})
        while message := receive(self._source):
            if "go" in message:
                return
            self._later.append(message)
        os._exit(0)  # the parent is gone

    def give_back(self, need_bytes: int) -> None:
        send(self._sink, {"give_back": need_bytes})

    def serve(self) -> None:
        send(self._sink, {"ready": True})
        while message := self._later.popleft() if self._later else receive(self._source):
            contents = iter(message[CONTENTS])
            for position, slot, path in message.get("images", ()):
                self._unread.append((position, slot, self._reader(path, contents)))
            self._decode(message.get("decode", ()))
            self._read()

    def _reader(
        self, path: str | list[Any] | None, contents: Iterator[bytes]
    ) -> Callable[[], ImageData]:
        """Return what gives the bytes of an image: its file, an archive, or what was sent."""
        if path is None:
            content = next(contents)
            return lambda: content
        if isinstance(path, list):
            return partial(self._members.read, Place(_name(path[0]), *path[1:]))
        return partial(read_file, _name(path))

    def _read(self) -> None:
        keys = []
        while self._unread and self._waiting_bytes < _MOST_WAITING_BYTES:
            position, slot, read = self._unread.popleft()
            self._work_on(position)
            data, key, reason, read_s = read_one(read)
            self._work_on(NO_IMAGE)
            keys.append((position, None if key is None else key.hex(), reason, read_s))
            if key is not None:
                self._waiting.append((position, slot, data, key))
                self._waiting_bytes += len(data)
        if keys:
            send(self._sink, {"keys": keys})

    def _decode(self, answers: list[bool]) -> None:
        done: list[tuple[int, str, float, Extent | None]] = []
        handed_over = time.monotonic()
        for is_wanted in answers:
            position, slot, data, key = self._waiting.popleft()
            self._waiting_bytes -= len(data)
            if not is_wanted:
                continue
            self._work_on(position)
            pixels, reason, decode_s, extent = decode_targets(data, self._targets, key)
            at = HEADER_BYTES + slot * self._slot_bytes
            for array in pixels:
                into = np.frombuffer(self._block, np.uint8, array.size, at)
                into.reshape(array.shape)[...] = array
                at += array.size
            self._work_on(NO_IMAGE)
            done.append((position, reason, decode_s, extent))
            if time.monotonic() - handed_over > _HAND_OVER_S:
                send(self._sink, {"done": done})
                done, handed_over = [], time.monotonic()
        if done:
            send(self._sink, {"done": done})

    def _work_on(self, position: int) -> None:
        """Leave word of the image in work where it outlasts this process."""
        struct.pack_into("<q", self._block, 0, position)


def _name(text: str) -> str:
    """Return a path that came as Latin-1, one character a byte."""
    return os.fsdecode(text.encode("latin-1"))
