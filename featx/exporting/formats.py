"""The formats: how each is written, and opened again in its own runtime."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.engines.openvino_conversion import load_openvino
from featx.exceptions import ExportError, MissingExtraError, UnknownNameError, reason
from featx.exporting.graph import INPUT, OUTPUT
from featx.quiet import quiet_import


@dataclass(frozen=True, slots=True)
class Opened:
    """An exported file in its own runtime.

    Parameters
    ----------
    run : callable
        Pixels of shape (n, h, w, 3), uint8, to probabilities of shape (n, k), float32.
    runtime : str
        Name and version of what runs it.
    classes : list, optional
        Class names inside the file, where the format has a place for them.
    """

    run: Callable[[NDArray[np.uint8]], NDArray[np.float32]]
    runtime: str
    classes: list[Any] | None = None


@contextmanager
def conversion_errors(what: str) -> Iterator[None]:
    """Raise what a converter raises as an `ExportError`, and keep its chatter off the screen."""
    try:
        with quiet_import(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except ExportError:
        raise
    except Exception as error:  # converters raise many kinds
        raise ExportError(
            f"the model cannot be converted to {what}: {reason(error)}. Export it to another "
            "format, and report the backbone that it has"
        ) from error


def write_keras(network: Any, path: Path, **_: Any) -> None:
    """Write a ``.keras`` file."""
    with conversion_errors("a .keras file"):
        network.save(path)


def run_keras(path: Path) -> Opened:
    """Open a ``.keras`` file in safe mode."""
    with quiet_import():
        import keras

        # A GPU may round to fewer bits than are compared.
        with keras.device("cpu:0"):
            network = keras.models.load_model(path, compile=False, safe_mode=True)

    def run(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        with keras.device("cpu:0"):
            return np.asarray(network.predict_on_batch(pixels), np.float32)

    return Opened(run, f"Keras {keras.__version__}")


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


_SIGNATURE = "serving_default"


def serving_function(network: Any) -> Any:
    """Return a ``tf.function`` with the network's input and output under their names."""
    import tensorflow as tf

    pixels = tf.TensorSpec(network.input_shape, tf.uint8, name=INPUT)

    @tf.function(input_signature=[pixels], autograph=False)  # type: ignore[untyped-decorator, unused-ignore]
    def serve(pixels: Any) -> Any:
        return {OUTPUT: network(pixels, training=False)}

    return serve


def _module(network: Any) -> Any:
    """Return an object that TensorFlow saves with the variables that the function reads."""
    import tensorflow as tf

    module = tf.Module()
    module.variables_of_network = [variable.value for variable in network.variables]
    module.serve = serving_function(network)
    return module


def write_saved_model(network: Any, path: Path, **_: Any) -> None:
    """Write a folder that TensorFlow, TensorFlow Serving and tfjs-converter read."""
    with conversion_errors("SavedModel"):
        import tensorflow as tf

        module = _module(network)
        signatures = {_SIGNATURE: module.serve.get_concrete_function()}
        tf.saved_model.save(module, str(path), signatures=signatures)


def run_saved_model(path: Path) -> Opened:
    """Open a SavedModel in TensorFlow."""
    with quiet_import():
        import tensorflow as tf

        # A GPU may round to fewer bits than are compared.
        with tf.device("cpu:0"):
            loaded = tf.saved_model.load(str(path))
    serve = loaded.signatures[_SIGNATURE]

    def run(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        # The loaded object owns the variables: it has to outlive the function.
        assert loaded is not None
        with tf.device("cpu:0"):
            found = serve(**{INPUT: tf.constant(pixels)})[OUTPUT]
        return np.asarray(found.numpy(), np.float32)

    return Opened(run, f"TensorFlow {tf.__version__}")


def write_tflite(
    network: Any, path: Path, *, calibration: NDArray[np.uint8] | None = None, **_: Any
) -> None:
    """Write a LiteRT file."""
    with conversion_errors("LiteRT"):
        import tensorflow as tf

        module = _module(network)
        concrete = module.serve.get_concrete_function()
        converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], module)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        if calibration is not None:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            converter.representative_dataset = lambda: (
                {INPUT: calibration[row : row + 1]} for row in range(len(calibration))
            )
        path.write_bytes(converter.convert())


def run_tflite(path: Path) -> Opened:
    """Open a LiteRT file in its interpreter."""
    interpreter, runtime = _interpreter(path)
    shape: list[tuple[int, ...]] = []

    def run(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        given = interpreter.get_input_details()[0]["index"]
        if shape != [pixels.shape]:
            with quiet_import():  # it announces its delegate from C++
                interpreter.resize_tensor_input(given, pixels.shape)
                interpreter.allocate_tensors()
            shape[:] = [pixels.shape]
        interpreter.set_tensor(given, pixels)
        interpreter.invoke()
        found = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
        return np.array(found, np.float32)

    return Opened(run, runtime)


def _interpreter(path: Path) -> tuple[Any, str]:
    with quiet_import(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with suppress(ImportError):
            from ai_edge_litert import interpreter as litert

            return litert.Interpreter(model_path=str(path)), "LiteRT (ai-edge-litert)"
        import tensorflow as tf

        return tf.lite.Interpreter(model_path=str(path)), f"LiteRT (TensorFlow {tf.__version__})"


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


@dataclass(frozen=True, slots=True)
class Format:
    """A format to export to.

    Parameters
    ----------
    name : str
        What the user types.
    summary : str
        One line for lists.
    suffix : str
        End of the path; empty for a folder.
    write : callable
        Writes a network to a path; with ``classes`` and ``calibration``.
    open : callable
        Opens what was written in its own runtime.
    beside : str, default ""
        Suffix of a second file that belongs to it.
    int8 : bool, default False
        Whether it can be quantised.
    """

    name: str
    summary: str
    suffix: str
    write: Callable[..., None]
    open: Callable[[Path], Opened]
    beside: str = ""
    int8: bool = False

    def files(self, path: Path) -> list[Path]:
        """Return what an export to a path consists of, the path itself last."""
        return [*([path.with_suffix(self.beside)] if self.beside else []), path]


_ROWS = (
    Format(
        "keras",
        "Keras 3, any backend",
        ".keras",
        write_keras,
        run_keras,
    ),
    Format(
        "savedmodel",
        "TensorFlow and TensorFlow Serving (a folder)",
        "",
        write_saved_model,
        run_saved_model,
    ),
    Format(
        "tflite",
        "LiteRT: phones, browsers, small boards",
        ".tflite",
        write_tflite,
        run_tflite,
        int8=True,
    ),
    Format(
        "onnx",
        "ONNX Runtime, in any language and in browsers",
        ".onnx",
        write_onnx,
        run_onnx,
    ),
    Format(
        "openvino",
        "OpenVINO on CPUs (.xml, and .bin beside it)",
        ".xml",
        write_openvino,
        run_openvino,
        beside=".bin",
    ),
)

FORMATS: dict[str, Format] = {row.name: row for row in _ROWS}
"""Every format by its name."""


def choose_format(name: str | None, path: Path | None) -> Format:
    """Return the format of a name, or that a path's end stands for."""
    if name is None:
        found = [row for row in _ROWS if path is not None and row.suffix == path.suffix.lower()]
        if not found or not found[0].suffix:
            raise ExportError(
                f"expected a format, one of {', '.join(FORMATS)}, received none: name it with "
                "--format (format=...)"
            )
        return found[0]
    if name not in FORMATS:
        raise UnknownNameError("format", name, FORMATS)
    row = FORMATS[name]
    if row.suffix and path is not None and path.suffix != row.suffix:
        raise ExportError(
            f"expected a path that ends in {row.suffix} for the format {name}, received {path}"
        )
    return row
