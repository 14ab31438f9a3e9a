"""SavedModel and LiteRT (`.tflite`): the two formats that TensorFlow writes."""

from __future__ import annotations

import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.exporting.conversion import Opened, conversion_errors
from featx.exporting.graph import INPUT, OUTPUT
from featx.quiet import quiet_import

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
