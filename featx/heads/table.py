"""The table of heads that have names, and the one function that makes heads."""

from __future__ import annotations

import ast
import difflib
import inspect
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from itertools import takewhile
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Any

from featx.exceptions import HeadError, UnknownNameError, reason

if TYPE_CHECKING:
    from featx.heads.targets import Kind


@dataclass(frozen=True)
class HeadSpec:
    """One named head, as data.

    Parameters
    ----------
    name : str
        What the user types.
    summary : str
        One line for lists.
    estimator : str
        Import path of the class; imported when a head is made.
    defaults : mapping of str to object
        Parameters where they differ from the class's own.
    standardised : bool, default=True
        Whether it sits behind a ``StandardScaler``.
    calibrated : bool, default=False
        Whether it gives margins only, so that `TemperatureCalibrated` wraps it.
    values : str, default=""
        The parameter that takes values without a name, as in ``dense:1024,1024``.
    needs_keras : bool, default=False
        Whether training imports Keras. Predicting never does.
    sweep : str, default=""
        Import path of its `Sweep`; without one, each setting is fitted by itself.
    streamed : bool, default=False
        Whether it can be trained on batches; else it has to see all rows at once.
    fit : str, default=""
        Import path of the function that fits an estimator without a ``fit_rows`` of its own on
        `Rows` and `Targets`. It gives a list of the fitted, one a label where those are label sets
        and one does not serve all, or None where it cannot.
    grid : mapping of str to tuple
        Values that a search tries of each parameter, the default among them.
    cost : int, default=9
        What a prediction costs, in order: of two heads that are equally good, the one of lower
        cost is preferred.
    learns : tuple of str, default=("classes", "labels")
        Kinds of targets: ``"classes"``, ``"labels"`` (several an image) or ``"values"`` (numbers).
        A name has one row for each kind of estimator behind it.
    by_column : bool, default=False
        Whether `EachValue` wraps it, which scales each column of numbers and learns it by itself.
    """

    name: str
    summary: str
    estimator: str
    defaults: Mapping[str, object] = field(default_factory=dict)
    standardised: bool = True
    calibrated: bool = False
    values: str = ""
    needs_keras: bool = False
    sweep: str = ""
    streamed: bool = False
    fit: str = ""
    grid: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    cost: int = 9
    learns: tuple[Kind, ...] = ("classes", "labels")
    by_column: bool = False


def _decades(first: int, last: int, steps: int) -> tuple[float, ...]:
    """Powers of ten, with this many steps a decade, both ends included."""
    return tuple(float(f"{10 ** (e / steps):.3g}") for e in range(first * steps, last * steps + 1))


# The defaults were chosen on 1,280 standardised MobileNetV2 features: CIFAR-10 at 2, 10, 50 and
# 500 images a class, and the ants and bees. Logistic regression needed 130 iterations at C=0.01,
# 160 at most over C from 1e-4 to 1, so that 5,000 is a guard and no budget.
#
# Those for numbers on the same features of 300 to 3,000 pictures of CIFAR-10, cut out at a random
# zoom, of which the zoom and the brightness were learnt.
#
# Costs: one product of the image with a vector a class (1, 2); layers (3); a product with each of
# 500 images (4) or of all (5); 200 trees (6).
_ROWS = (
    HeadSpec(
        "nearest-mean",
        "nearest class mean by cosine",
        "featx.heads.nearest_mean.NearestMean",
        sweep="featx.heads.nearest_mean.sweep_nearest_mean",
        streamed=True,
        grid={"metric": ("cosine", "euclidean")},
        cost=1,
    ),
    HeadSpec(
        "logistic",
        "logistic regression (multinomial, L2)",
        "sklearn.linear_model.LogisticRegression",
        {"C": 0.01, "max_iter": 5000},
        sweep="featx.heads.logistic.sweep_logistic",
        streamed=True,
        fit="featx.heads.logistic_path.fit_rows",
        grid={"C": _decades(-5, 0, 2)},
        cost=2,
    ),
    HeadSpec(
        "svm",
        "linear support vector machine, with calibrated probabilities",
        "sklearn.svm.LinearSVC",
        # The dual is 3 times as fast as the primal at 5,000 rows and even with it at few.
        {"C": 0.001, "dual": True, "tol": 1e-3, "max_iter": 20000},
        calibrated=True,
        sweep="featx.heads.sweep.sweep_svm",
        grid={"C": _decades(-5, -1, 1)},
        cost=2,
    ),
    HeadSpec(
        "rbf",
        "support vector machine with a Gaussian kernel on a basis of 500 images",
        "featx.heads.rbf.ReducedRBF",
        calibrated=True,
        sweep="featx.heads.sweep.sweep_rbf",
        grid={"C": (0.1, 1.0, 10.0)},
        cost=4,
    ),
    HeadSpec(
        "knn",
        "k nearest neighbours by cosine, the nearer counting more",
        "featx.heads.neighbours.NearestNeighbours",
        sweep="featx.heads.neighbours.sweep_knn",
        grid={
            "n_neighbors": (1, 2, 3, 5, 7, 10, 15, 20, 30, 50),
            "metric": ("cosine", "euclidean"),
            "weights": ("distance", "uniform"),
        },
        cost=5,
    ),
    HeadSpec(
        "ridge",
        "ridge regression on the classes, with calibrated probabilities",
        "sklearn.linear_model.RidgeClassifier",
        {"alpha": 1000.0},
        calibrated=True,
        sweep="featx.heads.ridge.sweep_ridge",
        streamed=True,
        fit="featx.heads.ridge.fit_ridge",
        grid={"alpha": _decades(0, 6, 3)},
        cost=2,
    ),
    HeadSpec(
        "lda",
        "linear discriminant analysis, covariance shrunk after Ledoit and Wolf",
        "featx.heads.discriminant.ShrinkageLDA",
        # Its own probabilities take the covariance for known: from 2 to 50 images a class they
        # cost 4 to 15 nats an image, where the labels' shares alone cost 2.3.
        calibrated=True,
        sweep="featx.heads.discriminant.sweep_lda",
        streamed=True,
        grid={"shrinkage": ("auto", 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0)},
        cost=2,
    ),
    HeadSpec(
        "forest",
        "random forest of 200 trees",
        "featx.heads.trees.TreeEnsemble",
        {"splits": "best"},
        standardised=False,
        grid={"min_samples_leaf": (1, 3)},
        cost=6,
    ),
    HeadSpec(
        "extra-trees",
        "200 extremely randomised trees",
        "featx.heads.trees.TreeEnsemble",
        {"splits": "random"},
        standardised=False,
        grid={"min_samples_leaf": (1, 3)},
        cost=6,
    ),
    HeadSpec(
        "dense",
        "dense layers trained with Keras, for example dense:1024,1024",
        "featx.heads.dense.DenseClassifier",
        values="hidden",
        needs_keras=True,
        sweep="featx.heads.dense.sweep_dense",
        streamed=True,
        grid={"hidden": ((), (256,), (1024,))},
        cost=3,
    ),
    HeadSpec(
        "ridge",
        "ridge regression",
        "sklearn.linear_model.Ridge",
        {"alpha": 1000.0},
        sweep="featx.heads.ridge.sweep_ridge_values",
        streamed=True,
        fit="featx.heads.ridge.fit_ridge_values",
        grid={"alpha": _decades(0, 6, 3)},
        cost=2,
        learns=("values",),
    ),
    HeadSpec(
        "svm",
        "linear support vector regression",
        "sklearn.svm.LinearSVR",
        {"C": 0.001, "epsilon": 0.1, "tol": 1e-3, "max_iter": 20000},
        grid={"C": _decades(-5, -1, 1)},
        cost=2,
        learns=("values",),
        by_column=True,
    ),
    HeadSpec(
        "knn",
        "mean of the k nearest neighbours by cosine, the nearer counting more",
        "featx.heads.neighbours.NearestValues",
        sweep="featx.heads.neighbours.sweep_nearest_values",
        grid={
            "n_neighbors": (1, 2, 3, 5, 7, 10, 15, 20, 30, 50),
            "metric": ("cosine", "euclidean"),
            "weights": ("distance", "uniform"),
        },
        cost=5,
        learns=("values",),
    ),
    HeadSpec(
        "forest",
        "random forest of 200 trees",
        "sklearn.ensemble.RandomForestRegressor",
        {"n_estimators": 200, "max_features": "sqrt"},
        standardised=False,
        grid={"min_samples_leaf": (1, 3)},
        cost=6,
        learns=("values",),
    ),
    HeadSpec(
        "extra-trees",
        "200 extremely randomised trees",
        "sklearn.ensemble.ExtraTreesRegressor",
        {"n_estimators": 200, "max_features": "sqrt"},
        standardised=False,
        grid={"min_samples_leaf": (1, 3)},
        cost=6,
        learns=("values",),
    ),
    HeadSpec(
        "dense",
        "dense layers trained with Keras on the squared error, for example dense:256",
        "featx.heads.dense.DenseRegressor",
        values="hidden",
        needs_keras=True,
        sweep="featx.heads.dense.sweep_dense_values",
        streamed=True,
        grid={"hidden": ((), (256,), (1024,))},
        cost=3,
        learns=("values",),
    ),
)

HEADS: Mapping[str, HeadSpec] = MappingProxyType(
    {row.name: row for row in _ROWS if "classes" in row.learns}
)
"""Every named head for classes and labels, by its name."""

VALUE_HEADS: Mapping[str, HeadSpec] = MappingProxyType(
    {row.name: row for row in _ROWS if "values" in row.learns}
)
"""Every named head for numbers, by its name."""


@dataclass(frozen=True)
class _Estimators:
    """Which estimators of scikit-learn learn some kind of targets, and how messages name them."""

    noun: str
    mixin: str
    example: str
    otherwise: str


_CLASSIFIERS = _Estimators(
    "classifier",
    "ClassifierMixin",
    "sklearn.naive_bayes.GaussianNB",
    "choose one, a head predicts classes; for numbers, add --regression (regression=True)",
)
_REGRESSORS = _Estimators(
    "regressor",
    "RegressorMixin",
    "sklearn.linear_model.Lasso",
    "choose one, a head of a regression predicts numbers",
)

_NAME = re.compile(r"[A-Za-z_][\w.\-]*")
_KEY = re.compile(r"([A-Za-z_]\w*)\s*=(.*)", re.DOTALL)
_OPEN, _CLOSE = "([{", ")]}"
_LONGEST = 2_000


def heads_for(*, regression: bool) -> Mapping[str, HeadSpec]:
    """Return the named heads for numbers, or those for classes."""
    return VALUE_HEADS if regression else HEADS


def head_names(*, regression: bool = False) -> list[str]:
    """Names of the heads for classes, or for numbers, sorted.

    Examples
    --------
    >>> head_names()[:4]
    ['dense', 'extra-trees', 'forest', 'knn']
    """
    return sorted(heads_for(regression=regression))


def read_head(text: str, *, regression: bool = False) -> tuple[str, dict[str, object]]:
    """Return the name and the parameters that a head's text stands for."""
    parsed = parse_head(text)
    row = find_row(parsed.name, regression=regression)
    return row.name, _named(row, parsed)


def learns_label_sets(estimator: object) -> bool:
    """Tell whether an estimator, or the last step of a pipeline, takes several labels a row."""
    steps = getattr(estimator, "steps", None)
    return bool(getattr(steps[-1][1] if steps else estimator, "learns_label_sets", False))


def find_row(name: str, *, regression: bool = False) -> HeadSpec:
    """Return the row of a named head, or one for an estimator of scikit-learn by its path."""
    heads = heads_for(regression=regression)
    if name in heads:
        return heads[name]
    if name.startswith("sklearn."):
        if regression:
            return HeadSpec(name, "a scikit-learn regressor", name, learns=("values",))
        return HeadSpec(name, "a scikit-learn classifier", name)
    if name in HEADS:
        raise HeadError(
            f"the head {name!r} learns classes, and --regression (regression=True) asks for "
            f"numbers: take one of {', '.join(heads)}"
        )
    if "." in name:
        raise HeadError(
            f"expected a head's name or an import path below 'sklearn.', received {name!r}: "
            "in Python, pass the estimator itself; --trust (trust=True) takes other packages"
        )
    raise UnknownNameError("head", name, head_names(regression=regression))


def _named(row: HeadSpec, parsed: HeadText) -> dict[str, object]:
    values = parsed.values
    if not values:
        return parsed.params
    if not row.values:
        raise HeadError(
            f"{row.name!r} takes parameters by name, received {values[0]!r}: "
            f"write '{row.name}:parameter={values[0]}'"
        )
    if row.values in parsed.params:
        raise HeadError(f"{row.values!r} of {row.name!r} is given twice: leave one out")
    value = values[0] if len(values) == 1 and isinstance(values[0], tuple) else values
    return {row.values: value, **parsed.params}


def make_estimator(row: HeadSpec, params: dict[str, object], seed: int) -> Any:
    """Make the untrained estimator of a row, without what stands before and around it."""
    cls = _imported(row.estimator, _REGRESSORS if "values" in row.learns else _CLASSIFIERS)
    known = [p.name for p in inspect.signature(cls).parameters.values() if p.kind not in (2, 4)]
    require_known(row.name, params, known)
    seeds = {"random_state": seed} if "random_state" in known else {}
    try:
        estimator = cls(**{**row.defaults, **seeds, **params})
    except TypeError as error:
        raise HeadError(
            f"{row.name!r} cannot be made from its name alone: {reason(error)}: in Python, make "
            "the estimator and pass it"
        ) from error
    _require_valid(row.name, estimator)
    return estimator


def _imported(path: str, kind: _Estimators = _CLASSIFIERS) -> Any:
    """Import a class of the table, or an estimator of scikit-learn by the path a user typed."""
    module_name, _, name = path.rpartition(".")
    try:
        module = import_module(module_name)
    except ImportError as error:
        raise HeadError(
            f"{path!r} cannot be imported ({reason(error)}): expected the path of a scikit-learn "
            f"{kind.noun}, for example {_nearest_path(path, kind) or kind.example!r}"
        ) from error
    cls = getattr(module, name, None)
    if cls is None:
        known = _members(module, kind)
        elsewhere = "" if difflib.get_close_matches(name, known) else _nearest_path(path, kind)
        hint = f"Did you mean {elsewhere!r}?" if elsewhere else f"In {module_name}"
        raise UnknownNameError("estimator", name, known, hint=hint)
    if not (isinstance(cls, type) and hasattr(cls, "fit") and hasattr(cls, "predict")):
        raise HeadError(
            f"{path!r} is no {kind.noun}: expected a class with fit and predict, "
            f"for example {kind.example!r}"
        )
    if path.startswith("sklearn.") and not _is_one(cls, kind):
        raise HeadError(f"{path!r} is no {kind.noun}: {kind.otherwise}")
    return cls


def _is_one(cls: object, kind: _Estimators) -> bool:
    import sklearn.base

    return isinstance(cls, type) and issubclass(cls, getattr(sklearn.base, kind.mixin))


def _members(module: ModuleType, kind: _Estimators) -> list[str]:
    public = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    return [
        name for name, value in public.items() if _is_one(value, kind) and hasattr(value, "fit")
    ]


def _nearest_path(path: str, kind: _Estimators) -> str:
    """Give the path of the estimator of scikit-learn that was most likely meant, or nothing."""
    from sklearn.utils import all_estimators

    by_name = {}
    for name, cls in all_estimators(type_filter=kind.noun):
        public = takewhile(lambda part: not part.startswith("_"), cls.__module__.split("."))
        by_name[name] = ".".join([*public, name])
    near = difflib.get_close_matches(path.rpartition(".")[2], by_name, n=1)
    return by_name[near[0]] if near else ""


def require_known(name: str, params: Iterable[str], known: Iterable[str]) -> None:
    """Raise `HeadError` for a parameter that is not known, with the nearest that are."""
    by_folded = {k.casefold(): k for k in known}
    for param in params:
        if param in by_folded.values():
            continue
        if param == "class_weight":
            able = [row for row in HEADS.values() if row.name != name and _takes_class_weight(row)]
            raise HeadError(
                f"{name!r} takes no class_weight: leave it (or --balanced) out, or use one of "
                f"{', '.join(row.name for row in able)}"
            )
        near = difflib.get_close_matches(param.casefold(), by_folded, n=3, cutoff=0.5)
        meant = " or ".join(repr(by_folded[n]) for n in near)
        raise HeadError(
            f"unknown parameter {param!r} of {name!r}"
            + (f": did you mean {meant}?" if near else ".")
            + f" Known: {', '.join(sorted(by_folded.values()))}"
        )


def _takes_class_weight(row: HeadSpec) -> bool:
    return "class_weight" in inspect.signature(_imported(row.estimator)).parameters


def _require_valid(name: str, estimator: object) -> None:
    """Ask the estimator now, by the hook that its own fit would ask, whether its values do."""
    check = getattr(estimator, "_validate_params", None)
    if check is None:
        return
    try:
        check()
    except HeadError:
        raise
    except ValueError as error:
        raise HeadError(f"{name!r} cannot be made: {error}") from error


@dataclass(frozen=True)
class HeadText:
    """A head's name, the values without a name, and the values with one."""

    name: str
    values: tuple[object, ...] = ()
    params: dict[str, object] = field(default_factory=dict)


def parse_head(text: str) -> HeadText:
    """Take a head's text apart; whether such a head exists is not its business."""
    if len(text) > _LONGEST:
        raise HeadError(f"a head is at most {_LONGEST} characters, received {len(text)}")
    name, colon, rest = text.partition(":")
    name = name.strip()
    if not _NAME.fullmatch(name):
        raise HeadError(
            f"expected a head such as 'logistic' or 'logistic:C=0.1', received {text!r}: "
            "write the head's name first"
        )
    if colon and not rest.strip():
        raise HeadError(
            f"nothing after the colon in {text!r}: write {name!r}, or '{name}:parameter=value'"
        )
    values: list[object] = []
    params: dict[str, object] = {}
    for item in _items(rest, text) if colon else ():
        match = _KEY.fullmatch(item)
        if match is None:
            values.append(_value(item, text))
        elif match[1] in params:
            raise HeadError(f"{match[1]!r} is given twice in {text!r}: leave one out")
        else:
            params[match[1]] = _value(match[2].strip(), text)
    return HeadText(name, tuple(values), params)


def divided(text: str, divider: str) -> list[str]:
    """Return the parts of a text between dividers where no bracket is open."""
    items, depth, start = [], 0, 0
    for position, letter in enumerate(text):
        if letter in _OPEN:
            depth += 1
        elif letter in _CLOSE:
            depth -= 1
        elif letter == divider and depth == 0:
            items.append(text[start:position].strip())
            start = position + 1
    return [*items, text[start:].strip()]


def _items(rest: str, text: str) -> list[str]:
    items = divided(rest, ",")
    if not all(items):
        raise HeadError(f"nothing between two commas in {text!r}: leave the extra comma out")
    return items


def _value(item: str, text: str) -> object:
    try:
        return ast.literal_eval(item)
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        if _NAME.fullmatch(item):
            return item
    raise HeadError(
        f"cannot read {item!r} in {text!r}: expected a number, None, True, False, a word or a "
        "tuple such as (256, 128)"
    )
