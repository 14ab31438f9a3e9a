"""Labels, sets of labels and splits in whatever form people write them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import DatasetError
from featx.images.files import AnyArray

# What pandas reads as missing, in any case, and what its missing values are written as.
# fmt: off
_MISSING = frozenset((
    "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN",
    "<NA>", "N/A", "NA", "NAN", "NULL", "NaN", "NaT", "Nan", "None", "Null", "n/a", "nan", "null",
))
# fmt: on
SEPARATOR = "|"
"""Between the labels of one image in text: ``ant|winged``. By itself it says that none applies."""

_SHOWN = 5
# Numbers of different values, and rows with the same, that tell measurements from codes.
_SOME, _MANY, _VERY_MANY, _FEW_ROWS = 10, 20, 40, 20


def is_missing(value: object) -> bool:
    """Return whether a value stands for none: None, NaN, NA, NaT, and the texts for these."""
    if value is None or type(value).__name__ in ("NAType", "NaTType", "MaskedConstant"):
        return True
    if isinstance(value, bytes):
        value = value.decode("utf-8", "surrogateescape")
    if isinstance(value, str):
        return value.strip() in _MISSING
    if isinstance(value, np.datetime64 | np.timedelta64):
        return bool(np.isnat(value))
    return isinstance(value, float | np.floating) and bool(value != value)


def as_text(value: object) -> str:
    """Return a value of a column as text, ``""`` where it is missing."""
    return "" if is_missing(value) else str(value)


# One label an image


def encode_labels(
    labels: Iterable[object],
    n: int,
    *,
    classes: Sequence[str] | None = None,
    as_written: bool = False,
) -> tuple[tuple[str, ...], NDArray[np.int32]]:
    """Return the classes of `n` labels, and the position of each label in them, -1 for none.

    Labels are text, numbers or booleans. Without `classes` these are what occurs, sorted by
    name, or by number when all labels are numbers. With `as_written` text is a label whatever it
    says, as the name of a folder is; but empty text.

    >>> encode_labels([10, 9, None], 3)
    (('9', '10'), array([ 1,  0, -1], dtype=int32))
    """
    if isinstance(labels, str | bytes):
        raise DatasetError(
            f"expected one label for each of {n} inputs, received the text {labels!r}"
        )
    values = _values(labels)
    if len(values) != n:
        raise DatasetError(f"expected {n} labels, one for each input, received {len(values)}")
    known = set(classes or ())
    names = [
        _name(value)
        if not is_missing(value) or (isinstance(value, str) and (as_written or value in known))
        else ""
        for value in values
    ]
    distinct = {name for name in names if name}
    if classes is None:
        pairs = zip(values, names, strict=True)
        numbers = all(type(v) in (int, float) or not k for v, k in pairs)
        order = sorted(distinct, key=float) if numbers else sorted(distinct)
    else:
        order = [str(name) for name in classes]
        if unknown := sorted(distinct - set(order)):
            raise DatasetError(
                f"labels that are no classes: {', '.join(unknown[:5])}; the classes are "
                f"{', '.join(order[:20])}"
            )
    position = {name: i for i, name in enumerate(order)}
    indices = [position[name] if name else -1 for name in names]
    return tuple(order), np.array(indices, dtype=np.int32)


def _values(labels: Iterable[object]) -> list[object]:
    """Return plain Python values; whole floats (integers beside NaN) become int."""
    array = labels if isinstance(labels, np.ndarray) else None
    if array is None and hasattr(labels, "__array__"):
        array = np.asarray(labels)
    if array is not None and array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array is not None and array.ndim != 1:
        raise DatasetError(
            f"expected labels of shape (n,), received {array.shape}: turn one-hot rows into "
            "numbers with .argmax(axis=1)"
        )
    values = list(labels) if array is None else array.tolist()
    plain = [value.item() if isinstance(value, np.generic) else value for value in values]
    return [int(v) if isinstance(v, float) and v.is_integer() else v for v in plain]


def _name(value: object) -> str:
    """Return the class name of one label."""
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DatasetError(f"expected labels in UTF-8, received {value!r}") from error
    if isinstance(value, str | int | float):
        return str(value)
    raise DatasetError(
        f"expected labels of str, int, float or bool, received {type(value).__name__}: {value!r}"
    )


def complete_labels(labels: object) -> Any:
    """Return labels of rows as scikit-learn takes them; refuse missing ones, naming the rows.

    Text in bytes is decoded. What is no column of labels is left to others.
    """
    dtype = getattr(labels, "dtype", None)
    kind = getattr(dtype, "kind", "O")
    if isinstance(labels, np.ma.MaskedArray):
        labels = np.array(labels.tolist(), dtype=object)
    elif isinstance(dtype, np.dtype) and kind in "biu":
        return labels
    elif hasattr(labels, "to_pylist"):  # a column of pyarrow
        labels = np.array(labels.to_pylist())
    shape = getattr(labels, "shape", ())
    if shape[1:] not in ((), (1,)) or not isinstance(labels, Iterable):
        return labels
    values = list(np.asarray(labels)[:, 0] if shape[1:] else labels)
    rows = [row for row, value in enumerate(values) if is_missing(value)]
    if rows:
        shown = ", ".join(map(str, rows[:_SHOWN])) + (", ..." if len(rows) > _SHOWN else "")
        raise DatasetError(
            f"expected a label for every row, {len(rows):,} have none (None, NaN, empty or the "
            f"text for these): rows {shown}; leave these rows out, or label them"
        )
    if kind in "Tbiu" or any(isinstance(value, bytes) for value in values):
        return np.array([_name(v) if isinstance(v, bytes) else v for v in values])
    return labels


def look_like_measurements(names: Sequence[str], rows: int) -> str:
    """Return in what way the distinct labels of so many rows look measured, "" where they do not.

    Notes
    -----
    Codes of classes are whole, run from 0 or 1 without gaps, and have several rows each. What has
    a fraction, or many values of which few rows have the same, was measured.

    >>> look_like_measurements(["1.5", "2.25", "3.0"], 90)
    'look like measurements: 3 different numbers in 90 rows, such as 1.5, 2.25, 3.0'
    """
    try:
        values = sorted(float(name.replace(",", ".")) for name in names)
    except ValueError:
        return ""
    count = len(values)
    if not count or not np.isfinite(values).all():
        return ""
    whole = all(value.is_integer() for value in values)
    coded = whole and values[0] in (0, 1) and values[-1] - values[0] == count - 1
    each = rows / count
    if coded:
        measured = count > _MANY and each < 2
    elif whole:
        measured = (count > _MANY and each < _FEW_ROWS) or (count > _SOME and each < 2)
        measured |= count > _VERY_MANY
    else:
        measured = count > 2
    if not measured:
        return ""
    shown = ", ".join(names[:3])
    return f"look like measurements: {count} different numbers in {rows} rows, such as {shown}"


# Several labels an image


def read_label_sets(y: object) -> tuple[AnyArray, NDArray[np.intp]]:
    """Return the k labels, sorted, and a matrix (n, k) with 1 where an image has one, else 0.

    They come as such a matrix (also as nested lists of two columns or more), whose labels are then
    0 to k - 1; as one collection of labels an image; or as one text an image, separated by ``|``.

    >>> labels, Y = read_label_sets(["ant|winged", "bee|winged", "|"])
    >>> labels.tolist(), Y.tolist()
    (['ant', 'bee', 'winged'], [[1, 0, 1], [0, 1, 1], [0, 0, 0]])
    """
    y = y.toarray() if hasattr(y, "toarray") else y
    matrix = np.asarray(y) if hasattr(y, "shape") or _is_matrix(y) else None
    if matrix is not None and matrix.ndim == 2:
        if matrix.dtype.kind not in "biuf" or not np.isin(matrix, (0, 1)).all():
            raise DatasetError(
                "expected a matrix of 0 and 1, a column a label, received "
                f"{np.unique(matrix)[:5].tolist()}: pass 1 where an image has a label"
            )
        return np.arange(matrix.shape[1]), matrix.astype(np.intp)
    if isinstance(y, str | bytes) or not isinstance(y, Iterable):
        raise DatasetError(f"expected the labels of each image, received {y!r}")
    rows = list(y)
    complete_labels(rows)
    sets = [_set(value) for value in rows]
    labels = np.array(sorted({label for row in sets for label in row}, key=str))
    return labels, label_matrix(sets, labels.tolist())


def label_matrix(
    sets: Sequence[object], labels: Sequence[object], *, what: str = "the data"
) -> NDArray[np.intp]:
    """Return the labels of images, in the forms of `read_label_sets`, as a matrix of 0 and 1."""
    column = {label: number for number, label in enumerate(labels)}
    Y = np.zeros((len(sets), len(column)), dtype=np.intp)
    strangers: set[str] = set()
    for row, value in enumerate(sets):
        for label in _set(value):
            if label in column:
                Y[row, column[label]] = 1
            else:
                strangers.add(str(label))
    if strangers:
        known = ", ".join(map(str, list(column)[:10]))
        raise DatasetError(
            f"{what} has labels that are not known from training: "
            f"{', '.join(sorted(strangers)[:5])}; known are {known}"
        )
    return Y


def look_like_sets(names: Sequence[str]) -> str:
    """Return in what way labels look like several of an image, "" where they do not.

    >>> look_like_sets(["ant|winged", "bee|winged"])
    "look like several labels an image, such as 'ant|winged'"
    """
    joined = [name for name in names if SEPARATOR in name]
    parts = [part for name in names for part in {*name.split(SEPARATOR)}]
    if joined and (SEPARATOR in names or len(set(parts)) < len(parts)):
        return f"look like several labels an image, such as {joined[0]!r}"
    return ""


def _set(value: object) -> Sequence[object]:
    if isinstance(value, str):
        parts = (part.strip() for part in value.split(SEPARATOR))
        return sorted({part for part in parts if not is_missing(part)})
    if isinstance(value, bytes) or not isinstance(value, Iterable):
        raise DatasetError(
            f"expected a collection of labels, or text such as ant{SEPARATOR}winged, for each "
            f"image, received {value!r}"
        )
    return sorted({label for label in value if not is_missing(label)}, key=str)


def _is_matrix(y: object) -> bool:
    """Whether nested lists are a matrix of 0 and 1, not collections of labels."""
    if not (isinstance(y, list | tuple) and y and all(isinstance(r, list | tuple) for r in y)):
        return False
    widths = {len(row) for row in y}
    return len(widths) == 1 and widths.pop() > 1 and all(v in (0, 1) for row in y for v in row)


# Splits

SplitNames = Mapping[str, str] | Literal["none"] | None
"""What names of splits mean, such as ``{"pilot": "test"}``; ``"none"``: folders are no splits."""

_WORDS_OF = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "validate", "dev", "development"),
    "test": ("test", "testing", "tst", "holdout", "heldout", "eval", "evaluation"),
}
_WORDS = {word: split for split, words in _WORDS_OF.items() for word in words}
PLAIN_NAMES = frozenset((*_WORDS, "hold_out", "held_out", "hold-out", "held-out"))
"""Names that are nothing but the name of a split, in lower case."""

_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_ENDS = re.compile(r"(?<=.)(?:dataset|data|sets?|images?|imgs?|files?|split|folder|dir)$")


def split_of(name: str) -> str:
    """Return the split that a name means: train, val or test; ``""`` where it means none of them.

    One word of the name has to be that of a split.

    >>> [split_of(name) for name in ("seg_train", "TestSet", "val2017", "train_val", "trainers")]
    ['train', 'test', 'val', '', '']
    """
    meant = {_split_of_word(word) for word in _words_of(name)} - {""}
    return meant.pop() if len(meant) == 1 else ""


def around_split(name: str) -> list[str]:
    """Return the other words in the name of a split, by which ``seg_train`` goes with ``seg_test``.

    >>> around_split("seg_train"), around_split("Test2017")
    (['seg'], [])
    """
    return [word for word in _words_of(name) if not _split_of_word(word)]


def _words_of(name: str) -> list[str]:
    joined = re.sub(r"(?i)\b(hold|held)[ _-]out", r"\1out", name.replace("_", " "))
    return [word.lower() for word in _WORD.findall(joined)]


def _split_of_word(word: str) -> str:
    return _WORDS.get(word) or _WORDS.get(_ENDS.sub("", word), "")


def parse_names(pairs: Iterable[str]) -> SplitNames:
    """Return what the values ``NAME=SPLIT``, or ``none``, of the option ``--splits`` say."""
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
    """Return what names of splits mean, if they mean train, val or test."""
    if names is None or names == "none":
        return names
    if not isinstance(names, Mapping):
        raise DatasetError(
            f"expected splits={{'pilot': 'test'}} or splits='none', received {names!r}"
        )
    wrong = [split for split in names.values() if split not in _WORDS_OF]
    if wrong:
        raise DatasetError(
            f"expected train, val or test as the meaning of a split, received {wrong[0]!r}"
        )
    return names


def read_splits(
    values: Sequence[str], names: SplitNames = None, *, what: str = "the data"
) -> tuple[list[str], tuple[tuple[str, str], ...]]:
    """Return the split of each row, and what each name that occurs was taken for.

    `names` says what names mean that would not be understood, or be taken for something else.
    """
    stated = {} if names is None or names == "none" else {n.strip(): s for n, s in names.items()}
    written = sorted({value.strip() for value in values} - {""})
    meant = {name: stated.get(name) or split_of(name) for name in written}
    check_used(stated, written, what)
    if unknown := [name for name, split in meant.items() if not split]:
        raise unknown_error(unknown, what)
    splits = [meant.get(value.strip(), "") for value in values]
    return splits, tuple(meant.items())


def check_used(names: Iterable[str], there: Iterable[str], what: str) -> None:
    """Refuse a mapped name of a split that does not occur."""
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
    """Refuse rows with a split other than train, val and test."""
    unknown = sorted({*map(str, splits if splits is not None else ())} - {"", *_WORDS_OF})
    if unknown:
        raise unknown_error(unknown, what)
