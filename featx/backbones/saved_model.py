"""A SavedModel as a Keras network."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from featx.backbones.saved_model_file import CALL, read_endpoint
from featx.exceptions import BackboneError, reason
from featx.quiet import quiet_import, quiet_loading

DEFAULT_OUTPUT = "default"
"""The output that stands for the network where there are several, as in TensorFlow Hub."""


def load_saved_model(folder: Path, size_px: tuple[int, int], preprocessing: str) -> Any:
    """Load a SavedModel and make a network of it. This runs what is in the folder.

    Parameters
    ----------
    folder : Path
        The SavedModel.
    size_px : tuple of two int
        Height and width of the input.
    preprocessing : str
        Key of `featx.backbones.catalog.PREPROCESSINGS` that the pixels go through.

    Returns
    -------
    network : keras.Model
        From float32 input of shape (n, h, w, 3) to one output for each of the SavedModel's, under
        its name; the one called ``default`` is the first.

    Raises
    ------
    BackboneError
        If Keras is not set to TensorFlow, the folder is damaged, or its function does not take
        such an input.
    """
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
            return _network(keras, layer, endpoint.name, endpoint.dtype, size_px)
    except BackboneError:
        raise
    except Exception as error:  # TensorFlow raises many kinds
        raise BackboneError(
            f"the SavedModel {folder} cannot be loaded and applied to inputs of shape (n, "
            f"{size_px[0]}, {size_px[1]}, 3): {reason(error)}. Is it whole, of this TensorFlow, "
            "and for images of this size (--input-size)?"
        ) from error


def _network(keras: Any, layer: Any, name: str, dtype: str, size_px: tuple[int, int]) -> Any:
    images = keras.Input((*size_px, 3), name="images")
    pixels = images if dtype == "float32" else keras.ops.cast(images, dtype)
    sample = keras.ops.zeros((1, *size_px, 3), dtype)
    if name == CALL:
        layer.call_endpoint_fn = _for_inference(layer.call_endpoint_fn, sample)
    # Shapes as they are, since a graph for inputs of any size states none for its outputs.
    shapes = {key: tuple(value.shape[1:]) for key, value in _by_name(layer(sample)).items()}
    outputs = {
        key: keras.layers.Reshape(shapes[key], name=key, dtype=value.dtype)(value)
        for key, value in _by_name(layer(pixels)).items()
    }
    order = sorted(outputs, key=lambda key: (key != DEFAULT_OUTPUT, key))
    return keras.Model(images, [outputs[key] for key in order], name="savedmodel")


def _for_inference(function: Any, sample: Any) -> Any:
    """Return the function with its layers in inference mode, where it lets that be chosen."""
    inferring = partial(function, training=False)
    try:
        inferring(sample)
    except (TypeError, ValueError):  # it takes no such argument
        return function
    return inferring


def _by_name(found: Any) -> dict[str, Any]:
    if isinstance(found, Mapping):
        return {re.sub(r"[^\w.-]+", "_", str(key)): value for key, value in found.items()}
    if isinstance(found, (list, tuple)):
        return {f"output_{number}": value for number, value in enumerate(found)}
    return {DEFAULT_OUTPUT: found}
