"""A CSV file that lists images: ``path,label[,split,group]``, in any order of columns."""

from __future__ import annotations

import csv
import difflib
import io
import os
from dataclasses import dataclass
from pathlib import Path

from featx.exceptions import DatasetError
from featx.images.files import is_image_name, missing_path_error
from featx.images.scan import SPLITS

__all__ = ["ImageTable", "read_table"]

_COLUMNS = ("path", "label", "split", "group")
# fmt: off
_FOR_PATH = (
    "filename", "file", "file_name", "filepath", "file_path", "image", "image_path", "img",
    "image_id", "name",
)
_FOR_LABEL = ("class", "target", "category", "y", "labels", "class_name")
# fmt: on


@dataclass(frozen=True, kw_only=True)
class ImageTable:
    """The columns of a table; None for one that is not there."""

    path: list[str]
    label: list[str] | None
    split: list[str] | None
    group: list[str] | None


def read_table(file: Path, *, root: Path) -> ImageTable:
    """Read a table of images.

    Parameters
    ----------
    file : Path
        UTF-8 with or without a byte order mark; commas, semicolons or tabs between the columns.
    root : Path
        Folder that relative paths start from.

    Returns
    -------
    ImageTable
        Labels without outer white space; splits under their usual names (``valid`` is ``val``).

    Raises
    ------
    DatasetError
        For a missing or empty file, another encoding, a header without ``path``, or a damaged row.
    """
    lines = _text(file)
    header_line = lines.readline()
    if not header_line.strip():
        raise DatasetError(f"empty table: {str(file)!r}; expected a header such as path,label")
    delimiter = max(",;\t", key=header_line.count)
    header = [name.strip().strip('"').strip().lower() for name in header_line.split(delimiter)]
    _check_header(file, header, header_line)
    columns: dict[str, list[str]] = {name: [] for name in _COLUMNS if name in header}
    where = {name: header.index(name) for name in columns}
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
    except csv.Error as error:
        raise DatasetError(f"{str(file)!r}, line {reader.line_num + 1}: {error}") from error
    if not columns["path"]:
        raise DatasetError(f"no rows below the header of {str(file)!r}")
    return ImageTable(
        path=[_posix(path, root) for path in columns["path"]],
        label=columns.get("label"),
        split=[SPLITS.get(s.lower(), s) for s in columns["split"]] if "split" in columns else None,
        group=columns.get("group"),
    )


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
