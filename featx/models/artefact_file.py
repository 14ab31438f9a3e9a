"""The zip that a ``.featx`` file is: members, digests and version, checked before anything else."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from featx.backbones.weights import (
    DESCRIPTION,
    NETWORK,
    OWN_NETWORK,
    open_model_zip,
    read_description,
)
from featx.exceptions import ArtefactError, FeatxError, reason
from featx.files.claims import shortened

KIND = "featx-model"
VERSION = 3
"""The highest version that is read: 2 has a network of its own, 3 a head of steps."""
NOVELTY = "novelty.h5"
_MEMBERS = ("head.skops", "head.json", "head.h5", NOVELTY, NETWORK, OWN_NETWORK)
_MOST_BYTES = 4 << 30


def read_artefact(path: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Read what ``model.json`` says, and the bytes of every other member."""
    if not path.is_file():
        raise ArtefactError(
            f"expected a model saved by featx, received {str(path)!r}, which is no file"
        )
    try:
        return _read(path)
    except FeatxError:
        raise
    # `zipfile` has no base of its errors: damage shows as any of ten types.
    except Exception as error:
        raise ArtefactError(
            f"{path} is no model saved by featx, or was cut short or changed: {reason(error)}"
        ) from error


def _read(path: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    size = path.stat().st_size
    if size > _MOST_BYTES:
        raise ArtefactError(f"{path} has {size:,} bytes, more than any model of featx: refused")
    with open_model_zip(path) as archive:
        names = archive.namelist()
        if DESCRIPTION not in names:
            raise ArtefactError(
                f"{path} is a zip, but no model saved by featx: it has no {DESCRIPTION}"
            )
        details = read_description(archive)
        # Before the members: those of a later version may be others.
        _require_version(path, details)
        others = set(names) - {DESCRIPTION}
        if others - set(_MEMBERS):
            foreign = [shortened(name) for name in sorted(others - set(_MEMBERS))[:3]]
            raise ArtefactError(f"{path} has members that no featx model has: {foreign}")
        stated = details.get("files")
        if not isinstance(stated, dict) or set(stated) != others:
            raise ArtefactError(f"{path}: its members are not those that {DESCRIPTION} states")
        files = {name: archive.read(name) for name in stated}
    for name, data in files.items():
        if hashlib.sha256(data).hexdigest() != stated[name]:
            raise ArtefactError(f"{path}: {name} does not have the digest stated with it")
    return details, files


def _require_version(path: Path, details: dict[str, Any]) -> None:
    if details.get("type") != KIND:
        raise ArtefactError(f"{path}: {DESCRIPTION} does not describe a featx model")
    version = details.get("version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ArtefactError(f"{path} states no format version, received {version!r}: refused")
    if version > VERSION:
        raise ArtefactError(
            f"{path} is a model of format version {version}, this featx reads "
            f"version {VERSION}: upgrade featx"
        )
