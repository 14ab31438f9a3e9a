"""SavedModels: what one says of itself, read without TensorFlow, and one as a Keras network."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from featx.backbones.rescaling import PixelRange, range_of_graph
from featx.exceptions import BackboneError, reason
from featx.files.messages import Message, message_class
from featx.quiet import quiet_import, quiet_loading

if TYPE_CHECKING:
    import keras

DEFAULT_OUTPUT = "default"
"""The output that stands for the network where there are several, as in TensorFlow Hub."""
CALL = "__call__"
"""The function of a module that is called by itself, as those of TensorFlow Hub are."""

_FILE = "saved_model.pb"
_PREFERRED = ("default", "serving_default", "serve")
_OWN_SIGNATURE = "__saved_model_"
_DTYPES = {1: "float32", 4: "uint8"}
# What is read of TensorFlow's messages (saved_model.proto, meta_graph.proto, graph.proto,
# saved_object_graph.proto, struct.proto).
SCHEMA = """
SavedModel: 2 meta_graphs MetaGraph*
MetaGraph: 2 graph Graph, 5 signatures SignatureEntry*, 7 objects Objects
SignatureEntry: 1 key string, 2 value Signature
Signature: 1 inputs InputEntry*
InputEntry: 1 key string, 2 value TensorInfo
TensorInfo: 1 name string, 2 dtype int64, 3 shape Shape
Shape: 2 dim Dim*, 3 unknown_rank bool
Dim: 1 size int64
Objects: 1 nodes Node*, 2 functions FunctionEntry*
Node: 1 children Child*, 6 function Function, 9 constant Constant
Constant: 1 operation string
Child: 1 node_id int64, 2 local_name string
Function: 1 concrete_functions string*
FunctionEntry: 1 key string, 2 value Concrete
Concrete: 2 bound int64*, 3 inputs Value
Value: 33 tensor TensorSpec, 51 list_value Values, 52 tuple_value Values, 53 dict_value Fields
TensorSpec: 2 shape Shape, 3 dtype int64
Values: 1 values Value*
Fields: 1 fields Field*
Field: 1 key string, 2 value Value
Graph: 1 nodes Operation*, 2 library Library
Library: 1 functions GraphFunction*
GraphFunction: 1 signature Declaration, 3 nodes Operation*, 4 results ResultEntry*
Declaration: 1 name string, 2 inputs Argument*
Argument: 1 name string
ResultEntry: 1 key string, 2 value string
Operation: 1 name string, 2 op string, 3 inputs string*, 5 attributes AttributeEntry*
AttributeEntry: 1 key string, 2 value Attribute
Attribute: 8 tensor Tensor, 10 func FunctionName
FunctionName: 1 name string
Tensor: 1 dtype int64, 2 shape Shape, 4 content bytes, 5 float_val float*, 6 double_val double*, \
7 int_val int32*
"""


def graph_message(name: str) -> Message:
    """Return the class of a message of TensorFlow's."""
    return message_class("featx_saved_model", SCHEMA, name)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The function of a SavedModel that maps images to features."""

    name: str  # `CALL`, or the name of a signature
    input_size_px: tuple[int, int] | None  # height and width, where they are fixed
    dtype: str  # of the pixels, float32 or uint8
    pixels: PixelRange = ""  # which pixels it takes, as far as its graph tells


@dataclass(frozen=True, slots=True)
class _Spec:
    """Shape, None for any, and type of an input."""

    shape: tuple[int, ...] | None
    dtype: int

    @classmethod
    def of(cls, shape: Message, dtype: int) -> _Spec:
        return cls(None if shape.unknown_rank else tuple(int(d.size) for d in shape.dim), dtype)

    @property
    def takes_images(self) -> bool:
        if self.dtype not in _DTYPES:
            return False
        if self.shape is None:
            return True
        return len(self.shape) == 4 and self.shape[0] < 0 and self.shape[3] in (-1, 3)

    @property
    def size_px(self) -> tuple[int, int] | None:
        if self.shape is None or min(self.shape[1:3]) < 1:
            return None
        return self.shape[1], self.shape[2]

    def __str__(self) -> str:
        if self.shape is None:
            return "an input of any shape"
        extents = ", ".join("n" if extent < 0 else str(extent) for extent in self.shape)
        return f"({extents}) {_DTYPES.get(self.dtype, 'of another type')}"


Native: TypeAlias = Any
"""What a function of TensorFlow returns: a tensor, or tensors in a list or a mapping."""
# A function by its public name: its inputs, and what `range_of_graph` takes.
_Offer = tuple[str, list[_Spec], str, list[str] | None]


def read_endpoint(folder: Path) -> Endpoint:
    """Return the function from images to features, ``__call__`` or a signature; nothing is run."""
    graph = _read_graph(folder / _FILE)
    offered = [*_called(graph.objects), *_signatures(graph)]
    for name, specs, entry, constants in offered:
        if len(specs) == 1 and specs[0].takes_images:
            pixels = range_of_graph(graph.graph, entry, constants)
            return Endpoint(name, specs[0].size_px, _DTYPES[specs[0].dtype], pixels)
    received = "; ".join(
        f"{name} takes {', '.join(map(str, specs))}" for name, specs, *_ in offered[:5]
    )
    raise BackboneError(
        f"the SavedModel {folder} has no function from images to features: expected one input of "
        f"shape (n, h, w, 3), float32 or uint8, received {received or 'no function at all'}. Save "
        "it with such a __call__ or signature, or a Keras model with model.export"
    )


def _read_graph(file: Path) -> Message:
    from google.protobuf.message import DecodeError

    try:
        graphs = graph_message("SavedModel").FromString(file.read_bytes()).meta_graphs
    except FileNotFoundError as error:
        raise BackboneError(
            f"{file.parent} is no SavedModel: expected a folder with {_FILE}, received one without"
        ) from error
    except (OSError, DecodeError) as error:
        raise BackboneError(
            f"{file} cannot be read ({reason(error)}): it is damaged or cut short; "
            "get the folder again"
        ) from error
    if len(graphs) != 1:
        raise BackboneError(
            f"{file} holds {len(graphs)} graphs; expected one: "
            + ("take the module's version for TensorFlow 2" if graphs else "it is damaged")
        )
    return graphs[0]


def _signatures(graph: Message) -> list[_Offer]:
    """Return the signatures, those that are usual first."""
    offers: dict[str, _Offer] = {}
    for entry in graph.signatures:
        if not entry.key.startswith(_OWN_SIGNATURE):
            inputs = [item.value for item in entry.value.inputs]
            specs = [_Spec.of(tensor.shape, tensor.dtype) for tensor in inputs]
            offers[entry.key] = entry.key, specs, inputs[0].name if inputs else "", None
    order = dict.fromkeys((*_PREFERRED, *sorted(offers)))
    return [offers[name] for name in order if name in offers]


def _called(objects: Message) -> Iterator[_Offer]:
    """Yield every function behind ``__call__``; one may be saved for each use."""
    nodes = objects.nodes
    functions = {entry.key: entry.value for entry in objects.functions}
    for child in nodes[0].children if nodes else ():
        if child.local_name != CALL or not 0 <= child.node_id < len(nodes):
            continue
        for name in nodes[child.node_id].function.concrete_functions:
            if name in functions:
                bound = [i for i in functions[name].bound if 0 <= i < len(nodes)]
                constants = [nodes[i].constant.operation for i in bound]
                yield CALL, list(_tensors(functions[name].inputs)), name, constants


def _tensors(value: Message) -> Iterator[_Spec]:
    if value.HasField("tensor"):
        yield _Spec.of(value.tensor.shape, value.tensor.dtype)
    for item in (*value.list_value.values, *value.tuple_value.values):
        yield from _tensors(item)
    for field in value.dict_value.fields:
        yield from _tensors(field.value)


def load_saved_model(folder: Path, size_px: tuple[int, int], preprocessing: str) -> keras.Model:
    """Return a SavedModel, which runs, as a network with its outputs, ``default`` first."""
    with quiet_import():
        import keras
    if (backend := keras.backend.backend()) != "tensorflow":
        raise BackboneError(
            f"a SavedModel runs in TensorFlow: expected the Keras backend 'tensorflow', received "
            f"{backend!r}; set KERAS_BACKEND=tensorflow"
        )
    endpoint = read_endpoint(folder)
    if endpoint.dtype == "uint8" and preprocessing != "none":
        raise BackboneError(
            f"the SavedModel {folder} takes uint8 pixels from 0 to 255: expected the preprocessing "
            f"'none', received {preprocessing!r}"
        )
    if endpoint.input_size_px not in (None, size_px):
        raise BackboneError(
            f"the SavedModel {folder} takes inputs of {endpoint.input_size_px}, received {size_px}:"
            " leave --input-size out"
        )
    try:
        with quiet_loading():
            layer = keras.layers.TFSMLayer(
                str(folder),
                endpoint.name,
                trainable=False,
                name="featx_savedmodel",
                dtype="float32",
            )
            return _network(layer, endpoint, size_px)
    except Exception as error:  # TensorFlow raises many kinds
        raise BackboneError(
            f"the SavedModel {folder} cannot be loaded and applied to inputs of shape (n, "
            f"{size_px[0]}, {size_px[1]}, 3): {reason(error)}. Is it whole, of this TensorFlow, "
            "and for images of this size (--input-size)?"
        ) from error


def _network(
    layer: keras.layers.Layer, endpoint: Endpoint, size_px: tuple[int, int]
) -> keras.Model:
    import keras

    images = keras.Input((*size_px, 3), name="images")
    dtype = endpoint.dtype
    pixels = images if dtype == "float32" else keras.ops.cast(images, dtype)
    sample = keras.ops.zeros((1, *size_px, 3), dtype)
    if endpoint.name == CALL:
        inferring = partial(layer.call_endpoint_fn, training=False)
        with suppress(TypeError, ValueError):  # it may take no such argument
            inferring(sample)
            layer.call_endpoint_fn = inferring
    # Shapes as they are, since a graph for inputs of any size states none for its outputs.
    shapes = {key: tuple(value.shape[1:]) for key, value in _by_name(layer(sample)).items()}
    outputs = {
        key: keras.layers.Reshape(shapes[key], name=key, dtype=value.dtype)(value)
        for key, value in _by_name(layer(pixels)).items()
    }
    order = sorted(outputs, key=lambda key: (key != DEFAULT_OUTPUT, key))
    return keras.Model(images, [outputs[key] for key in order], name="savedmodel")


def _by_name(outputs: Native) -> dict[str, Native]:
    if isinstance(outputs, Mapping):
        return {re.sub(r"[^\w.-]+", "_", str(key)): value for key, value in outputs.items()}
    if isinstance(outputs, (list, tuple)):
        return {f"output_{number}": value for number, value in enumerate(outputs)}
    return {DEFAULT_OUTPUT: outputs}
