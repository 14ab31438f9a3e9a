"""How a backbone was named when its features were extracted, so that it is not asked for again.

One small file for each backbone and digest of weights, in ``origins/``: derived, with a checksum,
and only a hint. Whoever uses it compares the digest of the weights that it finds.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from featx.cache.layout import CacheLayout, publish
from featx.exceptions import CacheWriteError
from featx.files.safe_json import json_with_checksum, read_json_with_checksum

Identity = tuple[str, str]
"""Canonical name of a backbone, and the digest of its weights."""

_KIND, _VERSION = "featx-origin", 1


@dataclass(frozen=True, slots=True)
class Origin:
    """A backbone and its weights, as `featx.extract` takes them.

    Parameters
    ----------
    backbone : str
        The name, or the prefix and the whole path of a network of one's own.
    weights : str or None
        The whole path of a file, ``"random:SEED"``, or None for the published ones.
    trust : bool, default False
        Whether the caller trusts the network. It is never written: a file gives no permission.
    """

    backbone: str
    weights: str | None
    trust: bool = False


def remember_origin(layout: CacheLayout, identity: Identity, origin: Origin) -> None:
    """Keep how a backbone was named, where the cache can be written."""
    stored = recall_origin(layout, identity)
    if stored is not None and (stored.backbone, stored.weights) == (
        origin.backbone,
        origin.weights,
    ):
        return
    record = {
        "type": _KIND,
        "version": _VERSION,
        "backbone": origin.backbone,
        "weights": origin.weights,
    }
    with suppress(CacheWriteError, ValueError):
        text = json_with_checksum(record) + "\n"
        publish(layout, _path(layout, identity), lambda path: _write_text(path, text))


def recall_origin(layout: CacheLayout, identity: Identity) -> Origin | None:
    """Return how a backbone was named, None where nothing sound is kept."""
    with suppress(OSError, ValueError, KeyError):
        record = read_json_with_checksum(_path(layout, identity).read_bytes())
        backbone, weights = record["backbone"], record["weights"]
        known = (record["type"], record["version"]) == (_KIND, _VERSION)
        if known and isinstance(backbone, str) and isinstance(weights, str | None):
            return Origin(backbone, weights)
    return None


def _path(layout: CacheLayout, identity: Identity) -> Path:
    digest = hashlib.sha256("\n".join(identity).encode("utf-8", "surrogateescape")).hexdigest()
    return layout.root / "origins" / f"{digest[:40]}.json"


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, "utf-8")
