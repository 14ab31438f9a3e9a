"""One block of features, or several side by side, with what is learnt of it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone

from featx.backbones.source import canonical_name
from featx.backbones.taps import parse_taps
from featx.cache.features import Features
from featx.exceptions import FeaturesError, HeadError
from featx.extraction.backbone_choice import (
    BackboneChoice,
    Branch,
    branch_arguments,
    listed,
)
from featx.files.identity import content_groups
from featx.heads.learning import fit_head_streamed, require_streamable
from featx.heads.novelty import Novelty, fit_novelty
from featx.heads.rows import Batch, Floats, Fold, Numbers
from featx.heads.table import heads_for
from featx.memory import as_bytes, machine_bytes, shown_bytes
from featx.models.classifier import ImageClassifier
from featx.models.regressor import ImageRegressor
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
from featx.spec import BlockName, joined_name

if TYPE_CHECKING:
    pass

logger = logging.getLogger("featx")

Answers: TypeAlias = Iterator[tuple[Floats, Numbers]]
"""Probabilities (b, k) with the places (b,) of the rows that they are of."""

_MACHINE_SHARE, _TAKEN_SHARE = 2, 4
# Shares of a bound: half is the head's; of the other half a part each is a batch and its reading.
_MOST_ROWS, _LEAST_ROWS = 16384, 16
_BATCH_SHARE, _BUFFER_SHARE = 32, 4
_MOST_OF_NOVELTY, _FEWEST_OF_NOVELTY, _COPIES_OF_NOVELTY = 4000, 20, 12


def read_block(
    features: Features, name: BlockName, rows: Numbers | None = None, **known: Any
) -> FeatureBlock:
    """Return a block of features, or some rows of it, with its views, in memory."""
    views = [None, *features.views(**name)]
    if rows is None:
        first, *others = [features.matrix(**name, view=view) for view in views]
    else:
        first, *others = [features.take(rows, **name, view=view) for view in views]
    return FeatureBlock(**name, X=first, views=tuple(others), **known)


def chosen_block(
    features: Features,
    backbone: str | Sequence[str] | None,
    tap: str | Sequence[str] | Mapping[str, Any] | None,
) -> BlockName:
    """Return the block that names choose, or those of several backbones or taps side by side."""
    parts = []
    for name in [None] if backbone is None else listed(backbone):
        taps = tap.get(name) if isinstance(tap, Mapping) and name is not None else tap
        for text in [None] if taps is None else parse_taps(taps):
            known = None if name is None else canonical_name(name)
            block = features.block(backbone=known, tap=text)
            parts.append((block.backbone, block.tap))
    return joined_name(parts)


def branches_of(
    features: Features,
    block: BlockName,
    *,
    called: Mapping[str, str],
    weights: Any,
    preprocessing: Any,
    trust: bool,
) -> list[Branch]:
    """Return the backbones of a block, or of several side by side, as a model reads them.

    ``called`` has the user's names by the canonical ones; what is not stated is as in the
    extraction.
    """
    taps: dict[str, list[str]] = {}
    for part in features.joined(**block):
        taps.setdefault(part.backbone, []).append(part.tap)
    branches = []
    for backbone, spec in zip(taps, features.specs(**block), strict=True):
        name = called.get(backbone, backbone)
        choice = BackboneChoice(
            name,
            weights.get(name) if isinstance(weights, Mapping) else weights,
            preprocessing=(
                preprocessing.get(name) if isinstance(preprocessing, Mapping) else preprocessing
            ),
            trust=trust,
        )
        origin = features.origins.get((spec.backbone, spec.weights_sha256))
        completed = choice.completed(spec, origin)
        branches.append(Branch(completed, tuple(taps[backbone])))
    return branches


def untrained_model(
    features: Features,
    block: BlockName,
    head: object,
    branches: list[Branch],
    *,
    regression: bool = False,
    **parameters: Any,
) -> ImageClassifier | ImageRegressor:
    """Return a model whose images are read as those of a block of features were."""
    views = features.views(**block)
    (image, *others) = {spec.image for spec in features.specs(**block)}
    if others:
        raise FeaturesError(
            f"the features of {block['backbone']} were decoded by different rules ({image} and "
            f"{others[0]}), and a model reads an image once: extract them again with the same "
            "--resize, --draft and --window"
        )
    if regression:
        del parameters["multilabel"]
    return (ImageRegressor if regression else ImageClassifier)(
        head=head,
        **branch_arguments(branches),
        image=image,
        views=len(views),
        view_policy=features.specs(**block, view=views[0])[0].views if views else None,
        **parameters,
    )


@dataclass(eq=False)
class Fitting:
    """One block of features with what is learnt of it."""

    features: Features
    block: BlockName
    head: Estimator  # untrained; each fit is of a copy
    # Labels (n,); or, a column each, 0 and 1 of labels or numbers of a regression, (n, k).
    targets: NDArray[np.generic]
    max_ram_bytes: int | None = None  # bound on what is held; by default all features are

    def __post_init__(self) -> None:
        self.views: list[int | None] = [None, *self.features.views(**self.block)]
        row_bytes = 4 * self.features.width(**self.block)
        half = (self.max_ram_bytes or 0) // 2
        rows = np.clip(half // _BATCH_SHARE // row_bytes, _LEAST_ROWS, _MOST_ROWS)
        self._batch_rows = int(rows)
        self._buffer_bytes = max(half // _BUFFER_SHARE, 2 * row_bytes * self._batch_rows)

    @property
    def regression(self) -> bool:
        """Whether numbers are learnt: they are float, where labels are whole."""
        return self.targets.ndim == 2 and self.targets.dtype.kind == "f"

    @cached_property
    def _held(self) -> FeatureBlock:
        """All features, where nothing bounds memory."""
        return read_block(self.features, self.block)

    def fit(self, rows: Numbers) -> Estimator:
        """Fit the head on rows and their views, one view below the other, and return it."""
        head, y = clone(self.head), self.targets[rows]
        if self.regression and y.shape[1] == 1:
            y = y[:, 0]
        if self.max_ram_bytes is None:
            return self._held.fit(head, rows, y)

        def batches(seed: int | None) -> Iterator[Batch]:
            return self._batches(rows, seed)

        y, half = np.concatenate([y] * len(self.views)), self.max_ram_bytes // 2
        return fit_head_streamed(head, batches, y, max_ram_bytes=half)

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
        """Yield what a head says of rows and their places: the mean over this many views too.

        These are probabilities, or the numbers (b, k) of a regression.
        """
        step = len(rows) if self.max_ram_bytes is None else self._batch_rows
        for start in range(0, len(rows), max(1, step)):
            chosen = rows[start : start + step]
            parts = [self._take(chosen, number) for number in range(1 + averaged)]
            if self.regression:
                said = [np.asarray(head.predict(part)).reshape(len(part), -1) for part in parts]
            else:
                said = [head.predict_proba(part) for part in parts]
            yield np.mean(said, axis=0), np.arange(start, start + len(chosen))

    def _take(self, rows: Numbers, number: int) -> Floats:
        if self.max_ram_bytes is None:
            return (self._held.X, *self._held.views)[number][rows]
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
        numbers = self.regression
        if self.max_ram_bytes is not None or (self.targets.ndim == 2 and not numbers):
            return None
        if name not in heads_for(regression=numbers):
            return None
        params = self.head.steps[-1][1].get_params(deep=False)
        candidate = Candidate(
            **self.block,
            transform="standard",
            head=name,
            params=(*params.items(),),
            regression=numbers,
        )
        sweep = find_sweep(candidate, probabilities=not numbers)
        if sweep is None:
            return None
        places = np.arange(len(rows))
        if numbers:
            truth = self.targets[rows].astype(np.float64)
            sample = Sample(rows, places, places, places, truth)
        else:
            classes, codes = np.unique(self.targets[rows], return_inverse=True)
            sample = Sample(rows, codes, places, classes)
        data = fold_data(self._held, sample, folds)
        copies = np.arange(1 + averaged)[:, None] * len(rows)
        data.folds = [(train, (test + copies).ravel()) for train, test in data.folds]
        answers = []
        try:
            for held in held_out_together(
                sweep, [candidate], data, seed=seed, probabilities=not numbers
            ):
                if held.stopped:  # it diverged, of which its own fit says more
                    return None
                test = folds[held.fold][1]
                each = held.values.reshape(1 + averaged, len(test), -1)
                answers.append((each.mean(axis=0, dtype=np.float64), test))
        except HeadError:  # likewise, or parameters that the sweep does not have
            return None
        return answers

    def finish(
        self,
        model: ImageClassifier | ImageRegressor,
        y: NDArray[np.generic],
        rows: Numbers,
        names: NDArray[np.generic] | None,
    ) -> Estimator:
        """Fit the head on rows, and return it; the model takes it and what it learnt from."""
        head = self.fit(rows)
        specs, width = self.features.specs(**self.block), self.features.width(**self.block)
        if isinstance(model, ImageRegressor):
            values = self.targets[rows].astype(np.float64)
            model.take_head(head, specs, n_features=width, names=names, values=values)
        else:
            model.take_head(head, specs, n_features=width, labels=names)
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
        named = self.features.groups
        groups = content_groups(self.features.keys[rows], None if named is None else named[rows])
        codes = np.unique(y[rows], return_inverse=True)[1].astype(np.intp)
        return fit_novelty(self.features.take(rows, **self.block), codes, groups, seed=seed)


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
