"""The network to be trained, and what it takes: cached activations or pixels."""

from __future__ import annotations

import logging
import math
import os
from typing import Any

import numpy as np

from featx.cache.features import Features
from featx.cache.layout import CacheLayout
from featx.exceptions import DatasetError
from featx.exporting.samples import find_images
from featx.extraction.job import with_views
from featx.extraction.run import extract
from featx.finetuning.inputs import CachedActivations, Inputs, Pixels
from featx.finetuning.network import TunedNetwork, build_tuned, trainable_steps
from featx.finetuning.options import FineTuneOptions
from featx.finetuning.start import Start

_LOG = logging.getLogger("featx")
_SHARE_OF_DISK = 0.5


def prepare_material(
    start: Start,
    data: Any,
    options: FineTuneOptions,
    *,
    cache: str | os.PathLike[str] | None,
    engine: str,
    view_policy: Any,
    progress: Any,
) -> tuple[TunedNetwork, Inputs]:
    """Build the network, and bring what it takes into the cache."""
    network = network_for(start, options, cache=cache)
    if network.from_pixels:
        plain = start.source.spec(image=start.model.image)
        specs = with_views(plain, options.views, view_policy)
        return network, Pixels(_images(start.features, data, cache), specs)
    taps = [f"{layer}:flatten" for layer in network.cut.layers]
    activations = extract(
        data,
        **start.model.choice.arguments(),
        image=start.model.image,
        taps=taps,
        views=options.views,
        view_policy=view_policy,
        cache=cache,
        engine=engine,
        progress=bool(progress),
    )
    if not np.array_equal(activations.keys, start.features.keys):
        raise DatasetError(
            f"the images of {start.features.name!r} changed while they were read: call it again"
        )
    shapes = [tuple(int(side) for side in t.shape[1:]) for t in network.cut.tensors]
    return network, CachedActivations(activations, start.source.name, taps, shapes)


def network_for(
    start: Start, options: FineTuneOptions, *, cache: str | os.PathLike[str] | None
) -> TunedNetwork:
    """Build the network that options ask for; errors are those of `build_tuned`."""
    network = _built(start, options, from_pixels=options.cut == "pixels")
    if network.from_pixels or options.cut != "auto":
        return network
    needed = activation_bytes(network, start, options)
    free = CacheLayout.at(cache).free_bytes()
    if needed <= _SHARE_OF_DISK * free:
        return network
    _LOG.warning(
        "the activations at the cut take %.1f GB, more than half of the %.1f GB that are "
        "free: the frozen part is run in every step instead",
        needed / 1e9,
        free / 1e9,
    )
    return _built(start, options, from_pixels=True)


def _built(start: Start, options: FineTuneOptions, *, from_pixels: bool) -> TunedNetwork:
    return build_tuned(
        start.source,
        start.tap,
        trainable_steps(start.head),
        options.unfreeze,
        from_pixels=from_pixels,
        train_batchnorm=options.train_batchnorm,
        # Not float16, whose range would ask for scaled losses.
        mixed="bfloat16" if options.mixed else None,
    )


def activation_bytes(network: TunedNetwork, start: Start, options: FineTuneOptions) -> int:
    """Return what the activations at the cut of all images and views take in the cache."""
    each: int = sum(math.prod(tensor.shape[1:]) * 4 for tensor in network.cut.tensors)
    return each * len(start.features) * (1 + options.views)


def _images(features: Features, data: Any, cache: Any) -> Any:
    """Return the images of the rows of features, in their order."""
    images = find_images(data, cache)
    place = {path: row for row, path in enumerate(images.paths)}
    return images.subset([place[path] for path in features.paths])
