"""A CSV file that lists images: ``path,label[,split,group]``, in any order of columns.

In the place of ``label`` there may be a column of 0 and 1 for each label: ``path,cat,dog``.
"""

from __future__ import annotations

import csv
import difflib
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from featx.exceptions import DatasetError
from featx.images.files import is_image_name, local_path, missing_path_error
from featx.images.label_sets import SEPARATOR
from featx.images.labels import as_text, is_missing
from featx.images.split_names import split_of

_COLUMNS = ("path", "label", "split", "group")
# fmt: off
_FOR_PATH = (
    "filename", "file", "file_name", "filepath", "file_path", "image", "image_path", "img",
    "image_id", "name",
)
_YES_OR_NO = {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}
_FOR_SPLIT = ("set", "subset", "partition", "phase", "usage", "mode", "splits")
_FOR_LABEL = ("class", "target", "category", "y", "labels", "class_name")
# fmt: on


@dataclass(frozen=True, kw_only=True)
class ImageTable:
    """The columns of a table, None for one that is not there; and what a user should know."""

    path: list[str]
    label: list[str] | None
    split: list[str] | None
    group: list[str] | None
    notes: tuple[str, ...] = ()


def read_table(file: Path, *, root: Path, multilabel: bool = False) -> ImageTable:
    """Read a table of images.

    Parameters
    ----------
    file : Path
        UTF-8 with or without a byte order mark; commas, semicolons or tabs between the columns.
    root : Path
        Folder that relative paths start from.
    multilabel : bool, default False
        Whether, without a column ``label``, all columns but ``path``, ``split`` and ``group`` have
        to be labels, of 0 and 1. By default they are where there are two or more and all is 0 or 1.

    Returns
    -------
    ImageTable
        Labels without outer white space, those of columns of 0 and 1 as ``ant|winged``; splits as
        they are written.

    Raises
    ------
    DatasetError
        For a missing or empty file, another encoding, a header without ``path``, a damaged row, or
        what is neither 0 nor 1 where labels have to be.
    """
    lines = _text(file)
    header_line = lines.readline()
    if not header_line.strip():
        raise DatasetError(f"empty table: {str(file)!r}; expected a header such as path,label")
    delimiter = max(",;\t", key=header_line.count)
    written = [name.strip().strip('"').strip() for name in header_line.split(delimiter)]
    header = [name.lower() for name in written]
    _check_header(file, header, header_line)
    columns: dict[str, list[str]] = {name: [] for name in _COLUMNS if name in header}
    where = {name: header.index(name) for name in columns}
    several = _LabelColumns.of(file, written, strict=multilabel)
    lines_of: list[int] = []
    like_splits = {i: set[str]() for i, name in enumerate(header) if name in _FOR_SPLIT}
    reader = csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=True)
    try:
        for row in reader:
            if not any(cell.strip() for cell in row):
                continue
            line = reader.line_num + 1
            if len(row) > len(header):
                raise DatasetError(
                    f"{str(file)!r}, line {line}: {len(row)} values under {len(header)} columns; "
                    "put quotes around a value that contains the delimiter"
                )
            row += [""] * (len(header) - len(row))
            for name, values in columns.items():
                cell = row[where[name]]
                values.append(_cell(file, line, name, cell if name == "path" else cell.strip()))
            lines_of.append(line)
            for place, values_seen in like_splits.items():
                values_seen.add(row[place].strip())
            if several is not None:
                several.add(line, row)
    except csv.Error as error:
        raise DatasetError(f"{str(file)!r}, line {reader.line_num + 1}: {error}") from error
    if not columns["path"]:
        raise DatasetError(f"no rows below the header of {str(file)!r}")
    paths = [_posix(local_path(path, root), root) for path in columns["path"]]
    labels = columns.get("label") if several is None else several.labels
    if labels is not None:
        check_one_label(file, paths, labels, lines_of)
    notes = [
        f"the column {written[place]!r} looks like splits and is not used: rename it to 'split'"
        for place, seen in like_splits.items()
        if "split" not in header and len(seen) > 1 and all(map(split_of, seen))
    ]
    return ImageTable(
        path=paths,
        label=labels,
        notes=tuple(notes),
        split=_texts(columns.get("split")),
        group=_texts(columns.get("group")),
    )


def _texts(column: list[str] | None) -> list[str] | None:
    return None if column is None else list(map(as_text, column))


def check_one_label(
    file: Path, paths: Sequence[str], labels: Sequence[str], lines: Sequence[int]
) -> None:
    """Refuse two labels for one file.

    Raises
    ------
    DatasetError
        Naming the lines of the table.
    """
    first: dict[str, int] = {}
    for row, (path, label) in enumerate(zip(paths, labels, strict=True)):
        if is_missing(label):
            continue
        before = first.setdefault(os.path.normpath(path), row)
        if labels[before] != label and {*labels[before].split(SEPARATOR)} != {
            *label.split(SEPARATOR)
        }:
            raise DatasetError(
                f"{str(file)!r}, lines {lines[before]} and {lines[row]}: {path[-80:]!r} has two "
                f"labels, {labels[before][:40]!r} and {label[:40]!r}: leave one line; several "
                f"labels of an image go into one, as ant{SEPARATOR}winged with --multilabel"
            )


class _LabelColumns:
    """Columns of 0 and 1, one a label; unless they have to be, anything else ends them."""

    def __init__(self, file: Path, places: dict[int, str], *, strict: bool) -> None:
        self._file, self._places, self._strict = file, places, strict
        self.labels: list[str] | None = []

    @classmethod
    def of(cls, file: Path, header: list[str], *, strict: bool) -> _LabelColumns | None:
        """Return the columns that may be labels, None where there are none."""
        lower = [name.lower() for name in header]
        if "label" in lower:
            return None
        places = {i: name for i, name in enumerate(header) if lower[i] not in _COLUMNS}
        if not strict:
            plain = all(name and SEPARATOR not in name for name in places.values())
            distinct = len(set(places.values())) == len(places) >= 2
            return cls(file, places, strict=False) if plain and distinct else None
        if not places:
            raise DatasetError(
                f"{str(file)!r} has no labels, found columns: {', '.join(header)}; expected a "
                f"column label with text such as ant{SEPARATOR}winged, or a column of 0 and 1 for "
                "each label"
            )
        for place, name in places.items():
            if not name or SEPARATOR in name or header.count(name) > 1:
                raise DatasetError(
                    f"{str(file)!r}: column {place + 1} is called {name!r}; expected the name of a "
                    f"label, each once and without {SEPARATOR!r}: rename the column, or take it out"
                )
            _cell(file, 1, "label", name)
        return cls(file, places, strict=True)

    def add(self, line: int, row: list[str]) -> None:
        """Take one row."""
        if self.labels is None:
            return
        cells = {name: row[place].strip() for place, name in self._places.items()}
        if not any(cells.values()):
            self.labels.append("")
            return
        for name, cell in cells.items():
            if cell.lower() not in _YES_OR_NO:
                if not self._strict:
                    self.labels = None
                    return
                raise DatasetError(
                    f"{str(self._file)!r}, line {line}, column {name!r}: expected 0 or 1, received "
                    f"{cell!r}: without a column label every column but path, split and group is a "
                    "label; write 1 where the image has it, else 0, or take the column out"
                )
        named = [name for name, cell in cells.items() if _YES_OR_NO[cell.lower()]]
        self.labels.append(SEPARATOR.join(named) or SEPARATOR)


def _text(file: Path) -> io.StringIO:
    try:
        data = file.read_bytes()
    except FileNotFoundError as error:
        raise missing_path_error(file, f"no such file: {str(file)!r}") from error
    except OSError as error:
        raise DatasetError(f"cannot read {str(file)!r}: {error.strerror}") from error
    if data[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in data[:4096]:
        raise DatasetError(f"{str(file)!r} is not UTF-8 text (UTF-16?): save it as CSV UTF-8")
    # Names of files need not be UTF-8 on Linux; labels must be, see `_cell`.
    return io.StringIO(data.decode("utf-8-sig", "surrogateescape"), newline="")


def _check_header(file: Path, header: list[str], line: str) -> None:
    if "path" not in header:
        if any(is_image_name(cell) for cell in header):
            raise DatasetError(
                f"expected a header in the first line of {str(file)!r}, for example path,label; "
                f"received {line.strip()!r}"
            )
        near = [name for name in header if name in _FOR_PATH]
        near = near or difflib.get_close_matches("path", header, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}? Rename that column to 'path'" if near else ""
        raise DatasetError(
            f"expected a column 'path' in {str(file)!r}, found columns: {', '.join(header)}{hint}"
        )
    for name in _COLUMNS:
        if header.count(name) > 1:
            raise DatasetError(f"{header.count(name)} columns named {name!r} in {str(file)!r}")
    if "label" not in header:
        near = [name for name in header if name in _FOR_LABEL]
        if near:
            raise DatasetError(
                f"no column 'label' in {str(file)!r}, found columns: {', '.join(header)}; did you "
                f"mean {near[0]!r}? Rename that column to 'label'"
            )


def _cell(file: Path, line: int, name: str, value: str) -> str:
    if name == "path":
        if not value.strip() or "\0" in value:
            raise DatasetError(f"{str(file)!r}, line {line}: expected a path, received {value!r}")
        return value
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DatasetError(
            f"{str(file)!r}, line {line}: the {name} {value!r} is not UTF-8: save the file as UTF-8"
        ) from error
    return value


def _posix(path: str, root: Path) -> str:
    """Return the path with ``/``; a backslash may be part of a name anywhere but on Windows."""
    if "\\" not in path:
        return path
    turned = path.replace("\\", "/")
    return turned if os.sep == "\\" or not os.path.lexists(root / path) else path
