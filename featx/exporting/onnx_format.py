"""ONNX, by way of TensorFlow and tf2onnx."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import MissingExtraError
from featx.exporting.conversion import Opened, conversion_errors
from featx.exporting.graph import INPUT, OUTPUT
from featx.exporting.tensorflow_formats import serving_function
from featx.quiet import quiet_import

_OPSET = 17
_PURPOSE = "exporting to ONNX"


def require_onnx() -> None:
    """Raise `MissingExtraError` where the extra ``onnx`` is not installed."""
    from importlib.util import find_spec

    for package in ("onnx", "tf2onnx", "onnxruntime"):
        if find_spec(package) is None:
            raise MissingExtraError(package, extra="onnx", purpose=_PURPOSE)


def write_onnx(network: Any, path: Path, *, classes: Sequence[Any], **_: Any) -> None:
    """Write an ONNX file (opset 17) whose metadata has the class names, as JSON under `classes`."""
    require_onnx()
    with conversion_errors("ONNX"):
        import onnx

        _patch_converter()
        import tf2onnx

        for name in ("tf2onnx", "tf2onnx.tfonnx", "tf2onnx.optimizer"):
            logging.getLogger(name).setLevel(logging.ERROR)
        serve = serving_function(network)
        model, _ = tf2onnx.convert.from_function(serve, list(serve.input_signature), opset=_OPSET)
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_param = "batch"
        onnx.helper.set_model_props(model, {"classes": json.dumps(list(classes))})
        onnx.checker.check_model(model)
        onnx.save_model(model, str(path))


def _patch_converter() -> None:
    # tf2onnx 1.17 does not know NumPy 2; Keras has the remedy and applies it in its own export.
    from keras.src.export.tf2onnx_lib import patch_tf2onnx

    patch_tf2onnx()


def run_onnx(path: Path) -> Opened:
    """Open an ONNX file in ONNX Runtime."""
    require_onnx()
    with quiet_import():
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.asarray(session.run([OUTPUT], {INPUT: pixels})[0], np.float32)

    inside = session.get_modelmeta().custom_metadata_map.get("classes")
    classes = None if inside is None else json.loads(inside)
    return Opened(run, f"ONNX Runtime {onnxruntime.__version__}", classes)
