"""The network that is trained: cut where its frozen layers end, with the head on top."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from featx.backbones.build import HalfType, build_network, preprocess
from featx.backbones.source import BackboneSource
from featx.backbones.taps import block_outputs, layer_outputs, parse_tap, pool, tap_tensors
from featx.exceptions import ExportError, FineTuningError, UnknownNameError
from featx.exporting.formats import KerasModel, Tensor
from featx.exporting.graph import head_steps
from featx.heads.steps import Linear, Rectify, Softmax, Step
from featx.selection.transforms import Estimator

Layer: TypeAlias = Any
"""A layer or another operation of Keras, which has no types."""
Node: TypeAlias = Any
"""One call of an operation in a graph of Keras."""


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """A network in two parts."""

    # Layers of the frozen part whose outputs the trained part takes; none where there is nothing
    # frozen that has weights, so that the trained part takes pixels.
    layers: tuple[str, ...]
    tensors: tuple[Tensor, ...]  # their outputs
    output: Tensor  # what the tap pools
    groups: tuple[tuple[Layer, ...], ...]  # trained layers, a group a block, the output's last
    frozen: tuple[Layer, ...]  # the others with weights up to the tap


def find_cut(network: KerasModel, source: BackboneSource, tap: str, unfreeze: str) -> Cut:
    """Find the cut below the first layer that is to be trained."""
    (output,) = tap_tensors(network, source, parse_tap(tap))
    nodes = _nodes_before(network, output)
    operations = list({id(node.operation): node.operation for node in nodes}.values())
    first = _first_trained(network, source, operations, unfreeze, tap)
    above = {id(operation) for operation in operations[first:]}
    trained = [operation for operation in operations[first:] if _has_weights(operation)]
    if not trained:
        raise FineTuningError(
            f"nothing would be trained: {unfreeze!r} unfreezes no layer with weights before the "
            f"tap {tap!r}. Name a block further down, a share such as 30%, or all"
        )
    frozen = [operation for operation in operations[:first] if _has_weights(operation)]
    names, tensors = _boundary(network, nodes, above) if frozen else ((), ())
    return Cut(names, tensors, output, _by_block(trained, source), tuple(frozen))


def _nodes_before(network: KerasModel, output: Tensor) -> list[Node]:
    """Return the nodes that an output depends on, every one after those that it takes from."""
    graph: KerasModel = getattr(network, "_functional", network)
    depths = sorted(graph._nodes_by_depth, reverse=True)
    ordered = [node for depth in depths for node in graph._nodes_by_depth[depth]]
    makers = {id(tensor): node for node in ordered for tensor in node.outputs}
    waiting, needed = [output], set()
    while waiting:
        node = makers[id(waiting.pop())]
        if id(node) not in needed:
            needed.add(id(node))
            waiting += node.input_tensors
    return [node for node in ordered if id(node) in needed]


def _has_weights(operation: Layer) -> bool:
    return any(
        getattr(layer, "_trainable_variables", ())
        for layer in (operation, *getattr(operation, "_flatten_layers", tuple)())
    )


def _first_trained(
    network: KerasModel, source: BackboneSource, operations: list[Layer], unfreeze: str, tap: str
) -> int:
    text = unfreeze.strip()
    if text == "all":
        return 0
    if text.endswith("%"):
        return _last_share(operations, text)
    if text.startswith("after:"):
        return _after(network, operations, text)
    pattern = None if source.row is None else re.compile(source.row.shared.block)
    for index, operation in enumerate(operations):
        match = pattern.match(operation.name) if pattern else None
        if match and match.group(1) == text:
            return index
    layers, blocks = layer_outputs(network), block_outputs(network, source)
    if text in layers:
        for index, operation in enumerate(operations):
            if any(tensor is layers[text] for tensor in operation._inbound_nodes[0].outputs):
                return index
    if text in layers or text in blocks:
        raise FineTuningError(
            f"nothing would be trained: {text!r} comes after the tap {tap!r}, which the head "
            "takes. Name a block before it, a share such as 30%, or all"
        )
    raise UnknownNameError(
        f"block or layer of {source.name} to unfreeze",
        text,
        [*blocks, *layers],
        hint="Also understood: a share of the layers such as 30%, after:15, all",
    )


def _last_share(operations: list[Layer], text: str) -> int:
    try:
        share = float(text[:-1])
    except ValueError:
        share = -1.0
    if not 0 < share <= 100:
        raise FineTuningError(
            f"expected a share of the layers above 0 and up to 100%, received {text!r}"
        )
    weighted = [index for index, layer in enumerate(operations) if _has_weights(layer)]
    return weighted[-max(1, round(len(weighted) * share / 100))] if weighted else 0


def _after(network: KerasModel, operations: list[Layer], text: str) -> int:
    number = text.removeprefix("after:")
    if not (number.isascii() and number.isdigit()):
        raise FineTuningError(
            f"expected a number of layers that stay frozen, as in after:15, received {text!r}"
        )
    first = {id(layer) for layer in network.layers[: int(number)]}
    others = (index for index, layer in enumerate(operations) if id(layer) not in first)
    return next(others, len(operations))


def _boundary(
    network: KerasModel, nodes: list[Node], above: set[int]
) -> tuple[tuple[str, ...], tuple[Tensor, ...]]:
    crossing: dict[int, Tensor] = {}
    below = {
        id(tensor): tensor
        for node in nodes
        if id(node.operation) not in above
        for tensor in node.outputs
    }
    for node in nodes:
        if id(node.operation) in above:
            crossing |= {id(t): t for t in node.input_tensors if id(t) in below}
    names = {id(tensor): name for name, tensor in layer_outputs(network).items()}
    unnamed = [tensor for tensor in crossing.values() if id(tensor) not in names]
    if unnamed:
        raise FineTuningError(
            "the part that is to be trained takes what is no output of one layer of the frozen "
            "part, which the cache cannot hold: name a block, or all"
        )
    return tuple(names[index] for index in crossing), tuple(crossing.values())


def _by_block(trained: list[Layer], source: BackboneSource) -> tuple[tuple[Layer, ...], ...]:
    """Put layers of one block together; what is in no block goes with the block before it."""
    pattern = None if source.row is None else re.compile(source.row.shared.block)
    groups: list[list[Layer]] = []
    current: str | None = None
    for layer in trained:
        match = pattern.match(layer.name) if pattern else None
        block = match.group(1) if match else (current if pattern else layer.name)
        if block != current or not groups:
            groups.append([])
        groups[-1].append(layer)
        current = block
    return tuple(tuple(group) for group in groups)


_EXPECTED = (
    "fine-tuning starts from a head of linear layers on the features as they are: {}. Train one of "
    "these first"
)
_CLASSES = (
    "logistic, ridge, lda, svm, nearest-mean with metric=euclidean, or dense, of one label an image"
)
_NUMBERS = "ridge, svm, dense, or a linear regressor of scikit-learn"


@dataclass(slots=True, eq=False)
class TunedNetwork:
    """A network under training."""

    # From what crosses the cut (a list of arrays), or uint8 pixels, to logits or scaled numbers.
    model: KerasModel
    backbone: KerasModel  # the whole of it; its upper layers are those of the model
    head: list[Layer]
    cut: Cut
    from_pixels: bool

    def logits(self, inputs: list[NDArray[np.generic]]) -> NDArray[np.float32]:
        """Return what the head gives for one batch, before a softmax if any, shape (n, k)."""
        return np.asarray(self.model.predict_on_batch(inputs), np.float32)

    def cool(self, temperature: float) -> None:
        """Divide the logits by a temperature, for good: the last layer of the head takes it up.

        Notes
        -----
        Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, section 4.2: training
        until the labels are right makes a network too sure of itself.
        """
        self.head[-1].set_weights([value / temperature for value in self.head[-1].get_weights()])

    def head_weights(self) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
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


def trainable_steps(head: Estimator) -> list[Step]:
    """Return a fitted head as the steps that `build_tuned` takes."""
    regression = not hasattr(head, "classes_")
    expected = _EXPECTED.format(_NUMBERS if regression else _CLASSES)
    try:
        steps = head_steps(head)
    except ExportError as error:
        raise FineTuningError(f"{expected} ({type(head).__name__})") from error
    # A linear classifier without probabilities ends with a layer, as a regressor does.
    if regression is isinstance(steps[-1], Softmax) or not head_layers_of(steps):
        raise FineTuningError(expected)
    return steps


def head_layers_of(steps: list[Step]) -> list[Linear]:
    """Return the layers of a head, each but the last rectified; none where it has other steps."""
    body = steps[:-1] if isinstance(steps[-1], Softmax) else steps
    layers = [step for step in body[::2] if isinstance(step, Linear)]
    between = [step for step in body[1::2] if isinstance(step, Rectify)]
    alternating = len(layers) + len(between) == len(body) and len(layers) > len(between)
    return layers if alternating else []


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
    network = build_network(source, mixed=mixed)
    network.trainable = True
    cut = find_cut(network, source, tap, unfreeze)
    network.trainable = False
    for group in cut.groups:
        for layer in group:
            layer.trainable = True
    whole = from_pixels or not cut.layers
    features = _feature_model(network, source, cut, tap, whole)
    width = int(features.outputs[0].shape[-1])
    if width != len(layers[0].kernel):
        raise FineTuningError(
            f"the head takes {len(layers[0].kernel)} features, {source.name} with tap {tap!r} "
            f"gives {width}: the model was trained with another backbone, tap or input size"
        )
    head = _dense_layers(layers)
    model = _tuned_model(features, head, train_batchnorm)
    return TunedNetwork(model, network, head, cut, whole)


def _feature_model(
    network: KerasModel, source: BackboneSource, cut: Cut, tap: str, whole: bool
) -> KerasModel:
    import keras

    if whole:
        height, width = source.input_size_px
        inputs = [keras.Input((height, width, 3), dtype="uint8", name="pixels")]
        trunk = keras.Model(network.inputs, cut.output)
        maps = trunk(preprocess(inputs[0], source.preprocessing))
    else:
        inputs = [keras.Input(tuple(t.shape[1:]), dtype="float32") for t in cut.tensors]
        trunk = keras.Model(list(cut.tensors), cut.output)
        maps = trunk(inputs)
    vector = pool(keras.ops.cast(maps, "float32"), parse_tap(tap))
    return keras.Model(inputs, vector)


def _dense_layers(layers: list[Linear]) -> list[Layer]:
    import keras

    made = []
    for number, linear in enumerate(layers, start=1):
        inputs, outputs = linear.kernel.shape
        rectified = None if number == len(layers) else "relu"
        dense = keras.layers.Dense(outputs, activation=rectified, dtype="float32")
        dense.build((None, inputs))
        dense.set_weights([np.asarray(linear.kernel, "f4"), np.asarray(linear.bias, "f4")])
        made.append(dense)
    return made


def _tuned_model(features: KerasModel, head: list[Layer], train_batchnorm: bool) -> KerasModel:
    import keras

    class Tuned(keras.Model):  # type: ignore[misc, name-defined, unused-ignore]
        def __init__(self) -> None:
            super().__init__(name="featx_tuned")
            self.features, self.head = features, head

        def call(self, inputs: list[Tensor]) -> Tensor:
            # Said here and not in the graph: a functional model hands on what it is called with,
            # whatever its layers were called with when it was made.
            x = self.features(inputs, training=train_batchnorm)
            for layer in self.head:
                x = layer(x)
            return x

    model = Tuned()
    model.build([tuple(t.shape) for t in features.inputs])
    return model
