"""Datasets as files: edit, rename and delete what a manifest says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from featx.cache.layout import CacheLayout, writing
from featx.cache.manifest import Manifest, find_manifest, same_manifest, write_manifest
from featx.exceptions import DatasetError

__all__ = ["delete_dataset", "edit_dataset", "rename_dataset"]


def edit_dataset(
    layout: CacheLayout, name: str, edit: Callable[[Manifest], Manifest]
) -> tuple[Manifest, Manifest]:
    """Write an edited manifest in the place of the old one, or under the name that it got.

    Parameters
    ----------
    layout : CacheLayout
        The cache.
    name : str
        The dataset.
    edit : callable
        One of `featx.cache.editing`, with its arguments bound.

    Returns
    -------
    before, after : Manifest

    Raises
    ------
    DatasetError
        If there is no such dataset, it cannot be edited like this, or the new name is taken.
    """
    before = find_manifest(layout, name)
    after = edit(before)
    if after.name != before.name:
        _check_free(layout, after.name)
    if not same_manifest(before, after):
        write_manifest(layout, after)
    return before, after


def rename_dataset(layout: CacheLayout, name: str, new: str) -> None:
    """Give a dataset another name; its features stay where they are.

    Raises
    ------
    DatasetError
        If there is no such dataset, or the new name is taken or cannot be one.
    """
    manifest = find_manifest(layout, name)
    old_place, place = layout.dataset(name), layout.dataset(new)
    if place != old_place:
        _check_free(layout, new)
    write_manifest(layout, replace(manifest, name=new))
    if place != old_place:
        with writing(old_place):
            old_place.unlink(missing_ok=True)


def delete_dataset(layout: CacheLayout, name: str) -> None:
    """Forget a dataset; its features stay until the cache is cleaned (gc).

    A damaged manifest can be deleted too.

    Raises
    ------
    DatasetError
        If there is no such dataset.
    """
    place = layout.dataset(name)
    if not place.is_file():
        find_manifest(layout, name)
    with writing(place):
        place.unlink()


def _check_free(layout: CacheLayout, name: str) -> None:
    if not name.strip() or any(mark in name for mark in "/\\"):
        raise DatasetError(f"expected a name for a dataset, without slashes, received {name!r}")
    if layout.dataset(name).is_file():
        raise DatasetError(
            f"the cache {layout.root} has a dataset {name!r} already: delete it first "
            f"(`featx dataset delete {name}`), or choose another name"
        )
