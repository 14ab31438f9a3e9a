"""Ways through a space: everything, some drawn at random, by halving, by Optuna."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np

from featx.exceptions import HeadError, MissingExtraError, UnknownNameError
from featx.selection.leaderboard import ranked
from featx.selection.measuring import Search
from featx.selection.search_space import Axis, Candidate, Range, build

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
    choices = search.space.choices(list(search.blocks))
    for _ in range(search.options.n_trials or _TRIALS):
        proposed = study.ask()
        number = proposed.suggest_categorical("choice", list(range(len(choices))))
        place, transform, head = choices[number]
        values = [_suggest(proposed, f"{number} {name}", axis) for name, axis in head.grid]
        trials = search.measure([build(place, transform, head, values)])
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
    search.measure(search.space.candidates(list(search.blocks)))


def _random(search: Search) -> None:
    search.measure(_draw(search))


def _draw(search: Search) -> list[Candidate]:
    count, places = search.options.n_trials or _DRAWN, list(search.blocks)
    generator = np.random.default_rng(search.options.seed)
    if search.space.ranged() is None:
        every = search.space.candidates(places)
        return [every[number] for number in generator.permutation(len(every))[:count]]
    choices = search.space.choices(places)
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


def _halving(search: Search) -> None:
    """Try all on few rows, the better third on three times as many, and so on to all rows."""
    if search.options.n_trials or search.space.ranged() is not None:
        left = _draw(search)
    else:
        left = search.space.candidates(list(search.blocks))
    codes = search.sample.codes
    fewest = max(_FEWEST_ROWS, _FEWEST_OF_A_CLASS * (int(codes.max()) + 1))
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
