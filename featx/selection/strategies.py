"""Ways through a space: everything, some drawn at random, by halving, by Optuna."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import HeadError, MissingExtraError, UnknownNameError
from featx.selection.leaderboard import ranked
from featx.selection.search_space import Axis, Candidate, Place, Range, SearchSpace, build
from featx.selection.trials import Trial


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchOptions:
    """How a search is done; see `featx.search` for what each means."""

    strategy: str = "grid"
    n_trials: int | None = None
    cv: int | str = 5
    repeats: int = 1
    scoring: str = "accuracy"
    score: str = "auto"
    budget_s: float | None = None
    n_jobs: int = -1
    seed: int = 0
    one_standard_error: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.cv, int) and self.cv < 2:
            raise HeadError(
                f"expected 2 folds or more, or the name of a split, received cv={self.cv}: a "
                "candidate is measured on rows that it was not trained on"
            )
        if self.repeats < 1:
            raise HeadError(f"expected 1 repeat or more, received repeats={self.repeats}")
        if self.budget_s is not None and not self.budget_s > 0:
            raise HeadError(
                f"expected a budget of more than 0 seconds, received budget_s={self.budget_s}: "
                "leave it out for none"
            )
        if self.budget_s is not None and self.score == "nested":
            raise HeadError(
                "a budget bounds one search and score='nested' repeats it: take "
                "score='holdout' with a budget, or leave the budget out"
            )


_TRIALS = 30


def ask_optuna(plan: Plan, measure: Measure) -> None:
    """Try what a seeded tree-structured Parzen estimator proposes, one candidate after another."""
    try:
        import optuna
    except ModuleNotFoundError as error:
        if error.name != "optuna":
            raise
        raise MissingExtraError("optuna", extra="hpo", purpose="the strategy 'optuna'") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        direction="maximize", sampler=optuna.samplers.TPESampler(seed=plan.seed)
    )
    choices = plan.space.choices(plan.places)
    for _ in range(plan.n_trials or _TRIALS):
        asked = study.ask()
        number = asked.suggest_categorical("choice", list(range(len(choices))))
        place, transform, head = choices[number]
        values = [_suggest(asked, f"{number} {name}", axis) for name, axis in head.grid]
        trials = measure([build(place, transform, head, values)])
        if not trials:  # no time is left
            return
        if trials[0].measured.scores:
            study.tell(asked, trials[0].score)
        else:
            study.tell(asked, state=optuna.trial.TrialState.FAIL)


def _suggest(asked: Any, name: str, axis: Axis) -> Any:
    if isinstance(axis, Range):
        # A share of the way, so that the value is rounded as everywhere else.
        return axis.at(asked.suggest_float(name, 0.0, 1.0))
    return axis[asked.suggest_categorical(name, list(range(len(axis))))]


_FACTOR = 3
_FEWEST_ROWS = 100
_FEWEST_OF_A_CLASS = 4
_DRAWN = 20


class Measure(Protocol):
    """Measures candidates; see `featx.selection.measuring.Measuring.measure`."""

    def __call__(self, candidates: Sequence[Candidate], *, share: float = 1.0) -> list[Trial]:
        """Return the trials that finished."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a strategy has to know.

    Parameters
    ----------
    space : SearchSpace
        What may be tried.
    places : tuple of (backbone, tap)
        On which blocks.
    n_trials : int, optional
        How many candidates to draw.
    seed : int
        Seed of the drawing.
    codes : ndarray of shape (n,)
        Classes of the training rows.
    """

    space: SearchSpace
    places: tuple[Place, ...]
    n_trials: int | None
    seed: int
    codes: NDArray[np.intp]


Strategy = Callable[[Plan, Measure], None]


def _grid(plan: Plan, measure: Measure) -> None:
    measure(plan.space.candidates(plan.places))


def _random(plan: Plan, measure: Measure) -> None:
    measure(_draw(plan, plan.n_trials or _DRAWN))


def _draw(plan: Plan, count: int) -> list[Candidate]:
    generator = np.random.default_rng(plan.seed)
    if plan.space.ranged() is None:
        every = plan.space.candidates(plan.places)
        chosen = generator.permutation(len(every))[:count]
        return [every[number] for number in chosen]
    choices = plan.space.choices(plan.places)
    drawn: dict[Candidate, None] = {}
    for _ in range(20 * count):  # a small space may have fewer than are asked for
        place, transform, head = choices[int(generator.integers(len(choices)))]
        values = [
            axis.at(float(generator.random()))
            if isinstance(axis, Range)
            else axis[int(generator.integers(len(axis)))]
            for _, axis in head.grid
        ]
        drawn[build(place, transform, head, values)] = None
        if len(drawn) == count:
            break
    return list(drawn)


def _halving(plan: Plan, measure: Measure) -> None:
    """Try all on few rows, the better third on three times as many, and so on to all rows."""
    if plan.n_trials or plan.space.ranged() is not None:
        left = _draw(plan, plan.n_trials or _DRAWN)
    else:
        left = plan.space.candidates(plan.places)
    rows = len(plan.codes)
    fewest = max(_FEWEST_ROWS, _FEWEST_OF_A_CLASS * (int(plan.codes.max()) + 1))
    by_rows = int(math.log(max(1.0, rows / fewest), _FACTOR) + 1e-9)
    by_candidates = math.ceil(math.log(max(1, len(left)), _FACTOR) - 1e-9)
    for step in range(min(by_rows, by_candidates), -1, -1):
        trials = measure(left, share=1 / _FACTOR**step)
        kept = max(1, math.ceil(len(left) / _FACTOR))
        left = [trial.candidate for trial in ranked(trials)[:kept]]
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
