"""The places of a network where features are taken: a layer or block, and a pooling."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from featx.exceptions import BackboneError, UnknownNameError

POOLINGS: dict[str, str] = {
    "avg": "mean over the positions",
    "max": "maximum over the positions",
    "gem": "generalised mean, gem:P sets the power (3 by default)",
    "flatten": "every position and channel",
    "grid": "means over K x K cells, grid:K",
}
"""Poolings by name, with what they do."""

_GEM_POWER = 3


@dataclass(frozen=True, slots=True)
class Tap:
    """A layer or block, and how its feature map becomes one vector.

    Parameters
    ----------
    layer : str
        Name of a layer or of a block; empty for the network's last feature map.
    pooling : str
        Key of `POOLINGS`.
    argument : int
        Power of ``gem``, number of cells a side of ``grid``, else 0.
    """

    layer: str
    pooling: str
    argument: int = 0

    def __str__(self) -> str:
        text = self.pooling
        if self.pooling == "grid" or (self.pooling == "gem" and self.argument != _GEM_POWER):
            text += f":{self.argument}"
        return f"{self.layer}:{text}" if self.layer else text


def parse_tap(text: str) -> Tap:
    """Read a tap: ``avg``, ``grid:2``, ``block_12``, ``block_12:gem``, ``block_12:grid:2``.

    Raises
    ------
    BackboneError
        If the text is empty, or the argument of a pooling is missing or not a positive number.
    UnknownNameError
        If the pooling after a layer's name is unknown.

    Examples
    --------
    >>> str(parse_tap("block_12"))
    'block_12:avg'
    >>> parse_tap("block_12:grid:2")
    Tap(layer='block_12', pooling='grid', argument=2)
    """
    head, _, rest = text.strip().partition(":")
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
    default = {"gem": _GEM_POWER}.get(pooling, 0)
    if pooling not in ("gem", "grid") and argument:
        raise BackboneError(f"pooling {pooling!r} takes no argument, received {text!r}")
    if pooling == "grid" and not argument:
        raise BackboneError(f"grid needs its number of cells, as in 'grid:2', received {text!r}")
    if argument and not (argument.isascii() and argument.isdigit() and int(argument) > 0):
        raise BackboneError(f"expected a positive number after {pooling!r}, received {text!r}")
    return Tap(layer, pooling, int(argument) if argument else default)


def parse_taps(taps: str | Iterable[str] | None) -> tuple[str, ...]:
    """Return the canonical names of taps, each once, in the order asked for.

    Examples
    --------
    >>> parse_taps(["avg", "block_12", "gem:3", "avg"])
    ('avg', 'block_12:avg', 'gem')
    """
    if taps is None:
        return ("avg",)
    texts = [taps] if isinstance(taps, str) else list(taps)
    names = tuple(dict.fromkeys(str(parse_tap(text)) for text in texts))
    if not names:
        raise BackboneError("expected at least one tap, received none: the default is 'avg'")
    return names
