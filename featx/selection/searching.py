"""A search on arrays: try candidates on folds, choose one, and score it on rows it has not seen."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import DatasetError, FeaturesError, HeadError
from featx.heads.rows import Fold
from featx.selection.honest import HonestScore, Rows, choose_protocol, score_winner
from featx.selection.leaderboard import Leaderboard, choose, measure_costs, ranked
from featx.selection.measuring import FeatureBlock, Measuring, Watch
from featx.selection.metrics import find_scorer
from featx.selection.search_space import Candidate, Place, SearchSpace
from featx.selection.splits import named_fold
from featx.selection.strategies import Plan, SearchOptions, find_strategy
from featx.selection.transforms import parse_transform
from featx.selection.trials import Journal


def check_length(rows: int, labels: Sequence[Any] | NDArray[Any], what: str) -> None:
    """Raise `DatasetError` where there is not one label a row."""
    if len(labels) != rows:
        raise DatasetError(
            f"expected one label for each of {rows:,} rows of {what}, received {len(labels):,}: "
            "take features and labels from the same dataset, in the same order"
        )


def check_classes(y: NDArray[Any]) -> None:
    """Raise `DatasetError` where there are fewer than two classes."""
    names, counts = np.unique(y, return_counts=True)
    if len(names) < 2:
        found = (
            f"one class only: {str(names[0])!r} ({counts[0]:,} images)" if len(names) else "none"
        )
        raise DatasetError(
            f"a search needs images of two classes or more, received {found}: add images of "
            "another class, one folder each"
        )


def check_block(X: NDArray[Any], what: str) -> str:
    """Look through the features of a block."""
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


_PACKAGES = ("featx", "numpy", "scikit-learn", "scipy", "optuna")


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchOutcome:
    """What a search found.

    Parameters
    ----------
    leaderboard : Leaderboard
        Every trial, the best first.
    winner : Candidate
        Which one won.
    classes : ndarray of shape (k,)
        Labels, sorted.
    rows : ndarray of int
        Rows that the winner is to be fitted on.
    honest : HonestScore
        How good it is on rows that its selection has not seen.
    planned, untried, resumed : int
        Number of candidates; of those that the budget left untried; of trials known from before.
    notes : list of str
        What a user should know.
    seconds : float
        How long it took.
    """

    leaderboard: Leaderboard
    winner: Candidate
    classes: NDArray[Any]
    rows: NDArray[np.intp]
    honest: HonestScore
    planned: int
    untried: int
    resumed: int
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0


def search_arrays(
    blocks: Sequence[FeatureBlock],
    y: NDArray[Any],
    space: SearchSpace,
    options: SearchOptions | None = None,
    *,
    rows: NDArray[np.intp] | None = None,
    groups: NDArray[np.int64] | None = None,
    splits: NDArray[np.str_] | None = None,
    label_sets: tuple[NDArray[Any], NDArray[np.intp]] | None = None,
    journals: Path | None = None,
    fresh: bool = False,
    watch: Watch | None = None,
) -> SearchOutcome:
    """Search for the best of a space on features in memory."""
    started = time.monotonic()
    options = options or SearchOptions()
    strategy = find_strategy(options.strategy, options.n_trials)
    by_place: dict[Place, FeatureBlock] = {block.place: block for block in blocks}
    y, groups = np.asarray(y), np.arange(len(y)) if groups is None else groups
    for block in blocks:
        check_length(len(block.X), y, f"{block.backbone} {block.tap}")
    labelled = np.arange(len(y)) if rows is None else rows
    data, tested, notes = _set_test_aside(y, labelled, groups, splits, label_sets)
    several = data.sets is not None
    scorer = find_scorer(options.scoring, len(data.classes), multilabel=several)
    planned = _planned(space, tuple(by_place), options)
    used = {block.place: block for block in _used(space, by_place)}
    _require_components(space, used)
    notes += [
        note
        for block in used.values()
        if (note := check_block(block.take(data.rows), f"{block.backbone} {block.tap}"))
    ]
    protocol, kept, held = choose_protocol(data, tested, space, planned, options)
    notes += protocol.notes
    folds, more = _folds(kept, splits, options)
    notes += more
    journal = Journal(
        None
        if journals is None
        else journals / f"{_digest(used, y, data, groups, splits, space, options)}.jsonl",
        fresh=fresh,
    )
    deadline = None if options.budget_s is None else started + options.budget_s
    measuring = Measuring(
        used,
        kept.rows,
        kept.codes,
        kept.groups,
        folds,
        scorer,
        journal,
        seed=options.seed,
        n_jobs=options.n_jobs,
        deadline=deadline,
        watch=watch,
        sets=data.sets,
    )
    plan = Plan(space, tuple(used), options.n_trials, options.seed, kept.codes)
    strategy(plan, measuring.measure)
    trials = list(measuring.trials.values())
    costs = measure_costs(measuring, trials)
    ordered = ranked(trials, costs.order)
    place = choose(ordered, costs.order, one_standard_error=options.one_standard_error)
    if place is None:
        reasons = {trial.measured.failed for trial in ordered} - {""}
        raise HeadError(
            f"all {len(ordered)} candidates failed: {'; '.join(sorted(reasons)[:3])}: look at "
            "their parameters"
        )
    winner = ordered[place].candidate
    honest = score_winner(
        protocol.name,
        winner,
        replace(measuring, watch=None, deadline=None),
        plan,
        strategy,
        held,
        data,
        options,
    )
    return SearchOutcome(
        leaderboard=Leaderboard(ordered, place, costs, scorer, len(folds)),
        winner=winner,
        classes=data.classes,
        rows=data.rows,
        honest=honest,
        planned=planned,
        untried=len(measuring.untried),
        resumed=journal.resumed,
        notes=notes,
        seconds=time.monotonic() - started,
    )


def _set_test_aside(
    y: NDArray[Any],
    labelled: NDArray[np.intp],
    groups: NDArray[np.int64],
    splits: NDArray[np.str_] | None,
    label_sets: tuple[NDArray[Any], NDArray[np.intp]] | None,
) -> tuple[Rows, Rows | None, list[str]]:
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
    check_classes(y[train])
    if label_sets is not None:
        classes, sets = label_sets
        every = (y, classes, groups, sets)
        return Rows.of(train, *every), Rows.of(test, *every) if len(test) else None, notes
    classes = np.unique(y[train])
    strangers = sorted(set(y[test].tolist()) - set(classes.tolist()))
    if strangers:
        raise DatasetError(
            "test images have classes without a training image: "
            f"{', '.join(map(str, strangers[:5]))}: add some of them, or take these out of the test"
        )
    data = Rows.of(train, y, classes, groups)
    return data, Rows.of(test, y, classes, groups) if len(test) else None, notes


def _folds(
    data: Rows, splits: NDArray[np.str_] | None, options: SearchOptions
) -> tuple[list[Fold], list[str]]:
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
        return [fold], []
    folds = data.folds(options.cv, repeats=options.repeats, seed=options.seed)
    number = len(folds) // options.repeats
    if number < options.cv:
        return folds, [
            f"{number} folds in place of {options.cv}: the smallest class has {number} distinct "
            "images or groups"
        ]
    return folds, []


def _planned(space: SearchSpace, places: tuple[Place, ...], options: SearchOptions) -> int:
    size = space.size(places)
    if not size:
        raise HeadError(
            "the search space is empty: no block of these features has the backbone and the tap of "
            "one of its parts; there are: " + ", ".join(" ".join(place) for place in places)
        )
    if options.strategy == "grid":
        size = len(space.candidates(places))
    if options.n_trials is None:
        return min(size, 20) if options.strategy == "random" and not space.ranged() else size
    return options.n_trials if space.ranged() else min(size, options.n_trials)


def _used(space: SearchSpace, blocks: Mapping[Place, FeatureBlock]) -> list[FeatureBlock]:
    places = dict.fromkeys(place for part in space.parts for place in part.places(list(blocks)))
    return [blocks[place] for place in blocks if place in places]


def _require_components(space: SearchSpace, blocks: Mapping[Place, FeatureBlock]) -> None:
    for place, text, _ in space.choices(list(blocks)):
        size, width = parse_transform(text).size, blocks[place].X.shape[-1]
        if size is not None and size > width:
            raise HeadError(
                f"{text!r} asks for more components than the {width:,} columns of "
                f"{' '.join(place)}: ask for fewer, or for a share of the variance such as 0.95"
            )


def _digest(
    blocks: Mapping[Place, FeatureBlock],
    y: NDArray[Any],
    data: Rows,
    groups: NDArray[np.int64],
    splits: NDArray[np.str_] | None,
    space: SearchSpace,
    options: SearchOptions,
) -> str:
    """Return what tells this search from every other: equal digests have equal trials."""
    decides = {
        name: value
        for name, value in asdict(options).items()
        if name not in ("budget_s", "n_jobs", "one_standard_error")
    }
    found = hashlib.sha256(json.dumps([decides, space.describe(), _versions()]).encode())
    for place, block in blocks.items():
        content = block.digest or hashlib.sha256(np.ascontiguousarray(block.X).data).hexdigest()
        found.update(json.dumps([*place, content, len(block.views)]).encode())
    for column in (data.rows, data.codes, groups, data.classes.astype(str)):
        found.update(np.ascontiguousarray(column).data)
    if splits is not None:
        found.update(json.dumps(splits.tolist()).encode())
    return found.hexdigest()[:40]


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
