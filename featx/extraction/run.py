"""`extract`: the features of a dataset, from the cache where it has them."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress

import numpy as np

from featx.cache.features import Features
from featx.cache.manifest import Manifest
from featx.cache.space import FeatureSpace
from featx.exceptions import CacheError, DatasetError
from featx.extraction.job import Request, WeightsChoice
from featx.extraction.pipeline import Ledger, Run, RunOptions, Stage
from featx.extraction.progress import Meter, Progress, terminal_progress
from featx.extraction.record import DatasetRecord, FeaturesGone
from featx.extraction.report import missing_files, run_report
from featx.images.labels import SplitNames
from featx.spec import ImagePolicy, Precision, StorageDtype, ViewPolicy

_ATTEMPTS = 5


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
    precision: Precision = "f32",
    splits: SplitNames = None,
    root: str | os.PathLike[str] | None = None,
    multilabel: bool = False,
    on_error: str = "skip",
    max_failures: int | None = None,
    workers: int | None = None,
    isolate: bool | None = None,
    progress: bool | Progress = False,
) -> Features:
    """Return the features of a dataset, computing those that the cache does not have.

    Parameters
    ----------
    data : ImageDataset, path, list of paths, or str
        The inputs: anything that `ImageDataset.from_any` takes, or the name of a dataset that was
        extracted before, whose images need not be there any more.
    backbone : str or sequence of str, optional
        Names of the catalogue, ``file:PATH.keras``, ``savedmodel:FOLDER`` or ``hub:FOLDER``;
        ``"tiny"`` by default, for a dataset of imported features theirs. Several share one
        decoding of each image.
    weights : str, path or mapping, optional
        For all backbones, or one by backbone: ``"imagenet"``, ``"bundled"``, ``"random:SEED"`` or a
        path. See `featx.backbones.weights.resolve_weights`.
    taps : str or sequence of str, optional
        Where in the network, ``"avg"`` by default. See `featx.backbones.taps.parse_tap`.
    input_size : int or tuple of two int, optional
        Height and width in pixels; by default each backbone's own.
    preprocessing : str, optional
        Only for backbones of one's own, see `featx.backbones.source.resolve_backbone`.
    trust : bool, default False
        Needed for ``savedmodel:`` backbones, whose graph may do anything.
    image : ImagePolicy, optional
        Decoding and resizing; bilinear stretching by default.
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
    precision : {"f32", "mixed"}, default "f32"
        Arithmetic of the forward pass; ``mixed`` is half precision with Keras, with slightly other
        features that have a space of their own. It is meant for GPUs and was tested on a CPU only.
    splits : mapping of str to str, "none" or None, default None
        What names of splits mean, such as ``{"pilot": "test"}``, beside the usual names of train,
        val and test; ``"none"``: no folder is a split.
    root : path, optional
        Folder that relative paths of a table start from, by default the table's.
    multilabel : bool, default False
        Whether the columns of a table have to be labels, see `ImageDataset.from_csv`.
    on_error : {"skip", "raise"}, default "skip"
        Whether the first image that cannot be read ends the run.
    max_failures : int, optional
        End the run when more images than this cannot be read.
    workers : int, optional
        Number of threads or processes that read and decode, by default one a core.
    isolate : bool, optional
        Whether images are decoded in processes of their own, which survives a decoder that crashes;
        by default where there are many. See `featx.images.loader.load_images`.
    progress : bool or callable, default False
        True draws a bar where standard error is a terminal; a callable gets the numbers of images
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
        splits=splits,
        root=root,
        multilabel=multilabel,
    ).settle(data)
    stages = job.open()
    features = job.complete(stages)
    if features is not None:
        job.remember_origins()
        features.report = run_report(features, time.perf_counter() - started)
        return features
    record, meter = DatasetRecord(job, name), Meter()
    options = RunOptions(on_error, max_failures, workers, isolate)
    run = Run(record.images, stages, record.ledger, options, meter)
    features = job.features(_finish(run, record, progress), stages)
    job.remember_origins()
    if not len(features):
        raise _nothing_readable(features)
    seconds = time.perf_counter() - started
    features.report = run_report(features, seconds, record.images, stages, meter)
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
        if isinstance(stage.store, FeatureSpace) and stage.store.shards:
            stage.store.write_spec()
    return manifest


def _until_kept(run: Run, record: DatasetRecord, show: Progress | None) -> Manifest:
    """Run and write the manifest; run again for what others removed meanwhile."""
    for _ in range(_ATTEMPTS):
        run.work(show, record.trusted)
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
