"""A classifier of dense layers: trained with Keras, kept and run as NumPy arrays."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from featx.exceptions import HeadError
from featx.heads.dense_many import fit_heads
from featx.heads.network import logits, sigmoid, softmax
from featx.heads.targets import LABEL_THRESHOLD, best_labels

_RANGES: dict[str, tuple[type, float, float, str]] = {
    "dropout": (Real, 0, 1 - 1e-9, "a number from 0 to less than 1"),
    "label_smoothing": (Real, 0, 1 - 1e-9, "a number from 0 to less than 1"),
    "learning_rate": (Real, 1e-300, np.inf, "a number greater than 0"),
    "weight_decay": (Real, 0, np.inf, "a number of at least 0"),
    "batch_size": (Integral, 1, np.inf, "an integer of at least 1"),
    "max_epochs": (Integral, 1, np.inf, "an integer of at least 1"),
    "patience": (Integral, 1, np.inf, "an integer of at least 1"),
    "validation_fraction": (Real, 0, 0.5, "a number from 0 to 0.5"),
    "verbose": (Integral, 0, np.inf, "an integer of at least 0"),
}


class DenseClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
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
    n_features_in_ : int
    weights_ : list of (kernel, bias)
        One pair of float32 arrays a layer, of shapes (inputs, outputs) and (outputs,).
    n_iter_ : int
        Epochs run.
    best_epoch_ : int
        The epoch whose weights were kept, counted from 1.
    history_ : dict of str to list of float
        ``loss`` and, where rows were held out, ``val_loss`` and ``val_accuracy`` (of rows, or of
        single labels), one an epoch.

    See Also
    --------
    featx.heads.dense_many.fit_heads : Fit many at once.
    featx.heads.dense_streaming.fit_streamed : Fit on more rows than memory holds.

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
        class_weight: str | Mapping[Any, float] | None = None,
        random_state: Any = None,
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

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> DenseClassifier:
        """Train from a fresh start."""
        (failure,) = fit_heads([self], X, y, sample_weight)
        if failure:
            raise HeadError(failure)
        return self

    def decision_function(self, X: Any) -> NDArray[np.float32]:
        """Logits of the classes."""
        scores = self._logits(X)
        two = scores.shape[1] == 2 and not self.multilabel_
        return scores[:, 1] - scores[:, 0] if two else scores

    def predict(self, X: Any) -> NDArray[Any]:
        """Classes of the highest probability, or every label that is more probable than not."""
        proba = self.predict_proba(X)
        if self.multilabel_:
            return (proba > LABEL_THRESHOLD).astype(np.int64)
        return best_labels(proba, self.classes_)

    def predict_proba(self, X: Any) -> NDArray[np.float32]:
        """Probabilities by the softmax of the logits, or of each label by its sigmoid."""
        scores = self._logits(X)
        return sigmoid(scores) if self.multilabel_ else softmax(scores)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags

    def _logits(self, X: Any) -> NDArray[np.float32]:
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=np.float32)
        return logits(X, self.weights_)

    def _validate_params(self) -> None:
        """Check values; scikit-learn's own hook of this name, which `make_head` calls too."""
        hidden = self.hidden
        if not isinstance(hidden, tuple | list) or not all(
            isinstance(size, Integral) and size >= 1 for size in hidden
        ):
            raise HeadError(
                f"hidden must be a tuple of layer sizes of at least 1, received {hidden!r}: "
                "pass for example (1024, 1024), or () for no hidden layer"
            )
        for name, (kind, low, high, expected) in _RANGES.items():
            value = getattr(self, name)
            number = isinstance(value, kind) and not isinstance(value, bool | np.bool_)
            if not (number or (name == "verbose" and isinstance(value, bool))) or not (
                low <= value <= high
            ):
                raise HeadError(f"{name} must be {expected}, received {value!r}: change it")
        if not (self.class_weight in (None, "balanced") or isinstance(self.class_weight, Mapping)):
            raise HeadError(
                f'class_weight must be None, "balanced" or a dict of label to weight, '
                f"received {self.class_weight!r}: leave it out for equal weights"
            )
