"""An ONNX network as a model of OpenVINO: uint8 RGB pixels in, one vector a tap out."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from featx.backbones.onnx_file import Layout, OnnxFile, read_onnx
from featx.backbones.preprocessing import Preprocessing, find_preprocessing
from featx.backbones.source import BackboneSource
from featx.backbones.taps import Tap, parse_tap, pool
from featx.exceptions import BackboneError, EngineError, FeatxError, UnknownNameError, reason

Native: TypeAlias = Any
"""A model, a node or an output of OpenVINO, which has no types."""

_TO_LAST, _TO_FIRST = [0, 2, 3, 1], [0, 3, 1, 2]


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

    def converted(self, x: Native, dtype: str) -> Native:
        """Return a tensor in another number type."""
        return self.ops.convert(x, {"float32": "f32", "float16": "f16"}[dtype]).output(0)

    def network_input(self, pixels: Native, rule: Preprocessing) -> Native:
        """Return pixels (n, h, w, 3), 0 to 255 RGB, as the network wants them, in float32."""
        x = self.converted(pixels, "float32")
        if rule.bgr:
            x = self.ops.gather(x, [2, 1, 0], 3).output(0)
        scale, offset = np.array(rule.scale, np.float32), np.array(rule.offset, np.float32)
        return self.ops.add(self.ops.multiply(x, scale), offset).output(0)

    def _number(self, value: float) -> Native:
        return self.ops.constant(np.float32(value))


def read_network(openvino: Native, core: Native, source: BackboneSource) -> Native:
    """Return the model of a file as OpenVINO reads it."""
    path = source.weights.path
    try:
        return core.read_model(path)
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
    assert source.weights.path is not None
    file, on = read_onnx(source.weights.path), OpenVinoArithmetic(openvino)
    _, rule = find_preprocessing(source.preprocessing)
    layout: Layout = file.layout or ("nchw" if rule.layout == "nchw" else "nhwc")
    height, width = source.input_size_px
    if file.size_px(layout) not in (None, (height, width)):
        raise BackboneError(
            f"{file.path} takes inputs of {file.size_px(layout)} px, received {(height, width)}: "
            "leave --input-size (input_size=...) out"
        )
    size = [3, height, width] if layout == "nchw" else [height, width, 3]
    try:
        model.reshape(openvino.PartialShape([-1, *size]))
        vectors = [_vector(on, model, file, layout, parse_tap(tap)) for tap in taps]
        pixels = on.ops.parameter([-1, height, width, 3], openvino.Type.u8, name="pixels")
        x = pixels.output(0)
        if file.dtype != "uint8":
            x = on.converted(on.network_input(x, rule), file.dtype)
        x = on.transposed(x, _TO_FIRST) if layout == "nchw" else x
        (parameter,) = model.get_parameters()
        parameter.output(0).replace(x)
        results = [on.ops.result(vector) for vector in vectors]
        for result, name in zip(results, names, strict=True):
            result.output(0).get_tensor().set_names({name})
        return openvino.Model(results, [pixels], "featx")
    except FeatxError:
        raise
    except Exception as error:  # OpenVINO raises RuntimeError, and what its parsers raise
        raise EngineError(
            f"{file.path} cannot be applied to inputs of {height}x{width} px: {reason(error)}. "
            "Give the size that it takes with --input-size (input_size=...)"
        ) from error


def _vector(
    on: OpenVinoArithmetic, model: Native, file: OnnxFile, layout: Layout, tap: Tap
) -> Native:
    """Return the vector of a tap."""
    name = _place(file, tap)
    if name in file.outputs:
        tensor = model.output(name).get_node().input_value(0)
    else:
        tensor = _tensors(model).get(name)
        if tensor is None:
            raise UnknownNameError(
                f"output or tensor of {file.path.name}", name, [*file.outputs, *_tensors(model)]
            )
    tensor = on.converted(tensor, "float32")
    if len(on.shape(tensor)) == 4 and file.layout_of(name, layout) == "nchw":
        tensor = on.transposed(tensor, _TO_LAST)
    return pool(tensor, tap, on)


def _place(file: OnnxFile, tap: Tap) -> str:
    """Return the name of the tensor that a tap means."""
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


def _tensors(model: Native) -> dict[str, Native]:
    """Return what each operator gives, by its name in the file."""
    return {
        name: output
        for operator in model.get_ordered_ops()
        for output in operator.outputs()
        for name in sorted(output.get_names())
    }
