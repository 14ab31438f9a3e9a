"""Names of splits as people write them, and which of train, val and test they mean."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from featx.exceptions import DatasetError

SplitNames = Mapping[str, str] | Literal["none"] | None
"""What names of splits mean, such as ``{"pilot": "test"}``; ``"none"``: folders are no splits."""

_SPLITS = ("train", "val", "test")
_WORDS = {
    "train": "train",
    "training": "train",
    "trn": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "validate": "val",
    "dev": "val",
    "development": "val",
    "test": "test",
    "testing": "test",
    "tst": "test",
    "holdout": "test",
    "heldout": "test",
    "eval": "test",
    "evaluation": "test",
}
PLAIN_NAMES = frozenset((*_WORDS, "hold_out", "held_out", "hold-out", "held-out"))
"""Names that are nothing but the name of a split, in lower case."""

_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_ENDS = re.compile(r"(?<=.)(?:dataset|data|sets?|images?|imgs?|files?|split|folder|dir)$")
_SHOWN = 5


def split_of(name: str) -> str:
    """Return the split that a name means: train, val or test; ``""`` where it means none of them.

    One word of the name has to be that of a split: ``seg_train``, ``test-images``, ``val2017``.

    Examples
    --------
    >>> [split_of(name) for name in ("seg_train", "TestSet", "val2017", "train_val", "trainers")]
    ['train', 'test', 'val', '', '']
    """
    joined = re.sub(r"(?i)\b(hold|held)[ _-]out", r"\1out", name.replace("_", " "))
    words = (word.lower() for word in _WORD.findall(joined))
    meant = {_WORDS.get(word) or _WORDS.get(_ENDS.sub("", word), "") for word in words} - {""}
    return meant.pop() if len(meant) == 1 else ""


def parse_names(pairs: Iterable[str]) -> SplitNames:
    """Read ``NAME=SPLIT`` as the option ``--splits`` has it, or ``none``.

    Raises
    ------
    DatasetError
        For anything else.
    """
    pairs = list(pairs)
    if pairs == ["none"]:
        return "none"
    names = {}
    for pair in pairs:
        name, equals, split = pair.rpartition("=")
        if not (name and equals):
            raise DatasetError(
                f"expected --splits NAME=SPLIT, such as pilot=test, or none, received {pair!r}"
            )
        names[name] = split
    return check_names(names) if names else None


def check_names(names: SplitNames) -> SplitNames:
    """Return what names of splits mean, if they mean train, val or test.

    Raises
    ------
    DatasetError
        For another split, or no mapping.
    """
    if names is None or names == "none":
        return names
    if not isinstance(names, Mapping):
        raise DatasetError(
            f"expected splits={{'pilot': 'test'}} or splits='none', received {names!r}"
        )
    wrong = [split for split in names.values() if split not in _SPLITS]
    if wrong:
        raise DatasetError(
            f"expected train, val or test as the meaning of a split, received {wrong[0]!r}"
        )
    return names


def read_splits(
    values: Sequence[str], names: SplitNames = None, *, what: str = "the data"
) -> tuple[list[str], tuple[tuple[str, str], ...]]:
    """Return the split of each row, and what each name that occurs was taken for.

    Parameters
    ----------
    values : sequence of str
        Names of splits; empty text is none.
    names : mapping of str to str, optional
        What names mean that would not be understood, or would be taken for something else.
    what : str
        What an error is to call the data.

    Returns
    -------
    splits : list of str
        ``train``, ``val``, ``test`` or ``""``.
    names : tuple of (name, split)

    Raises
    ------
    DatasetError
        For a name that means no split.
    """
    given = {} if names is None or names == "none" else {n.strip(): s for n, s in names.items()}
    written = sorted({value.strip() for value in values} - {""})
    meant = {name: given.get(name) or split_of(name) for name in written}
    check_used(given, written, what)
    if unknown := [name for name, split in meant.items() if not split]:
        raise unknown_error(unknown, what)
    splits = [meant.get(value.strip(), "") for value in values]
    return splits, tuple(meant.items())


def check_used(names: Iterable[str], there: Iterable[str], what: str) -> None:
    """Raise `DatasetError` where a name that was mapped does not occur."""
    there = list(there)
    if unused := sorted(set(names) - set(there)):
        raise DatasetError(
            f"no split is called {unused[0]!r} in {what}, which has: "
            f"{', '.join(map(repr, there[:_SHOWN])) or 'none'}"
        )


def unknown_error(unknown: Sequence[str], what: str, more: str = "") -> DatasetError:
    """Return the error for names that mean no split, with what to do."""
    listed = ", ".join(map(repr, unknown[:_SHOWN]))
    name = unknown[0]
    option = f"'{name}=test'" if re.search(r"[^\w.-]", name) else f"{name}=test"
    return DatasetError(
        f"{listed} in {what} could be a split, but means none of train, val and test: "
        f"say what it is with --splits {option} (splits={{{name!r}: 'test'}}){more}"
    )


def check_splits(splits: Iterable[str] | None, what: str) -> None:
    """Raise `DatasetError` where rows have a split other than train, val and test."""
    unknown = sorted({*map(str, splits if splits is not None else ())} - {"", *_SPLITS})
    if unknown:
        raise unknown_error(unknown, what)
