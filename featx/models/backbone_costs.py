"""What a backbone costs a prediction: milliseconds an image, bytes of weights."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np

from featx.backbones.catalog import CATALOG
from featx.backbones.weights import find_weights_file
from featx.cache.features import Features
from featx.cache.layout import CacheLayout
from featx.cache.manifest import Block
from featx.engines.engine import Engine
from featx.exceptions import FeatxError
from featx.extraction.job import engines_folder
from featx.extraction.pipeline import Network
from featx.extraction.sources import BackboneChoice

_BATCH = 32
_MEASURE_S = 0.5


def backbone_cost(
    features: Features,
    block: Block,
    choice: BackboneChoice,
    *,
    engine: str = "auto",
    cache: str | os.PathLike[str] | None = None,
) -> tuple[float | None, int | None, float]:
    """Measure the forward pass of a block's backbone on random pixels."""
    spec = features.spec(backbone=block.backbone, tap=block.tap)
    height, width = spec.input_size_px
    row = CATALOG.get(block.backbone)
    size = None if row is None else int(row.parameters * 4)
    cost = 0.0 if size is None else size / 4 * height * width
    if block.backbone.startswith("import:"):
        return None, None, 0.0
    if row is not None and choice.weights is None and find_weights_file(row) is None:
        return None, size, cost  # a timing is not worth a download
    try:
        source = choice.find(spec.weights_sha256)
        if size is None and source.weights.path is not None:
            size = _bytes(source.weights.path)
            cost = size / 4 * height * width
        layout = None if cache is None else CacheLayout.at(cache)
        folder = engines_folder(layout, writing=False)
        network = Network(source, (block.tap,), engine, folder=folder).open()
    except (FeatxError, OSError):
        return None, size, cost
    return _milliseconds(network, (height, width)), size, cost


def _bytes(path: Path) -> int:
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


def _milliseconds(engine: Engine, size_px: tuple[int, int]) -> float:
    pixels = np.random.default_rng(0).integers(0, 256, (_BATCH, *size_px, 3), dtype=np.uint8)
    engine.run(pixels)
    timings: list[float] = []
    begun = time.perf_counter()
    while not timings or time.perf_counter() - begun < _MEASURE_S:
        started = time.perf_counter()
        engine.run(pixels)
        timings.append(time.perf_counter() - started)
    return min(timings) * 1000 / _BATCH
