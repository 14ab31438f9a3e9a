"""An ONNX network with its preprocessing in front and pooling and head behind, as ONNX."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from featx.backbones.build import build_tap_model
from featx.backbones.networks import NETWORK_KINDS
from featx.backbones.source import BackboneSource
from featx.backbones.taps import parse_tap
from featx.backbones.weights import readable
from featx.engines.onnx_network import (
    Floats,
    Native,
    OpenVinoArithmetic,
    image_network,
    model_of,
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
    convert_to_onnx,
    save_onnx,
    save_openvino,
)
from featx.exporting.graph import Part, features_model, head_behind
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
    parts: Sequence[Part],
    steps: list[Step],
    path: Path,
    *,
    classes: Classes,
    output: str = OUTPUT,
) -> None:
    """Write networks of which Keras cannot build one, and the steps of a head behind them."""
    if row.name == "onnx":
        with conversion_errors("ONNX"):
            save_onnx(_onnx_model(parts, steps, output), path, classes, output)
    elif row.name == "openvino":
        with conversion_errors("OpenVINO"):
            model = _openvino_model(parts, steps, output)
        save_openvino(model, path, classes, output)
    else:
        source = next(part.source for part in parts if part.source.is_native)
        raise ExportError(
            f"{source.name} is {NETWORK_KINDS[source.kind].summary}, which the format {row.name} "
            "cannot have in it: take --format onnx or openvino"
        )


def _openvino_model(parts: Sequence[Part], steps: list[Step], output: str) -> Native:
    openvino = load_openvino()
    on, vectors, models = OpenVinoArithmetic(openvino), [], []
    height, width = parts[0].source.input_size_px
    pixels = on.ops.parameter([-1, height, width, 3], openvino.Type.u8, name=INPUT)
    for source, taps in parts:
        names = tuple(map(str, range(len(taps))))
        if source.is_native:
            read = read_network(openvino, openvino.Core(), source)
            model = with_taps(openvino, read, source, taps, names)
        else:
            model = _converted(build_tap_model(source, taps), names)
        models.append(model)  # its operators live as long as it does
        vectors += [model.output(name).get_node().input_value(0) for name in names]
        (parameter,) = model.get_parameters()
        parameter.output(0).replace(pixels.output(0))
    x = on.joined(vectors) if len(vectors) > 1 else vectors[0]
    return model_of(openvino, [pixels], {output: head_behind(x, steps, on)})


def _converted(network: Native, names: Sequence[str]) -> Native:
    """Return a network of Keras as OpenVINO has it, its outputs named."""
    import keras
    from openvino.tools.ovc import convert_model

    outputs = dict(zip(names, network.outputs, strict=True))
    return convert_model(keras.Model(network.inputs, outputs), share_weights=False)


def _onnx_model(parts: Sequence[Part], steps: list[Step], output: str) -> Native:
    """Return networks from uint8 pixels to their output, as a message of the onnx package."""
    import onnx

    read = [_read(part.source) if part.source.is_native else None for part in parts]
    opset = _common_opset(parts, read)
    on, nodes, ends, graphs = OnnxArithmetic(opset), [], [], []
    vectors: list[Tensor] = []
    for number, (part, model) in enumerate(zip(parts, read, strict=True)):
        prefix = f"{_PREFIX}{number}/"
        message = convert_to_onnx(features_model([part]), opset) if model is None else model
        onnx.compose.add_prefix(message, prefix, inplace=True)
        pixels = Tensor(INPUT, (None, *part.source.input_size_px, 3))
        if model is None:
            taken, given = message.graph.input[0].name, message.graph.output[0]
            width = given.type.tensor_type.shape.dim[1].dim_value
            made = [Tensor(given.name, (None, width))]
        else:
            network = image_network(part.source)
            pixels, taken = network.from_pixels(pixels, on), prefix + network.file.input
        on.add("Identity", pixels.shape, pixels, output=taken)
        nodes += [*on.nodes, *message.graph.node]
        on.nodes.clear()
        if model is not None:
            made = _vectors(part, prefix, on)
            ends += on.nodes
            on.nodes.clear()
        vectors += made
        graphs.append(message.graph)
    x = on.joined(vectors) if len(vectors) > 1 else vectors[0]
    probabilities = head_behind(x, steps, on)
    on.add("Identity", probabilities.shape, probabilities, output=output)
    needed, used = _needed([*nodes, *ends, *on.nodes], output)
    stored = [given for graph in graphs for given in graph.initializer]
    weights = [given for given in (*stored, *on.constants) if given.name in used]
    size_px = parts[0].source.input_size_px
    pixels_info, answer = (
        onnx.helper.make_tensor_value_info(name, dtype, ["batch", *shape[1:]])
        for name, dtype, shape in (
            (INPUT, onnx.TensorProto.UINT8, (None, *size_px, 3)),
            (output, onnx.TensorProto.FLOAT, probabilities.shape),
        )
    )
    whole = onnx.helper.make_graph(needed, "featx", [pixels_info], [answer], weights)
    sparse = [given for graph in graphs for given in graph.sparse_initializer]
    whole.sparse_initializer.extend(given for given in sparse if given.values.name in used)
    joined: Native = next(model for model in read if model is not None)
    joined.graph.CopyFrom(whole)
    del joined.metadata_props[:]  # of the network's own input
    return joined


def _read(source: BackboneSource) -> Native:
    import onnx

    with readable(image_network(source).file.path) as file:
        return onnx.load(file)


def _common_opset(parts: Sequence[Part], models: Sequence[Native | None]) -> int:
    """Return the opset that networks of files share; `ExportError` where they do not, or it is old.

    Keras writes any.
    """
    opsets: dict[int, str] = {}
    for part, model in zip(parts, models, strict=True):
        if model is not None:
            versions = (given.version for given in model.opset_import if not given.domain)
            opsets.setdefault(max(versions, default=1), str(part.source.weights.path))
    opset = min(opsets)
    if opset < _LEAST_OPSET:
        raise ExportError(
            f"{opsets[opset]} is of ONNX opset {opset}, expected {_LEAST_OPSET} or later: "
            "export the network again, with opset 17, or the model to --format openvino"
        )
    if len(opsets) > 1:
        stated = " and ".join(f"{path} of {number}" for number, path in opsets.items())
        raise ExportError(
            f"the networks are of different ONNX opsets, {stated}: export them again with one, or "
            "the model to --format openvino"
        )
    return opset


def _vectors(part: Part, prefix: str, on: OnnxArithmetic) -> list[Tensor]:
    """Return the vectors that taps make of tensors of a network."""
    openvino, network = load_openvino(), image_network(part.source)
    vectors = []
    for tap in map(parse_tap, part.taps):
        name = network.tensor(tap)
        read = read_network(openvino, openvino.Core(), part.source)
        extents = tensor_extents(openvino, read, network, name)
        vectors.append(network.vector(Tensor(prefix + name, extents), name, tap, on))
    return vectors


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
