"""`extract`: the features of a dataset, from the cache where it has them."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from featx.backbones.source import BackboneSource, resolve_backbone
from featx.backbones.taps import parse_taps
from featx.cache.features import Features
from featx.cache.layout import CacheLayout
from featx.cache.space import FeatureSpace, ShardWriter
from featx.exceptions import BackboneError, DatasetError
from featx.images.dataset import ImageDataset
from featx.progress import terminal_progress
from featx.record import DatasetRecord, find_earlier
from featx.runner import Progress, Stage, run
from featx.spec import ImagePolicy, StorageDtype

__all__ = ["extract"]

WeightsChoice = str | os.PathLike[str] | Mapping[str, str | os.PathLike[str]] | None


def extract(
    data: Any,
    *,
    backbone: str | Sequence[str] = "tiny",
    weights: WeightsChoice = None,
    taps: str | Sequence[str] | None = None,
    input_size: int | tuple[int, int] | None = None,
    preprocessing: str | None = None,
    image: ImagePolicy | None = None,
    cache: str | os.PathLike[str] | None = None,
    name: str | None = None,
    engine: str = "auto",
    batch_size: int | str = "auto",
    dtype: StorageDtype = "float32",
    on_error: str = "skip",
    max_failures: int | None = None,
    workers: int | None = None,
    progress: bool | Progress = False,
) -> Features:
    """Return the features of a dataset, computing those that the cache does not have.

    Parameters
    ----------
    data : ImageDataset, path, or list of paths
        The inputs; anything that `ImageDataset.from_any` takes.
    backbone : str or sequence of str, default "tiny"
        Names of the catalogue, or ``file:PATH.keras``. Several share one decoding of each image.
    weights : str, path or mapping, optional
        For all backbones, or one by backbone: ``"imagenet"``, ``"bundled"``, ``"random:SEED"`` or a
        path. See `featx.backbones.weights.resolve_weights`.
    taps : str or sequence of str, optional
        Where in the network, ``"avg"`` by default. See `featx.backbones.taps.parse_tap`.
    input_size : int or tuple of two int, optional
        Height and width in pixels; by default each backbone's own.
    preprocessing : str, optional
        Only for ``file:`` backbones.
    image : ImagePolicy, optional
        Decoding and resizing; bilinear stretching by default.
    cache : path, optional
        The cache folder: by default ``FEATX_CACHE``, else ``cache``.
    name : str, optional
        Name of the dataset in the cache, by default that of its folder or file.
    engine : str, default "auto"
        Key of `featx.engines.select.ENGINES`.
    batch_size : int or "auto", default "auto"
        Number of images in a batch.
    dtype : {"float32", "float16"}, default "float32"
        Type in which features are stored.
    on_error : {"skip", "raise"}, default "skip"
        Whether the first image that cannot be read ends the run.
    max_failures : int, optional
        End the run when more images than this cannot be read.
    workers : int, optional
        Number of threads that read and decode, by default one a core.
    progress : bool or callable, default False
        True draws a bar where standard error is a terminal; a callable gets the numbers of images
        done, in all, and failed.

    Returns
    -------
    Features
        With the blocks asked for. ``report`` holds what was counted.

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

    Examples
    --------
    >>> feats = extract("photos/", backbone="tiny")  # doctest: +SKIP
    >>> feats.report["extracted"], feats.X.shape  # doctest: +SKIP
    (245, (245, 1280))
    """
    started = time.perf_counter()
    dataset = data if isinstance(data, ImageDataset) else ImageDataset.from_any(data)
    sources = resolve_backbones(
        backbone, weights=weights, input_size=input_size, preprocessing=preprocessing
    )
    tap_names = parse_taps(taps)
    layout = CacheLayout.at(cache)
    stages = [
        disk_stage(
            layout,
            source,
            tap_names,
            image=image,
            dtype=dtype,
            engine=engine,
            batch_size=batch_size,
        )
        for source in sources
    ]
    dataset_name, earlier = find_earlier(layout, dataset, name)
    record = DatasetRecord(layout, dataset, dataset_name, stages, earlier)
    try:
        with terminal_progress(progress, dataset_name) as show:
            run(
                dataset,
                stages,
                record.ledger,
                trusted=record.trusted,
                on_error=on_error,
                max_failures=max_failures,
                workers=workers,
                progress=show,
            )
    finally:
        # Also after Ctrl-C: what was read need not be read again.
        manifest = record.save()
    report = record.report(time.perf_counter() - started)
    blocks = tuple(record.blocks())
    stores = [stage.store for stage in stages for _ in stage.taps]
    features = Features(replace(manifest, blocks=blocks), stores, report=report)
    if not len(features):
        raise _nothing_readable(features)
    return features


def disk_stage(
    layout: CacheLayout,
    source: BackboneSource,
    taps: tuple[str, ...],
    *,
    image: ImagePolicy | None = None,
    dtype: StorageDtype = "float32",
    engine: str = "auto",
    batch_size: int | str = "auto",
) -> Stage:
    """Return the stage that keeps a backbone's features in a cache folder."""
    spec = source.spec(image=image, dtype=dtype)
    space = FeatureSpace(layout, spec)
    return Stage(
        source=source,
        spec=spec,
        taps=taps,
        store=space,
        open_sink=lambda made: ShardWriter(space, made.provenance()),
        engine_name=engine,
        batch_size=_batch_size(batch_size),
    )


def _batch_size(value: int | str) -> int | None:
    if value == "auto":
        return None
    if isinstance(value, int) and value > 0:
        return value
    raise BackboneError(f"batch_size must be 'auto' or a positive number, received {value!r}")


def resolve_backbones(
    backbone: str | Sequence[str],
    *,
    weights: WeightsChoice = None,
    input_size: int | tuple[int, int] | None = None,
    preprocessing: str | None = None,
) -> list[BackboneSource]:
    """Settle one or several backbones; see `extract` for the parameters."""
    names = [backbone] if isinstance(backbone, str) else list(dict.fromkeys(backbone))
    if not names:
        raise BackboneError("expected at least one backbone, received none")
    by_name = weights if isinstance(weights, Mapping) else dict.fromkeys(names, weights)
    unknown = set(by_name) - set(names)
    if unknown:
        raise BackboneError(
            f"weights are given for {', '.join(sorted(unknown))}, the backbones are "
            f"{', '.join(names)}"
        )
    return [
        resolve_backbone(
            name, weights=by_name.get(name), input_size=input_size, preprocessing=preprocessing
        )
        for name in names
    ]


def _nothing_readable(features: Features) -> DatasetError:
    shown = "".join(f"\n  {path}: {reason}" for path, reason in features.failed[:5])
    return DatasetError(
        f"none of the {len(features.manifest)} images of {features.name!r} could be read:{shown}"
    )
