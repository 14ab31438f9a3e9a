"""Fit heads on a dataset's features and ask them of other rows: in memory, or within a bound."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias, TypedDict

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone

from featx.cache.features import Features
from featx.exceptions import HeadError
from featx.extraction.backbone_choice import BackboneChoice
from featx.files.keys import related_rows
from featx.heads.learning import fit_head_streamed, require_streamable
from featx.heads.novelty import Novelty, fit_novelty
from featx.heads.rows import Batch, Floats, Fold, Numbers
from featx.heads.table import HEADS
from featx.memory import as_bytes, machine_bytes, shown_bytes
from featx.models.classifier import ImageClassifier
from featx.models.training_keys import describe_training
from featx.selection.measuring import (
    FeatureBlock,
    Sample,
    find_sweep,
    fold_data,
    held_out_together,
)
from featx.selection.search_space import Candidate
from featx.selection.transforms import Estimator

logger = logging.getLogger("featx")

Answers: TypeAlias = Iterator[tuple[Floats, Numbers]]
"""Probabilities (b, k) with the places (b,) of the rows that they are of."""

_MACHINE_SHARE, _TAKEN_SHARE = 2, 4
# Shares of a bound: half is the head's; of the other half a part each is a batch and its reading.
_MOST_ROWS, _LEAST_ROWS = 16384, 16
_BATCH_SHARE, _BUFFER_SHARE = 32, 4
_MOST_OF_NOVELTY, _FEWEST_OF_NOVELTY, _COPIES_OF_NOVELTY = 4000, 20, 12


class BlockName(TypedDict):
    """What names a block of features."""

    backbone: str
    tap: str


def untrained_model(
    features: Features, block: BlockName, head: object, choice: BackboneChoice, **parameters: Any
) -> ImageClassifier:
    """Return a classifier whose images are read as those of a block of features were."""
    spec, views = features.spec(**block), features.views(**block)
    return ImageClassifier(
        head=head,
        **choice.arguments(),
        tap=block["tap"],
        image=spec.image,
        views=len(views),
        view_policy=features.spec(**block, view=views[0]).views if views else None,
        **parameters,
    )


@dataclass(eq=False)
class Fitting:
    """One block of features with what is learnt of it."""

    features: Features
    block: BlockName
    head: Estimator  # untrained; each fit is of a copy
    targets: NDArray[np.generic]  # labels (n,); or 0 and 1, a column a label, (n, labels)
    max_ram_bytes: int | None = None  # bound on what is held; by default all features are

    def __post_init__(self) -> None:
        self.views: list[int | None] = [None, *self.features.views(**self.block)]
        row_bytes = 4 * self.features.width(**self.block)
        half = (self.max_ram_bytes or 0) // 2
        rows = np.clip(half // _BATCH_SHARE // row_bytes, _LEAST_ROWS, _MOST_ROWS)
        self._batch_rows = int(rows)
        self._buffer_bytes = max(half // _BUFFER_SHARE, 2 * row_bytes * self._batch_rows)

    @cached_property
    def _matrices(self) -> list[Floats]:
        """The features of the images and of each view."""
        return [self.features.matrix(**self.block, view=view) for view in self.views]

    def fit(self, rows: Numbers) -> Estimator:
        """Fit the head on rows and their views, one view below the other, and return it."""
        head = clone(self.head)
        targets = np.concatenate([self.targets[rows]] * len(self.views))
        if self.max_ram_bytes is not None:

            def batches(seed: int | None) -> Iterator[Batch]:
                return self._batches(rows, seed)

            half = self.max_ram_bytes // 2
            return fit_head_streamed(head, batches, targets, max_ram_bytes=half)
        parts = [matrix[rows] for matrix in self._matrices]
        X = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return head.fit(X if X.dtype in (np.float32, np.float64) else X.astype(np.float32), targets)

    def _batches(self, rows: Numbers, seed: int | None) -> Iterator[Batch]:
        """Pass over rows and their views in batches; see `featx.heads.rows.BatchSource`."""
        order = np.arange(len(self.views))
        if seed is not None:
            order = np.random.default_rng(seed).permutation(order)
        for number in order:
            batches = self.features.batches(
                **self.block,
                view=self.views[number],
                rows=rows,
                batch_size=self._batch_rows,
                shuffle=seed is not None,
                seed=seed or 0,
                max_ram_bytes=self._buffer_bytes,
            )
            for X, chosen in batches:
                places = np.searchsorted(rows, chosen) + number * len(rows)
                yield X.astype(np.float32, copy=False), places

    def answers(self, head: Estimator, rows: Numbers, averaged: int) -> Answers:
        """Yield what a head says of rows and their places: the mean over this many views too."""
        step = len(rows) if self.max_ram_bytes is None else self._batch_rows
        for start in range(0, len(rows), max(1, step)):
            chosen = rows[start : start + step]
            parts = [self._take(chosen, number) for number in range(1 + averaged)]
            proba = np.mean([head.predict_proba(part) for part in parts], axis=0)
            yield proba, np.arange(start, start + len(chosen))

    def _take(self, rows: Numbers, number: int) -> Floats:
        if self.max_ram_bytes is None:
            return self._matrices[number][rows]
        return self.features.take(rows, **self.block, view=self.views[number])

    def held_out(
        self, rows: Numbers, folds: Sequence[Fold], averaged: int, *, name: str = "", seed: int = 0
    ) -> Answers:
        """Yield what the heads of folds say of the rows of which each has learnt nothing.

        All are fitted together where the head has a name and a sweep that gives its probabilities.
        """
        together = self._answers_together(rows, folds, averaged, name, seed)
        if together is not None:
            yield from together
            return
        for train, test in folds:
            for proba, places in self.answers(self.fit(rows[train]), rows[test], averaged):
                yield proba, test[places]

    def _answers_together(
        self, rows: Numbers, folds: Sequence[Fold], averaged: int, name: str, seed: int
    ) -> list[tuple[Floats, Numbers]] | None:
        if self.max_ram_bytes is not None or self.targets.ndim == 2 or name not in HEADS:
            return None
        params = self.head.steps[-1][1].get_params(deep=False)
        candidate = Candidate(
            **self.block, transform="standard", head=name, params=(*params.items(),)
        )
        sweep = find_sweep(candidate, probabilities=True)
        if sweep is None:
            return None
        classes, codes = np.unique(self.targets[rows], return_inverse=True)
        first, *others = self._matrices
        block = FeatureBlock(**self.block, X=first, views=tuple(others))
        data = fold_data(block, Sample(rows, codes, np.arange(len(rows)), classes), folds)
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
        except HeadError:  # likewise, or parameters that the sweep does not have
            return None
        return answers

    def finish(
        self,
        model: ImageClassifier,
        y: NDArray[np.generic],
        rows: Numbers,
        names: NDArray[np.generic] | None,
    ) -> Estimator:
        """Fit the head on rows, and return it; the model takes it and what it learnt from."""
        head = self.fit(rows)
        spec, width = self.features.spec(**self.block), self.features.width(**self.block)
        model.take_head(head, spec, n_features=width, labels=names)
        model.training_ = describe_training(self.features, y, rows)
        return head

    def novelty(self, rows: Numbers, y: NDArray[np.generic], *, seed: int = 0) -> Novelty | None:
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


def row_groups(features: Features, rows: NDArray[np.intp]) -> NDArray[np.int64]:
    """Return a number for each of some rows that equal images, and images of a group, share."""
    named = features.groups
    names = None if named is None else named[rows].tolist()
    return related_rows(features.keys[rows], names)


def block_bytes(features: Features, block: BlockName) -> int:
    """Return the size of a block and of its views in memory, as float32."""
    width = features.width(**block)
    return 4 * width * len(features) * (1 + len(features.views(**block)))


def memory_bound(
    features: Features, block: BlockName, head: Estimator, max_ram: str | int | None
) -> int | None:
    """Return within how many bytes to train on batches; None to hold all features.

    `HeadError` where a bound was asked for and the head has to see all rows at once.
    """
    if max_ram is not None:
        bound = as_bytes(max_ram)
        require_streamable(head)
        return bound
    whole, memory = block_bytes(features, block), machine_bytes()
    if memory is None or whole <= memory // _MACHINE_SHARE:
        return None
    sizes = f"{features.name!r} has {shown_bytes(whole)} of features, the machine has "
    sizes += f"{shown_bytes(memory)} of memory"
    try:
        require_streamable(head)
    except HeadError as error:
        logger.warning("%s: %s", sizes, error)
        return None
    bound = memory // _TAKEN_SHARE
    logger.warning("%s: training on batches, within %s (--max-ram)", sizes, shown_bytes(bound))
    return bound
