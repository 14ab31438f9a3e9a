"""Finished trials on the disk, so that a search that was killed goes on where it was."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from featx.selection.trials import Measured

__all__ = ["Journal"]

_LOG = logging.getLogger("featx")


class Journal:
    """A file with a line of JSON for each finished trial.

    A line that was cut short by a kill, or that holds anything else, is as if it were not there.
    Where the file cannot be written the search goes on, and says once that nothing is kept.

    Parameters
    ----------
    path : Path, optional
        The file; None keeps nothing.
    fresh : bool, default False
        Whether to forget what is there.
    """

    def __init__(self, path: Path | None = None, *, fresh: bool = False) -> None:
        self._path = path
        self._known: dict[str, Measured] = {}
        if path is not None and fresh:
            path.unlink(missing_ok=True)
        if path is not None and path.is_file():
            self._known = dict(_read(path))
        self.resumed = len(self._known)

    def find(self, key: str) -> Measured | None:
        """Return what is known of a trial."""
        return self._known.get(key)

    def add(self, found: Iterable[tuple[str, Measured]]) -> None:
        """Keep trials: when this returns, they outlast a kill and a loss of power."""
        lines = []
        for key, measured in found:
            self._known[key] = measured
            lines.append(json.dumps({"trial": key, **asdict(measured)}))
        if self._path is None or not lines:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # What an earlier kill cut short must not swallow the next line.
            data = "\n" * _cut_short(self._path) + "\n".join(lines) + "\n"
            with self._path.open("ab") as file:
                file.write(data.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            _LOG.warning(
                "%s cannot be written (%s): the search goes on, but cannot be resumed",
                self._path,
                error.strerror or error,
            )
            self._path = None


def _cut_short(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"
    except OSError:  # no file yet, or an empty one
        return False


def _read(path: Path) -> Iterable[tuple[str, Measured]]:
    for line in path.read_bytes().splitlines():
        try:
            record: dict[str, Any] = json.loads(line)
            key = str(record.pop("trial"))
            yield key, Measured.from_dict(record)
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
