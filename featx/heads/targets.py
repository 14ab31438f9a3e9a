"""What is learnt of rows: one class each, any number of labels each, or numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import HeadError, reason
from featx.heads.rows import Doubles, Floats

Kind: TypeAlias = Literal["classes", "labels", "values"]
ClassWeight: TypeAlias = Mapping[object, float] | str | None


LABEL_THRESHOLD = 0.5
"""Probability above which an image is said to have a label, where it may have several."""


@dataclass(frozen=True, eq=False)
class Targets:
    """What is learnt of n rows, and what each row counts."""

    kind: Kind
    names: NDArray[np.generic]  # (k,), the classes, sorted; or numbers of the columns
    # Codes of classes (n,), intp; 0 and 1 of labels (n, k), uint8; numbers (n, k), float64.
    values: NDArray[np.number]
    # What each row counts, (n,); None where all count the same.
    weights: Doubles | None = None
    # What a row of each class counts beside its weight, (k,); of labels, without and with, (2, k).
    factors: Doubles | None = None

    @classmethod
    def of_classes(cls, y: NDArray[np.generic], weights: Doubles | None = None) -> Targets:
        """Return the targets of one label a row."""
        names, codes = np.unique(y, return_inverse=True)
        return cls("classes", names, codes.astype(np.intp), weights)

    @classmethod
    def of_labels(cls, matrix: NDArray[np.number], weights: Doubles | None = None) -> Targets:
        """Return the targets of a matrix of 0 and 1, a column a label."""
        values = np.ascontiguousarray(matrix, dtype=np.uint8)
        return cls("labels", np.arange(values.shape[1]), values, weights)

    @classmethod
    def of_values(cls, values: NDArray[np.number], weights: Doubles | None = None) -> Targets:
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

    def shown(self) -> NDArray[np.generic]:
        """Return what is learnt as scikit-learn takes it: labels or numbers (n,), else (n, k)."""
        if self.kind == "classes":
            return self.names[self.values.astype(np.intp)]
        return self.values[:, 0] if self.kind == "values" and self.columns == 1 else self.values

    def labels(self, columns: NDArray[np.intp]) -> Targets:
        """Return the targets of some labels, numbered anew from 0."""
        factors = None if self.factors is None else self.factors[:, columns]
        return replace(Targets.of_labels(self.values[:, columns], self.weights), factors=factors)

    def label(self, column: int) -> Targets:
        """Return two classes: rows without a label, and rows with it."""
        factors = None if self.factors is None else self.factors[:, column]
        codes = self.values[:, column].astype(np.intp)
        return Targets("classes", np.arange(2), codes, self.weights, factors)

    def counted(self, rows: NDArray[np.intp]) -> Doubles | None:
        """Return what some rows count, (b,), or (b, k) of labels that count differently."""
        weights = None if self.weights is None else self.weights[rows]
        if self.factors is None:
            return weights
        values = self.values[rows]
        if self.kind == "classes":
            by_class: Doubles = self.factors[values.astype(np.intp)]
            return by_class if weights is None else weights * by_class
        by_label: Doubles = np.where(values > 0, self.factors[1], self.factors[0])
        return by_label if weights is None else weights[:, None] * by_label

    def totals(self) -> Doubles:
        """Return how much counts of each class, (1, k), or without and with each label, (k, 2)."""
        if self.kind == "classes":
            codes = self.values.astype(np.intp)
            counts = np.bincount(codes, self.weights, minlength=self.columns).astype(np.float64)
            return (counts if self.factors is None else counts * self.factors)[None]
        rows = np.ones(len(self)) if self.weights is None else self.weights
        present = rows @ self.values
        both = np.stack([rows.sum() - present, present])
        return (both if self.factors is None else both * self.factors).T

    def with_class_weight(self, class_weight: ClassWeight) -> Targets:
        """Return the targets whose rows count, too, by their class or labels."""
        if class_weight is None:
            return self
        if self.kind == "labels":
            return replace(self, factors=self._label_factors(class_weight))
        from sklearn.utils.class_weight import compute_class_weight

        try:
            factors = compute_class_weight(
                class_weight, classes=self.names, y=self.shown(), sample_weight=self.weights
            )
        except ValueError as error:
            raise HeadError(
                f"class_weight={class_weight!r} does not fit the labels: {reason(error)}"
            ) from error
        return replace(self, factors=np.asarray(factors, np.float64))

    def _label_factors(self, class_weight: ClassWeight) -> Doubles:
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


def value_scale(targets: Targets) -> tuple[Doubles, Doubles]:
    """Return mean and deviation of each column of values, 1 of one that does not vary."""
    mean: Doubles = np.average(targets.values, axis=0, weights=targets.weights)
    variance = np.average((targets.values - mean) ** 2, axis=0, weights=targets.weights)
    return mean, np.sqrt(np.where(variance > 0, variance, 1.0))


def label_strata(
    labels: NDArray[np.number],
    shares: Sequence[float],
    *,
    groups: NDArray[np.int64] | None = None,
    seed: int | np.random.Generator | None = 0,
) -> NDArray[np.intp]:
    """Return a part for every row, so that each part has its share of the rows and of every label.

    Notes
    -----
    Iterative stratification: the label with the fewest rows left goes first, each of its rows to
    the part that lacks it most, among equals to the part that lacks rows most. Sechidis,
    Tsoumakas, Vlahavas: "On the Stratification of Multi-Label Data", ECML PKDD 2011. A group is
    taken as a row with counts of labels, those with most of the label first.
    """
    from scipy.sparse import coo_array, csr_array

    generator = np.random.default_rng(seed)
    rows = len(labels)
    unit_of = np.arange(rows) if groups is None else np.unique(groups, return_inverse=True)[1]
    units = int(unit_of.max()) + 1 if rows else 0
    unit_of = generator.permutation(units)[unit_of]
    sizes = np.bincount(unit_of, minlength=units)
    where = (unit_of, np.arange(rows))
    joined = coo_array((np.ones(rows, np.int64), where), shape=(units, rows)).tocsr()
    counts = (joined @ csr_array(labels.astype(np.int64))).tocsr()
    columns = counts.tocsc()
    total = np.asarray(counts.sum(axis=0)).ravel()
    left, shared = total.copy(), np.zeros((len(shares), len(total)))
    room = [share * rows for share in shares]
    parts = np.full(units, -1)

    def share_out(
        some: NDArray[np.intp], lacking: list[float], weights: NDArray[np.number]
    ) -> None:
        chance = generator.random(len(shares)).tolist()
        chosen = []
        for weight, size in zip(weights.tolist(), sizes[some].tolist(), strict=True):
            part = max(range(len(room)), key=lambda p: (lacking[p], room[p], chance[p]))
            lacking[part] -= weight
            room[part] -= size
            chosen.append(part)
        parts[some] = chosen

    while (rest := np.flatnonzero(left)).size:
        label = rest[left[rest].argmin()]
        column = slice(columns.indptr[label], columns.indptr[label + 1])
        some, weights = columns.indices[column], columns.data[column]
        free = np.flatnonzero(parts[some] < 0)
        free = free[np.argsort(-weights[free], kind="stable")]
        some, weights = some[free].astype(np.intp), weights[free]
        share_out(some, (np.asarray(shares) * total[label] - shared[:, label]).tolist(), weights)
        for part in range(len(shares)):
            gained = np.asarray(counts[some[parts[some] == part]].sum(axis=0)).ravel()
            shared[part] += gained
            left -= gained
    some = np.flatnonzero(parts < 0)
    some = some[np.argsort(-sizes[some], kind="stable")]
    share_out(some, [0.0] * len(shares), np.zeros(len(some)))
    return np.asarray(parts[unit_of])


def best_labels(scores: Floats, classes: NDArray[np.generic]) -> NDArray[np.generic]:
    """Return the labels (n,) of the highest scores (n, k), or of positive ones (n,)."""
    best = (scores > 0).astype(np.intp) if scores.ndim == 1 else scores.argmax(axis=1)
    labels: NDArray[np.generic] = classes[best]
    return labels


def both_columns(scores: Floats, *, mirrored: bool = False) -> Floats:
    """Return scores (n, k) as they are, and those of two classes (n,) beside zeros or negatives."""
    if scores.ndim == 1:
        return np.column_stack([-scores if mirrored else np.zeros_like(scores), scores])
    return scores
