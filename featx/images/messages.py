"""Messages between the loader and its worker processes, and the layout of their shared memory.

The memory begins with the place of the image that the worker is on (`HEADER_BYTES`, little-endian,
`NO_IMAGE` for none); then come slots, each of one image's pixels for all targets.

A worker that is about to decode an image that takes much memory asks with ``take`` (bytes), waits
for ``go``, and says ``give_back`` (bytes) afterwards.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import IO, Any

from featx.images.target import Target

HEADER_BYTES = 64
NO_IMAGE = -1


def slot_bytes(targets: Sequence[Target]) -> int:
    """Return the size of one image's pixels for all targets."""
    return sum(height * width * 3 for (height, width), _, _ in targets)


def send(pipe: IO[bytes], message: dict[str, Any]) -> None:
    """Write a message."""
    pipe.write(json.dumps(message, separators=(",", ":")).encode("ascii") + b"\n")
    pipe.flush()


def receive(pipe: IO[bytes]) -> dict[str, Any] | None:
    """Read a message; None at the end.

    Raises
    ------
    ValueError
        If it is cut short.
    """
    while line := pipe.readline():
        # Python's start-up files may print before the pipe is the worker's own.
        if line.startswith(b'{"'):
            message: dict[str, Any] = json.loads(line)
            return message
    return None
