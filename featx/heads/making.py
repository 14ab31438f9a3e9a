"""Untrained heads from their names, from import paths, and from estimators."""

from __future__ import annotations

from typing import Any

from sklearn.base import ClassifierMixin, clone, is_regressor
from sklearn.preprocessing import StandardScaler
from sklearn.utils import get_tags

from featx.exceptions import HeadError, reason
from featx.heads.calibrated import TemperatureCalibrated
from featx.heads.foreign import encoded
from featx.heads.head_pipeline import HeadPipeline
from featx.heads.multilabel import MultiLabelHead
from featx.heads.regression import EachValue, ValuePipeline
from featx.heads.table import (
    find_row,
    head_names,
    heads_for,
    learns_label_sets,
    make_estimator,
    parse_head,
    read_head,
    require_known,
)


def make_head(
    head: Any,
    *,
    seed: int = 0,
    multilabel: bool = False,
    regression: bool = False,
    **params: object,
) -> Any:
    """Make an untrained head.

    Parameters
    ----------
    head : str or estimator
        A name of `head_names`, with parameters if wanted (``"logistic:C=0.1"``,
        ``"dense:256,dropout=0.3"``); the import path of a scikit-learn classifier
        (``"sklearn.svm.SVC:C=10,kernel=rbf"``), which gets calibrated probabilities where it has
        margins only; or an estimator, which is cloned and otherwise left as it is, with no
        standardisation added.
    seed : int, default=0
        Becomes ``random_state`` where the head has one that is not given.
    multilabel : bool, default=False
        Whether an image has any number of labels: the head is then trained on a matrix of shape
        (images, labels) of 0 and 1, and predicts one: by `MultiLabelHead`, but for dense heads,
        which have an output a label.
    regression : bool, default=False
        Whether numbers are learnt: names are then those of ``head_names(regression=True)``, and
        paths and estimators are of regressors. The head learns a number a row, (n,), or several,
        (n, k).
    **params
        Parameters of the head; they win over those in the text.

    Returns
    -------
    estimator : estimator
        With ``fit`` and ``predict``. Named heads also have ``predict_proba`` and, when fitted,
        ``classes_``; all are ``HeadPipeline([("scale", ...), ("head", ...)])``, trees and what
        takes no negative numbers without the first step.

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
    HeadPipeline(steps=[('scale', StandardScaler()),
                        ('head', NearestNeighbours(n_neighbors=3))])
    >>> make_head("ridge", class_weight="balanced").predict_proba  # doctest: +ELLIPSIS
    <bound method Pipeline.predict_proba of ...>
    >>> make_head("logistik")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    featx.exceptions.UnknownNameError: unknown head 'logistik': did you mean 'logistic'? ...
    """
    if not isinstance(head, str):
        cloned = _cloned(head, params)
        if regression:
            return _for_values(cloned)
        return _for_labels(encoded(cloned), multilabel)
    name, values = read_head(head, regression=regression)
    row = find_row(name, regression=regression)
    estimator = make_estimator(row, {**values, **params}, seed)
    by_path = row.name not in heads_for(regression=regression)
    scaled = row.standardised and not (by_path and _takes_no_negatives(estimator))
    if regression:
        estimator = EachValue(estimator) if row.by_column else _for_values(estimator)
    else:
        if row.calibrated or (by_path and _gives_margins_only(estimator)):
            estimator = TemperatureCalibrated(estimator)
        estimator = _for_labels(estimator, multilabel)
    steps = [("head", estimator)]
    if scaled:
        steps.insert(0, ("scale", StandardScaler()))
    return (ValuePipeline if regression else HeadPipeline)(steps)


def balanced_head(head: Any) -> Any:
    """Return a head that weighs each class by the inverse of its number of rows.

    One that has class weights of its own stays as it is.

    Raises
    ------
    HeadError
        If the head has no ``class_weight``.

    Examples
    --------
    >>> balanced_head("logistic:C=0.1")
    'logistic:C=0.1,class_weight=balanced'
    """
    if not isinstance(head, str):
        weights = getattr(head, "class_weight", None)
        return head if weights is not None else make_head(head, class_weight="balanced")
    if "class_weight" in parse_head(head).params:
        return head
    make_head(head, class_weight="balanced")  # refuses it where the head has none
    return f"{head}{',' if ':' in head else ':'}class_weight=balanced"


def _for_labels(estimator: Any, multilabel: bool) -> Any:
    if not multilabel or learns_label_sets(estimator):
        return estimator
    return MultiLabelHead(estimator)


def _for_values(estimator: Any) -> Any:
    """Return a regressor that learns several numbers a row, one after another if need be."""
    if not is_regressor(estimator):
        raise HeadError(
            f"{type(estimator).__name__} predicts no numbers: a regression takes one of "
            f"{', '.join(head_names(regression=True))}, or a regressor of scikit-learn"
        )
    if get_tags(estimator).target_tags.multi_output:
        return estimator
    return EachValue(estimator, scaled=False)


def _gives_margins_only(estimator: object) -> bool:
    return hasattr(estimator, "decision_function") and not hasattr(estimator, "predict_proba")


def _takes_no_negatives(estimator: object) -> bool:
    return bool(get_tags(estimator).input_tags.positive_only)


def _cloned(head: Any, params: dict[str, object]) -> Any:
    # Some classifiers have no predict before they are trained, as StackingClassifier.
    predicts = hasattr(head, "predict") or isinstance(head, ClassifierMixin)
    if isinstance(head, type) or not (hasattr(head, "fit") and predicts):
        raise HeadError(
            f"expected a head's name or an estimator with fit and predict, received {head!r}: "
            f"names are {', '.join(head_names())}"
        )
    try:
        estimator = clone(head)
    except TypeError as error:
        raise HeadError(
            f"{type(head).__name__} cannot be cloned ({reason(error)}): expected an estimator with "
            "get_params and set_params, as scikit-learn's BaseEstimator gives them"
        ) from error
    require_known(type(head).__name__, params, estimator.get_params())
    return estimator.set_params(**params)
