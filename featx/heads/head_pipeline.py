"""The pipeline that named heads are, which says in one way what cannot be learned from."""

from __future__ import annotations

from typing import Any

from sklearn.pipeline import Pipeline

from featx.heads.validation import few_images_allowed, refuse_unlearnable

__all__ = ["HeadPipeline"]


class HeadPipeline(Pipeline):  # type: ignore[misc]
    """scikit-learn's ``Pipeline``; `fit` looks at the data before the first step does.

    So that NaN, one class or labels of another length have one message, whichever estimator would
    meet them first. Parameters and attributes are those of ``Pipeline``.

    Examples
    --------
    >>> from sklearn.naive_bayes import GaussianNB
    >>> HeadPipeline([("head", GaussianNB())]).fit([[0.0], [1.0]], ["ants", "ants"])
    Traceback (most recent call last):
        ...
    featx.exceptions.HeadError: one class only: 'ants'; a classifier needs at least two: add images of another class
    """  # noqa: E501

    def fit(self, X: Any, y: Any = None, **params: Any) -> HeadPipeline:
        """Fit the steps.

        Parameters
        ----------
        X : array-like of shape (n, d)
            Features.
        y : array-like of shape (n,)
            Labels.
        **params
            As in ``Pipeline.fit``.

        Returns
        -------
        self : HeadPipeline

        Raises
        ------
        HeadError
            The data cannot be learned from (see `check_training`).
        """
        refuse_unlearnable(X, y)
        with few_images_allowed():
            super().fit(X, y, **params)
        return self
