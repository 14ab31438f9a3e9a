"""The runner: images through a backbone into a store of features, each image once.

`run` joins a dataset (what is read), stages (a backbone with its engine) and stores (where features
are kept and found). An extraction hands it the cache on disk, a prediction hands it memory.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featx.cache.manifest import DUPLICATE, FAILED, OK, PENDING
from featx.exceptions import DatasetError, ImageError
from featx.images.dataset import ImageDataset
from featx.images.loader import load_images
from featx.images.one_image import Loaded
from featx.images.target import Target
from featx.meter import Meter
from featx.pipeline import Pipeline, Stage

# Keys that were read may be forgotten once a store has them; looked after at this many, or at twice
# as many as were left the last time.
_MOST_CLAIMED = 1 << 13
Progress = Callable[[int, int, int], None]
"""Called with the numbers of images done, in all, and failed."""


@dataclass(slots=True)
class Ledger:
    """What became of every input, row by row.

    Parameters
    ----------
    key : ndarray of shape (n, 32), uint8
        SHA-256 of each input; zeros where it could not be read.
    status : ndarray of shape (n,), uint8
        Index into `featx.cache.manifest.STATUSES`.
    reason : list of str
        Why an input failed.
    """

    key: NDArray[np.uint8]
    status: NDArray[np.uint8]
    reason: list[str]

    @classmethod
    def blank(cls, rows: int) -> Ledger:
        """Return a ledger in which nothing has been reached."""
        return cls(np.zeros((rows, 32), np.uint8), np.full(rows, PENDING, np.uint8), [""] * rows)

    def fail(self, row: int, reason: str) -> None:
        """Enter a failure."""
        self.status[row] = FAILED
        self.reason[row] = reason


def run(
    dataset: ImageDataset,
    stages: Sequence[Stage],
    ledger: Ledger,
    *,
    trusted: NDArray[np.bool_] | None = None,
    on_error: str = "skip",
    max_failures: int | None = None,
    workers: int | None = None,
    isolate: bool | None = None,
    progress: Progress | None = None,
    meter: Meter | None = None,
) -> None:
    """Fill the stores with what is missing, and the ledger with what became of every input.

    Parameters
    ----------
    dataset : ImageDataset
        The inputs.
    stages : sequence of Stage
        The backbones; every image is read and decoded once for all of them.
    ledger : Ledger
        Changed in place. Where `trusted` holds, its keys are taken as they are.
    trusted : ndarray of shape (n,), bool, optional
        Rows whose key is known without reading them.
    on_error : {"skip", "raise"}, default "skip"
        Whether the first image that cannot be read ends the run.
    max_failures : int, optional
        End the run when more images than this cannot be read.
    workers : int, optional
        Number of threads or processes that read and decode.
    isolate : bool, optional
        Whether to decode in processes of their own, see `featx.images.loader.load_images`.
    progress : callable, optional
        See `Progress`.
    meter : Meter, optional
        Counts what takes time.

    Raises
    ------
    ImageError
        With ``on_error="raise"``, for the first image that cannot be read.
    DatasetError
        When more than `max_failures` cannot be read.
    KeyboardInterrupt
        As received, after what was computed has been written.
    """
    if on_error not in ("skip", "raise"):
        raise DatasetError(f"on_error must be 'skip' or 'raise', received {on_error!r}")
    limit = 0 if on_error == "raise" else max_failures
    ready = np.zeros(len(dataset), np.bool_)
    if trusted is not None and trusted.any():
        rows = np.flatnonzero(trusted)
        ready[rows] = True
        for stage in stages:
            ready[rows] &= ~stage.missing(ledger.key[rows])
        ledger.status[ready] = OK
    done, failed, total = int(ready.sum()), 0, len(dataset)
    if progress:
        progress(done, total, failed)
    meter = meter or Meter()
    pipeline = Pipeline(stages, meter)
    loading = _load(dataset, np.flatnonzero(~ready), stages, workers, isolate)
    try:
        with closing(_metered(loading, meter)) as images:
            for loaded in images:
                row = loaded.index
                done += 1
                if loaded.key is not None:
                    ledger.key[row] = np.frombuffer(loaded.key, np.uint8)
                if loaded.status == "failed":
                    failed += 1
                    ledger.fail(row, loaded.reason)
                    _check_failures(dataset, row, loaded.reason, failed, limit)
                else:
                    ledger.status[row], ledger.reason[row] = OK, ""
                if loaded.status == "decoded":
                    pipeline.push(loaded)
                if progress:
                    progress(done, total, failed)
        pipeline.finish()
    except BaseException as error:
        pipeline.stop(error)
        raise
    _close(dataset, stages, ledger, limit)


def _metered(loading: Iterator[Loaded], meter: Meter) -> Generator[Loaded]:
    """Pass images on, counting the time that they took and that was spent waiting for them."""
    while True:
        with meter.waiting("images"):
            loaded = next(loading, None)
        if loaded is None:
            return
        meter.begin_images()
        meter.add("read", loaded.read_s)
        meter.add("decode", loaded.decode_s)
        yield loaded


def _load(
    dataset: ImageDataset,
    rows: NDArray[np.intp],
    stages: Sequence[Stage],
    workers: int | None,
    isolate: bool | None,
) -> Iterator[Loaded]:
    claimed: set[bytes] = set()
    lock = threading.Lock()

    limit = _MOST_CLAIMED

    def known(key: bytes) -> bool:
        nonlocal limit
        row = np.frombuffer(key, np.uint8)[None]
        if all(stage.reuse(row)[0] for stage in stages):
            return True
        with lock:
            if key in claimed:
                return True
            claimed.add(key)
            if len(claimed) >= limit:
                claimed.intersection_update(_still_missing(stages, claimed))
                limit = max(_MOST_CLAIMED, 2 * len(claimed))
        return False

    targets = [
        Target(stage.spec.input_size_px, stage.spec.image, stage.spec.views) for stage in stages
    ]
    return load_images(dataset, rows, targets, known=known, workers=workers, isolate=isolate)


def _still_missing(stages: Sequence[Stage], keys: set[bytes]) -> set[bytes]:
    ordered = list(keys)
    rows = np.frombuffer(b"".join(ordered), np.uint8).reshape(-1, 32)
    missing = np.any([stage.missing(rows) for stage in stages], axis=0)
    return {ordered[row] for row in np.flatnonzero(missing)}


def _check_failures(
    dataset: ImageDataset, row: int, reason: str, failed: int, limit: int | None
) -> None:
    if limit is None or failed <= limit:
        return
    if limit == 0:
        raise ImageError(f"{dataset.paths[row]}: {reason}")
    raise DatasetError(
        f"{failed} images could not be read, more than the {limit} allowed; the last: "
        f"{dataset.paths[row]}: {reason}. What was computed is kept"
    )


def _close(
    dataset: ImageDataset, stages: Sequence[Stage], ledger: Ledger, limit: int | None
) -> None:
    """Carry what became of one of several equal images over to the others."""
    reached = np.flatnonzero(ledger.key.any(axis=1))
    if not reached.size:
        return
    later = reached[_copies(ledger.key[reached])]
    ledger.status[later[ledger.status[later] == OK]] = DUPLICATE

    reasons = {key: reason for stage in stages for key, reason in stage.bad_keys.items()}
    for row in np.flatnonzero(ledger.status == FAILED):
        reasons.setdefault(ledger.key[row].tobytes(), ledger.reason[row])
    if not reasons:
        return
    failed = int((ledger.status == FAILED).sum())
    for row in reached[ledger.status[reached] != FAILED]:
        reason = reasons.get(ledger.key[row].tobytes())
        if reason is not None:
            failed += 1
            ledger.fail(row, reason)
            _check_failures(dataset, row, reason, failed, limit)


def _copies(keys: NDArray[np.uint8]) -> NDArray[np.intp]:
    """Return which rows of shape (n, 32) equal an earlier one."""
    # Sorted by the first 8 bytes, a quarter of the memory; whole keys only where these are equal.
    prefix = np.ascontiguousarray(keys[:, :8]).view(np.uint64).ravel()
    order = np.argsort(prefix, kind="stable")
    equal = np.flatnonzero(prefix[order[1:]] == prefix[order[:-1]])
    rows = np.unique(np.concatenate([order[equal], order[equal + 1]]))
    whole = np.ascontiguousarray(keys[rows]).view("V32").ravel()
    _, first, group = np.unique(whole, return_index=True, return_inverse=True)
    copies: NDArray[np.intp] = rows[first[group] != np.arange(len(rows))]
    return copies
