"""A support vector machine with a Gaussian kernel, on a basis of some of the images."""

from __future__ import annotations

from numbers import Real

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import eigh
from sklearn.svm import LinearSVC
from sklearn.utils.validation import check_random_state

from featx.heads.estimators import ABOVE_0, Allowed, OwnClassifier, from_1
from featx.heads.rows import Floats, Rows
from featx.heads.steps import gaussian_kernel
from featx.heads.targets import ClassWeight, Targets


class ReducedRBF(OwnClassifier):
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

    _allowed = (
        from_1("n_components", "500 is the default"),
        Allowed(
            "gamma",
            '"scale" or a number greater than 0',
            'leave it at "scale"',
            ("scale",),
            Real,
            ABOVE_0,
        ),
    )

    def __init__(
        self,
        *,
        C: float = 1.0,
        gamma: str | float = "scale",
        n_components: int = 500,
        class_weight: ClassWeight = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.C = C
        self.gamma = gamma
        self.n_components = n_components
        self.class_weight = class_weight
        self.random_state = random_state

    def fit_rows(self, rows: Rows, targets: Targets) -> ReducedRBF:
        """Draw the basis of rows in memory, then fit the machine."""
        X = rows.gather()
        self.classes_, self.n_features_in_ = targets.names, rows.width
        random = check_random_state(self.random_state)
        drawn = random.permutation(len(X))[: self.n_components]
        self.basis_ = X[np.sort(drawn)]
        variance = float(X.var(dtype=np.float64))
        scale = 1 / (X.shape[1] * variance) if variance else 1.0
        self.gamma_ = scale if self.gamma == "scale" else float(self.gamma)
        values, vectors = eigh(self._kernel(self.basis_).astype(np.float64))
        real = values > len(values) * np.finfo(X.dtype).eps * values[-1]
        self.whitening_ = (vectors[:, real] / np.sqrt(values[real])).astype(X.dtype)
        machine = self._machine(random.randint(2**31 - 1))
        self.machine_ = machine.fit(self._mapped(X), targets.shown())
        return self

    def decision_function(self, X: ArrayLike) -> Floats:
        """Return margins: (n,) of two classes, else (n, k)."""
        rows = self._matrix(X)
        return np.asarray(self.machine_.decision_function(self._mapped(rows)))

    def _mapped(self, X: Floats) -> Floats:
        return np.asarray(self._kernel(X) @ self.whitening_)

    def _kernel(self, X: Floats) -> Floats:
        return gaussian_kernel(X, self.basis_, self.gamma_)

    def _machine(self, seed: int) -> LinearSVC:
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
        super()._validate_params()
