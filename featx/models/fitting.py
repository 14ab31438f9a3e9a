"""Fit heads on a dataset's features and ask them of other rows: in memory, or within a bound."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.cache.features import Features
from featx.exceptions import HeadError
from featx.files.keys import related_rows
from featx.heads.learning import fit_head_streamed, require_streamable
from featx.heads.making import make_head
from featx.heads.novelty import Novelty, fit_novelty
from featx.heads.rows import Fold
from featx.heads.table import read_head
from featx.memory import as_bytes, machine_bytes, shown_bytes
from featx.selection.measuring import FeatureBlock, find_sweep, fold_data, held_out_together
from featx.selection.search_space import Candidate

logger = logging.getLogger("featx")

_MACHINE_SHARE, _TAKEN_SHARE = 2, 4
# Shares of a bound: half is the head's; of the other half a part each is a batch and its reading.
_MOST_ROWS, _LEAST_ROWS = 16384, 16
_BATCH_SHARE, _BUFFER_SHARE = 32, 4
_MOST_OF_NOVELTY, _FEWEST_OF_NOVELTY, _COPIES_OF_NOVELTY = 4000, 20, 12


@dataclass(eq=False)
class Fitting:
    """One block of features with what is learnt of it.

    Parameters
    ----------
    features : Features
    backbone, tap : str
        Which block.
    targets : ndarray of shape (n,) or (n, labels)
        Label of each row of the features; 0 and 1, a column a label, for several an image.
    max_ram_bytes : int or None
        Bound on what is held; by default all features are.
    """

    features: Features
    backbone: str
    tap: str
    targets: NDArray[np.generic]
    max_ram_bytes: int | None = None
    _matrices: list[NDArray[np.floating]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.block: dict[str, Any] = {"backbone": self.backbone, "tap": self.tap}
        self.views: list[int | None] = [None, *self.features.views(**self.block)]
        if self.max_ram_bytes is None:
            self._matrices = [self.features.matrix(**self.block, view=view) for view in self.views]
            return
        row_bytes = 4 * self.features.width(**self.block)
        half = self.max_ram_bytes // 2
        rows = np.clip(half // _BATCH_SHARE // row_bytes, _LEAST_ROWS, _MOST_ROWS)
        self._batch_rows = int(rows)
        self._buffer_bytes = max(half // _BUFFER_SHARE, 2 * row_bytes * self._batch_rows)

    def fit(self, head: Any, rows: NDArray[np.intp]) -> Any:
        """Fit an unfitted head on rows and their views, one view below the other, and return it."""
        targets = np.concatenate([self.targets[rows]] * len(self.views))
        if self.max_ram_bytes is not None:
            half = self.max_ram_bytes // 2
            return fit_head_streamed(head, _Pass(self, rows), targets, max_ram_bytes=half)
        parts = [matrix[rows] for matrix in self._matrices]
        X = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return head.fit(X if X.dtype in (np.float32, np.float64) else X.astype(np.float32), targets)

    def answers(
        self, head: Any, rows: NDArray[np.intp], averaged: int
    ) -> Iterator[tuple[NDArray[np.floating], NDArray[np.intp]]]:
        """Yield what a head says of rows and their places: the mean over this many views too."""
        views = self.views[: 1 + averaged]
        step = len(rows) if self.max_ram_bytes is None else self._batch_rows
        for start in range(0, len(rows), max(1, step)):
            chosen = rows[start : start + step]
            parts = [self._take(chosen, number) for number in range(len(views))]
            proba = np.mean([head.predict_proba(part) for part in parts], axis=0)
            yield proba, np.arange(start, start + len(chosen))

    def _take(self, rows: NDArray[np.intp], number: int) -> NDArray[np.floating]:
        if self._matrices:
            return self._matrices[number][rows]
        return self.features.take(rows, **self.block, view=self.views[number])

    def answers_together(
        self, head: Any, seed: int, rows: NDArray[np.intp], folds: Sequence[Fold], averaged: int
    ) -> list[tuple[NDArray[np.floating], NDArray[np.intp]]] | None:
        """Return what the head of each fold says of its test rows, all fitted together.

        None where the head has no sweep that gives probabilities, or its sweep not these
        parameters: then it has to be fitted a fold at a time.
        """
        candidate = self._candidate(head)
        sweep = None if candidate is None else find_sweep(candidate, probabilities=True)
        if candidate is None or sweep is None or not self._matrices:
            return None
        classes, codes = np.unique(self.targets[rows], return_inverse=True)
        first, *others = self._matrices
        block = FeatureBlock(**self.block, X=first, views=tuple(others))
        order = np.arange(len(rows))
        data = fold_data(block, rows, codes, folds, share=1.0, order=order, sizes=[])
        copies = np.arange(1 + averaged)[:, None] * len(rows)
        data.folds = [(train, (test + copies).ravel()) for train, test in data.folds]
        answers = []
        try:
            for held in held_out_together(sweep, [candidate], data, seed=seed, probabilities=True):
                if held.stopped:  # it diverged, of which its own fit says more
                    return None
                test = folds[held.fold][1]
                each = held.values.reshape(1 + averaged, len(test), len(classes))
                answers.append((each.mean(axis=0, dtype=np.float64), test))
        except HeadError:  # likewise
            return None
        return answers

    def _candidate(self, head: Any) -> Candidate | None:
        if not isinstance(head, str):
            return None
        name, params = read_head(head)
        return Candidate(self.backbone, self.tap, "standard", name, tuple(params.items()))

    def novelty(
        self, rows: NDArray[np.intp], y: NDArray[np.generic], *, seed: int = 0
    ) -> Novelty | None:
        """Fit what marks images unlike those of some rows; None where too few are allowed."""
        most = _MOST_OF_NOVELTY
        if self.max_ram_bytes is not None:
            row_bytes = _COPIES_OF_NOVELTY * 4 * self.features.width(**self.block)
            most = min(most, self.max_ram_bytes // row_bytes)
        if most < _FEWEST_OF_NOVELTY:
            return None
        if len(rows) > most:
            rows = np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))
        groups = row_groups(self.features, rows)
        codes = np.unique(y[rows], return_inverse=True)[1].astype(np.intp)
        return fit_novelty(self.features.take(rows, **self.block), codes, groups, seed=seed)


class _Pass:
    """Passes over some rows and their views, in batches; see `featx.heads.rows.BatchSource`."""

    def __init__(self, fitting: Fitting, rows: NDArray[np.intp]) -> None:
        self._fitting, self._rows = fitting, rows

    def __call__(self, seed: int | None) -> Iterator[tuple[NDArray[np.float32], NDArray[np.intp]]]:
        fitting = self._fitting
        order = np.arange(len(fitting.views))
        if seed is not None:
            order = np.random.default_rng(seed).permutation(order)
        for number in order:
            batches = fitting.features.batches(
                **fitting.block,
                view=fitting.views[number],
                rows=self._rows,
                batch_size=fitting._batch_rows,
                shuffle=seed is not None,
                seed=seed or 0,
                max_ram_bytes=fitting._buffer_bytes,
            )
            for X, rows in batches:
                places = np.searchsorted(self._rows, rows) + number * len(self._rows)
                yield X.astype(np.float32, copy=False), places


def row_groups(features: Features, rows: NDArray[np.intp]) -> NDArray[np.int64]:
    """Return a number for each of some rows that equal images, and images of a group, share."""
    named = features.groups
    names = None if named is None else named[rows].tolist()
    return related_rows(features.keys[rows], names)


def block_bytes(features: Features, block: dict[str, str]) -> int:
    """Return the size of a block and of its views in memory, as float32."""
    width = features.width(**block)
    return 4 * width * len(features) * (1 + len(features.views(**block)))


def memory_bound(
    features: Features, block: dict[str, str], head: Any, max_ram: str | int | None
) -> int | None:
    """Return within how many bytes to train on batches; None to hold all features.

    Raises
    ------
    HeadError
        If a bound was asked for and the head has to see all rows at once.
    """
    if max_ram is not None:
        bound = as_bytes(max_ram)
        require_streamable(make_head(head))
        return bound
    whole, memory = block_bytes(features, block), machine_bytes()
    if memory is None or whole <= memory // _MACHINE_SHARE:
        return None
    sizes = f"{features.name!r} has {shown_bytes(whole)} of features, the machine has "
    sizes += f"{shown_bytes(memory)} of memory"
    try:
        require_streamable(make_head(head))
    except HeadError as error:
        logger.warning("%s: %s", sizes, error)
        return None
    bound = memory // _TAKEN_SHARE
    logger.warning("%s: training on batches, within %s (--max-ram)", sizes, shown_bytes(bound))
    return bound
