"""The pipeline that named heads are, which says in one way what cannot be learned from."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.pipeline import Pipeline

from featx.heads.estimators import few_images_allowed, refuse_unlearnable
from featx.heads.table import learns_label_sets
from featx.heads.targets import best_labels
from featx.threads import worthwhile_threads


class HeadPipeline(Pipeline):  # type: ignore[misc]
    """scikit-learn's ``Pipeline``; `fit` looks at the data before the first step does.

    So that NaN, one class or labels of another length have one message, whichever estimator would
    meet them first. A last step that is scikit-learn's ``LogisticRegression`` is fitted by the path
    solver. Parameters and attributes are those of ``Pipeline``.

    Examples
    --------
    >>> from sklearn.naive_bayes import GaussianNB
    >>> HeadPipeline([("head", GaussianNB())]).fit([[0.0], [1.0]], ["ants", "ants"])
    Traceback (most recent call last):
        ...
    featx.exceptions.HeadError: one class only: 'ants'; a classifier needs at least two: add images of another class
    """  # noqa: E501

    def fit(self, X: ArrayLike, y: ArrayLike | None = None, **params: object) -> HeadPipeline:
        """Fit the steps on features (n, d) and labels (n,), or 0 and 1 a label (n, k).

        Raises
        ------
        HeadError
            The data cannot be learned from.
        """
        refuse_unlearnable(X, y)
        last = self.steps[-1][1]
        with few_images_allowed(), worthwhile_threads(np.asarray(X).size):
            if params or self.memory is not None or type(last).__name__ != "LogisticRegression":
                super().fit(X, y, **params)
            else:
                from featx.heads.logistic_path import fit_logistic

                before = self[:-1] if len(self.steps) > 1 else None
                fit_logistic(last, X if before is None else before.fit_transform(X, y), y)
        return self

    def predict(self, X: ArrayLike, **params: object) -> NDArray[np.generic]:
        """Return labels (n,) of the highest probability, or 0 and 1 a label (n, k)."""
        if params or learns_label_sets(self) or not hasattr(self, "predict_proba"):
            return np.asarray(super().predict(X, **params))
        return best_labels(self.predict_proba(X), self.classes_)
