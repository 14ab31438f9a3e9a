"""Images behind addresses: a listing of a bucket, and what tables and lists name.

A read that fails in spite of being tried again fails one image. The same command reads it again.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import DatasetError, ImageError, StoreError
from featx.files.identity import STAMP, file_stamps
from featx.files.stores import Entry, Store, address_name, as_address, below, shown
from featx.images.files import MAX_FILE_BYTES, Listing, PackedImages, is_image_name, read_file
from featx.images.labels import SplitNames
from featx.images.scan import Tree, is_ignored, list_tree, nothing_found

_AT_ONCE = 32


class RemoteImages(PackedImages):
    """Image files of which some or all lie behind an address.

    Parameters
    ----------
    names : sequence of str
        Addresses, and paths from `root`.
    root : str, default ""
        A folder, or the address of one.
    follow : bool, default True
        Whether addresses among the names are read. Names below the address `root` always are.
    stamps : ndarray of shape (n, 5), int64, or None, default None
        Of a listing, see `featx.files.identity.STAMP`; None to ask for each when it is needed.
    """

    reads_at_once = _AT_ONCE

    def __init__(
        self,
        names: Sequence[str],
        root: str = "",
        *,
        follow: bool = True,
        stamps: NDArray[np.int64] | None = None,
    ) -> None:
        self._names, self._root, self._follow, self._stamps = names, root, follow, stamps
        if follow or as_address(root):
            Store.require()

    def taken(self, rows: NDArray[np.int64]) -> PackedImages:
        """Return some of the images, with their names only."""
        if (rows < 0).any():
            return super().taken(rows)
        stamps = None if self._stamps is None else self._stamps[rows]
        names = [self._names[row] for row in rows.tolist()]
        return RemoteImages(names, self._root, follow=self._follow, stamps=stamps)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> bytes:
        where = below(self._root, self._names[index])
        if as_address(where) is None:
            return read_file(where)
        if not self._follow and as_address(self._names[index]):
            raise ImageError("an address, which is read only with --follow-urls (follow_urls=True)")
        size = -1 if self._stamps is None else int(self._stamps[index, 0])
        if size > MAX_FILE_BYTES:
            raise ImageError(f"too large: {size:,} bytes, the limit is {MAX_FILE_BYTES:,}")
        try:
            store, name = Store.of_object(where)
            return store.read(name, most_bytes=MAX_FILE_BYTES)
        except StoreError as error:
            raise ImageError(f"cannot be read from the store: {error.reason}") from None

    def stamps(self) -> NDArray[np.int64]:
        """Return those of the listing, else what each store says of each image."""
        if self._stamps is not None:
            return self._stamps
        with ThreadPoolExecutor(_AT_ONCE, "featx-stamps") as pool:
            rows = list(pool.map(self._stamp, range(len(self))))
        return np.array(rows, np.int64).reshape(-1, len(STAMP))

    def _stamp(self, index: int) -> tuple[int, ...]:
        where = below(self._root, self._names[index])
        if as_address(where) is None:
            return tuple(file_stamps([where])[0].tolist())
        if self._follow or not as_address(self._names[index]):
            try:
                store, name = Store.of_object(where)
                if entry := store.entry(name):
                    return entry.stamp()
            except StoreError:
                pass  # its reading says why
        return (-1,) * len(STAMP)


def list_store(address: str, *, names: SplitNames = None) -> Listing:
    """Return the images below an address, whose folders are classes and splits as on a disk."""
    tree, entries = Tree(), dict[str, Entry]()
    folders: set[str] = set()
    for entry in Store.below(address).entries():
        parts = entry.name.split("/")
        if any(map(is_ignored, parts)):
            continue
        if not entry.size and "." not in parts[-1]:
            folders.add(entry.name)  # what some tools write to have an empty folder
            continue
        folders.update("/".join(parts[:depth]) for depth in range(1, len(parts)))
        if is_image_name(entry.name):
            tree.images.append(entry.name)
            entries[entry.name] = entry
        else:
            tree.strays.append((entry.name, "no image extension"))
    tree.folders += folders
    if not tree.images:
        raise DatasetError(nothing_found(shown(address), tree))
    listing = list_tree(tree, address_name(address), labels=True, names=names)
    stamps = np.array([entries[path].stamp() for path in listing.paths], np.int64)
    return replace(listing, arrays=RemoteImages(listing.paths, address, stamps=stamps))


def linked(listing: Listing, root: Path | str, *, follow: bool) -> Listing:
    """Return a listing of files of which some lie behind an address; any other as it is."""
    addresses = {row: a for row, path in enumerate(listing.paths) if (a := as_address(path))}
    if not addresses and as_address(root) is None:
        return listing
    paths = list(listing.paths)
    for row, address in addresses.items():
        paths[row] = shown(address)
    # Without their queries, several may be the same: a digest tells them apart.
    told = Counter(map(shown, set(addresses.values())))
    for row, address in addresses.items():
        if told[paths[row]] > 1:
            paths[row] += f"#{hashlib.sha256(address.encode()).hexdigest()[:8]}"
    images = RemoteImages(listing.paths, os.fspath(root), follow=follow)
    return replace(listing, paths=paths, arrays=images)
