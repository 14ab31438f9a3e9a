"""The heads that have names, and the one function that makes them."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from types import MappingProxyType
from typing import Any, Literal

from featx.exceptions import HeadError, UnknownNameError
from featx.heads.parsing import HeadText, parse_head

__all__ = ["HEADS", "HeadSpec", "head_names", "make_head"]


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
    storage : {"skops", "arrays"}, default="skops"
        How an artefact keeps it (see `dump_head`).
    needs_trust : bool, default=False
        Whether skops distrusts what it is made of, so that loading takes ``trust=True``.
    needs_keras : bool, default=False
        Whether training imports Keras. Predicting never does.
    """

    name: str
    summary: str
    estimator: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    standardised: bool = True
    calibrated: bool = False
    values: str = ""
    storage: Literal["skops", "arrays"] = "skops"
    needs_trust: bool = False
    needs_keras: bool = False


# The defaults were chosen on 1,280 standardised MobileNetV2 features: CIFAR-10 at 2, 10, 50 and
# 500 images a class, and the ants and bees. Logistic regression needed 130 iterations at C=0.01,
# 160 at most over C from 1e-4 to 1, so that 5,000 is a guard and no budget.
_ROWS = (
    HeadSpec(
        "logistic",
        "logistic regression (multinomial, L2)",
        "sklearn.linear_model.LogisticRegression",
        {"C": 0.01, "max_iter": 5000},
    ),
    HeadSpec(
        "svm",
        "linear support vector machine, with calibrated probabilities",
        "sklearn.svm.LinearSVC",
        # The dual is 3 times as fast as the primal at 5,000 rows and even with it at few.
        {"C": 0.001, "dual": True, "tol": 1e-3, "max_iter": 20000},
        calibrated=True,
    ),
    HeadSpec(
        "knn",
        "k nearest neighbours by cosine, the nearer counting more",
        "featx.heads.neighbours.NearestNeighbours",
    ),
    HeadSpec(
        "ridge",
        "ridge regression on the classes, with calibrated probabilities",
        "sklearn.linear_model.RidgeClassifier",
        {"alpha": 1000.0},
        calibrated=True,
    ),
    HeadSpec(
        "lda",
        "linear discriminant analysis, covariance shrunk after Ledoit and Wolf",
        "featx.heads.discriminant.ShrinkageLDA",
    ),
    HeadSpec(
        "forest",
        "random forest of 200 trees",
        "sklearn.ensemble.RandomForestClassifier",
        {"n_estimators": 200},
        standardised=False,
        needs_trust=True,
    ),
    HeadSpec(
        "dense",
        "dense layers trained with Keras, for example dense:1024,1024",
        "featx.heads.dense.DenseClassifier",
        values="hidden",
        storage="arrays",
        needs_keras=True,
    ),
)

HEADS: Mapping[str, HeadSpec] = MappingProxyType({row.name: row for row in _ROWS})
"""Every named head by its name."""


def head_names() -> list[str]:
    """Names of the heads, sorted.

    Examples
    --------
    >>> head_names()
    ['dense', 'forest', 'knn', 'lda', 'logistic', 'ridge', 'svm']
    """
    return sorted(HEADS)


def make_head(head: Any, *, seed: int = 0, **params: Any) -> Any:
    """Make an untrained head.

    Parameters
    ----------
    head : str or estimator
        A name of `head_names`, with parameters if wanted (``"logistic:C=0.1"``,
        ``"dense:256,dropout=0.3"``); the import path of a scikit-learn classifier
        (``"sklearn.naive_bayes.GaussianNB"``); or an estimator, which is cloned and otherwise
        left as it is, with no standardisation added.
    seed : int, default=0
        Becomes ``random_state`` where the head has one that is not given.
    **params
        Parameters of the head; they win over those in the text.

    Returns
    -------
    estimator : estimator
        With ``fit`` and ``predict``. Named heads also have ``predict_proba`` and, when fitted,
        ``classes_``; all but the forest are ``Pipeline([("scale", ...), ("head", ...)])``.

    Raises
    ------
    UnknownNameError
        There is no head of this name; the nearest are suggested.
    HeadError
        An unknown parameter, a value that cannot be read or is out of range, ``class_weight`` for
        a head that has none, an import path outside scikit-learn, or an object that is no
        estimator.

    Examples
    --------
    >>> make_head("knn:n_neighbors=3")
    Pipeline(steps=[('scale', StandardScaler()),
                    ('head', NearestNeighbours(n_neighbors=3))])
    >>> make_head("ridge", class_weight="balanced").predict_proba  # doctest: +ELLIPSIS
    <bound method Pipeline.predict_proba of ...>
    >>> make_head("logistik")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    featx.exceptions.UnknownNameError: unknown head 'logistik': did you mean 'logistic'? ...
    """
    if not isinstance(head, str):
        return _cloned(head, params)
    parsed = parse_head(head)
    row = _row(parsed.name)
    estimator = _estimator(row, {**_named(row, parsed), **params}, seed)
    if row.calibrated:
        from featx.heads.calibrated import TemperatureCalibrated

        estimator = TemperatureCalibrated(estimator)
    if not row.standardised:
        return estimator
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import StandardScaler

    return Pipeline([("scale", StandardScaler()), ("head", estimator)])


def _row(name: str) -> HeadSpec:
    if name in HEADS:
        return HEADS[name]
    if name.startswith("sklearn."):
        return HeadSpec(name, "a scikit-learn classifier", name)
    if "." in name:
        raise HeadError(
            f"expected a head's name or an import path below 'sklearn.', received {name!r}: "
            "in Python, pass the estimator itself"
        )
    raise UnknownNameError("head", name, head_names())


def _named(row: HeadSpec, parsed: HeadText) -> dict[str, Any]:
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
    given = values[0] if len(values) == 1 and isinstance(values[0], tuple) else values
    return {row.values: given, **parsed.params}


def _estimator(row: HeadSpec, params: dict[str, Any], seed: int) -> Any:
    cls = _imported(row.estimator)
    known = [p.name for p in inspect.signature(cls).parameters.values() if p.kind not in (2, 4)]
    _require_known(row.name, params, known)
    seeds = {"random_state": seed} if "random_state" in known else {}
    try:
        estimator = cls(**{**row.defaults, **seeds, **params})
    except TypeError as error:
        raise HeadError(
            f"{row.name!r} cannot be made from its name alone: {error}: in Python, make the "
            "estimator and pass it"
        ) from error
    _require_valid(row.name, estimator)
    return estimator


def _imported(path: str) -> Any:
    """Import a class of the table, or a classifier of scikit-learn by the path a user typed."""
    module_name, _, name = path.rpartition(".")
    try:
        module = import_module(module_name)
    except ImportError as error:
        raise HeadError(
            f"{path!r} cannot be imported ({error}): expected the path of a scikit-learn "
            "classifier, for example 'sklearn.naive_bayes.GaussianNB'"
        ) from error
    found = getattr(module, name, None)
    if found is None:
        raise UnknownNameError("estimator", name, _classifiers(module), hint=f"In {module_name}")
    if not (isinstance(found, type) and hasattr(found, "fit") and hasattr(found, "predict")):
        raise HeadError(
            f"{path!r} is no classifier: expected a class with fit and predict, "
            "for example 'sklearn.naive_bayes.GaussianNB'"
        )
    if path.startswith("sklearn.") and not _is_classifier(found):
        raise HeadError(f"{path!r} is no classifier: choose one, a head predicts classes")
    return found


def _is_classifier(cls: Any) -> bool:
    from sklearn.base import ClassifierMixin

    return isinstance(cls, type) and issubclass(cls, ClassifierMixin)


def _classifiers(module: Any) -> list[str]:
    return [name for name, value in vars(module).items() if _is_classifier(value)]


def _cloned(head: Any, params: dict[str, Any]) -> Any:
    if isinstance(head, type) or not (hasattr(head, "fit") and hasattr(head, "predict")):
        raise HeadError(
            f"expected a head's name or an estimator with fit and predict, received {head!r}: "
            f"names are {', '.join(head_names())}"
        )
    from sklearn.base import clone

    try:
        estimator = clone(head)
    except TypeError as error:
        raise HeadError(
            f"{type(head).__name__} cannot be cloned ({error}): expected an estimator with "
            "get_params and set_params, as scikit-learn's BaseEstimator gives them"
        ) from error
    _require_known(type(head).__name__, params, estimator.get_params())
    return estimator.set_params(**params)


def _require_known(name: str, params: Iterable[str], known: Iterable[str]) -> None:
    by_folded = {k.casefold(): k for k in known}
    for param in params:
        if param in by_folded.values():
            continue
        if param == "class_weight":
            able = [row for row in _ROWS if row.name != name and _takes_class_weight(row)]
            raise HeadError(
                f"{name!r} takes no class_weight: leave it out, or use one of "
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


def _require_valid(name: str, estimator: Any) -> None:
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
