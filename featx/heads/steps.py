"""A fitted head as a short list of arithmetic, and as the files that keep it.

These steps are what a model file stores, what predicts, and what every export can do.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from featx.exceptions import HeadError
from featx.files.safe_hdf5 import read_hdf5_array
from featx.files.safe_json import read_plain_json
from featx.heads.rows import Doubles, Floats
from featx.heads.targets import LABEL_THRESHOLD, best_labels

if TYPE_CHECKING:
    import h5py
    from sklearn.neighbors import NearestNeighbors

Integers: TypeAlias = NDArray[np.integer]
Shape: TypeAlias = tuple[str, ...]

_ROWS_AT_ONCE = 2048
# A logit whose probability is 0 or 1 in double precision.
CERTAIN = 1000.0

TYPE, VERSIONS, VALUES_VERSION = "featx.head", (1, 2, 3), 3
"""What a head is called in a file, and its versions: 2 has `Mean` and `Columns`, 3 has numbers."""
_MOST_JSON_BYTES = 64 << 20
_DTYPES: Mapping[str, type[np.generic]] = {"<f4": np.float32, "<f8": np.float64, "<i4": np.int32}


class Step:
    """A map of rows (n, d), with the shapes of its arrays and the types of its parameters."""

    ARRAYS: ClassVar[Mapping[str, Shape]] = {}
    PARAMETERS: ClassVar[Mapping[str, type]] = {}
    IN_PARTS: ClassVar[bool] = False

    def check(self, width: int) -> str:
        """Return what is wrong with the values for rows of this width; empty where nothing is."""
        return self._fault(width)

    def apply(self, X: Floats) -> Floats:
        """Return rows of shape (n, k)."""
        return in_parts(self._apply, X) if self.IN_PARTS else self._apply(X)

    def _fault(self, width: int) -> str:
        return ""

    def _apply(self, X: Floats) -> Floats:
        raise NotImplementedError


def in_parts(function: Callable[[Floats], Floats], X: Floats) -> Floats:
    """Return what a function says of rows, from some at a time."""
    starts = range(0, max(1, len(X)), _ROWS_AT_ONCE)
    return np.concatenate([function(X[start : start + _ROWS_AT_ONCE]) for start in starts])


@dataclass(frozen=True, eq=False)
class Scale(Step):
    """``(x - center) / scale``, each of shape (d,)."""

    center: Floats
    scale: Floats

    ARRAYS: ClassVar = {"center": ("in",), "scale": ("in",)}

    def _fault(self, width: int) -> str:
        return "" if (self.scale != 0).all() else "a scale of 0"

    def _apply(self, X: Floats) -> Floats:
        # Rounded as scikit-learn's scaler does: nearest neighbours would show the difference.
        rows = np.array(X)
        rows -= self.center
        rows /= self.scale
        return rows


@dataclass(frozen=True, eq=False)
class Linear(Step):
    """``x @ kernel + bias``, of shapes (d, k) and (k,)."""

    kernel: Floats
    bias: Floats

    ARRAYS: ClassVar = {"kernel": ("in", "out"), "bias": ("out",)}

    def _apply(self, X: Floats) -> Floats:
        return X @ self.kernel + self.bias


@dataclass(frozen=True, eq=False)
class UnitLength(Step):
    """Rows divided by their Euclidean length; rows of zeros stay."""

    def _apply(self, X: Floats) -> Floats:
        return unit_rows(X)


@dataclass(frozen=True, eq=False)
class Rectify(Step):
    """``max(x, 0)``."""

    def _apply(self, X: Floats) -> Floats:
        return np.maximum(X, 0)


@dataclass(frozen=True, eq=False)
class Gaussian(Step):
    """``exp(-gamma * |x - b|²)`` for each row b of a basis of shape (k, d); gamma has shape ()."""

    basis: Floats
    gamma: Floats

    ARRAYS: ClassVar = {"basis": ("out", "in"), "gamma": ()}

    def _apply(self, X: Floats) -> Floats:
        return gaussian_kernel(X, self.basis.astype(X.dtype), float(self.gamma))


@dataclass(frozen=True, eq=False)
class DiagonalGaussians(Step):
    """``constant - |(x - mean) / deviation|² / 2`` for each of k means of shape (k, d)."""

    means: Floats
    deviations: Floats
    constants: Floats

    ARRAYS: ClassVar = {"means": ("out", "in"), "deviations": ("out", "in"), "constants": ("out",)}

    def _apply(self, X: Floats) -> Floats:
        parts = zip(self.means, self.deviations, self.constants, strict=True)
        columns = [
            c - 0.5 * np.square((X - mean) / spread).sum(axis=1) for mean, spread, c in parts
        ]
        return np.column_stack(columns)


@dataclass(frozen=True, eq=False)
class Trees(Step):
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

    IN_PARTS: ClassVar = True
    ARRAYS: ClassVar = {
        "roots": ("trees",),
        "left": ("nodes",),
        "right": ("nodes",),
        "feature": ("nodes",),
        "threshold": ("nodes",),
        "values": ("leaves", "out"),
    }

    def _fault(self, width: int) -> str:
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

    def _apply(self, X: Floats) -> Floats:
        # scikit-learn's trees compare single precision with double.
        X = X.astype(np.float32)
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
class Neighbours(Step):
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

    IN_PARTS: ClassVar = True
    ARRAYS: ClassVar = {"rows": ("rows", "in"), "targets": ("rows", "*")}
    PARAMETERS: ClassVar = {"columns": int, "count": int, "nearer_count_more": bool, "metric": str}

    @cached_property
    def _search(self) -> NearestNeighbors:
        from sklearn.neighbors import NearestNeighbors

        search = NearestNeighbors(n_neighbors=self.count, algorithm="brute", metric=self.metric)
        return search.fit(self.rows)

    def _fault(self, width: int) -> str:
        targets = self.targets
        if not 1 <= self.count <= len(self.rows):
            return f"{self.count} neighbours of {len(self.rows)} rows"
        if targets.ndim == 2:
            return "" if targets.shape[1] == self.columns else "targets of another width"
        if targets.dtype.kind not in "iu" or targets.min() < 0 or targets.max() >= self.columns:
            return f"targets that are no classes from 0 to {self.columns - 1}"
        return ""

    def _apply(self, X: Floats) -> Floats:
        if not len(X):
            return np.empty((0, self.columns))
        distances, nearest = self._search.kneighbors(X)
        weights = vote_weights(distances) if self.nearer_count_more else np.ones(distances.shape)
        votes = np.zeros((len(X), self.columns))
        if self.targets.ndim == 1:
            np.add.at(votes, (np.arange(len(X))[:, None], self.targets[nearest]), weights)
        else:
            for neighbour in range(self.count):
                votes += weights[:, neighbour, None] * self.targets[nearest[:, neighbour]]
        return np.asarray(votes / weights.sum(axis=1)[:, None])


@dataclass(frozen=True, eq=False)
class Softmax(Step):
    """Probabilities of classes that exclude one another."""

    def _apply(self, X: Floats) -> Floats:
        powers: Floats = np.exp(X - X.max(axis=1, keepdims=True))
        powers /= powers.sum(axis=1, keepdims=True)
        return powers


@dataclass(frozen=True, eq=False)
class Sigmoid(Step):
    """Probabilities of labels that do not exclude one another."""

    def _apply(self, X: Floats) -> Floats:
        return np.asarray(np.exp(-np.logaddexp(0, -X)))


@dataclass(frozen=True, eq=False)
class EachLabel(Step):
    """One list of steps a label, of whose two columns the second is the label's probability."""

    labels: tuple[tuple[Step, ...], ...]

    def _apply(self, X: Floats) -> Floats:
        return np.column_stack([apply_steps(X, steps)[:, 1] for steps in self.labels])


@dataclass(frozen=True, eq=False)
class Columns(Step):
    """Some columns of rows that are ``width`` wide, by their numbers (k,)."""

    columns: Integers
    width: int

    ARRAYS: ClassVar = {"columns": ("out",)}
    PARAMETERS: ClassVar = {"width": int}

    def _fault(self, width: int) -> str:
        inside = self.columns.size and self.columns.min() >= 0 and self.columns.max() < width
        return "" if inside and self.width == width else "columns that are not there"

    def _apply(self, X: Floats) -> Floats:
        return X[:, self.columns]

    def one_hot(self) -> Linear:
        """Return the same as a product."""
        kernel = np.zeros((self.width, len(self.columns)), np.float32)
        kernel[self.columns, np.arange(len(self.columns))] = 1
        return Linear(kernel, np.zeros(len(self.columns), np.float32))


@dataclass(frozen=True, eq=False)
class Mean(Step):
    """The mean of what several lists of steps give, by weights (m,) that add up to 1."""

    members: tuple[tuple[Step, ...], ...]
    weights: Floats

    ARRAYS: ClassVar = {"weights": ("members",)}

    def _apply(self, X: Floats) -> Floats:
        parts = zip(self.members, self.weights, strict=True)
        return np.asarray(sum(weight * apply_steps(X, steps) for steps, weight in parts))


_KINDS = {
    cls.__name__: cls
    for cls in (
        *(Scale, Linear, UnitLength, Rectify, Gaussian, DiagonalGaussians, Trees, Neighbours),
        *(Softmax, Sigmoid, Columns),
    )
}
_NESTED: Mapping[str, tuple[type[EachLabel] | type[Mean], str]] = {
    "EachLabel": (EachLabel, "labels"),
    "Mean": (Mean, "members"),
}
"""Steps that have lists of steps in them, with the field that has these."""
_DEEPEST = 2


def row_lengths(X: Floats) -> Floats:
    """Return the Euclidean length of each row, 1 for a row of zeros."""
    lengths: Floats = np.sqrt(np.einsum("ij,ij->i", X, X))
    lengths[lengths == 0] = 1
    return lengths


def unit_rows(X: Floats) -> Floats:
    """Return rows divided by their Euclidean length; rows of zeros stay."""
    return np.asarray(X / row_lengths(X)[:, None])


def gaussian_kernel(X: Floats, basis: Floats, gamma: float) -> Floats:
    """Return ``exp(-gamma * |x - b|²)`` of each row with each row of a basis."""
    kernel: Floats = X @ basis.T
    kernel *= -2
    kernel += np.einsum("ij,ij->i", X, X)[:, None]
    kernel += np.einsum("ij,ij->i", basis, basis)
    np.maximum(kernel, 0, out=kernel)
    kernel *= -gamma
    return np.exp(kernel, out=kernel)


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


def dense_steps(layers: Iterable[tuple[Floats, Floats]], *behind: Step) -> list[Step]:
    """Return layers of (kernel, bias), rectified but for the last, as steps with others behind."""
    steps: list[Step] = []
    for kernel, bias in layers:
        steps += [Linear(kernel, bias), Rectify()]
    return [*steps[:-1], *behind]


def joined(steps: Sequence[Step]) -> list[Step]:
    """Make one step of neighbours that are affine maps, in double precision."""
    out: list[Step] = []
    for step in steps:
        if isinstance(step, Mean):
            step = replace(step, members=tuple(tuple(joined(member)) for member in step.members))
        last = out[-1] if out else None
        if isinstance(step, Scale | Linear) and isinstance(last, Scale | Linear):
            out[-1] = _composed(last, step)
        else:
            out.append(step)
    return _full_width(out)


def _full_width(steps: list[Step]) -> list[Step]:
    """Return steps whose first one, where it is a product of some columns, takes all of them."""
    if len(steps) < 2 or not (isinstance(steps[0], Columns) and isinstance(steps[1], Linear)):
        return steps
    columns, linear = steps[0], steps[1]
    kernel = np.zeros((columns.width, linear.kernel.shape[1]), linear.kernel.dtype)
    kernel[columns.columns] = linear.kernel
    return [Linear(kernel, linear.bias), *steps[2:]]


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


def _as_linear(step: Scale | Linear) -> tuple[Doubles, Doubles]:
    if isinstance(step, Linear):
        return _double(step.kernel), _double(step.bias)
    empty = np.empty(0)
    return empty, empty


def _double(values: Floats) -> Doubles:
    return values.astype(np.float64)


class _Fitted:
    """Labels, a number of features, and steps that lead from the one to the other."""

    def __init__(self, classes: NDArray[np.generic], width: int, steps: Sequence[Step]) -> None:
        self.classes_ = classes
        self.n_features_in_ = width
        self.steps_ = tuple(steps)

    def _scores(self, X: ArrayLike) -> Floats:
        return apply_steps(_rows(X, self.n_features_in_), self.steps_)


def _rows(X: ArrayLike, width: int) -> Floats:
    """Return features of a width as a matrix."""
    rows = np.asarray(X)
    if rows.dtype not in (np.float32, np.float64):
        rows = rows.astype(np.float64)
    if rows.ndim != 2 or rows.shape[1] != width:
        raise HeadError(f"expected features of shape (n, {width}), received {rows.shape}")
    return rows


class FittedHead(_Fitted):
    """A head that gives probabilities, and cannot be trained."""

    @property
    def several_labels(self) -> bool:
        """Whether an image may have any number of labels."""
        return _several_labels(self.steps_)

    def predict_proba(self, X: ArrayLike) -> Floats:
        """Return the probability of each class or label, shape (n, k)."""
        return self._scores(X)

    def predict(self, X: ArrayLike) -> NDArray[np.generic]:
        """Return the likeliest label of each row, (n,), or 0 and 1 a label, (n, k)."""
        scores = self._scores(X)
        if self.several_labels:
            return (scores > LABEL_THRESHOLD).astype(np.intp)
        return best_labels(scores, self.classes_)


class FittedValues:
    """A regressor that cannot be trained: steps from features to numbers."""

    _estimator_type = "regressor"

    def __init__(self, columns: int, width: int, steps: Sequence[Step]) -> None:
        self.columns_ = columns
        self.n_features_in_ = width
        self.steps_ = tuple(steps)

    def predict(self, X: ArrayLike) -> Floats:
        """Return the numbers of each row: (n,) where there is one, else (n, k)."""
        values = apply_steps(_rows(X, self.n_features_in_), self.steps_)
        return values[:, 0] if self.columns_ == 1 else values


def _several_labels(steps: Sequence[Step]) -> bool:
    """Return whether steps give probabilities of labels that do not exclude one another."""
    if isinstance(steps[-1], Mean):
        return any(map(_several_labels, steps[-1].members))
    votes = [step.targets.ndim == 2 for step in steps if isinstance(step, Neighbours)]
    return any(votes) or isinstance(steps[-1], Sigmoid | EachLabel)


class FittedMargins(_Fitted):
    """A linear classifier without probabilities; parameters are those of `FittedHead`."""

    def decision_function(self, X: ArrayLike) -> Floats:
        """Return margins, (n,) of two classes, else (n, k)."""
        scores = self._scores(X)
        return scores[:, 0] if scores.shape[1] == 1 else scores

    def predict(self, X: ArrayLike) -> NDArray[np.generic]:
        """Return the label of the highest margin of each row, (n,)."""
        return best_labels(self.decision_function(X), self.classes_)


Fitted: TypeAlias = FittedHead | FittedMargins | FittedValues


def fitted_head(
    classes: NDArray[np.generic], width: int, steps: Sequence[Step]
) -> FittedHead | FittedMargins:
    """Return the head of steps, after looking at every array and at how they fit together."""
    if classes.ndim != 1 or classes.dtype.kind not in "UObiuf":
        raise ValueError(f"labels of type {classes.dtype} and shape {classes.shape}")
    try:
        sorted_once = all(a < b for a, b in pairwise(classes.tolist()))
    except TypeError:
        sorted_once = False
    if not sorted_once:
        raise ValueError("its labels are not sorted")
    columns = _checked_width(steps, width)
    votes = any(isinstance(step, Neighbours) for step in steps)
    margins = isinstance(steps[-1], Linear) and not votes
    if columns != (1 if margins and len(classes) == 2 else len(classes)):
        raise ValueError(f"its steps give {columns} columns for {len(classes)} labels")
    return (FittedMargins if margins else FittedHead)(classes, width, steps)


def fitted_values(columns: int, width: int, steps: Sequence[Step]) -> FittedValues:
    """Return the regressor of steps, after looking at every array and at how they fit together."""
    given = _checked_width(steps, width)
    if given != columns:
        raise ValueError(f"its steps give {given} columns for {columns} numbers")
    return FittedValues(columns, width, steps)


def _checked_width(steps: Iterable[Step], width: int) -> int:
    """Return how many columns steps give from features of a width."""
    for step in steps:
        name = type(step).__name__
        sizes: dict[str, int] = {"in": width}
        for field, shape in step.ARRAYS.items():
            array = getattr(step, field)
            if not isinstance(array, np.ndarray) or array.dtype.kind not in "fi":
                raise ValueError(f"{name} has a {field} that is no array of numbers")
            sides = [side for side in shape if side != "*"]
            if len(array.shape) - len(sides) not in (0, shape.count("*")):
                raise ValueError(f"{name} has a {field} of shape {array.shape}")
            for side, size in zip(sides, array.shape, strict=False):
                if sizes.setdefault(side, size) != size:
                    raise ValueError(f"{name} has a {field} of shape {array.shape}")
            if not np.isfinite(array).all():
                raise ValueError(f"{name} has a {field} that is not finite")
        if isinstance(step, EachLabel):
            columns = [_checked_width(label, width) for label in step.labels]
            if any(count != 2 for count in columns):
                raise ValueError("a label has other columns than two")
            width = len(columns)
            continue
        if isinstance(step, Mean):
            columns = [_checked_width(member, width) for member in step.members]
            if not columns or len(set(columns)) > 1 or len(columns) != len(step.weights):
                raise ValueError("members that do not fit one another")
            width = columns[0]
            continue
        if complaint := step.check(width):
            raise ValueError(f"{name}: {complaint}")
        width = step.columns if isinstance(step, Neighbours) else sizes.get("out", width)
    return width


def dump_fitted(head: Fitted) -> tuple[bytes, bytes]:
    """Return the JSON that describes a head, and the HDF5 file of its arrays."""
    import h5py

    arrays: dict[str, NDArray[np.generic]] = {}
    if isinstance(head, FittedValues):
        learnt: dict[str, object] = {"version": VALUES_VERSION, "values": head.columns_}
    else:
        learnt = {"version": _version(head.steps_), "classes": labels_to_json(head.classes_)}
    description = {
        "type": TYPE,
        **learnt,
        "features": head.n_features_in_,
        "steps": [_describe(step, str(number), arrays) for number, step in enumerate(head.steps_)],
    }
    # ASCII, since names of folders that are no valid text have no UTF-8.
    text = json.dumps(description, indent=1, allow_nan=False)
    file = io.BytesIO()
    with h5py.File(file, "w") as h5:
        for name, array in arrays.items():
            h5.create_dataset(name, data=np.asarray(array, order="C"))
    return text.encode(), file.getvalue()


def _version(steps: Sequence[Step]) -> int:
    """Return the first version that has all these steps."""
    return 2 if any(isinstance(step, Mean | Columns) for step in steps) else 1


def _describe(step: Step, path: str, arrays: dict[str, NDArray[np.generic]]) -> dict[str, object]:
    described: dict[str, object] = {"step": type(step).__name__}
    if type(step).__name__ in _NESTED:
        field = _NESTED[type(step).__name__][1]
        described[field] = [
            [_describe(inner, f"{path}.{part}.{number}", arrays) for number, inner in enumerate(s)]
            for part, s in enumerate(getattr(step, field))
        ]
    described |= {name: getattr(step, name) for name in step.PARAMETERS}
    stated = {}
    for field in step.ARRAYS:
        array = np.asarray(getattr(step, field))
        array = array.astype(
            f"<{array.dtype.kind}{4 if array.dtype.kind == 'i' else array.itemsize}"
        )
        arrays[f"{path}.{field}"] = array
        stated[field] = [array.dtype.str, list(array.shape)]
    if stated:
        described["arrays"] = stated
    return described


def load_fitted(description: Mapping[str, Any], arrays: bytes) -> Fitted:
    """Return the head that `dump_fitted` wrote."""
    import h5py

    version = description["version"]
    if version not in VERSIONS:
        raise ValueError(f"version {version!r}, expected 1 to 3")
    width = description["features"]
    if type(width) is not int or width < 1:
        raise ValueError("the number of features is no number")
    claimed = sum(
        np.dtype(dtype).itemsize * math.prod(shape) for dtype, shape in _stated(description)
    )
    if claimed > len(arrays):
        raise ValueError(f"its arrays claim {claimed:,} bytes in {len(arrays):,}")
    with h5py.File(io.BytesIO(arrays), "r") as h5:
        steps = _read_steps(description["steps"], "", h5, 0)
    if version == VALUES_VERSION:
        columns = description["values"]
        if type(columns) is not int or columns < 1:
            raise ValueError("the number of values is no number")
        return fitted_values(columns, width, steps)
    return fitted_head(labels_from_json(description["classes"]), width, steps)


def _stated(description: Mapping[str, Any]) -> Iterator[tuple[str, list[int]]]:
    """Yield type and shape of every array, each looked at."""
    waiting = list(description["steps"])
    while waiting:
        step = waiting.pop()
        for _, field in _NESTED.values():
            waiting += [inner for part in step.get(field, ()) for inner in part]
        for dtype, shape in step.get("arrays", {}).values():
            if dtype not in _DTYPES or not all(type(side) is int and side >= 0 for side in shape):
                raise ValueError(f"an array of type {dtype!r} and shape {shape!r}")
            yield dtype, shape


def _read_steps(
    described: Sequence[Mapping[str, Any]], prefix: str, h5: h5py.File, depth: int
) -> list[Step]:
    steps: list[Step] = []
    for number, item in enumerate(described):
        kind, path = item["step"], f"{prefix}{number}"
        values: dict[str, Any] = {}
        cls: type[Step]
        if kind in _NESTED and depth < _DEEPEST:
            cls, field = _NESTED[kind]
            values[field] = tuple(
                tuple(_read_steps(part, f"{path}.{position}.", h5, depth + 1))
                for position, part in enumerate(item[field])
            )
        elif kind in _KINDS:
            cls = _KINDS[kind]
        else:
            raise ValueError(f"{str(kind)[:40]!r} is no step")
        for name, expected in cls.PARAMETERS.items():
            if type(item[name]) is not expected:
                raise ValueError(f"{name} of {kind} is no {expected.__name__}")
            values[name] = item[name]
        stated = item.get("arrays", {})
        if set(stated) != set(cls.ARRAYS):
            raise ValueError(f"{kind} has the arrays {sorted(stated)[:9]}")
        for field, (dtype, shape) in stated.items():
            values[field] = read_hdf5_array(h5, f"{path}.{field}", tuple(shape), _DTYPES[dtype])
        steps.append(cls(**values))
    return steps


def read_description(data: bytes) -> dict[str, Any]:
    """Read ``head.json``; errors are those of `read_plain_json`."""
    return read_plain_json(data, most_bytes=_MOST_JSON_BYTES)


def labels_to_json(classes: NDArray[np.generic]) -> dict[str, object]:
    """Return labels as JSON types."""
    values = classes.tolist()
    if classes.dtype.kind not in "UOiufb" or (
        classes.dtype.kind == "O" and not all(isinstance(v, str) for v in values)
    ):
        raise HeadError(
            f"labels of type {classes.dtype} cannot be saved: use strings, integers or floats"
        )
    return {"dtype": classes.dtype.str, "values": values}


def labels_from_json(stated: Mapping[str, Any]) -> NDArray[np.generic]:
    """Return labels that `labels_to_json` wrote."""
    dtype, values = np.dtype(str(stated["dtype"])), stated["values"]
    kinds = {"U": str, "O": str, "i": int, "u": int, "f": float, "b": bool}
    if not isinstance(values, list) or not all(type(v) is kinds[dtype.kind] for v in values):
        raise ValueError(f"the classes are not {dtype}")
    if len(values) < 2:
        raise ValueError("expected at least two classes")
    # np.dtype accepts a width of gigabytes a label; the labels themselves say what they need.
    return np.array(values, dtype=None if dtype.kind == "U" else dtype)
