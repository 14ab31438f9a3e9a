"""The order of trials: by score, and by cost where scores are the same."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

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
