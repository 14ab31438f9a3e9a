"""`extract`: the features of a dataset, from the cache where it has them; and what that costs."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.cache.features import Features
from featx.cache.layout import CacheLayout
from featx.cache.manifest import FAILED, Manifest
from featx.cache.space import FeatureSpace
from featx.exceptions import CacheError, DatasetError
from featx.extraction.agreement import agreements
from featx.extraction.executors import Where
from featx.extraction.job import Request, WeightsChoice, find_named
from featx.extraction.parts import PartedRun
from featx.extraction.pipeline import Ledger, Run, RunOptions, Stage
from featx.extraction.progress import Meter, Progress, terminal_progress
from featx.extraction.record import DatasetRecord, FeaturesGone
from featx.extraction.report import doubts, engine_names, missing_files, run_report
from featx.files.identity import Keys
from featx.images.dataset import ImageDataset
from featx.images.labels import SplitNames
from featx.images.reading import Reading, ReadingOptions
from featx.spec import INT8, ImagePolicy, StorageDtype, ViewPolicy
from featx.terminal import visible

_LOG = logging.getLogger("featx")
_ATTEMPTS = 5
_WARM_UP = 8
_MEASURE_S = 3.0
_MOST_MEASURED = 256
# Of a shard beside its features: the key and its digest's share, rounded up.
_KEY_BYTES = 40


def extract(
    data: object,
    *,
    backbone: str | Sequence[str] | None = None,
    weights: WeightsChoice = None,
    taps: str | Sequence[str] | None = None,
    input_size: int | tuple[int, int] | None = None,
    preprocessing: str | None = None,
    trust: bool = False,
    image: ImagePolicy | None = None,
    views: int = 0,
    view_policy: str | ViewPolicy | None = None,
    cache: str | os.PathLike[str] | None = None,
    name: str | None = None,
    engine: str = "auto",
    batch_size: int | str = "auto",
    dtype: StorageDtype = "float32",
    precision: str = "f32",
    splits: SplitNames = None,
    root: str | os.PathLike[str] | None = None,
    multilabel: bool = False,
    target_columns: Sequence[str] = (),
    path_column: str | None = None,
    label_column: str | None = None,
    split_column: str | None = None,
    group_column: str | None = None,
    follow_urls: bool = False,
    on_error: str = "skip",
    max_failures: int | None = None,
    workers: int | None = None,
    isolate: bool | None = None,
    on: str | Executor | None = None,
    task_cpus: int = 1,
    task_gpus: float = 0,
    shard: tuple[int, int] | None = None,
    progress: bool | Progress = False,
) -> Features:
    """Return the features of a dataset, computing those that the cache does not have.

    Parameters
    ----------
    data : ImageDataset, path, list of paths, or str
        The inputs: anything that `ImageDataset.from_any` takes, or the name of a dataset that was
        extracted before, whose images need not be there any more.
    backbone : str or sequence of str, optional
        Names of the catalogue, ``file:PATH.keras``, ``onnx:PATH.onnx``, ``savedmodel:FOLDER`` or
        ``hub:FOLDER``; ``"tiny"`` by default, for a dataset of imported features theirs. Several
        share one decoding of each image.
    weights : str, path or mapping, optional
        For all backbones, or one by backbone: ``"imagenet"``, ``"bundled"``, ``"random:SEED"`` or a
        path. See `featx.backbones.weights.resolve_weights`.
    taps : str, sequence of str or mapping, optional
        Where in the network, ``"avg"`` by default; for all backbones, or by backbone. See
        `featx.backbones.taps.parse_tap`.
    input_size : int, tuple of two int or mapping, optional
        Height and width in pixels; by default each backbone's own. For all, or by backbone.
    preprocessing : str or mapping, optional
        Only for backbones of one's own, see `featx.backbones.source.resolve_backbone`. For all, or
        by backbone.
    trust : bool, default False
        Needed for ``savedmodel:`` backbones, whose graph may do anything.
    image : ImagePolicy, optional
        Decoding and resizing; bilinear stretching by default. Its ``window`` is for images of more
        than 8 bits.
    views : int, default 0
        Number of seeded augmentations of each image that are computed beside the image itself, for
        `Features.augmented` and for averaging at test time.
    view_policy : str or ViewPolicy, optional
        How they are drawn: a name such as ``"flip-crop-colour-1"``, the default, or with a seed.
    cache : path, optional
        The cache folder: by default ``FEATX_CACHE``, else ``cache``.
    name : str, optional
        Name of the dataset in the cache, by default that of its folder or file.
    engine : str, default "auto"
        Key of `featx.engines.choice.ENGINES`.
    batch_size : int or "auto", default "auto"
        Number of images in a batch.
    dtype : {"float32", "float16"}, default "float32"
        Type in which features are stored.
    precision : {"f32", "fast", "int8", "bf16", "f16", "mixed"}, default "f32"
        Arithmetic of the forward pass. ``fast`` is the half precision of the machine: ``bf16`` or
        ``f16`` on processors that have it, ``mixed`` (that of Keras) on a GPU, else ``f32``.
        ``int8`` quantises the network with NNCF, calibrated on images of `data`; the network is
        kept for later runs, and predictions elsewhere compute in ``f32``. Each has features of
        its own. ``report["agreement"]`` says how far they are from those in ``f32`` on 100 of the
        images; it is also logged.
    splits : mapping of str to str, "none" or None, default None
        What names of splits mean, such as ``{"pilot": "test"}``, beside the usual names of train,
        val and test; ``"none"``: no folder is a split.
    root : path, optional
        Folder that relative paths of a table start from, by default the table's.
    multilabel : bool, default False
        Whether the columns of a table have to be labels, see `ImageDataset.from_csv`.
    target_columns : sequence of str, default ()
        Columns of numbers for a regression, see `ImageDataset.from_csv`.
    path_column, label_column, split_column, group_column : str, optional
        Names of the columns of a table, see `ImageDataset.from_csv`.
    follow_urls : bool, default False
        Whether images are read whose path in a table or a list is an address.
    on_error : {"skip", "raise"}, default "skip"
        Whether the first image that cannot be read ends the run.
    max_failures : int, optional
        End the run when more images than this cannot be read.
    workers : int, optional
        Number of threads or processes that read and decode, by default one a core.
    isolate : bool, optional
        Whether images are decoded in processes of their own, which survives a decoder that crashes;
        by default where there are many. See `featx.images.loader.load_images`.
    on : {"ray", "dask", "dask=ADDRESS"} or concurrent.futures.Executor, optional
        Where images are read and features computed: by default in this process. ``"ray"`` is the
        cluster of ``RAY_ADDRESS``, else one on this machine; ``"dask"`` one on this machine. All
        hosts have to see the cache, the images and the weights under the same paths. Extras:
        ``ray``, ``dask``.
    task_cpus, task_gpus : int and float, default 1 and 0
        Processors and GPUs of one task, with `on`.
    shard : tuple of two int, optional
        ``(i, n)``: compute the i-th of n shares of the images, counted from 1. Which share an image
        is in depends on its path alone. When all are there, the dataset is whole.
    progress : bool or callable, default False
        True draws a bar, in a terminal or in a notebook; a callable gets the numbers of images
        done, in all, and failed.

    Returns
    -------
    Features
        With the blocks asked for. ``report`` holds what was counted, and the seconds of each part.

    Raises
    ------
    DatasetError
        If there is nothing to read, or nothing could be read.
    UnknownNameError, WeightsError, BackboneError
        If a backbone cannot be built.
    CacheError
        If the cache cannot be written, or a manifest or specification in it is damaged.
    ImageError
        With ``on_error="raise"``.
    EngineError
        If the forward pass fails.
    KeyboardInterrupt
        When interrupted, after what was computed has been written; its text says what is kept.

    Examples
    --------
    >>> feats = extract("photos/", backbone="tiny")  # doctest: +SKIP
    >>> feats.report["extracted"], feats.X.shape  # doctest: +SKIP
    (245, (245, 1280))
    """
    started = time.perf_counter()
    job = Request(
        backbone=backbone,
        weights=weights,
        taps=taps,
        input_size=input_size,
        preprocessing=preprocessing,
        trust=trust,
        image=image,
        views=views,
        view_policy=view_policy,
        cache=cache,
        engine=engine,
        batch_size=batch_size,
        dtype=dtype,
        precision=precision,
        reading=Reading(
            splits=splits,
            root=root,
            multilabel=multilabel,
            target_columns=target_columns,
            path_column=path_column,
            label_column=label_column,
            split_column=split_column,
            group_column=group_column,
            follow_urls=follow_urls,
        ),
    ).settle(data)
    calibrated = time.perf_counter()
    stages = job.open()
    features = job.complete(stages)
    if features is not None:
        job.remember_origins()
        features.report = run_report(features, time.perf_counter() - started)
        return features
    where = None if on is None else Where(on=on, cpus=task_cpus, gpus=task_gpus)
    record, meter = DatasetRecord(job, name, shard), Meter()
    options = RunOptions(on_error, max_failures, workers, isolate)
    with ExitStack() as stack:
        arguments = (record.images, stages, record.ledger, options, meter)
        run = Run(*arguments)
        if where is not None:
            submit = stack.enter_context(where.open())
            run = PartedRun(*arguments, job=job, submit=submit, processors=task_cpus)
        features = job.features(_finish(run, record, progress), stages)
    job.remember_origins()
    if not len(features) and (shard is None or features.failed):
        raise _nothing_readable(features)
    extracted = time.perf_counter()
    agreement = agreements(job, record.images, record.ledger, stages)
    ended = time.perf_counter()
    notes = run.dark.notes()
    features.report = run_report(features, ended - started, record.images, stages, meter, notes)
    if agreement:
        features.report |= {"agreement": agreement, "compare_s": round(ended - extracted, 3)}
    if precision == INT8:
        features.report["calibrate_s"] = round(calibrated - started, 3)
    return features


def as_features(
    data: object,
    reading: ReadingOptions | Mapping[str, Any] | None = None,
    *,
    stored: bool = False,
    **options: Any,
) -> Features:
    """Return features as they are, else those of data, with a warning of what is doubtful in them.

    `options` are those of `extract`. With `stored`, the name of a dataset stands for all features
    that the cache has of it, unless a backbone or a tap is named.
    """
    how = Reading(**(reading or {}))
    if isinstance(data, Features):
        how.check_used("features", "features")
        return data
    named = options.get("backbone") is not None or options.get("taps") is not None
    cache = options.get("cache")
    if stored and not named and (known := find_named(CacheLayout.at(cache), data)) is not None:
        how.check_used("features", repr(known.name))
        return Features.open(known.name, cache=cache)
    features = extract(data, **{**how.options, **options})
    for doubt in doubts(features.report):
        _LOG.warning("%s: %s", features.name, doubt)
    return features


def _finish(run: Run, record: DatasetRecord, progress: bool | Progress) -> Manifest:
    """Compute what is missing, write the manifest and return it; keep what is done on errors."""
    stages = run.stages
    if not record.covered():
        for stage in stages:
            stage.reuse(record.ledger.key[record.trusted])
    try:
        with terminal_progress(progress, record.name, run.meter) as show:
            manifest = _until_kept(run, record, show)
        run.meter.stop()
    except BaseException as error:
        # What was read need not be read again; what went wrong first is what is reported.
        with suppress(Exception):
            record.save(stages, complete=False)
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(_progress_made(stages, record.ledger)) from error
        raise
    for stage in stages:
        if isinstance(stage.store, FeatureSpace) and stage.store.taps:
            stage.store.write_spec()
            stage.store.write_index()
    return manifest


def _until_kept(run: Run, record: DatasetRecord, show: Progress | None) -> Manifest:
    """Run and write the manifest; run again for what others removed meanwhile."""
    for _ in range(_ATTEMPTS):
        run.work(show, record.trusted, record.wanted)
        with suppress(FeaturesGone):
            return record.save(run.stages)
    raise CacheError(
        f"features of {record.name!r} were removed {_ATTEMPTS} times while they were extracted: "
        "run this again when nobody cleans the cache (`featx cache gc --older-than 0`)"
    )


def _progress_made(stages: Sequence[Stage], ledger: Ledger) -> str:
    reached = ledger.key[ledger.key.any(axis=1)]
    done = np.ones(len(reached), np.bool_)
    for stage in stages:
        done &= ~stage.missing(reached)
    return f"{int(done.sum()):,} of {len(ledger.key):,} images have their features in the cache"


def _nothing_readable(features: Features) -> DatasetError:
    shown = "; ".join(f"{path[-80:]}: {reason[:100]}" for path, reason in features.failed[:3])
    where = missing_files(features.manifest)
    return DatasetError(
        f"none of the {len(features.manifest)} images of {features.name!r} could be read: {shown}"
        + (f"; {where}" if where else "")
    )


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
    job = Request(reading=Reading.taken(options), **options).settle(data)
    stages = job.open()
    complete = job.complete(stages)
    if complete is not None:
        images = len(complete.manifest)
        return ExtractionPlan(dataset=complete.name, images=images, cached=images)
    record = DatasetRecord(job, name)
    record.close()  # nothing is to be written
    lacking = ~record.trusted | _lacking(stages, record.ledger.key)
    plan = ExtractionPlan(dataset=record.name, images=len(lacking), cached=int((~lacking).sum()))
    rows = np.flatnonzero(lacking)
    if not len(rows):
        return plan
    assert job.layout is not None
    sample = replace(job, layout=None).open()
    sampled, meters = _measure(
        record.images, rows, sample, RunOptions(workers=workers, isolate=isolate)
    )
    readable = np.concatenate([ledger.status != FAILED for ledger in sampled])
    keys = np.concatenate([ledger.key for ledger in sampled])
    share = float((readable & _lacking(stages, keys)).mean())
    to_extract, key = round(share * len(rows)), keys[readable][:1]
    vectors = [s.store.gather(tap, key) for s in sample for tap in s.taps if len(key)]
    start_s, images_per_s = (
        meters[0].seconds["start_s"],
        len(sampled[-1].status) / meters[-1].span_s,
    )
    return replace(
        plan,
        to_extract=to_extract,
        measured=len(keys),
        start_s=start_s,
        seconds=round(start_s + len(rows) * share / images_per_s, 1),
        images_per_s=round(images_per_s, 1),
        bytes=to_extract * (_KEY_BYTES + sum(vector.nbytes for vector in vectors)),
        free_bytes=job.layout.free_bytes(),
        engine=engine_names(sample),
        binds=meters[-1].binds,
    )


def _lacking(stages: Sequence[Stage], keys: Keys) -> NDArray[np.bool_]:
    """Return which keys of shape (n, 32) some stage has to compute."""
    lacking: NDArray[np.bool_] = np.any([stage.missing(keys) for stage in stages], axis=0)
    return lacking


def _measure(
    images: ImageDataset, rows: NDArray[np.intp], stages: Sequence[Stage], options: RunOptions
) -> tuple[list[Ledger], list[Meter]]:
    """Return what became of some of the rows, and what was measured, in one or two runs."""
    order = np.random.default_rng(0).permutation(rows)
    ledgers: list[Ledger] = []
    meters: list[Meter] = []
    start, stop = 0, min(_WARM_UP, len(order))
    while start < stop and len(meters) < 2:
        meter, ledger = Meter(), Ledger.blank(stop - start)
        Run(images.subset(order[start:stop]), stages, ledger, options, meter).work()
        meter.stop()
        ledgers.append(ledger)
        meters.append(meter)
        count = np.clip(_MEASURE_S * stop / meter.span_s, _WARM_UP, _MOST_MEASURED)
        start, stop = stop, min(stop + int(count), len(order))
    return ledgers, meters


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
