"""From a fitted estimator of scikit-learn or featx to the steps of arithmetic that it comes to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from featx.exceptions import HeadError
from featx.files.claims import shortened
from featx.heads.rows import Doubles
from featx.heads.steps import (
    CERTAIN,
    Columns,
    DiagonalGaussians,
    EachLabel,
    FittedHead,
    FittedMargins,
    FittedValues,
    Gaussian,
    Linear,
    Mean,
    Neighbours,
    Scale,
    Sigmoid,
    Softmax,
    Step,
    Trees,
    UnitLength,
    apply_steps,
    dense_steps,
    joined,
)

_CHECKED_ROWS = 64
_LARGEST_DIFFERENCE = 1e-4


class Stored:
    """A fitted estimator that was read from a file and not made: nothing but its attributes."""

    def __init__(self, stored_type: str, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.stored_type = stored_type


def steps_of(head: Any) -> list[Step]:
    """Return a fitted head as steps from features (n, d) to probabilities, or margins, (n, k)."""
    steps = translate(head)
    _require_equal(head, steps)
    return steps


def translate(estimator: Any) -> list[Step]:
    """Return the steps of an estimator, or of a `Stored` one, without comparing answers."""
    if isinstance(estimator, FittedHead | FittedMargins | FittedValues):
        return list(estimator.steps_)
    if _kind(estimator) in ("Pipeline", "HeadPipeline", "ValuePipeline"):
        *before, last = (step for _, step in estimator.steps if step not in (None, "passthrough"))
        return [step for part in before for step in _transform(part)] + translate(last)
    rule = _HEADS.get(_kind(estimator))
    if rule is None:
        raise HeadError(_named(estimator))
    return rule(estimator)


def _kind(estimator: Any) -> str:
    """Return the name of a class of scikit-learn or featx, nothing for anybody else's."""
    cls = type(estimator)
    path = f"{cls.__module__}.{cls.__name__}"
    if isinstance(estimator, Stored):
        path = estimator.stored_type
    return path.rpartition(".")[2] if path.split(".")[0] in ("sklearn", "featx") else ""


def _named(estimator: Any) -> str:
    if isinstance(estimator, Stored):
        return shortened(estimator.stored_type)
    return type(estimator).__name__


def _transform(transformer: Any) -> list[Step]:
    rule = _TRANSFORMS.get(_kind(transformer))
    if rule is None:
        raise HeadError(f"a head behind {_named(transformer)}")
    return rule(transformer)


def _scaler(scaler: Any) -> list[Step]:
    width = scaler.n_features_in_
    scale = np.ones(width) if scaler.scale_ is None else _double(scaler.scale_)
    return [Scale(_double(scaler.mean_) if scaler.with_mean else np.zeros(width), scale)]


def _components(pca: Any) -> list[Step]:
    kernel = np.asarray(pca.components_).T
    if pca.whiten:
        spread = np.sqrt(pca.explained_variance_)
        kernel = kernel / np.maximum(spread, np.finfo(spread.dtype).eps)
    # Centred first: the mean of features can be many times their spread.
    return [
        Scale(_double(pca.mean_), np.ones(len(kernel))),
        Linear(kernel, np.zeros(kernel.shape[1])),
    ]


def _normalizer(normalizer: Any) -> list[Step]:
    if normalizer.norm != "l2":
        raise HeadError(f"Normalizer with norm={normalizer.norm!r}")
    return [UnitLength()]


def _linear(estimator: Any) -> Linear:
    """Return the margins of a linear classifier, one column where there are two classes."""
    coef = np.atleast_2d(estimator.coef_)
    intercept = np.asarray(estimator.intercept_, coef.dtype)
    return Linear(coef.T, np.broadcast_to(intercept, len(coef)))


def _pair(margins: Linear, low: float) -> Linear:
    """Make of one margin of two classes the two scores that a softmax takes."""
    if margins.kernel.shape[1] != 1:
        return margins
    signs = np.array([low, 1.0], margins.kernel.dtype)
    return Linear(margins.kernel * signs, margins.bias * signs)


def _softmax_of_scores(estimator: Any) -> list[Step]:
    return [_pair(_linear(estimator), 0.0), Softmax()]


def _calibrated(head: Any) -> list[Step]:
    machine = head.estimator_
    after: list[Step] = [_cooled(head), Softmax()]
    if _kind(machine) == "ReducedRBF":
        kernel = Gaussian(machine.basis_, np.asarray(machine.gamma_, np.float64))
        margins = _linear(machine.machine_)
        margins = Linear(machine.whitening_ @ margins.kernel, margins.bias)
        return [kernel, _pair(margins, -1.0), *after]
    if _kind(machine) not in _MARGINS:
        raise HeadError(_named(machine))
    return [_pair(_linear(machine), -1.0), *after]


def _nearest_mean(head: Any) -> list[Step]:
    means = np.asarray(head.means_)
    if head.metric == "cosine":
        products = Linear(means.T, np.zeros(len(means), means.dtype))
        return [UnitLength(), products, _cooled(head), Softmax()]
    halves = -0.5 * np.einsum("ij,ij->i", means, means)
    return [Linear(means.T, halves), _cooled(head), Softmax()]


def _cooled(head: Any) -> Scale:
    """Return the division by a head's temperature."""
    temperature = float(head.temperature_)
    if not 0 < temperature < np.inf:
        raise ValueError(f"a temperature of {temperature}")
    classes = len(head.classes_)
    return Scale(np.zeros(classes), np.full(classes, temperature))


def _naive_bayes(head: Any) -> list[Step]:
    variances = _double(head.var_)
    constants = np.log(head.class_prior_) - 0.5 * np.log(2 * np.pi * variances).sum(axis=1)
    return [DiagonalGaussians(_double(head.theta_), np.sqrt(variances), constants), Softmax()]


def _margins(head: Any) -> list[Step]:
    return [_linear(head)]


def _dense(head: Any) -> list[Step]:
    return dense_steps(head.weights_, Sigmoid() if head.multilabel_ else Softmax())


def _dense_values(head: Any) -> list[Step]:
    return dense_steps(head.weights_)


def _nearest_values(head: Any) -> list[Step]:
    return [head.step_]


def _each_value(head: Any) -> list[Step]:
    """Put linear regressors of single columns side by side."""
    parts = [joined(translate(estimator)) for estimator in head.estimators_]
    linear = [part[0] for part in parts if len(part) == 1 and isinstance(part[0], Linear)]
    if len(linear) != len(parts):
        raise HeadError(_named(head.estimators_[0]))
    kernel = np.concatenate([_double(step.kernel) for step in linear], axis=1)
    bias = np.concatenate([_double(step.bias) for step in linear])
    return [Linear(kernel * head.spread_, bias * head.spread_ + head.mean_)]


def _neighbours(head: Any) -> list[Step]:
    model = head.model_ if hasattr(head, "model_") else head
    labels = model._y
    if isinstance(model.classes_, list):
        # One fit for all labels: of two classes each, so that the place of a class is 0 or 1.
        targets = labels.astype(np.float32)
    else:
        targets = labels.ravel().astype(np.int32)
    if not isinstance(model.metric, str) or model.weights not in ("uniform", "distance"):
        raise HeadError(f"{_named(head)} with a metric or weights of one's own")
    return [
        Neighbours(
            model._fit_X,
            targets,
            columns=targets.shape[1] if targets.ndim == 2 else len(model.classes_),
            count=int(model.n_neighbors),
            nearer_count_more=model.weights == "distance",
            metric=model.metric,
        )
    ]


def _trees(ensemble: Any) -> list[Step]:
    model = ensemble.model_ if hasattr(ensemble, "model_") else ensemble
    parts = []
    nodes = leaves = 0
    for estimator in getattr(model, "estimators_", [model]):
        tree = estimator.tree_
        numbers = _kind(model) in _VALUE_TREES
        if tree.value.shape[1] != 1 and not numbers:
            raise HeadError(f"{_named(ensemble)} of several outputs")
        is_leaf = tree.children_left == -1
        number_of_leaf = np.cumsum(is_leaf) - 1 + leaves
        shares = tree.value[is_leaf, :, 0] if numbers else tree.value[is_leaf, 0, :]
        if not numbers:
            shares = shares / shares.sum(axis=1, keepdims=True)
        parts.append(
            (
                np.array([nodes]),
                np.where(is_leaf, -1, tree.children_left + nodes),
                np.where(is_leaf, number_of_leaf, tree.children_right + nodes),
                np.where(is_leaf, 0, tree.feature),
                np.where(is_leaf, 0.0, tree.threshold),
                shares,
            )
        )
        nodes += len(is_leaf)
        leaves += int(is_leaf.sum())
    roots, left, right, feature, threshold, values = map(np.concatenate, zip(*parts, strict=True))
    roots, left, right, feature = (a.astype(np.int32) for a in (roots, left, right, feature))
    return [Trees(roots, left, right, feature, threshold, values)]


def _multilabel(head: Any) -> list[Step]:
    """Put the heads of all labels side by side; one that does not vary is certain."""
    varying, temperatures = head.varying_, head.temperatures_
    if temperatures.size:
        shared = _linear(head.estimators_[0])
        columns = [
            (shared.kernel[:, c] * 2 / t, shared.bias[c] * 2 / t)
            for c, t in enumerate(temperatures)
        ]
        return [_side_by_side(head, columns), Sigmoid()]
    if len(head.estimators_) != len(varying):
        (shared_vote,) = _neighbours(head.estimators_[0])
        if len(varying) == len(head.shares_):
            return [shared_vote]
        spread = np.zeros((len(varying), len(head.shares_)))
        spread[np.arange(len(varying)), varying] = 1
        certain = np.where(head.shares_ > 0.5, 1.0, 0.0)
        certain[varying] = 0
        return [shared_vote, Linear(spread, certain)]
    parts = [joined(translate(estimator)) for estimator in head.estimators_]
    alike = {tuple(type(step) for step in part) for part in parts}
    if not parts or alike in ({(Linear, Softmax)}, {(UnitLength, Linear, Softmax)}):
        columns = [_log_odds(part) for part in parts]
        before = parts[0][:-2] if parts else []
        return [*before, _side_by_side(head, columns), Sigmoid()]
    labels: list[tuple[Step, ...]] = []
    for share in head.shares_:
        certain = np.array([0.0, CERTAIN if share > 0.5 else -CERTAIN])
        labels.append((Linear(np.zeros((head.n_features_in_, 2)), certain), Softmax()))
    for label, part in zip(varying, parts, strict=True):
        labels[label] = tuple(part)
    return [EachLabel(tuple(labels))]


def _side_by_side(head: Any, columns: list[tuple[Doubles, float]]) -> Linear:
    kernel = np.zeros((head.n_features_in_, len(head.shares_)))
    bias = np.where(head.shares_ > 0.5, CERTAIN, -CERTAIN)
    for label, (weights, offset) in zip(head.varying_, columns, strict=True):
        kernel[:, label], bias[label] = weights, offset
    return Linear(kernel, bias)


def _log_odds(part: list[Step]) -> tuple[Doubles, float]:
    """Return the margin of having a label over not having it."""
    linear = part[-2]
    assert isinstance(linear, Linear)
    kernel, bias = _double(linear.kernel), _double(linear.bias)
    return kernel[:, 1] - kernel[:, 0], float(bias[1] - bias[0])


def _ensemble(head: Any) -> list[Step]:
    width = int(head.n_features_in_)
    members = []
    for member, (_, ranges) in zip(head.members_, head.members, strict=True):
        columns = np.concatenate([np.arange(*one, dtype=np.int32) for one in ranges])
        some: list[Step] = [] if len(columns) == width else [Columns(columns, width)]
        members.append((*some, *translate(member)))
    return [Mean(tuple(members), np.asarray(head.weights, np.float64))]


def _double(values: Any) -> Doubles:
    return np.asarray(values, np.float64)


_TRANSFORMS: dict[str, Callable[[Any], list[Step]]] = {
    "StandardScaler": _scaler,
    "PCA": _components,
    "Normalizer": _normalizer,
}
_MARGINS = (
    *("LinearDiscriminantAnalysis", "LinearSVC", "LogisticRegression", "Perceptron"),
    *("RidgeClassifier", "RidgeClassifierCV", "SGDClassifier", "ShrinkageLDA"),
)
_TREES = (
    *("DecisionTreeClassifier", "ExtraTreeClassifier", "ExtraTreesClassifier"),
    *("RandomForestClassifier", "TreeEnsemble"),
)
_VALUE_TREES = (
    *("DecisionTreeRegressor", "ExtraTreeRegressor", "ExtraTreesRegressor"),
    "RandomForestRegressor",
)
_LINEAR_VALUES = (
    *("ARDRegression", "BayesianRidge", "ElasticNet", "ElasticNetCV", "HuberRegressor", "Lars"),
    *("Lasso", "LassoCV", "LassoLars", "LinearRegression", "LinearSVR", "Ridge", "RidgeCV"),
    *("SGDRegressor", "TheilSenRegressor"),
)
_SOFTMAX = (
    *("LinearDiscriminantAnalysis", "LogisticPathCV", "LogisticRegression"),
    *("LogisticRegressionCV", "ShrinkageLDA"),
)
_HEADS: dict[str, Callable[[Any], list[Step]]] = {
    **dict.fromkeys((*_TREES, *_VALUE_TREES), _trees),
    **dict.fromkeys(_LINEAR_VALUES, _margins),
    **dict.fromkeys(_SOFTMAX, _softmax_of_scores),
    **dict.fromkeys(("LinearSVC", "Perceptron", "RidgeClassifier", "RidgeClassifierCV"), _margins),
    **dict.fromkeys(("KNeighborsClassifier", "NearestNeighbours"), _neighbours),
    "DenseClassifier": _dense,
    "DenseRegressor": _dense_values,
    "EachValue": _each_value,
    "Ensemble": _ensemble,
    "GaussianNB": _naive_bayes,
    "MultiLabelHead": _multilabel,
    "NearestMean": _nearest_mean,
    "NearestValues": _nearest_values,
    "TemperatureCalibrated": _calibrated,
}


def _require_equal(head: Any, steps: list[Step]) -> None:
    """Compare with the head on rows like those that it was trained on, as its scaler knows them."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((_CHECKED_ROWS, int(head.n_features_in_)))
    first = head.steps[0][1] if hasattr(head, "steps") else head
    if _kind(first) == "StandardScaler":
        X = first.inverse_transform(X)
    tolerance = _LARGEST_DIFFERENCE
    if not hasattr(head, "classes_"):
        expected = np.asarray(head.predict(X), np.float64).reshape(len(X), -1)
        tolerance *= max(1.0, float(np.abs(expected).max(initial=0.0)))
    elif hasattr(head, "predict_proba"):
        expected = np.asarray(head.predict_proba(X), np.float64)
    else:
        expected = np.asarray(head.decision_function(X), np.float64).reshape(len(X), -1)
    computed = apply_steps(X, steps)
    worst = float(np.abs(computed - expected).max()) if computed.shape == expected.shape else np.inf
    if not worst <= tolerance:
        raise HeadError(
            f"{type(head).__name__}, whose answers are of another form than expected (its "
            f"layers differ from it by {worst:.1e}, at most {tolerance:.0e} is allowed),"
        )
