"""Which pixels a network takes, as the first arithmetic of its own graph tells.

A network with a `Rescaling` layer inside wants pixels from 0 to 255. This is read from the
configuration of a Keras model or from the graph of a SavedModel; neither is run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from featx.files.messages import Message

PixelRange = Literal["0..255", "0..1", ""]
"""What a network takes; empty where its graph does not tell."""

_MOST_STEPS, _MOST_DEPTH, _MOST_NUMBERS = 500, 20, 16
# A scale below this maps pixels from 0 to 1 onto next to nothing: it is made for 0 to 255.
_SCALE_OF_BYTES = 0.1
_LEAST_SCALE_OF_UNIT = 0.5
# ImageNet's means taken off are more than this, in pixels from 0 to 255.
_LEAST_MEAN = 20.0
_MOST_OFFSET_OF_UNIT = 10.0

Numbers = NDArray[np.float64]
Config: TypeAlias = Any
"""What a ``config.json`` holds, of any form: whatever does not fit raises, and is caught."""


class _Arithmetic:
    """``pixel * scale + offset``, that a network does before anything else."""

    def __init__(self) -> None:
        self.scale, self.offset = np.ones(1), np.zeros(1)

    def then(self, scale: ArrayLike, offset: ArrayLike) -> bool:
        """Add a step; return whether it is one, of a number for all channels or one for each."""
        try:
            a, b = np.ravel(np.asarray(scale, float)), np.ravel(np.asarray(offset, float))
        except (TypeError, ValueError):
            return False
        if not {a.size, b.size} <= {1, 3}:
            return False
        with np.errstate(all="ignore"):
            self.scale, self.offset = self.scale * a, self.offset * a + b
        return True

    def operate(self, kind: str, left: ArrayLike | None, right: ArrayLike | None) -> bool:
        """Add an operation of which one operand is the pixels, here None; return as `then`."""
        other = right if left is None else left
        if other is None or (left is not None and right is not None):
            return False
        if kind == "Mul":
            return self.then(other, 0)
        if kind == "Add":
            return self.then(1, other)
        if kind == "Sub":
            value = np.asarray(other, float)
            return self.then(1, -value) if left is None else self.then(-1, value)
        with np.errstate(all="ignore"):
            return left is None and self.then(1 / np.asarray(other, float), 0)

    @property
    def pixels(self) -> PixelRange:
        """Which pixels the arithmetic is made for."""
        least, most = float(np.abs(self.scale).min()), float(np.abs(self.scale).max())
        shift = float(np.abs(self.offset).max())
        unchanged = bool(np.all(self.scale == 1) and np.all(self.offset == 0))
        if unchanged or not (math.isfinite(most) and math.isfinite(shift)) or least == 0:
            return ""
        if most <= _SCALE_OF_BYTES:
            return "0..255"
        if least < _LEAST_SCALE_OF_UNIT:
            return ""
        if shift / most >= _LEAST_MEAN:
            return "0..255"
        return "0..1" if shift <= _MOST_OFFSET_OF_UNIT else ""


# Networks saved by Keras.

# What leaves the values of pixels as they are, or moves them about.
_PASSING_LAYERS = {
    "InputLayer", "Cast", "ZeroPadding2D", "Resizing", "CenterCrop", "Identity", "Dropout",
    "GaussianNoise", "GetItem", "Stack", "Flip", "Pad", "Reshape", "Permute", "Transpose",
}  # fmt: skip
_MODELS = {"Functional", "Sequential", "Model"}
_KERAS_ARITHMETIC = {
    "Multiply": "Mul", "Add": "Add", "Subtract": "Sub", "TrueDivide": "Div", "Divide": "Div",
}  # fmt: skip


def range_of_keras_config(config: Config) -> PixelRange:
    """Return which pixels a model takes, by the ``config.json`` of its ``.keras`` file."""
    arithmetic = _Arithmetic()
    # Of another form than Keras writes: loading it will tell.
    with suppress(KeyError, TypeError, AttributeError, IndexError, ValueError):
        _follow_layers(config, arithmetic, 0)
    return arithmetic.pixels


def _follow_layers(model: Config, arithmetic: _Arithmetic, depth: int) -> bool:
    """Take in the first layers of a model; return whether it has no others."""
    if depth > _MOST_DEPTH:
        return False
    layers = model["config"]["layers"]
    if model["class_name"] == "Sequential":
        return all(_take_layer(layer, arithmetic, depth) for layer in layers)
    first = model["config"]["input_layers"]
    current = first[0] if isinstance(first[0], str) else first[0][0]
    for _ in range(len(layers)):
        users = [layer for layer in layers if current in _sources(layer.get("inbound_nodes"))]
        if not users:
            return True
        if len(users) > 1 and {layer["class_name"] for layer in users} != {"GetItem"}:
            return False
        if not _take_layer(users[0], arithmetic, depth):
            return False
        current = users[0]["config"]["name"]
    return False


def _sources(nodes: Config) -> Iterator[str]:
    """Yield the names of the layers whose outputs are named anywhere in the calls of a layer."""
    if isinstance(nodes, list):
        for node in nodes:
            yield from _sources(node)
    elif isinstance(nodes, dict):
        if nodes.get("class_name") == "__keras_tensor__":
            yield nodes["config"]["keras_history"][0]
            return
        for value in nodes.values():
            yield from _sources(value)


def _take_layer(layer: Config, arithmetic: _Arithmetic, depth: int) -> bool:
    """Take in a layer; return whether what comes behind it may be arithmetic of the pixels too."""
    kind, config = layer["class_name"], layer["config"]
    if kind in _MODELS:
        return _follow_layers(layer, arithmetic, depth + 1)
    if kind == "Rescaling":
        return arithmetic.then(config["scale"], config["offset"])
    if kind == "Normalization":
        if config.get("mean") is None or config.get("invert"):
            return False
        deviation = np.maximum(np.sqrt(np.asarray(config["variance"], float)), 1e-7)
        return arithmetic.then(1 / deviation, -np.asarray(config["mean"], float) / deviation)
    if kind in _KERAS_ARITHMETIC:
        (call,) = layer["inbound_nodes"]
        operands = [
            value["config"].get("value") if isinstance(value, dict) else value
            for value in call["args"][:2]
        ]
        left, right = operands
        return arithmetic.operate(_KERAS_ARITHMETIC[kind], left, right)
    return kind in _PASSING_LAYERS or kind.startswith("Random")


# SavedModels.

_NO_USE = {"NoOp", "Shape", "ShapeN", "Size", "Rank", "Assert"}
_CALLS = {"PartitionedCall", "StatefulPartitionedCall"}
_SAME_VALUE = {
    "Identity", "Cast", "Reshape", "ExpandDims", "Squeeze", "EnsureShape", "StopGradient",
    "Snapshot", "CheckNumerics", "PlaceholderWithDefault",
}  # fmt: skip
_SLICES = {"StridedSlice", "Split", "Unpack"}
_PASSING = _SAME_VALUE | _SLICES | {
    "Pad", "PadV2", "MirrorPad", "Transpose", "ReverseV2", "Pack", "ConcatV2", "GatherV2",
    "ResizeBilinear", "ResizeNearestNeighbor", "ResizeBicubic", "ResizeArea", "ScaleAndTranslate",
    "ClipByValue",
}  # fmt: skip
_ARITHMETIC = {
    "Mul": "Mul", "AddV2": "Add", "Add": "Add", "BiasAdd": "Add", "Sub": "Sub", "RealDiv": "Div",
    "Div": "Div",
}  # fmt: skip
_OF_CONSTANTS: dict[str, Callable[..., Numbers]] = {
    "Mul": np.multiply, "AddV2": np.add, "Add": np.add, "Sub": np.subtract, "RealDiv": np.divide,
    "Div": np.divide, "Maximum": np.maximum, "Minimum": np.minimum, "Sqrt": np.sqrt,
    "Rsqrt": lambda x: 1 / np.sqrt(x), "Neg": np.negative, "Square": np.square,
    "Reciprocal": np.reciprocal, "Inv": np.reciprocal,
}  # fmt: skip
_TENSOR_TYPES = {1: ("<f4", "float_val"), 2: ("<f8", "double_val"), 3: ("<i4", "int_val")}


def range_of_graph(graph: Message, entry: str, constants: list[str] | None) -> PixelRange:
    """Return which pixels a function of a SavedModel takes.

    `graph` is its ``GraphDef``, a message of `featx.backbones.saved_model`. `entry` is the tensor
    of the main graph that the pixels are, and `constants` None; or `entry` is the name of a
    function whose first argument they are, and `constants` the nodes of the main graph that its
    other arguments are, empty where that is not known.
    """
    followed = _Graph(graph)
    scope, name = followed.main, _base(entry)
    # Of another form than TensorFlow writes: loading it will tell.
    with suppress(KeyError, IndexError, ValueError, TypeError):
        if constants is not None:
            others = [(scope, constant) if constant else None for constant in constants]
            scope, (name, *_) = followed.inside(entry, [None, *others])
        followed.follow(scope, name)
        return followed.arithmetic.pixels
    return ""


class _Scope:
    """The nodes of a graph or of a function, and what its arguments are."""

    def __init__(
        self,
        nodes: Iterable[Message],
        arguments: dict[str, tuple[_Scope, str] | None],
        results: set[str],
    ) -> None:
        self.nodes = {node.name: node for node in nodes}
        self.arguments, self.results = arguments, results

    def users(self, name: str) -> list[Message]:
        """Return the nodes that compute with what is called `name`."""
        return [
            node
            for node in self.nodes.values()
            if node.op not in _NO_USE and name in map(_base, _inputs(node))
        ]


class _Graph:
    """Follows the pixels through a graph and the functions that it calls."""

    def __init__(self, graph: Message) -> None:
        self.functions = {function.signature.name: function for function in graph.library.functions}
        self.main = _Scope(graph.nodes, {}, set())
        self.arithmetic, self.steps = _Arithmetic(), 0

    def inside(
        self, name: str, arguments: Sequence[tuple[_Scope, str] | None]
    ) -> tuple[_Scope, list[str]]:
        """Return the scope of a function that is called, and the names of its arguments."""
        function = self.functions[name]
        names = [argument.name for argument in function.signature.inputs]
        results = {_base(result.value) for result in function.results}
        values = dict(zip(names, arguments, strict=False))
        return _Scope(function.nodes, values, results), names

    def follow(self, scope: _Scope, name: str, depth: int = 0) -> bool:
        """Take in what is done to a tensor; return whether it leaves the scope as pixels."""
        while depth <= _MOST_DEPTH and self.steps < _MOST_STEPS:
            self.steps += 1
            users = scope.users(name)
            if not users:
                return name in scope.results
            if len(users) > 1 and not {node.op for node in users} <= _SLICES:
                return False
            if not self._take(scope, users[0], name, depth):
                return False
            name = users[0].name
        return False

    def _take(self, scope: _Scope, node: Message, name: str, depth: int) -> bool:
        inputs = _inputs(node)
        position = [_base(tensor) for tensor in inputs].index(name)
        attributes = {entry.key: entry.value for entry in node.attributes}
        called = attributes["f"].func.name if node.op in _CALLS else node.op
        if called in self.functions:
            arguments: list[tuple[_Scope, str] | None] = [(scope, tensor) for tensor in inputs]
            arguments[position] = None
            inner, names = self.inside(called, arguments)
            return self.follow(inner, names[position], depth + 1)
        if node.op in _ARITHMETIC and len(inputs) == 2:
            left, right = (
                None if index == position else self.value(scope, tensor)
                for index, tensor in enumerate(inputs)
            )
            return self.arithmetic.operate(_ARITHMETIC[node.op], left, right)
        return node.op in _PASSING

    def value(self, scope: _Scope, name: str, depth: int = 0) -> Numbers | None:
        """Return a constant of a few numbers; None for anything else."""
        self.steps += 1
        base = _base(name)
        if depth > _MOST_DEPTH or self.steps > _MOST_STEPS:
            return None
        if base in scope.arguments:
            outer = scope.arguments[base]
            return None if outer is None else self.value(*outer, depth + 1)
        node = scope.nodes.get(base)
        if node is None:
            return None
        if node.op == "Const":
            return _constant({entry.key: entry.value for entry in node.attributes}["value"].tensor)
        if node.op in _SAME_VALUE:
            return self.value(scope, _inputs(node)[0], depth + 1)
        if node.op not in _OF_CONSTANTS:
            return None
        values = [self.value(scope, tensor, depth + 1) for tensor in _inputs(node)]
        if any(value is None for value in values):
            return None
        with np.errstate(all="ignore"):
            return np.asarray(_OF_CONSTANTS[node.op](*values), np.float64)


def _base(name: str) -> str:
    return name.partition(":")[0]


def _inputs(node: Message) -> list[str]:
    return [name for name in node.inputs if not name.startswith("^")]


def _constant(tensor: Message) -> Numbers | None:
    count = math.prod(int(side.size) for side in tensor.shape.dim)
    if tensor.dtype not in _TENSOR_TYPES or not 1 <= count <= _MOST_NUMBERS:
        return None
    kind, field = _TENSOR_TYPES[tensor.dtype]
    if len(tensor.content) == count * np.dtype(kind).itemsize:
        return np.frombuffer(tensor.content, kind).astype(float)
    values = list(getattr(tensor, field))
    # Equal numbers at the end are written once.
    return np.array([*values, *values[-1:] * (count - len(values))], float) if values else None
