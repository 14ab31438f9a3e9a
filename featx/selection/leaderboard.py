"""Trials in their order: what is best, what it costs, and which one wins."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from featx.files.safe_json import Json
from featx.selection.measuring import Search, probe
from featx.selection.metrics import Scorer
from featx.selection.search_space import Candidate
from featx.selection.transforms import parse_transform
from featx.selection.trials import Trial

_TIE = 1e-12


@dataclass(frozen=True, slots=True)
class Cost:
    """What a candidate costs: milliseconds an image, and bytes of weights."""

    head_ms: float | None  # of transform and head
    head_bytes: int | None
    backbone_ms: float | None
    backbone_bytes: int | None
    order: tuple[float, ...]  # what is cheaper: by backbone, by kind of head, by bytes


def measure_costs(
    search: Search, trials: Sequence[Trial], *, probing: bool = True
) -> dict[Candidate, Cost]:
    """Return what candidates cost; with `probing`, some are fitted on a few rows for it."""
    costs: dict[Candidate, Cost] = {}
    probed: dict[tuple[str, ...], tuple[float | None, int | None]] = {}
    for trial in sorted(trials, key=lambda trial: trial.candidate.block_key):
        candidate, ms, size = trial.candidate, trial.ms, trial.bytes
        block, row = search.blocks[candidate.block_key], candidate.row
        if size is None and probing and not trial.failed:
            layers = "" if row is None else repr(dict(candidate.params).get(row.values))
            key = (*candidate.block_key, candidate.transform, candidate.head, layers)
            if key not in probed:
                probed[key] = _probe(search, candidate)
            ms, size = probed[key]
        kind = 9 if row is None else row.cost
        order = (block.cost, kind, float("inf") if size is None else size)
        costs[candidate] = Cost(ms, size, block.ms, block.bytes, order)
    return costs


def _probe(search: Search, candidate: Candidate) -> tuple[float | None, int | None]:
    size = parse_transform(candidate.transform).size
    data = search.data(candidate.block_key, 1.0, set() if size is None else {size})
    try:
        return probe(candidate, data, seed=search.options.seed)
    except Exception:  # heads are anybody's code, and a cost that is not known stops nothing
        return None, None


def ranked(trials: Iterable[Trial], costs: Mapping[Candidate, Cost] | None = None) -> list[Trial]:
    """Return trials, the best first, and of equal ones the cheapest."""
    groups: list[list[Trial]] = []
    for trial in sorted(trials, key=lambda trial: (-trial.share, -trial.score)):
        first = groups[-1][0] if groups else None
        # Not a difference: two failures are minus infinity each.
        if first and first.share == trial.share and first.score <= trial.score + _TIE:
            groups[-1].append(trial)
        else:
            groups.append([trial])

    def turn(trial: Trial) -> tuple[tuple[float, ...], str]:
        return costs[trial.candidate].order if costs else (), trial.candidate.key

    return [trial for group in groups for trial in sorted(group, key=turn)]


def choose(
    ordered: Sequence[Trial],
    costs: Mapping[Candidate, Cost],
    *,
    one_standard_error: bool = False,
    usual: Collection[Candidate] = (),
    caution: float = 0.0,
    rows: int = 1,
) -> int | None:
    """Return which trial wins, None where all failed; one that was given up early never wins.

    With `caution`, it has to be better than the best of the `usual` candidates by so many standard
    errors of the difference on `rows`; else that one wins.
    """
    able = [
        number
        for number, trial in enumerate(ordered)
        if trial.scores and not trial.stopped and trial.share == ordered[0].share
    ]
    known = [number for number in able if ordered[number].candidate in usual]
    if caution and known:
        first = ordered[known[0]]
        able = [
            n for n in able if n == known[0] or _clearly_better(ordered[n], first, caution, rows)
        ]
    if not able or not one_standard_error:
        return able[0] if able else None
    best = ordered[able[0]]
    near = [n for n in able if ordered[n].score >= best.score - best.standard_error]
    return min(near, key=lambda number: (costs[ordered[number].candidate].order, number))


def _clearly_better(trial: Trial, other: Trial, errors: float, rows: int) -> bool:
    """Return whether the difference of two trials is more than so many of its standard errors.

    A handful of folds show its variance poorly. For shares, that of two independent shares of as
    many rows counts as two folds more.
    """
    gains = np.subtract(trial.scores, other.scores)
    folds = len(gains)
    if folds < 2:
        return trial.score > other.score
    variance = float(gains.var(ddof=1)) / folds
    shares = np.array([trial.score, other.score])
    if shares.min() >= 0 and shares.max() <= 1:
        # With an image more on each side, as none of a few being wrong does not mean that none is.
        shares = (shares * rows + 1) / (rows + 2)
        expected = float((shares * (1 - shares)).sum()) / rows
        variance = ((folds - 1) * variance + 2 * expected) / (folds + 1)
    return bool(gains.mean() > errors * variance**0.5 + _TIE)


def pareto_front(scores: Sequence[float], costs: Sequence[float | None]) -> list[bool]:
    """Return which points no other beats: as good, as cheap, and one of the two better."""
    points = [(-score, cost) for score, cost in zip(scores, costs, strict=True) if cost is not None]
    return [
        cost is not None
        and not any(
            other[0] <= -score and other[1] <= cost and other != (-score, cost) for other in points
        )
        for score, cost in zip(scores, costs, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a leaderboard.

    Parameters
    ----------
    rank : int
        1 is the best.
    chosen : bool
        Whether it won.
    backbone, tap, transform, head : str
        What was tried; `head` with its parameters, as a user would type it.
    params : dict
        Parameters of the head, where they differ from its defaults.
    score, std : float, optional
        Mean and standard deviation over the folds, as shown; None where it failed.
    scores : list of float
        One a fold.
    stopped : bool
        Whether it was given up early.
    failed : str
        Why it could not be measured.
    share : float
        Share of the training rows that it was trained on.
    ms, backbone_ms, head_ms : float, optional
        Milliseconds an image: in all, of the backbone, and of transform and head.
    mb, backbone_mb, head_mb : float, optional
        Megabytes (10**6 bytes) of weights, likewise.
    pareto : bool
        Whether none is at least as good and as fast, and better in one of the two.
    """

    rank: int
    chosen: bool
    backbone: str
    tap: str
    transform: str
    head: str
    params: Json
    score: float | None
    std: float | None
    scores: list[float]
    stopped: bool
    failed: str
    share: float
    ms: float | None
    backbone_ms: float | None
    head_ms: float | None
    mb: float | None
    backbone_mb: float | None
    head_mb: float | None
    pareto: bool

    def to_dict(self) -> Json:
        """Return the row as JSON types."""
        return asdict(self)


class Leaderboard:
    """Trials in their order, the best first, with their costs and the one that won."""

    def __init__(
        self,
        trials: Sequence[Trial],
        chosen: int,
        costs: Mapping[Candidate, Cost],
        scorer: Scorer,
        folds: int,
    ) -> None:
        self.trials, self.chosen = list(trials), chosen
        self.scorer, self.folds = scorer, folds
        by_trial = [costs[trial.candidate] for trial in trials]
        times = [_milliseconds(cost, by_trial) for cost in by_trial]
        front = pareto_front(
            [trial.score for trial in trials],
            [
                None if trial.failed or trial.stopped else ms
                for trial, ms in zip(trials, times, strict=True)
            ],
        )
        self.rows = [
            Row(
                rank=number + 1,
                chosen=number == chosen,
                backbone=trial.candidate.backbone,
                tap=trial.candidate.tap,
                transform=trial.candidate.transform,
                head=trial.candidate.text,
                params=dict(trial.candidate.params),
                score=scorer.shown(trial.score) if trial.scores else None,
                std=trial.std if trial.scores else None,
                scores=[scorer.shown(score) for score in trial.scores],
                stopped=trial.stopped,
                failed=trial.failed,
                share=trial.share,
                ms=times[number],
                backbone_ms=cost.backbone_ms,
                head_ms=cost.head_ms,
                mb=_megabytes(cost.head_bytes, cost.backbone_bytes or 0),
                backbone_mb=_megabytes(cost.backbone_bytes),
                head_mb=_megabytes(cost.head_bytes),
                pareto=front[number],
            )
            for number, (trial, cost) in enumerate(zip(trials, by_trial, strict=True))
        ]

    @property
    def winner(self) -> Candidate:
        """Which candidate won."""
        return self.trials[self.chosen].candidate

    def columns(self) -> Json:
        """Return the table by column, a line for each trial, None where there is no value."""
        names = [name for name in Row.__slots__ if name not in ("params", "scores")]
        columns: Json = {name: [getattr(row, name) for row in self.rows] for name in names}
        for fold in range(self.folds):
            scores = [row.scores[fold] if fold < len(row.scores) else None for row in self.rows]
            columns[f"score_fold_{fold}"] = scores
        return columns

    def to_csv(self) -> str:
        """Return the table as CSV, a line for each trial."""
        text = io.StringIO()
        columns = self.columns()
        writer = csv.writer(text, lineterminator="\n")  # which writes None as no text
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
        return text.getvalue()

    def cv_results(self) -> Json:
        """Return the trials in the form of scikit-learn's ``cv_results_``.

        Parameters of heads are called ``head__NAME``; a trial that failed has NaN scores and the
        last rank, as scikit-learn's has.
        """
        trials = self.trials
        scores = np.array([trial.scores or [np.nan] * self.folds for trial in trials])
        params = [_params(trial.candidate) for trial in trials]
        results: Json = {}
        for name, times in (
            ("fit_time", [trial.fit_s for trial in trials]),
            ("score_time", [trial.score_s for trial in trials]),
        ):
            results[f"mean_{name}"] = np.array([np.mean(seconds) for seconds in times])
            results[f"std_{name}"] = np.array([np.std(seconds) for seconds in times])
        for name in dict.fromkeys(name for of_one in params for name in of_one):
            column = np.ma.MaskedArray(np.empty(len(params)), mask=True, dtype=object)
            for number, of_one in enumerate(params):
                if name in of_one:
                    column[number] = of_one[name]
            results[f"param_{name}"] = column
        results["params"] = params
        for fold in range(self.folds):
            results[f"split{fold}_test_score"] = scores[:, fold]
        results["mean_test_score"] = scores.mean(axis=1)
        results["std_test_score"] = scores.std(axis=1)
        results["rank_test_score"] = _ranks(results["mean_test_score"])
        if any(trial.share < 1 for trial in trials):
            results["resource_share"] = np.array([trial.share for trial in trials])
        return results


def _params(candidate: Candidate) -> Json:
    names = {name: getattr(candidate, name) for name in ("backbone", "tap", "transform", "head")}
    return {**names, **{f"head__{name}": value for name, value in candidate.params}}


def _ranks(means: NDArray[np.float64]) -> NDArray[np.int32]:
    from scipy.stats import rankdata

    known = np.where(np.isnan(means), np.nanmin(means, initial=0.0) - 1, means)
    ranks: NDArray[np.int32] = rankdata(-known, method="min").astype(np.int32)
    return ranks


def _milliseconds(cost: Cost, costs: Sequence[Cost]) -> float | None:
    """Return the milliseconds of head and backbone, None where these cannot be compared."""
    # Where only some backbones were timed, the others cannot be compared with them.
    partly = cost.backbone_ms is None and any(other.backbone_ms is not None for other in costs)
    return None if cost.head_ms is None or partly else cost.head_ms + (cost.backbone_ms or 0.0)


def _megabytes(size: int | None, more: int = 0) -> float | None:
    return None if size is None else (size + more) / 1e6
