"""What is known of a candidate that was measured, and the journal that keeps it."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from featx.files.outputs import written_whole
from featx.files.safe_json import Json, json_with_checksum, read_json_with_checksum
from featx.selection.search_space import Candidate

_FIGURES = ("scores", "fit_s", "score_s", "stopped", "failed", "ms", "bytes")
_LOG = logging.getLogger("featx")


@dataclass(frozen=True, slots=True)
class Trial:
    """A candidate and its figures, one a fold."""

    candidate: Candidate
    share: float = 1.0  # of the training rows that it was trained on
    scores: list[float] = field(default_factory=list)  # more is better; none where it failed
    # Seconds; candidates that were measured together have an equal share each.
    fit_s: list[float] = field(default_factory=list)
    score_s: list[float] = field(default_factory=list)
    stopped: bool = False  # whether it was given up early
    failed: str = ""  # why it could not be measured
    # Of transform and head, where they were fitted by themselves: milliseconds an image, and size.
    ms: float | None = None
    bytes: int | None = None

    @property
    def score(self) -> float:
        """Mean over the folds; minus infinity where it failed."""
        return float(np.mean(self.scores)) if self.scores else -np.inf

    @property
    def std(self) -> float:
        """Standard deviation over the folds."""
        return float(np.std(self.scores)) if self.scores else 0.0

    @property
    def standard_error(self) -> float:
        """Standard error of the mean over the folds."""
        folds = len(self.scores)
        return float(np.std(self.scores, ddof=1) / np.sqrt(folds)) if folds > 1 else 0.0


def _checked_figures(record: Json) -> Json:
    """Return the figures of a trial from JSON; ``ValueError`` or ``TypeError`` where they lie."""
    scores, fit_s, score_s, stopped, failed, *costs = (record[name] for name in _FIGURES)
    for numbers in (scores, fit_s, score_s):
        if not (isinstance(numbers, list) and all(map(_is_finite, numbers))):
            raise TypeError("figures are finite numbers, one a fold")
    known = [cost for cost in costs if cost is not None]
    if not all(map(_is_finite, known)) or min([*known, *fit_s, *score_s], default=0) < 0:
        raise ValueError("times and sizes are finite and not negative")
    if not failed and not len(fit_s) == len(score_s) == len(scores):
        raise ValueError("there are as many times as scores")
    if not (isinstance(stopped, bool) and isinstance(failed, str)):
        raise TypeError("expected whether it was stopped, and why it failed")
    return {name: record[name] for name in _FIGURES}


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and type(value) is not bool and math.isfinite(value)


class Journal:
    """A file with a line of JSON, with a checksum, for each finished trial."""

    def __init__(self, path: Path | None = None, *, fresh: bool = False) -> None:
        self._path = path
        self._known: dict[str, Json] = {}
        if path is not None and fresh:
            path.unlink(missing_ok=True)
        if path is not None and path.is_file():
            self._known = _read(path)
        self.resumed = len(self._known)

    def find(self, scope: str, candidate: Candidate, share: float) -> Trial | None:
        """Return what is known of a candidate."""
        figures = self._known.get(_key(scope, candidate, share))
        return None if figures is None else Trial(candidate, share, **figures)

    def add(self, scope: str, trials: Sequence[Trial]) -> None:
        """Keep trials: when this returns, they outlast a kill and a loss of power."""
        lines = []
        for trial in trials:
            key = _key(scope, trial.candidate, trial.share)
            figures = {name: getattr(trial, name) for name in _FIGURES}
            self._known[key] = figures
            with suppress(ValueError):  # no finite number, which JSON has no word for
                lines.append(json_with_checksum({"trial": key, **figures}))
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


def _key(scope: str, candidate: Candidate, share: float) -> str:
    return f"{scope} {share:.6g} {candidate.key}"


def _cut_short(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"
    except OSError:  # no file yet, or an empty one
        return False


def _read(path: Path) -> dict[str, Json]:
    """Return the trials of a journal, and write it again without the lines that hold none."""
    known: dict[str, Json] = {}
    sound: list[bytes] = []
    damaged = without = 0
    *lines, cut_short = path.read_bytes().split(b"\n")
    for line in lines:
        try:
            record = read_json_with_checksum(line)
            known[str(record["trial"])] = _checked_figures(record)
            sound.append(line)
        except (ValueError, KeyError, TypeError):
            earlier = bool(line) and _is_earlier(line)
            without += earlier
            damaged += bool(line) and not earlier
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
