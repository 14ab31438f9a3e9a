"""What a SavedModel says of itself, read from its file without TensorFlow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from featx.backbones.own_rescaling import PixelRange, range_of_graph
from featx.exceptions import BackboneError, reason

CALL = "__call__"
"""The function of a module that is called by itself, as those of TensorFlow Hub are."""

_FILE = "saved_model.pb"
_PREFERRED = ("default", "serving_default", "serve")
_OWN_SIGNATURE = "__saved_model_"
_DTYPES = {1: "float32", 4: "uint8"}
# What is read of TensorFlow's messages (saved_model.proto, meta_graph.proto, graph.proto,
# saved_object_graph.proto, struct.proto): by message its fields with number, type and whether there
# are several. A map is a list of entries.
_MESSAGES: dict[str, dict[str, tuple[int, str, bool]]] = {
    "SavedModel": {"meta_graphs": (2, "MetaGraph", True)},
    "MetaGraph": {
        "graph": (2, "Graph", False),
        "signatures": (5, "SignatureEntry", True),
        "objects": (7, "Objects", False),
    },
    "SignatureEntry": {"key": (1, "string", False), "value": (2, "Signature", False)},
    "Signature": {"inputs": (1, "InputEntry", True)},
    "InputEntry": {"key": (1, "string", False), "value": (2, "TensorInfo", False)},
    "TensorInfo": {
        "name": (1, "string", False),
        "dtype": (2, "int64", False),
        "shape": (3, "Shape", False),
    },
    "Shape": {"dim": (2, "Dim", True), "unknown_rank": (3, "bool", False)},
    "Dim": {"size": (1, "int64", False)},
    "Objects": {"nodes": (1, "Node", True), "functions": (2, "FunctionEntry", True)},
    "Node": {
        "children": (1, "Child", True),
        "function": (6, "Function", False),
        "constant": (9, "Constant", False),
    },
    "Constant": {"operation": (1, "string", False)},
    "Child": {"node_id": (1, "int64", False), "local_name": (2, "string", False)},
    "Function": {"concrete_functions": (1, "string", True)},
    "FunctionEntry": {"key": (1, "string", False), "value": (2, "Concrete", False)},
    "Concrete": {"bound": (2, "int64", True), "inputs": (3, "Value", False)},
    "Value": {
        "tensor": (33, "TensorSpec", False),
        "list_value": (51, "Values", False),
        "tuple_value": (52, "Values", False),
        "dict_value": (53, "Fields", False),
    },
    "TensorSpec": {"shape": (2, "Shape", False), "dtype": (3, "int64", False)},
    "Values": {"values": (1, "Value", True)},
    "Fields": {"fields": (1, "Field", True)},
    "Field": {"key": (1, "string", False), "value": (2, "Value", False)},
    "Graph": {"nodes": (1, "Operation", True), "library": (2, "Library", False)},
    "Library": {"functions": (1, "GraphFunction", True)},
    "GraphFunction": {
        "signature": (1, "Declaration", False),
        "nodes": (3, "Operation", True),
        "results": (4, "ResultEntry", True),
    },
    "Declaration": {"name": (1, "string", False), "inputs": (2, "Argument", True)},
    "Argument": {"name": (1, "string", False)},
    "ResultEntry": {"key": (1, "string", False), "value": (2, "string", False)},
    "Operation": {
        "name": (1, "string", False),
        "op": (2, "string", False),
        "inputs": (3, "string", True),
        "attributes": (5, "AttributeEntry", True),
    },
    "AttributeEntry": {"key": (1, "string", False), "value": (2, "Attribute", False)},
    "Attribute": {"tensor": (8, "Tensor", False), "func": (10, "FunctionName", False)},
    "FunctionName": {"name": (1, "string", False)},
    "Tensor": {
        "dtype": (1, "int64", False),
        "shape": (2, "Shape", False),
        "content": (4, "bytes", False),
        "float_val": (5, "float", True),
        "double_val": (6, "double", True),
        "int_val": (7, "int32", True),
    },
}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The function of a SavedModel that maps images to features.

    Parameters
    ----------
    name : str
        `CALL`, or the name of a signature.
    input_size_px : tuple of two int or None
        Height and width, where they are fixed.
    dtype : {"float32", "uint8"}
        Type of the pixels.
    pixels : {"0..255", "0..1", ""}
        Which pixels it takes, as far as its graph tells.
    """

    name: str
    input_size_px: tuple[int, int] | None
    dtype: str
    pixels: PixelRange = ""

    @property
    def preprocessing(self) -> str:
        """Pixels from 0 to 1, the convention of TensorFlow Hub, unless it takes 0 to 255."""
        return "none" if self.dtype == "uint8" or self.pixels == "0..255" else "unit"


def read_endpoint(folder: Path) -> Endpoint:
    """Find the function that maps images to features: ``__call__``, else a signature.

    Of signatures ``default``, ``serving_default`` and ``serve`` come first. Nothing in the folder
    is run.

    Raises
    ------
    BackboneError
        If this is no SavedModel, a damaged one, or one without such a function.
    """
    graph = _graph(folder / _FILE)
    offered = [*_called(graph.objects), *_signatures(graph)]
    for name, specs, entry, constants in offered:
        if len(specs) == 1 and specs[0].takes_images:
            pixels = range_of_graph(graph.graph, entry, constants)
            return Endpoint(name, specs[0].size_px, _DTYPES[specs[0].dtype], pixels)
    found = "; ".join(
        f"{name} takes {', '.join(map(str, specs))}" for name, specs, *_ in offered[:5]
    )
    raise BackboneError(
        f"the SavedModel {folder} has no function from images to features: expected one input of "
        f"shape (n, h, w, 3), float32 or uint8, received {found or 'no function at all'}. Save it "
        "with such a __call__ or signature, or a Keras model with model.export"
    )


@dataclass(frozen=True, slots=True)
class _Spec:
    shape: tuple[int, ...] | None
    dtype: int

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


def _spec(shape: Any, dtype: int) -> _Spec:
    return _Spec(None if shape.unknown_rank else tuple(int(d.size) for d in shape.dim), int(dtype))


_Offer = tuple[str, list[_Spec], str, list[str] | None]
"""A function by its public name: its inputs, and what `range_of_graph` takes."""


def _signatures(graph: Any) -> list[_Offer]:
    """Return the signatures, those that are usual first."""
    found: dict[str, _Offer] = {}
    for entry in graph.signatures:
        if not entry.key.startswith(_OWN_SIGNATURE):
            inputs = [one.value for one in entry.value.inputs]
            specs = [_spec(one.shape, one.dtype) for one in inputs]
            found[entry.key] = entry.key, specs, inputs[0].name if inputs else "", None
    order = [name for name in _PREFERRED if name in found]
    return [found[name] for name in (*order, *sorted(set(found) - set(order)))]


def _called(objects: Any) -> Iterator[_Offer]:
    """Yield every function behind ``__call__``; one may be saved for each use."""
    if not objects.nodes:
        return
    by_name = {entry.key: entry.value for entry in objects.functions}
    for child in objects.nodes[0].children:
        if child.local_name == CALL and 0 <= child.node_id < len(objects.nodes):
            for name in objects.nodes[child.node_id].function.concrete_functions:
                if name in by_name:
                    bound = [
                        objects.nodes[one].constant.operation
                        for one in by_name[name].bound
                        if 0 <= one < len(objects.nodes)
                    ]
                    yield CALL, list(_tensors(by_name[name].inputs)), name, bound


def _tensors(value: Any) -> Iterator[_Spec]:
    if value.HasField("tensor"):
        yield _spec(value.tensor.shape, value.tensor.dtype)
    for one in (*value.list_value.values, *value.tuple_value.values):
        yield from _tensors(one)
    for field in value.dict_value.fields:
        yield from _tensors(field.value)


def _graph(file: Path) -> Any:
    from google.protobuf.message import DecodeError

    try:
        graphs = _message("SavedModel").FromString(file.read_bytes()).meta_graphs
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


@cache
def _message(name: str) -> Any:
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="featx_saved_model.proto", syntax="proto3")
    file.package = "featx_saved_model"
    field_types = descriptor_pb2.FieldDescriptorProto
    for message, fields in _MESSAGES.items():
        described = file.message_type.add(name=message)
        for field, (number, kind, several) in fields.items():
            added = described.field.add(name=field, number=number)
            added.label = field_types.LABEL_REPEATED if several else field_types.LABEL_OPTIONAL
            if kind in _MESSAGES:
                added.type, added.type_name = field_types.TYPE_MESSAGE, f".{file.package}.{kind}"
            else:
                added.type = getattr(field_types, f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found = pool.FindMessageTypeByName(f"{file.package}.{name}")
    return message_factory.GetMessageClass(found)
