"""One image: read and hash it, then decode it; whatever happens becomes a reason."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import FeatxError
from featx.images.target import Target

Status = Literal["decoded", "known", "failed"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Loaded:
    """What became of one image.

    Parameters
    ----------
    index : int
        Its position in the dataset.
    key : bytes or None
        SHA-256 of the file's bytes, or `array_key` of the array, 32 bytes; None when nothing could
        be read.
    status : {"decoded", "known", "failed"}
        ``known`` when the caller had the key already, so that nothing was decoded.
    reason : str, default ""
        Why it failed.
    pixels : list of ndarray of shape (h, w, 3), uint8
        One a target, empty unless decoded.
    read_s, decode_s : float, default 0.0
        Seconds for reading and hashing, and for decoding and resizing.
    """

    index: int
    key: bytes | None
    status: Status
    reason: str = ""
    pixels: list[NDArray[np.uint8]] = field(default_factory=list)
    read_s: float = 0.0
    decode_s: float = 0.0


class Read(NamedTuple):
    """An image before it is decoded; `key` is None and `reason` says why when it cannot be read."""

    data: Any
    key: bytes | None
    reason: str
    read_s: float


class Decoded(NamedTuple):
    """Pixels, one array a target; none, and why, when it cannot be decoded."""

    pixels: list[NDArray[np.uint8]]
    reason: str
    decode_s: float


def read_one(read: Callable[[], Any], make_key: Callable[[Any], bytes]) -> Read:
    """Read an image once; the key is that of these very bytes."""
    start = time.perf_counter()
    try:
        data = read()
        key = make_key(data)
    except Exception as error:
        return Read(None, None, _reason(error), time.perf_counter() - start)
    return Read(data, key, "", time.perf_counter() - start)


def decode_one(data: Any, targets: Sequence[Target], key: bytes) -> Decoded:
    """Decode the bytes of a file, or fit an array, to all targets."""
    from featx.images.decode import decode_sizes, fit_sizes

    start = time.perf_counter()
    try:
        decode = decode_sizes if isinstance(data, bytes) else fit_sizes
        pixels = decode(data, targets, key=key)
    except Exception as error:
        return Decoded([], _reason(error), time.perf_counter() - start)
    return Decoded(pixels, "", time.perf_counter() - start)


def _reason(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "not enough memory to decode it"
    if isinstance(error, FeatxError):
        return str(error)
    return f"{type(error).__name__}: {error}"
