"""What is known of a candidate that was measured, and the journal that keeps it."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from featx.files.durable import written_whole
from featx.files.safe_json import json_with_checksum, read_json_with_checksum
from featx.selection.search_space import Candidate


@dataclass(frozen=True, slots=True)
class Measured:
    """Figures of one candidate on all folds.

    Parameters
    ----------
    scores : list of float
        One a fold, of which more is better; empty where it failed.
    fit_s, score_s : list of float
        Seconds of training and of predicting, one a fold. Candidates that were measured together
        have an equal share each.
    stopped : bool
        Whether it was given up early.
    failed : str
        Why it could not be measured, empty if it could.
    ms : float, optional
        Milliseconds an image of transform and head, where they were fitted by themselves.
    bytes : int, optional
        Size of what transform and head have learnt, likewise.
    """

    scores: list[float]
    fit_s: list[float]
    score_s: list[float]
    stopped: bool = False
    failed: str = ""
    ms: float | None = None
    bytes: int | None = None

    @classmethod
    def from_dict(cls, given: dict[str, Any]) -> Measured:
        """Read what `dataclasses.asdict` gave."""
        measured = cls(**{field.name: given[field.name] for field in fields(cls)})
        seconds = (measured.fit_s, measured.score_s)
        for numbers in (measured.scores, *seconds):
            if not (isinstance(numbers, list) and all(map(_is_finite, numbers))):
                raise TypeError("figures are finite numbers, one a fold")
        costs = [cost for cost in (measured.ms, measured.bytes) if cost is not None]
        if (
            not all(map(_is_finite, costs))
            or min([*costs, *seconds[0], *seconds[1]], default=0) < 0
        ):
            raise ValueError("times and sizes are finite and not negative")
        if not measured.failed and {*map(len, seconds)} != {len(measured.scores)}:
            raise ValueError("there are as many times as scores")
        if not (isinstance(measured.stopped, bool) and isinstance(measured.failed, str)):
            raise TypeError("expected whether it was stopped, and why it failed")
        return measured


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and type(value) is not bool and math.isfinite(value)


@dataclass(frozen=True, slots=True)
class Trial:
    """A candidate and its figures.

    Parameters
    ----------
    candidate : Candidate
        What was tried.
    measured : Measured
        What came of it.
    share : float, default 1.0
        The share of the training rows that it was trained on.
    """

    candidate: Candidate
    measured: Measured
    share: float = 1.0

    @property
    def score(self) -> float:
        """Mean over the folds; minus infinity where it failed."""
        return float(np.mean(self.measured.scores)) if self.measured.scores else -np.inf

    @property
    def std(self) -> float:
        """Standard deviation over the folds."""
        return float(np.std(self.measured.scores)) if self.measured.scores else 0.0

    @property
    def standard_error(self) -> float:
        """Standard error of the mean over the folds."""
        folds = len(self.measured.scores)
        return float(np.std(self.measured.scores, ddof=1) / np.sqrt(folds)) if folds > 1 else 0.0


_LOG = logging.getLogger("featx")


class Journal:
    """A file with a line of JSON, with a checksum, for each finished trial."""

    def __init__(self, path: Path | None = None, *, fresh: bool = False) -> None:
        self._path = path
        self._known: dict[str, Measured] = {}
        if path is not None and fresh:
            path.unlink(missing_ok=True)
        if path is not None and path.is_file():
            self._known = _read(path)
        self.resumed = len(self._known)

    def find(self, key: str) -> Measured | None:
        """Return what is known of a trial."""
        return self._known.get(key)

    def add(self, found: Iterable[tuple[str, Measured]]) -> None:
        """Keep trials: when this returns, they outlast a kill and a loss of power."""
        lines = []
        for key, measured in found:
            self._known[key] = measured
            with suppress(ValueError):  # no finite number, which JSON has no word for
                lines.append(json_with_checksum({"trial": key, **asdict(measured)}))
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


def _read(path: Path) -> dict[str, Measured]:
    """Return the trials of a journal, and write it again without the lines that hold none."""
    known: dict[str, Measured] = {}
    sound: list[bytes] = []
    damaged = without = 0
    data = path.read_bytes()
    *lines, cut_short = data.split(b"\n")
    for line in lines:
        try:
            record = read_json_with_checksum(line)
            known[str(record.pop("trial"))] = Measured.from_dict(record)
            sound.append(line)
        except (ValueError, KeyError, TypeError):
            if line and _is_earlier(line):
                without += 1
            else:
                damaged += bool(line)
    for count, what in (
        (damaged, "are damaged"),
        (without, "have no checksum, as featx 0.1 wrote them"),
    ):
        if count:
            _LOG.warning("%d lines of %s %s: these trials are measured again", count, path, what)
    if damaged or without or cut_short:
        with suppress(OSError), written_whole(path) as temporary:
            temporary.write_bytes(b"".join(line + b"\n" for line in sound))
    return known


def _is_earlier(line: bytes) -> bool:
    """Return whether a line is a trial as featx 0.1 kept it."""
    with suppress(ValueError, TypeError, RecursionError):
        record = json.loads(line)
        return "trial" in record and "sha256" not in record
    return False
