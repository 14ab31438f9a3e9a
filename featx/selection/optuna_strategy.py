"""Trials that Optuna proposes from those that are finished."""

from __future__ import annotations

from typing import Any

from featx.exceptions import MissingExtraError
from featx.selection.head_grids import Axis, Range
from featx.selection.space import build
from featx.selection.strategies import Measure, Plan

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
