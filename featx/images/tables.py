"""CSV files that list images, ``path,label[,split,group]`` in any order of columns, or labels.

In the place of ``label`` there may be a column of 0 and 1 for each label: ``path,cat,dog``.
"""

from __future__ import annotations

import csv
import difflib
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from featx.exceptions import DatasetError
from featx.files.claims import UnsafeFileError, missing_path_error, reading_data
from featx.files.stores import Store, as_address, shown
from featx.images.files import Listing, is_image_name, local_path
from featx.images.labels import SEPARATOR, as_text, is_missing, split_of
from featx.images.values import value_columns, value_text

MOST_COLUMN_BYTES = 1 << 30
"""Largest column of labels, paths and the like of a file of arrays."""
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


def read_table(
    file: Path | str,
    *,
    root: Path | str,
    multilabel: bool = False,
    target_columns: Sequence[str] = (),
) -> Listing:
    """Return the columns of a table, as `ImageDataset.from_csv` explains them."""
    table = Table(file)
    file = table.file
    table.check_names(labelled=not target_columns)
    several: _LabelColumns | _TargetColumns | None
    if target_columns:
        several = _TargetColumns(table, target_columns)
    else:
        several = _LabelColumns.of(table, strict=multilabel)
    like_splits = {i: set[str]() for i, name in enumerate(table.header) if name in _FOR_SPLIT}
    for line, row in table.rows():
        for number, names in like_splits.items():
            names.add(row[number].strip())
        if several is not None:
            several.add(line, row)
    if not table.lines:
        raise DatasetError(f"no rows below the header of {str(file)!r}")
    paths = [_posix(local_path(path, root), root) for path in table.columns["path"]]
    labels = table.columns.get("label") if several is None else several.labels
    if labels is not None:
        check_one_label(file, paths, labels, table.lines)
    splits, groups = (
        list(map(as_text, table.columns[name])) if name in table.columns else None
        for name in ("split", "group")
    )
    notes = [
        f"the column {table.written[number]!r} looks like splits and is not used: rename it to "
        "'split'"
        for number, names in like_splits.items()
        if splits is None and len(names) > 1 and all(map(split_of, names))
    ]
    return Listing(paths=paths, labels=labels, notes=notes, splits=splits, groups=groups)


def read_label_file(file: Path) -> Listing:
    """Return labels, and paths where there are any, from a ``.npy`` or a table with ``label``."""
    if file.suffix.lower() == ".npy":
        from featx.files.safe_npy import map_npy

        with reading_data(file, "an array of NumPy, without pickle"):
            values = map_npy(file)
            if values.nbytes > MOST_COLUMN_BYTES:
                raise UnsafeFileError(
                    f"it claims {values.nbytes:,} bytes, more than the {MOST_COLUMN_BYTES:,} "
                    "allowed for labels"
                )
            return Listing(paths=(), labels=values.tolist())
    table = Table(file)
    if "label" not in table.header:
        raise DatasetError(
            f"expected a header with the column 'label' in {str(file)!r}, received "
            f"{table.delimiter.join(table.written)[:100]!r}"
        )
    for _ in table.rows():
        pass
    columns = table.columns
    return Listing(
        paths=[path.strip() for path in columns.get("path", ())],
        labels=columns["label"],
        splits=columns.get("split"),
        groups=columns.get("group"),
    )


class Table:
    """A table in UTF-8, with commas, semicolons or tabs between its columns.

    It is a file, or text for the address of one.
    """

    def __init__(self, file: Path | str) -> None:
        try:
            if isinstance(file, Path):
                data = file.read_bytes()
            else:
                store, name = Store.of_object(file)
                data, file = store.read(name), shown(file)
        except FileNotFoundError as error:
            raise missing_path_error(Path(file), f"no such file: {str(file)!r}") from error
        except OSError as error:
            raise DatasetError(f"cannot read {str(file)!r}: {error.strerror}") from error
        if data[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in data[:4096]:
            raise DatasetError(f"{str(file)!r} is not UTF-8 text (UTF-16?): save it as CSV UTF-8")
        # Names of files need not be UTF-8 on Linux; labels must be, see `cell`.
        self._text = io.StringIO(data.decode("utf-8-sig", "surrogateescape"), newline="")
        line = self._text.readline()
        if not line.strip():
            raise DatasetError(f"empty table: {str(file)!r}; expected a header such as path,label")
        self.file = file
        self.delimiter = max(",;\t", key=line.count)
        self.written = [name.strip().strip('"').strip() for name in line.split(self.delimiter)]
        self.header = [name.lower() for name in self.written]
        # What `rows` has read: the columns that featx knows, and the lines of their values.
        self.columns: dict[str, list[str]] = {n: [] for n in _COLUMNS if n in self.header}
        self.lines: list[int] = []

    def rows(self) -> Iterator[tuple[int, list[str]]]:
        """Take in the columns; yield the line and the cells of each row."""
        numbers = {name: self.header.index(name) for name in self.columns}
        reader = csv.reader(
            self._text, delimiter=self.delimiter, strict=True, skipinitialspace=True
        )
        try:
            for row in reader:
                if not any(cell.strip() for cell in row):
                    continue
                line = reader.line_num + 1
                if len(row) > len(self.header):
                    raise DatasetError(
                        f"{self.at(line)}: {len(row)} values under {len(self.header)} columns; "
                        "put quotes around a value that contains the delimiter"
                    )
                row += [""] * (len(self.header) - len(row))
                for name, values in self.columns.items():
                    cell = row[numbers[name]]
                    values.append(self.cell(line, name, cell if name == "path" else cell.strip()))
                self.lines.append(line)
                yield line, row
        except csv.Error as error:
            raise DatasetError(f"{self.at(reader.line_num + 1)}: {error}") from error

    def at(self, line: int) -> str:
        """Return how an error names a line."""
        return f"{str(self.file)!r}, line {line}"

    def cell(self, line: int, name: str, value: str) -> str:
        """Return a value of a column, if it may be one."""
        if name == "path":
            if not value.strip() or "\0" in value:
                raise DatasetError(f"{self.at(line)}: expected a path, received {value!r}")
            return value
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DatasetError(
                f"{self.at(line)}: the {name} {value!r} is not UTF-8: save the file as UTF-8"
            ) from error
        return value

    def check_names(self, *, labelled: bool = True) -> None:
        """Refuse a header without a column ``path``, or that names columns otherwise."""
        file, header = str(self.file), self.header
        if "path" not in header:
            if any(is_image_name(cell) for cell in header):
                raise DatasetError(
                    f"expected a header in the first line of {file!r}, for example path,label; "
                    f"received {self.delimiter.join(self.written).strip()!r}"
                )
            near = [name for name in header if name in _FOR_PATH]
            near = near or difflib.get_close_matches("path", header, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}? Rename that column to 'path'" if near else ""
            raise DatasetError(
                f"expected a column 'path' in {file!r}, found columns: {', '.join(header)}{hint}"
            )
        for name in _COLUMNS:
            if header.count(name) > 1:
                raise DatasetError(f"{header.count(name)} columns named {name!r} in {file!r}")
        near = [name for name in header if name in _FOR_LABEL]
        if near and labelled and "label" not in header:
            raise DatasetError(
                f"no column 'label' in {file!r}, found columns: {', '.join(header)}; did you "
                f"mean {near[0]!r}? Rename that column to 'label', or, for numbers, name it with "
                f"--regression --target-column {near[0]}"
            )


class _LabelColumns:
    """Columns of 0 and 1, one a label; unless they have to be, anything else ends them."""

    def __init__(self, table: Table, names: dict[int, str], *, strict: bool) -> None:
        self._table, self._names, self._strict = table, names, strict
        self.labels: list[str] | None = []

    @classmethod
    def of(cls, table: Table, *, strict: bool) -> _LabelColumns | None:
        """Return the columns that may be labels, None where there are none."""
        written, header, file = table.written, table.header, str(table.file)
        if "label" in header:
            return None
        names = {i: name for i, name in enumerate(written) if header[i] not in _COLUMNS}
        if not strict:
            plain = all(name and SEPARATOR not in name for name in names.values())
            distinct = len(set(names.values())) == len(names) >= 2
            return cls(table, names, strict=False) if plain and distinct else None
        if not names:
            raise DatasetError(
                f"{file!r} has no labels, found columns: {', '.join(written)}; expected a column "
                f"label with text such as ant{SEPARATOR}winged, or a column of 0 and 1 for each "
                "label"
            )
        for number, name in names.items():
            if not name or SEPARATOR in name or written.count(name) > 1:
                raise DatasetError(
                    f"{file!r}: column {number + 1} is called {name!r}; expected the name of a "
                    f"label, each once and without {SEPARATOR!r}: rename the column, or take it out"
                )
            table.cell(1, "label", name)
        return cls(table, names, strict=True)

    def add(self, line: int, row: list[str]) -> None:
        """Take one row."""
        if self.labels is None:
            return
        cells = {name: row[number].strip() for number, name in self._names.items()}
        if not any(cells.values()):
            self.labels.append("")
            return
        for name, cell in cells.items():
            if cell.lower() not in _YES_OR_NO:
                if not self._strict:
                    self.labels = None
                    return
                raise DatasetError(
                    f"{self._table.at(line)}, column {name!r}: expected 0 or 1, received "
                    f"{cell!r}: without a column label every column but path, split and group is a "
                    "label; write 1 where the image has it, else 0, or take the column out"
                )
        named = [name for name, cell in cells.items() if _YES_OR_NO[cell.lower()]]
        self.labels.append(SEPARATOR.join(named) or SEPARATOR)


class _TargetColumns:
    """Columns of numbers, which together are the label of a row."""

    def __init__(self, table: Table, names: Sequence[str]) -> None:
        self._table = table
        self._places = value_columns(table.written, names, repr(str(table.file)))
        self.labels: list[str] = []

    def add(self, line: int, row: list[str]) -> None:
        """Take one row."""
        cells = {name: row[number].strip() for name, number in self._places.items()}
        self.labels.append(value_text(cells, self._table.at(line)))


def check_one_label(
    file: Path | str, paths: Sequence[str], labels: Sequence[str], lines: Sequence[int]
) -> None:
    """Refuse two labels for one file, naming the lines of the table."""
    first: dict[str, int] = {}
    for row, (path, label) in enumerate(zip(paths, labels, strict=True)):
        if is_missing(label):
            continue
        before = first.setdefault(os.path.normpath(path), row)
        if labels[before] != label and {*labels[before].split(SEPARATOR)} != {
            *label.split(SEPARATOR)
        }:
            shown_path = shown(path) if as_address(path) else path
            raise DatasetError(
                f"{str(file)!r}, lines {lines[before]} and {lines[row]}: {shown_path[-80:]!r} has "
                f"two labels, {labels[before][:40]!r} and {label[:40]!r}: leave one line; several "
                f"labels of an image go into one, as ant{SEPARATOR}winged with --multilabel"
            )


def _posix(path: str, root: Path | str) -> str:
    """Return the path with ``/``; a backslash may be part of a name anywhere but on Windows."""
    if "\\" not in path:
        return path
    turned = path.replace("\\", "/")
    return turned if os.sep == "\\" or not os.path.lexists(Path(root, path)) else path
