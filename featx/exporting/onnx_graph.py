"""An ONNX network with its preprocessing in front and pooling and head behind, as ONNX."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from featx.backbones.networks import NETWORK_KINDS
from featx.backbones.source import BackboneSource
from featx.backbones.taps import parse_tap
from featx.backbones.weights import readable
from featx.engines.onnx_network import (
    Floats,
    GraphArithmetic,
    Native,
    image_network,
    read_network,
    tensor_extents,
    with_taps,
)
from featx.engines.openvino import load_openvino
from featx.exceptions import ExportError
from featx.exporting.formats import (
    INPUT,
    OUTPUT,
    Format,
    conversion_errors,
    save_onnx,
    save_openvino,
)
from featx.exporting.graph import head_behind
from featx.heads.steps import Step

Extents: TypeAlias = tuple[int | None, ...]
Classes: TypeAlias = Sequence[object]

_LEAST_OPSET = 11
_AXES_ARE_INPUTS = 18
# Names of the network's own get this in front, and so never meet those that are added.
_PREFIX = "network/"


class Tensor(NamedTuple):
    """A tensor of the graph."""

    name: str
    shape: Extents


def _whole(numbers: Sequence[int]) -> NDArray[np.int64]:
    """Return whole numbers as operators of ONNX take them."""
    return np.array(numbers, np.int64)


class OnnxArithmetic:
    """Arithmetic on tensors of an ONNX graph: each call adds an operator to `nodes`."""

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.nodes: list[Native] = []
        self.constants: list[Native] = []
        self._numbers = count()

    def shape(self, x: Tensor) -> Extents:
        """Return the extents of a tensor, None where they are open."""
        return x.shape

    def mean(self, x: Tensor, axes: tuple[int, ...]) -> Tensor:
        """Return the mean over axes."""
        return self._reduced("ReduceMean", x, axes)

    def largest(self, x: Tensor, axes: tuple[int, ...]) -> Tensor:
        """Return the maximum over axes."""
        return self._reduced("ReduceMax", x, axes)

    def power(self, x: Tensor, exponent: float) -> Tensor:
        """Return every number to a power."""
        return self.add("Pow", x.shape, x, np.float32(exponent))

    def at_least(self, x: Tensor, least: float) -> Tensor:
        """Return numbers, those below the least one raised to it."""
        return self.add("Max", x.shape, x, np.float32(least))

    def cut(self, x: Tensor, axis: int, start: int, stop: int) -> Tensor:
        """Return a part of a tensor."""
        shape = (*x.shape[:axis], stop - start, *x.shape[axis + 1 :])
        return self.add("Slice", shape, x, *(_whole([n]) for n in (start, stop, axis)))

    def flat(self, x: Tensor, width: int) -> Tensor:
        """Return a tensor of shape (n, width)."""
        return self.add("Reshape", (None, width), x, _whole([-1, width]))

    def joined(self, parts: list[Tensor]) -> Tensor:
        """Return vectors side by side."""
        width = sum(part.shape[-1] or 0 for part in parts)
        return self.add("Concat", (*parts[0].shape[:-1], width), *parts, axis=-1)

    def transposed(self, x: Tensor, axes: list[int]) -> Tensor:
        """Return a tensor with its axes in another order."""
        return self.add("Transpose", tuple(x.shape[axis] for axis in axes), x, perm=axes)

    def reversed(self, x: Tensor, axis: int) -> Tensor:
        """Return a tensor with its three channels the other way round."""
        return self.add("Gather", x.shape, x, _whole([2, 1, 0]), axis=axis)

    def converted(self, x: Tensor, dtype: str) -> Tensor:
        """Return a tensor in another number type."""
        from onnx import helper

        return self.add("Cast", x.shape, x, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def affine(self, x: Tensor, factor: Floats, offset: Floats) -> Tensor:
        """Return ``x * factor + offset``, numbers of the last axis."""
        return self.add("Add", x.shape, self.add("Mul", x.shape, x, factor), offset)

    def product(self, x: Tensor, kernel: Floats) -> Tensor:
        """Return ``x @ kernel``."""
        return self.add("MatMul", (*x.shape[:-1], kernel.shape[1]), x, kernel)

    def unit_length(self, x: Tensor) -> Tensor:
        """Return vectors divided by their Euclidean length."""
        return self.add("LpNormalization", x.shape, x, axis=-1, p=2)

    def sigmoid(self, x: Tensor) -> Tensor:
        """Return the probability of every logit."""
        return self.add("Sigmoid", x.shape, x)

    def softmax(self, x: Tensor) -> Tensor:
        """Return the probabilities of logits that exclude one another."""
        return self.add("Softmax", x.shape, x, axis=len(x.shape) - 1)

    def _reduced(self, operator: str, x: Tensor, axes: tuple[int, ...]) -> Tensor:
        shape = tuple(extent for axis, extent in enumerate(x.shape) if axis not in axes)
        if self.opset >= _AXES_ARE_INPUTS:
            return self.add(operator, shape, x, _whole(axes), keepdims=0)
        return self.add(operator, shape, x, axes=list(axes), keepdims=0)

    def add(
        self,
        operator: str,
        shape: Extents,
        *inputs: Tensor | ArrayLike,
        output: str = "",
        **attributes: object,
    ) -> Tensor:
        """Add an operator, and return what it gives."""
        from onnx import helper, numpy_helper

        names = []
        for value in inputs:
            if isinstance(value, Tensor):
                names.append(value.name)
            else:
                names.append(f"constant_{len(self.constants)}")
                self.constants.append(numpy_helper.from_array(np.asarray(value), names[-1]))
        made = output or f"{operator.lower()}_{next(self._numbers)}"
        self.nodes.append(helper.make_node(operator, names, [made], made, **attributes))
        return Tensor(made, shape)


def write_joined(
    row: Format,
    source: BackboneSource,
    tap: str,
    steps: list[Step],
    path: Path,
    *,
    classes: Classes,
    output: str = OUTPUT,
) -> None:
    """Write a network that Keras cannot build, and the steps of a head behind it."""
    if row.name == "onnx":
        with conversion_errors("ONNX"):
            save_onnx(_onnx_model(source, tap, steps, output), path, classes, output)
    elif row.name == "openvino":
        save_openvino(_openvino_model(source, tap, steps, output), path, classes, output)
    else:
        raise ExportError(
            f"{source.name} is {NETWORK_KINDS[source.kind].summary}, which the format {row.name} "
            "cannot have in it: take --format onnx or openvino"
        )


def _openvino_model(source: BackboneSource, tap: str, steps: list[Step], output: str) -> Native:
    openvino = load_openvino()
    model = read_network(openvino, openvino.Core(), source)

    def behind(x: Native, on: GraphArithmetic) -> Native:
        return head_behind(x, steps, on)

    return with_taps(openvino, model, source, (tap,), (output,), behind)


def _onnx_model(source: BackboneSource, tap: str, steps: list[Step], output: str) -> Native:
    """Return a network from uint8 pixels to its output, as a message of the onnx package."""
    import onnx

    network, openvino = image_network(source), load_openvino()
    with readable(network.file.path) as file:
        model = onnx.load(file)
    opset = max((given.version for given in model.opset_import if not given.domain), default=1)
    if opset < _LEAST_OPSET:
        raise ExportError(
            f"{network.file.path} is of ONNX opset {opset}, expected {_LEAST_OPSET} or later: "
            "export the network again, with opset 17, or the model to --format openvino"
        )
    onnx.compose.add_prefix(model, _PREFIX, inplace=True)
    name, on = network.tensor(parse_tap(tap)), OnnxArithmetic(opset)
    pixels = network.from_pixels(Tensor(INPUT, (None, *network.size_px, 3)), on)
    on.add("Identity", pixels.shape, pixels, output=_PREFIX + network.file.input)
    nodes = [*on.nodes, *model.graph.node]
    read = read_network(openvino, openvino.Core(), source)
    extents = tensor_extents(openvino, read, network, name)
    on.nodes = []
    vector = network.vector(Tensor(_PREFIX + name, extents), name, parse_tap(tap), on)
    probabilities = head_behind(vector, steps, on)
    on.add("Identity", probabilities.shape, probabilities, output=output)
    nodes, used = _needed([*nodes, *on.nodes], output)
    weights = [given for given in (*model.graph.initializer, *on.constants) if given.name in used]
    pixels, answer = (
        onnx.helper.make_tensor_value_info(name, dtype, ["batch", *shape[1:]])
        for name, dtype, shape in (
            (INPUT, onnx.TensorProto.UINT8, (None, *network.size_px, 3)),
            (output, onnx.TensorProto.FLOAT, probabilities.shape),
        )
    )
    joined = onnx.helper.make_graph(nodes, "featx", [pixels], [answer], weights)
    sparse = [given for given in model.graph.sparse_initializer if given.values.name in used]
    joined.sparse_initializer.extend(sparse)
    model.graph.CopyFrom(joined)
    del model.metadata_props[:]  # of the network's own input
    return model


def _needed(nodes: list[Native], output: str) -> tuple[list[Native], set[str]]:
    """Return the operators that an output needs, in their order, and the tensors that they take."""
    used, kept = {output}, []
    for node in reversed(nodes):
        if used.intersection(node.output):
            kept.append(node)
            used |= set(_taken(node))
    return kept[::-1], used


def _taken(node: Native) -> Iterator[str]:
    """Yield the names that an operator takes, and those that graphs inside it may."""
    yield from node.input
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from _taken(inner)
