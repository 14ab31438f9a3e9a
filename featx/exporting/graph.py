"""A model as one Keras network: the backbone, and the steps of the head as layers behind it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from featx.backbones.build import build_tap_model
from featx.backbones.source import BackboneSource
from featx.engines.onnx_network import GraphArithmetic
from featx.exceptions import ExportError, HeadError
from featx.exporting.formats import OUTPUT, KerasModel, Tensor
from featx.heads.rows import Floats
from featx.heads.steps import Linear, Rectify, Scale, Sigmoid, Softmax, Step, UnitLength, joined
from featx.heads.table import heads_for
from featx.heads.to_steps import steps_of
from featx.quiet import quiet_import

EXPORTABLE_HEADS = ("dense", "lda", "logistic", "nearest-mean", "ridge", "svm")
"""Names of heads that can be exported; of a regression those for numbers among them."""
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
    regression = not hasattr(head, "classes_")
    names = [name for name in EXPORTABLE_HEADS if name in heads_for(regression=regression)]
    what = "regressor" if regression else "classifier"
    instead = (
        f"expected one of {', '.join(names)}, or a linear {what} of scikit-learn. "
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


def build_graph(
    source: BackboneSource, tap: str, steps: list[Step], output: str = OUTPUT
) -> KerasModel:
    """Build the network that is exported."""
    with quiet_import():
        import keras
    taps = build_tap_model(source, (tap,))
    features = taps.outputs[0]
    answers = head_layers(features, steps, output)
    network = keras.Model(taps.inputs[0], answers, name="featx_model")
    network.trainable = False
    return network


def head_layers(features: Tensor, steps: list[Step], output: str = OUTPUT) -> Tensor:
    """Put the steps of a head behind features."""
    for number, step in enumerate(steps, start=1):
        name = output if number == len(steps) else f"head_{number}"
        _require_width(step, int(features.shape[-1]))
        features = _layer(features, step, name)
    return features


def head_behind(x: Tensor, steps: list[Step], on: GraphArithmetic) -> Tensor:
    """Put the steps of a head behind features, as operators."""
    for step in steps:
        _require_width(step, on.shape(x)[-1])
        if isinstance(step, Linear):
            ones = np.ones(step.kernel.shape[1], np.float32)
            x = on.affine(on.product(x, _float32(step.kernel)), ones, _float32(step.bias))
        elif isinstance(step, Scale):
            x = on.affine(x, *_factor_and_offset(step))
        elif isinstance(step, UnitLength):
            x = on.unit_length(x)
        elif isinstance(step, Rectify):
            x = on.at_least(x, 0.0)
        elif isinstance(step, Sigmoid):
            x = on.sigmoid(x)
        else:
            x = on.softmax(x)
    return x


def _require_width(step: Step, features: int | None) -> None:
    width = len(step.kernel) if isinstance(step, Linear) else None
    width = len(step.scale) if isinstance(step, Scale) else width
    if width not in (None, features):
        raise ExportError(
            f"the head takes {width} features, the backbone gives {features}: name the backbone, "
            "tap and weights of training"
        )


def _factor_and_offset(step: Scale) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    factor = 1 / np.asarray(step.scale, np.float64)
    return _float32(factor), _float32(-step.center * factor)


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
        norm.set_weights([*_factor_and_offset(step), zero, zero + 1])
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
