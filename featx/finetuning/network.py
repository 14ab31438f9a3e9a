"""The network that is trained: the top of a backbone with the head that it starts from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.backbones.build import HalfType, build_network, preprocess
from featx.backbones.source import BackboneSource
from featx.backbones.taps import parse_tap, pool
from featx.exceptions import ExportError, FineTuningError
from featx.exporting.graph import head_steps
from featx.finetuning.cut import Cut, find_cut
from featx.heads.network import DenseWeights, softmax
from featx.heads.steps import Linear, Rectify, Softmax, Step
from featx.quiet import quiet_import

_EXPECTED = (
    "fine-tuning starts from a head of linear layers on the features as they are: logistic, ridge, "
    "lda, svm, nearest-mean with metric=euclidean, or dense, of one label an image. Train one of "
    "these first"
)


@dataclass(slots=True, eq=False)
class TunedNetwork:
    """A network under training.

    Parameters
    ----------
    model : keras.Model
        From what crosses the cut (a list of arrays), or from uint8 pixels, to logits.
    backbone : keras.Model
        The whole backbone, whose upper layers are those of `model`.
    head : list of keras.layers.Dense
        The layers of the head.
    cut : Cut
        Where the backbone was cut.
    from_pixels : bool
        Whether the model takes pixels.
    """

    model: Any
    backbone: Any
    head: list[Any]
    cut: Cut
    from_pixels: bool

    def probabilities(self, inputs: list[NDArray[Any]]) -> NDArray[np.float32]:
        """Return the probability of each class for one batch, shape (n, k)."""
        logits = np.asarray(self.model.predict_on_batch(inputs), np.float32)
        return softmax(logits)

    def head_weights(self) -> DenseWeights:
        """Return kernel and bias of every layer of the head."""
        return [tuple(layer.get_weights()) for layer in self.head]

    def rate_shares(self, decay: float, trained_blocks: int | None = None) -> list[float]:
        """Return what share of the learning rate each trained variable of the model has."""
        shares = {id(v): 1.0 for layer in self.head for v in layer.trainable_variables}
        for depth, group in enumerate(reversed(self.cut.groups), start=1):
            trained = trained_blocks is None or depth <= trained_blocks
            for layer in group:
                for variable in layer.trainable_variables:
                    shares[id(variable)] = decay**depth if trained else 0.0
        return [shares[id(variable)] for variable in self.model.trainable_variables]


def trainable_steps(head: Any) -> list[Step]:
    """Return a fitted head as the steps that `build_tuned` takes."""
    try:
        steps = head_steps(head)
    except ExportError as error:
        raise FineTuningError(f"{_EXPECTED} ({type(head).__name__})") from error
    head_layers_of(steps)
    return steps


def head_layers_of(steps: list[Step]) -> list[Linear]:
    """Return the layers of a head that can be trained on, each but the last rectified."""
    layers = [step for step in steps if isinstance(step, Linear)]
    between = [step for step in steps if not isinstance(step, Linear)]
    alternating = steps[::2] == layers and all(isinstance(s, Rectify) for s in between[:-1])
    if not (alternating and between and isinstance(between[-1], Softmax)):
        raise FineTuningError(_EXPECTED)
    return layers


def build_tuned(
    source: BackboneSource,
    tap: str,
    steps: list[Step],
    unfreeze: str,
    *,
    from_pixels: bool = False,
    train_batchnorm: bool = False,
    mixed: HalfType | None = None,
) -> TunedNetwork:
    """Build the network that is trained."""
    layers = head_layers_of(steps)
    with quiet_import():
        import keras
    network = build_network(source, mixed=mixed)
    network.trainable = True
    cut = find_cut(network, source, tap, unfreeze)
    network.trainable = False
    for group in cut.groups:
        for layer in group:
            layer.trainable = True
    whole = from_pixels or not cut.layers
    features = _feature_model(keras, network, source, cut, tap, whole)
    width = int(features.outputs[0].shape[-1])
    if width != len(layers[0].kernel):
        raise FineTuningError(
            f"the head takes {len(layers[0].kernel)} features, {source.name} with tap {tap!r} "
            f"gives {width}: the model was trained with another backbone, tap or input size"
        )
    head = _dense_layers(keras, layers)
    model = _model(keras, features, head, train_batchnorm)
    model.build_from(features)
    return TunedNetwork(model, network, head, cut, whole)


def _feature_model(
    keras: Any, network: Any, source: BackboneSource, cut: Cut, tap: str, whole: bool
) -> Any:
    if whole:
        height, width = source.input_size_px
        pixels = keras.Input((height, width, 3), dtype="uint8", name="pixels")
        trunk = keras.Model(network.inputs, cut.output)
        maps = trunk(preprocess(pixels, source.preprocessing))
        inputs: Any = [pixels]
    else:
        inputs = [keras.Input(tuple(t.shape[1:]), dtype="float32") for t in cut.tensors]
        trunk = keras.Model(list(cut.tensors), cut.output)
        maps = trunk(inputs)
    vector = pool(keras.ops.cast(maps, "float32"), parse_tap(tap))
    return keras.Model(inputs, vector)


def _dense_layers(keras: Any, layers: list[Linear]) -> list[Any]:
    made = []
    for number, linear in enumerate(layers, start=1):
        inputs, outputs = linear.kernel.shape
        rectified = None if number == len(layers) else "relu"
        dense = keras.layers.Dense(outputs, activation=rectified, dtype="float32")
        dense.build((None, inputs))
        dense.set_weights([np.asarray(linear.kernel, "f4"), np.asarray(linear.bias, "f4")])
        made.append(dense)
    return made


def _model(keras: Any, features: Any, head: list[Any], train_batchnorm: bool) -> Any:
    class Tuned(keras.Model):  # type: ignore[misc, name-defined, unused-ignore]
        def __init__(self) -> None:
            super().__init__(name="featx_tuned")
            self.features, self.head = features, head

        def call(self, inputs: Any) -> Any:
            # Said here and not in the graph: a functional model hands on what it is called with,
            # whatever its layers were called with when it was made.
            x = self.features(inputs, training=train_batchnorm)
            for layer in self.head:
                x = layer(x)
            return x

        def build_from(self, features: Any) -> None:
            self.build([tuple(t.shape) for t in features.inputs])

    return Tuned()
