"""Where a network is cut: frozen below, trained above."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from featx.backbones.source import BackboneSource
from featx.backbones.taps import block_outputs, layer_outputs, parse_tap, tap_tensor
from featx.exceptions import FineTuningError, UnknownNameError


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """A network in two parts.

    Parameters
    ----------
    layers : tuple of str
        Layers of the frozen part whose outputs the trained part takes; none where there is nothing
        frozen that has weights, so that the trained part takes pixels.
    tensors : tuple of keras tensor
        Their outputs.
    output : keras tensor
        What the tap pools.
    groups : tuple of tuple of keras layer
        Trained layers that have weights, one group a block, the block at the output last.
    frozen : tuple of keras layer
        The others up to the tap.
    """

    layers: tuple[str, ...]
    tensors: tuple[Any, ...]
    output: Any
    groups: tuple[tuple[Any, ...], ...]
    frozen: tuple[Any, ...]


def find_cut(network: Any, source: BackboneSource, tap: str, unfreeze: str) -> Cut:
    """Find the cut below the first layer that is to be trained."""
    output = tap_tensor(network, source, parse_tap(tap))
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


def _nodes_before(network: Any, output: Any) -> list[Any]:
    """Return the nodes that an output depends on, every one after those that it takes from."""
    graph = getattr(network, "_functional", network)
    depths = sorted(graph._nodes_by_depth, reverse=True)
    ordered = [node for depth in depths for node in graph._nodes_by_depth[depth]]
    makers = {id(tensor): node for node in ordered for tensor in node.outputs}
    wanted, found = [output], set()
    while wanted:
        node = makers[id(wanted.pop())]
        if id(node) not in found:
            found.add(id(node))
            wanted += node.input_tensors
    return [node for node in ordered if id(node) in found]


def _has_weights(operation: Any) -> bool:
    return any(
        getattr(layer, "_trainable_variables", ())
        for layer in (operation, *getattr(operation, "_flatten_layers", tuple)())
    )


def _first_trained(
    network: Any, source: BackboneSource, operations: list[Any], unfreeze: str, tap: str
) -> int:
    text = unfreeze.strip()
    if text == "all":
        return 0
    if text.endswith("%"):
        return _last_share(operations, text)
    if text.startswith("after:"):
        return _after(network, operations, text)
    pattern = None if source.row is None else re.compile(source.row.shared.block)
    for place, operation in enumerate(operations):
        match = pattern.match(operation.name) if pattern else None
        if match and match.group(1) == text:
            return place
    layers, blocks = layer_outputs(network), block_outputs(network, source)
    if text in layers:
        for place, operation in enumerate(operations):
            if any(tensor is layers[text] for tensor in operation._inbound_nodes[0].outputs):
                return place
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


def _last_share(operations: list[Any], text: str) -> int:
    try:
        share = float(text[:-1])
    except ValueError:
        share = -1.0
    if not 0 < share <= 100:
        raise FineTuningError(
            f"expected a share of the layers above 0 and up to 100%, received {text!r}"
        )
    weighted = [place for place, one in enumerate(operations) if _has_weights(one)]
    return weighted[-max(1, round(len(weighted) * share / 100))] if weighted else 0


def _after(network: Any, operations: list[Any], text: str) -> int:
    number = text.removeprefix("after:")
    if not (number.isascii() and number.isdigit()):
        raise FineTuningError(
            f"expected a number of layers that stay frozen, as in after:15, received {text!r}"
        )
    kept = {id(layer) for layer in network.layers[: int(number)]}
    places = [place for place, one in enumerate(operations) if id(one) not in kept]
    return places[0] if places else len(operations)


def _boundary(
    network: Any, nodes: list[Any], above: set[int]
) -> tuple[tuple[str, ...], tuple[Any, ...]]:
    crossing: dict[int, Any] = {}
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
    return tuple(names[place] for place in crossing), tuple(crossing.values())


def _by_block(trained: list[Any], source: BackboneSource) -> tuple[tuple[Any, ...], ...]:
    """Put layers of one block together; what is in no block goes with the block before it."""
    pattern = None if source.row is None else re.compile(source.row.shared.block)
    groups: list[list[Any]] = []
    current: str | None = None
    for layer in trained:
        match = pattern.match(layer.name) if pattern else None
        block = match.group(1) if match else (current if pattern else layer.name)
        if block != current or not groups:
            groups.append([])
        groups[-1].append(layer)
        current = block
    return tuple(tuple(group) for group in groups)
