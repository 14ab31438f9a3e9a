"""The formats: a model as one Keras network, how each is written, and opened in its own runtime."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from featx.backbones.build import build_tap_model
from featx.backbones.source import BackboneSource
from featx.engines.openvino import load_openvino
from featx.exceptions import ExportError, HeadError, MissingExtraError, UnknownNameError, reason
from featx.heads.rows import Floats
from featx.heads.steps import Linear, Rectify, Scale, Sigmoid, Softmax, Step, UnitLength, joined
from featx.heads.to_steps import steps_of
from featx.quiet import quiet_import

KerasModel: TypeAlias = Any
"""A ``keras.Model``; Keras has no types."""
Tensor: TypeAlias = Any
Pixels: TypeAlias = NDArray[np.uint8]
Probabilities: TypeAlias = NDArray[np.float32]

INPUT, OUTPUT = "pixels", "probabilities"
"""Names of the input and the output, in every format that has names."""
EXPORTABLE_HEADS = ("dense", "lda", "logistic", "nearest-mean", "ridge", "svm")
"""Names of heads that can be exported."""
_WITH_LAYERS = (Linear, Rectify, Scale, Sigmoid, Softmax, UnitLength)
_WITHOUT_LAYERS = {
    "DiagonalGaussians": "the head GaussianNB",
    "EachLabel": "a network of its own for each label (head='dense' is one for all labels)",
    "Gaussian": "a Gaussian kernel (ReducedRBF)",
    "Neighbours": "nearest neighbours (NearestNeighbours)",
    "Trees": "trees (TreeEnsemble)",
}


def head_steps(head: object) -> list[Step]:
    """Return a fitted head as steps that formats have layers for, as few as may be."""
    instead = (
        f"expected one of {', '.join(EXPORTABLE_HEADS)}, or a linear classifier of scikit-learn. "
        "Train one of these, or serve the .featx file with featx itself"
    )
    try:
        steps = joined(steps_of(head))
    except HeadError as error:
        raise ExportError(f"a model with the head {error} cannot be exported: {instead}") from error
    for step in steps:
        if not isinstance(step, _WITH_LAYERS):
            part = _WITHOUT_LAYERS[type(step).__name__]
            raise ExportError(f"a model with {part} cannot be exported: {instead}")
    return steps


def build_graph(source: BackboneSource, tap: str, steps: list[Step]) -> KerasModel:
    """Build the network that is exported."""
    with quiet_import():
        import keras
    taps = build_tap_model(source, (tap,))
    features = taps.outputs[0]
    network = keras.Model(taps.inputs[0], head_layers(features, steps), name="featx_model")
    network.trainable = False
    return network


def head_layers(features: Tensor, steps: list[Step]) -> Tensor:
    """Put the steps of a head behind features."""
    for number, step in enumerate(steps, start=1):
        name = OUTPUT if number == len(steps) else f"head_{number}"
        width = len(step.kernel) if isinstance(step, Linear) else None
        width = len(step.scale) if isinstance(step, Scale) else width
        if width not in (None, int(features.shape[-1])):
            raise ExportError(
                f"the head takes {width} features, the backbone gives {features.shape[-1]}: name "
                "the backbone, tap and weights of training"
            )
        features = _layer(features, step, name)
    return features


def _layer(x: Tensor, step: Step, name: str) -> Tensor:
    from keras import layers

    if isinstance(step, Linear):
        # By set_weights and not by an initializer, which would put the numbers into the JSON.
        dense = layers.Dense(step.kernel.shape[1], dtype="float32", name=name)
        y = dense(x)
        dense.set_weights([_float32(step.kernel), _float32(step.bias)])
        return y
    if isinstance(step, Scale):
        # The one layer of Keras that keeps a factor and an offset a feature as weights.
        norm = layers.BatchNormalization(epsilon=0.0, dtype="float32", name=name)
        y = norm(x, training=False)
        zero = np.zeros(len(step.scale), np.float32)
        factor = 1 / np.asarray(step.scale, np.float64)
        norm.set_weights([_float32(factor), _float32(-step.center * factor), zero, zero + 1])
        return y
    if isinstance(step, UnitLength):
        return layers.UnitNormalization(dtype="float32", name=name)(x)
    if isinstance(step, Rectify):
        return layers.ReLU(dtype="float32", name=name)(x)
    if isinstance(step, Sigmoid):
        return layers.Activation("sigmoid", dtype="float32", name=name)(x)
    return layers.Softmax(dtype="float32", name=name)(x)


def _float32(values: Floats) -> NDArray[np.float32]:
    return np.asarray(values, np.float32)


@dataclass(frozen=True, slots=True)
class Opened:
    """An exported file in its own runtime."""

    run: Callable[[Pixels], Probabilities]  # (n, h, w, 3) to (n, k)
    runtime: str  # name and version of what runs it
    classes: list[Any] | None = None  # names inside, where the format has a place for them


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


def write_keras(network: KerasModel, path: Path, **_: object) -> None:
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

    def run(pixels: Pixels) -> Probabilities:
        with keras.device("cpu:0"):
            return np.asarray(network.predict_on_batch(pixels), np.float32)

    return Opened(run, f"Keras {keras.__version__}")


def write_openvino(
    network: KerasModel, path: Path, *, classes: Sequence[object], **_: object
) -> None:
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

    def run(pixels: Pixels) -> Probabilities:
        return np.array(compiled([pixels])[OUTPUT], np.float32)

    key = ["featx", "classes"]
    classes = json.loads(model.get_rt_info(key).astype(str)) if model.has_rt_info(key) else None
    return Opened(run, f"OpenVINO {openvino.__version__.split('-')[0]}", classes)


_SIGNATURE = "serving_default"


def _serving_function(network: KerasModel) -> Any:
    """Return a ``tf.function`` with the network's input and output under their names."""
    import tensorflow as tf

    pixels = tf.TensorSpec(network.input_shape, tf.uint8, name=INPUT)

    @tf.function(input_signature=[pixels], autograph=False)  # type: ignore[untyped-decorator, unused-ignore]
    def serve(pixels: Tensor) -> dict[str, Tensor]:
        return {OUTPUT: network(pixels, training=False)}

    return serve


def _module(network: KerasModel) -> Any:
    """Return an object that TensorFlow saves with the variables that the function reads."""
    import tensorflow as tf

    module = tf.Module()
    module.variables_of_network = [variable.value for variable in network.variables]
    module.serve = _serving_function(network)
    return module


def write_saved_model(network: KerasModel, path: Path, **_: object) -> None:
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

    def run(pixels: Pixels) -> Probabilities:
        # The loaded object owns the variables: it has to outlive the function.
        assert loaded is not None
        with tf.device("cpu:0"):
            output = serve(**{INPUT: tf.constant(pixels)})[OUTPUT]
        return np.asarray(output.numpy(), np.float32)

    return Opened(run, f"TensorFlow {tf.__version__}")


def write_tflite(
    network: KerasModel, path: Path, *, calibration: Pixels | None = None, **_: object
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

    def run(pixels: Pixels) -> Probabilities:
        number = interpreter.get_input_details()[0]["index"]
        if shape != [pixels.shape]:
            with quiet_import():  # it announces its delegate from C++
                interpreter.resize_tensor_input(number, pixels.shape)
                interpreter.allocate_tensors()
            shape[:] = [pixels.shape]
        interpreter.set_tensor(number, pixels)
        interpreter.invoke()
        output = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
        return np.array(output, np.float32)

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


def write_onnx(network: KerasModel, path: Path, *, classes: Sequence[object], **_: object) -> None:
    """Write an ONNX file (opset 17) whose metadata has the class names, as JSON under `classes`."""
    require_onnx()
    with conversion_errors("ONNX"):
        import onnx

        # tf2onnx 1.17 does not know NumPy 2; Keras has the remedy and applies it in its own export.
        from keras.src.export.tf2onnx_lib import patch_tf2onnx

        patch_tf2onnx()
        import tf2onnx

        for name in ("tf2onnx", "tf2onnx.tfonnx", "tf2onnx.optimizer"):
            logging.getLogger(name).setLevel(logging.ERROR)
        serve = _serving_function(network)
        model, _ = tf2onnx.convert.from_function(serve, list(serve.input_signature), opset=_OPSET)
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_param = "batch"
        onnx.helper.set_model_props(model, {"classes": json.dumps(list(classes))})
        onnx.checker.check_model(model)
        onnx.save_model(model, str(path))


def run_onnx(path: Path) -> Opened:
    """Open an ONNX file in ONNX Runtime."""
    require_onnx()
    with quiet_import():
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(pixels: Pixels) -> Probabilities:
        return np.asarray(session.run([OUTPUT], {INPUT: pixels})[0], np.float32)

    inside = session.get_modelmeta().custom_metadata_map.get("classes")
    classes = None if inside is None else json.loads(inside)
    return Opened(run, f"ONNX Runtime {onnxruntime.__version__}", classes)


@dataclass(frozen=True, slots=True)
class Format:
    """A format to export to."""

    name: str  # what the user types
    summary: str  # one line for lists
    suffix: str  # end of the path; empty for a folder
    write: Callable[..., None]  # a network to a path, with ``classes`` and ``calibration``
    open: Callable[[Path], Opened]
    beside: str = ""  # suffix of a second file that belongs to it
    int8: bool = False  # whether it can be quantised

    def files(self, path: Path) -> list[Path]:
        """Return what an export to a path consists of, the path itself last."""
        return [*([path.with_suffix(self.beside)] if self.beside else []), path]


_SAVED_MODEL = "TensorFlow and TensorFlow Serving (a folder)"
_LITERT = "LiteRT: phones, browsers, small boards"
_ONNX = "ONNX Runtime, in any language and in browsers"
_OPENVINO = "OpenVINO on CPUs (.xml, and .bin beside it)"
_ROWS = (
    Format("keras", "Keras 3, any backend", ".keras", write_keras, run_keras),
    Format("savedmodel", _SAVED_MODEL, "", write_saved_model, run_saved_model),
    Format("tflite", _LITERT, ".tflite", write_tflite, run_tflite, int8=True),
    Format("onnx", _ONNX, ".onnx", write_onnx, run_onnx),
    Format("openvino", _OPENVINO, ".xml", write_openvino, run_openvino, beside=".bin"),
)

FORMATS: dict[str, Format] = {row.name: row for row in _ROWS}
"""Every format by its name."""


def choose_format(name: str | None, path: Path | None) -> Format:
    """Return the format of a name, or that a path's end stands for."""
    if name is None:
        suffix = "" if path is None else path.suffix.lower()
        rows = [row for row in _ROWS if row.suffix and row.suffix == suffix]
        if not rows:
            raise ExportError(
                f"expected a format, one of {', '.join(FORMATS)}, received none: name it with "
                "--format (format=...)"
            )
        return rows[0]
    if name not in FORMATS:
        raise UnknownNameError("format", name, FORMATS)
    row = FORMATS[name]
    if row.suffix and path is not None and path.suffix != row.suffix:
        raise ExportError(
            f"expected a path that ends in {row.suffix} for the format {name}, received {path}"
        )
    return row
