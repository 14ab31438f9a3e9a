"""A support vector machine with a Gaussian kernel, on a basis of some of the images."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.svm import LinearSVC
from sklearn.utils.validation import check_is_fitted, check_random_state, validate_data

from featx.exceptions import HeadError
from featx.heads.targets import best_labels
from featx.heads.validation import validated_training


class ReducedRBF(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """RBF SVM whose kernel is written in a basis of at most ``n_components`` images.

    Parameters
    ----------
    C : float, default=1.0
        Inverse of the penalty.
    gamma : "scale" or float, default="scale"
        Of ``exp(-gamma * squared distance)``; ``"scale"`` is 1 / (d * variance of all entries),
        as in scikit-learn.
    n_components : int, default=500
        Images in the basis; all of them where there are fewer, which is the exact kernel.
    class_weight : "balanced" or dict, default=None
    random_state : int, RandomState or None, default=None
        Draws the basis.

    Attributes
    ----------
    basis_ : ndarray of shape (b, d)
        The images drawn.
    whitening_ : ndarray of shape (b, r)
        Makes columns of features from kernel values.
    gamma_ : float
        In use.
    machine_ : LinearSVC
        Fitted on these features.
    classes_ : ndarray of shape (k,)
    n_features_in_ : int

    Notes
    -----
    The Nystroem method: Williams, Seeger: "Using the Nystroem Method to Speed Up Kernel
    Machines", NIPS 2000. scikit-learn's ``Nystroem`` has the map and no rule for fewer images than
    components without a warning, and keeps directions whose eigenvalue is rounding. Training is
    linear in the number of images, and the model keeps ``n_components`` of them.

    Examples
    --------
    >>> X = [[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]
    >>> head = ReducedRBF(C=100.0, gamma=2.0, random_state=0).fit(X, [0, 1, 1, 0])
    >>> head.predict(X).tolist()
    [0, 1, 1, 0]
    """

    def __init__(
        self,
        *,
        C: float = 1.0,
        gamma: str | float = "scale",
        n_components: int = 500,
        class_weight: Any = None,
        random_state: Any = None,
    ) -> None:
        self.C = C
        self.gamma = gamma
        self.n_components = n_components
        self.class_weight = class_weight
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> ReducedRBF:
        """Fit on features (n, d) and labels (n,): draw the basis, then fit the machine.

        Raises
        ------
        HeadError
            The data cannot be learned from, or a parameter is out of range.
        """
        self._validate_params()
        X, y, self.classes_, _ = validated_training(self, X, y, dtype=[np.float64, np.float32])
        random = check_random_state(self.random_state)
        drawn = random.permutation(len(X))[: self.n_components]
        self.basis_ = X[np.sort(drawn)]
        variance = float(X.var(dtype=np.float64))
        scale = 1 / (X.shape[1] * variance) if variance else 1.0
        self.gamma_ = scale if self.gamma == "scale" else float(self.gamma)
        values, vectors = eigh(self._kernel(self.basis_).astype(np.float64))
        kept = values > len(values) * np.finfo(X.dtype).eps * values[-1]
        self.whitening_ = (vectors[:, kept] / np.sqrt(values[kept])).astype(X.dtype)
        self.machine_ = self._machine(random.randint(2**31 - 1)).fit(self._mapped(X), y)
        return self

    def decision_function(self, X: Any) -> NDArray[np.floating[Any]]:
        """Return margins: (n,) of two classes, else (n, k)."""
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=[np.float64, np.float32])
        margins: NDArray[Any] = self.machine_.decision_function(self._mapped(X))
        return margins

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the labels (n,) of the highest margin."""
        return best_labels(self.decision_function(X), self.classes_)

    def _mapped(self, X: NDArray[Any]) -> NDArray[np.floating[Any]]:
        mapped: NDArray[Any] = self._kernel(X) @ self.whitening_
        return mapped

    def _kernel(self, X: NDArray[Any]) -> NDArray[np.floating[Any]]:
        """Give the kernel of rows with the basis."""
        kernel: NDArray[Any] = X @ self.basis_.T
        kernel *= -2
        kernel += np.einsum("ij,ij->i", X, X)[:, None]
        kernel += np.einsum("ij,ij->i", self.basis_, self.basis_)
        np.maximum(kernel, 0, out=kernel)
        kernel *= -self.gamma_
        np.exp(kernel, out=kernel)
        return kernel

    def _machine(self, seed: int) -> Any:
        return LinearSVC(
            C=self.C,
            class_weight=self.class_weight,
            # As fast as the primal at ten classes, and ten times as fast at a thousand.
            dual=True,
            tol=1e-3,
            max_iter=20000,
            random_state=seed,
        )

    def _validate_params(self) -> None:
        self._machine(0)._validate_params()
        count = self.n_components
        if not isinstance(count, Integral) or isinstance(count, bool) or count < 1:
            raise HeadError(
                f"n_components must be an integer of at least 1, received {count!r}: "
                "500 is the default"
            )
        gamma = self.gamma
        if gamma == "scale":
            return
        if not isinstance(gamma, Real) or isinstance(gamma, bool) or not 0 < gamma < np.inf:
            raise HeadError(
                f'gamma must be "scale" or a number greater than 0, received {gamma!r}: '
                'leave it at "scale"'
            )
