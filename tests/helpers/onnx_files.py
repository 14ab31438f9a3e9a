"""ONNX files as tests need them, written without the onnx package."""

from __future__ import annotations

import numpy as np

from featx.files.messages import message_class

# As in onnx.proto, as far as these tests write it.
SCHEMA = """
Model: 1 ir_version int64, 7 graph Graph, 8 opset_import Opset*, 14 metadata_props Entry*
Opset: 1 domain string, 2 version int64
Entry: 1 key string, 2 value string
Graph: 1 node Node*, 2 name string, 5 initializer Tensor*, 11 input Value*, 12 output Value*
Node: 1 input string*, 2 output string*, 3 name string, 4 op_type string, 5 attribute Attribute*, \
7 domain string
Attribute: 1 name string, 3 i int64, 8 ints int64*, 20 type int32
Tensor: 1 dims int64*, 2 data_type int32, 8 name string, 9 raw_data bytes, \
13 external_data Entry*, 14 data_location int32
Value: 1 name string, 2 type Type
Type: 1 tensor_type TensorType
TensorType: 1 elem_type int32, 2 shape Shape
Shape: 1 dim Dim*
Dim: 1 dim_value int64, 2 dim_param string
"""
FLOAT, UINT8, INT64, FLOAT16 = 1, 2, 7, 10
TYPES = {np.dtype(np.float32): FLOAT, np.dtype(np.int64): INT64, np.dtype(np.float16): FLOAT16}
N = "n"


def value(name, dtype, *shape):
    """A named tensor; text in its shape is an open extent."""
    dims = [{"dim_param": e} if isinstance(e, str) else {"dim_value": e} for e in shape]
    return {"name": name, "type": {"tensor_type": {"elem_type": dtype, "shape": {"dim": dims}}}}


def node(op, inputs, output, domain="", **attributes):
    described = [
        {"name": name, "type": 7, "ints": given}
        if isinstance(given, list)
        else {"name": name, "type": 2, "i": given}
        for name, given in attributes.items()
    ]
    return {
        "op_type": op, "input": inputs.split(), "output": [output], "name": output,
        "domain": domain, "attribute": described,
    }  # fmt: skip


def write(path, nodes, inputs, outputs, weights=None, *, metadata=None, external="", opset=17):
    """Write a network; `external` names the file that its weights are in."""
    tensors = []
    for name, array in (weights or {}).items():
        stored = {"name": name, "dims": array.shape, "data_type": TYPES[array.dtype]}
        if external:
            entry = {"key": "location", "value": external}
            stored |= {"data_location": 1, "external_data": [entry]}
            if "/" not in external:
                (path.parent / external).write_bytes(array.tobytes())
        else:
            stored["raw_data"] = array.tobytes()
        tensors.append(stored)
    opsets = [{"version": opset}, {"domain": "mine", "version": 1}]
    metadata_props = [{"key": key, "value": text} for key, text in (metadata or {}).items()]
    graph = {"node": nodes, "name": "g", "initializer": tensors, "input": inputs, "output": outputs}
    model = message_class("featx_test_onnx", SCHEMA, "Model")(
        ir_version=8, graph=graph, opset_import=opsets, metadata_props=metadata_props
    )
    path.write_bytes(model.SerializeToString())
    return path


KERNEL = np.random.default_rng(0).normal(size=(5, 3, 1, 1)).astype(np.float32)
NET = [node("Conv", "image kernel", "conv"), node("Relu", "conv", "map")]
IMAGE = value("image", FLOAT, N, 3, 16, 24)
MAP = value("map", FLOAT, N, 5, 16, 24)


def write_net(path, image=IMAGE, outputs=(MAP,), nodes=NET, weights=None, **more):
    return write(path, nodes, [image], list(outputs), {"kernel": KERNEL, **(weights or {})}, **more)


def write_tokens(path):
    """Write a network that gives a sequence of 384 tokens of 5 numbers."""
    nodes = [
        *NET,
        node("Reshape", "map shape", "columns"),
        node("Transpose", "columns", "tokens", perm=[0, 2, 1]),
    ]
    weights = {"kernel": KERNEL, "shape": np.array([0, 5, 384], np.int64)}
    return write(path, nodes, [IMAGE], [value("tokens", FLOAT, N, 384, 5)], weights)
