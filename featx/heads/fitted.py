"""A trained head as a model file keeps it: its labels, and steps from features to probabilities."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from featx.exceptions import HeadError
from featx.files.safe_hdf5 import read_hdf5_array
from featx.files.safe_json import read_plain_json
from featx.heads.steps import (
    DiagonalGaussians,
    EachLabel,
    Gaussian,
    Linear,
    Neighbours,
    Rectify,
    Scale,
    Sigmoid,
    Softmax,
    Step,
    Trees,
    UnitLength,
    apply_steps,
)
from featx.heads.targets import LABEL_THRESHOLD, best_labels

TYPE, VERSION = "featx.head", 1
_MOST_JSON_BYTES = 64 << 20
_DTYPES: Mapping[str, type[np.generic]] = {"<f4": np.float32, "<f8": np.float64, "<i4": np.int32}
_PARAMETERS: Mapping[str, tuple[tuple[str, type], ...]] = {
    "Neighbours": (
        ("columns", int),
        ("count", int),
        ("nearer_count_more", bool),
        ("metric", str),
    )
}


class _Fitted:
    """Labels, a number of features, and steps that lead from the one to the other."""

    def __init__(self, classes: NDArray[np.generic], width: int, steps: Sequence[Step]) -> None:
        self.classes_ = classes
        self.n_features_in_ = width
        self.steps_ = tuple(steps)

    def _scores(self, X: ArrayLike) -> NDArray[np.floating]:
        rows = np.asarray(X)
        if rows.dtype not in (np.float32, np.float64):
            rows = rows.astype(np.float64)
        if rows.ndim != 2 or rows.shape[1] != self.n_features_in_:
            raise HeadError(
                f"expected features of shape (n, {self.n_features_in_}), received {rows.shape}"
            )
        return apply_steps(rows, self.steps_)


class FittedHead(_Fitted):
    """A head that gives probabilities, and cannot be trained."""

    @property
    def several_labels(self) -> bool:
        """Whether an image may have any number of labels."""
        votes = [step.targets.ndim == 2 for step in self.steps_ if isinstance(step, Neighbours)]
        return any(votes) or isinstance(self.steps_[-1], Sigmoid | EachLabel)

    def predict_proba(self, X: ArrayLike) -> NDArray[np.floating]:
        """Return the probability of each class or label, shape (n, k)."""
        return self._scores(X)

    def predict(self, X: ArrayLike) -> NDArray[np.generic]:
        """Return the likeliest label of each row, (n,), or 0 and 1 a label, (n, k)."""
        scores = self._scores(X)
        if self.several_labels:
            return (scores > LABEL_THRESHOLD).astype(np.intp)
        return best_labels(scores, self.classes_)


class FittedMargins(_Fitted):
    """A linear classifier without probabilities; parameters are those of `FittedHead`."""

    def decision_function(self, X: ArrayLike) -> NDArray[np.floating]:
        """Return margins, (n,) of two classes, else (n, k)."""
        scores = self._scores(X)
        return scores[:, 0] if scores.shape[1] == 1 else scores

    def predict(self, X: ArrayLike) -> NDArray[np.generic]:
        """Return the label of the highest margin of each row, (n,)."""
        return best_labels(self.decision_function(X), self.classes_)


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
        complaint = step.check(width) if isinstance(step, Scale | Trees | Neighbours) else ""
        if complaint:
            raise ValueError(f"{name}: {complaint}")
        width = step.columns if isinstance(step, Neighbours) else sizes.get("out", width)
    return width


def dump_fitted(head: FittedHead | FittedMargins) -> tuple[bytes, bytes]:
    """Return the JSON that describes a head, and the HDF5 file of its arrays."""
    import h5py

    arrays: dict[str, NDArray[np.generic]] = {}
    description = {
        "type": TYPE,
        "version": VERSION,
        "classes": labels_to_json(head.classes_),
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


def _describe(step: Step, path: str, arrays: dict[str, NDArray[np.generic]]) -> dict[str, Any]:
    described: dict[str, Any] = {"step": type(step).__name__}
    if isinstance(step, EachLabel):
        described["labels"] = [
            [_describe(inner, f"{path}.{label}.{number}", arrays) for number, inner in enumerate(s)]
            for label, s in enumerate(step.labels)
        ]
        return described
    for name, _ in _PARAMETERS.get(described["step"], ()):
        described[name] = getattr(step, name)
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


def load_fitted(description: dict[str, Any], arrays: bytes) -> FittedHead | FittedMargins:
    """Return the head that `dump_fitted` wrote."""
    import h5py

    if description["version"] != VERSION:
        raise ValueError(f"version {description['version']!r}, expected {VERSION}")
    width = description["features"]
    if type(width) is not int or width < 1:
        raise ValueError("the number of features is no number")
    claimed = sum(
        np.dtype(dtype).itemsize * math.prod(shape) for dtype, shape in _stated(description)
    )
    if claimed > len(arrays):
        raise ValueError(f"its arrays claim {claimed:,} bytes in {len(arrays):,}")
    with h5py.File(io.BytesIO(arrays), "r") as h5:
        steps = _read_steps(description["steps"], "", h5, nested=False)
    return fitted_head(labels_from_json(description["classes"]), width, steps)


def _stated(description: Mapping[str, Any]) -> Iterable[tuple[str, list[int]]]:
    """Yield type and shape of every array, each looked at."""
    steps = list(description["steps"])
    for step in description["steps"]:
        steps += [inner for label in step.get("labels", ()) for inner in label]
    for step in steps:
        for dtype, shape in step.get("arrays", {}).values():
            if dtype not in _DTYPES or not all(type(side) is int and side >= 0 for side in shape):
                raise ValueError(f"an array of type {dtype!r} and shape {shape!r}")
            yield dtype, shape


def _read_steps(described: list[Any], path: str, h5: Any, *, nested: bool) -> list[Step]:
    steps: list[Step] = []
    for number, item in enumerate(described):
        kind, place = item["step"], f"{path}{number}"
        if kind == "EachLabel" and not nested:
            labels = [
                tuple(_read_steps(label, f"{place}.{position}.", h5, nested=True))
                for position, label in enumerate(item["labels"])
            ]
            steps.append(EachLabel(tuple(labels)))
            continue
        if kind not in _KINDS:
            raise ValueError(f"{str(kind)[:40]!r} is no step")
        cls = _KINDS[kind]
        values: dict[str, Any] = {}
        for name, expected in _PARAMETERS.get(kind, ()):
            if type(item[name]) is not expected:
                raise ValueError(f"{name} of {kind} is no {expected.__name__}")
            values[name] = item[name]
        stated = item.get("arrays", {})
        if set(stated) != set(cls.ARRAYS):
            raise ValueError(f"{kind} has the arrays {sorted(stated)[:9]}")
        for field, (dtype, shape) in stated.items():
            values[field] = read_hdf5_array(h5, f"{place}.{field}", tuple(shape), _DTYPES[dtype])
        steps.append(cls(**values))
    return steps


def read_description(data: bytes) -> dict[str, Any]:
    """Read ``head.json``; errors are those of `read_plain_json`."""
    return read_plain_json(data, most_bytes=_MOST_JSON_BYTES)


def labels_to_json(classes: NDArray[np.generic]) -> dict[str, Any]:
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


_KINDS: Mapping[str, Any] = {
    cls.__name__: cls
    for cls in (
        Scale,
        Linear,
        UnitLength,
        Rectify,
        Gaussian,
        DiagonalGaussians,
        Trees,
        Neighbours,
        Softmax,
        Sigmoid,
    )
}
