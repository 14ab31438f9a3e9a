"""The runner: images through a backbone into a store of features, each image once.

`run` joins a dataset (what is read), stages (a backbone with its engine) and stores (where features
are kept and found). An extraction hands it the cache on disk, a prediction hands it memory.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from featx.cache.features import FeatureStore
from featx.cache.manifest import DUPLICATE, FAILED, OK, PENDING
from featx.engines.protocol import Engine
from featx.exceptions import DatasetError, ImageError
from featx.images.dataset import ImageDataset
from featx.images.loader import Loaded, load_images
from featx.spec import FeatureSpec

__all__ = ["Ledger", "Progress", "Stage", "run"]

# Keys that were read may be forgotten once a store has them; looked after at this many, or at twice
# as many as were left the last time.
_MOST_CLAIMED = 1 << 15
Progress = Callable[[int, int, int], None]
"""Called with the numbers of images done, in all, and failed."""


class Sink(Protocol):
    """Takes rows of features."""

    def add(self, keys: NDArray[np.uint8], features: Mapping[str, NDArray[Any]]) -> None:
        """Take rows of shape (n, 32) and (n, d) by tap."""

    def flush(self) -> None:
        """Make what was taken findable, and durable where the store is."""


@dataclass(slots=True)
class Stage:
    """One backbone of a run.

    Parameters
    ----------
    spec : FeatureSpec
        What identifies its features.
    taps : tuple of str
        Canonical names of taps.
    store : FeatureStore
        Where features are found.
    open_engine : callable
        Returns what runs the network; called once, when there is something to compute.
    open_sink : callable
        Returns where new features go, given the engine; called once, likewise.
    """

    spec: FeatureSpec
    taps: tuple[str, ...]
    store: FeatureStore
    open_engine: Callable[[], Engine]
    open_sink: Callable[[Engine], Sink]
    computed: int = 0
    bad_keys: dict[bytes, str] = field(default_factory=dict)
    _engine: Engine | None = None
    _sink: Sink | None = None
    _waiting: list[tuple[bytes, NDArray[np.uint8]]] = field(default_factory=list)

    def missing(self, keys: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Return which keys of shape (m, 32) have to be computed."""
        return ~self.store.has(self.taps, keys)

    def push(self, key: bytes, pixels: NDArray[np.uint8]) -> None:
        """Take the pixels of one image; run a batch when enough are waiting."""
        if self._engine is None:
            # Built at the first image that needs it: an unchanged run imports no TensorFlow.
            self._engine = self.open_engine()
            self._sink = self.open_sink(self._engine)
        self._waiting.append((key, pixels))
        if len(self._waiting) >= self._engine.batch_size:
            self.forward()

    def forward(self) -> None:
        """Run what is waiting."""
        if not self._waiting or self._engine is None or self._sink is None:
            return
        keys = np.frombuffer(b"".join(key for key, _ in self._waiting), np.uint8).reshape(-1, 32)
        vectors = self._engine.run(np.stack([pixels for _, pixels in self._waiting]))
        stored = {tap: values.astype(self.spec.dtype) for tap, values in vectors.items()}
        finite = np.ones(len(keys), np.bool_)
        for values in stored.values():
            finite &= np.isfinite(values).all(axis=1)
        for key in keys[~finite]:
            self.bad_keys[key.tobytes()] = (
                f"features of {self.spec.backbone} are not finite numbers"
            )
        self._waiting.clear()
        self.computed += int(finite.sum())
        self._sink.add(keys[finite], {tap: values[finite] for tap, values in stored.items()})

    def flush(self) -> None:
        """Make what was computed findable; pixels that still wait are dropped."""
        self._waiting.clear()
        if self._sink is not None:
            self._sink.flush()


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
    progress: Progress | None = None,
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
        Number of threads that read and decode.
    progress : callable, optional
        See `Progress`.

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
    try:
        for loaded in _load(dataset, np.flatnonzero(~ready), stages, workers):
            row = loaded.index
            done += 1
            if loaded.key is not None:
                ledger.key[row] = np.frombuffer(loaded.key, np.uint8)
            if loaded.status == "failed":
                failed += 1
                ledger.fail(row, loaded.reason)
                _check_failures(dataset, row, loaded.reason, failed, limit)
            else:
                ledger.status[row] = OK
            if loaded.status == "decoded" and loaded.key is not None:
                _push(stages, loaded)
            if progress:
                progress(done, total, failed)
        for stage in stages:
            stage.forward()
    finally:
        for stage in stages:
            stage.flush()
    _close(dataset, stages, ledger, limit)


def _push(stages: Sequence[Stage], loaded: Loaded) -> None:
    assert loaded.key is not None
    key = np.frombuffer(loaded.key, np.uint8)[None]
    for stage, pixels in zip(stages, loaded.pixels, strict=True):
        if stage.missing(key)[0]:
            stage.push(loaded.key, pixels)


def _load(
    dataset: ImageDataset,
    rows: NDArray[np.intp],
    stages: Sequence[Stage],
    workers: int | None,
) -> Iterator[Loaded]:
    claimed: set[bytes] = set()
    lock = threading.Lock()

    limit = _MOST_CLAIMED

    def known(key: bytes) -> bool:
        nonlocal limit
        row = np.frombuffer(key, np.uint8)[None]
        if not any(stage.missing(row)[0] for stage in stages):
            return True
        with lock:
            if key in claimed:
                return True
            claimed.add(key)
            if len(claimed) >= limit:
                claimed.intersection_update(_still_missing(stages, claimed))
                limit = max(_MOST_CLAIMED, 2 * len(claimed))
        return False

    targets = [(stage.spec.input_size_px, stage.spec.image) for stage in stages]
    return load_images(dataset, rows.tolist(), targets, known=known, workers=workers)


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
    whole = np.ascontiguousarray(ledger.key[reached]).view("V32").ravel()
    _, first, group = np.unique(whole, return_index=True, return_inverse=True)
    later = reached[first[group] != np.arange(len(reached))]
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
