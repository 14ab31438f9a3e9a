"""Datasets by name: edit, rename, delete and rewrite them, so that nobody's change is lost."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from featx.cache.editing import restated
from featx.cache.layout import CacheLayout, FileVersion, Replaced, writing
from featx.cache.manifest import (
    PENDING,
    Manifest,
    find_manifest,
    read_manifest,
    same_manifest,
    write_manifest,
)
from featx.cache.space import FeatureSpace, open_space
from featx.exceptions import CacheFormatError, DatasetError

T = TypeVar("T")
_ATTEMPTS = 100


def edit_dataset(
    layout: CacheLayout, name: str, edit: Callable[[Manifest], Manifest]
) -> tuple[Manifest, Manifest]:
    """Return a manifest and the edited one that replaced it, or was written under a new name."""
    used: list[FeatureSpace] = []

    def write(version: FileVersion) -> tuple[Manifest, Manifest]:
        before = find_manifest(layout, name)
        after = _promised(layout, before, edit(before), used)
        if after.name != before.name:
            with FileVersion(layout.dataset(after.name)) as nothing:
                _check_free(layout, after.name)
                write_manifest(layout, after, move=nothing.move)
        elif not same_manifest(before, after):
            move = partial(version.move, still=lambda: all(space.intact() for space in used))
            write_manifest(layout, after, move=move)
        return before, after

    return _until_written(layout, name, write)


def _promised(
    layout: CacheLayout, before: Manifest, after: Manifest, used: list[FeatureSpace]
) -> Manifest:
    """Return an edited dataset in which rows that come back count only if they have features."""
    used.clear()
    rows, blocks = after.usable, after.blocks
    if after.name != before.name or len(rows) <= len(before.usable):
        return after
    rows = rows[before.path.take(before.usable).find(after.path.take(rows)) < 0]
    keys, present = after.key[rows], np.ones(len(rows), np.bool_)
    for block in blocks:
        try:
            space = open_space(layout, block.space)
            space.touch([block.tap], keys)
            present &= space.has([block.tap], keys)
        except CacheFormatError:
            present[:] = False
        else:
            used.append(space)
    lost, status = rows[~present], after.status.copy()
    status[lost] = PENDING
    reasons = after.reason.changed(lost, ["not reached"] * len(lost))
    return restated(after.changed(status=status, reason=reasons))


def rename_dataset(layout: CacheLayout, name: str, new: str) -> None:
    """Give a dataset another name; its features stay where they are."""
    old_path = layout.dataset(name)

    def write(version: FileVersion) -> None:
        renamed = find_manifest(layout, name).changed(name=new)
        if layout.dataset(new) == old_path:
            write_manifest(layout, renamed, move=version.move)
            return
        _check_free(layout, new)

        def move(made: Path, target: Path) -> None:
            with version.held():  # an edit of the old name waits, and then finds it gone
                if target.exists():
                    raise Replaced(target)
                made.replace(target)
                old_path.unlink()

        write_manifest(layout, renamed, move=move)

    _until_written(layout, name, write)


def delete_dataset(layout: CacheLayout, name: str) -> None:
    """Forget a dataset, also a damaged one; its features stay until the cache is cleaned (gc)."""
    path = layout.dataset(name)

    def remove(version: FileVersion) -> None:
        if not path.is_file():
            find_manifest(layout, name)
        with version.held(), writing(path):
            path.unlink()

    _until_written(layout, name, remove)


def rewrite_dataset(
    layout: CacheLayout,
    name: str,
    make: Callable[[Manifest | None], Manifest],
    *,
    seen: tuple[FileVersion, Manifest | None] | None = None,
    still: Callable[[], bool] = lambda: True,
    worse: Callable[[Manifest, Manifest | None], bool] = lambda made, current: False,
) -> Manifest:
    """Write what `make` makes of the manifest that is there by now, and return it.

    `make` gets None where nothing is there that can be read, and is called again when others were
    faster. `seen` is what was read before. `still` says under the lock whether the features that
    were counted on are where they were. What is `worse` than what is there is not written.
    """

    def write(version: FileVersion, current: Manifest | None) -> Manifest:
        manifest = make(current)
        stays = worse(manifest, current)
        if not stays and (current is None or not same_manifest(manifest, current)):
            write_manifest(layout, manifest, move=partial(version.move, still=still))
        return manifest

    def read_and_write(version: FileVersion) -> Manifest:
        current: Manifest | None = None
        with suppress(FileNotFoundError, CacheFormatError):
            current = read_manifest(layout.dataset(name))
        return write(version, current)

    if seen is not None:
        with suppress(Replaced):
            return write(*seen)
    return _until_written(layout, name, read_and_write)


def _until_written(layout: CacheLayout, name: str, write: Callable[[FileVersion], T]) -> T:
    """Return what `write` returns, given the dataset's file as it is now; again when it changes."""
    for _ in range(_ATTEMPTS):
        with FileVersion(layout.dataset(name)) as version, suppress(Replaced):
            return write(version)
    raise DatasetError(
        f"{name!r} was changed by others {_ATTEMPTS} times while this was at work: try again when "
        "they have finished"
    )


def _check_free(layout: CacheLayout, name: str) -> None:
    if not name.strip() or any(mark in name for mark in "/\\"):
        raise DatasetError(f"expected a name for a dataset, without slashes, received {name!r}")
    if layout.dataset(name).is_file():
        raise DatasetError(
            f"the cache {layout.root} has a dataset {name!r} already: delete it first "
            f"(`featx dataset delete {name}`), or choose another name"
        )
