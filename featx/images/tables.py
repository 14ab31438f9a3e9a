"""Tables that list images, ``path,label[,split,group]`` in any order of columns, or labels.

In the place of ``label`` there may be a column of 0 and 1 for each label: ``path,cat,dog``.
"""

from __future__ import annotations

import csv
import difflib
import io
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from featx.exceptions import DatasetError
from featx.files.claims import UnsafeFileError, missing_path_error, reading_data
from featx.files.stores import Store, as_address, shown
from featx.images.files import Listing, is_image_name, local_path
from featx.images.labels import SEPARATOR, as_text, is_missing, split_of
from featx.images.reading import COLUMNS, Reading
from featx.images.values import value_columns, value_text

MOST_COLUMN_BYTES = 1 << 30
"""Largest column of labels, paths and the like of a file of arrays."""
# fmt: off
FOR_PATH = (
    "filename", "file", "file_name", "filepath", "file_path", "image", "image_path", "img",
    "image_id", "name",
)
_SHOWN = 5
_YES_OR_NO = {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}
_FOR_SPLIT = ("set", "subset", "partition", "phase", "usage", "mode", "splits")
_FOR_LABEL = ("class", "target", "category", "y", "labels", "class_name")
# fmt: on


def read_table(file: Path | str, *, root: Path | str, reading: Reading) -> Listing:
    """Return the columns of a table, as `ImageDataset.from_csv` explains them."""
    return _listing(Table(file), root, reading)


def read_columns(
    columns: Mapping[str, Sequence[object]], what: str, *, root: Path | str, reading: Reading
) -> Listing:
    """Return what columns with names say, as those of a data frame; errors call them `what`."""
    return _listing(_Columns(columns, what), root, reading)


def _listing(table: Rows, root: Path | str, reading: Reading) -> Listing:
    known = _known_columns(table, reading)
    several: _LabelColumns | _TargetColumns | None
    if reading.target_columns:
        several = _TargetColumns(table, reading.target_columns)
    else:
        several = _LabelColumns.of(table, known, strict=reading.multilabel)
    like_splits: dict[int, set[str]] = {}
    if "split" not in known:
        like_splits = {i: set() for i, name in enumerate(table.header) if name in _FOR_SPLIT}
    columns: dict[str, list[object]] = {kind: [] for kind in known}
    lines = []
    for line, row in table.rows():
        lines.append(line)
        for kind, number in known.items():
            columns[kind].append(table.cell(line, kind, row[number]))
        for number, names in like_splits.items():
            names.add(as_text(row[number]).strip())
        if several is not None:
            several.add(line, row)
    if not lines:
        raise DatasetError(f"no rows below the header of {table.what}")
    paths = [_posix(local_path(os.fsdecode(path), root), root) for path in columns["path"]]  # type: ignore[arg-type]
    labels: list[object] | list[str] | None = columns.get("label")
    if several is not None:
        labels = several.labels
    if labels is not None:
        check_one_label(paths, labels, root, what=f"{table.what}, lines", names=lines)
    splits, groups = (
        list(map(as_text, columns[name])) if name in columns else None
        for name in ("split", "group")
    )
    notes = [
        f"the column {table.written[number]!r} looks like splits and is not used: name it with "
        f"{_option('split', table.written[number])}"
        for number, names in like_splits.items()
        if len(names) > 1 and all(map(split_of, names))
    ]
    if isinstance(several, _LabelColumns):
        notes += several.notes
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
    known = {kind: table.header.index(kind) for kind in COLUMNS if kind in table.header}
    columns: dict[str, list[str]] = {kind: [] for kind in known}
    for line, row in table.rows():
        for kind, number in known.items():
            columns[kind].append(table.cell(line, kind, row[number]))
    return Listing(
        paths=[path.strip() for path in columns.get("path", ())],
        labels=columns["label"],
        splits=columns.get("split"),
        groups=columns.get("group"),
    )


class Rows(ABC):
    """Rows under a header, whatever they come from."""

    written: list[str]  # the header
    what: str  # how an error names it

    @property
    def header(self) -> list[str]:
        """The names of the columns in lower case."""
        return [name.lower() for name in self.written]

    @abstractmethod
    def rows(self) -> Iterator[tuple[int, Sequence[object]]]:
        """Yield the number and the cells of each row."""

    @abstractmethod
    def at(self, line: int) -> str:
        """Return how an error names a row."""

    def cell(self, line: int, kind: str, value: object) -> object:
        """Return a value of a column, if it may be one."""
        if kind != "path":
            return value
        if not isinstance(value, str | bytes | os.PathLike) or not os.fspath(value):
            raise DatasetError(f"{self.at(line)}: expected a path, received {value!r}")
        return value


class _Columns(Rows):
    """Columns in memory, by their names."""

    def __init__(self, columns: Mapping[str, Sequence[object]], what: str) -> None:
        self._columns, self.what = columns, what
        self.written = list(map(str, columns))

    def rows(self) -> Iterator[tuple[int, Sequence[object]]]:
        """Yield the number and the cells of each row."""
        return enumerate(zip(*self._columns.values(), strict=True))

    def at(self, line: int) -> str:
        """Return how an error names a row."""
        return f"{self.what}, row {line}"


class Table(Rows):
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
        self.what = repr(str(file))
        self.delimiter = max(",;\t", key=line.count)
        self.written = [name.strip().strip('"').strip() for name in line.split(self.delimiter)]

    def rows(self) -> Iterator[tuple[int, list[str]]]:
        """Yield the line and the cells of each row that is not empty."""
        reader = csv.reader(
            self._text, delimiter=self.delimiter, strict=True, skipinitialspace=True
        )
        width = len(self.written)
        try:
            for row in reader:
                if not any(cell.strip() for cell in row):
                    continue
                line = reader.line_num + 1
                if len(row) > width:
                    raise DatasetError(
                        f"{self.at(line)}: {len(row)} values under {width} columns; "
                        "put quotes around a value that contains the delimiter"
                    )
                row += [""] * (width - len(row))
                yield line, row
        except csv.Error as error:
            raise DatasetError(f"{self.at(reader.line_num + 1)}: {error}") from error

    def at(self, line: int) -> str:
        """Return how an error names a line."""
        return f"{self.what}, line {line}"

    def cell(self, line: int, kind: str, value: object) -> str:
        """Return a value of a column, if it may be one; but for paths without blanks around it."""
        assert isinstance(value, str)
        if kind == "path":
            if not value.strip() or "\0" in value:
                raise DatasetError(f"{self.at(line)}: expected a path, received {value!r}")
            return value
        value = value.strip()
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DatasetError(
                f"{self.at(line)}: the {kind} {value!r} is not UTF-8: save the file as UTF-8"
            ) from error
        return value


def _known_columns(table: Rows, reading: Reading) -> dict[str, int]:
    """Return where the columns are that featx knows, by their names or by those that are given."""
    known = {}
    for kind in COLUMNS:
        if (name := reading.columns.get(kind)) is not None:
            known[kind] = _named_column(table, kind, name)
        elif (count := table.header.count(kind)) > 1:
            raise DatasetError(f"{count} columns named {kind!r} in {table.what}")
        elif count:
            known[kind] = table.header.index(kind)
    if "path" not in known:
        raise _no_path(table)
    if reading.target_columns:
        if "label" in reading.columns:
            raise DatasetError(
                "--label-column (label_column=...) and --target-column (target_columns=...) both "
                "name what is learnt: leave one of them out"
            )
        return known
    near = [name for name in table.written if name.lower().replace(" ", "_") in _FOR_LABEL]
    if near and "label" not in known:
        raise DatasetError(
            f"no column 'label' in {table.what}, found columns: {', '.join(table.written)}; did "
            f"you mean {near[0]!r}? Name it with {_option('label', near[0])}, or, for numbers, "
            f"with --regression --target-column {near[0]}"
        )
    return known


def _named_column(table: Rows, kind: str, name: str) -> int:
    """Return where a column is, by its name in any case."""
    for names, wanted in ((table.written, name), (table.header, name.lower())):
        if names.count(wanted) == 1:
            return names.index(wanted)
    near = difflib.get_close_matches(name.lower(), table.header, n=1)
    hint = f"; did you mean {table.written[table.header.index(near[0])]!r}?" if near else ""
    raise DatasetError(
        f"expected one column {name!r} in {table.what} for --{kind}-column ({kind}_column=...), "
        f"found columns: {', '.join(table.written)}{hint}"
    )


def _option(kind: str, name: str) -> str:
    """Return how a column is named, on the command line and in Python."""
    quoted = f"'{name}'" if " " in name else name
    return f"--{kind}-column {quoted} ({kind}_column={name!r})"


def _no_path(table: Rows) -> DatasetError:
    """Return the error for a table without a column of paths."""
    if any(is_image_name(cell) for cell in table.header):
        return DatasetError(
            f"expected a header in the first line of {table.what}, for example path,label; "
            f"received {','.join(table.written).strip()!r}"
        )
    near = [name for name in table.written if name.lower().replace(" ", "_") in FOR_PATH]
    close = difflib.get_close_matches("path", table.header, n=1, cutoff=0.5)
    near = near or [table.written[table.header.index(name)] for name in close]
    hint = "; name it with --path-column NAME (path_column=...)"
    if near:
        hint = f"; did you mean {near[0]!r}? Name it with {_option('path', near[0])}"
    return DatasetError(
        f"expected a column 'path' in {table.what}, found columns: {', '.join(table.written)}{hint}"
    )


class _LabelColumns:
    """Columns of 0 and 1, one a label; unless they have to be, anything else ends them."""

    def __init__(self, table: Rows, names: dict[int, str], *, strict: bool) -> None:
        self._table, self._names, self._strict = table, names, strict
        self.labels: list[str] | None = []

    @classmethod
    def of(cls, table: Rows, known: Mapping[str, int], *, strict: bool) -> _LabelColumns | None:
        """Return the columns that may be labels, None where there are none."""
        if "label" in known:
            return None
        written, file = table.written, table.what
        names = {i: name for i, name in enumerate(written) if i not in known.values()}
        if not strict:
            plain = all(name and SEPARATOR not in name for name in names.values())
            distinct = len(set(names.values())) == len(names) >= 2
            return cls(table, names, strict=False) if plain and distinct else None
        if not names:
            raise DatasetError(
                f"{file} has no labels, found columns: {', '.join(written)}; expected a column "
                f"label with text such as ant{SEPARATOR}winged, or a column of 0 and 1 for each "
                "label"
            )
        for number, name in names.items():
            if not name or SEPARATOR in name or written.count(name) > 1:
                raise DatasetError(
                    f"{file}: column {number + 1} is called {name!r}; expected the name of a "
                    f"label, each once and without {SEPARATOR!r}: rename the column, or take it out"
                )
            table.cell(1, "label", name)
        return cls(table, names, strict=True)

    @property
    def notes(self) -> list[str]:
        """What is to be said where nobody said that the columns are labels."""
        if self._strict or self.labels is None:
            return []
        names = ", ".join(map(repr, list(self._names.values())[:_SHOWN]))
        more = ", ..." if len(self._names) > _SHOWN else ""
        return [
            f"{len(self._names)} columns of 0 and 1 are taken as labels: {names}{more}; with "
            "--multilabel (multilabel=True) each is predicted by itself"
        ]

    def add(self, line: int, row: Sequence[object]) -> None:
        """Take one row."""
        if self.labels is None:
            return
        cells = {name: _cell_text(row[number]) for number, name in self._names.items()}
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

    def __init__(self, table: Rows, names: Sequence[str]) -> None:
        self._table = table
        self._places = value_columns(table.written, names, table.what)
        self.labels: list[str] = []

    def add(self, line: int, row: Sequence[object]) -> None:
        """Take one row."""
        cells = {name: _cell_text(row[number]) for name, number in self._places.items()}
        self.labels.append(value_text(cells, self._table.at(line)))


def _cell_text(cell: object) -> str:
    return cell.strip() if isinstance(cell, str) else as_text(cell)


def check_one_label(
    paths: Sequence[str],
    labels: Sequence[object],
    root: Path | str | None = None,
    *,
    what: str = "rows",
    names: Sequence[int] | None = None,
) -> None:
    """Refuse two labels for one file, however its path is written; errors say `what` and `names`.

    A relative path starts from `root`, by default the working directory.
    """
    first: dict[str, int] = {}
    folders: dict[str, str] = {}
    for row, (path, label) in enumerate(zip(paths, labels, strict=True)):
        if is_missing(label):
            continue
        before = first.setdefault(_real_path(path, root, folders), row)
        if labels[before] != label and _parts(labels[before]) != _parts(label):
            lines = [number if names is None else names[number] for number in (before, row)]
            alias = f" (as {_shown(paths[before])!r})" if paths[before] != path else ""
            raise DatasetError(
                f"{what} {lines[0]} and {lines[1]}: {_shown(path)!r} has two labels, "
                f"{str(labels[before])[:40]!r}{alias} and {str(label)[:40]!r}: leave one line; "
                f"several labels of an image go into one, as ant{SEPARATOR}winged with --multilabel"
            )


def _parts(label: object) -> set[str]:
    return set(str(label).split(SEPARATOR))


def _shown(path: str) -> str:
    return (shown(path) if as_address(path) else path)[-80:]


def _real_path(path: str, root: Path | str | None, folders: dict[str, str]) -> str:
    """Return the file that a path leads to, through links; `folders` keeps those looked up."""
    if as_address(path) or isinstance(root, str):
        return path
    folder, slash, name = path.rpartition("/")
    folder += slash
    if name in ("", ".", ".."):
        return os.path.realpath(os.path.join(root or "", path))
    if folder not in folders:
        folders[folder] = os.path.realpath(os.path.join(root or "", folder))
    whole = f"{folders[folder]}/{name}"
    return os.path.realpath(whole) if os.path.islink(whole) else whole


def _posix(path: str, root: Path | str) -> str:
    """Return the path with ``/``; a backslash may be part of a name anywhere but on Windows."""
    if "\\" not in path:
        return path
    turned = path.replace("\\", "/")
    return turned if os.sep == "\\" or not os.path.lexists(Path(root, path)) else path
