"""Rows of manifests as columns of HDF5: in a manifest itself, or in parts named by their content.

A part never changes, and any number of manifests may name it. docs/format.md has its layout.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from featx.cache.columns import Numbers, Strings, Text
from featx.cache.hdf5 import (
    MappedFile,
    Values,
    create,
    find_array,
    find_strings,
    open_checked,
    tag,
    write_array,
    write_strings,
)
from featx.cache.layout import CacheLayout, publish
from featx.exceptions import CacheFormatError
from featx.files.identity import STAMP

if TYPE_CHECKING:
    import h5py

Columns: TypeAlias = dict[str, Strings | Numbers[Any]]
STRINGS = ("path", "group", "split", "reason")
NUMBERS = {**dict.fromkeys(STAMP, "<i8"), "label": "<i4", "key": "|u1", "status": "|u1"}
# Absent where all are -1, as in manifests of featx 0.1.
OPTIONAL = ("ctime_ns", "birth_ns")
PART_ROWS = 1_000_000
_LEAST = 4  # a part has a quarter of these rows or more, apart from the last one
PART_KIND = "featx-rows"
PART_NAME = re.compile(r"[0-9a-f]{64}\.h5")
_MOST_THREADS = 8


class ManifestPart(NamedTuple):
    """Rows that lie in a file of their own."""

    digest: str  # of the digests of its arrays; names the file
    rows: int

    @property
    def file_name(self) -> str:
        """Name of the file in ``parts/``."""
        return f"{self.digest}.h5"


class MissingPartError(CacheFormatError):
    """A manifest names a part that is not there."""


def fits_one_file(rows: int) -> bool:
    """Return whether a manifest of so many rows keeps them itself."""
    return rows <= PART_ROWS


def unknown_numbers(rows: int) -> Numbers[np.int64]:
    """Return a column of stamps that are not known, which takes no memory."""
    return Numbers([np.broadcast_to(np.int64(-1), (rows,))], [""])


def write_columns(group: h5py.Group, columns: Columns) -> None:
    """Write the rows of a manifest into the manifest itself."""
    _Rows(columns, 0, len(columns["key"])).write(group)


class _Rows:
    """Some rows as they are written, and the digests of their arrays that are known."""

    def __init__(self, columns: Columns, start: int, stop: int, *, sparse: bool = False) -> None:
        self._texts: dict[str, Text] = {}
        self._numbers: dict[str, Values] = {}
        self.digests: dict[str, str] = {}
        for name in STRINGS:
            text = _strings(columns, name).span(start, stop)
            if len(text.data) or not sparse:
                self._texts[name] = text
                self._state(name, *(text.digests or ("", "")))
        for name, dtype in NUMBERS.items():
            values, digest = _numbers(columns, name).span(start, stop)
            if name not in OPTIONAL or (digest != "" and (values != -1).any()):
                self._numbers[name] = np.asarray(values, dtype)
                self.digests[name] = digest or ""

    def _state(self, name: str, text: str, ends: str) -> None:
        self.digests[f"{name}/bytes"], self.digests[f"{name}/ends"] = text, ends

    def name(self) -> str:
        """Return the digest that names a part of these rows."""
        for name, text in self._texts.items():
            if not self.digests[f"{name}/bytes"]:
                self._state(name, _sha256(text.data), _sha256(text.ends))
        for name, values in self._numbers.items():
            self.digests[name] = self.digests[name] or _sha256(values)
        return _name_of(self.digests)

    def write(self, group: h5py.Group) -> None:
        """Write the rows; `CacheFormatError` where they are no more what their digests say."""
        written: dict[str, str] = {}
        for name, text in self._texts.items():
            digests = write_strings(group, name, Strings([text]))
            written[f"{name}/bytes"], written[f"{name}/ends"] = digests
        for name, values in self._numbers.items():
            written[name] = write_array(group, name, values, "featx-array")
        changed = [
            name for name, digest in written.items() if self.digests[name] not in ("", digest)
        ]
        if changed:
            raise CacheFormatError(
                f"{changed[0]} has changed on the disk since it was read: run `featx cache verify`"
            )


def read_columns(group: h5py.Group, *, sparse: bool = False) -> Columns:
    """Return rows where they lie, after comparing them with their digests.

    In a `sparse` group columns of empty strings may be absent.
    """
    mapped = MappedFile(group.file)
    texts = {n: find_strings(group, n) for n in STRINGS if not sparse or n in group}
    arrays = {
        name: find_array(group, name, "featx-array", ndim=1 + (name == "key"), dtypes=(dtype,))
        for name, dtype in NUMBERS.items()
        if name not in OPTIONAL or name in group
    }
    rows, *width = arrays["key"].shape
    lengths = {ends.shape[0] for _, ends in texts.values()} | {a.shape[0] for a in arrays.values()}
    if lengths != {rows} or width != [32]:
        raise CacheFormatError("the columns differ in length")
    mapped.check([*arrays.values(), *(array for pair in texts.values() for array in pair)])
    columns: Columns = {
        name: mapped.strings(*texts[name]) if name in texts else Strings([_blank(rows)])
        for name in STRINGS
    }
    for name in NUMBERS:
        array = arrays.get(name)
        columns[name] = (
            unknown_numbers(rows)
            if array is None
            else Numbers([mapped.array(array)], [array.sha256])
        )
    return columns


def write_parts(layout: CacheLayout, columns: Columns) -> list[ManifestPart]:
    """Write rows as parts, but those that are there and whole; return which they are."""
    return [_write_part(layout, columns, *cut) for cut in pairwise(_cuts(_numbers(columns, "key")))]


def read_parts(folder: Path, parts: Sequence[ManifestPart]) -> Columns:
    """Return the rows of parts, one below the other."""
    different = list(dict.fromkeys(parts))
    with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as pool:
        read = pool.map(partial(_read_part, folder), different)
        columns_of = dict(zip(different, read, strict=True))
    pieces = [columns_of[part] for part in parts] or [_no_rows()]
    columns: Columns = {
        name: Strings([text for rows in pieces for text in _strings(rows, name).pieces])
        for name in STRINGS
    }
    for name in NUMBERS:
        numbers = [_numbers(rows, name) for rows in pieces]
        columns[name] = Numbers(
            [array for column in numbers for array in column.pieces],
            [digest for column in numbers for digest in column.digests],
        )
    return columns


def read_part(path: Path) -> tuple[ManifestPart, Columns]:
    """Read a part and check that its name is that of its content."""
    with open_checked(path, PART_KIND) as file:
        columns = read_columns(file, sparse=True)
        digests = dict(_digests(columns))
        if (digest := _name_of(digests)) != path.stem:
            raise CacheFormatError(f"its content has the digest {digest}, which is not its name")
        return ManifestPart(digest, len(columns["key"])), columns


def touch_parts(layout: CacheLayout, parts: Iterable[ManifestPart]) -> None:
    """Tell collections that parts are counted on; `MissingPartError` where one is gone."""
    for part in parts:
        path = layout.parts / part.file_name
        try:
            os.utime(path)
        except FileNotFoundError as error:
            raise MissingPartError(f"the part {path} is missing") from error
        except OSError:
            continue  # of another user, or on a disk that cannot be written


def is_sound(path: Path, part: ManifestPart) -> bool:
    """Return whether a part is there and whole."""
    with suppress(CacheFormatError, FileNotFoundError):
        return read_part(path)[0] == part
    return False


def _read_part(folder: Path, part: ManifestPart) -> Columns:
    path = folder / part.file_name
    try:
        stored, columns = read_part(path)
    except FileNotFoundError as error:
        raise MissingPartError(f"its part {path} is missing") from error
    if stored != part:
        raise CacheFormatError(f"{path}: expected {part.rows:,} rows, received {stored.rows:,}")
    return columns


def _write_part(layout: CacheLayout, columns: Columns, start: int, stop: int) -> ManifestPart:
    rows = _Rows(columns, start, stop, sparse=True)
    part = ManifestPart(rows.name(), stop - start)

    def write(temporary: Path) -> None:
        with create(temporary) as file:
            tag(file, PART_KIND)
            rows.write(file)

    path = layout.parts / part.file_name
    if not is_sound(path, part):
        publish(layout, path, write)
    return part


def _cuts(keys: Numbers[np.uint8]) -> list[int]:
    """Return where parts begin and end: where they do already, else where the keys say so.

    A key decides for itself, so that rows that come or go leave other parts as they are.
    """
    bounds = sorted({*keys.bounds})
    sizes = np.diff(bounds)
    least = max(1, PART_ROWS // _LEAST)
    if len(sizes) > 1 and sizes.max() <= PART_ROWS and sizes.mean() >= least:
        return bounds
    count, cuts = len(keys), [0]
    marks: list[int] = []
    for piece, first in zip(keys.pieces, keys.bounds[:-1], strict=True):
        heads = np.ascontiguousarray(piece[:, :4]).view(">u4").ravel()
        # What could not be read has a key of zeros.
        marks += (first + np.flatnonzero((heads > 0) & (heads < (1 << 32) // least))).tolist()
    for mark in (*marks, count):
        while mark - cuts[-1] > PART_ROWS:
            cuts.append(cuts[-1] + PART_ROWS)
        if mark - cuts[-1] >= least or (mark == count and mark > cuts[-1]):
            cuts.append(mark)
    return cuts


def _name_of(digests: dict[str, str]) -> str:
    lines = "".join(f"{name} {digest}\n" for name, digest in sorted(digests.items()))
    return hashlib.sha256(lines.encode("ascii")).hexdigest()


def _digests(columns: Columns) -> Iterable[tuple[str, str]]:
    """Yield the arrays of a part that was read, and the digest of each."""
    for name in STRINGS:
        (text,) = _strings(columns, name).pieces
        if text.digests and text.digests[0]:
            yield f"{name}/bytes", text.digests[0]
            yield f"{name}/ends", text.digests[1]
    for name in NUMBERS:
        (digest,) = _numbers(columns, name).digests
        if digest:
            yield name, digest


def _sha256(values: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).view(np.uint8).data).hexdigest()


def _blank(rows: int) -> Text:
    """Return empty strings that a part leaves out."""
    return Strings.blank(rows).pieces[0]._replace(digests=("", ""))


def _no_rows() -> Columns:
    columns: Columns = {name: Strings.blank(0) for name in STRINGS}
    for name, dtype in NUMBERS.items():
        columns[name] = Numbers([np.empty((0, 32) if name == "key" else 0, dtype)])
    return columns


def _strings(columns: Columns, name: str) -> Strings:
    column = columns[name]
    assert isinstance(column, Strings)
    return column


def _numbers(columns: Columns, name: str) -> Numbers[Any]:
    column = columns[name]
    assert isinstance(column, Numbers)
    return column
