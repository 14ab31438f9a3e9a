"""Networks of Keras as OpenVINO models: converted, compared with Keras, and kept on disk."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.backbones.build import build_tap_model, draw_images
from featx.backbones.catalog import PREPROCESSINGS
from featx.backbones.source import BackboneSource
from featx.backbones.weights import file_sha256
from featx.engines.engine import Pixels
from featx.exceptions import BackboneError, EngineError, FeatxError, reason
from featx.files.durable import flush, flush_names
from featx.forks import require_threads
from featx.quiet import quiet_import

FALL_BACK = "use the Keras engine instead: --engine keras (engine='keras')"
"""What to do where OpenVINO does not work."""
TOLERANCE = 1e-4
"""Largest `disagreement` with Keras."""

_LOGGER = logging.getLogger("featx")
_TELEMETRY = "openvino_telemetry"
_CHECKED = 4
# Above what half precision rounds away.
_LARGEST_CHANGE = 0.02
_SEED = 20
_TYPE = "featx-openvino-conversion"
# To be raised whenever the same identity makes another graph: other poolings, other blocks.
_VERSION = 1
_MODEL, _WEIGHTS, _DESCRIPTION = "model.xml", "model.bin", "conversion.json"
_TEMPORARY = ".tmp-"
_ABANDONED_S = 24 * 3600


def load_openvino() -> Any:
    """Import OpenVINO, and return the module.

    Its telemetry writes into the home folder and asks the network as soon as `openvino` is
    imported, and no environment variable keeps it from that. OpenVINO does without it where it is
    not installed, so that is what it finds.
    """
    require_threads("OpenVINO")
    absent = _TELEMETRY not in sys.modules
    if absent:
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
    try:
        with quiet_import():
            import openvino
    except Exception as error:  # a library that does not fit the machine raises many kinds
        raise EngineError(
            f"OpenVINO cannot be imported ({reason(error)}): pip install openvino, or {FALL_BACK}"
        ) from error
    finally:
        if absent:
            sys.modules.pop(_TELEMETRY, None)
    return openvino


@contextmanager
def translated(doing: str, next_step: str = FALL_BACK) -> Iterator[None]:
    """Raise whatever OpenVINO raises as an EngineError that says what was being done."""
    try:
        yield
    except FeatxError:
        raise
    except Exception as error:  # OpenVINO raises RuntimeError, and what its parsers raise
        step = next_step[:1].upper() + next_step[1:]
        raise EngineError(f"{doing} failed: {reason(error)}. {step}") from error


TapVectors = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True, eq=False)
class Conversion:
    """An OpenVINO model, and what Keras makes of a few images."""

    name: str  # of the backbone
    model: Any  # from uint8 pixels (n, h, w, 3), n dynamic, to a float32 output a tap
    images: Pixels  # from noise to smooth
    expected: TapVectors  # Keras's vectors of them

    def check(self, run: Callable[[Pixels], TapVectors]) -> None:
        """Raise `EngineError` if an engine's vectors, at two batch sizes, are not Keras's."""
        together, alone = run(self.images), run(self.images[:1])
        for tap, expected in self.expected.items():
            worst = max(
                disagreement(together[tap], expected), disagreement(alone[tap], expected[:1])
            )
            if not worst <= TOLERANCE:
                raise EngineError(
                    f"{self.name} under OpenVINO differs from Keras by {worst:.1e} relative at the "
                    f"tap {tap}; expected {TOLERANCE:.0e} at most: {FALL_BACK}"
                )


def output_name(index: int) -> str:
    """Return the name of the output of the tap at an index.

    TensorFlow hands out outputs sorted by name; leading zeros keep them in order.
    """
    return f"tap_{index:04d}"


def disagreement(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> float:
    """Return max |ours - theirs| / max |theirs| over all vectors of a tap.

    It is infinite where something is not finite or the shapes differ.
    """
    if ours.shape != theirs.shape or not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
        return float("inf")
    if not theirs.size:
        return 0.0
    difference = float(np.abs(ours.astype(np.float64) - theirs).max())
    return difference / max(float(np.abs(theirs).max()), float(np.finfo(np.float32).tiny))


def convert(source: BackboneSource, taps: tuple[str, ...]) -> Conversion:
    """Build a network in Keras and convert it."""
    load_openvino()
    require_threads("Keras")
    with quiet_import():
        import keras
    if (backend := keras.backend.backend()) != "tensorflow":
        raise EngineError(
            "OpenVINO converts networks of Keras on TensorFlow; expected the Keras backend "
            f"'tensorflow', received {backend!r}: set KERAS_BACKEND=tensorflow, or {FALL_BACK}"
        )
    network = build_tap_model(source, taps)
    images = draw_images((_CHECKED, *source.input_size_px), _SEED)
    with translated(f"the conversion of {source.name} to OpenVINO"), quiet_import():
        from openvino.tools.ovc import convert_model

        outputs = {output_name(index): tensor for index, tensor in enumerate(network.outputs)}
        named = keras.Model(network.inputs, outputs)
        # Shared weights would lie in Keras's memory, which is given back before the model is.
        model = convert_model(named, share_weights=False)
        with keras.device("cpu:0"):  # a GPU may round to fewer bits than are compared
            batches = [named([part], training=False) for part in (images, images[:1])]
        together, alone = (
            {
                tap: keras.ops.convert_to_numpy(vectors[output_name(index)])
                for index, tap in enumerate(taps)
            }
            for vectors in batches
        )
    _require_features_of_one_image(source.name, together, alone)
    return Conversion(source.name, model, images, together)


def _require_features_of_one_image(name: str, together: TapVectors, alone: TapVectors) -> None:
    """Refuse a network that gives an image other features in another batch."""
    for tap, vectors in together.items():
        if not np.isfinite(vectors).all():
            raise EngineError(
                f"{name} gives features that are no finite numbers at the tap {tap} for drawn "
                f"images, so that OpenVINO cannot be compared with Keras: {FALL_BACK}"
            )
        if disagreement(alone[tap], vectors[:1]) > _LARGEST_CHANGE:
            raise BackboneError(
                f"{name} gives an image other features at the tap {tap} when it is alone than "
                "beside other images, so that they cannot be cached: expected a network in "
                "inference mode, without statistics of the batch and without random numbers"
            )


@dataclass(frozen=True, slots=True)
class StoredConversion:
    """The folder of one conversion, and everything that decides its graph, as JSON types.

    A conversion is used only where its description states the very network, taps and versions of
    the request, and both files have the SHA-256 that it states. Reading every byte costs what
    hashing the backbone's weights costs on every start anyway (9 MB: 6 ms), and anything less
    would let a changed bit through into the features.
    """

    folder: Path
    identity: Mapping[str, object]

    @classmethod
    def of(cls, folder: Path, source: BackboneSource, taps: tuple[str, ...]) -> StoredConversion:
        """Return where a backbone with its taps is kept below the folder of conversions."""
        identity = _identity(source, taps)
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]
        name = re.sub(r"[^A-Za-z0-9_.-]+", "-", source.name)[:80]
        return cls(folder / f"{name}-{digest}", identity)

    @property
    def model(self) -> Path:
        """The file that OpenVINO reads; the weights lie beside it."""
        return self.folder / _MODEL

    def is_whole(self) -> bool:
        """Return whether there is such a conversion, whole and unchanged; log one that is not."""
        if not self.folder.exists():
            return False
        damage = self._damage()
        if damage:
            self.report(damage)
        return not damage

    def report(self, damage: str) -> None:
        """Log that the conversion cannot be used."""
        _LOGGER.warning(
            "the conversion kept in %s is damaged (%s): converting again", self.folder, damage
        )

    def _damage(self) -> str:
        try:
            stated = json.loads((self.folder / _DESCRIPTION).read_text("utf-8"))
            actual = self._description(self.folder)
        except (OSError, ValueError, RecursionError) as error:
            return str(error)
        return "" if stated == actual else "its files are not those that it states"

    def _description(self, folder: Path) -> dict[str, object]:
        digests = {name: file_sha256(folder / name) for name in (_MODEL, _WEIGHTS)}
        return {**self.identity, "sha256": digests}

    def _beside(self) -> Path:
        return self.folder.parent / f"{_TEMPORARY}{uuid.uuid4().hex}"

    @contextmanager
    def writing(self) -> Iterator[Path]:
        """Give the path of a model to write; then put it into the folder, durably and at once.

        Another process may do the same meanwhile: a whole conversion stays. What fails is removed.
        """
        parent = self.folder.parent
        parent.mkdir(parents=True, exist_ok=True)
        for left in parent.glob(f"{_TEMPORARY}*"):  # by processes that were killed
            with suppress(OSError):
                if time.time() - left.stat().st_mtime > _ABANDONED_S:
                    shutil.rmtree(left, ignore_errors=True)
        written = self._beside()
        written.mkdir()
        try:
            yield written / _MODEL
            self._store(written)
        finally:
            shutil.rmtree(written, ignore_errors=True)

    def _store(self, written: Path) -> None:
        description = json.dumps(self._description(written), indent=1)
        (written / _DESCRIPTION).write_text(description, "utf-8")
        flush(written)
        if self.folder.exists() and self._damage():
            aside = self._beside()
            with suppress(FileNotFoundError):  # another process moved it first
                self.folder.rename(aside)
            shutil.rmtree(aside, ignore_errors=True)
        try:
            written.rename(self.folder)
        except OSError:
            if self._damage():
                raise
        flush_names(self.folder.parent)


def _identity(source: BackboneSource, taps: tuple[str, ...]) -> dict[str, object]:
    row, rule = source.row, PREPROCESSINGS[source.preprocessing]
    # What makes the layers beside Keras itself.
    builder: tuple[object, ...] = () if row is None else (row.keras_name, row.arguments)
    if source.kind == "hub":
        with suppress(PackageNotFoundError):
            builder = ("keras-hub", version("keras-hub"))
    identity = {
        "type": _TYPE,
        "version": _VERSION,
        "backbone": source.name,
        "builder": builder,
        "weights_sha256": source.weights.sha256,
        "input_size_px": source.input_size_px,
        "preprocessing": (rule.scale, rule.offset, rule.bgr),
        "taps": taps,
        # Another Keras may build another graph of the same weights, another OpenVINO convert or
        # read it differently; converting again takes seconds, once an upgrade.
        "keras": version("keras"),
        "openvino": version("openvino"),
    }
    plain: dict[str, object] = json.loads(json.dumps(identity))
    return plain
