"""Parts of an extraction that other processes compute, on this machine or on others.

A part is some images and what to make of them, as a value that pickles. Whoever gets it runs the
same extraction as here, writes shards of its own into the cache, and gives a ledger back. Neither
pixels nor features travel.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from featx.cache.layout import CacheLayout, writing
from featx.cache.manifest import FAILED
from featx.cache.space import FeatureSpace
from featx.exceptions import CacheError, DatasetError, WeightsError, reason
from featx.extraction.dark_images import DarkImages
from featx.extraction.job import Job
from featx.extraction.pipeline import Ledger, Run, RunOptions, Stage
from featx.extraction.progress import Meter, Progress
from featx.files.identity import Keys
from featx.images.dataset import ImageDataset
from featx.threads import limited_processors

# About a shard of 1,280 float32 each; fewer where others would have nothing to do.
_MOST_ROWS, _LEAST_ROWS, _PARTS = 4096, 64, 128
# Parts that wait at the engine, so that one that adds machines by what waits sees a demand.
_WINDOW = 256
NO_FILE = "no such file"
"""The reason of an image that is not there."""
NOT_COMPUTED = "part not computed"
"""What the reason begins with of images whose part failed as a whole."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Some images of an extraction, and how they are computed."""

    job: Job
    images: ImageDataset
    run: str  # tells this run from others, and names its mark in the cache
    options: RunOptions
    processors: int | None = None  # that may be used for it
    featx: str = ""


@dataclass(frozen=True, kw_only=True)
class PartLedger:
    """What became of a part."""

    key: Keys
    status: NDArray[np.uint8]
    reason: list[str]
    computed: list[int]  # images by stage
    engines: list[str]
    dark: DarkImages
    meter: dict[str, float]


# Where it is computed


class _Kept(threading.local):
    """The networks and stores of a run, which a thread keeps from part to part."""

    run = ""
    stages: list[Stage]


_kept = _Kept()


def compute_part(part: Part) -> PartLedger:
    """Compute a part where this runs, and return what became of it.

    Raises
    ------
    CacheError, WeightsError
        If this host does not see the cache or the weights of the run, or has another featx. The
        message names the host.
    """
    with limited_processors(part.processors):
        if _kept.run != part.run:
            _require_same(part)
            _kept.stages, _kept.run = part.job.open(), part.run
        stages, meter = _kept.stages, Meter()
        for stage in stages:
            stage.computed = 0
            stage.bad_keys.clear()
        ledger = Ledger.blank(len(part.images))
        run = Run(part.images, stages, ledger, part.options, meter)
        run.work()
        meter.stop()
    if (ledger.status == FAILED).all() and set(ledger.reason) == {NO_FILE}:
        # One missing file is missing; all of them are on a disk that this host does not see.
        ledger.reason[:] = [f"{NO_FILE} on host {socket.gethostname()}"] * len(ledger.reason)
    return PartLedger(
        key=ledger.key,
        status=ledger.status,
        reason=ledger.reason,
        computed=[stage.computed for stage in stages],
        engines=[stage.engine.name for stage in stages if stage.engine],
        dark=run.dark,
        meter=meter.work,
    )


def _require_same(part: Part) -> None:
    """Refuse a part that would give other features here, or write them where nobody looks."""
    host = socket.gethostname()
    require_same_featx(part.featx)
    layout = part.job.layout
    if layout is not None and not _mark(layout, part.run).exists():
        raise CacheError(
            f"host {host} does not see the cache {layout.root}: put it on a disk that all hosts "
            "share, or run a shard on each host with a cache of its own (--shard 1/4) and join "
            "them by `featx cache merge`"
        )
    for spec, network in part.job.parts:
        path = network.source.weights.path
        if path is None:
            continue
        try:
            digest = network.source.digest_now()
        except OSError as error:
            raise WeightsError(
                f"host {host} cannot read {path}: {error.strerror}; put it where all hosts see it"
            ) from error
        if digest != spec.weights_sha256:
            raise WeightsError(
                f"host {host} has other weights in {path} than the run: copy the same file there"
            )


def require_same_featx(expected: str) -> None:
    """Refuse what a run with another featx asks of this host."""
    here = version("featx")
    if here != expected:
        raise CacheError(
            f"host {socket.gethostname()} has featx {here}, the run has featx {expected}: install "
            "the same version on all hosts"
        )


def _mark(layout: CacheLayout, run: str) -> Path:
    """Return a file that is there while a run is under way, by which its cache is known."""
    return layout.root / "tmp" / f"run-{run}"


# Where it is asked for


Argument = TypeVar("Argument")
Result = TypeVar("Result")
Label = TypeVar("Label")


class Submit(Protocol):
    """Starts a function elsewhere, as `concurrent.futures.Executor.submit` does."""

    def __call__(
        self, function: Callable[[Argument], Result], argument: Argument, /
    ) -> Future[Result]:
        """Return the future of what the function returns."""


def completed(
    submit: Submit,
    function: Callable[[Argument], Result],
    parts: Iterator[tuple[Label, Argument]],
    *,
    window: int | None = None,
) -> Generator[tuple[Label, Future[Result]], None, None]:
    """Yield what parts are of, with their finished futures, in the order in which they finish.

    So many parts at most are under way. Those that are when the iterator is closed are cancelled.
    """
    most = _WINDOW if window is None else window
    waiting: dict[Future[Result], Label] = {}
    try:
        while True:
            while len(waiting) < most and (part := next(parts, None)) is not None:
                waiting[_begun(submit, function, part[1])] = part[0]
            if not waiting:
                return
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                yield waiting.pop(future), future
    finally:
        for future in waiting:
            future.cancel()


def _begun(
    submit: Submit, function: Callable[[Argument], Result], argument: Argument
) -> Future[Result]:
    try:
        return submit(function, argument)
    except Exception as error:  # such as that of a pool whose processes died
        failed: Future[Result] = Future()
        failed.set_exception(error)
        return failed


def why_not_computed(error: Exception) -> str:
    """Return why an engine did not compute a part, in one line."""
    # Ray's text is the traceback of the worker; what went wrong there is its cause.
    cause = getattr(error, "cause", None)
    return reason(cause if isinstance(cause, Exception) else error)[:400]


class PartedRun(Run):
    """A run whose parts are computed elsewhere, in any order; otherwise as one that is not."""

    def __init__(
        self,
        images: ImageDataset,
        stages: list[Stage],
        ledger: Ledger,
        options: RunOptions,
        meter: Meter,
        *,
        job: Job,
        submit: Submit,
        processors: int | None = None,
    ) -> None:
        super().__init__(images, stages, ledger, options, meter)
        if images.in_memory:
            raise DatasetError(
                "images in memory cannot be computed elsewhere (on=...): give files, or an archive "
                "that all hosts see"
            )
        self._job, self._submit, self._processors = _absolute(job), submit, processors
        self._run = os.urandom(8).hex()

    def _compute(self, rows: NDArray[np.intp], done: int, progress: Progress | None) -> None:
        """Have rows computed, and enter what became of them."""
        layout = self._job.layout
        assert layout is not None
        mark = _mark(layout, self._run)
        with writing(mark):
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()
        self.meter.begin_images()
        try:
            with closing(completed(self._submit, compute_part, self._parts(rows))) as parts:
                while True:
                    with self.meter.timing("model"):
                        part = next(parts, None)
                    if part is None:
                        break
                    numbers, future = part
                    self._enter(future, numbers)
                    done += len(numbers)
                    if progress:
                        progress(done, len(self._images), self._failed)
        finally:
            with suppress(OSError):
                mark.unlink()
            for stage in self.stages:
                if isinstance(stage.store, FeatureSpace):
                    stage.store.refresh()

    def _parts(self, rows: NDArray[np.intp]) -> Iterator[tuple[NDArray[np.intp], Part]]:
        size = int(np.clip(-(-len(rows) // _PARTS), _LEAST_ROWS, _MOST_ROWS))
        isolate = self._options.isolate or False
        options = replace(self._options, on_error="skip", max_failures=None, isolate=isolate)
        for start in range(0, len(rows), size):
            chosen = rows[start : start + size]
            yield (
                chosen,
                Part(
                    job=self._job,
                    images=self._images.detached(chosen),
                    run=self._run,
                    options=options,
                    processors=self._processors,
                    featx=version("featx"),
                ),
            )

    def _enter(self, future: Future[PartLedger], rows: NDArray[np.intp]) -> None:
        try:
            result = future.result()
        # Whatever an engine raises for a part, the rows of the others are there.
        except Exception as error:
            text = f"{NOT_COMPUTED}: {why_not_computed(error)}"[:400]
            for row in rows.tolist():
                self._fail(row, text)
            return
        ledger = self._ledger
        ledger.key[rows], ledger.status[rows] = result.key, result.status
        for row, status, why in zip(
            rows.tolist(), result.status.tolist(), result.reason, strict=True
        ):
            if status == FAILED:
                self._fail(row, why)
            else:
                ledger.reason[row] = ""
        for stage, computed in zip(self.stages, result.computed, strict=True):
            stage.computed += computed
            stage.computed_by.update(result.engines)
        self.meter.join(result.meter)
        self.dark.join(result.dark, rows.tolist())


def _absolute(job: Job) -> Job:
    """Return a job that means the same in another folder and on another host."""
    assert job.layout is not None
    parts = tuple(
        (spec, replace(network, source=network.source.absolute())) for spec, network in job.parts
    )
    layout = CacheLayout(job.layout.root.absolute())
    return replace(job, parts=parts, layout=layout, data="", named=None)
