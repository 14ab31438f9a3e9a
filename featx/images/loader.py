"""Images read and decoded by threads, given out in order, each with what became of it.

A worker reads the bytes of an image once, and the key and the pixels come from those very bytes,
so a file that changes meanwhile cannot put one image's features under another's key.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import DatasetError, FeatxError
from featx.images.dataset import ImageDataset
from featx.images.files import hash_file
from featx.spec import ImagePolicy

__all__ = ["Loaded", "Target", "array_key", "hash_file", "load_images", "never"]

Target: TypeAlias = tuple[tuple[int, int], ImagePolicy]
"""A size (height, width) in pixels, and how to get there."""

Status = Literal["decoded", "known", "failed"]

# Images a task: one would cost a hand-over each, many would hold back the first of them.
_CHUNK = 4


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


def never(key: bytes) -> bool:
    """Return False: no key is known."""
    return False


def array_key(array: NDArray[Any]) -> bytes:
    """Return the key of an array image: SHA-256 of shape, dtype and bytes, 32 bytes.

    The byte order and the layout in memory make no difference.

    Examples
    --------
    >>> a = np.arange(6, dtype="<u2").reshape(2, 3)
    >>> array_key(a) == array_key(a.astype(">u2")) == array_key(np.asfortranarray(a))
    True
    >>> array_key(a) == array_key(a.reshape(3, 2))
    False
    """
    array = np.asarray(array)
    array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    head = f"featx-array-1 {array.dtype.str} {'x'.join(map(str, array.shape))}\n"
    digest = hashlib.sha256(head.encode("ascii"))
    digest.update(array.tobytes() if array.ndim == 0 else array.data)
    return digest.digest()


def load_images(
    dataset: ImageDataset,
    indices: Iterable[int],
    targets: Sequence[Target],
    *,
    known: Callable[[bytes], bool] = never,
    workers: int | None = None,
    ahead: int = 64,
) -> Iterator[Loaded]:
    """Read and decode images with threads, in order.

    Parameters
    ----------
    dataset : ImageDataset
        Files or arrays.
    indices : iterable of int
        Positions in the dataset; may be endless, it is read only as far as needed.
    targets : sequence of ((height, width), ImagePolicy)
        The sizes to decode to; a file is decoded once for all of them.
    known : callable, default `never`
        Asked for each key, from the threads; where it returns True nothing is decoded. What it
        raises is raised here.
    workers : int or None, default None
        Number of threads; by default one a CPU, at least 2 and at most 16.
    ahead : int, default 64
        Most images that are held beyond the one given out, which bounds the memory.

    Yields
    ------
    Loaded
        Exactly one for each index, in the order of `indices`, whatever happens: a missing or
        damaged file is ``failed`` with a reason. Closing the iterator stops the threads.

    Raises
    ------
    DatasetError
        If `workers` or `ahead` is less than 1.
    ImageError
        If ``PIL.ImageFile.LOAD_TRUNCATED_IMAGES`` is set, which would pass damaged files.
    """
    if workers is None:
        workers = max(2, min(16, _cpus()))
    if workers < 1 or ahead < 1:
        raise DatasetError(
            f"workers and ahead must be at least 1, received workers={workers}, ahead={ahead}"
        )
    if dataset.arrays is None:
        from featx.images.decode import check_truncation_setting

        check_truncation_setting()
    return _in_order(dataset, iter(indices), list(targets), known, workers, ahead)


def _in_order(
    dataset: ImageDataset,
    indices: Iterator[int],
    targets: list[Target],
    known: Callable[[bytes], bool],
    workers: int,
    ahead: int,
) -> Iterator[Loaded]:
    stop = threading.Event()
    chunk = max(1, min(_CHUNK, ahead // (2 * workers)))
    waiting: deque[Future[list[Loaded]]] = deque()

    def work(chosen: list[int]) -> list[Loaded]:
        out = []
        for index in chosen:
            if stop.is_set():
                break
            out.append(_load(dataset, index, targets, known))
        return out

    pool = ThreadPoolExecutor(workers, thread_name_prefix="featx-images")
    try:
        while True:
            while len(waiting) < max(1, ahead // chunk):
                chosen = list(islice(indices, chunk))
                if not chosen:
                    break
                waiting.append(pool.submit(work, [int(index) for index in chosen]))
            if not waiting:
                return
            done = waiting.popleft().result()
            # Handed out from a list that shrinks: what was given out is the caller's alone.
            done.reverse()
            while done:
                yield done.pop()
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


def _load(
    dataset: ImageDataset,
    index: int,
    targets: list[Target],
    known: Callable[[bytes], bool],
) -> Loaded:
    """Read, hash, ask, decode one image."""
    from featx.images.decode import decode_sizes, fit_sizes

    key: bytes | None = None
    start = time.perf_counter()
    read_s = 0.0
    try:
        data: Any
        if dataset.arrays is None:
            data = dataset.read(index)
            key = hashlib.sha256(data).digest()
        else:
            data = dataset.image(index)
            key = array_key(data)
        read_s = time.perf_counter() - start
    except Exception as error:
        return Loaded(
            index=index, key=None, status="failed", reason=_reason(error), read_s=_since(start)
        )
    if known(key):
        return Loaded(index=index, key=key, status="known", read_s=read_s)
    start = time.perf_counter()
    try:
        decode = decode_sizes if dataset.arrays is None else fit_sizes
        pixels = decode(data, targets)
    except Exception as error:
        return Loaded(
            index=index,
            key=key,
            status="failed",
            reason=_reason(error),
            read_s=read_s,
            decode_s=_since(start),
        )
    return Loaded(
        index=index,
        key=key,
        status="decoded",
        pixels=pixels,
        read_s=read_s,
        decode_s=_since(start),
    )


def _since(start: float) -> float:
    return time.perf_counter() - start


def _reason(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "not enough memory to decode it"
    if isinstance(error, FeatxError):
        return str(error)
    return f"{type(error).__name__}: {error}"


def _cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
