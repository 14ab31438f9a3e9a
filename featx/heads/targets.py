"""What is learnt of rows: one class each, any number of labels each, or numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import HeadError, reason

Kind: TypeAlias = Literal["classes", "labels", "values"]
ClassWeight: TypeAlias = Mapping[object, float] | str | None


@dataclass(frozen=True, eq=False)
class Targets:
    """What is learnt of n rows, and what each row counts.

    Parameters
    ----------
    kind : {"classes", "labels", "values"}
    names : ndarray of shape (k,)
        The classes, sorted; or numbers of the columns.
    values : ndarray
        Codes of classes (n,), intp; 0 and 1 of labels (n, k), uint8; numbers (n, k), float64.
    weights : ndarray of shape (n,), float64, or None
        What each row counts; None where all count the same.
    factors : ndarray of shape (k,) or (2, k), float64, or None
        What a row of each class counts beside its weight; of labels, a row without and with each.
    """

    kind: Kind
    names: NDArray[np.generic]
    values: NDArray[np.number]
    weights: NDArray[np.float64] | None = None
    factors: NDArray[np.float64] | None = None

    @classmethod
    def of_classes(
        cls, y: NDArray[np.generic], weights: NDArray[np.float64] | None = None
    ) -> Targets:
        """Return the targets of one label a row."""
        names, codes = np.unique(y, return_inverse=True)
        return cls("classes", names, codes.astype(np.intp), weights)

    @classmethod
    def of_labels(
        cls, matrix: NDArray[np.number], weights: NDArray[np.float64] | None = None
    ) -> Targets:
        """Return the targets of a matrix of 0 and 1, a column a label."""
        values = np.ascontiguousarray(matrix, dtype=np.uint8)
        return cls("labels", np.arange(values.shape[1]), values, weights)

    @classmethod
    def of_values(
        cls, values: NDArray[np.number], weights: NDArray[np.float64] | None = None
    ) -> Targets:
        """Return the targets of numbers, one column or several."""
        columns = np.asarray(values, np.float64).reshape(len(values), -1)
        return cls("values", np.arange(columns.shape[1]), columns, weights)

    def __len__(self) -> int:
        return len(self.values)

    @property
    def columns(self) -> int:
        """The number k of classes, labels or columns."""
        return len(self.names)

    def take(self, rows: NDArray[np.intp]) -> Targets:
        """Return the targets of some rows, with the same names."""
        weights = None if self.weights is None else self.weights[rows]
        return replace(self, values=self.values[rows], weights=weights)

    def label(self, column: int) -> Targets:
        """Return two classes: rows without a label, and rows with it."""
        factors = None if self.factors is None else self.factors[:, column]
        codes = self.values[:, column].astype(np.intp)
        return Targets("classes", np.arange(2), codes, self.weights, factors)

    def counted(self, rows: NDArray[np.intp]) -> NDArray[np.float64] | None:
        """Return what some rows count, (b,), or (b, k) of labels that count differently."""
        weights = None if self.weights is None else self.weights[rows]
        if self.factors is None:
            return weights
        values = self.values[rows]
        if self.kind == "classes":
            by_class: NDArray[np.float64] = self.factors[values.astype(np.intp)]
            return by_class if weights is None else weights * by_class
        by_label: NDArray[np.float64] = np.where(values > 0, self.factors[1], self.factors[0])
        return by_label if weights is None else weights[:, None] * by_label

    def totals(self) -> NDArray[np.float64]:
        """Return how much counts for each class, or has each label, shape (k,)."""
        if self.kind == "classes":
            codes = self.values.astype(np.intp)
            counts = np.bincount(codes, self.weights, minlength=self.columns).astype(np.float64)
            return counts if self.factors is None else counts * self.factors
        rows = np.ones(len(self)) if self.weights is None else self.weights
        counts = rows @ self.values.astype(np.float64)
        return counts if self.factors is None else counts * self.factors[1]

    def with_class_weight(self, class_weight: ClassWeight) -> Targets:
        """Return the targets whose rows count, too, by their class or labels.

        Raises
        ------
        HeadError
            The class weights do not fit the classes.
        """
        if class_weight is None:
            return self
        if self.kind == "labels":
            return replace(self, factors=self._label_factors(class_weight))
        from sklearn.utils.class_weight import compute_class_weight

        try:
            factors = compute_class_weight(
                class_weight,
                classes=self.names,
                y=self.names[self.values.astype(np.intp)],
                sample_weight=self.weights,
            )
        except ValueError as error:
            raise HeadError(
                f"class_weight={class_weight!r} does not fit the labels: {reason(error)}"
            ) from error
        return replace(self, factors=np.asarray(factors, np.float64))

    def _label_factors(self, class_weight: ClassWeight) -> NDArray[np.float64]:
        """Return what a row without and with each label counts, (2, k)."""
        count, labels = self.values.shape
        factors = np.ones((2, labels))
        if class_weight == "balanced":
            positives = self.values.sum(axis=0, dtype=np.float64)
            factors[0] = count / (2 * np.maximum(count - positives, 1))
            factors[1] = count / (2 * np.maximum(positives, 1))
        elif isinstance(class_weight, Mapping):
            unknown = [key for key in class_weight if key not in range(labels)]
            if unknown:
                raise HeadError(
                    f"class_weight={class_weight!r} does not fit the labels: expected columns from "
                    f"0 to {labels - 1}, received {unknown[0]!r}: number the labels as y does"
                )
            factors[1] = [class_weight.get(label, 1.0) for label in range(labels)]
        return factors
