"""Images through networks into stores: each is read and decoded once, for all networks.

A run's own thread takes images and hands out batches; engines compute without being waited for; a
writer's thread hands features to where they are kept. All queues between them are bounded, so that
memory does not grow with the data.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featx.backbones.source import BackboneSource
from featx.cache.key_index import KeyIndex
from featx.cache.manifest import DUPLICATE, FAILED, OK, PENDING
from featx.cache.space import FeatureSpace, ShardWriter
from featx.engines.choice import make_engine
from featx.engines.engine import Engine, Pending
from featx.exceptions import DatasetError, FeaturesError, ImageError
from featx.extraction.dark_images import DarkImages
from featx.extraction.progress import Meter, Progress
from featx.files.identity import Keys, copies
from featx.images.dataset import ImageDataset
from featx.images.decode import Target
from featx.images.line import Loaded
from featx.images.loader import load_images
from featx.spec import FeatureSpec, Precision

_LOG = logging.getLogger("featx")
# Batches that may wait for the writer: enough to bridge the writing of one shard.
_WAITING = 4
# Keys that were read may be forgotten once a store has them; looked after at this many, or at twice
# as many as were left the last time.
_MOST_CLAIMED = 1 << 13
_Rows = NDArray[np.floating]


@dataclass(slots=True)
class Ledger:
    """What became of every input: its key (zeros where unread), its status, why it failed."""

    key: Keys
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

    @property
    def usable(self) -> NDArray[np.intp]:
        """Rows that have features."""
        return np.flatnonzero(np.isin(self.status, (OK, DUPLICATE)))


@dataclass(frozen=True, slots=True)
class Network:
    """A backbone with its taps, and how it is run; `folder` keeps converted models."""

    source: BackboneSource
    taps: tuple[str, ...]
    engine: str = "auto"
    batch_size: int | None = None
    precision: Precision = "f32"
    folder: Path | None = None

    def open(self) -> Engine:
        """Return an engine with the network built."""
        return make_engine(
            self.engine,
            self.source,
            self.taps,
            batch_size=self.batch_size,
            precision=self.precision,
            folder=self.folder,
        )


class MemoryStore:
    """Features in memory, over those of a store behind it, which is never written to."""

    def __init__(self, spec: FeatureSpec, behind: FeatureSpace | None = None) -> None:
        self.spec = spec
        self._behind = behind
        self._keys: list[Keys] = []
        self._features: dict[str, list[_Rows]] = {}
        self._index = KeyIndex([])

    def add(self, keys: Keys, features: Mapping[str, _Rows]) -> None:
        """Take rows of shape (n, 32) and (n, d) by tap."""
        self._keys.append(keys)
        for tap, values in features.items():
            self._features.setdefault(tap, []).append(values)

    def flush(self) -> None:
        """Make what was taken findable."""
        self._index = KeyIndex([np.concatenate(self._keys)] if self._keys else [])

    def has(self, taps: Sequence[str], keys: Keys) -> NDArray[np.bool_]:
        """Return whether all taps of each key of shape (m, 32) are here or behind."""
        here = self._index.find(keys)[1] >= 0
        return here if self._behind is None else here | self._behind.has(taps, keys)

    def touch(self, taps: Sequence[str], keys: Keys) -> None:
        """Do nothing: no dataset will count on what is behind."""

    def gather(self, tap: str, keys: Keys) -> _Rows:
        """Return the features of keys of shape (m, 32), in their order, shape (m, d)."""
        row = self._index.find(keys)[1]
        here = row >= 0
        held = np.concatenate(self._features[tap]) if tap in self._features else None
        if here.all() and held is not None:
            features: _Rows = held[row]
            return features
        if self._behind is None:
            raise FeaturesError(f"{int((~here).sum())} of {len(keys)} images have no features")
        rest = self._behind.gather(tap, keys[~here])
        features = np.empty((len(keys), rest.shape[1]), rest.dtype)
        features[~here] = rest
        if held is not None:
            features[here] = held[row[here]]
        return features


@dataclass(slots=True)
class Stage:
    """One specification that a run fills: a network, or a view through it, and where rows go."""

    spec: FeatureSpec
    network: Network
    store: FeatureSpace | MemoryStore
    engine: Engine | None = None
    computed: int = 0
    bad_keys: dict[bytes, str] = field(default_factory=dict)
    computed_by: set[str] = field(default_factory=set)  # engines of other processes
    _sink: ShardWriter | MemoryStore | None = None

    @property
    def taps(self) -> tuple[str, ...]:
        """Canonical names of the taps."""
        return self.network.taps

    def missing(self, keys: Keys) -> NDArray[np.bool_]:
        """Return which keys of shape (m, 32) have to be computed."""
        return ~self.store.has(self.taps, keys)

    def reuse(self, keys: Keys) -> NDArray[np.bool_]:
        """Return which keys of shape (m, 32) need not be computed, and see that they stay."""
        self.store.touch(self.taps, keys)
        return ~self.missing(keys)

    def keep(self, keys: list[bytes], vectors: Mapping[str, _Rows]) -> None:
        """Hand the features of a batch on, except those that are no finite numbers."""
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
        if self._sink is None:
            self._sink = self._open_sink()
        self._sink.add(rows[finite], {tap: values[finite] for tap, values in stored.items()})

    def _open_sink(self) -> ShardWriter | MemoryStore:
        if isinstance(self.store, MemoryStore):
            return self.store
        assert self.engine is not None
        return ShardWriter(self.store, self.engine.provenance())

    def _complaint(self, tap: str, vector: _Rows) -> str:
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


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How images are read and how many may fail; see `featx.extract`."""

    on_error: str = "skip"
    max_failures: int | None = None
    workers: int | None = None
    isolate: bool | None = None

    @property
    def most_failures(self) -> int | None:
        """How many images may fail, None for any number."""
        if self.on_error not in ("skip", "raise"):
            raise DatasetError(f"on_error must be 'skip' or 'raise', received {self.on_error!r}")
        return 0 if self.on_error == "raise" else self.max_failures


class Run:
    """Images on their way: fills the stores of stages, and a ledger of what became of each."""

    def __init__(
        self,
        images: ImageDataset,
        stages: Sequence[Stage],
        ledger: Ledger,
        options: RunOptions | None = None,
        meter: Meter | None = None,
    ) -> None:
        self.stages = stages
        self.meter = meter or Meter()
        self.dark = DarkImages()
        self._images, self._ledger = images, ledger
        self._options = options or RunOptions()
        self._limit = self._options.most_failures
        self._failed = 0
        self._lock = threading.Lock()
        self._claimed: set[bytes] = set()
        self._most_claimed = _MOST_CLAIMED

    def work(
        self,
        progress: Progress | None = None,
        trusted: NDArray[np.bool_] | None = None,
        wanted: NDArray[np.bool_] | None = None,
    ) -> None:
        """Compute what is missing of the `wanted` rows, by default of all.

        `trusted` rows have a key in the ledger, and are not read.
        """
        ledger = self._ledger
        self._failed = 0
        self._claimed.clear()
        self.dark = DarkImages()
        ready = np.zeros(len(self._images), np.bool_) if trusted is None else trusted.copy()
        for stage in self.stages:
            ready[ready] = ~stage.missing(ledger.key[ready])
        ledger.status[ready] = OK
        done = int(ready.sum())
        if progress:
            progress(done, len(self._images), self._failed)
        self._compute(np.flatnonzero(~ready if wanted is None else wanted & ~ready), done, progress)
        self._carry_over()

    def _compute(self, rows: NDArray[np.intp], done: int, progress: Progress | None) -> None:
        """Compute rows, and enter what became of them; so many others are `done`."""
        ledger, total = self._ledger, len(self._images)
        pipeline = Pipeline(self.stages, self.meter)
        try:
            with closing(self._load(rows)) as loading:
                for loaded in loading:
                    row = loaded.index
                    done += 1
                    if loaded.key is not None:
                        ledger.key[row] = np.frombuffer(loaded.key, np.uint8)
                    if loaded.status == "failed":
                        self._fail(row, loaded.reason)
                    else:
                        ledger.status[row], ledger.reason[row] = OK, ""
                    if loaded.extent is not None:
                        self.dark.add(row, self._images.paths[row], loaded.extent)
                    if loaded.status == "decoded":
                        pipeline.push(loaded)
                    if progress:
                        progress(done, total, self._failed)
            pipeline.finish()
        except BaseException as error:
            pipeline.stop(error)
            raise

    def _load(self, rows: NDArray[np.intp]) -> Generator[Loaded]:
        """Pass images on, counting the time that they took and that was spent waiting for them."""
        loading = load_images(
            self._images,
            rows,
            [Target(s.spec.input_size_px, s.spec.image, s.spec.views) for s in self.stages],
            known=self._is_known,
            workers=self._options.workers,
            isolate=self._options.isolate,
        )
        while True:
            with self.meter.timing("images"):
                loaded = next(loading, None)
            if loaded is None:
                return
            self.meter.begin_images()
            self.meter.add("read", loaded.read_s)
            self.meter.add("decode", loaded.decode_s)
            yield loaded

    def _is_known(self, key: bytes) -> bool:
        """Return whether an image needs no decoding: it is in the stores, or under way."""
        row = np.frombuffer(key, np.uint8)[None]
        if all(stage.reuse(row)[0] for stage in self.stages):
            return True
        with self._lock:
            if key in self._claimed:
                return True
            self._claimed.add(key)
            if len(self._claimed) >= self._most_claimed:
                self._forget_stored()
        return False

    def _forget_stored(self) -> None:
        ordered = list(self._claimed)
        rows = np.frombuffer(b"".join(ordered), np.uint8).reshape(-1, 32)
        missing = np.any([stage.missing(rows) for stage in self.stages], axis=0)
        self._claimed = {ordered[row] for row in np.flatnonzero(missing)}
        self._most_claimed = max(_MOST_CLAIMED, 2 * len(self._claimed))

    def _fail(self, row: int, reason: str) -> None:
        """Enter a failure; raise when it is one too many."""
        self._ledger.fail(row, reason)
        self._failed += 1
        if self._limit is None or self._failed <= self._limit:
            return
        path = self._images.paths[row]
        if self._limit == 0:
            raise ImageError(f"{path}: {reason}")
        raise DatasetError(
            f"{self._failed} images could not be read, more than the {self._limit} allowed; the "
            f"last: {path}: {reason}. What was computed is kept"
        )

    def _carry_over(self) -> None:
        """Carry what became of one of several equal images over to the others."""
        ledger = self._ledger
        reached = np.flatnonzero(ledger.key.any(axis=1))
        if not reached.size:
            return
        later = reached[copies(ledger.key[reached])]
        ledger.status[later[ledger.status[later] == OK]] = DUPLICATE
        reasons = {key: reason for stage in self.stages for key, reason in stage.bad_keys.items()}
        for row in np.flatnonzero(ledger.status == FAILED):
            reasons.setdefault(ledger.key[row].tobytes(), ledger.reason[row])
        if not reasons:
            return
        for row in reached[ledger.status[reached] != FAILED]:
            reason = reasons.get(ledger.key[row].tobytes())
            if reason is not None:
                self._fail(row, reason)


class Pipeline:
    """Takes decoded images to the stores of stages, those of one network through one engine."""

    def __init__(self, stages: Sequence[Stage], meter: Meter) -> None:
        self._stages = tuple(stages)
        self._meter = meter
        self._writer = _Writer(meter)
        self._waiting: list[list[tuple[bytes, NDArray[np.uint8]]]] = [[] for _ in stages]
        self._under_way: dict[int, deque[tuple[Stage, list[bytes], Pending]]] = {}

    def push(self, loaded: Loaded) -> None:
        """Take the pixels of one image; start a batch where enough are waiting."""
        assert loaded.key is not None
        several = len(self._stages) > 1
        row = np.frombuffer(loaded.key, np.uint8)[None]
        for number, pixels in enumerate(loaded.pixels):
            stage = self._stages[number]
            if several and not stage.missing(row)[0]:
                continue
            waiting = self._waiting[number]
            waiting.append((loaded.key, pixels))
            if len(waiting) >= self._engine(stage).batch_size:
                self._start(number)

    def _engine(self, stage: Stage) -> Engine:
        if stage.engine is None:
            same = [s.engine for s in self._stages if s.engine and s.network == stage.network]
            # Built at the first image that needs it: an unchanged run imports no TensorFlow.
            with self._meter.timing("start"):
                stage.engine = same[0] if same else stage.network.open()
        return stage.engine

    def _start(self, number: int) -> None:
        stage, waiting = self._stages[number], self._waiting[number]
        if not waiting:
            return
        engine = self._engine(stage)
        under_way = self._under_way.setdefault(id(engine), deque())
        while len(under_way) >= max(1, engine.in_flight):
            self._collect(under_way)
        pixels = np.stack([pixels for _, pixels in waiting])
        keys = [key for key, _ in waiting]
        waiting.clear()
        pending = engine.submit(pixels)
        self._meter.batch_started()
        under_way.append((stage, keys, pending))

    def _collect(self, under_way: deque[tuple[Stage, list[bytes], Pending]]) -> None:
        stage, keys, pending = under_way.popleft()
        try:
            with self._meter.timing("model"):
                vectors = pending.result()
        finally:
            self._meter.batch_ended()
        with self._meter.timing("writer"):
            self._writer.put(lambda: stage.keep(keys, vectors))

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
        """Make findable what has been computed when a run ends early."""
        failures: list[Exception] = []
        for step in (self._collect_all, self._writer.close, *(s.flush for s in self._stages)):
            try:
                step()
            except Exception as error:
                failures.append(error)
                _LOG.debug("while stopping: %s", error)
        # An interrupted run says that what it computed is kept; after an error, that error stands.
        if failures and isinstance(reason, KeyboardInterrupt):
            raise failures[0]


class _Writer:
    """A thread that does jobs in their order; what one raises, a later `put` or `close` raises."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._thread = ThreadPoolExecutor(1, "featx-writer")
        self._waiting: deque[Future[None]] = deque()
        self._failed = False

    def put(self, job: Callable[[], None]) -> None:
        """Have a job done; wait while too many are waiting."""
        while self._waiting and (self._waiting[0].done() or len(self._waiting) > _WAITING):
            self._waiting[0].result()
            self._waiting.popleft()
        self._waiting.append(self._thread.submit(self._do, job))

    def close(self) -> None:
        """Wait until all jobs are done."""
        self._thread.shutdown()
        for job in self._waiting:
            job.result()

    def _do(self, job: Callable[[], None]) -> None:
        if self._failed:
            return  # nothing is written after a gap
        try:
            with self._meter.timing("write"):
                job()
        except BaseException:
            self._failed = True
            raise
