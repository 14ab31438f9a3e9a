"""A manifest: what is known of a dataset, one row an input; docs/format.md has its layout."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray

from featx.cache.hdf5 import (
    create,
    find_group,
    open_checked,
    read_array,
    read_strings,
    tag,
    write_array,
    write_strings,
)
from featx.cache.layout import CacheLayout, locked, publish
from featx.exceptions import CacheFormatError, DatasetError
from featx.files.identity import STAMP, Keys

if TYPE_CHECKING:
    import h5py

STATUSES = ("ok", "failed", "duplicate", "pending")
OK, FAILED, DUPLICATE, PENDING = range(4)
_KIND = "featx-manifest"
_STRINGS = ("path", "group", "split", "reason")
_NUMBERS = {**dict.fromkeys(STAMP, "<i8"), "label": "<i4", "key": "|u1", "status": "|u1"}
# Absent in manifests of featx 0.1.
_OPTIONAL = ("ctime_ns", "birth_ns")
_OF_THE_WHOLE = ("name", "root", "blocks", "source", "strays", "column")
_UNEDITED, _UNEDITED_KIND = "unedited", "featx-unedited"


class Edit(TypedDict, total=False):
    """What was done to a dataset, as JSON types; see `featx.cache.editing`."""

    edit: str  # remove, relabel or split
    globs: list[str]
    status: list[str]
    classes: dict[str, str]
    keys: dict[str, str]
    fractions: dict[str, float]
    method: str
    seed: int
    # Only to take an edit back and to find conflicts; absent in edits of featx 0.1.
    before: dict[str, list[str]]  # relabel: what the folders called the copies of each key
    splits: dict[str, str]  # remove: the splits of the paths, where shares decided them
    replaced: dict[str, Any]  # split: the earlier split, and its index among the edits


def _unknown() -> NDArray[np.int64]:
    return np.empty(0, np.int64)


@dataclass(frozen=True, slots=True)
class Block:
    """One matrix of features of a dataset: a network, a layer of it, and where they are."""

    backbone: str
    tap: str
    space: str  # name of its folder
    view: int | None = None  # number of an augmented view, None for the images as they are

    def __str__(self) -> str:
        return f"{self.backbone}/{self.tap}" + ("" if self.view is None else f" view {self.view}")

    def to_list(self) -> list[str | int]:
        """Return the block as JSON types."""
        plain: list[str | int] = [self.backbone, self.tap, self.space]
        return plain if self.view is None else [*plain, self.view]


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is known of a dataset; columns have one entry a row, empty text where there is none."""

    name: str
    root: str  # the folder that paths are relative to; empty when there is none
    classes: tuple[str, ...] | None  # in the order of their codes; None for unlabelled data
    path: list[str]
    label: NDArray[np.int32]  # codes of classes, -1 for none
    group: list[str]
    split: list[str]
    reason: list[str]
    # Of each file when it was read, see `featx.files.identity`; -1 where not known.
    size: NDArray[np.int64]
    mtime_ns: NDArray[np.int64]
    inode: NDArray[np.int64]
    key: Keys  # SHA-256 of each file; zeros where it could not be read
    status: NDArray[np.uint8]  # index into STATUSES
    strays: tuple[str, ...] = ()  # files that were seen and are no images
    blocks: tuple[Block, ...] = ()
    source: str = "paths"  # kind of the data: files, packed (in archives), arrays or imported
    column: str = ""  # of a table that images were read from
    edits: tuple[Edit, ...] = ()
    ctime_ns: NDArray[np.int64] = field(default_factory=_unknown)
    birth_ns: NDArray[np.int64] = field(default_factory=_unknown)
    unedited: Manifest | None = None  # the rows before the edits, where these are known

    def __post_init__(self) -> None:
        for name in _OPTIONAL:
            if not len(getattr(self, name)):
                object.__setattr__(self, name, np.full(len(self), -1, np.int64))

    def __len__(self) -> int:
        return len(self.path)

    @property
    def usable(self) -> NDArray[np.intp]:
        """The rows that have features: ok and duplicate ones."""
        return np.flatnonzero(np.isin(self.status, (OK, DUPLICATE)))

    @property
    def label_names(self) -> list[str]:
        """The class of each row, empty text for none."""
        names = [*(self.classes or ()), ""]
        return [names[code] for code in self.label.tolist()]

    @property
    def before_edits(self) -> Manifest | None:
        """The dataset without its edits; None where edits of featx 0.1 left no trace of it."""
        if self.unedited is None:
            return None if self.edits else self
        same = {name: getattr(self, name) for name in _OF_THE_WHOLE}
        return replace(self.unedited, **same, edits=(), unedited=None)

    def take(self, rows: NDArray[np.intp]) -> Manifest:
        """Return some of the rows."""
        columns: dict[str, Any] = {name: getattr(self, name)[rows] for name in _NUMBERS}
        for name in _STRINGS:
            values = getattr(self, name)
            columns[name] = [values[row] for row in rows.tolist()]
        return replace(self, **columns)

    def joined(self, other: Manifest) -> Manifest:
        """Return the rows of this dataset and, below them, those of another."""
        columns = {name: getattr(self, name) + getattr(other, name) for name in _STRINGS}
        for name in _NUMBERS:
            columns[name] = np.concatenate([getattr(self, name), getattr(other, name)])
        return replace(self, **columns)


def same_manifest(first: Manifest, second: Manifest, *, but: Collection[str] = ()) -> bool:
    """Return whether two manifests say the same in all columns but some."""
    for column in fields(Manifest):
        if column.name in but:
            continue
        left, right = getattr(first, column.name), getattr(second, column.name)
        if isinstance(left, Manifest) and isinstance(right, Manifest):
            if not same_manifest(left, right, but={*but, *_OF_THE_WHOLE}):
                return False
        elif isinstance(left, np.ndarray):
            if not np.array_equal(left, right):
                return False
        elif left != right:
            return False
    return True


def write_manifest(
    layout: CacheLayout, manifest: Manifest, *, move: Callable[[Path, Path], None] | None = None
) -> Path:
    """Write a manifest by `publish` under the lock, or by another `move`, and return its path."""
    path = layout.dataset(manifest.name)
    header: dict[str, object] = {
        "blocks": [block.to_list() for block in manifest.blocks],
        "classes": None if manifest.classes is None else list(manifest.classes),
        "name": manifest.name,
        "root": manifest.root,
        "source": manifest.source,
        "strays": list(manifest.strays),
    }
    if manifest.column:
        header["column"] = manifest.column
    if manifest.edits:
        header["edits"] = list(manifest.edits)

    def write(temporary: Path) -> None:
        with create(temporary) as file:
            tag(file, _KIND)
            write_strings(file, "header", [json.dumps(header, sort_keys=True)])
            _write_columns(file, manifest)
            if manifest.edits and manifest.unedited is not None:
                group = file.create_group(_UNEDITED)
                tag(group, _UNEDITED_KIND)
                write_strings(group, "classes", manifest.unedited.classes or ())
                _write_columns(group, manifest.unedited)

    def replace_any(new: Path, target: Path) -> None:
        with locked(target.parent):
            new.replace(target)

    publish(layout, path, write, move=move or replace_any)
    return path


def _write_columns(group: h5py.Group, manifest: Manifest) -> None:
    for name in _STRINGS:
        write_strings(group, name, getattr(manifest, name))
    for name, dtype in _NUMBERS.items():
        values = np.asarray(getattr(manifest, name), dtype)
        if name not in _OPTIONAL or (values != -1).any():
            write_array(group, name, values, "featx-array")


def _read_columns(group: h5py.Group) -> dict[str, Any]:
    columns: dict[str, Any] = {name: read_strings(group, name) for name in _STRINGS}
    for name, dtype in _NUMBERS.items():
        if name not in _OPTIONAL or name in group:
            columns[name] = read_array(group, name, dtype=dtype, ndim=1 + (name == "key"))
    if len(set(map(len, columns.values()))) != 1 or columns["key"].shape[1:] != (32,):
        raise CacheFormatError("the columns differ in length")
    return columns


def _read_unedited(file: h5py.File, name: str) -> Manifest | None:
    if _UNEDITED not in file:
        return None
    group = find_group(file, _UNEDITED, _UNEDITED_KIND)
    classes = tuple(read_strings(group, "classes")) or None
    columns = _read_columns(group)
    if columns["label"].max(initial=-1) >= len(classes or ()):
        raise CacheFormatError("a label before the edits is of no class")
    return Manifest(name=name, root="", classes=classes, **columns)


class Heading(NamedTuple):
    """What a manifest says of its dataset before its rows."""

    name: str
    root: str
    blocks: tuple[Block, ...]


def read_heading(path: Path) -> Heading:
    """Read the first part of a manifest, which takes as long for any number of rows."""
    with open_checked(path, _KIND) as file:
        header = _read_header(file)
        return Heading(header["name"], header["root"], _blocks(header))


def _read_header(file: h5py.File) -> dict[str, Any]:
    header: dict[str, Any] = json.loads(read_strings(file, "header")[0])
    return header


def _blocks(header: dict[str, Any]) -> tuple[Block, ...]:
    return tuple(Block(*block) for block in header["blocks"])


def read_manifest(path: Path) -> Manifest:
    """Read a manifest, checking every digest."""
    with open_checked(path, _KIND) as file:
        header = _read_header(file)
        columns = _read_columns(file)
        edits = header.get("edits", [])
        if not all(isinstance(edit, dict) and isinstance(edit.get("edit"), str) for edit in edits):
            raise CacheFormatError("the edits are not a list of objects")
        return Manifest(
            unedited=_read_unedited(file, header["name"]) if edits else None,
            name=header["name"],
            root=header["root"],
            classes=None if header["classes"] is None else tuple(header["classes"]),
            strays=tuple(header["strays"]),
            blocks=_blocks(header),
            source=header["source"],
            column=header.get("column", ""),
            edits=tuple(edits),
            **columns,
        )


def manifest_names(layout: CacheLayout) -> list[str]:
    """Return the names of the datasets in a cache."""
    return sorted(path.stem for path in layout.manifests())


def find_manifest(layout: CacheLayout, name: str) -> Manifest:
    """Read the manifest of a dataset by its name; `DatasetError` if there is none."""
    try:
        return read_manifest(layout.dataset(name))
    except FileNotFoundError as error:
        names = ", ".join(manifest_names(layout)) or "none"
        raise DatasetError(
            f"no dataset {name!r} in the cache {layout.root}, which has: {names}. Run "
            "`featx extract FOLDER` first"
        ) from error


_OWN_NETWORKS = {
    "file": "file:PATH.keras",
    "savedmodel": "savedmodel:FOLDER --trust",
    "hub": "hub:FOLDER",
}


def extract_command(data: str, block: Block) -> str:
    """Return the command that computes a block of a dataset again, or brings it in again."""
    if block.backbone.startswith("import:"):
        # The space keeps the name of the first import when the dataset is renamed.
        return f"featx import {_quoted(block.backbone.removeprefix('import:'))} FILE"
    tap = "" if block.tap == "avg" else f" --tap {block.tap}"
    backbone = _OWN_NETWORKS.get(block.backbone.partition(":")[0], block.backbone)
    views = "" if block.view is None else f" --views {block.view + 1}"
    return f"featx extract {_quoted(data)} -b {backbone}{tap}{views}"


def extract_again(manifest: Manifest, block: Block) -> str:
    """Return what to do to compute features of a dataset again that were lost."""
    command = extract_command(manifest.name, block)
    if block.backbone.startswith("import:"):
        return f"import the same features again: {command}"
    if manifest.source == "arrays":
        return f"extract the same arrays again under the name {manifest.name!r}"
    return f"{command} (with the options of before)"


def _quoted(text: str) -> str:
    return f"'{text}'" if " " in text else text
