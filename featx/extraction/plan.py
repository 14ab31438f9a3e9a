"""`plan_extraction`: what an extraction would cost, from a short measurement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.cache.manifest import FAILED
from featx.extraction.job import Job, Request
from featx.extraction.pipeline import Ledger, Run, RunOptions, Stage
from featx.extraction.progress import Meter
from featx.extraction.record import DatasetRecord
from featx.extraction.report import engine_names
from featx.images.dataset import ImageDataset
from featx.terminal import visible

_WARM_UP = 8
_MEASURE_S = 3.0
_MOST_MEASURED = 256
# Of a shard beside its features: the key and its digest's share, rounded up.
_KEY_BYTES = 40


@dataclass(frozen=True, kw_only=True, slots=True)
class ExtractionPlan:
    """What an extraction would cost."""

    dataset: str
    images: int
    cached: int  # known to be in the cache, without reading them
    to_extract: int = 0  # expected to be computed; others are found by their content, or fail
    measured: int = 0  # images of the measurement
    start_s: float = 0.0  # that the engine took to start
    seconds: float = 0.0  # expected in all
    images_per_s: float = 0.0  # computed
    bytes: int = 0  # expected on the disk
    free_bytes: int = 0  # where the cache is
    engine: str = ""
    binds: str | None = None  # what was waited for most: read, decode, model or disk

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
    data: object,
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
    job = Request(**options).settle(data)
    stages = job.open()
    complete = job.complete(stages)
    if complete is not None:
        images = len(complete.manifest)
        return ExtractionPlan(dataset=complete.name, images=images, cached=images)
    record = DatasetRecord(job, name)
    record.close()  # nothing is to be written
    lacking = ~record.trusted | _lacking(stages, record.ledger.key)
    rows = np.flatnonzero(lacking)
    known: dict[str, Any] = {
        "dataset": record.name,
        "images": len(lacking),
        "cached": int((~lacking).sum()),
    }
    if not len(rows):
        return ExtractionPlan(**known)
    sample = _Sample(replace(job, layout=None), RunOptions(workers=workers, isolate=isolate))
    ledger = sample.measure(record.images, rows)
    readable = ledger.status != FAILED
    share = float((readable & _lacking(stages, ledger.key)).mean())
    to_extract = round(share * len(rows))
    assert job.layout is not None
    return ExtractionPlan(
        **known,
        to_extract=to_extract,
        measured=len(ledger.status),
        start_s=round(sample.start_s, 3),
        seconds=round(sample.start_s + len(rows) * share / sample.rate, 1),
        images_per_s=round(sample.rate, 1),
        bytes=to_extract * sample.row_bytes(ledger.key[readable][:1]),
        free_bytes=job.layout.free_bytes(),
        engine=engine_names(sample.stages),
        binds=sample.meter.binds,
    )


def _lacking(stages: Sequence[Stage], keys: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return which keys of shape (n, 32) some stage has to compute."""
    lacking: NDArray[np.bool_] = np.any([stage.missing(keys) for stage in stages], axis=0)
    return lacking


class _Sample:
    """A few images of a job, computed in memory and thrown away."""

    def __init__(self, job: Job, options: RunOptions) -> None:
        self.stages = job.open()
        self._options = options
        self.meter = Meter()
        self.start_s = self.rate = 0.0

    def measure(self, images: ImageDataset, rows: NDArray[np.intp]) -> Ledger:
        """Measure on some of the rows, and return what became of these."""
        order = np.random.default_rng(0).permutation(rows)
        ledgers = [self._run(images.subset(order[:_WARM_UP]))]
        self.start_s = self.meter.seconds["start_s"]
        per_image = self.meter.span_s / min(_WARM_UP, len(order))
        count = int(np.clip(_MEASURE_S / per_image, _WARM_UP, _MOST_MEASURED))
        if len(order) > _WARM_UP:  # else the first run is all there is
            self.meter = Meter()
            ledgers.append(self._run(images.subset(order[_WARM_UP : _WARM_UP + count])))
        self.meter.stop()
        self.rate = len(ledgers[-1].status) / self.meter.span_s
        return Ledger(
            np.concatenate([ledger.key for ledger in ledgers]),
            np.concatenate([ledger.status for ledger in ledgers]),
            [reason for ledger in ledgers for reason in ledger.reason],
        )

    def _run(self, images: ImageDataset) -> Ledger:
        ledger = Ledger.blank(len(images))
        Run(images, self.stages, ledger, self._options, self.meter).work()
        return ledger

    def row_bytes(self, key: NDArray[np.uint8]) -> int:
        """Return the bytes on the disk of an image whose key (1, 32) was computed, if any was."""
        vectors = [s.store.gather(tap, key) for s in self.stages for tap in s.taps if len(key)]
        return _KEY_BYTES + sum(vector.nbytes for vector in vectors)


def _duration(seconds: float) -> str:
    """Return seconds as a person says them."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} days {hours % 24} h"


def _size(count: int) -> str:
    """Return bytes in the unit that fits."""
    if count < 1000:
        return f"{count} bytes"
    amount = count / 1000
    for unit in ("kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:,.1f} {unit}"
        amount /= 1000
    return f"{amount:,.1f} TB"
