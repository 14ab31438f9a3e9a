"""A manifest: what is known of a dataset, one row an input; docs/format.md has its layout."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypedDict, TypeVar

import numpy as np
from numpy.typing import NDArray

from featx.cache.columns import Numbers, Strings
from featx.cache.hdf5 import (
    attribute,
    create,
    find_group,
    open_checked,
    read_strings,
    tag,
    write_strings,
)
from featx.cache.layout import CacheLayout, FileVersion, locked, publish
from featx.cache.manifest_parts import (
    NUMBERS,
    PART_NAME,
    STRINGS,
    Columns,
    ManifestPart,
    MissingPartError,
    fits_one_file,
    read_columns,
    read_parts,
    touch_parts,
    unknown_numbers,
    write_columns,
    write_parts,
)
from featx.exceptions import CacheFormatError, DatasetError

if TYPE_CHECKING:
    import h5py

STATUSES = ("ok", "failed", "duplicate", "pending")
OK, FAILED, DUPLICATE, PENDING = range(4)
MANIFEST_KIND = "featx-manifest"
_IN_PARTS = 2  # the version of a manifest whose rows are in parts
_OF_THE_WHOLE = ("name", "root", "blocks", "source", "strays", "column")
_UNEDITED, _UNEDITED_KIND = "unedited", "featx-unedited"
T = TypeVar("T", bound=np.generic)


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


class _TextColumn:
    """A field of strings, as bytes; strings in memory may be given for it."""

    def __set_name__(self, _: type, name: str) -> None:
        self._name = name

    def __get__(self, manifest: Manifest | None, _: type | None = None) -> Strings:
        if manifest is None:
            raise AttributeError(self._name)  # a field without a default
        column: Strings = vars(manifest)[self._name]
        return column

    def __set__(self, manifest: Manifest, values: Sequence[str]) -> None:
        vars(manifest)[self._name] = Strings.of(values)


class _NumberColumn(Generic[T]):
    """A field of numbers, put together from its pieces when it is asked for."""

    def __init__(self, *, optional: bool = False) -> None:
        self._optional = optional

    def __set_name__(self, _: type, name: str) -> None:
        self._name = name

    def __get__(self, manifest: Manifest | None, _: type | None = None) -> NDArray[T]:
        if manifest is None:
            if self._optional:
                return None  # type: ignore[return-value]  # the default
            raise AttributeError(self._name)
        column: Numbers[T] = vars(manifest)[self._name]
        return column.values

    def __set__(self, manifest: Manifest, values: NDArray[T] | Numbers[T] | None) -> None:
        column: Numbers[Any]
        if values is None or (self._optional and not len(values)):
            column = unknown_numbers(len(manifest.path))
        else:
            column = values if isinstance(values, Numbers) else Numbers([values])
        vars(manifest)[self._name] = column


@dataclass(frozen=True)
class Manifest:
    """What is known of a dataset; columns have one entry a row, empty text where there is none."""

    name: str
    root: str  # the folder that paths are relative to; empty when there is none
    classes: tuple[str, ...] | None  # in the order of their codes; None for unlabelled data
    path: _TextColumn = _TextColumn()
    label: _NumberColumn[np.int32] = _NumberColumn()  # codes of classes, -1 for none
    group: _TextColumn = _TextColumn()
    split: _TextColumn = _TextColumn()
    reason: _TextColumn = _TextColumn()
    # Of each file when it was read, see `featx.files.identity`; -1 where not known.
    size: _NumberColumn[np.int64] = _NumberColumn()
    mtime_ns: _NumberColumn[np.int64] = _NumberColumn()
    inode: _NumberColumn[np.int64] = _NumberColumn()
    # SHA-256 of each file; zeros where it could not be read.
    key: _NumberColumn[np.uint8] = _NumberColumn()
    status: _NumberColumn[np.uint8] = _NumberColumn()  # index into STATUSES
    strays: tuple[str, ...] = ()  # files that were seen and are no images
    blocks: tuple[Block, ...] = ()
    source: str = "paths"  # kind of the data: files, packed (in archives), arrays or imported
    column: str = ""  # of a table that images were read from
    edits: tuple[Edit, ...] = ()
    ctime_ns: _NumberColumn[np.int64] = _NumberColumn(optional=True)
    birth_ns: _NumberColumn[np.int64] = _NumberColumn(optional=True)
    unedited: Manifest | None = None  # the rows before the edits, where these are known

    def __len__(self) -> int:
        return len(self.path)

    @property
    def columns(self) -> Columns:
        """The columns where they lie, which are not put together."""
        return {name: vars(self)[name] for name in (*STRINGS, *NUMBERS)}

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
        return self.unedited.changed(**same, edits=(), unedited=None)

    def changed(self, **changes: Any) -> Manifest:
        """Return a manifest with other fields; the others stay where they lie.

        `dataclasses.replace` gives the same, and puts all columns together first.
        """
        return Manifest(**{**vars(self), **changes})

    def take(self, rows: NDArray[np.intp]) -> Manifest:
        """Return some of the rows."""
        return self.changed(**{name: column.take(rows) for name, column in self.columns.items()})

    def joined(self, other: Manifest) -> Manifest:
        """Return the rows of this dataset and, below them, those of another."""
        ours, theirs = self.columns, other.columns
        joined = {name: column.joined(theirs[name]) for name, column in ours.items()}  # type: ignore[arg-type]
        return self.changed(**joined)


def same_manifest(first: Manifest, second: Manifest, *, but: Collection[str] = ()) -> bool:
    """Return whether two manifests say the same in all columns but some."""
    for column in fields(Manifest):
        if column.name in but:
            continue
        left, right = vars(first)[column.name], vars(second)[column.name]
        if isinstance(left, Manifest) and isinstance(right, Manifest):
            if not same_manifest(left, right, but={*but, *_OF_THE_WHOLE}):
                return False
        elif isinstance(left, Numbers):
            if not left.equals(right):
                return False
        elif left != right:
            return False
    return True


def write_manifest(
    layout: CacheLayout, manifest: Manifest, *, move: Callable[[Path, Path], None] | None = None
) -> Path:
    """Write a manifest by `publish` under the lock, or by another `move`, and return its path."""
    path = layout.dataset(manifest.name)

    def replace_any(new: Path, target: Path) -> None:
        with locked(target.parent):
            new.replace(target)

    unedited = manifest.unedited if manifest.edits else None
    if fits_one_file(max(len(manifest), 0 if unedited is None else len(unedited))):
        publish(layout, path, partial(_write_whole, manifest, unedited), move=move or replace_any)
        return path

    def count_on_parts(new: Path, target: Path) -> None:
        touch_parts(layout, read_heading(new).parts)
        (move or replace_any)(new, target)

    while True:
        parts = write_parts(layout, manifest.columns)
        before = None if unedited is None else write_parts(layout, unedited.columns)
        with suppress(MissingPartError):  # a collection took one that was there already
            write = partial(write_heading, manifest, parts, before)
            publish(layout, path, write, move=count_on_parts)
            return path


def _write_whole(manifest: Manifest, unedited: Manifest | None, path: Path) -> None:
    """Write a manifest with its rows."""
    with create(path) as file:
        tag(file, MANIFEST_KIND)
        write_strings(file, "header", [json.dumps(_header(manifest), sort_keys=True)])
        write_columns(file, manifest.columns)
        if unedited is not None:
            group = file.create_group(_UNEDITED)
            tag(group, _UNEDITED_KIND)
            write_strings(group, "classes", unedited.classes or ())
            write_columns(group, unedited.columns)


def write_heading(
    manifest: Manifest,
    parts: Sequence[ManifestPart],
    unedited: Sequence[ManifestPart] | None,
    path: Path,
) -> None:
    """Write a manifest whose rows are in parts, those before its edits too, where these are known.

    The file is to be renamed when the parts are there.
    """
    header = {**_header(manifest), "parts": parts}
    if unedited is not None and manifest.unedited is not None:
        header[_UNEDITED] = {"classes": manifest.unedited.classes or (), "parts": unedited}
    with create(path) as file:
        tag(file, MANIFEST_KIND, _IN_PARTS)
        write_strings(file, "header", [json.dumps(header, sort_keys=True)])


def _header(manifest: Manifest) -> dict[str, object]:
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
    return header


class Heading(NamedTuple):
    """What a manifest says of its dataset before its rows."""

    name: str
    root: str
    blocks: tuple[Block, ...]
    parts: tuple[ManifestPart, ...] = ()  # that it names, those of the rows before edits too


def read_heading(path: Path) -> Heading:
    """Read the first part of a manifest, which takes as long for any number of rows."""
    with open_checked(path, MANIFEST_KIND, newest=_IN_PARTS) as file:
        header = _read_header(file)
        parts = (*_parts(header), *_parts(header.get(_UNEDITED) or {}))
        return Heading(header["name"], header["root"], _blocks(header), parts)


def _read_header(file: h5py.File) -> dict[str, Any]:
    header: dict[str, Any] = json.loads(read_strings(file, "header")[0])
    return header


def _blocks(header: dict[str, Any]) -> tuple[Block, ...]:
    return tuple(Block(*block) for block in header["blocks"])


def _parts(header: dict[str, Any]) -> list[ManifestPart]:
    parts = [ManifestPart(str(digest), int(rows)) for digest, rows in header.get("parts", ())]
    if not all(PART_NAME.fullmatch(part.file_name) for part in parts):
        raise CacheFormatError("a part has no digest for its name")
    return parts


def read_manifest(path: Path) -> Manifest:
    """Read a manifest, checking every digest."""
    while True:
        with FileVersion(path) as version:
            try:
                return _read_manifest(path)
            except CacheFormatError:
                # The parts of a manifest that was replaced meanwhile may be gone.
                if version.is_current():
                    raise


def _read_manifest(path: Path) -> Manifest:
    folder = path.parent.parent / "parts"
    with open_checked(path, MANIFEST_KIND, newest=_IN_PARTS) as file:
        header = _read_header(file)
        edits = header.get("edits", [])
        if not all(isinstance(edit, dict) and isinstance(edit.get("edit"), str) for edit in edits):
            raise CacheFormatError("the edits are not a list of objects")
        unedited = None
        if attribute(file, "version") == _IN_PARTS:
            columns = read_parts(folder, _parts(header))
            if edits and _UNEDITED in header:
                before = read_parts(folder, _parts(header[_UNEDITED]))
                unedited = _before_edits(header, header[_UNEDITED]["classes"], before)
        else:
            columns = read_columns(file)
            if edits and _UNEDITED in file:
                group = find_group(file, _UNEDITED, _UNEDITED_KIND)
                classes = read_strings(group, "classes")
                unedited = _before_edits(header, classes, read_columns(group))
        return Manifest(
            unedited=unedited,
            name=header["name"],
            root=header["root"],
            classes=None if header["classes"] is None else tuple(header["classes"]),
            strays=tuple(header["strays"]),
            blocks=_blocks(header),
            source=header["source"],
            column=header.get("column", ""),
            edits=tuple(edits),
            **columns,  # type: ignore[arg-type]
        )


def _before_edits(header: dict[str, Any], classes: Sequence[str], columns: Columns) -> Manifest:
    names = tuple(classes) or None
    unedited = Manifest(name=header["name"], root="", classes=names, **columns)  # type: ignore[arg-type]
    if unedited.label.max(initial=-1) >= len(classes):
        raise CacheFormatError("a label before the edits is of no class")
    return unedited


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
