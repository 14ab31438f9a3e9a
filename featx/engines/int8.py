"""Networks in 8-bit integers: quantised by NNCF on images of a dataset, kept beside conversions.

What an int8 network computes depends on the images that it was calibrated on. So the precision of
its features is ``int8:`` and the digest of its file, by which it is found again.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from featx.backbones.source import BackboneSource
from featx.engines.engine import Pixels
from featx.engines.openvino import (
    OpenVinoEngine,
    StoredConversion,
    digest_of,
    load_openvino,
    translated,
    without_telemetry,
)
from featx.exceptions import EngineError, MissingExtraError
from featx.quiet import quiet_import
from featx.spec import INT8
from featx.terminal import stage

_FEWEST_IMAGES = 10


def quantise(
    source: BackboneSource, taps: tuple[str, ...], images: Sequence[Pixels], folder: Path
) -> str:
    """Quantise a network on images (h, w, 3), keep it, and return the precision that names it.

    Raises
    ------
    MissingExtraError
        Without NNCF.
    EngineError
        If there are fewer than 10 images, or NNCF cannot quantise the network.
    """
    nncf = _load_nncf()
    if len(images) < _FEWEST_IMAGES:
        raise EngineError(
            f"--precision int8 is calibrated on images of the dataset: expected "
            f"{_FEWEST_IMAGES} that can be read, received {len(images)}; leave --precision out"
        )
    openvino = load_openvino()
    engine = OpenVinoEngine(source, taps, folder=folder)
    with (
        stage(f"quantising {source.name}, once"),
        translated(f"quantising {source.name} with NNCF", "leave --precision int8 out"),
        _quiet(),
        tempfile.TemporaryDirectory() as scratch,
    ):
        quantised = nncf.quantize(
            engine.network,
            nncf.Dataset([image[np.newaxis] for image in images]),
            subset_size=len(images),
            preset=nncf.QuantizationPreset.MIXED,
        )
        written = Path(scratch, "model.xml")
        openvino.save_model(quantised, written, compress_to_fp16=False)
        digest = digest_of(written)
        stored = StoredConversion.int8(folder, digest, source, taps)
        if not stored.is_whole():
            with stored.writing() as path:
                for suffix in (".xml", ".bin"):
                    path.with_suffix(suffix).write_bytes(written.with_suffix(suffix).read_bytes())
    return f"{INT8}:{digest}"


def _load_nncf() -> Any:
    try:
        with without_telemetry(), quiet_import():
            import nncf
    except ModuleNotFoundError as error:
        raise MissingExtraError("nncf", extra="int8", purpose="--precision int8") from error
    return nncf


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep NNCF's bars and log out of what the user reads."""
    log = logging.getLogger("nncf")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with redirect_stdout(StringIO()), quiet_import():
            yield
    finally:
        log.setLevel(level)
