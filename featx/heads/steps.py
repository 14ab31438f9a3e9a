"""A fitted head as a short list of arithmetic: what a model file stores and every format can do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from sklearn.neighbors import NearestNeighbors

Floats: TypeAlias = NDArray[np.floating]
Integers: TypeAlias = NDArray[np.integer]
Shape: TypeAlias = tuple[str, ...]

_ROWS_AT_ONCE = 2048
# A logit whose probability is 0 or 1 in double precision.
CERTAIN = 1000.0


@dataclass(frozen=True, eq=False)
class Scale:
    """``(x - center) / scale``, each of shape (d,)."""

    center: Floats
    scale: Floats

    ARRAYS: ClassVar[Mapping[str, Shape]] = {"center": ("in",), "scale": ("in",)}

    def check(self, width: int) -> str:
        """Return what is wrong with the numbers; empty where nothing is."""
        return "" if (self.scale != 0).all() else "a scale of 0"

    def apply(self, X: Floats) -> Floats:
        """Return rows of shape (n, d)."""
        # Rounded as scikit-learn's scaler does: nearest neighbours would show the difference.
        rows = np.array(X)
        rows -= self.center
        rows /= self.scale
        return rows


@dataclass(frozen=True, eq=False)
class Linear:
    """``x @ kernel + bias``, of shapes (d, k) and (k,)."""

    kernel: Floats
    bias: Floats

    ARRAYS: ClassVar[Mapping[str, Shape]] = {"kernel": ("in", "out"), "bias": ("out",)}

    def apply(self, X: Floats) -> Floats:
        """Return rows of shape (n, k)."""
        return X @ self.kernel + self.bias


@dataclass(frozen=True, eq=False)
class UnitLength:
    """Rows divided by their Euclidean length; rows of zeros stay."""

    ARRAYS: ClassVar[Mapping[str, Shape]] = {}

    def apply(self, X: Floats) -> Floats:
        """Return rows of shape (n, d)."""
        unit: Floats = X / row_lengths(X)[:, None]
        return unit


@dataclass(frozen=True, eq=False)
class Rectify:
    """``max(x, 0)``."""

    ARRAYS: ClassVar[Mapping[str, Shape]] = {}

    def apply(self, X: Floats) -> Floats:
        """Return rows of shape (n, d)."""
        return np.maximum(X, 0)


@dataclass(frozen=True, eq=False)
class Gaussian:
    """``exp(-gamma * |x - b|²)`` for each row b of a basis of shape (k, d); gamma has shape ()."""

    basis: Floats
    gamma: Floats

    ARRAYS: ClassVar[Mapping[str, Shape]] = {"basis": ("out", "in"), "gamma": ()}

    def apply(self, X: Floats) -> Floats:
        """Return rows of shape (n, k)."""
        basis = self.basis.astype(X.dtype)
        kernel: Floats = X @ basis.T
        kernel *= -2
        kernel += np.einsum("ij,ij->i", X, X)[:, None]
        kernel += np.einsum("ij,ij->i", basis, basis)
        np.maximum(kernel, 0, out=kernel)
        kernel *= -float(self.gamma)
        return np.exp(kernel, out=kernel)


@dataclass(frozen=True, eq=False)
class DiagonalGaussians:
    """``constant - |(x - mean) / deviation|² / 2`` for each of k means of shape (k, d)."""

    means: Floats
    deviations: Floats
    constants: Floats

    ARRAYS: ClassVar[Mapping[str, Shape]] = {
        "means": ("out", "in"),
        "deviations": ("out", "in"),
        "constants": ("out",),
    }

    def apply(self, X: Floats) -> Floats:
        """Return rows of shape (n, k)."""
        parts = zip(self.means, self.deviations, self.constants, strict=True)
        columns = [
            c - 0.5 * np.square((X - mean) / spread).sum(axis=1) for mean, spread, c in parts
        ]
        return np.column_stack(columns)


@dataclass(frozen=True, eq=False)
class Trees:
    """Mean over trees of the value of the leaf that a row falls into.

    Nodes of all trees stand one after the other. ``left`` and ``right`` are the children of a node,
    both after it; a leaf has ``left == -1`` and in ``right`` its row of ``values``. A row goes left
    where its column ``feature`` is at most ``threshold``.
    """

    roots: Integers
    left: Integers
    right: Integers
    feature: Integers
    threshold: Floats
    values: Floats

    ARRAYS: ClassVar[Mapping[str, Shape]] = {
        "roots": ("trees",),
        "left": ("nodes",),
        "right": ("nodes",),
        "feature": ("nodes",),
        "threshold": ("nodes",),
        "values": ("leaves", "out"),
    }

    def check(self, width: int) -> str:
        """Return what is wrong with the nodes for rows of this width; empty where nothing is."""
        leaf = self.left == -1
        nodes = np.arange(len(self.left))
        if self.roots.size == 0 or self.roots.min() < 0 or self.roots.max() >= len(nodes):
            return "a root is no node"
        for children in (self.left[~leaf], self.right[~leaf]):
            if (children <= nodes[~leaf]).any() or (children >= len(nodes)).any():
                return "a child does not come after its parent"
        if ((self.right[leaf] < 0) | (self.right[leaf] >= len(self.values))).any():
            return "a leaf has no value"
        if ((self.feature[~leaf] < 0) | (self.feature[~leaf] >= width)).any():
            return "a node looks at a feature that is not there"
        return ""

    def apply(self, X: Floats) -> Floats:
        """Return rows of shape (n, k)."""
        # scikit-learn's trees compare single precision with double.
        rows = X.astype(np.float32)
        parts = [
            self._apply(rows[start : start + _ROWS_AT_ONCE])
            for start in range(0, len(rows), _ROWS_AT_ONCE)
        ]
        return np.concatenate(parts) if parts else np.empty((0, self.values.shape[1]))

    def _apply(self, X: NDArray[np.float32]) -> Floats:
        total = np.zeros((len(X), self.values.shape[1]))
        rows = np.arange(len(X))
        for root in self.roots:
            node = np.full(len(X), root)
            moving = rows
            while (moving := moving[self.left[node[moving]] >= 0]).size:
                at = node[moving]
                goes_left = X[moving, self.feature[at]] <= self.threshold[at]
                node[moving] = np.where(goes_left, self.left[at], self.right[at])
            total += self.values[self.right[node]]
        return total / len(self.roots)


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Votes of the ``count`` nearest of some rows (m, d) for ``columns`` classes, labels or values.

    ``targets`` has the class of each row, shape (m,), or what it says of each label, shape (m, k).
    Where ``nearer_count_more``, a vote counts by the inverse of its distance.
    """

    rows: Floats
    targets: NDArray[np.number]
    columns: int
    count: int
    nearer_count_more: bool
    metric: str

    ARRAYS: ClassVar[Mapping[str, Shape]] = {"rows": ("rows", "in"), "targets": ("rows", "*")}

    @cached_property
    def _search(self) -> NearestNeighbors:
        from sklearn.neighbors import NearestNeighbors

        search = NearestNeighbors(n_neighbors=self.count, algorithm="brute", metric=self.metric)
        return search.fit(self.rows)

    def check(self, width: int) -> str:
        """Return what is wrong with the parameters; empty where nothing is."""
        targets = self.targets
        if not 1 <= self.count <= len(self.rows):
            return f"{self.count} neighbours of {len(self.rows)} rows"
        if targets.ndim == 2:
            return "" if targets.shape[1] == self.columns else "targets of another width"
        if targets.dtype.kind not in "iu" or targets.min() < 0 or targets.max() >= self.columns:
            return f"targets that are no classes from 0 to {self.columns - 1}"
        return ""

    def apply(self, X: Floats) -> Floats:
        """Return rows of shape (n, k)."""
        parts = [
            self._apply(X[start : start + _ROWS_AT_ONCE])
            for start in range(0, len(X), _ROWS_AT_ONCE)
        ]
        return np.concatenate(parts) if parts else np.empty((0, self.columns))

    def _apply(self, X: Floats) -> Floats:
        distances, nearest = self._search.kneighbors(X)
        weights = vote_weights(distances) if self.nearer_count_more else np.ones(distances.shape)
        votes = np.zeros((len(X), self.columns))
        if self.targets.ndim == 1:
            np.add.at(votes, (np.arange(len(X))[:, None], self.targets[nearest]), weights)
        else:
            for neighbour in range(self.count):
                votes += weights[:, neighbour, None] * self.targets[nearest[:, neighbour]]
        shares: Floats = votes / weights.sum(axis=1)[:, None]
        return shares


@dataclass(frozen=True, eq=False)
class Softmax:
    """Probabilities of classes that exclude one another."""

    ARRAYS: ClassVar[Mapping[str, Shape]] = {}

    def apply(self, X: Floats) -> Floats:
        """Return rows of shape (n, k) that sum to 1."""
        powers: Floats = np.exp(X - X.max(axis=1, keepdims=True))
        powers /= powers.sum(axis=1, keepdims=True)
        return powers


@dataclass(frozen=True, eq=False)
class Sigmoid:
    """Probabilities of labels that do not exclude one another."""

    ARRAYS: ClassVar[Mapping[str, Shape]] = {}

    def apply(self, X: Floats) -> Floats:
        """Return rows of shape (n, k), each number from 0 to 1."""
        probabilities: Floats = np.exp(-np.logaddexp(0, -X))
        return probabilities


@dataclass(frozen=True, eq=False)
class EachLabel:
    """One list of steps a label, of whose two columns the second is the label's probability."""

    labels: tuple[tuple[Step, ...], ...]

    ARRAYS: ClassVar[Mapping[str, Shape]] = {}

    def apply(self, X: Floats) -> Floats:
        """Return rows of shape (n, labels)."""
        return np.column_stack([apply_steps(X, steps)[:, 1] for steps in self.labels])


Step: TypeAlias = (
    Scale
    | Linear
    | UnitLength
    | Rectify
    | Gaussian
    | DiagonalGaussians
    | Trees
    | Neighbours
    | Softmax
    | Sigmoid
    | EachLabel
)


def row_lengths(X: Floats) -> Floats:
    """Return the Euclidean length of each row, 1 for a row of zeros."""
    lengths: Floats = np.sqrt(np.einsum("ij,ij->i", X, X))
    lengths[lengths == 0] = 1
    return lengths


def vote_weights(distances: Floats) -> Floats:
    """Return inverse distances; in a row with distances of 0 only these count."""
    same = distances == 0
    with np.errstate(divide="ignore"):
        weights: Floats = 1 / distances
    return np.where(same.any(axis=1)[:, None], same, weights)


def apply_steps(X: Floats, steps: Iterable[Step]) -> Floats:
    """Run rows (n, d) through steps."""
    for step in steps:
        X = step.apply(X)
    return X


def dense_steps(layers: Iterable[tuple[Floats, Floats]], last: Step) -> list[Step]:
    """Return layers of (kernel, bias), rectified but for the last, as steps with one behind."""
    steps: list[Step] = []
    for kernel, bias in layers:
        steps += [Linear(kernel, bias), Rectify()]
    return [*steps[:-1], last]


def joined(steps: Sequence[Step]) -> list[Step]:
    """Make one step of neighbours that are affine maps, in double precision."""
    out: list[Step] = []
    for step in steps:
        last = out[-1] if out else None
        if isinstance(step, Scale | Linear) and isinstance(last, Scale | Linear):
            out[-1] = _composed(last, step)
        else:
            out.append(step)
    return out


def _composed(first: Scale | Linear, second: Scale | Linear) -> Scale | Linear:
    if isinstance(first, Scale) and isinstance(second, Scale):
        center = _double(first.center) + _double(second.center) * _double(first.scale)
        return Scale(center, _double(first.scale) * _double(second.scale))
    a, b = _as_linear(first), _as_linear(second)
    if isinstance(first, Scale):
        kernel = b[0] / _double(first.scale)[:, None]
        return Linear(kernel, b[1] - _double(first.center) @ kernel)
    if isinstance(second, Scale):
        scale = _double(second.scale)
        return Linear(a[0] / scale, (a[1] - _double(second.center)) / scale)
    return Linear(a[0] @ b[0], a[1] @ b[0] + b[1])


def _as_linear(step: Scale | Linear) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if isinstance(step, Linear):
        return _double(step.kernel), _double(step.bias)
    empty = np.empty(0)
    return empty, empty


def _double(values: Floats) -> NDArray[np.float64]:
    return values.astype(np.float64)
