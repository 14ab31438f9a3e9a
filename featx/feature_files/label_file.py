"""Labels in a file of their own: a CSV with the column ``label``, or a ``.npy``."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featx.exceptions import DatasetError
from featx.feature_files.npy import read_npy_column

_COLUMNS = ("label", "path", "split", "group")


@dataclass(frozen=True, slots=True)
class LabelFile:
    """The columns of a file of labels; None for one that is not there.

    Parameters
    ----------
    label : sequence
        One a row.
    path, split, group : list of str, optional
        One a row.
    """

    label: Any
    path: list[str] | None = None
    split: list[str] | None = None
    group: list[str] | None = None


def read_label_file(file: Path) -> LabelFile:
    """Read labels.

    Parameters
    ----------
    file : Path
        A ``.npy`` of shape (n,), or a table with a header: ``label`` and, if there are any,
        ``path``, ``split`` and ``group``; UTF-8; commas, semicolons or tabs.

    Raises
    ------
    DatasetError
        If the file is missing, damaged, or has no column ``label``.
    """
    if file.suffix.lower() == ".npy":
        return LabelFile(read_npy_column(file))
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise DatasetError(f"no such file: {str(file)!r}") from error
    except OSError as error:
        raise DatasetError(f"cannot read {str(file)!r}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{str(file)!r} is not UTF-8 text: save it as CSV UTF-8") from error
    return _table(file, text)


def _table(file: Path, text: str) -> LabelFile:
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        rows = [row for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise DatasetError(f"{str(file)!r}, line {reader.line_num}: {error}") from error
    header = [name.strip().lower() for name in rows[0]] if rows else []
    if "label" not in header:
        raise DatasetError(
            f"expected a header with the column 'label' in {str(file)!r}, received "
            f"{first.strip()[:100]!r}"
        )
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(header):
            raise DatasetError(
                f"{str(file)!r}, row {number}: {len(row)} values under {len(header)} columns"
            )
    columns = {
        name: [row[header.index(name)].strip() for row in rows[1:]]
        for name in _COLUMNS
        if name in header
    }
    return LabelFile(
        label=columns["label"],
        path=columns.get("path"),
        split=columns.get("split"),
        group=columns.get("group"),
    )
