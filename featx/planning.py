"""`plan_extraction`: what an extraction would cost, from a short measurement."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.cache.manifest import FAILED
from featx.extraction import find_complete, open_record
from featx.images.dataset import ImageDataset
from featx.job import ExtractionJob, prepare
from featx.memory_store import MemoryStore
from featx.meter import Meter
from featx.pipeline import Stage
from featx.runner import Ledger, run
from featx.terminal import visible

_WARM_UP = 8
_MEASURE_S = 3.0
_MOST_MEASURED = 256
# Of a shard beside its features: the key and its digest's share, rounded up.
_KEY_BYTES = 40


@dataclass(frozen=True, kw_only=True, slots=True)
class ExtractionPlan:
    """What an extraction would cost.

    Parameters
    ----------
    dataset : str
        Name of the dataset.
    images : int
        Inputs in all.
    cached : int
        Of these, how many are known to be in the cache, without reading them.
    to_extract : int
        Of the others, how many are expected to be computed; the rest are expected to be found by
        their content, or to fail.
    measured : int
        Number of images of the measurement.
    start_s : float
        Seconds that the engine took to start.
    seconds : float
        Expected seconds in all.
    images_per_s : float
        Images computed a second.
    bytes : int
        Expected bytes on the disk.
    free_bytes : int
        Bytes that are free where the cache is.
    engine : str
        What would compute.
    binds : str or None
        What the measurement waited for most: read, decode, model or disk.
    """

    dataset: str
    images: int
    cached: int
    to_extract: int = 0
    measured: int = 0
    start_s: float = 0.0
    seconds: float = 0.0
    images_per_s: float = 0.0
    bytes: int = 0
    free_bytes: int = 0
    engine: str = ""
    binds: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON types."""
        return asdict(self)

    def describe(self) -> str:
        """Return the plan as text for a terminal."""
        head = (
            f"{visible(self.dataset)}: {self.images:,} images, {self.cached:,} known to be cached"
        )
        if not self.to_extract:
            return f"{head}, nothing to extract"
        binds = f", {self.binds} binds" if self.binds else ""
        lines = [
            f"{head}, about {self.to_extract:,} to extract",
            f"  time  about {_duration(self.seconds)} at {self.images_per_s:,.1f} images/s "
            f"({self.engine}{binds}; measured on {self.measured} images)",
            f"  disk  about {_size(self.bytes)}, {_size(self.free_bytes)} are free",
        ]
        if self.bytes > self.free_bytes:
            lines.append("  there is not enough room: name another folder with --cache")
        return "\n".join(lines)


def plan_extraction(
    data: Any,
    *,
    name: str | None = None,
    workers: int | None = None,
    isolate: bool | None = None,
    **options: Any,
) -> ExtractionPlan:
    """Say what `featx.extract` would cost, without writing features.

    The files are listed as an extraction would; a few images spread over those that are not known
    to be cached are read, decoded and computed, for about three seconds.

    Parameters
    ----------
    data, name, workers, isolate, **options
        As for `featx.extract`.

    Returns
    -------
    ExtractionPlan

    Raises
    ------
    DatasetError, UnknownNameError, WeightsError, BackboneError, EngineError
        As `featx.extract`.
    """
    job = prepare(data, **options)
    if job.named is not None and find_complete(job) is not None:
        images = len(job.named)
        return ExtractionPlan(dataset=job.named.name, images=images, cached=images)
    dataset, record = open_record(job, data, name)
    record.close()  # nothing is to be written
    ready = record.trusted.copy()
    for stage in job.stages:
        ready[ready] = ~stage.missing(record.ledger.key[ready])
    open_rows = np.flatnonzero(~ready)
    known: dict[str, Any] = {
        "dataset": record.name,
        "images": len(dataset),
        "cached": int(ready.sum()),
    }
    if not len(open_rows):
        return ExtractionPlan(**known)
    sample = _Sample(dataset, open_rows, job, workers, isolate)
    share = sample.to_extract / sample.measured
    to_extract = round(share * len(open_rows))
    return ExtractionPlan(
        **known,
        to_extract=to_extract,
        measured=sample.measured,
        start_s=round(sample.start_s, 3),
        seconds=round(sample.start_s + len(open_rows) * share / sample.rate, 1),
        images_per_s=round(sample.rate, 1),
        bytes=to_extract * sample.row_bytes,
        free_bytes=job.layout.free_bytes(),
        engine=",".join(dict.fromkeys(stage.engine for stage in sample.stages if stage.engine)),
        binds=sample.meter.binds,
    )


class _Sample:
    """A few images, computed and thrown away."""

    def __init__(
        self,
        dataset: ImageDataset,
        rows: NDArray[np.intp],
        job: ExtractionJob,
        workers: int | None,
        isolate: bool | None,
    ) -> None:
        self.stages: list[Stage] = []
        order = np.random.default_rng(0).permutation(rows)
        warm_up = Meter()
        ledgers = [self._run(dataset.subset(order[:_WARM_UP]), job, workers, isolate, warm_up)]
        self.start_s = warm_up.seconds["start_s"]
        per_image = warm_up.span_s / min(_WARM_UP, len(order))
        count = int(np.clip(_MEASURE_S / per_image, _WARM_UP, _MOST_MEASURED))
        self.meter = Meter()
        if len(order) > _WARM_UP:
            chosen = order[_WARM_UP : _WARM_UP + count]
            ledgers.append(self._run(dataset.subset(chosen), job, workers, isolate, self.meter))
        else:  # so few that the first run is all there is
            self.meter = warm_up
        self.meter.stop()
        self.rate = len(ledgers[-1].status) / self.meter.span_s
        self._count(ledgers, job)

    def _count(self, ledgers: list[Ledger], job: ExtractionJob) -> None:
        read = np.concatenate([ledger.status != FAILED for ledger in ledgers])
        keys = np.concatenate([ledger.key for ledger in ledgers])
        lacking = np.zeros(len(read), np.bool_)
        for stage in job.stages:
            lacking |= stage.missing(keys)
        self.measured = len(read)
        self.to_extract = int((lacking & read).sum())
        self.row_bytes = _KEY_BYTES
        last = ledgers[-1]
        readable = last.key[last.status != FAILED][:1]
        if len(readable):
            self.row_bytes += sum(
                stage.store.gather(tap, readable).nbytes
                for stage in self.stages
                for tap in stage.taps
            )

    def _run(
        self,
        dataset: ImageDataset,
        job: ExtractionJob,
        workers: int | None,
        isolate: bool | None,
        meter: Meter,
    ) -> Ledger:
        self.stages = [_in_memory(stage) for stage in job.stages]
        ledger = Ledger.blank(len(dataset))
        run(dataset, self.stages, ledger, workers=workers, isolate=isolate, meter=meter)
        return ledger


def _in_memory(stage: Stage) -> Stage:
    memory = MemoryStore(stage.spec)
    return replace(stage, store=memory, open_sink=lambda _: memory)


def _duration(seconds: float) -> str:
    """Return seconds as a person says them.

    Examples
    --------
    >>> [_duration(s) for s in (4.26, 90, 7_500, 200_000)]
    ['4.3 s', '1 min 30 s', '2 h 5 min', '2 days 7 h']
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} days {hours % 24} h"


def _size(count: int) -> str:
    """Return bytes in the unit that fits.

    Examples
    --------
    >>> [_size(n) for n in (999, 5_120_000, 51_200_000_000)]
    ['999 bytes', '5.1 MB', '51.2 GB']
    """
    if count < 1000:
        return f"{count} bytes"
    amount = count / 1000
    for unit in ("kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:,.1f} {unit}"
        amount /= 1000
    return f"{amount:,.1f} TB"
