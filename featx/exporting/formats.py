"""The formats: how each is written, opened in its own runtime, and run by a few lines of code.

Importing this module is cheap, because the command line lists the formats in its help.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from featx.exceptions import ExportError, MissingExtraError, UnknownNameError, reason
from featx.quiet import quiet_import

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

KerasModel: TypeAlias = Any
"""A ``keras.Model``; Keras has no types."""
Tensor: TypeAlias = Any
Pixels: TypeAlias = "NDArray[np.uint8]"
Probabilities: TypeAlias = "NDArray[np.float32]"

INPUT, OUTPUT, VALUES = "pixels", "probabilities", "values"
"""Names of the input and of the output, of classes or of numbers, in formats that have names."""


class Opened(NamedTuple):
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


_KERAS_PYTHON = """\
import keras

model = keras.models.load_model({path!r}, compile=False)
probabilities = model.predict_on_batch(pixels("new.jpg"))[0]
"""


def write_keras(network: KerasModel, path: Path, **_: object) -> None:
    """Write a ``.keras`` file."""
    with conversion_errors("a .keras file"):
        network.save(path)


def run_keras(path: Path) -> Opened:
    """Open a ``.keras`` file in safe mode."""
    import numpy as np

    with quiet_import():
        import keras

        # A GPU may round to fewer bits than are compared.
        with keras.device("cpu:0"):
            network = keras.models.load_model(path, compile=False, safe_mode=True)

    def run(pixels: Pixels) -> Probabilities:
        with keras.device("cpu:0"):
            return np.asarray(network.predict_on_batch(pixels), np.float32)

    return Opened(run, f"Keras {keras.__version__}")


_OPENVINO_PYTHON = """\
import openvino

model = openvino.compile_model({path!r}, "CPU", {{"INFERENCE_PRECISION_HINT": "f32"}})
probabilities = model([pixels("new.jpg")])["probabilities"][0]
"""


def write_openvino(
    network: KerasModel, path: Path, *, classes: Sequence[object], **_: object
) -> None:
    """Write ``.xml`` and ``.bin``, see `save_openvino`."""
    from featx.engines.openvino import load_openvino

    load_openvino()
    with conversion_errors("OpenVINO"):
        import keras
        from openvino.tools.ovc import convert_model

        output = _output_of(network)
        named = keras.Model(network.inputs, {output: network.outputs[0]})
        model = convert_model(named, share_weights=False)
    save_openvino(model, path, classes, output)


def _output_of(network: KerasModel) -> str:
    """Return what the output of a network is called."""
    return str(network.output_names[0])


def _names_key(output: str) -> str:
    """Return under which key a file has the names of its outputs."""
    return VALUES if output == VALUES else "classes"


def save_openvino(model: Any, path: Path, classes: Sequence[object], output: str = OUTPUT) -> None:
    """Write a model of OpenVINO; names are JSON under ``featx/classes`` or ``featx/values``."""
    with conversion_errors("OpenVINO"):
        import openvino

        model.set_rt_info(json.dumps(list(classes)), ["featx", _names_key(output)])
        # By default it would halve the weights' precision.
        openvino.save_model(model, str(path), compress_to_fp16=False)


def run_openvino(path: Path) -> Opened:
    """Open OpenVINO's files on the processor, in single precision."""
    import numpy as np

    from featx.engines.openvino import load_openvino

    openvino = load_openvino()
    with quiet_import():
        core = openvino.Core()
        # Processors with bfloat16 use it unasked.
        model = core.read_model(str(path))
        compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(pixels: Pixels) -> Probabilities:
        return np.array(compiled([pixels])[0], np.float32)

    classes = None
    for key in (["featx", "classes"], ["featx", VALUES]):
        if model.has_rt_info(key):
            classes = json.loads(model.get_rt_info(key).astype(str))
    return Opened(run, f"OpenVINO {openvino.__version__.split('-')[0]}", classes)


_SAVED_MODEL_PYTHON = """\
import tensorflow as tf

model = tf.saved_model.load({path!r})
serve = model.signatures["serving_default"]
probabilities = serve(pixels=tf.constant(pixels("new.jpg")))["probabilities"].numpy()[0]
"""
_SIGNATURE = "serving_default"


def _serving_function(network: KerasModel) -> Any:
    """Return a ``tf.function`` with the network's input and output under their names."""
    import tensorflow as tf

    pixels = tf.TensorSpec(network.input_shape, tf.uint8, name=INPUT)
    output = _output_of(network)

    @tf.function(input_signature=[pixels], autograph=False)  # type: ignore[untyped-decorator, unused-ignore]
    def serve(pixels: Tensor) -> dict[str, Tensor]:
        return {output: network(pixels, training=False)}

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
    import numpy as np

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
            (output,) = serve(**{INPUT: tf.constant(pixels)}).values()
        return np.asarray(output.numpy(), np.float32)

    return Opened(run, f"TensorFlow {tf.__version__}")


_LITERT_PYTHON = """\
from ai_edge_litert.interpreter import Interpreter  # pip install ai-edge-litert

model = Interpreter({path!r}).get_signature_runner()
probabilities = model(pixels=pixels("new.jpg"))["probabilities"][0]
"""
_LITERT_JAVASCRIPT = """\
// <script src="https://cdn.jsdelivr.net/npm/@tensorflow/tfjs"></script>
// <script src="https://cdn.jsdelivr.net/npm/@tensorflow/tfjs-tflite/dist/tf-tflite.min.js"></script>
const model = await tflite.loadTFLiteModel("{file}");
{canvas}\
const output = model.predict(tf.tensor(Int32Array.from(rgb), [1, {height}, {width}, 3], "int32"));
const probabilities = await (output.probabilities ?? output).data();
"""


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
    import numpy as np

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


_ONNX_PYTHON = """\
import onnxruntime

model = onnxruntime.InferenceSession({path!r})
probabilities = model.run(["probabilities"], {{"pixels": pixels("new.jpg")}})[0][0]
"""
_ONNX_JAVASCRIPT = """\
import * as ort from "onnxruntime-web"; // npm install onnxruntime-web
const session = await ort.InferenceSession.create("{file}");
{canvas}const pixels = new ort.Tensor("uint8", Uint8Array.from(rgb), [1, {height}, {width}, 3]);
const probabilities = (await session.run({{ pixels }})).probabilities.data;
"""
_OPSET = 17
_PURPOSE = "exporting to ONNX"


def require_onnx() -> None:
    """Raise `MissingExtraError` where the extra ``onnx`` is not installed."""
    from importlib.util import find_spec

    for package in ("onnx", "tf2onnx", "onnxruntime"):
        if find_spec(package) is None:
            raise MissingExtraError(package, extra="onnx", purpose=_PURPOSE)


def write_onnx(network: KerasModel, path: Path, *, classes: Sequence[object], **_: object) -> None:
    """Write an ONNX file of opset 17, see `save_onnx`."""
    with conversion_errors("ONNX"):
        save_onnx(convert_to_onnx(network, _OPSET), path, classes, _output_of(network))


def convert_to_onnx(network: KerasModel, opset: int) -> Any:
    """Return a network as a message of the onnx package, with the names of other formats."""
    require_onnx()
    # tf2onnx 1.17 does not know NumPy 2; Keras has the remedy and applies it in its own export.
    from keras.src.export.tf2onnx_lib import patch_tf2onnx

    patch_tf2onnx()
    import tf2onnx

    for name in ("tf2onnx", "tf2onnx.tfonnx", "tf2onnx.optimizer"):
        logging.getLogger(name).setLevel(logging.ERROR)
    serve = _serving_function(network)
    model, _ = tf2onnx.convert.from_function(serve, list(serve.input_signature), opset=opset)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    return model


def save_onnx(model: Any, path: Path, classes: Sequence[object], output: str = OUTPUT) -> None:
    """Write a message of the onnx package; its metadata has names as JSON, see `_names_key`."""
    import onnx

    onnx.helper.set_model_props(model, {_names_key(output): json.dumps(list(classes))})
    onnx.checker.check_model(model)
    onnx.save_model(model, str(path))


def run_onnx(path: Path) -> Opened:
    """Open an ONNX file in ONNX Runtime."""
    import numpy as np

    require_onnx()
    with quiet_import():
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(pixels: Pixels) -> Probabilities:
        return np.asarray(session.run(None, {INPUT: pixels})[0], np.float32)

    known = session.get_modelmeta().custom_metadata_map
    inside = known.get("classes", known.get(VALUES))
    classes = None if inside is None else json.loads(inside)
    return Opened(run, f"ONNX Runtime {onnxruntime.__version__}", classes)


class Format(NamedTuple):
    """A format to export to."""

    name: str  # what the user types
    summary: str  # one line for lists
    suffix: str  # end of the path; empty for a folder
    write: Callable[..., None]  # a network to a path, with ``classes`` and ``calibration``
    open: Callable[[Path], Opened]
    python: str  # lines from ``pixels("new.jpg")`` to ``probabilities``, a template with ``path``
    javascript: str = ""  # likewise from ``canvas``, for formats that run in a browser
    beside: str = ""  # suffix of a second file that belongs to it
    int8: bool = False  # whether it can be quantised

    def files(self, path: Path) -> list[Path]:
        """Return what an export to a path consists of, the path itself last."""
        return [*([path.with_suffix(self.beside)] if self.beside else []), path]


_ROWS = (
    Format("keras", "Keras 3, any backend", ".keras", write_keras, run_keras, _KERAS_PYTHON),
    Format(
        "savedmodel",
        "TensorFlow and TensorFlow Serving (a folder)",
        "",
        write_saved_model,
        run_saved_model,
        _SAVED_MODEL_PYTHON,
    ),
    Format(
        "tflite",
        "LiteRT: phones, browsers, small boards",
        ".tflite",
        write_tflite,
        run_tflite,
        _LITERT_PYTHON,
        _LITERT_JAVASCRIPT,
        int8=True,
    ),
    Format(
        "onnx",
        "ONNX Runtime, in any language and in browsers",
        ".onnx",
        write_onnx,
        run_onnx,
        _ONNX_PYTHON,
        _ONNX_JAVASCRIPT,
    ),
    Format(
        "openvino",
        "OpenVINO on CPUs (.xml, and .bin beside it)",
        ".xml",
        write_openvino,
        run_openvino,
        _OPENVINO_PYTHON,
        beside=".bin",
    ),
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
