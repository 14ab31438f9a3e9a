"""The stages of a run and what flows through them: batches to engines, features to stores.

One thread of the run takes images and hands out batches; engines compute without being waited for;
a thread of the writer's own hands features to where they are kept. All queues between them are
bounded, so that what is held does not grow with the data.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from featx.cache.features import FeatureStore
from featx.engines.protocol import Engine, Pending
from featx.images.one_image import Loaded
from featx.meter import Meter
from featx.spec import FeatureSpec

_LOG = logging.getLogger("featx")
# Batches that may wait for the writer: enough to bridge the writing of one shard.
_WAITING_FOR_WRITER = 4


class Sink(Protocol):
    """Takes rows of features."""

    def add(self, keys: NDArray[np.uint8], features: Mapping[str, NDArray[Any]]) -> None:
        """Take rows of shape (n, 32) and (n, d) by tap."""

    def flush(self) -> None:
        """Make what was taken findable, and durable where the store is."""


@dataclass(slots=True)
class Stage:
    """One specification that a run fills: a backbone, or a view through it.

    Parameters
    ----------
    spec : FeatureSpec
        What identifies its features.
    taps : tuple of str
        Canonical names of taps.
    store : FeatureStore
        Where features are found.
    open_engine : callable
        Returns what runs the network; called once, when there is something to compute. Stages of
        one network return one engine.
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
    engine: str = ""
    _sink: Sink | None = None

    def missing(self, keys: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Return which keys of shape (m, 32) have to be computed."""
        return ~self.store.has(self.taps, keys)

    def reuse(self, keys: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Return which keys of shape (m, 32) need not be computed, and see that they stay."""
        self.store.touch(self.taps, keys)
        return ~self.missing(keys)

    def keep(self, engine: Engine, keys: list[bytes], vectors: dict[str, NDArray[Any]]) -> None:
        """Hand the features of a batch on, except those that are no finite numbers."""
        if self._sink is None:
            self._sink = self.open_sink(engine)
            self.engine = engine.name
        rows = np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 32)
        with np.errstate(over="ignore"):  # what does not fit is named below
            stored = {tap: values.astype(self.spec.dtype) for tap, values in vectors.items()}
        finite = np.ones(len(rows), np.bool_)
        for tap, values in stored.items():
            fits = np.isfinite(values).all(axis=1)
            for row in np.flatnonzero(finite & ~fits):
                self.bad_keys[keys[row]] = self._complaint(tap, vectors[tap][row])
            finite &= fits
        self.computed += int(finite.sum())
        self._sink.add(rows[finite], {tap: values[finite] for tap, values in stored.items()})

    def _complaint(self, tap: str, vector: NDArray[Any]) -> str:
        """Return why the features of an image are not kept."""
        most = float(np.abs(vector).max())
        if np.isfinite(most):
            return (
                f"{self.spec.backbone} gives {most:.3g} at the tap {tap}, too large for "
                f"{self.spec.dtype}: store float32 (--dtype float32)"
            )
        return f"{self.spec.backbone} gives features that are no finite numbers at the tap {tap}"

    def flush(self) -> None:
        """Make what was computed findable."""
        if self._sink is not None:
            self._sink.flush()


class Pipeline:
    """Takes decoded images, and sees to it that their features reach the stores.

    Parameters
    ----------
    stages : sequence of Stage
        The stages, in the order of the pixels of each image.
    meter : Meter
        Counts what takes time.
    """

    def __init__(self, stages: Sequence[Stage], meter: Meter) -> None:
        self._stages = tuple(stages)
        self._meter = meter
        self._writer = _Writer(meter)
        self._waiting: list[list[tuple[bytes, NDArray[np.uint8]]]] = [[] for _ in stages]
        self._engines: list[Engine | None] = [None for _ in stages]
        self._under_way: dict[int, deque[tuple[Stage, Engine, list[bytes], Pending]]] = {}

    def push(self, loaded: Loaded) -> None:
        """Take the pixels of one image; start a batch where enough are waiting."""
        assert loaded.key is not None
        several = len(self._stages) > 1
        row = np.frombuffer(loaded.key, np.uint8)[None]
        for number, pixels in enumerate(loaded.pixels):
            if several and not self._stages[number].missing(row)[0]:
                continue
            waiting = self._waiting[number]
            waiting.append((loaded.key, pixels))
            if len(waiting) >= self._engine(number).batch_size:
                self._start(number)

    def _engine(self, number: int) -> Engine:
        engine = self._engines[number]
        if engine is None:
            # Built at the first image that needs it: an unchanged run imports no TensorFlow.
            with self._meter.timing("start"):
                engine = self._engines[number] = self._stages[number].open_engine()
        return engine

    def _start(self, number: int) -> None:
        waiting = self._waiting[number]
        if not waiting:
            return
        engine = self._engine(number)
        under_way = self._under_way.setdefault(id(engine), deque())
        while len(under_way) >= max(1, engine.in_flight):
            self._collect(under_way)
        pixels = np.stack([pixels for _, pixels in waiting])
        keys = [key for key, _ in waiting]
        waiting.clear()
        pending = engine.submit(pixels)
        self._meter.batch_started()
        under_way.append((self._stages[number], engine, keys, pending))

    def _collect(self, under_way: deque[tuple[Stage, Engine, list[bytes], Pending]]) -> None:
        stage, engine, keys, pending = under_way.popleft()
        try:
            with self._meter.waiting("model"):
                vectors = pending.result()
        finally:
            self._meter.batch_ended()
        with self._meter.waiting("writer"):
            self._writer.put(lambda: stage.keep(engine, keys, vectors))

    def _collect_all(self) -> None:
        for under_way in self._under_way.values():
            while under_way:
                self._collect(under_way)

    def finish(self) -> None:
        """Compute what is still waiting and make everything findable."""
        for number in range(len(self._stages)):
            self._start(number)
        self._collect_all()
        self._writer.close()
        with self._meter.timing("write"):
            for stage in self._stages:
                stage.flush()

    def stop(self, reason: BaseException) -> None:
        """Make findable what has been computed when a run ends early.

        Raises
        ------
        Exception
            If that fails and the run was interrupted, since an interrupted run says that what it
            computed is kept; after an error, that error stands.
        """
        failures: list[Exception] = []
        for step in (self._collect_all, self._writer.close, *(s.flush for s in self._stages)):
            try:
                step()
            except Exception as error:
                failures.append(error)
                _LOG.debug("while stopping: %s", error)
        if failures and isinstance(reason, KeyboardInterrupt):
            raise failures[0]


class _Writer:
    """One thread that does jobs in their order; what one raises, the next `put` raises."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue(_WAITING_FOR_WRITER)
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def put(self, job: Callable[[], None]) -> None:
        """Have a job done; wait while too many are waiting."""
        self._raise()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="featx-writer", daemon=True)
            self._thread.start()
        self._jobs.put(job)

    def close(self) -> None:
        """Wait until all jobs are done."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
            self._thread = None
        self._raise()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            if self._error is not None:
                continue  # nothing is written after a gap, and nobody waits for room in vain
            try:
                with self._meter.timing("write"):
                    job()
            except BaseException as error:
                self._error = error
