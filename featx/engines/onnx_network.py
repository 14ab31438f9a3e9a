"""An ONNX network as a model of OpenVINO: uint8 RGB pixels in, one vector a tap out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from featx.backbones.networks import Size
from featx.backbones.onnx_file import Layout, OnnxFile, read_onnx
from featx.backbones.preprocessing import Preprocessing, find_preprocessing
from featx.backbones.source import BackboneSource
from featx.backbones.taps import Arithmetic, Tap, parse_tap, pool
from featx.backbones.weights import readable
from featx.exceptions import BackboneError, EngineError, FeatxError, UnknownNameError, reason

Native: TypeAlias = Any
"""A model, a node or an output of OpenVINO, which has no types."""

Floats: TypeAlias = NDArray[np.float32]

_TO_LAST, _TO_FIRST = [0, 2, 3, 1], [0, 3, 1, 2]
_NO_LENGTH = 1e-30


class GraphArithmetic(Arithmetic, Protocol):
    """What stands in front of and behind a network computes with this."""

    def transposed(self, x: Native, axes: list[int]) -> Native:
        """Return a tensor with its axes in another order."""

    def reversed(self, x: Native, axis: int) -> Native:
        """Return a tensor with its three channels the other way round."""

    def converted(self, x: Native, dtype: str) -> Native:
        """Return a tensor in another number type."""

    def affine(self, x: Native, factor: Floats, offset: Floats) -> Native:
        """Return ``x * factor + offset``, numbers of the last axis."""

    def product(self, x: Native, kernel: Floats) -> Native:
        """Return ``x @ kernel``."""

    def unit_length(self, x: Native) -> Native:
        """Return vectors divided by their Euclidean length."""

    def sigmoid(self, x: Native) -> Native:
        """Return the probability of every logit."""

    def softmax(self, x: Native) -> Native:
        """Return the probabilities of logits that exclude one another."""


class OpenVinoArithmetic:
    """Arithmetic on outputs of OpenVINO's nodes."""

    def __init__(self, openvino: Native) -> None:
        self.ops = openvino.opset13

    def shape(self, x: Native) -> tuple[int | None, ...]:
        """Return the extents of a tensor, None where they are open."""
        shape = x.get_partial_shape()
        if shape.rank.is_dynamic:
            return ()
        return tuple(None if extent.is_dynamic else extent.get_length() for extent in shape)

    def mean(self, x: Native, axes: tuple[int, ...]) -> Native:
        """Return the mean over axes."""
        return self.ops.reduce_mean(x, list(axes), keep_dims=False).output(0)

    def largest(self, x: Native, axes: tuple[int, ...]) -> Native:
        """Return the maximum over axes."""
        return self.ops.reduce_max(x, list(axes), keep_dims=False).output(0)

    def power(self, x: Native, exponent: float) -> Native:
        """Return every number to a power."""
        return self.ops.power(x, self._number(exponent)).output(0)

    def at_least(self, x: Native, least: float) -> Native:
        """Return numbers, those below the least one raised to it."""
        return self.ops.maximum(x, self._number(least)).output(0)

    def cut(self, x: Native, axis: int, start: int, stop: int) -> Native:
        """Return a part of a tensor."""
        return self.ops.slice(x, [start], [stop], [1], [axis]).output(0)

    def flat(self, x: Native, width: int) -> Native:
        """Return a tensor of shape (n, width)."""
        return self.ops.reshape(x, [-1, width], special_zero=False).output(0)

    def joined(self, parts: list[Native]) -> Native:
        """Return vectors side by side."""
        return self.ops.concat(parts, -1).output(0)

    def transposed(self, x: Native, axes: list[int]) -> Native:
        """Return a tensor with its axes in another order."""
        return self.ops.transpose(x, axes).output(0)

    def reversed(self, x: Native, axis: int) -> Native:
        """Return a tensor with its three channels the other way round."""
        return self.ops.gather(x, [2, 1, 0], axis).output(0)

    def converted(self, x: Native, dtype: str) -> Native:
        """Return a tensor in another number type."""
        return self.ops.convert(x, {"float32": "f32", "float16": "f16"}[dtype]).output(0)

    def affine(self, x: Native, factor: Floats, offset: Floats) -> Native:
        """Return ``x * factor + offset``, numbers of the last axis."""
        return self.ops.add(self.ops.multiply(x, factor), offset).output(0)

    def product(self, x: Native, kernel: Floats) -> Native:
        """Return ``x @ kernel``."""
        return self.ops.matmul(x, kernel, False, False).output(0)

    def unit_length(self, x: Native) -> Native:
        """Return vectors divided by their Euclidean length."""
        return self.ops.normalize_l2(x, np.array([-1]), _NO_LENGTH, "max").output(0)

    def sigmoid(self, x: Native) -> Native:
        """Return the probability of every logit."""
        return self.ops.sigmoid(x).output(0)

    def softmax(self, x: Native) -> Native:
        """Return the probabilities of logits that exclude one another."""
        return self.ops.softmax(x, -1).output(0)

    def _number(self, value: float) -> Native:
        return self.ops.constant(np.float32(value))


def read_network(openvino: Native, core: Native, source: BackboneSource) -> Native:
    """Return the model of a file as OpenVINO reads it."""
    path = source.weights.path
    assert path is not None
    read_onnx(path)  # refuses what looks for weights elsewhere
    try:
        with readable(path) as file:
            return core.read_model(file)
    except FeatxError:
        raise
    except Exception as error:  # its parsers raise many kinds
        raise EngineError(
            f"OpenVINO {openvino.__version__.split('-')[0]} cannot read {path}: {reason(error)}. "
            "Export it again, with standard operators and a lower opset, such as 17"
        ) from error


def with_taps(
    openvino: Native,
    model: Native,
    source: BackboneSource,
    taps: tuple[str, ...],
    names: tuple[str, ...],
) -> Native:
    """Return a model from uint8 pixels (n, h, w, 3) to float32 vectors (n, d), an output a tap."""
    network, on = image_network(source), OpenVinoArithmetic(openvino)
    path, (height, width) = network.file.path, network.size_px
    try:
        model.reshape(openvino.PartialShape([-1, *network.extents]))
        vectors = []
        for tap in map(parse_tap, taps):
            name = network.tensor(tap)
            vectors.append(network.vector(_tensor(model, network.file, name), name, tap, on))
        pixels = on.ops.parameter([-1, height, width, 3], openvino.Type.u8, name="pixels")
        (parameter,) = model.get_parameters()
        parameter.output(0).replace(network.from_pixels(pixels.output(0), on))
        return model_of(openvino, [pixels], dict(zip(names, vectors, strict=True)))
    except FeatxError:
        raise
    except Exception as error:  # OpenVINO raises RuntimeError, and what its parsers raise
        raise EngineError(
            f"{path} cannot be applied to inputs of {height}x{width} px: {reason(error)}. "
            "Give the size that it takes with --input-size (input_size=...)"
        ) from error


def model_of(openvino: Native, parameters: list[Native], outputs: dict[str, Native]) -> Native:
    """Return a model from parameters to outputs by their names."""
    results = [openvino.opset13.result(output) for output in outputs.values()]
    for result, name in zip(results, outputs, strict=True):
        result.output(0).get_tensor().set_names({name})
    return openvino.Model(results, parameters, "featx")


def tensor_extents(
    openvino: Native, model: Native, network: ImageNetwork, name: str
) -> tuple[int | None, ...]:
    """Return the shape of a tensor where images of the network's size go in."""
    model.reshape(openvino.PartialShape([-1, *network.extents]))
    return OpenVinoArithmetic(openvino).shape(_tensor(model, network.file, name))


def _tensor(model: Native, file: OnnxFile, name: str) -> Native:
    """Return the tensor of a name in the file."""
    if name in file.outputs:
        return model.output(name).get_node().input_value(0)
    every = {
        other: output
        for operator in model.get_ordered_ops()
        for output in operator.outputs()
        for other in sorted(output.get_names())
    }
    if name not in every:
        raise UnknownNameError(
            f"output or tensor of {file.path.name}", name, [*file.outputs, *every]
        )
    return every[name]


@dataclass(frozen=True, slots=True, eq=False)
class ImageNetwork:
    """A network of a file as a source uses it: what goes in front of it and behind it."""

    file: OnnxFile
    rule: Preprocessing
    layout: Layout
    size_px: Size  # height and width

    @property
    def extents(self) -> list[int]:
        """The shape of an image as the network takes it."""
        return [3, *self.size_px] if self.layout == "nchw" else [*self.size_px, 3]

    def from_pixels(self, pixels: Native, on: GraphArithmetic) -> Native:
        """Return uint8 RGB pixels (n, h, w, 3) as the network wants them."""
        x = on.reversed(pixels, 3) if self.rule.bgr else pixels
        if self.file.dtype != "uint8":
            scale, offset = np.array(self.rule.scale), np.array(self.rule.offset)
            x = on.affine(on.converted(x, "float32"), scale.astype("f4"), offset.astype("f4"))
            x = on.converted(x, self.file.dtype) if self.file.dtype != "float32" else x
        return on.transposed(x, _TO_FIRST) if self.layout == "nchw" else x

    def tensor(self, tap: Tap) -> str:
        """Return the name of the tensor that a tap means."""
        file = self.file
        if tap.layer or str(tap) in file.outputs:
            return tap.layer or str(tap)
        maps = [name for name, rank in file.outputs.items() if rank in (3, 4)]
        for names in (list(file.outputs), maps):
            if len(names) == 1:
                return names[0]
        first = next(iter(file.outputs))
        raise BackboneError(
            f"{file.path} has the outputs {', '.join(file.outputs)}: name one of them, as in --tap "
            f"{first}:{tap}"
        )

    def vector(self, x: Native, name: str, tap: Tap, on: GraphArithmetic) -> Native:
        """Return the vectors that a tap makes of a tensor, in float32."""
        x = on.converted(x, "float32")
        if len(on.shape(x)) == 4 and self.file.layout_of(name, self.layout) == "nchw":
            x = on.transposed(x, _TO_LAST)
        return pool(x, tap, on)


def image_network(source: BackboneSource) -> ImageNetwork:
    """Return the network of a source; `BackboneError` where its input is not what is asked for."""
    assert source.weights.path is not None
    file, (_, rule) = read_onnx(source.weights.path), find_preprocessing(source.preprocessing)
    layout: Layout = file.layout or ("nchw" if rule.layout == "nchw" else "nhwc")
    if file.size_px(layout) not in (None, source.input_size_px):
        raise BackboneError(
            f"{file.path} takes inputs of {file.size_px(layout)} px, received "
            f"{source.input_size_px}: leave --input-size (input_size=...) out"
        )
    if file.dtype == "uint8" and (rule.scale, rule.offset) != ((1.0,) * 3, (0.0,) * 3):
        raise BackboneError(
            f"{file.path} takes whole numbers from 0 to 255, received the preprocessing "
            f"{source.preprocessing!r}: leave --preprocessing (preprocessing=...) out"
        )
    return ImageNetwork(file, rule, layout, source.input_size_px)
