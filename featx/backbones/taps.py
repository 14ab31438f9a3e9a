"""The places of a network where features are taken: a layer or block, and a pooling."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from featx.backbones.saved_model import DEFAULT_OUTPUT
from featx.exceptions import BackboneError, UnknownNameError

if TYPE_CHECKING:
    import keras

    from featx.backbones.source import BackboneSource

POOLINGS: dict[str, str] = {
    "avg": "mean over the positions",
    "max": "maximum over the positions",
    "gem": "generalised mean, gem:P sets the power (3 by default)",
    "flatten": "every position and channel",
    "grid": "means over K x K cells, grid:K",
    "cls": "the first token of a sequence",
    "mean-tokens": "mean over the tokens behind the first",
    "cls+mean": "the first token and the mean over the others, side by side",
}
"""Poolings by name, with what they do."""

INNER = "inner"
"""The tap that pools several blocks, from one third of the depth on; their vectors are joined."""

_MOST_INNER, _INNER_FROM, _INNER_WIDTH = 8, 1 / 3, 2
_OF_TOKENS = ("cls", "mean-tokens", "cls+mean")
Native: TypeAlias = Any
"""A tensor of Keras or of another library, which has no types."""
_NUMBERED = re.compile(rf"(?!(?:{'|'.join(map(re.escape, POOLINGS))}):)[^:]+:\d+(?=$|:)")
_GEM_POWER = 3
_GEM_FLOOR = 1e-6


@dataclass(frozen=True, slots=True)
class Tap:
    """A layer or block, and how its feature map becomes one vector."""

    layer: str  # empty for the network's last feature map, `INNER` for several blocks
    pooling: str  # key of `POOLINGS`
    argument: int = 0  # power of gem, cells a side of grid

    def __str__(self) -> str:
        text = self.pooling
        if self.pooling == "grid" or (self.pooling == "gem" and self.argument != _GEM_POWER):
            text += f":{self.argument}"
        return f"{self.layer}:{text}" if self.layer else text


def parse_tap(text: str) -> Tap:
    """Read a tap: ``avg``, ``grid:2``, ``block_12``, ``block_12:gem``, ``block_12:grid:2``.

    A layer without a pooling is averaged. ``inner`` is up to 8 blocks, evenly from one third
    of the depth of a catalogued network on. ``gem`` is the generalised mean with the power 3,
    ``gem:P`` with another; ``grid:K`` averages over K x K cells.
    """
    # Tensors of TensorFlow have a number behind a colon, as in Identity:0.
    named = _NUMBERED.match(text.strip())
    head = named[0] if named else text.strip().partition(":")[0]
    rest = text.strip()[len(head) + 1 :]
    if not head:
        raise BackboneError(f"expected a tap such as 'avg' or 'block_12:max', received {text!r}")
    if head in POOLINGS:
        layer, pooling, argument = "", head, rest
    else:
        layer = head
        pooling, _, argument = rest.partition(":")
        pooling = pooling or "avg"
        if pooling not in POOLINGS:
            raise UnknownNameError("pooling", pooling, POOLINGS)
    if pooling not in ("gem", "grid") and argument:
        raise BackboneError(f"pooling {pooling!r} takes no argument, received {text!r}")
    if pooling == "grid" and not argument:
        raise BackboneError(f"grid needs its number of cells, as in 'grid:2', received {text!r}")
    if argument and not (argument.isascii() and argument.isdigit() and int(argument) > 0):
        raise BackboneError(f"expected a positive number after {pooling!r}, received {text!r}")
    default = _GEM_POWER if pooling == "gem" else 0
    return Tap(layer, pooling, int(argument) if argument else default)


def parse_taps(taps: str | Iterable[str] | None) -> tuple[str, ...]:
    """Return the canonical names of taps, each once, in the order of the request."""
    if taps is None:
        return ("avg",)
    texts = [taps] if isinstance(taps, str) else list(taps)
    names = tuple(dict.fromkeys(str(parse_tap(text)) for text in texts))
    if not names:
        raise BackboneError("expected at least one tap, received none: the default is 'avg'")
    return names


class Arithmetic(Protocol):
    """What poolings compute with; `Native` is a tensor of a graph."""

    def shape(self, x: Native) -> tuple[int | None, ...]:
        """Return the extents of a tensor, None where they are open."""

    def mean(self, x: Native, axes: tuple[int, ...]) -> Native:
        """Return the mean over axes."""

    def largest(self, x: Native, axes: tuple[int, ...]) -> Native:
        """Return the maximum over axes."""

    def power(self, x: Native, exponent: float) -> Native:
        """Return every number to a power."""

    def at_least(self, x: Native, least: float) -> Native:
        """Return numbers, those below the least one raised to it."""

    def cut(self, x: Native, axis: int, start: int, stop: int) -> Native:
        """Return a part of a tensor."""

    def flat(self, x: Native, width: int) -> Native:
        """Return a tensor of shape (n, width)."""

    def joined(self, parts: list[Native]) -> Native:
        """Return vectors side by side."""


class KerasArithmetic:
    """Arithmetic on tensors of Keras."""

    def shape(self, x: Native) -> tuple[int | None, ...]:
        """Return the extents of a tensor, None where they are open."""
        return tuple(x.shape)

    def mean(self, x: Native, axes: tuple[int, ...]) -> Native:
        """Return the mean over axes."""
        return _ops().mean(x, axis=axes)

    def largest(self, x: Native, axes: tuple[int, ...]) -> Native:
        """Return the maximum over axes."""
        return _ops().max(x, axis=axes)

    def power(self, x: Native, exponent: float) -> Native:
        """Return every number to a power."""
        return _ops().power(x, exponent)

    def at_least(self, x: Native, least: float) -> Native:
        """Return numbers, those below the least one raised to it."""
        return _ops().maximum(x, least)

    def cut(self, x: Native, axis: int, start: int, stop: int) -> Native:
        """Return a part of a tensor."""
        return x[(slice(None),) * axis + (slice(start, stop),)]

    def flat(self, x: Native, width: int) -> Native:
        """Return a tensor of shape (n, width)."""
        return _ops().reshape(x, (-1, width))

    def joined(self, parts: list[Native]) -> Native:
        """Return vectors side by side."""
        return _ops().concatenate(parts, axis=-1)


def _ops() -> Native:
    from keras import ops

    return ops


def pool(features: Native, tap: Tap, on: Arithmetic | None = None) -> Native:
    """Pool maps (n, h, w, c) or sequences (n, t, c) to vectors (n, d); vectors pass unchanged.

    Tensors are Keras's, or of another arithmetic.

    Notes
    -----
    ``gem`` is Radenovic et al., "Fine-tuning CNN image retrieval with no human annotation" (2018),
    equation 3, of the values clipped at 1e-6.
    """
    on = on or KerasArithmetic()
    shape = on.shape(features)
    rank = len(shape)
    if rank == 2:
        return features
    if rank not in (3, 4):
        raise BackboneError(f"tap {tap} has an output of shape {shape}: not poolable")
    axes = tuple(range(1, rank - 1))
    if tap.pooling == "avg":
        return on.mean(features, axes)
    if tap.pooling == "max":
        return on.largest(features, axes)
    if tap.pooling == "gem":
        powered = on.power(on.at_least(features, _GEM_FLOOR), float(tap.argument))
        return on.power(on.mean(powered, axes), 1.0 / tap.argument)
    if tap.pooling == "flatten":
        return on.flat(features, _whole(shape[1:], tap))
    if tap.pooling in _OF_TOKENS:
        return _pool_tokens(features, shape, tap, on)
    # Cells as in adaptive average pooling: from floor(i*h/k) to ceil((i+1)*h/k).
    cells = tap.argument
    if rank != 4 or min(extent or 0 for extent in shape[1:3]) < cells:
        raise BackboneError(
            f"tap {tap} needs a feature map of at least {cells}x{cells} positions, received shape "
            f"{shape}"
        )
    height, width = (
        [(i * extent // cells, -(-(i + 1) * extent // cells)) for i in range(cells)]
        for extent in (shape[1] or 0, shape[2] or 0)
    )
    means = [
        on.mean(on.cut(on.cut(features, 1, *rows), 2, *columns), (1, 2))
        for rows in height
        for columns in width
    ]
    return on.joined(means)


def _pool_tokens(
    features: Native, shape: tuple[int | None, ...], tap: Tap, on: Arithmetic
) -> Native:
    """Pool a sequence (n, t, c) whose first token stands for the image."""
    if len(shape) != 3 or (shape[1] or 0) < 2:
        raise BackboneError(
            f"tap {tap} needs tokens, an output of shape (n, t, c) as transformers have, received "
            f"shape {shape}: take avg"
        )
    first = on.flat(on.cut(features, 1, 0, 1), _whole(shape[2:], tap))
    if tap.pooling == "cls":
        return first
    others = on.mean(on.cut(features, 1, 1, shape[1] or 0), (1,))
    return others if tap.pooling == "mean-tokens" else on.joined([first, others])


def _whole(extents: tuple[int | None, ...], tap: Tap) -> int:
    """Return how many numbers a tensor has, which has to be known."""
    if None in extents:
        raise BackboneError(f"tap {tap} has an output of no fixed shape, {extents}: not poolable")
    return math.prod(extent or 0 for extent in extents)


def tap_tensors(network: keras.Model, source: BackboneSource, tap: Tap) -> list[keras.KerasTensor]:
    """Return what a tap pools: the output of its layer or block, or those of several blocks."""
    if tap.layer == INNER and source.row is not None:
        return _inner_outputs(network, source)
    return [_tap_tensor(network, source, tap)]


def _inner_outputs(network: keras.Model, source: BackboneSource) -> list[keras.KerasTensor]:
    """Return outputs of blocks, evenly over the depth, not wider together than features are."""
    last = network.outputs[0]
    blocks = [x for x in block_outputs(network, source).values() if x is not last]
    first, widest = round(len(blocks) * _INNER_FROM), _INNER_WIDTH * int(last.shape[-1])
    late = blocks[first:]
    for count in range(min(_MOST_INNER, len(late)), 0, -1):
        chosen = [late[round((n + 1) * len(late) / count) - 1] for n in range(count)]
        if sum(int(x.shape[-1]) for x in chosen) <= widest:
            break
    return chosen


def _tap_tensor(network: keras.Model, source: BackboneSource, tap: Tap) -> keras.KerasTensor:
    if not tap.layer:
        names = network.output_names if len(network.outputs) > 1 else [DEFAULT_OUTPUT]
        if names[0] != DEFAULT_OUTPUT:
            raise BackboneError(
                f"{source.name} has the outputs {', '.join(names)}: name one of them, as in "
                f"--tap {names[0]}:{tap}"
            )
        return network.outputs[0]
    layers = layer_outputs(network)
    if tap.layer in layers:
        return layers[tap.layer]
    blocks = block_outputs(network, source)
    if tap.layer in blocks:
        return blocks[tap.layer]
    raise UnknownNameError(
        f"layer or block of {source.name}",
        tap.layer,
        [*blocks, *layers],
        hint=f"`featx backbones {source.name}` lists its blocks" if source.row else "",
    )


def require_channels_last(tensor: keras.KerasTensor, source: BackboneSource, tap: Tap) -> None:
    """Raise `BackboneError` if a tap would pool over the channels of a map."""
    if tap.pooling != "flatten" and len(tensor.shape) == 4 and _channels_first(tensor):
        flat = f"{tap.layer}:flatten" if tap.layer else "flatten"
        raise BackboneError(
            f"tap {tap} of {source.name} has its channels first, in shape {tensor.shape[1:]}: "
            f"expected them last. Take --tap {flat}, or a layer behind a transposition"
        )


def _channels_first(tensor: keras.KerasTensor) -> bool:
    """Tell whether the last layer that has an order of its axes puts channels first."""
    while True:
        layer = tensor._keras_history.operation
        if hasattr(layer, "data_format"):
            return bool(layer.data_format == "channels_first")
        inputs = layer._inbound_nodes[0].input_tensors if layer._inbound_nodes else []
        if not inputs:
            return False
        # Which axes a transposition of maps takes, counted from 1.
        if type(layer).__name__ == "Permute":
            return tuple(layer.dims) == (3, 1, 2)
        axes = getattr(layer, "axes", None) if type(layer).__name__ == "Transpose" else None
        if axes is not None:
            return tuple(axes[1:]) == (3, 1, 2)
        tensor = inputs[0]


def layer_outputs(network: keras.Model) -> dict[str, keras.KerasTensor]:
    """Return the output of every layer that has one, by a name that is the same in each process."""
    # Not `layer.output`: that of a nested model belongs to its own graph, not to the network's.
    applied: dict[int, list[keras.KerasTensor]] = defaultdict(list)
    for nodes in getattr(network, "_functional", network)._nodes_by_depth.values():
        for node in nodes:
            applied[id(node.operation)] += node.outputs
    counts: dict[str, int] = defaultdict(int)
    outputs = {}
    for layer in network.layers:
        # Keras numbers unnamed layers through the life of a process (``activation_205``); here they
        # are numbered through the network, from 1.
        name = str(layer.name)
        kind = re.sub(r"\W+", "", type(layer).__name__)
        snake = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z0-9])(?=[A-Z][a-z])", "_", kind).lower()
        base = re.sub(r"(?<=.)_\d+$", "", name)
        if base.replace("_", "") == snake.replace("_", ""):
            counts[base] += 1
            name = f"{base}_{counts[base]}"
        tensors = applied[id(layer)]
        if len(tensors) == 1:
            outputs[name] = tensors[0]
    return outputs


def block_outputs(network: keras.Model, source: BackboneSource) -> dict[str, keras.KerasTensor]:
    """Return the output of every block: of its last layer, or of the sum in which that ends."""
    if source.row is None:
        return {}
    pattern = re.compile(source.row.shared.block)
    last = {}
    for layer in network.layers:
        if match := pattern.match(layer.name):
            last[match.group(1)] = layer.output
    consumers = defaultdict(list)
    for operation in network.operations:
        for tensor in operation._inbound_nodes[0].input_tensors:
            consumers[id(tensor)].append(operation)
    for name, tensor in last.items():
        after = consumers[id(tensor)]
        if len(after) == 1 and not pattern.match(after[0].name):
            merges = len(after[0]._inbound_nodes[0].input_tensors) > 1
            last[name] = after[0].output if merges else tensor
    return last
