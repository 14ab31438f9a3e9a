"""ONNX networks: what a file says of itself; nothing is run, and the onnx package not needed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Literal

from featx.backbones.preprocessing import find_preprocessing, named_preprocessing
from featx.backbones.weights import file_sha256, is_tuned_file, readable
from featx.exceptions import BackboneError, FeatxError, reason
from featx.files.messages import Message, message_class

Layout = Literal["nchw", "nhwc", ""]
"""Whether channels come first or last; empty where it is not known."""

# What is read of onnx.proto. Weights in the file are no part of it.
_SCHEMA = """
Model: 1 version int64, 7 graph Graph, 14 metadata Entry*, 25 functions Function*
Function: 10 domain string
Entry: 1 key string, 2 value string
Graph: 1 nodes Node*, 5 weights Tensor*, 11 inputs Value*, 12 outputs Value*
Node: 1 inputs string*, 2 outputs string*, 4 op string, 5 attributes Attribute*, 7 domain string
Attribute: 1 name string, 5 tensor Tensor, 6 graph Graph, 8 ints int64*, 11 graphs Graph*
Tensor: 8 name string, 13 external Entry*, 14 location int32
Value: 1 name string, 2 type Type
Type: 1 tensor TensorType
TensorType: 1 dtype int32, 2 shape Shape
Shape: 1 dims Dim*
Dim: 1 size int64, 2 name string
"""
_DTYPES = {1: "float32", 2: "uint8", 10: "float16"}
_EXTERNAL = 1
_DOMAINS = {"", "ai.onnx", "ai.onnx.ml", "com.microsoft"}
# Operators of ONNX whose maps have their channels first, always.
_CHANNELS_FIRST = {
    "Conv", "ConvTranspose", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool",
    "BatchNormalization", "InstanceNormalization", "LRN", "DepthToSpace", "SpaceToDepth",
}  # fmt: skip
_TRANSPOSED: dict[tuple[int, ...], Layout] = {(0, 2, 3, 1): "nhwc", (0, 3, 1, 2): "nchw"}
_SHOWN = 5
_RESCALE = 1 / 255


@dataclass(frozen=True, slots=True, eq=False)
class OnnxFile:
    """An ONNX network from images to features."""

    path: Path
    input: str  # name of the input
    dtype: str  # of the input: float32, float16 or uint8
    extents: tuple[int | None, ...]  # of the input without the batch, None where it is open
    outputs: dict[str, int | None]  # number of axes by name
    metadata: dict[str, str]
    beside: tuple[Path, ...]  # files that hold weights too
    graph: Message

    @property
    def layout(self) -> Layout:
        """Where the channels of the input are, as its shape tells."""
        first, last = self.extents[0] == 3, self.extents[2] == 3
        return "" if first == last else "nchw" if first else "nhwc"

    def size_px(self, layout: str) -> tuple[int, int] | None:
        """Return height and width of the input, None where they are open."""
        height, width = self.extents[1:] if layout == "nchw" else self.extents[:2]
        return (height, width) if height and width else None

    def layout_of(self, tensor: str, otherwise: Layout) -> Layout:
        """Return where the channels of a map are, by the operator that it comes from."""
        makers = {name: node for node in self.graph.nodes for name in node.outputs}
        for _ in range(len(makers)):
            node = makers.get(tensor)
            if node is None or not node.inputs:
                break
            if node.op in _CHANNELS_FIRST:
                return "nchw"
            if node.op == "Transpose":
                axes = next((a.ints for a in node.attributes if a.name == "perm"), ())
                return _TRANSPOSED.get(tuple(axes), otherwise)
            tensor = node.inputs[0]
        return otherwise


def read_onnx(path: Path) -> OnnxFile:
    """Read a network; `BackboneError` says why it is none that maps images to features."""
    model = _message(path)
    graph = model.graph
    known = _DOMAINS | {function.domain for function in model.functions}
    custom = sorted({node.op for g in _graphs(graph) for node in g.nodes
                     if node.domain not in known})  # fmt: skip
    if custom:
        raise BackboneError(
            f"{path} has operators that are not ONNX's own: {_some(custom)}. featx runs no code of "
            "others: export the network with standard operators"
        )
    weights = {weight.name for weight in graph.weights}
    inputs = [value for value in graph.inputs if value.name not in weights]
    if len(inputs) != 1:
        names = _some(value.name for value in inputs)
        raise BackboneError(
            f"{path} has {len(inputs)} inputs ({names}); expected one, images of shape "
            "(n, 3, h, w) or (n, h, w, 3): export the part that sees images, such as the image "
            "tower of CLIP"
        )
    (image,) = inputs
    tensor = image.type.tensor
    batch, *extents = [dim.size or None for dim in tensor.shape.dims] or [None]
    shown = ", ".join("?" if extent is None else str(extent) for extent in extents)
    if tensor.dtype not in _DTYPES or len(extents) != 3:
        raise BackboneError(
            f"{path} takes {image.name!r} of shape (n, {shown}) and ONNX type {tensor.dtype}: "
            "expected images of shape (n, 3, h, w) or (n, h, w, 3), in float32, float16 or uint8"
        )
    if batch is not None:
        raise BackboneError(
            f"{path} takes batches of {batch} only: expected any number of images. Export it with "
            "a dynamic first axis (dynamic_axes, or dynamic_shapes, of torch.onnx.export)"
        )
    if 3 not in extents and None not in extents:
        raise BackboneError(
            f"{path} takes images of shape (n, {shown}): expected 3 channels, (n, 3, h, w) or "
            "(n, h, w, 3)"
        )
    outputs = {
        value.name: len(value.type.tensor.shape.dims) or None
        for value in graph.outputs
    }  # fmt: skip
    metadata = {entry.key: entry.value for entry in model.metadata}
    beside = tuple(_weights_beside(path, graph))
    dtype = _DTYPES[tensor.dtype]
    return OnnxFile(path, image.name, dtype, tuple(extents), outputs, metadata, beside, graph)


def _message(path: Path) -> Message:
    from google.protobuf.message import DecodeError

    try:
        model = _parsed(path, file_sha256(path))
    except (OSError, DecodeError) as error:
        raise BackboneError(
            f"{path} cannot be read as an ONNX network ({reason(error)}): it is none, or damaged"
        ) from error
    if not model.version or not model.graph.nodes:
        raise BackboneError(f"{path} is no ONNX network: expected a graph, received none")
    return model


@lru_cache(maxsize=1)
def _parsed(path: Path, sha256: str) -> Message:
    """Parse a file once for all that asks about it, and let go of the weights in it."""
    with readable(path) as file:
        data = file.read_bytes()
    model = message_class("featx_onnx", _SCHEMA, "Model").FromString(data)
    model.DiscardUnknownFields()
    return model


def _graphs(graph: Message) -> Iterator[Message]:
    """Yield a graph and those in its conditions and loops."""
    waiting = [graph]
    while waiting:
        graph = waiting.pop()
        yield graph
        for node in graph.nodes:
            for attribute in node.attributes:
                waiting += [*attribute.graphs]
                if attribute.HasField("graph"):
                    waiting.append(attribute.graph)


def _weights_beside(path: Path, graph: Message) -> Iterator[Path]:
    """Yield the files that weights are in, each once: of the network's own folder only."""
    names = set()
    for each in _graphs(graph):
        constants = [a.tensor for node in each.nodes for a in node.attributes]
        for tensor in [*each.weights, *constants]:
            if tensor.location == _EXTERNAL:
                names |= {entry.value for entry in tensor.external if entry.key == "location"}
    folder = path.parent.resolve()
    for name in sorted(names):
        place = PurePosixPath(name.replace("\\", "/"))
        file = path.parent / place
        if place.is_absolute() or ".." in place.parts or not file.resolve().is_relative_to(folder):
            raise BackboneError(
                f"{path} looks for weights in {name!r}: expected a file in its own folder. Save it "
                "again with its weights inside, or beside it"
            )
        if is_tuned_file(path) or not file.is_file():
            raise BackboneError(
                f"{path} has its weights in {name!r}, which is not beside it: copy it from where "
                "the network was"
            )
        yield file


def stated_preprocessing(file: OnnxFile) -> tuple[str, str]:
    """Return the preprocessing of a network and what states it, empty where nothing does.

    Looked for in the metadata of the file, then in a JSON file of its name, then in the
    ``preprocessor_config.json`` of Hugging Face beside it or one folder above.
    """
    if file.dtype == "uint8":
        return "none", "it takes whole numbers"
    if text := _own_statement(file.metadata):
        return text, "its metadata states it"
    folder = file.path.parent
    named = file.path.with_suffix(".json")
    for place in (named, folder / "preprocessor_config.json",
                  folder.parent / "preprocessor_config.json"):  # fmt: skip
        if place.is_file():
            stated = _json(place)
            text = _own_statement(stated) if place == named else _of_hugging_face(stated)
            if text:
                return text, f"{place.name} states it"
    return "", ""


def _own_statement(stated: Mapping[str, object]) -> str:
    """Read ``preprocessing``, or ``mean`` and ``std`` with ``color`` and ``layout``."""
    text = stated.get("preprocessing")
    if isinstance(text, str) and text:
        return find_preprocessing(text)[0]
    parts = []
    for name in ("mean", "std"):
        value = stated.get(name)
        if isinstance(value, list | tuple):
            value = ",".join(map(str, value))
        if value is not None:
            parts.append(f"{name}={str(value).strip('[]() ').replace(' ', '')}")
    words = {str(stated.get(name, "")).lower() for name in ("color", "colour", "layout")}
    parts += sorted(words & {"rgb", "bgr", "nchw", "nhwc"})
    return find_preprocessing("/".join(parts))[0] if parts else ""


def _of_hugging_face(stated: Mapping[str, object]) -> str:
    """Read the image processor of a model of Hugging Face."""
    with suppress(TypeError, ValueError, ZeroDivisionError, FeatxError):
        factor = 1.0
        if stated.get("do_rescale", True):
            factor = float(str(stated.get("rescale_factor", _RESCALE)))
        mean, std = [0.0] * 3, [1.0] * 3
        if stated.get("do_normalize", True):
            mean, std = (
                [float(value) for value in _list(stated.get(name))]
                for name in ("image_mean", "image_std")
            )
        return named_preprocessing([m / factor for m in mean], [s / factor for s in std])[0]
    return ""


def _list(value: object) -> list[float]:
    if not isinstance(value, list) or len(value) != 3:
        raise ValueError
    return value


def _json(path: Path) -> Mapping[str, object]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BackboneError(
            f"{path} cannot be read ({reason(error)}): mend or remove it"
        ) from error
    return value if isinstance(value, dict) else {}


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return ", ".join(listed[:_SHOWN]) + more
