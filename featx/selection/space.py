"""What a search may try: blocks, transforms, heads and the values of their parameters."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from math import prod
from typing import Any, TypeAlias

from featx.exceptions import HeadError, UnknownNameError
from featx.heads.table import HEADS, make_head
from featx.selection.head_grids import HeadGrid, Range, head_grid
from featx.selection.transforms import parse_transform

Place: TypeAlias = tuple[str, str]
"""Backbone and tap of a block."""

DEFAULT_HEADS = ("nearest-mean", "ridge", "lda", "knn", "logistic")
"""Heads that a search tries when none are named: those whose settings are measured together."""

_KEYS = ("backbones", "heads", "taps", "transforms")
_MOST = 100_000


@dataclass(frozen=True, slots=True)
class Candidate:
    """One thing to try.

    Parameters
    ----------
    backbone, tap : str
        The block of features.
    transform : str
        Canonical text of a transform, see `featx.selection.transforms.parse_transform`.
    head : str
        Name of the head.
    params : tuple of (str, value)
        Its parameters, where they differ from its defaults.
    estimator : estimator, optional
        The head itself, where it was handed in.
    """

    backbone: str
    tap: str
    transform: str
    head: str
    params: tuple[tuple[str, Any], ...] = ()
    estimator: Any = field(default=None, compare=False, repr=False)

    @property
    def text(self) -> str:
        """The head as a user would type it."""
        if not self.params:
            return self.head
        return f"{self.head}:" + ",".join(f"{name}={_typed(value)}" for name, value in self.params)

    @property
    def key(self) -> str:
        """What tells it from every other candidate, the same in every process."""
        given = [[name, repr(value)] for name, value in self.params]
        return json.dumps([self.backbone, self.tap, self.transform, self.head, given])

    def make(self, *, seed: int = 0, multilabel: bool = False) -> Any:
        """Make the untrained head, without the transform."""
        head = self.head if self.estimator is None else self.estimator
        return make_head(head, seed=seed, multilabel=multilabel, **dict(self.params))


@dataclass(frozen=True, slots=True)
class SpacePart:
    """Every head behind every transform on every block that is named.

    Parameters
    ----------
    heads : tuple of HeadGrid
        Heads with the values of their parameters.
    transforms : tuple of str, default ("standard",)
        Canonical texts.
    backbones, taps : tuple of str, optional
        Which blocks; all by default.
    """

    heads: tuple[HeadGrid, ...]
    transforms: tuple[str, ...] = ("standard",)
    backbones: tuple[str, ...] | None = None
    taps: tuple[str, ...] | None = None

    def places(self, blocks: Sequence[Place]) -> list[Place]:
        """Return which of some blocks this part is about."""
        _require_there("backbone", self.backbones, [backbone for backbone, _ in blocks])
        _require_there("tap", self.taps, [tap for _, tap in blocks])
        return [
            (backbone, tap)
            for backbone, tap in blocks
            if (self.backbones is None or backbone in self.backbones)
            and (self.taps is None or tap in self.taps)
        ]


@dataclass(frozen=True, slots=True)
class SearchSpace:
    """The union of some parts.

    Examples
    --------
    >>> space = SearchSpace.read({"heads": ["knn:n_neighbors=1|5", "ridge:alpha=10"]})
    >>> [candidate.text for candidate in space.candidates([("tiny", "avg")])]
    ['knn:n_neighbors=1', 'knn:n_neighbors=5', 'ridge:alpha=10']
    """

    parts: tuple[SpacePart, ...]

    @classmethod
    def read(cls, given: Any) -> SearchSpace:
        """Read a space from Python objects, or from what a file of the same structure holds."""
        parts = [given] if isinstance(given, Mapping) else given
        if not isinstance(parts, Sequence) or isinstance(parts, str | bytes):
            raise HeadError(
                f"a search space is a mapping with {', '.join(_KEYS)}, or a list of such, "
                f"received {given!r}"
            )
        if not parts:
            raise _empty("no part")
        return cls(tuple(_read_part(part) for part in parts))

    def ranged(self) -> str | None:
        """Return a parameter that has a range in place of values, or None."""
        for head in (head for part in self.parts for head in part.heads):
            for name, axis in head.grid:
                if isinstance(axis, Range):
                    return f"{head.label}:{name}={axis}"
        return None

    def size(self, blocks: Sequence[Place]) -> int:
        """Return the number of candidates on some blocks; ranges count as one value."""
        return sum(
            len(part.places(blocks)) * len(part.transforms) * sum(_size(h) for h in part.heads)
            for part in self.parts
        )

    def candidates(self, blocks: Sequence[Place]) -> list[Candidate]:
        """Return every candidate on some blocks once, in the order of the space."""
        ranged = self.ranged()
        if ranged is not None:
            raise HeadError(
                f"{ranged} is a range, of which a grid cannot try every value: list values as in "
                "C=0.1|1, or draw from it with --strategy random or optuna (strategy=...)"
            )
        if self.size(blocks) > _MOST:
            raise HeadError(
                f"the space has {self.size(blocks):,} candidates, a grid takes {_MOST:,} at most: "
                "list fewer values, or draw from it with --strategy random"
            )
        found = dict.fromkeys(self._every(blocks))
        if not found:
            raise _empty("no block, head or value")
        return list(found)

    def _every(self, blocks: Sequence[Place]) -> Iterator[Candidate]:
        for place, transform, head in self.choices(blocks):
            axes = [axis if isinstance(axis, tuple) else () for _, axis in head.grid]
            for values in product(*axes):
                yield build(place, transform, head, values)

    def choices(self, blocks: Sequence[Place]) -> list[tuple[Place, str, HeadGrid]]:
        """Return every combination of block, transform and head, without their parameters."""
        return [
            (place, transform, head)
            for part in self.parts
            for place in part.places(blocks)
            for transform in part.transforms
            for head in part.heads
        ]

    def describe(self) -> list[Any]:
        """Return the space as JSON types, for the digest of a search."""
        return [
            [
                part.backbones,
                part.taps,
                part.transforms,
                [
                    [head.label, [[name, repr(axis)] for name, axis in head.grid]]
                    for head in part.heads
                ],
            ]
            for part in self.parts
        ]


def build(place: Place, transform: str, head: HeadGrid, values: Sequence[Any]) -> Candidate:
    """Put a candidate together from one value of each parameter of a head."""
    names = [name for name, _ in head.grid]
    return Candidate(
        *place, transform, head.label, tuple(zip(names, values, strict=True)), head.estimator
    )


def _read_part(given: Any) -> SpacePart:
    if not isinstance(given, Mapping):
        raise HeadError(
            f"a part of a search space is a mapping with {', '.join(_KEYS)}, received {given!r}"
        )
    for key in given:
        if key not in _KEYS:
            raise UnknownNameError("key of a search space", str(key), _KEYS)
    lists = {key: _listed(key, given[key]) for key in _KEYS if given.get(key) is not None}
    known = [name for name in DEFAULT_HEADS if name in HEADS]
    heads = tuple(head_grid(head) for head in lists.get("heads", known))
    transforms = tuple(
        dict.fromkeys(str(parse_transform(text)) for text in lists.get("transforms", ["standard"]))
    )
    for name, values in {**lists, "heads": heads}.items():
        if not values:
            raise _empty(f"{name} is an empty list")
    return SpacePart(heads, transforms, _names(lists, "backbones"), _names(lists, "taps"))


def _names(lists: Mapping[str, list[Any]], key: str) -> tuple[str, ...] | None:
    return tuple(map(str, lists[key])) if key in lists else None


def _listed(key: str, value: Any) -> list[Any]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        return [value]
    return list(value)


def _size(head: HeadGrid) -> int:
    return prod(1 if isinstance(axis, Range) else len(axis) for _, axis in head.grid)


def _require_there(kind: str, names: tuple[str, ...] | None, there: Sequence[str]) -> None:
    for name in names or ():
        if name not in there:
            raise UnknownNameError(
                f"{kind} of these features", name, set(there), hint="Extract it first"
            )


def _empty(why: str) -> HeadError:
    return HeadError(
        f"the search space is empty ({why}): name at least one head, for example 'logistic', and "
        "leave out what is to be everything that there is"
    )


def _typed(value: Any) -> str:
    """Write a value so that `featx.heads.table.parse_head` reads the same."""
    if isinstance(value, str) and value.isidentifier() and value not in ("None", "True", "False"):
        return value
    return repr(value)
