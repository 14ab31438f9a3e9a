"""A manifest: what is known of a dataset, one row an input, apart from its features.

Layout, version 1::

    /          type "featx-manifest", version, header (JSON: name, root, classes, blocks, ...)
    /path /label /group /split /reason    columns of strings (label: int32 codes of header.classes)
    /size /mtime_ns /inode                int64, of the file when its key was made; -1 unknown
    /ctime_ns /birth_ns                   likewise; absent where they are -1 in every row
    /key       (n, 32) uint8              zeros where the input could not be read
    /status    uint8                      0 ok, 1 failed, 2 duplicate, 3 not reached
"""

from __future__ import annotations

import json
from collections.abc import Callable, Container
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.cache.hdf5 import (
    create,
    open_checked,
    read_array,
    read_strings,
    tag,
    write_array,
    write_strings,
)
from featx.cache.layout import CacheLayout, publish
from featx.cache.replacing import locked
from featx.exceptions import CacheFormatError, DatasetError
from featx.files.stamps import STAMP

STATUSES = ("ok", "failed", "duplicate", "pending")
OK, FAILED, DUPLICATE, PENDING = range(4)
_KIND = "featx-manifest"
# Not there in manifests of featx 0.1, which knew neither.
_OPTIONAL = ("ctime_ns", "birth_ns")
_STRINGS = ("path", "group", "split", "reason")


@dataclass(frozen=True, slots=True)
class Block:
    """One matrix of features of a dataset.

    Parameters
    ----------
    backbone, tap : str
        Which network, and where in it.
    space : str
        Name of the space's folder.
    view : int, optional
        Which augmented view; None for the images as they are.
    """

    backbone: str
    tap: str
    space: str
    view: int | None = None

    def __str__(self) -> str:
        return f"{self.backbone}/{self.tap}" + ("" if self.view is None else f" view {self.view}")

    def to_list(self) -> list[str | int]:
        """Return the block as JSON types."""
        plain: list[str | int] = [self.backbone, self.tap, self.space]
        return plain if self.view is None else [*plain, self.view]


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is known of a dataset.

    Parameters
    ----------
    name : str
        Name of the dataset.
    root : str
        The folder that paths are relative to; empty when there is none.
    classes : tuple of str or None
        Names of the classes in the order of their codes; None for unlabelled data.
    path, group, split, reason : list of str
        One entry a row; empty text where there is none.
    label : ndarray of shape (n,), int32
        Codes of classes, -1 for none.
    size, mtime_ns, inode, ctime_ns, birth_ns : ndarray of shape (n,), int64
        Of the file when it was read, see `featx.files.stamps`; -1 where not known.
    key : ndarray of shape (n, 32), uint8
        SHA-256 of the file; zeros where it could not be read.
    status : ndarray of shape (n,), uint8
        Index into `STATUSES`.
    strays : tuple of str
        Files that were found and are no images.
    blocks : tuple of Block
        The features that there are.
    source : str
        Kind of the data: ``files``, ``arrays`` or ``imported``.
    edits : tuple of dict
        What was edited since, as JSON types; see `featx.cache.editing`.
    """

    name: str
    root: str
    classes: tuple[str, ...] | None
    path: list[str]
    label: NDArray[np.int32]
    group: list[str]
    split: list[str]
    reason: list[str]
    size: NDArray[np.int64]
    mtime_ns: NDArray[np.int64]
    inode: NDArray[np.int64]
    key: NDArray[np.uint8]
    status: NDArray[np.uint8]
    strays: tuple[str, ...] = ()
    blocks: tuple[Block, ...] = field(default_factory=tuple)
    source: str = "paths"
    edits: tuple[dict[str, Any], ...] = ()
    ctime_ns: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    birth_ns: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    def __post_init__(self) -> None:
        for name in _OPTIONAL:
            if not len(getattr(self, name)):
                object.__setattr__(self, name, np.full(len(self), -1, np.int64))

    def __len__(self) -> int:
        return len(self.path)


def write_manifest(
    layout: CacheLayout,
    manifest: Manifest,
    *,
    move: Callable[[Path, Path], None] | None = None,
) -> Path:
    """Write a manifest to its place, whole or not at all, and return the place.

    Parameters
    ----------
    layout : CacheLayout
        The cache.
    manifest : Manifest
        What to write.
    move : callable, optional
        Moves the finished file to its place, such as `FileVersion.move`; by default it replaces
        whatever is there.
    """
    path = layout.dataset(manifest.name)
    header: dict[str, Any] = {
        "blocks": [block.to_list() for block in manifest.blocks],
        "classes": None if manifest.classes is None else list(manifest.classes),
        "name": manifest.name,
        "root": manifest.root,
        "source": manifest.source,
        "strays": list(manifest.strays),
    }
    if manifest.edits:
        header["edits"] = list(manifest.edits)

    def write(temporary: Path) -> None:
        with create(temporary) as file:
            tag(file, _KIND)
            write_strings(file, "header", [json.dumps(header, sort_keys=True)])
            for name in _STRINGS:
                write_strings(file, name, getattr(manifest, name))
            for name in STAMP:
                values = np.asarray(getattr(manifest, name), "<i8")
                if name not in _OPTIONAL or (values != -1).any():
                    write_array(file, name, values, "featx-array")
            write_array(file, "label", np.asarray(manifest.label, "<i4"), "featx-array")
            write_array(file, "key", manifest.key, "featx-array")
            write_array(file, "status", manifest.status, "featx-array")

    publish(layout, path, write, move=move or _move)
    return path


def _move(new: Path, target: Path) -> None:
    with locked(target.parent):
        new.replace(target)


def same_manifest(one: Manifest, other: Manifest, *, but: Container[str] = ()) -> bool:
    """Return whether two manifests say the same in all columns but some."""
    for field_ in fields(Manifest):
        if field_.name in but:
            continue
        left, right = getattr(one, field_.name), getattr(other, field_.name)
        if isinstance(left, np.ndarray):
            if not np.array_equal(left, right):
                return False
        elif left != right:
            return False
    return True


def read_manifest(path: Path) -> Manifest:
    """Read a manifest, checking every digest.

    Raises
    ------
    CacheFormatError
        If it is damaged, foreign, or of another version.
    """
    with open_checked(path, _KIND) as file:
        (text,) = read_strings(file, "header")
        header: dict[str, Any] = json.loads(text)
        strings = {name: read_strings(file, name) for name in _STRINGS}
        present = [name for name in STAMP if name not in _OPTIONAL or name in file]
        stats = {name: read_array(file, name, dtype="<i8") for name in present}
        label = read_array(file, "label", dtype="<i4")
        key = read_array(file, "key", dtype="|u1", ndim=2)
        status = read_array(file, "status", dtype="|u1")
        lengths = {len(column) for column in strings.values()}
        lengths |= {len(column) for column in (*stats.values(), label, key, status)}
        if len(lengths) != 1 or key.shape[1:] != (32,):
            raise CacheFormatError("the columns differ in length")
        classes = header["classes"]
        return Manifest(
            name=header["name"],
            root=header["root"],
            classes=None if classes is None else tuple(classes),
            label=label,
            key=key,
            status=status,
            strays=tuple(header["strays"]),
            blocks=tuple(Block(*block) for block in header["blocks"]),
            source=header["source"],
            edits=_edits(header),
            path=strings["path"],
            group=strings["group"],
            split=strings["split"],
            reason=strings["reason"],
            **stats,
        )


def _edits(header: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    edits = header.get("edits", [])
    if not all(isinstance(edit, dict) and isinstance(edit.get("edit"), str) for edit in edits):
        raise CacheFormatError("the edits are none")
    return tuple(edits)


def manifest_names(layout: CacheLayout) -> list[str]:
    """Return the names of the datasets in a cache."""
    return sorted(path.stem for path in layout.datasets.glob("*.h5"))


def find_manifest(layout: CacheLayout, name: str) -> Manifest:
    """Read the manifest of a dataset by its name.

    Raises
    ------
    DatasetError
        If there is none.
    """
    try:
        return read_manifest(layout.dataset(name))
    except FileNotFoundError as error:
        names = ", ".join(manifest_names(layout)) or "none"
        raise DatasetError(
            f"no dataset {name!r} in the cache {layout.root}, which has: {names}. Run "
            "`featx extract FOLDER` first"
        ) from error
