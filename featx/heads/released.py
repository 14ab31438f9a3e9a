"""Heads as featx 0.1 stored them: skops files, and the two files of dense heads. Read only.

A skops file names classes and gives them attributes. Nothing that it names is imported or made: the
file is read into plain values, and the arithmetic of the heads that featx offered is taken from
these by the rules of `featx.heads.to_steps`.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import HeadError
from featx.files.claims import shortened
from featx.files.safe_hdf5 import read_hdf5_array
from featx.files.safe_json import read_plain_json
from featx.files.safe_npy import read_npy
from featx.files.safe_zip import open_plain_zip
from featx.heads.fitted import FittedHead, FittedMargins, fitted_head, labels_from_json
from featx.heads.steps import Linear, Rectify, Scale, Sigmoid, Softmax, Step
from featx.heads.to_steps import Stored, translate

SCHEMA = "schema.json"
_MOST_MEMBERS = 200_000
_MOST_SCHEMA_BYTES = 256 << 20
_MOST_SCHEMA_ITEMS = 6_000_000
_MOST_COPIES = 4
_MOST_DEPTH = 60
# Of a matrix that the labels of a file can make of a few of its numbers.
_MOST_CELLS = 1 << 27
_DISTORTED = (ValueError, TypeError, AttributeError, LookupError, ArithmeticError)


class Unchecked(ValueError):  # noqa: N818 (nothing need be wrong)
    """The file may be honest, and holds what no head of featx has."""


class _StoredTree(Stored):
    """A tree, with the attributes that compiled code would compute."""

    def __init__(self, stored_type: str, state: dict[str, Any]) -> None:
        super().__init__(stored_type, {})
        nodes = state["nodes"]
        self.children_left, self.children_right = nodes["left_child"], nodes["right_child"]
        self.feature, self.threshold = nodes["feature"], nodes["threshold"]
        self.value = state["values"]


def released_skops_head(data: bytes) -> FittedHead | FittedMargins:
    """Return the head of a skops file that featx 0.1 wrote."""
    with open_plain_zip(io.BytesIO(data), most_members=_MOST_MEMBERS) as archive:
        schema = _read_schema(archive)
        if schema.get("protocol") not in (0, 1, 2):
            raise Unchecked("is of a later version of skops")
        try:
            head = _Reader(archive).value(schema, 0)
        except Unchecked as error:
            raise Unchecked(f"{error} (in {shortened(schema['__class__'])})") from error
    if not isinstance(head, Stored):
        raise Unchecked(f"holds {type(head).__name__}, expected a trained classifier")
    name = shortened(head.stored_type.rpartition(".")[2])
    try:
        parts = _parts(head)
    except (TypeError, ValueError) as error:
        raise Unchecked(f"holds {name} with steps as featx does not take them") from error
    last: Any = parts[-1]
    if not isinstance(last, Stored) or "classes_" not in vars(last):
        raise Unchecked(f"holds {name}, expected a trained classifier")
    try:
        classes, width = vars(last)["classes_"], int(parts[0].n_features_in_)
        if isinstance(classes, list):
            classes = np.arange(len(classes))
        if not 0 < width * len(classes) <= _MOST_CELLS:
            raise ValueError(f"{width} features")
        with np.errstate(all="ignore"):
            return fitted_head(classes, width, translate(head))
    except HeadError as error:
        raise Unchecked(f"holds {error}, which featx does not check") from error
    except _DISTORTED as error:
        raise Unchecked(f"holds {name} with attributes as featx does not take them") from error


def _parts(estimator: Any) -> list[Any]:
    """Return the steps of a pipeline, and of pipelines in it."""
    steps = vars(estimator).get("steps") if isinstance(estimator, Stored) else None
    if not isinstance(steps, list) or not steps:
        return [estimator]
    return [part for _, step in steps for part in _parts(step)]


def check_contents(data: bytes) -> None:
    """Refuse a skops file that could cost more than its own size, whatever it holds."""
    with open_plain_zip(io.BytesIO(data), most_members=_MOST_MEMBERS) as archive:
        for member in archive.infolist():
            if member.filename == SCHEMA:
                continue
            if not member.filename.endswith(".npy") or "/" in member.filename:
                raise ValueError(f"{shortened(member.filename)!r} is no member that featx writes")
            read_npy(archive.read(member), shortened(member.filename))
        files = {
            (node.get("__id__"), node["file"])
            for node in _nodes(_read_schema(archive))
            if isinstance(node.get("file"), str)
        }
        # Each of several objects has a copy of its own, also where they name one member.
        if sum(archive.getinfo(name).file_size for _, name in files) > _MOST_COPIES * len(data):
            raise ValueError("many objects share one array")


def _read_schema(archive: zipfile.ZipFile) -> dict[str, Any]:
    if archive.getinfo(SCHEMA).file_size > _MOST_SCHEMA_BYTES:
        raise ValueError(f"{SCHEMA} has {archive.getinfo(SCHEMA).file_size} bytes")
    text = archive.read(SCHEMA)
    # An object of Python takes up to thirty times the bytes that name it.
    if sum(text.count(mark) for mark in (b",", b"[", b"{")) > _MOST_SCHEMA_ITEMS:
        raise ValueError(f"{SCHEMA} describes more than {_MOST_SCHEMA_ITEMS:,} values")
    return read_plain_json(text, most_bytes=_MOST_SCHEMA_BYTES)


def _nodes(schema: Any) -> Iterator[dict[str, Any]]:
    waiting = [schema]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if "__class__" in value and "__module__" in value:
                yield value
            waiting.extend(v for v in value.values() if isinstance(v, dict | list))
        elif isinstance(value, list):
            waiting.extend(v for v in value if isinstance(v, dict | list))


class _Reader:
    """Makes plain values of the nodes of a schema."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self._arrays: dict[str, NDArray[np.generic]] = {}

    def value(self, node: Any, depth: int) -> Any:
        """Return what a node stands for."""
        if depth > _MOST_DEPTH:
            raise ValueError(f"{SCHEMA} is nested too deeply")
        kind, content, depth = node["__loader__"], node.get("content"), depth + 1
        path = f"{node['__module__']}.{node['__class__']}"
        match kind, path:
            case "JsonNode", _:
                scalar = json.loads(content)
                if isinstance(scalar, dict | list):
                    raise ValueError(f"{SCHEMA} has a {type(scalar).__name__} for a scalar")  # noqa: TRY004
                return scalar
            case "NdArrayNode", _:
                return self._array(node, path, depth)
            case "ListNode", "builtins.list":
                return [self.value(item, depth) for item in content]
            case "TupleNode", "builtins.tuple":
                return tuple(self.value(item, depth) for item in content)
            case "DictNode", "builtins.dict":
                return {name: self.value(item, depth) for name, item in content.items()}
            case "ObjectNode", _ if path.split(".")[0] in ("sklearn", "featx"):
                return Stored(path, self.value(content, depth) if content else {})
            case "TreeNode", "sklearn.tree._tree.Tree":
                return _StoredTree(path, self.value(content, depth))
            case (("RandomStateNode" | "RandomGeneratorNode"), _):
                # A generator's state is of no use to a head that is trained.
                return None
        raise Unchecked(f"holds {shortened(path)}, which featx does not check")

    def _array(self, node: Any, path: str, depth: int) -> Any:
        if node["type"] == "json":
            items = [self.value(item, depth) for item in node["content"]]
            # Such an array can hold anything; labels are text or numbers.
            if self.value(node["shape"], depth) != (len(items),) or not all(
                isinstance(item, str | int | float) for item in items
            ):
                raise Unchecked("holds an array of objects, which featx does not check")
            objects = np.empty(len(items), object)
            objects[:] = items
            return objects
        name = node["file"]
        if name not in self._arrays:
            self._arrays[name] = read_npy(self._archive.read(name), shortened(name))
        array = self._arrays[name]
        if path == "numpy.ndarray":
            return array
        if array.ndim or not path.startswith("numpy."):
            raise Unchecked(f"holds {shortened(path)}, which featx does not check")
        return array[()]


def released_dense_head(description: dict[str, Any], arrays: bytes) -> FittedHead | FittedMargins:
    """Return the head of the two files that featx 0.1 wrote for dense layers."""
    import h5py

    classes = labels_from_json(description["classes"])
    if not isinstance(multilabel := description.get("multilabel", False), bool):
        raise ValueError("multilabel is neither true nor false")  # noqa: TRY004 (as the others)
    hidden = tuple(description["params"]["hidden"])
    layers = [(int(inputs), int(outputs)) for inputs, outputs in description["layers"]]
    if not layers or [outputs for _, outputs in layers] != [*hidden, len(classes)]:
        raise ValueError(f"layers {layers} do not fit hidden={hidden} and {len(classes)} classes")
    if any(a < 1 or b < 1 for a, b in layers) or any(
        before[1] != after[0] for before, after in pairwise(layers)
    ):
        raise ValueError(f"layers {layers} do not fit one another")
    if sum(a * b + b for a, b in layers) * 4 > len(arrays):
        raise ValueError(f"layers {layers} are larger than head.h5")
    width = layers[0][0]
    steps: list[Step] = []
    if (scaler := description["scaler"]) is not None:
        mean = _column(scaler["mean_"], width, 0.0) if scaler["with_mean"] else np.zeros(width)
        scale = _column(scaler["scale_"], width, 1.0) if scaler["with_std"] else np.ones(width)
        steps.append(Scale(mean, scale))
    with h5py.File(io.BytesIO(arrays), "r") as h5:
        expected = {f"{kind}_{i}" for i in range(len(layers)) for kind in ("kernel", "bias")}
        if set(h5) != expected:
            raise ValueError(f"head.h5 holds {sorted(h5)}, expected {sorted(expected)}")
        for number, (inputs, outputs) in enumerate(layers):
            kernel = read_hdf5_array(h5, f"kernel_{number}", (inputs, outputs), np.float32)
            steps += [
                Linear(kernel, read_hdf5_array(h5, f"bias_{number}", (outputs,), np.float32)),
                Rectify(),
            ]
    steps[-1] = Sigmoid() if multilabel else Softmax()
    return fitted_head(classes, width, steps)


def _column(values: list[float] | None, width: int, missing: float) -> NDArray[np.float64]:
    column = np.full(width, missing) if values is None else np.array(values, np.float64)
    if column.shape != (width,):
        raise ValueError(f"the scaler does not fit features {width} wide")
    return column
