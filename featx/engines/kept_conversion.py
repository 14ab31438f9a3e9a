"""Conversions kept on disk: an OpenVINO model, and a description of what it was made from."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from featx.backbones.catalog import PREPROCESSINGS
from featx.backbones.source import BackboneSource
from featx.files.durable import flush, flush_names

_TYPE = "featx-openvino-conversion"
# To be raised whenever the same identity makes another graph: other poolings, other blocks.
_VERSION = 1
_MODEL, _WEIGHTS, _DESCRIPTION = "model.xml", "model.bin", "conversion.json"
_TEMPORARY = ".tmp-"
_ABANDONED_S = 24 * 3600
_LOGGER = logging.getLogger("featx")


@dataclass(frozen=True, slots=True)
class KeptConversion:
    """The place of one conversion.

    A conversion is used only where its description states the very network, taps and versions
    that are asked for, and both files have the SHA-256 that it states. Reading every byte costs
    what hashing the backbone's weights costs on every start anyway (9 MB: 6 ms), and anything
    less would let a changed bit through into the features.

    Parameters
    ----------
    folder : Path
        Its folder.
    identity : dict
        Everything that decides the graph, as JSON types.
    """

    folder: Path
    identity: dict[str, Any]

    @classmethod
    def place(cls, folder: Path, source: BackboneSource, taps: tuple[str, ...]) -> KeptConversion:
        """Return the place, below the folder of conversions, of a backbone with its taps."""
        identity = _identity(source, taps)
        text = json.dumps(identity, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:32]
        name = re.sub(r"[^A-Za-z0-9_.-]+", "-", source.name)[:80]
        return cls(folder / f"{name}-{digest}", identity)

    @property
    def model(self) -> Path:
        """The file that OpenVINO reads; the weights lie beside it."""
        return self.folder / _MODEL

    def find(self) -> bool:
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
            found = _description(self.folder, self.identity)
        except (OSError, ValueError, RecursionError) as error:
            return str(error)
        return "" if stated == found else "its files are not those that it states"

    @contextmanager
    def writing(self) -> Iterator[Path]:
        """Give out the path of a model to write; what is not kept is removed afterwards.

        Raises
        ------
        OSError
            If the folder of conversions cannot be written.
        """
        parent = self.folder.parent
        parent.mkdir(parents=True, exist_ok=True)
        for left in parent.glob(f"{_TEMPORARY}*"):  # by processes that were killed
            with suppress(OSError):
                if time.time() - left.stat().st_mtime > _ABANDONED_S:
                    shutil.rmtree(left, ignore_errors=True)
        written = _beside(self.folder)
        written.mkdir()
        try:
            yield written / _MODEL
        finally:
            shutil.rmtree(written, ignore_errors=True)

    def keep(self, model: Path) -> None:
        """Put what was written, see `writing`, into this place, durably and all at once.

        Another process may have done the same meanwhile: a whole conversion stays.

        Raises
        ------
        OSError
            If the disk is full or the folder cannot be written.
        """
        written = model.parent
        description = json.dumps(_description(written, self.identity), indent=1)
        (written / _DESCRIPTION).write_text(description, "utf-8")
        flush(written)
        if self.folder.exists() and self._damage():
            aside = _beside(self.folder)
            with suppress(FileNotFoundError):  # another process moved it first
                self.folder.rename(aside)
            shutil.rmtree(aside, ignore_errors=True)
        try:
            written.rename(self.folder)
        except OSError:
            if self._damage():
                raise
        flush_names(self.folder.parent)


def _identity(source: BackboneSource, taps: tuple[str, ...]) -> dict[str, Any]:
    row = source.row
    rule = PREPROCESSINGS[source.preprocessing]
    identity = {
        "type": _TYPE,
        "version": _VERSION,
        "backbone": source.name,
        "builder": (row.keras_name, row.arguments) if row else _builder(source),
        "weights_sha256": source.weights.sha256,
        "input_size_px": source.input_size_px,
        "preprocessing": astuple(rule),
        "taps": taps,
        # Another Keras may build another graph of the same weights, another OpenVINO convert or
        # read it differently; converting again takes seconds, once an upgrade.
        "keras": version("keras"),
        "openvino": version("openvino"),
    }
    plain: dict[str, Any] = json.loads(json.dumps(identity))
    return plain


def _builder(source: BackboneSource) -> tuple[str, ...]:
    """Return what makes the layers of a network that is not in the catalogue, beside Keras."""
    if not source.name.startswith("hub:"):
        return ()
    try:
        return ("keras-hub", version("keras-hub"))
    except PackageNotFoundError:
        return ()


def _description(folder: Path, identity: dict[str, Any]) -> dict[str, Any]:
    return {**identity, "sha256": {name: _sha256(folder / name) for name in (_MODEL, _WEIGHTS)}}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _beside(folder: Path) -> Path:
    return folder.parent / f"{_TEMPORARY}{uuid.uuid4().hex}"
