"""Small files of JSON with a checksum that only save work: anybody may remove them.

Which shards were compared with their digests, and how a backbone was named in an extraction: hints,
which are compared with what is there before they are used.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featx.cache.layout import CacheLayout, publish_bytes
from featx.cache.shard import Shard
from featx.exceptions import CacheFormatError, CacheWriteError
from featx.files.identity import is_settled, stamp_of
from featx.files.safe_json import json_with_checksum, read_json_with_checksum

Identity = tuple[str, str]
"""Canonical name of a backbone, and the digest of its weights."""

Stamp = tuple[int, ...]
_VERSION = 1
_MOST_THREADS = 8


def _write_record(
    layout: CacheLayout, path: Path, kind: str, content: Mapping[str, object]
) -> None:
    """Write a record, where the cache can be written."""
    with suppress(CacheWriteError, ValueError):
        record = {"type": kind, "version": _VERSION, **content}
        publish_bytes(layout, path, f"{json_with_checksum(record)}\n".encode())


def _read_record(path: Path, kind: str) -> dict[str, Any]:
    """Return a record, an empty one where there is none or it is damaged."""
    with suppress(OSError, ValueError, KeyError):
        record = read_json_with_checksum(path.read_bytes())
        if (record["type"], record["version"]) == (kind, _VERSION):
            return record
    return {}


class CheckedShards:
    """Finds damaged shards of a space: compares each once, and again when its file changed."""

    def __init__(self, layout: CacheLayout, space: str) -> None:
        self._layout = layout
        self._path = layout.checked / f"{space}.json"
        self._lock = threading.Lock()
        self._stored: dict[str, Stamp] | None = None
        self._sound: dict[Path, Stamp] = {}

    def is_sound(self, path: Path, status: os.stat_result) -> bool:
        """Return whether a shard was compared with its digests when its file was in this state."""
        stamp = stamp_of(status)
        if self._sound.get(path) == stamp:  # thousands in a look-up
            return True
        with self._lock:
            return self._is_sound(path, stamp)

    def find_damage(self, shards: Iterable[Shard], *, again: bool = False) -> dict[Path, str]:
        """Return what is wrong with the damaged ones of some shards; `again` reads them all."""
        by_path = {shard.path: shard for shard in shards}
        stamps = {path: stamp_of(os.stat(path)) for path in by_path}
        with self._lock:
            waiting = [p for p, stamp in stamps.items() if again or not self._is_sound(p, stamp)]
            if not waiting:
                return {}
            started_ns = time.time_ns()
            with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as pool:
                reasons = list(pool.map(lambda path: damage_of(by_path[path]), waiting))
            damage = {p: reason for p, reason in zip(waiting, reasons, strict=True) if reason}
            sound = {path: stamps[path] for path in waiting if path not in damage}
            self._sound |= sound
            # A file that changed just now may change again under the same stamp.
            settled = {p.name: s for p, s in sound.items() if is_settled(s, started_ns)}
            if settled:
                self._store(settled)
        return damage

    def _is_sound(self, path: Path, stamp: Stamp) -> bool:
        if path not in self._sound:
            if self._stored is None:
                self._stored = self._read()
            if self._stored.get(path.name) == stamp:
                self._sound[path] = stamp
        return self._sound.get(path) == stamp

    def _read(self) -> dict[str, Stamp]:
        with suppress(TypeError, AttributeError):  # else everything is checked again
            shards = _read_record(self._path, "featx-checked").get("shards", {})
            return {name: tuple(stamp) for name, stamp in shards.items()}
        return {}

    def _store(self, settled: Mapping[str, Stamp]) -> None:
        # What another process wrote meanwhile stays, unless it writes at this very moment.
        self._stored = {**self._read(), **settled}
        with suppress(OSError):
            present = set(os.listdir(self._layout.spaces / self._path.stem / "shards"))
            self._stored = {name: s for name, s in self._stored.items() if name in present}
        _write_record(self._layout, self._path, "featx-checked", {"shards": self._stored})


def damage_of(shard: Shard) -> str:
    """Return what is wrong with the bytes of a shard, empty text where nothing is."""
    try:
        shard.check()
    except CacheFormatError as error:
        return str(error)
    return ""


@dataclass(frozen=True, slots=True)
class Origin:
    """A backbone and its weights as `featx.extract` takes them: names, or whole paths of files."""

    backbone: str
    weights: str | None
    trust: bool = False  # never written: a file gives no permission


def remember_origin(layout: CacheLayout, identity: Identity, origin: Origin) -> None:
    """Keep how a backbone was named, where the cache can be written."""
    named = Origin(origin.backbone, origin.weights)
    if recall_origin(layout, identity) != named:
        content = {"backbone": named.backbone, "weights": named.weights}
        _write_record(layout, _origin_path(layout, identity), "featx-origin", content)


def recall_origin(layout: CacheLayout, identity: Identity) -> Origin | None:
    """Return how a backbone was named, None where that is not known."""
    record = _read_record(_origin_path(layout, identity), "featx-origin")
    backbone, weights = record.get("backbone"), record.get("weights", "")
    if isinstance(backbone, str) and isinstance(weights, str | None) and "weights" in record:
        return Origin(backbone, weights)
    return None


def _origin_path(layout: CacheLayout, identity: Identity) -> Path:
    digest = hashlib.sha256("\n".join(identity).encode("utf-8", "surrogateescape")).hexdigest()
    return layout.root / "origins" / f"{digest[:40]}.json"
