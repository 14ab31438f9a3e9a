"""How good the winner is on rows that its selection has not seen.

The score by which a winner was selected is the greatest of many noisy ones and so too high on
average; Cawley, Talbot: "On over-fitting in model selection and subsequent selection bias in
performance evaluation", JMLR 11 (2010).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import DatasetError, UnknownNameError
from featx.heads.rows import Fold
from featx.heads.table import HEADS
from featx.selection.leaderboard import choose, measure_costs, ranked
from featx.selection.measuring import Measuring, predicted_values
from featx.selection.metrics import Scorer, score_interval
from featx.selection.search_space import Candidate, SearchSpace
from featx.selection.splits import label_folds, repeated_folds
from featx.selection.strategies import Plan, SearchOptions, Strategy
from featx.selection.transforms import parse_transform, pipeline

_PROTOCOLS = ("auto", "holdout", "nested", "none", "test")
_OUTER = 5
_HELD_OUT_OF = 5
_SMALL = 2_000
_CHEAP = 100_000
_ALONE = 10
_FEWEST = 3


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Some rows of the dataset with what the selection has to know of them.

    Parameters
    ----------
    rows : ndarray of shape (n,)
        Which.
    codes : ndarray of shape (n,)
        Their classes.
    groups : ndarray of shape (n,), int64
        Rows with equal numbers are never on both sides.
    classes : ndarray of shape (k,)
        Labels, sorted.
    sets : ndarray of shape (k, labels), optional
        Where an image has several labels, a class is a set of them: which each has.
    """

    rows: NDArray[np.intp]
    codes: NDArray[np.intp]
    groups: NDArray[np.int64]
    classes: NDArray[Any]
    sets: NDArray[np.intp] | None = None

    @classmethod
    def of(
        cls,
        rows: NDArray[np.intp],
        y: NDArray[Any],
        classes: NDArray[Any],
        groups: NDArray[np.int64],
        sets: NDArray[np.intp] | None = None,
    ) -> Rows:
        """Take rows of labels and groups."""
        return cls(rows, np.searchsorted(classes, y[rows]), groups[rows], classes, sets)

    def targets(self, places: NDArray[np.intp] | None = None) -> NDArray[np.intp]:
        """Return classes (m,), or labels (m, labels) of 0 and 1, of some or all of these rows."""
        codes = self.codes if places is None else self.codes[places]
        return codes if self.sets is None else self.sets[codes]

    def folds(self, folds: int, *, repeats: int = 1, seed: int = 0) -> list[Fold]:
        """Split them, with every class or label in equal shares."""
        if self.sets is None:
            labels = self.classes[self.codes]
            return repeated_folds(
                labels, folds=folds, repeats=repeats, groups=self.groups, seed=seed
            )
        # A byte an entry: of many images and labels that is an eighth of what sets have.
        targets = self.sets.astype(np.uint8)[self.codes]
        return [
            fold
            for repeat in range(repeats)
            for fold in label_folds(targets, folds=folds, groups=self.groups, seed=seed + repeat)
        ]

    def take(self, places: NDArray[np.intp]) -> Rows:
        """Return some of these rows."""
        return replace(
            self, rows=self.rows[places], codes=self.codes[places], groups=self.groups[places]
        )


@dataclass(frozen=True, slots=True)
class Protocol:
    """How the winner is scored, and what to know of it."""

    name: str
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class HonestScore:
    """A score of the winner.

    Parameters
    ----------
    protocol : str
        What it was measured on.
    scoring : str
        The name of the score.
    value : float, optional
        The score, as it is shown; None where it was not measured.
    interval : tuple of float, optional
        Its 95 % interval, with images taken as independent of each other.
    images : int
        Number of images it was measured on.
    """

    protocol: str
    scoring: str
    value: float | None = None
    interval: tuple[float, float] | None = None
    images: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON types."""
        return asdict(self)


def choose_protocol(
    data: Rows,
    tested: Rows | None,
    space: SearchSpace,
    planned: int,
    options: SearchOptions,
) -> tuple[Protocol, Rows, Rows | None]:
    """Settle how the winner is scored, before the first trial, by counts alone."""
    name = options.score
    if name not in _PROTOCOLS:
        raise UnknownNameError("way to score the winner", str(name), _PROTOCOLS)
    if name == "test" and tested is None:
        raise DatasetError(
            "score='test' needs images in a split 'test', and there are none: take "
            "score='holdout' or 'nested', or `featx dataset split NAME --test 0.2`"
        )
    if name in ("auto", "test") and tested is not None:
        return Protocol("test"), data, tested
    fewest = _fewest_distinct(data)
    if name in ("auto", "holdout", "nested") and fewest < _FEWEST:
        if name == "auto":
            note = (
                f"the winner was not scored on unseen images: the smallest class has {fewest} "
                f"distinct images or groups, and {_FEWEST} are needed"
            )
            return Protocol("none", [note]), data, None
        raise DatasetError(
            f"score={name!r} needs {_FEWEST} distinct images (or groups) of each class, the "
            f"smallest has {fewest}: add images, or take score='none'"
        )
    if name == "auto":
        weight = _ALONE if _any_alone(space) or data.sets is not None else 1
        cheap = len(data.rows) <= _SMALL and len(data.rows) * planned * weight <= _CHEAP
        one_fold = isinstance(options.cv, str)
        name = "nested" if cheap and not options.budget_s and not one_fold else "holdout"
    if name == "nested" and isinstance(options.cv, str):
        raise DatasetError(
            f"score='nested' repeats the selection on parts of the images, which a split "
            f"(cv={options.cv!r}) cannot: take score='holdout' or a number of folds"
        )
    if name != "holdout":
        return Protocol(name), data, None
    train, test = data.folds(_HELD_OUT_OF, seed=options.seed)[0]
    return Protocol("holdout"), data.take(train), data.take(test)


def _fewest_distinct(data: Rows) -> int:
    if data.sets is not None:
        return len(np.unique(data.groups))
    pairs = np.unique(np.stack([data.codes, data.groups], axis=1), axis=0)
    return int(np.bincount(pairs[:, 0]).min())


def _any_alone(space: SearchSpace) -> bool:
    heads = {head.label for part in space.parts for head in part.heads}
    return any(head not in HEADS or not HEADS[head].sweep for head in heads)


def score_winner(
    protocol: str,
    winner: Candidate,
    measuring: Measuring,
    plan: Plan,
    strategy: Strategy,
    held: Rows | None,
    data: Rows,
    options: SearchOptions,
) -> HonestScore:
    """Score the winner, or the selection as a whole where the protocol is nested."""
    scorer = measuring.scorer
    if protocol == "none":
        return HonestScore("not measured on unseen images", scorer.name)
    if protocol == "nested":
        return _nested(measuring, plan, strategy, data, options)
    assert held is not None
    values = _values(winner, measuring, held, options.seed)
    what = "the test split" if protocol == "test" else "a fifth of the images, set aside before"
    text = f"{what}: {len(held.rows):,} images that the selection has not seen"
    return _scored(text, scorer, held.targets(), values, options.seed)


def _nested(
    measuring: Measuring, plan: Plan, strategy: Strategy, data: Rows, options: SearchOptions
) -> HonestScore:
    outer = data.folds(_OUTER, seed=options.seed)
    columns = len(data.classes) if data.sets is None else data.sets.shape[1]
    values = np.zeros((len(data.rows), columns))
    for number, (train, test) in enumerate(outer):
        inner = data.take(train)
        assert isinstance(options.cv, int)
        sub = replace(
            measuring,
            rows=inner.rows,
            codes=inner.codes,
            groups=inner.groups,
            folds=inner.folds(options.cv, repeats=options.repeats, seed=options.seed),
            scope=f"outer {number}",
            trials={},
            untried=set(),
            _data={},
        )
        strategy(replace(plan, codes=inner.codes), sub.measure)
        trials = list(sub.trials.values())
        costs = measure_costs(sub, trials)
        ordered = ranked(trials, costs.order)
        place = choose(ordered, costs.order, one_standard_error=options.one_standard_error)
        if place is None:
            return HonestScore("not measured: every candidate failed in it", options.scoring)
        chosen = ordered[place].candidate
        values[test] = _values(chosen, sub, data.take(test), options.seed)
    text = (
        f"nested {len(outer)}-fold cross-validation: the selection was repeated without each of "
        f"{len(outer)} parts of the {len(data.rows):,} images and its winner scored on that part"
    )
    return _scored(text, measuring.scorer, data.targets(), values, options.seed)


def _scored(
    protocol: str, scorer: Scorer, truth: NDArray[np.intp], values: NDArray[Any], seed: int
) -> HonestScore:
    return HonestScore(
        protocol,
        scorer.name,
        scorer.shown(scorer.function(truth, values)),
        score_interval(scorer, truth, values, seed=seed),
        len(truth),
    )


def _values(
    candidate: Candidate, measuring: Measuring, held: Rows, seed: int
) -> NDArray[np.floating[Any]]:
    block = measuring.blocks[candidate.backbone, candidate.tap]
    copies = 1 + len(block.views)
    codes = np.tile(measuring.codes, copies)
    y = codes if measuring.sets is None else measuring.sets[codes]
    head = fit_winner(candidate, block.take(measuring.rows), y, seed=seed)
    X = block.take(held.rows)[: len(held.rows)]
    return predicted_values(head, X, measuring.scorer, len(held.classes))


def fit_winner(candidate: Candidate, X: NDArray[Any], y: NDArray[Any], *, seed: int) -> Any:
    """Fit a candidate with its transform, as one estimator."""
    made = pipeline(
        parse_transform(candidate.transform),
        candidate.make(seed=seed, multilabel=y.ndim == 2),
        X.shape,
    )
    return made.fit(X, y)
