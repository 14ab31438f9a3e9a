"""The course of a search: strategies, trials, the winner and its honest score."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import (
    DatasetError,
    FeaturesError,
    HeadError,
    MissingExtraError,
    UnknownNameError,
)
from featx.files.safe_json import Json
from featx.heads.ensemble import Ensemble, choose_weights
from featx.heads.rows import Floats, Fold, Numbers
from featx.selection.leaderboard import Leaderboard, choose, measure_costs, ranked
from featx.selection.measuring import (
    FeatureBlock,
    Sample,
    Search,
    SearchOptions,
    Watch,
    predicted_values,
)
from featx.selection.metrics import Scorer, find_scorer, score_interval
from featx.selection.search_space import Axis, BlockKey, Candidate, Range, SearchSpace, build
from featx.selection.splits import named_fold
from featx.selection.transforms import parse_transform, pipeline
from featx.selection.trials import Journal, Trial

Strategy: TypeAlias = Callable[[Search], None]
"""Has a search measure what it chooses of its space."""

_TRIALS = 30
_DRAWN = 20
_FACTOR = 3
_FEWEST_ROWS = 100
_FEWEST_OF_A_CLASS = 4


def ask_optuna(search: Search) -> None:
    """Try what a seeded tree-structured Parzen estimator proposes, one candidate after another."""
    try:
        import optuna
    except ModuleNotFoundError as error:
        if error.name != "optuna":
            raise
        raise MissingExtraError("optuna", extra="hpo", purpose="the strategy 'optuna'") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = optuna.samplers.TPESampler(seed=search.options.seed)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    choices = search.space.choices(list(search.single))
    for _ in range(search.options.n_trials or _TRIALS):
        proposed = study.ask()
        number = proposed.suggest_categorical("choice", list(range(len(choices))))
        key, transform, head = choices[number]
        values = [_suggest(proposed, f"{number} {name}", axis) for name, axis in head.grid]
        trials = search.measure([build(key, transform, head, values)])
        if not trials:  # no time is left
            return
        if trials[0].scores:
            study.tell(proposed, trials[0].score)
        else:
            study.tell(proposed, state=optuna.trial.TrialState.FAIL)


def _suggest(proposed: Any, name: str, axis: Axis) -> object:
    if isinstance(axis, Range):
        # A share of the way, so that the value is rounded as everywhere else.
        return axis.at(proposed.suggest_float(name, 0.0, 1.0))
    return axis[proposed.suggest_categorical(name, list(range(len(axis))))]


def _grid(search: Search) -> None:
    search.measure(search.space.candidates(list(search.single)))


def _random(search: Search) -> None:
    search.measure(_draw(search))


def _draw(search: Search) -> list[Candidate]:
    count, keys = search.options.n_trials or _DRAWN, list(search.single)
    generator = np.random.default_rng(search.options.seed)
    if search.space.ranged() is None:
        every = search.space.candidates(keys)
        return [every[number] for number in generator.permutation(len(every))[:count]]
    choices = search.space.choices(keys)
    drawn: dict[Candidate, None] = {}
    for _ in range(20 * count):  # a small space may have fewer than are asked for
        key, transform, head = choices[int(generator.integers(len(choices)))]
        values = [
            axis.at(float(generator.random()))
            if isinstance(axis, Range)
            else axis[int(generator.integers(len(axis)))]
            for _, axis in head.grid
        ]
        drawn[build(key, transform, head, values)] = None
        if len(drawn) == count:
            break
    return list(drawn)


def _halving(search: Search) -> None:
    """Try all on few rows, the better third on three times as many, and so on to all rows."""
    if search.options.n_trials or search.space.ranged() is not None:
        left = _draw(search)
    else:
        left = search.space.candidates(list(search.single))
    codes = search.sample.codes
    fewest = _FEWEST_ROWS
    if not search.sample.regression:
        fewest = max(fewest, _FEWEST_OF_A_CLASS * (int(codes.max()) + 1))
    by_rows = int(math.log(max(1.0, len(codes) / fewest), _FACTOR) + 1e-9)
    by_candidates = math.ceil(math.log(max(1, len(left)), _FACTOR) - 1e-9)
    for step in range(min(by_rows, by_candidates), -1, -1):
        trials = search.measure(left, share=1 / _FACTOR**step)
        better = max(1, math.ceil(len(left) / _FACTOR))
        left = [trial.candidate for trial in ranked(trials)[:better]]
        if not left:
            return


STRATEGIES: Mapping[str, Strategy] = MappingProxyType(
    {"grid": _grid, "random": _random, "halving": _halving, "optuna": ask_optuna}
)
"""Every strategy by its name."""


def find_strategy(name: str, n_trials: int | None) -> Strategy:
    """Return a strategy."""
    if name not in STRATEGIES:
        raise UnknownNameError("strategy", str(name), STRATEGIES)
    if n_trials is not None and n_trials < 1:
        raise HeadError(f"expected 1 trial or more, received n_trials={n_trials}")
    if n_trials is not None and name == "grid":
        raise HeadError(
            f"a grid tries everything and takes no number of trials, received {n_trials}: leave it "
            "out, or take the strategy 'random'"
        )
    return STRATEGIES[name]


_MOST_JOINED = 6


def try_joins(search: Search) -> None:
    """Try blocks side by side: the best with each other, the best of these with each, and so on.

    This forward selection goes by the head and the transform that are best on one block, with all
    their settings, as long as the score rises. On the last join every head of the space is tried.
    """
    leading = _leading(search)
    if leading is None or len(search.single) < 2 or search.space.ranged() is not None:
        return
    chosen = [leading.candidate.block_key]
    head = leading.candidate.transform, leading.candidate.head
    while len(chosen) < min(len(search.single), _MOST_JOINED):
        before = leading
        for name in search.single:
            if name not in chosen:
                key = search.join([*chosen, name]).block_key
                same = [c for c in _on_join(search, key) if (c.transform, c.head) == head]
                leading = ranked([leading, *search.measure(same)])[0]
        if not leading.score > before.score:
            break
        chosen = [part.block_key for part in search.blocks[leading.candidate.block_key].parts]
    if len(chosen) > 1:
        search.measure(_on_join(search, leading.candidate.block_key))


_MOST_MEMBERS = 8
# Heads that every format can export: a product with a vector a class, or layers.
_DEAREST_MEMBER = 3


def try_ensemble(search: Search) -> None:
    """Try the mean of the best heads of each block, by weights that explain held-out rows best.

    Its score on a fold is that of weights chosen on the other folds, so that it competes with
    single heads on equal terms.
    """
    if search.sample.regression:  # weights explain labels
        return
    members = _members(search)
    if len(members) < 2 or len(search.folds) < 2:
        return
    answers = [search.held_out(trial.candidate) for trial in members]
    targets = search.sample.targets().astype(np.intp)
    truths = [targets[test] for _, test in search.folds]
    scores = []
    for fold, truth in enumerate(truths):
        others = [number for number in range(len(truths)) if number != fold]
        weights = _weights(answers, truths, others)
        mixed = sum(w * said[fold] for w, said in zip(weights, answers, strict=True))
        scores.append(search.scorer.function(truth, np.asarray(mixed)))
    weights = _weights(answers, truths, range(len(truths)))
    used = [(w, trial) for w, trial in zip(weights, members, strict=True) if w > 0]
    if len(used) > 1:
        search.keep(_ensemble(search, used), scores, [trial for _, trial in used])


def _members(search: Search) -> list[Trial]:
    """Return the best trial of each block, transform and head, the best ones first."""
    best: dict[tuple[object, ...], Trial] = {}
    able = [t for t in search.trials.values() if t.scores and not t.stopped and t.share == 1.0]
    for trial in ranked(able):
        candidate, row = trial.candidate, trial.candidate.row
        if row is not None and row.cost <= _DEAREST_MEMBER and candidate.estimator is None:
            best.setdefault((candidate.block_key, candidate.transform, candidate.head), trial)
    return list(best.values())[:_MOST_MEMBERS]


def _weights(
    answers: Sequence[Sequence[Floats]], truths: Sequence[Numbers], folds: Sequence[int]
) -> NDArray[np.float64]:
    every = [np.concatenate([said[fold] for fold in folds]) for said in answers]
    return choose_weights(every, np.concatenate([truths[fold] for fold in folds]))


def _ensemble(search: Search, used: Sequence[tuple[float, Trial]]) -> Candidate:
    """Return the candidate of weighted members, on the join of their blocks."""
    keys = [trial.candidate.block_key for _, trial in used]
    joint = search.join(list(dict.fromkeys(keys)))
    first, ranges = 0, {}
    for part in joint.parts or (joint,):
        ranges[part.block_key] = first, first + part.width
        first += part.width
    members, said = [], []
    for weight, trial in used:
        candidate, block = trial.candidate, search.blocks[trial.candidate.block_key]
        made = candidate.make(seed=search.options.seed, multilabel=search.sample.sets is not None)
        shape = (len(search.sample.rows) * block.copies, block.width)
        head = pipeline(parse_transform(candidate.transform), made, shape)
        members.append((head, tuple(ranges[p.block_key] for p in block.parts or (block,))))
        where = "" if len(set(keys)) == 1 else f" on {' '.join(candidate.block_key)}"
        before = "" if candidate.transform == "standard" else f" behind {candidate.transform}"
        said.append(f"{weight:.2f} {candidate.text}{before}{where}")
    head = Ensemble(tuple(members), tuple(float(weight) for weight, _ in used))
    text = f"ensemble of {', '.join(said)}"
    return Candidate(joint.backbone, joint.tap, "standard", text, (), head)


def _leading(search: Search) -> Trial | None:
    """Return the best trial on all rows, None where there is none."""
    able = [t for t in search.trials.values() if t.scores and not t.stopped and t.share == 1.0]
    return ranked(able)[0] if able else None


def _on_join(search: Search, key: BlockKey) -> list[Candidate]:
    """Return the candidates of those parts of the space that have every block of a join."""
    names = [part.block_key for part in search.blocks[key].parts]
    parts = [
        replace(part, backbones=None, taps=None)
        for part in search.space.parts
        if set(names) <= set(part.block_keys(search.single))
    ]
    return replace(search.space, parts=tuple(parts)).candidates([key]) if parts else []


_PACKAGES = ("featx", "numpy", "scikit-learn", "scipy", "optuna")
_PROTOCOLS = ("auto", "holdout", "nested", "none", "test")
_OUTER = 5
_HELD_OUT_OF = 5
_SMALL = 2_000
_CHEAP = 100_000
_ALONE = 10
_FEWEST = 3


def check_length(rows: int, labels: Sequence[object] | NDArray[np.generic], what: str) -> None:
    """Raise `DatasetError` where there is not one label a row."""
    if len(labels) != rows:
        raise DatasetError(
            f"expected one label for each of {rows:,} rows of {what}, received {len(labels):,}: "
            "take features and labels from the same dataset, in the same order"
        )


def _check_classes(y: NDArray[np.generic]) -> None:
    names, counts = np.unique(y, return_counts=True)
    if len(names) < 2:
        what = "none"
        if len(names):
            what = f"one class only: {str(names[0])!r} ({counts[0]:,} images)"
        raise DatasetError(
            f"a search needs images of two classes or more, received {what}: add images of "
            "another class, one folder each"
        )


def _check_block(X: Floats, what: str) -> str:
    """Look through the features of a block, and return what to know of them."""
    if X.ndim != 2 or X.dtype.kind not in "fiu" or not X.size:
        raise FeaturesError(
            f"expected {what} to be a matrix of numbers, one row an image, received shape "
            f"{X.shape} of {X.dtype}: pass one row an image"
        )
    # NaN and infinity show in the smallest and the greatest of their columns.
    with np.errstate(invalid="ignore"):
        low, high = X.min(axis=0), X.max(axis=0)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        bad = np.flatnonzero(~np.isfinite(X).all(axis=1))
        raise FeaturesError(
            f"{what} must be finite, received NaN or infinity in {bad.size:,} of {len(X):,} rows "
            f"(the first is row {bad[0]}): leave these images out, or extract them again"
        )
    constant = int((low == high).sum())
    if constant == X.shape[1]:
        raise FeaturesError(
            f"all {constant:,} columns of {what} are constant, the same in all {len(X):,} images, "
            "so that no head can tell classes apart: look at the images and at the tap they are of"
        )
    if constant:
        return (
            f"{what}: {constant:,} of {X.shape[1]:,} columns {'are' if constant > 1 else 'is'} the "
            f"same in all images and {'say' if constant > 1 else 'says'} nothing of their classes"
        )
    return ""


@dataclass(frozen=True, slots=True)
class HonestScore:
    """A score of the winner on rows that its selection has not seen.

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

    def to_dict(self) -> Json:
        """Return it as JSON types."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchOutcome:
    """What a search came to."""

    leaderboard: Leaderboard
    classes: NDArray[np.generic]
    rows: Numbers  # that the winner is to be fitted on
    honest: HonestScore
    planned: int
    untried: int  # candidates that the budget left
    resumed: int  # trials known from before
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0


def search_arrays(
    blocks: Sequence[FeatureBlock],
    y: NDArray[np.generic],
    space: SearchSpace,
    options: SearchOptions | None = None,
    *,
    rows: Numbers | None = None,
    groups: NDArray[np.int64] | None = None,
    splits: NDArray[np.str_] | None = None,
    label_sets: tuple[NDArray[np.generic], NDArray[np.number]] | None = None,
    journals: Path | None = None,
    watch: Watch | None = None,
) -> SearchOutcome:
    """Search for the best of a space on features in memory."""
    started = time.monotonic()
    options = options or SearchOptions()
    find_strategy(options.strategy, options.n_trials)
    by_key: dict[BlockKey, FeatureBlock] = {block.block_key: block for block in blocks}
    y, groups = np.asarray(y), np.arange(len(y)) if groups is None else groups
    for block in blocks:
        check_length(len(block.X), y, f"{block.backbone} {block.tap}")
    labelled = np.arange(len(y)) if rows is None else rows
    data, tested, notes = _set_test_aside(y, labelled, groups, splits, label_sets)
    kind = {"multilabel": data.sets is not None, "regression": data.regression}
    kind["multilabel"] &= not data.regression
    scorer = find_scorer(options.scoring, len(data.classes), **kind)
    planned = _planned(space, list(by_key), options)
    keys = {key for part in space.parts for key in part.block_keys(list(by_key))}
    used = {key: block for key, block in by_key.items() if key in keys}
    _require_components(space, used)
    for block in used.values():
        notes.append(_check_block(block.take(data.rows), f"{block.backbone} {block.tap}"))
    protocol, sample, held, note = _choose_protocol(data, tested, space, planned, options)
    folds, fewer = _folds(sample, splits, options)
    path = None
    if journals is not None:
        digest = _digest(used, data, groups, splits, space, options)
        path = journals / f"{digest}.jsonl"
    search = Search(
        used,
        space,
        options,
        sample,
        folds,
        scorer,
        Journal(path, fresh=not options.resume),
        deadline=None if options.budget_s is None else started + options.budget_s,
        watch=watch,
    )
    leaderboard = _selected(search)
    if isinstance(leaderboard, str):
        raise HeadError(leaderboard)
    if protocol == "nested":
        honest = _score_nested(search, data)
    elif held is None:
        honest = HonestScore("not measured on unseen images", scorer.name)
    else:
        what = "the test split" if protocol == "test" else "a fifth of the images, set aside before"
        text = f"{what}: {len(held.rows):,} images that the selection has not seen"
        values = _values(leaderboard.winner, search, held)
        honest = _scored(text, scorer, held, values, options.seed)
    return SearchOutcome(
        leaderboard=leaderboard,
        classes=data.classes,
        rows=data.rows,
        honest=honest,
        planned=max(planned, len(search.trials) + len(search.untried)),
        untried=len(search.untried),
        resumed=search.journal.resumed,
        notes=[text for text in (*notes, note, fewer) if text],
        seconds=time.monotonic() - started,
    )


def _selected(search: Search) -> Leaderboard | str:
    """Have the strategy measure candidates and choose; return why none won, where all failed."""
    options = search.options
    find_strategy(options.strategy, options.n_trials)(search)
    if options.joins:
        try_joins(search)
    if options.ensemble:
        try_ensemble(search)
    trials = list(search.trials.values())
    costs = measure_costs(search, trials, probing=search.scope == "main")
    ordered = ranked(trials, costs)
    chosen = choose(
        ordered,
        costs,
        one_standard_error=options.one_standard_error,
        usual=_usual(search),
        caution=options.caution,
        rows=len(search.sample.rows),
    )
    if chosen is None:
        reasons = {trial.failed for trial in ordered} - {""}
        return (
            f"all {len(ordered)} candidates failed: {'; '.join(sorted(reasons)[:3])}: look at "
            "their parameters"
        )
    return Leaderboard(ordered, chosen, costs, search.scorer, len(search.folds))


def _usual(search: Search) -> set[Candidate]:
    """Return the candidates of the first head on the first block of each backbone."""
    part = search.space.parts[0]
    first: dict[str, BlockKey] = {}
    for key in search.single:
        first.setdefault(key[0], key)
    usual = part.transforms[0], part.heads[0].label
    return {
        c for c in search.trials if c.block_key in first.values() and (c.transform, c.head) == usual
    }


def _set_test_aside(
    y: NDArray[np.generic],
    labelled: Numbers,
    groups: NDArray[np.int64],
    splits: NDArray[np.str_] | None,
    label_sets: tuple[NDArray[np.generic], NDArray[np.number]] | None,
) -> tuple[Sample, Sample | None, list[str]]:
    """Return the rows of the selection, those of a split ``test``, and what to know of them."""
    notes: list[str] = []
    train, test = labelled, labelled[:0]
    if splits is not None and (splits[labelled] == "test").any():
        inside, outside = named_fold(splits[labelled], "test", groups[labelled])
        train, test = labelled[inside], labelled[outside]
        twins = len(labelled) - len(train) - len(test)
        if twins:
            notes.append(
                f"{twins:,} test images equal a training image or are of its group: they do not "
                "count in the score"
            )
    _check_classes(y[train])
    classes, sets = label_sets or (np.unique(y[train]), None)
    strangers = sorted(set(y[test].tolist()) - set(classes.tolist()))
    if strangers:
        raise DatasetError(
            "test images have classes without a training image: "
            f"{', '.join(map(str, strangers[:5]))}: add some of them, or take these out of the test"
        )

    def sample(rows: Numbers) -> Sample:
        return Sample(rows, np.searchsorted(classes, y[rows]), groups[rows], classes, sets)

    return sample(train), sample(test) if len(test) else None, notes


def _choose_protocol(
    data: Sample, tested: Sample | None, space: SearchSpace, planned: int, options: SearchOptions
) -> tuple[str, Sample, Sample | None, str]:
    """Settle by counts, before the first trial, how the winner is scored and on which rows."""
    name = options.score
    if name not in _PROTOCOLS:
        raise UnknownNameError("way to score the winner", str(name), _PROTOCOLS)
    if name == "test" and tested is None:
        raise DatasetError(
            "score='test' needs images in a split 'test', and there are none: take "
            "score='holdout' or 'nested', or `featx dataset split NAME --test 0.2`"
        )
    if name in ("auto", "test") and tested is not None:
        return "test", data, tested, ""
    fewest = _fewest_distinct(data)
    if name in ("auto", "holdout", "nested") and fewest < _FEWEST:
        if name == "auto":
            note = (
                f"the winner was not scored on unseen images: the smallest class has {fewest} "
                f"distinct images or groups, and {_FEWEST} are needed"
            )
            return "none", data, None, note
        raise DatasetError(
            f"score={name!r} needs {_FEWEST} distinct images (or groups) of each class, the "
            f"smallest has {fewest}: add images, or take score='none'"
        )
    if name == "auto":
        rows = [head.row for part in space.parts for head in part.heads]
        alone = any(row is None or not row.sweep for row in rows)
        weight = _ALONE if alone or (data.sets is not None and not data.regression) else 1
        cheap = len(data.rows) <= _SMALL and len(data.rows) * planned * weight <= _CHEAP
        one_fold = isinstance(options.cv, str)
        name = "nested" if cheap and not options.budget_s and not one_fold else "holdout"
    if name == "nested" and isinstance(options.cv, str):
        raise DatasetError(
            f"score='nested' repeats the selection on parts of the images, which a split "
            f"(cv={options.cv!r}) cannot: take score='holdout' or a number of folds"
        )
    if name != "holdout":
        return name, data, None, ""
    train, test = data.folds(_HELD_OUT_OF, seed=options.seed)[0]
    return "holdout", data.take(train), data.take(test), ""


def _fewest_distinct(data: Sample) -> int:
    if data.sets is not None:
        return len(np.unique(data.groups))
    pairs = np.unique(np.stack([data.codes, data.groups], axis=1), axis=0)
    return int(np.bincount(pairs[:, 0]).min())


def _score_nested(search: Search, data: Sample) -> HonestScore:
    """Score the selection as a whole: it is repeated without each of some parts.

    Notes
    -----
    The score by which a winner was selected is the greatest of many noisy ones and so too high on
    average; Cawley, Talbot: "On over-fitting in model selection and subsequent selection bias in
    performance evaluation", JMLR 11 (2010).
    """
    options = search.options
    outer = data.folds(_OUTER, seed=options.seed)
    columns = len(data.classes) if data.sets is None else data.sets.shape[1]
    values = np.zeros((len(data.rows), columns))
    for number, (train, test) in enumerate(outer):
        inner = data.take(train)
        assert isinstance(options.cv, int)
        folds = inner.folds(options.cv, repeats=options.repeats, seed=options.seed)
        scope = f"outer {number}"
        part = replace(search, sample=inner, folds=folds, scope=scope, watch=None, deadline=None)
        leaderboard = _selected(part)
        if isinstance(leaderboard, str):
            return HonestScore("not measured: every candidate failed in it", options.scoring)
        values[test] = _values(leaderboard.winner, part, data.take(test))
    text = (
        f"nested {len(outer)}-fold cross-validation: the selection was repeated without each of "
        f"{len(outer)} parts of the {len(data.rows):,} images and its winner scored on that part"
    )
    return _scored(text, search.scorer, data, values, options.seed)


def _scored(text: str, scorer: Scorer, rows: Sample, values: Floats, seed: int) -> HonestScore:
    truth = rows.targets()
    shown = scorer.shown(scorer.function(truth, values))
    interval = score_interval(scorer, truth, values, seed=seed)
    return HonestScore(text, scorer.name, shown, interval, len(truth))


def _values(candidate: Candidate, search: Search, held: Sample) -> Floats:
    """Return what a candidate says of rows that it has not seen, trained on all of the search."""
    block, sample = search.blocks[candidate.block_key], search.sample
    several = sample.sets is not None and not sample.regression
    made = candidate.make(seed=search.options.seed, multilabel=several)
    shape = (len(sample.rows) * block.copies, block.width)
    head = pipeline(parse_transform(candidate.transform), made, shape)
    block.fit(head, sample.rows, sample.targets())
    unseen = block.take(held.rows)[: len(held.rows)]
    return predicted_values(head, unseen, search.scorer, len(held.classes))


def _folds(
    data: Sample, splits: NDArray[np.str_] | None, options: SearchOptions
) -> tuple[list[Fold], str]:
    """Return the folds, or the one that a split makes, and what to know of them."""
    if isinstance(options.cv, str):
        names = [] if splits is None else sorted(set(splits[data.rows].tolist()) - {""})
        if splits is None or options.cv not in names:
            raise DatasetError(
                f"expected a number of folds or a split of the images to select by, received "
                f"cv={options.cv!r}; splits are: {', '.join(names) or 'none'}"
            )
        fold = named_fold(splits[data.rows], options.cv, data.groups)
        trained = np.bincount(data.codes[fold[0]], minlength=len(data.classes))
        if not len(fold[1]) or (data.sets is None and not trained.all()):
            raise DatasetError(
                f"the split {options.cv!r} leaves {len(fold[1])} images to select by and "
                f"{int((trained == 0).sum())} classes without a training image: every class needs "
                "one, or take cv=5"
            )
        return [fold], ""
    folds = data.folds(options.cv, repeats=options.repeats, seed=options.seed)
    number = len(folds) // options.repeats
    if number == options.cv:
        return folds, ""
    return folds, (
        f"{number} folds in place of {options.cv}: "
        f"{'there are' if data.regression else 'the smallest class has'} {number} distinct images "
        "or groups"
    )


def _planned(space: SearchSpace, keys: list[BlockKey], options: SearchOptions) -> int:
    size = space.size(keys)
    if not size:
        raise HeadError(
            "the search space is empty: no block of these features has the backbone and the tap of "
            "one of its parts; there are: " + ", ".join(" ".join(key) for key in keys)
        )
    if options.strategy == "grid":
        size = len(space.candidates(keys))
    if options.n_trials is None:
        return min(size, 20) if options.strategy == "random" and not space.ranged() else size
    return options.n_trials if space.ranged() else min(size, options.n_trials)


def _require_components(space: SearchSpace, blocks: Mapping[BlockKey, FeatureBlock]) -> None:
    for key, text, _ in space.choices(list(blocks)):
        size, width = parse_transform(text).size, blocks[key].width
        if size is not None and size > width:
            raise HeadError(
                f"{text!r} asks for more components than the {width:,} columns of "
                f"{' '.join(key)}: ask for fewer, or for a share of the variance such as 0.95"
            )


# Options that do not change what is measured, only how long, how much of it and what is made of it.
_AFTERWARDS = (
    *("budget_s", "n_jobs", "one_standard_error", "resume"),
    *("joins", "ensemble", "caution"),
)


def _digest(
    blocks: Mapping[BlockKey, FeatureBlock],
    data: Sample,
    groups: NDArray[np.int64],
    splits: NDArray[np.str_] | None,
    space: SearchSpace,
    options: SearchOptions,
) -> str:
    """Return what tells this search from every other: equal digests have equal trials."""
    decides = {name: value for name, value in asdict(options).items() if name not in _AFTERWARDS}
    digest = hashlib.sha256(json.dumps([decides, space.describe(), _versions()]).encode())
    for key, block in blocks.items():
        content = block.digest or hashlib.sha256(np.ascontiguousarray(block.X).data).hexdigest()
        digest.update(json.dumps([*key, content, len(block.views)]).encode())
    columns = [data.rows, data.codes, groups, data.classes.astype(str)]
    if data.regression and data.sets is not None:
        columns.append(data.sets)
    for column in columns:
        digest.update(np.ascontiguousarray(column).data)
    if splits is not None:
        digest.update(json.dumps(splits.tolist()).encode())
    return digest.hexdigest()[:40]


def _versions() -> dict[str, str]:
    versions = {}
    for package in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions
