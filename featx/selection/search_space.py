"""What a search may try: heads with their parameters, transforms, blocks of features."""

from __future__ import annotations

import ast
import json
import math
import os
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np

from featx.exceptions import HeadError, MissingExtraError, UnknownNameError, reason
from featx.heads.foreign import is_foreign, trusted_head
from featx.heads.making import make_head
from featx.heads.table import HeadSpec, divided, heads_for, parse_head
from featx.selection.transforms import Estimator, parse_transform

_RANGE = re.compile(r"(?P<low>[^.\s].*?)\.\.(?P<high>.+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Range:
    """All numbers from one to another, on a logarithmic scale where they are above 0.

    Whole numbers, where both ends are int.

    >>> Range(0.0001, 100.0).at(0.5)
    0.1
    >>> Range(1, 9).at(0.5)
    3
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise HeadError(
                f"a range goes from a number to a greater one, received {self}: write, for "
                "example, C=0.001..10"
            )

    def __str__(self) -> str:
        return f"{self.low}..{self.high}"

    def at(self, share: float) -> float:
        """Return the number at a share (0 to 1) of the way, to 3 digits or whole."""
        if self.low > 0:
            value = math.exp(math.log(self.low) * (1 - share) + math.log(self.high) * share)
        else:
            value = self.low * (1 - share) + self.high * share
        whole = isinstance(self.low, int) and isinstance(self.high, int)
        value = round(value) if whole else float(f"{value:.3g}")
        return min(max(value, self.low), self.high)


Axis: TypeAlias = tuple[object, ...] | Range
"""The values of one parameter."""


@dataclass(frozen=True, slots=True)
class HeadGrid:
    """One head with the values of its parameters, whose product is tried."""

    label: str  # its name, or the text of the estimator
    grid: tuple[tuple[str, Axis], ...] = ()
    estimator: Estimator = field(default=None, compare=False, repr=False)  # where one was given
    regression: bool = False

    @property
    def row(self) -> HeadSpec | None:
        """Its row of the table, None where it has none."""
        return heads_for(regression=self.regression).get(self.label)

    def make(self, **params: Any) -> Estimator:
        """Make the untrained head."""
        head = self.label if self.estimator is None else self.estimator
        return make_head(head, regression=self.regression, **params)


def head_grid(head: Any, *, regression: bool = False, trust: bool = False) -> HeadGrid:
    """Read a head and its grid from any of the forms that a user may give.

    With `trust`, text may name an estimator of another package by its import path.
    """
    params: Mapping[str, Any] = {}
    if isinstance(head, Mapping):
        if "head" not in head:
            raise HeadError(f"expected the key 'head' beside parameters, received {dict(head)!r}")
        params = {name: value for name, value in head.items() if name != "head"}
        head = head["head"]
    elif isinstance(head, tuple | list) and len(head) == 2 and isinstance(head[1], Mapping):
        head, params = head
    if isinstance(head, str):
        read = _from_text(head, default=not params, regression=regression)
        if trust and is_foreign(read.label):
            read = replace(read, estimator=trusted_head(read.label))
    else:
        make_head(head, regression=regression)  # refuses what is no estimator
        read = HeadGrid(" ".join(repr(head).split()), (), head, regression)
    axes = {str(name): _axis(name, value) for name, value in params.items()}
    read = replace(read, grid=tuple({**dict(read.grid), **axes}.items()))
    # Made with every value once, so that none is refused an hour into a search.
    read.make()
    for name, axis in read.grid:
        for value in (axis.low, axis.high) if isinstance(axis, Range) else axis:
            read.make(**{name: value})
    return read


def _balanced(head: HeadGrid) -> HeadGrid:
    """Return a head with balanced class weights, as it is where it has none or states its own."""
    weighted = replace(head, grid=(*head.grid, ("class_weight", ("balanced",))))
    if "class_weight" in dict(head.grid):
        return head
    try:
        weighted.make(class_weight="balanced")
    except HeadError:
        return head
    return weighted


def _axis(name: str, value: Any) -> Axis:
    if isinstance(value, Range):
        return value
    if isinstance(value, str):
        return _axis_of_text(value, "value", name)
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Sequence) and not isinstance(value, tuple):
        if not value:
            raise HeadError(
                f"the search space is empty (no value for {name!r}): list at least one, or leave "
                "the parameter out"
            )
        return tuple(_plain(item) for item in value)
    return (_plain(value),)


def _plain(value: object) -> object:
    """Give NumPy's numbers as Python's, and a list as a tuple, so that equal values look equal."""
    value = value.item() if isinstance(value, np.generic) else value
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value


def _from_text(text: str, *, default: bool, regression: bool) -> HeadGrid:
    name, colon, rest = text.partition(":")
    name = parse_head(name).name
    row = heads_for(regression=regression).get(name)

    def grid_of(axes: Mapping[str, Axis]) -> HeadGrid:
        return HeadGrid(name, tuple(axes.items()), regression=regression)

    if not colon:
        values = row.grid if default and row is not None else {}
        return grid_of({key: tuple(axis) for key, axis in values.items()})
    grid: dict[str, Axis] = {}
    unnamed: list[list[object]] = []
    for item in _divided(rest, ","):
        key, equals, value = item.partition("=")
        if not equals:
            texts = _divided(item, "|")
            unnamed.append([parse_head(f"{name}:{text}").values[0] for text in texts])
        elif key.strip() in grid:
            raise HeadError(f"{key.strip()!r} is given twice in {text!r}: divide values by '|'")
        else:
            grid[key.strip()] = _axis_of_text(value, name, key.strip())
    if not unnamed:
        return grid_of(grid)
    if row is None or not row.values:
        raise HeadError(
            f"{name!r} takes parameters by name, received {unnamed[0][0]!r}: "
            f"write '{name}:parameter={unnamed[0][0]}'"
        )
    every = [
        values[0] if len(values) == 1 and isinstance(values[0], tuple) else values
        for values in product(*unnamed)
    ]
    return grid_of({row.values: tuple(every), **grid})


def _axis_of_text(text: str, name: str, key: str) -> Axis:
    alternatives = _divided(text, "|")
    ends = _RANGE.fullmatch(alternatives[0]) if len(alternatives) == 1 else None
    if ends is not None:
        low, high = _number(ends["low"]), _number(ends["high"])
        if low is None or high is None:
            raise HeadError(
                f"expected numbers at both ends of the range {text!r} of {key!r}: write, for "
                "example, 0.001..10"
            )
        return Range(low, high)
    return tuple(parse_head(f"{name}:{key}={text}").params[key] for text in alternatives)


def _number(text: str) -> float | None:
    try:
        value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError):
        return None
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _divided(text: str, divider: str) -> list[str]:
    items = divided(text, divider)
    if not all(items):
        raise HeadError(
            f"nothing beside a {divider!r} in {text!r}: write a value there, or leave it out"
        )
    return items


_MOST_BYTES = 1 << 20


def _toml(text: str) -> object:
    read = tomllib.loads(text)
    # TOML has no list at its top: several parts are [[parts]].
    return read["parts"] if list(read) == ["parts"] else read


def _yaml(text: str) -> object:
    try:
        import yaml
    except ModuleNotFoundError as error:
        if error.name != "yaml":
            raise
        raise MissingExtraError(
            "PyYAML", extra="hpo", purpose="reading a search space from YAML (JSON and TOML do too)"
        ) from error
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


_READERS: Mapping[str, Callable[[str], object]] = MappingProxyType(
    {".json": json.loads, ".toml": _toml, ".yaml": _yaml, ".yml": _yaml}
)


def read_space_file(path: str | os.PathLike[str]) -> object:
    """Return what a file holds, for `SearchSpace.read`."""
    file = Path(path).expanduser()
    reader = _READERS.get(file.suffix.lower())
    if reader is None:
        raise HeadError(
            f"expected a search space in a file that ends in {', '.join(_READERS)}, received "
            f"{str(path)!r}"
        )
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise HeadError(f"{file} is larger than 1 MiB, which no search space is")
        return reader(file.read_text("utf-8"))
    except OSError as error:
        raise HeadError(
            f"the search space {str(path)!r} cannot be read ({error.strerror or error}): name a "
            "file that exists"
        ) from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, HeadError):
            raise
        raise HeadError(
            f"{file} is no valid {file.suffix[1:].upper()}: {reason(error)}: see docs/search.md "
            "for the form of a search space"
        ) from error


BlockKey: TypeAlias = tuple[str, str]
"""Backbone and tap of a block."""

DEFAULT_HEADS = ("logistic", "ridge")
"""Heads that a search tries when none are named.

Others that are cheap to try (lda, nearest neighbours, nearest means) rarely win on images that the
selection has not seen, and of few images they often win by chance; see ``docs/search.md``.
"""

DEFAULT_VALUE_HEADS = ("ridge", "knn")
"""The same of a regression."""

_KEYS = ("backbones", "heads", "taps", "transforms")
_MOST = 100_000


@dataclass(frozen=True, slots=True)
class Candidate:
    """One thing to try: a head with its parameters behind a transform on a block of features."""

    backbone: str
    tap: str
    transform: str  # canonical text, see `featx.selection.transforms.parse_transform`
    head: str
    params: tuple[tuple[str, object], ...] = ()  # where they differ from the head's defaults
    estimator: Estimator = field(default=None, compare=False, repr=False)  # where one was given
    regression: bool = False

    @property
    def row(self) -> HeadSpec | None:
        """The row of its head in the table, None where it has none."""
        return heads_for(regression=self.regression).get(self.head)

    @property
    def block_key(self) -> BlockKey:
        """Backbone and tap."""
        return self.backbone, self.tap

    @property
    def text(self) -> str:
        """The head as a user would type it."""
        if not self.params:
            return self.head
        return f"{self.head}:" + ",".join(f"{name}={_typed(value)}" for name, value in self.params)

    @property
    def key(self) -> str:
        """What tells it from every other candidate, the same in every process."""
        params = [[name, repr(value)] for name, value in self.params]
        return json.dumps([self.backbone, self.tap, self.transform, self.head, params])

    def make(self, *, seed: int = 0, multilabel: bool = False) -> Estimator:
        """Make the untrained head, without the transform."""
        head = self.head if self.estimator is None else self.estimator
        params: dict[str, Any] = dict(self.params)
        kind = {"multilabel": multilabel, "regression": self.regression}
        return make_head(head, seed=seed, **kind, **params)


@dataclass(frozen=True, slots=True)
class SpacePart:
    """Every head behind every transform on every block that is named, or on all of them."""

    heads: tuple[HeadGrid, ...]
    transforms: tuple[str, ...] = ("standard",)
    backbones: tuple[str, ...] | None = None
    taps: tuple[str, ...] | None = None

    def block_keys(self, blocks: Sequence[BlockKey]) -> list[BlockKey]:
        """Return which of some blocks this part is about."""
        chosen = list(blocks)
        for kind, names, number in (("backbone", self.backbones, 0), ("tap", self.taps, 1)):
            there = {block[number] for block in blocks}
            for name in names or ():
                if name not in there:
                    what = f"{kind} of these features"
                    raise UnknownNameError(what, name, there, hint="Extract it first")
            chosen = [block for block in chosen if names is None or block[number] in names]
        return chosen


@dataclass(frozen=True, slots=True)
class SearchSpace:
    """The union of some parts.

    >>> space = SearchSpace.read({"heads": ["knn:n_neighbors=1|5", "ridge:alpha=10"]})
    >>> [candidate.text for candidate in space.candidates([("tiny", "avg")])]
    ['knn:n_neighbors=1', 'knn:n_neighbors=5', 'ridge:alpha=10']
    """

    parts: tuple[SpacePart, ...]
    called: Mapping[str, str] = field(default_factory=dict, compare=False)
    """What the user called each backbone that is named."""

    @classmethod
    def read(
        cls,
        space: object,
        *,
        defaults: Mapping[str, object] | None = None,
        canonical: Mapping[str, Callable[[str], str]] | None = None,
        regression: bool = False,
        trust: bool = False,
    ) -> SearchSpace:
        """Read a space from Python objects, or from what a file of the same structure holds.

        ``defaults`` are of the parts that lack a key; ``canonical`` write names by their key. With
        `trust`, heads may be estimators of other packages by their import path.
        """
        parts = [space] if isinstance(space, Mapping) else space
        if not isinstance(parts, Sequence) or isinstance(parts, str | bytes):
            raise HeadError(
                f"a search space is a mapping with {', '.join(_KEYS)}, or a list of such, "
                f"received {space!r}"
            )
        if not parts:
            raise _empty("no part")
        called: dict[str, str] = {}
        grids = partial(head_grid, regression=regression, trust=trust)
        usual = DEFAULT_VALUE_HEADS if regression else DEFAULT_HEADS
        stated = {"heads": usual, **(defaults or {})}
        read = [_read_part(part, stated, canonical or {}, called, grids) for part in parts]
        return cls(tuple(read), called)

    def balanced(self) -> SearchSpace:
        """Return the space with heads that weigh classes by their rarity, where they can."""
        parts = [replace(part, heads=tuple(map(_balanced, part.heads))) for part in self.parts]
        if not any("class_weight" in dict(head.grid) for part in parts for head in part.heads):
            raise HeadError(
                "no head of the space weighs classes: add logistic, ridge, lda, svm, rbf, forest, "
                "extra-trees or dense, or leave --balanced (balanced=True) out"
            )
        return replace(self, parts=tuple(parts))

    def ranged(self) -> str | None:
        """Return a parameter that has a range in place of values, or None."""
        for head in (head for part in self.parts for head in part.heads):
            for name, axis in head.grid:
                if isinstance(axis, Range):
                    return f"{head.label}:{name}={axis}"
        return None

    def size(self, blocks: Sequence[BlockKey]) -> int:
        """Return the number of candidates on some blocks; ranges count as one value."""
        return sum(
            prod(1 if isinstance(axis, Range) else len(axis) for _, axis in head.grid)
            for _, _, head in self.choices(blocks)
        )

    def candidates(self, blocks: Sequence[BlockKey]) -> list[Candidate]:
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
        candidates: dict[Candidate, None] = {}
        for key, transform, head in self.choices(blocks):
            axes = [axis if isinstance(axis, tuple) else () for _, axis in head.grid]
            for values in product(*axes):
                candidates[build(key, transform, head, values)] = None
        if not candidates:
            raise _empty("no block, head or value")
        return list(candidates)

    def choices(self, blocks: Sequence[BlockKey]) -> list[tuple[BlockKey, str, HeadGrid]]:
        """Return every combination of block, transform and head, without their parameters."""
        return [
            (key, transform, head)
            for part in self.parts
            for key in part.block_keys(blocks)
            for transform in part.transforms
            for head in part.heads
        ]

    def describe(self) -> list[object]:
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


def build(key: BlockKey, transform: str, head: HeadGrid, values: Sequence[object]) -> Candidate:
    """Put a candidate together from one value of each parameter of a head."""
    names = [name for name, _ in head.grid]
    params = tuple(zip(names, values, strict=True))
    return Candidate(*key, transform, head.label, params, head.estimator, head.regression)


def _read_part(
    part: object,
    defaults: Mapping[str, object],
    canonical: Mapping[str, Callable[[str], str]],
    called: dict[str, str],
    grids: Callable[[Any], HeadGrid],
) -> SpacePart:
    if not isinstance(part, Mapping):
        raise HeadError(
            f"a part of a search space is a mapping with {', '.join(_KEYS)}, received {part!r}"
        )
    for key in part:
        if key not in _KEYS:
            raise UnknownNameError("key of a search space", str(key), _KEYS)
    whole = {**{key: value for key, value in defaults.items() if value is not None}, **part}
    lists = {key: _listed(whole[key]) for key in _KEYS if whole.get(key) is not None}
    heads = tuple(map(grids, lists.pop("heads")))
    transforms = [str(parse_transform(text)) for text in lists.pop("transforms", ["standard"])]
    chosen: dict[str, tuple[str, ...]] = {}
    for key, names in lists.items():
        write = canonical.get(key, str)
        chosen[key] = tuple(write(str(name)) for name in names)
        if key == "backbones":
            called |= dict(zip(chosen[key], map(str, names), strict=True))
    for key, values in {**chosen, "heads": heads, "transforms": transforms}.items():
        if not values:
            raise _empty(f"{key} is an empty list")
    return SpacePart(heads, tuple(dict.fromkeys(transforms)), **chosen)


def _listed(value: Any) -> list[Any]:
    several = isinstance(value, Sequence) and not isinstance(value, str)
    return list(value) if several else [value]


def _empty(why: str) -> HeadError:
    return HeadError(
        f"the search space is empty ({why}): name at least one head, for example 'logistic', and "
        "leave out what is to be everything that there is"
    )


def _typed(value: object) -> str:
    """Write a value so that `featx.heads.table.parse_head` reads the same."""
    if isinstance(value, str) and value.isidentifier() and value not in ("None", "True", "False"):
        return value
    return repr(value)
