"""Which shards were compared with their digests, so that it is done once and not by every reader.

What was found sound is kept in ``checked/<space>.json``, beside the size, the times and the inode
that the file had. The file is derived: anybody may remove it, and it is believed only about a shard
of which all of these are still the same.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from featx.cache.integrity import check_shard
from featx.cache.layout import CacheLayout, publish
from featx.cache.shard import Shard
from featx.exceptions import CacheFormatError, CacheWriteError
from featx.files.safe_json import json_with_checksum, read_json_with_checksum
from featx.files.stamps import is_settled, stamp_of

_KIND = "featx-checked"
_VERSION = 1
_MOST_THREADS = 8
Stamp = tuple[int, ...]


class CheckedShards:
    """The shards of a space that have the bytes that their writer stated.

    Parameters
    ----------
    layout : CacheLayout
        The cache. Where nothing can be written in it, other processes check again.
    space : str
        Name of the space.
    """

    def __init__(self, layout: CacheLayout, space: str) -> None:
        self._layout = layout
        self._path = layout.checked / f"{space}.json"
        self._lock = threading.Lock()
        self._kept: dict[str, Stamp] | None = None
        self._sound: dict[Path, Stamp] = {}

    def find_damage(self, shards: Iterable[Shard], *, again: bool = False) -> dict[Path, str]:
        """Compare the bytes of shards with their digests, each once unless its file changed.

        Parameters
        ----------
        shards : iterable of Shard
            Shards of the space.
        again : bool, default False
            Whether to read all of them, whatever is known.

        Returns
        -------
        dict of Path to str
            The damaged ones, and what is wrong with each.

        Raises
        ------
        FileNotFoundError
            If one has gone.
        """
        by_path = {shard.path: shard for shard in shards}
        stamps = {path: stamp_of(os.stat(path)) for path in by_path}
        with self._lock:
            waiting = [p for p, stamp in stamps.items() if again or not self._is_sound(p, stamp)]
            if not waiting:
                return {}
            started_ns = time.time_ns()
            with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as pool:
                reasons = list(pool.map(lambda path: _damage(by_path[path]), waiting))
            damage = {p: reason for p, reason in zip(waiting, reasons, strict=True) if reason}
            sound = {path: stamps[path] for path in waiting if path not in damage}
            self._sound |= sound
            # A file that changed just now may change again under the same stamp.
            settled = {p: s for p, s in sound.items() if is_settled(s, started_ns)}
            if settled:
                self._keep({path.name: stamp for path, stamp in settled.items()})
        return damage

    def _is_sound(self, path: Path, stamp: Stamp) -> bool:
        if path not in self._sound:
            if self._kept is None:
                self._kept = self._read()
            if self._kept.get(path.name) == stamp:
                self._sound[path] = stamp
        return self._sound.get(path) == stamp

    def _read(self) -> dict[str, Stamp]:
        try:
            record = read_json_with_checksum(self._path.read_bytes())
            if (record["type"], record["version"]) == (_KIND, _VERSION):
                return {name: tuple(stamp) for name, stamp in record["shards"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass  # not there, or damaged: everything is checked again
        return {}

    def _keep(self, settled: dict[str, Stamp]) -> None:
        # What another process wrote meanwhile stays, unless it writes at this very moment.
        self._kept = self._read() | settled
        folder = self._layout.spaces / self._path.stem / "shards"
        with suppress(OSError):
            present = set(os.listdir(folder))
            self._kept = {name: s for name, s in self._kept.items() if name in present}
        record = {"type": _KIND, "version": _VERSION, "shards": self._kept}
        text = json_with_checksum(record) + "\n"
        with suppress(CacheWriteError):
            publish(self._layout, self._path, lambda path: _write_text(path, text))


def _damage(shard: Shard) -> str:
    try:
        check_shard(shard)
    except CacheFormatError as error:
        return str(error)
    return ""


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, "utf-8")
