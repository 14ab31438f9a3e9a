"""Datasets as files: edit, rename and delete what a manifest says."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from featx.cache.layout import CacheLayout, writing
from featx.cache.manifest import (
    Manifest,
    find_manifest,
    read_manifest,
    same_manifest,
    write_manifest,
)
from featx.cache.replacing import FileVersion, Replaced
from featx.exceptions import CacheFormatError, DatasetError

_ATTEMPTS = 100


def edit_dataset(
    layout: CacheLayout, name: str, edit: Callable[[Manifest], Manifest]
) -> tuple[Manifest, Manifest]:
    """Write an edited manifest in the place of the old one, or under the name that it got.

    When somebody else wrote the dataset meanwhile, the edit is done again to what they wrote, so
    that neither is lost.

    Parameters
    ----------
    layout : CacheLayout
        The cache.
    name : str
        The dataset.
    edit : callable
        One of `featx.cache.editing`, with its arguments bound. It may be called several times.

    Returns
    -------
    before, after : Manifest

    Raises
    ------
    DatasetError
        If there is no such dataset, it cannot be edited like this, or the new name is taken.
    """
    for _ in range(_ATTEMPTS):
        with FileVersion(layout.dataset(name)) as version, suppress(Replaced):
            before = find_manifest(layout, name)
            after = edit(before)
            if after.name != before.name:
                _write_new(layout, after)
            elif not same_manifest(before, after):
                write_manifest(layout, after, move=version.move)
            return before, after
    raise _too_busy(name)


def rename_dataset(layout: CacheLayout, name: str, new: str) -> None:
    """Give a dataset another name; its features stay where they are.

    Raises
    ------
    DatasetError
        If there is no such dataset, or the new name is taken or cannot be one.
    """
    old_place = layout.dataset(name)
    for _ in range(_ATTEMPTS):
        with FileVersion(old_place) as version, suppress(Replaced):
            renamed = replace(find_manifest(layout, name), name=new)
            if layout.dataset(new) == old_place:
                write_manifest(layout, renamed, move=version.move)
                return
            _check_free(layout, new)

            def move(made: Path, target: Path, version: FileVersion = version) -> None:
                with version.held():  # an edit of the old name waits, and then finds it gone
                    if target.exists():
                        raise Replaced(target)
                    made.replace(target)
                    old_place.unlink()

            write_manifest(layout, renamed, move=move)
            return
    raise _too_busy(name)


def delete_dataset(layout: CacheLayout, name: str) -> None:
    """Forget a dataset; its features stay until the cache is cleaned (gc).

    A damaged manifest can be deleted too.

    Raises
    ------
    DatasetError
        If there is no such dataset.
    """
    place = layout.dataset(name)
    for _ in range(_ATTEMPTS):
        if not place.is_file():
            find_manifest(layout, name)
        with FileVersion(place) as version, suppress(Replaced), version.held():
            with writing(place):
                place.unlink()
            return
    raise _too_busy(name)


def rewrite_dataset(
    layout: CacheLayout,
    name: str,
    make: Callable[[Manifest | None], Manifest],
    *,
    seen: tuple[FileVersion, Manifest | None] | None = None,
    still: Callable[[], bool] = lambda: True,
) -> Manifest:
    """Write a dataset whose columns were made anew, keeping what others did to it meanwhile.

    Parameters
    ----------
    layout : CacheLayout
        The cache.
    name : str
        The dataset.
    make : callable
        Returns what to write, given what is there by now: None where there is nothing, or nothing
        that can be read. It may be called several times.
    seen : tuple of FileVersion and Manifest or None, optional
        What was read before, so that it is read again only if it was replaced.
    still : callable, optional
        Whether the features that `make` counted on are in their places. It is asked at the moment
        of writing, under the lock; when they are not, `make` is called again.

    Returns
    -------
    Manifest
        What is in the cache now.
    """
    if seen is not None:
        with suppress(Replaced):
            return _write_over(layout, *seen, make, still)
    for _ in range(_ATTEMPTS):
        with FileVersion(layout.dataset(name)) as version, suppress(Replaced):
            current: Manifest | None = None
            with suppress(FileNotFoundError, CacheFormatError):
                current = read_manifest(layout.dataset(name))
            return _write_over(layout, version, current, make, still)
    raise _too_busy(name)


def _write_over(
    layout: CacheLayout,
    version: FileVersion,
    current: Manifest | None,
    make: Callable[[Manifest | None], Manifest],
    still: Callable[[], bool],
) -> Manifest:
    manifest = make(current)
    if current is None or not same_manifest(manifest, current):
        write_manifest(layout, manifest, move=partial(version.move, still=still))
    return manifest


def _write_new(layout: CacheLayout, manifest: Manifest) -> None:
    with FileVersion(layout.dataset(manifest.name)) as nothing:
        _check_free(layout, manifest.name)
        write_manifest(layout, manifest, move=nothing.move)


def _too_busy(name: str) -> DatasetError:
    return DatasetError(
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
