"""What a backbone costs a prediction: milliseconds an image, bytes of weights."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from featx.backbones.catalog import CATALOG
from featx.backbones.source import resolve_backbone
from featx.backbones.weights import find_weights_file
from featx.cache.features import Features
from featx.cache.layout import CacheLayout
from featx.cache.manifest import Block
from featx.engines.select import make_engine
from featx.exceptions import FeatxError
from featx.extraction.job import engines_folder
from featx.models.image_features import trained_preprocessing

_BATCH = 32
_MEASURE_S = 0.5


def backbone_cost(
    features: Features,
    block: Block,
    name: str,
    *,
    weights: Any = None,
    preprocessing: str | None = None,
    trust: bool = False,
    engine: str = "auto",
    cache: str | os.PathLike[str] | None = None,
) -> tuple[float | None, int | None, float]:
    """Measure the forward pass of a block's backbone on random pixels.

    Parameters
    ----------
    features : Features
        That the block is of.
    block : Block
        Which.
    name : str
        The backbone as the user named it.
    weights, preprocessing, trust, engine, cache
        As `featx.extract`.

    Returns
    -------
    ms : float or None
        Milliseconds an image, without reading and decoding; None where the network is not here.
    bytes : int or None
        Of its weights as float32.
    cost : float
        Parameters times pixels of the input: about proportional to the arithmetic of a
        convolutional network, and the same on every machine.
    """
    spec = features.spec(backbone=block.backbone, tap=block.tap)
    height, width = spec.input_size_px
    row = CATALOG.get(block.backbone)
    size = None if row is None else int(row.parameters * 4)
    cost = 0.0 if size is None else size / 4 * height * width
    if block.backbone.startswith("import:"):
        return None, None, 0.0
    if row is not None and weights is None and find_weights_file(row) is None:
        return None, size, cost  # a timing is not worth a download
    try:
        source = resolve_backbone(
            name,
            weights=weights,
            input_size=spec.input_size_px,
            preprocessing=preprocessing or trained_preprocessing(name, spec),
            trust=trust,
        )
        if source.weights.sha256 != spec.weights_sha256:
            return None, size, cost
        if size is None and source.weights.path is not None:
            size = _bytes(source.weights.path)
            cost = size / 4 * height * width
        layout = None if cache is None else CacheLayout.at(cache)
        folder = engines_folder(layout, writing=False)
        network = make_engine(engine, source, (block.tap,), folder=folder)
    except (FeatxError, OSError):
        return None, size, cost
    return _milliseconds(network, (height, width)), size, cost


def _bytes(path: Path) -> int:
    files = [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]
    return sum(file.stat().st_size for file in files)


def _milliseconds(network: Any, size_px: tuple[int, int]) -> float:
    pixels = np.random.default_rng(0).integers(0, 256, (_BATCH, *size_px, 3), dtype=np.uint8)
    network.run(pixels)
    timings: list[float] = []
    begun = time.perf_counter()
    while not timings or time.perf_counter() - begun < _MEASURE_S:
        started = time.perf_counter()
        network.run(pixels)
        timings.append(time.perf_counter() - started)
    return min(timings) * 1000 / _BATCH
