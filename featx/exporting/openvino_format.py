"""OpenVINO's two files: the graph as ``.xml``, the weights as ``.bin`` beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.engines.openvino_conversion import load_openvino
from featx.exporting.conversion import Opened, conversion_errors
from featx.exporting.graph import OUTPUT
from featx.quiet import quiet_import


def write_openvino(network: Any, path: Path, *, classes: Sequence[Any], **_: Any) -> None:
    """Write ``.xml`` and ``.bin``; class names are JSON under ``featx/classes`` in the former."""
    openvino = load_openvino()
    with conversion_errors("OpenVINO"):
        import keras
        from openvino.tools.ovc import convert_model

        named = keras.Model(network.inputs, {OUTPUT: network.outputs[0]})
        model = convert_model(named, share_weights=False)
        model.set_rt_info(json.dumps(list(classes)), ["featx", "classes"])
        # By default it would halve the weights' precision.
        openvino.save_model(model, str(path), compress_to_fp16=False)


def run_openvino(path: Path) -> Opened:
    """Open OpenVINO's files on the processor, in single precision."""
    openvino = load_openvino()
    with quiet_import():
        core = openvino.Core()
        # Processors with bfloat16 use it unasked.
        model = core.read_model(str(path))
        compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.array(compiled([pixels])[OUTPUT], np.float32)

    place = ["featx", "classes"]
    classes = json.loads(model.get_rt_info(place).astype(str)) if model.has_rt_info(place) else None
    return Opened(run, f"OpenVINO {openvino.__version__.split('-')[0]}", classes)
