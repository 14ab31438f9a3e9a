"""A classifier of dense layers: trained with Keras, kept and run as NumPy arrays."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from numbers import Integral, Real

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, clone
from sklearn.preprocessing import StandardScaler
from sklearn.utils import Tags, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from featx.exceptions import HeadError
from featx.heads.dense_training import (
    DenseData,
    DenseSettings,
    DenseTraining,
    Models,
    train_heads,
)
from featx.heads.estimators import (
    CLASS_WEIGHT,
    Allowed,
    WeightedClassifier,
    WeightedRegressor,
    check_labels,
    checked_weights,
    from_1,
    require_finite,
)
from featx.heads.rows import Floats, Rows
from featx.heads.steps import Sigmoid, Softmax, Step, apply_steps, dense_steps
from featx.heads.sweep import HeldOut, SweepData, swept
from featx.heads.targets import LABEL_THRESHOLD, Targets, best_labels, value_scale

_LOG = logging.getLogger("featx")
_CHANGE = "change it"


def _share(name: str) -> Allowed:
    text = "a number from 0 to less than 1"
    return Allowed(name, text, _CHANGE, kind=Real, low=0, high=1 - 1e-9)


_ALLOWED = (
    _share("dropout"),
    *(from_1(name, _CHANGE) for name in ("batch_size", "max_epochs", "patience")),
    Allowed("learning_rate", "a number greater than 0", _CHANGE, kind=Real, low=1e-300),
    Allowed("weight_decay", "a number of at least 0", _CHANGE, kind=Real, low=0),
    Allowed("validation_fraction", "a number from 0 to 0.5", _CHANGE, kind=Real, low=0, high=0.5),
    Allowed("verbose", "an integer of at least 0", _CHANGE, (True, False), Integral, low=0),
)


class _DenseLayers(BaseEstimator):  # type: ignore[misc]
    """What dense heads share: the layers that were learnt, and how they were."""

    hidden: tuple[int, ...]
    batch_size: int
    validation_fraction: float
    class_weight: str | Mapping[object, float] | None = None
    label_smoothing: float = 0.0
    random_state: int | np.random.RandomState | None

    def _learnt(self, rows: Rows, targets: Targets, trained: DenseTraining) -> None:
        """Take what training has learnt of some rows."""
        self.n_features_in_, self.weights_ = rows.width, trained.layers
        self.n_iter_, self.best_epoch_ = trained.epochs, trained.best_epoch
        self.history_ = trained.history

    def _validate_params(self) -> None:
        hidden = self.hidden
        if not isinstance(hidden, tuple | list) or not all(
            isinstance(size, Integral) and size >= 1 for size in hidden
        ):
            raise HeadError(
                f"hidden must be a tuple of layer sizes of at least 1, received {hidden!r}: "
                "pass for example (1024, 1024), or () for no hidden layer"
            )
        super()._validate_params()


class DenseClassifier(_DenseLayers, WeightedClassifier):
    """Dense layers with dropout on features; no hidden layer makes it softmax regression.

    Keras trains it on whichever backend it runs. What is learned is kept as NumPy arrays and
    predicting is NumPy, so that a trained head is a plain object: it pickles, copies and predicts
    without Keras. It expects standardised features, which `make_head` sees to.

    Parameters
    ----------
    hidden : tuple of int, default=(1024,)
        Sizes of the hidden layers, each followed by relu and dropout.
    dropout : float, default=0.2
        Share of each hidden layer's outputs that is zeroed in training.
    learning_rate : float, default=1e-3
        Of AdamW.
    weight_decay : float, default=1e-4
        Of AdamW, on kernels and not on biases; decoupled, so times the learning rate.
    label_smoothing : float, default=0.0
        Share of the target that is spread evenly over the classes (over 0 and 1 for labels).
    batch_size : int, default=256
        Rows a step.
    max_epochs : int, default=100
        The most epochs to run, or the number to run where nothing is held out.
    patience : int, default=10
        Epochs without a lower loss on the held-out rows before training stops.
    validation_fraction : float, default=0.1
        Share of every class that is held out to say when to stop; the best epoch's weights are
        kept. Classes of fewer than five images are trained on and not held out; where they make
        up a fifth of the images, or fewer than ten would be held out, it trains on all rows for
        ``max_epochs`` epochs; 0 asks for that.
    class_weight : None, "balanced" or dict, default=None
        What an image of each class counts, as in scikit-learn. For multi-label targets a dict
        from column to what the presence of the label counts; "balanced" lets presence and
        absence of each label count the same in total.
    random_state : int, RandomState or None, default=None
        Source of the start, the order of the rows, the held-out rows and dropout.
    verbose : int, default=0
        From 1, one line an epoch to the logger ``featx``, level INFO.

    Attributes
    ----------
    classes_ : ndarray of shape (k,)
        Sorted labels; for multi-label targets 0 to k - 1.
    multilabel_ : bool
        Whether it was trained on a matrix of 0 and 1, a column a label.
    weights_ : list of (kernel, bias)
        One pair of float32 arrays a layer, of shapes (inputs, outputs) and (outputs,).
    n_iter_ : int
        Epochs run.
    best_epoch_ : int
        The epoch whose weights were kept, counted from 1.
    history_ : dict of str to list of float
        ``loss`` and, where rows were held out, ``val_loss`` and ``val_accuracy`` (of rows, or of
        single labels), one an epoch.

    Notes
    -----
    AdamW: Loshchilov, Hutter, "Decoupled Weight Decay Regularization", ICLR 2019.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> head = DenseClassifier((8,), learning_rate=0.05, batch_size=32, random_state=0)
    >>> head.fit(X, y).score(X, y) > 0.9
    True
    """

    learns_label_sets = True
    _dtypes = (np.float32,)
    _allowed = (*_ALLOWED, _share("label_smoothing"), CLASS_WEIGHT)

    def __init__(
        self,
        hidden: tuple[int, ...] = (1024,),
        *,
        dropout: float = 0.2,
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-4,
        label_smoothing: float = 0.0,
        batch_size: int = 256,
        max_epochs: int = 100,
        patience: int = 10,
        validation_fraction: float = 0.1,
        class_weight: str | Mapping[object, float] | None = None,
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
    ) -> None:
        self.hidden = hidden
        self.dropout = dropout
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.label_smoothing = label_smoothing
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.patience = patience
        self.validation_fraction = validation_fraction
        self.class_weight = class_weight
        self.random_state = random_state
        self.verbose = verbose

    def fit(
        self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None
    ) -> DenseClassifier:
        """Train from a fresh start.

        Parameters
        ----------
        X : array-like of shape (n, d)
            Features, finite.
        y : array-like of shape (n,), or of shape (n, k) of 0 and 1, dense or sparse
            One class a row, or a column for each label.
        sample_weight : array-like of shape (n,), optional
            What each row counts.

        Raises
        ------
        HeadError
            A parameter is out of range, nothing can be learnt from the rows, or training diverged.
        """
        labels = np.asarray(y.toarray() if hasattr(y, "toarray") else y)
        if labels.ndim != 2 or labels.shape[1] == 1:
            return self._fit(X, y, sample_weight)
        features = validate_data(self, X, dtype=np.float32, ensure_all_finite=False)
        require_finite(features)
        targets = Targets.of_labels(check_labels(labels, len(features)))
        if sample_weight is not None:
            targets = replace(targets, weights=checked_weights(sample_weight, len(features)))
        return self.fit_rows(Rows.of(features), targets)

    def fit_rows(self, rows: Rows, targets: Targets) -> DenseClassifier:
        """Train on rows in memory or in batches, of classes or labels; see `fit`."""
        (failure,) = fit_heads([self], rows, targets)
        if failure:
            raise HeadError(failure)
        return self

    def decision_function(self, X: ArrayLike) -> NDArray[np.float32]:
        """Return logits: (n,) of two classes, otherwise (n, k)."""
        scores = self._scores(X, self._steps()[:-1])
        two = scores.shape[1] == 2 and not self.multilabel_
        return scores[:, 1] - scores[:, 0] if two else scores

    def predict(self, X: ArrayLike) -> NDArray[np.generic]:
        """Return the likeliest class of each row, or every label that is more probable than not."""
        probabilities = self.predict_proba(X)
        if self.multilabel_:
            return (probabilities > LABEL_THRESHOLD).astype(np.int64)
        return best_labels(probabilities, self.classes_)

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float32]:
        """Return probabilities (n, k): the softmax of the logits, or of each label its sigmoid."""
        return self._scores(X, self._steps())

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags

    def _learnt(self, rows: Rows, targets: Targets, trained: DenseTraining) -> None:
        super()._learnt(rows, targets, trained)
        self.classes_, self.multilabel_ = targets.names, targets.kind == "labels"

    def _steps(self) -> list[Step]:
        check_is_fitted(self)
        return dense_steps(self.weights_, Sigmoid() if self.multilabel_ else Softmax())

    def _scores(self, X: ArrayLike, steps: Sequence[Step]) -> NDArray[np.float32]:
        return apply_steps(self._matrix(X), steps).astype(np.float32, copy=False)


class DenseRegressor(_DenseLayers, WeightedRegressor):
    """Dense layers with dropout on features that learn numbers by the squared error.

    Each column of numbers is scaled to a mean of 0 and a deviation of 1 for training, and back
    again by the last layer, which begins with zeros: with the mean. Without a hidden layer it is
    linear.

    Parameters
    ----------
    hidden : tuple of int, default=(256,)
    dropout : float, default=0.5
    learning_rate : float, default=3e-4
    weight_decay, batch_size, max_epochs, patience
        As of `DenseClassifier`.
    validation_fraction : float, default=0.1
        Share of the images that is held out to say when to stop.
    random_state, verbose
        As of `DenseClassifier`.

    Attributes
    ----------
    weights_, n_iter_, best_epoch_
        As of `DenseClassifier`.
    history_ : dict of str to list of float
        ``loss`` and, where rows were held out, ``val_loss`` and ``val_r2``, one an epoch: of the
        scaled numbers.

    Examples
    --------
    >>> X = np.random.default_rng(0).normal(size=(200, 4))
    >>> head = DenseRegressor((), learning_rate=0.05, batch_size=32, random_state=0)
    >>> head.fit(X, X @ [1.0, 2.0, 0.0, -1.0] + 7).score(X, X @ [1.0, 2.0, 0.0, -1.0] + 7) > 0.9
    True
    """

    _dtypes = (np.float32,)
    _allowed = _ALLOWED

    def __init__(
        self,
        hidden: tuple[int, ...] = (256,),
        *,
        dropout: float = 0.5,
        learning_rate: float = 3e-4,
        weight_decay: float = 1e-4,
        batch_size: int = 256,
        max_epochs: int = 100,
        patience: int = 10,
        validation_fraction: float = 0.1,
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
    ) -> None:
        self.hidden = hidden
        self.dropout = dropout
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.patience = patience
        self.validation_fraction = validation_fraction
        self.random_state = random_state
        self.verbose = verbose

    def fit_rows(self, rows: Rows, targets: Targets) -> DenseRegressor:
        """Train on rows in memory or in batches; see `fit`."""
        (failure,) = fit_heads([self], rows, targets)
        if failure:
            raise HeadError(failure)
        return self

    def _learnt(self, rows: Rows, targets: Targets, trained: DenseTraining) -> None:
        super()._learnt(rows, targets, trained)
        mean, spread = value_scale(targets)
        kernel, bias = trained.layers[-1]
        # In double precision: the spread may be a small part of the mean.
        last: tuple[Floats, Floats] = (
            kernel.astype(np.float64) * spread,
            bias.astype(np.float64) * spread + mean,
        )
        self.weights_: list[tuple[Floats, Floats]] = [*trained.layers[:-1], last]

    def _values(self, rows: Floats) -> Floats:
        return apply_steps(rows, dense_steps(self.weights_))


def fit_heads(
    heads: Sequence[DenseClassifier | DenseRegressor],
    rows: Rows,
    targets: Targets,
    *,
    models: Models | None = None,
) -> list[str]:
    """Fit heads in place, those that see the same batches together; return why each diverged."""
    failures = [""] * len(heads)
    alike: dict[tuple[int, int, float, str], list[int]] = {}
    for number, head in enumerate(heads):
        head._validate_params()
        seed = int(check_random_state(head.random_state).randint(2**31 - 1))
        share = float(head.validation_fraction)
        key = (seed, int(head.batch_size), share, repr(head.class_weight))
        alike.setdefault(key, []).append(number)
    for (seed, batch_size, held_share, _), numbers in alike.items():
        # Classes are balanced by their rows, whatever each of these counts.
        learnt = targets
        if targets.kind == "values":
            mean, spread = value_scale(targets)
            learnt = replace(targets, values=(targets.values - mean) / spread)
        unweighted = replace(learnt, weights=None)
        balanced = unweighted.with_class_weight(heads[numbers[0]].class_weight)
        data = DenseData(
            rows,
            replace(balanced, weights=targets.weights),
            seed=seed,
            batch_size=batch_size,
            held_share=held_share,
        )
        settings = [DenseSettings.of(heads[number]) for number in numbers]
        for number, trained in zip(numbers, train_heads(settings, data, models), strict=True):
            failures[number] = trained.failure
            if not trained.failure:
                heads[number]._learnt(rows, targets, trained)
    return failures


def _together(data: SweepData) -> Iterator[HeldOut]:
    """Measure settings of the head ``dense``, of which each fold's are trained together."""
    # Stacks of the same shapes recur from fold to fold: they are compiled once.
    models: Models = {}
    for fold, (train, test) in enumerate(data.folds):
        heads = [clone(setting) for setting in data.settings]
        targets = data.targets.take(train)
        scaler = StandardScaler()
        rows = Rows.of(scaler.fit_transform(np.asarray(data.X[train], dtype=np.float32)))
        failures = fit_heads(heads, rows, targets, models=models)
        tested = scaler.transform(np.asarray(data.X[test], dtype=np.float32))
        for candidate, (head, failure) in enumerate(zip(heads, failures, strict=True)):
            if failure:
                _LOG.warning("candidate %d, fold %d: %s", candidate, fold, failure)
                known = 0.5 if targets.kind == "labels" else 1 / targets.columns
                if targets.kind == "values":
                    known = targets.values.mean(axis=0)
                values = np.full((len(test), targets.columns), known, dtype=np.float32)
                yield HeldOut(candidate, fold, values, stopped=True)
            elif targets.kind == "values":
                values = head.predict(tested).reshape(len(test), -1)
                yield HeldOut(candidate, fold, values)
            else:
                yield HeldOut(candidate, fold, head.predict_proba(tested))


sweep_dense = swept("dense", weighted=True, learns=("classes", "labels"))(_together)
sweep_dense_values = swept("dense", weighted=True, learns=("values",))(_together)
