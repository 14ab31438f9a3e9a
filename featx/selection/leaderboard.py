"""Trials in their order: what is best, what it costs, and which one wins."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np

from featx.heads.table import HEADS
from featx.selection.measuring import Measuring, prediction_cost, probe
from featx.selection.metrics import Scorer
from featx.selection.search_space import Candidate
from featx.selection.transforms import parse_transform
from featx.selection.trials import Trial

Cost: TypeAlias = Callable[[Trial], tuple[float, ...]]

_TIE = 1e-12


def _free(_: Trial) -> tuple[float, ...]:
    return ()


def ranked(trials: Iterable[Trial], cost: Cost = _free) -> list[Trial]:
    """Return trials, the best first."""
    ordered = sorted(trials, key=lambda trial: (-trial.share, -trial.score))
    groups: list[list[Trial]] = []
    for trial in ordered:
        first = groups[-1][0] if groups else None
        # Not a difference: two failures are minus infinity each.
        if first and first.share == trial.share and first.score <= trial.score + _TIE:
            groups[-1].append(trial)
        else:
            groups.append([trial])
    return [
        trial
        for group in groups
        for trial in sorted(group, key=lambda one: (cost(one), one.candidate.key))
    ]


def choose(ordered: Sequence[Trial], cost: Cost, *, one_standard_error: bool = False) -> int | None:
    """Return the place of the trial that wins, or None where all failed.

    Notes
    -----
    A trial that was given up early never wins.
    """
    able = [
        place
        for place, trial in enumerate(ordered)
        if trial.measured.scores and not trial.measured.stopped and trial.share == ordered[0].share
    ]
    if not able or not one_standard_error:
        return able[0] if able else None
    best = ordered[able[0]]
    enough = best.score - best.standard_error
    near = [place for place in able if ordered[place].score >= enough]
    return min(near, key=lambda place: (cost(ordered[place]), place))


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
    params: dict[str, Any]
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

    def to_dict(self) -> dict[str, Any]:
        """Return the row as JSON types."""
        return asdict(self)


@dataclass(frozen=True, slots=True, eq=False)
class Costs:
    """What candidates cost.

    Parameters
    ----------
    heads : dict of Candidate to (ms, bytes)
        Of transform and head.
    backbones : dict of Candidate to (ms, bytes, cost)
        Of the backbone; see `featx.selection.measuring.FeatureBlock`.
    """

    heads: dict[Candidate, tuple[float | None, int | None]]
    backbones: dict[Candidate, tuple[float | None, int | None, float]]

    def order(self, trial: Trial) -> tuple[float, ...]:
        """Return what is cheaper: by backbone, then by kind of head, then by bytes."""
        one = trial.candidate
        size = self.heads[one][1]
        kind = prediction_cost(one.head)
        return self.backbones[one][2], kind, float("inf") if size is None else size


def measure_costs(measuring: Measuring, trials: Sequence[Trial]) -> Costs:
    """Return what candidates cost; those never fitted alone are fitted on a few rows."""
    heads: dict[Candidate, tuple[float | None, int | None]] = {}
    backbones: dict[Candidate, tuple[float | None, int | None, float]] = {}
    probed: dict[tuple[Any, ...], tuple[float | None, int | None]] = {}
    for trial in sorted(trials, key=lambda one: (one.candidate.backbone, one.candidate.tap)):
        one, measured = trial.candidate, trial.measured
        block = measuring.blocks[one.backbone, one.tap]
        backbones[one] = (block.ms, block.bytes, block.cost)
        if measured.bytes is not None or measured.failed:
            heads[one] = (measured.ms, measured.bytes)
            continue
        key = _shape_of(one)
        if key not in probed:
            probed[key] = _probe(measuring, one)
        heads[one] = probed[key]
    return Costs(heads, backbones)


def _shape_of(candidate: Candidate) -> tuple[Any, ...]:
    decisive = HEADS[candidate.head].values if candidate.head in HEADS else ""
    layers = repr(dict(candidate.params).get(decisive))
    return candidate.backbone, candidate.tap, candidate.transform, candidate.head, layers


def _probe(measuring: Measuring, candidate: Candidate) -> tuple[float | None, int | None]:
    size = parse_transform(candidate.transform).size
    place = candidate.backbone, candidate.tap
    data = measuring.data(place, 1.0, [] if size is None else [size])
    try:
        return probe(candidate, data, seed=measuring.seed)
    except Exception:  # heads are anybody's code, and a cost that is not known stops nothing
        return None, None


class Leaderboard:
    """Trials in their order.

    Parameters
    ----------
    trials : sequence of Trial
        The best first.
    chosen : int
        Place of the one that won.
    costs : Costs
        What they cost.
    scorer : Scorer
        How they were scored.
    folds : int
        On how many folds.
    """

    def __init__(
        self, trials: Sequence[Trial], chosen: int, costs: Costs, scorer: Scorer, folds: int
    ) -> None:
        self.trials = list(trials)
        self.chosen = chosen
        self.scorer = scorer
        self.folds = folds
        self.rows = self._rows(costs)

    def __len__(self) -> int:
        return len(self.rows)

    def _rows(self, costs: Costs) -> list[Row]:
        rows = []
        times = [_milliseconds(trial, costs) for trial in self.trials]
        front = pareto_front(
            [trial.score for trial in self.trials],
            [
                None if trial.measured.failed or trial.measured.stopped else ms[0]
                for trial, ms in zip(self.trials, times, strict=True)
            ],
        )
        for place, trial in enumerate(self.trials):
            one, measured = trial.candidate, trial.measured
            backbone, head = costs.backbones[one][1], costs.heads[one][1]
            failed = not measured.scores
            rows.append(
                Row(
                    rank=place + 1,
                    chosen=place == self.chosen,
                    backbone=one.backbone,
                    tap=one.tap,
                    transform=one.transform,
                    head=one.text,
                    params=dict(one.params),
                    score=None if failed else self.scorer.shown(trial.score),
                    std=None if failed else trial.std,
                    scores=[self.scorer.shown(score) for score in measured.scores],
                    stopped=measured.stopped,
                    failed=measured.failed,
                    share=trial.share,
                    ms=times[place][0],
                    backbone_ms=times[place][1],
                    head_ms=times[place][2],
                    mb=None if head is None else (head + (backbone or 0)) / 1e6,
                    backbone_mb=None if backbone is None else backbone / 1e6,
                    head_mb=None if head is None else head / 1e6,
                    pareto=front[place],
                )
            )
        return rows

    def to_csv(self) -> str:
        """Return the table as CSV, a line for each trial."""
        text = io.StringIO()
        names = [name for name in Row.__slots__ if name not in ("params", "scores")]
        folds = [f"score_fold_{fold}" for fold in range(self.folds)]
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*names, *folds])
        for row in self.rows:
            cells = ["" if (cell := getattr(row, name)) is None else cell for name in names]
            writer.writerow([*cells, *row.scores, *[""] * (self.folds - len(row.scores))])
        return text.getvalue()

    def cv_results(self) -> dict[str, Any]:
        """Return the trials in the form of scikit-learn's ``cv_results_``.

        Parameters of heads are called ``head__NAME``; a trial that failed has NaN scores and the
        last rank, as scikit-learn's has.
        """
        folds = range(self.folds)
        scores = np.array(
            [trial.measured.scores or [np.nan for _ in folds] for trial in self.trials]
        )
        params = [_params(trial.candidate) for trial in self.trials]
        found: dict[str, Any] = {}
        for name, times in (
            ("fit_time", [trial.measured.fit_s for trial in self.trials]),
            ("score_time", [trial.measured.score_s for trial in self.trials]),
        ):
            found[f"mean_{name}"] = np.array([np.mean(seconds) for seconds in times])
            found[f"std_{name}"] = np.array([np.std(seconds) for seconds in times])
        for name in dict.fromkeys(name for one in params for name in one):
            column = np.ma.MaskedArray(np.empty(len(params)), mask=True, dtype=object)
            for place, one in enumerate(params):
                if name in one:
                    column[place] = one[name]
            found[f"param_{name}"] = column
        found["params"] = params
        for fold in folds:
            found[f"split{fold}_test_score"] = scores[:, fold]
        found["mean_test_score"] = scores.mean(axis=1)
        found["std_test_score"] = scores.std(axis=1)
        found["rank_test_score"] = _ranks(found["mean_test_score"])
        if any(trial.share < 1 for trial in self.trials):
            found["resource_share"] = np.array([trial.share for trial in self.trials])
        return found


def _params(candidate: Candidate) -> dict[str, Any]:
    own = {f"head__{name}": value for name, value in candidate.params}
    return {
        "backbone": candidate.backbone,
        "tap": candidate.tap,
        "transform": candidate.transform,
        "head": candidate.head,
        **own,
    }


def _ranks(means: Any) -> Any:
    from scipy.stats import rankdata

    known = np.where(np.isnan(means), np.nanmin(means, initial=0.0) - 1, means)
    return rankdata(-known, method="min").astype(np.int32)


def _milliseconds(trial: Trial, costs: Costs) -> tuple[float | None, float | None, float | None]:
    backbone = costs.backbones[trial.candidate][0]
    head = costs.heads[trial.candidate][0]
    # Where only some backbones were timed, the others cannot be compared with them.
    partly = backbone is None and any(known[0] is not None for known in costs.backbones.values())
    whole = None if head is None or partly else head + (backbone or 0.0)
    return whole, backbone, head
