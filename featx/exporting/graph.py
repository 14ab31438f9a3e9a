"""A model as one Keras network: the backbone, and the steps of the head as layers behind it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from featx.backbones.build import build_tap_model
from featx.backbones.source import BackboneSource
from featx.engines.onnx_network import GraphArithmetic
from featx.exceptions import ExportError, HeadError
from featx.exporting.formats import OUTPUT, KerasModel, Tensor
from featx.heads.rows import Floats
from featx.heads.steps import (
    Columns,
    Linear,
    Mean,
    Rectify,
    Scale,
    Sigmoid,
    Softmax,
    Step,
    UnitLength,
    joined,
)
from featx.heads.table import heads_for
from featx.heads.to_steps import steps_of
from featx.quiet import quiet_import

EXPORTABLE_HEADS = ("dense", "lda", "logistic", "nearest-mean", "ridge", "svm")
"""Names of heads that can be exported; of a regression those for numbers among them."""
_WITH_LAYERS = (Columns, Linear, Mean, Rectify, Scale, Sigmoid, Softmax, UnitLength)
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
    for step in _every(steps):
        if not isinstance(step, _WITH_LAYERS):
            part = _WITHOUT_LAYERS[type(step).__name__]
            raise ExportError(f"a model with {part} cannot be exported: {instead}")
    return steps


def _every(steps: Iterable[Step]) -> Iterator[Step]:
    """Yield steps, and those inside of them."""
    for step in steps:
        yield step
        if isinstance(step, Mean):
            for member in step.members:
                yield from _every(member)


def _as_products(steps: Sequence[Step]) -> list[Step]:
    """Return steps in which the choice of columns is a product, which every format has."""
    return [step.one_hot() if isinstance(step, Columns) else step for step in steps]


def _mean_of_members(step: Mean, width: int) -> Linear:
    """Return the product that makes the mean of the members' columns side by side."""
    kernel = np.concatenate([weight * np.eye(width) for weight in step.weights])
    return Linear(kernel, np.zeros(width))


class Part(NamedTuple):
    """A network, and the taps that are read of it."""

    source: BackboneSource
    taps: tuple[str, ...]


def build_graph(parts: Sequence[Part], steps: list[Step], output: str = OUTPUT) -> KerasModel:
    """Build the network that is exported: all parts on the same pixels, and the head behind."""
    with quiet_import():
        import keras
    features = features_model(parts)
    answers = head_layers(features.outputs[0], steps, output)
    network = keras.Model(features.inputs[0], answers, name="featx_model")
    network.trainable = False
    return network


def features_model(parts: Sequence[Part]) -> KerasModel:
    """Build the network from pixels to the features of all parts, side by side."""
    with quiet_import():
        import keras
    built = [build_tap_model(part.source, part.taps) for part in parts]
    if len(built) == 1 and len(built[0].outputs) == 1:
        return built[0]
    pixels = built[0].inputs[0]
    features = list(built[0].outputs)
    for number, network in enumerate(built[1:], start=2):
        network.name = f"featx_taps_{number}"
        features += network(pixels)
    return keras.Model(pixels, _side_by_side(features), name="featx_taps")


def head_layers(features: Tensor, steps: list[Step], output: str = OUTPUT) -> Tensor:
    """Put the steps of a head behind features."""
    return _layers(features, steps, "head", output)


def _layers(x: Tensor, steps: Sequence[Step], prefix: str, last: str) -> Tensor:
    for number, step in enumerate(_as_products(steps), start=1):
        name = last if number == len(steps) else f"{prefix}_{number}"
        if isinstance(step, Mean):
            members = [
                _layers(x, member, f"{name}_{place}", f"{name}_{place}")
                for place, member in enumerate(step.members, start=1)
            ]
            x = _layer(_side_by_side(members), _mean_of_members(step, members[0].shape[-1]), name)
            continue
        _require_width(step, int(x.shape[-1]))
        x = _layer(x, step, name)
    return x


def _side_by_side(parts: Sequence[Tensor]) -> Tensor:
    from keras import layers

    return parts[0] if len(parts) == 1 else layers.Concatenate(dtype="float32")(list(parts))


def head_behind(x: Tensor, steps: list[Step], on: GraphArithmetic) -> Tensor:
    """Put the steps of a head behind features, as operators."""
    for step in _as_products(steps):
        if isinstance(step, Mean):
            members = [head_behind(x, list(member), on) for member in step.members]
            mean = _mean_of_members(step, on.shape(members[0])[-1] or 0)
            x = on.product(on.joined(members), _float32(mean.kernel))
            continue
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
