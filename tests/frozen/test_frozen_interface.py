"""Options of every command and names, parameters and attributes of the Python interface."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping

import click
import numpy as np
import pytest

import featx

LEAVING = {"ridge_loo", "check_training"}

# Methods that a user calls of an estimator, whoever defines them.
ESTIMATOR = {
    "classes_", "decision_function", "fit", "fit_head", "fit_transform", "get_feature_names_out",
    "get_params", "predict", "predict_log_proba", "predict_proba", "save", "score", "set_output",
    "set_params", "transform",
}  # fmt: skip


def commands(command, name=""):
    """Yield every command with its whole name."""
    yield name, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for child in command.list_commands(context):
            yield from commands(command.get_command(context, child), f"{name} {child}".strip())


def parameter(one):
    """What a user can type for a parameter."""
    kind = one.type
    default = one.default
    simple = default is None or isinstance(default, (bool, int, float, str, list, tuple))
    found = {
        "type": kind.name,
        "required": one.required,
        "nargs": one.nargs,
        "multiple": getattr(one, "multiple", False),
        "flag": bool(getattr(one, "is_flag", False)),
        "default": default if simple and default not in ((), False) else None,
    }
    if isinstance(kind, click.Choice):
        found["choices"] = dict.fromkeys(map(str, kind.choices), True)  # others may join
    for bound in ("min", "max"):
        if getattr(kind, bound, None) is not None:
            found[bound] = getattr(kind, bound)
    return found


def test_no_command_lost_an_option(frozen):
    from featx.cli.main import cli

    found = {}
    for name, command in commands(cli):
        arguments = [one for one in command.params if isinstance(one, click.Argument)]
        options = [one for one in command.params if isinstance(one, click.Option)]
        found[name or "featx"] = {
            "arguments": [parameter(one) for one in arguments],
            "options": {
                flag: parameter(one) for one in options for flag in (*one.opts, *one.secondary_opts)
            },
        }
    frozen("options", found)


def signature(function):
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return {}
    shown = {}
    for number, one in enumerate(parameters):
        positional = one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)
        plain = one.default is None or isinstance(one.default, (bool, int, float, str, tuple))
        shown[one.name] = {
            "place": number if positional else one.kind.name,
            "default": repr(one.default) if plain else "",
        }
    return shown


def copied(value):
    return dict(value) if isinstance(value, Mapping) else value


def members(kind):
    names = [name for name in dir(kind) if not name.startswith("_")]
    if hasattr(kind, "get_params"):
        names = [name for name in names if name in ESTIMATOR]
    return {name: member(getattr(kind, name)) for name in names}


def member(value):
    if not callable(value):
        return "attribute"
    own = getattr(value, "__module__", "").startswith("featx")
    return signature(value) if own else {}


@pytest.mark.parametrize("module", ["featx", "featx.heads"])
def test_no_public_name_or_parameter_is_lost(module, frozen):
    package = importlib.import_module(module)
    found = {}
    for name in package.__all__:
        value = getattr(package, name)
        if name in LEAVING:
            continue
        if not callable(value):
            kept = ("summary", "defaults", "grid")
            found[name] = {
                key: {part: copied(getattr(row, part)) for part in kept}
                for key, row in value.items()
            }
        elif isinstance(value, type) and issubclass(value, Exception):
            above = [base.__name__ for base in value.__mro__ if base is not object]
            found[name] = {"bases": dict.fromkeys(above, True)}
        elif name == "HeadSpec":
            kept = ("name", "summary", "defaults", "grid")
            found[name] = {"parameters": {part: signature(value)[part] for part in kept}}
        else:
            found[name] = {"parameters": signature(value)}
            if isinstance(value, type):
                found[name]["members"] = members(value)
    frozen(f"interface-{module}", found)


def test_results_keep_their_attributes(frozen, tmp_path):
    X = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
    X[::2] += 2
    features = featx.import_features("numbers", X, y=["a", "b"] * 20, cache=tmp_path)
    trained = featx.train(features, cv=2)
    found = featx.search(features, heads=["ridge:alpha=1"], cv=2, score="none")
    (tmp_path / "x").mkdir()
    packed = featx.pack_dataset(features, tmp_path / "x.npz")
    values = {
        "TrainingResult": trained,
        "Suspect": trained.suspects[0],
        "SearchResult": found,
        "SearchResult.best": found.best,
        "SearchResult.score": found.score,
        "PackedFile": packed,
        "FeatureCache.verify": featx.FeatureCache(tmp_path).verify(),
        "FeatureCache.gc": featx.FeatureCache(tmp_path).gc(),
    }
    frozen("results", {name: members(value) for name, value in values.items()})
    assert trained.model.classes_.tolist() == ["a", "b"]
    assert set(found.to_dict()) >= {"best", "score", "leaderboard", "notes", "seconds"}
