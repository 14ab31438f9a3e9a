from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from featx.cache import manifest as manifest_module
from featx.cache.layout import CacheLayout
from featx.cache.manifest import (
    Block,
    Manifest,
    find_manifest,
    manifest_names,
    read_manifest,
    same_manifest,
    write_manifest,
)
from featx.exceptions import CacheFormatError, DatasetError


@pytest.fixture
def layout(tmp_path):
    return CacheLayout(tmp_path / "cache")


@pytest.fixture
def manifest():
    return Manifest(
        name="photos",
        root="/photos",
        classes=("蟻", "пчела"),
        path=["蟻/1.jpg", "пчела/2.jpg", "odd\udcff.jpg"],
        label=np.array([0, 1, -1], np.int32),
        group=["", "a", "a"],
        split=["", "", ""],
        reason=["", "", "truncated"],
        size=np.array([5, 6, -1]),
        mtime_ns=np.array([1 << 60, 2, -1]),
        inode=np.array([7, 8, -1]),
        key=np.arange(96, dtype=np.uint8).reshape(3, 32),
        status=np.array([0, 2, 1], np.uint8),
        strays=("notes.txt",),
        blocks=(Block("tiny", "avg", "tiny-0123"),),
    )


def test_round_trip_with_names_of_any_script(layout, manifest):
    path = write_manifest(layout, manifest)
    assert same_manifest(read_manifest(path), manifest)
    assert manifest_names(layout) == ["photos"]


def test_one_that_is_replaced_while_it_is_read_is_read_to_its_end(layout, manifest, monkeypatch):
    path = write_manifest(layout, manifest)
    real = manifest_module.read_strings

    def replace_first(file, name):
        if name == "path":
            longer = [*manifest.path[:2], "a much longer name than before.jpg"]
            write_manifest(layout, replace(manifest, path=longer))
        return real(file, name)

    monkeypatch.setattr(manifest_module, "read_strings", replace_first)
    assert same_manifest(read_manifest(path), manifest)


def test_an_empty_one_is_read_back(layout, manifest):
    none = np.empty(0, np.int64)
    empty = replace(
        manifest,
        path=[], group=[], split=[], reason=[], size=none, mtime_ns=none, inode=none,
        ctime_ns=none, birth_ns=none,
        label=none.astype(np.int32), key=np.empty((0, 32), np.uint8), status=np.empty(0, np.uint8),
    )  # fmt: skip
    assert same_manifest(read_manifest(write_manifest(layout, empty)), empty)


def test_every_difference_counts(manifest):
    assert same_manifest(manifest, replace(manifest))
    assert not same_manifest(manifest, replace(manifest, split=["", "", "test"]))
    assert not same_manifest(manifest, replace(manifest, label=np.array([0, 0, -1], np.int32)))


def test_a_flipped_byte_anywhere_is_an_error_or_harmless(layout, manifest):
    path = write_manifest(layout, manifest)
    whole = path.read_bytes()
    refused = 0
    for position in range(0, len(whole), 61):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :])
        try:
            found = read_manifest(path)
        except CacheFormatError as error:
            assert str(path) in str(error)
            refused += 1
        else:
            assert same_manifest(found, manifest), position
    assert refused > 5


def test_a_cut_one_is_an_error(layout, manifest):
    path = write_manifest(layout, manifest)
    whole = path.read_bytes()
    for size in range(0, len(whole), 499):
        path.write_bytes(whole[:size])
        with pytest.raises(CacheFormatError, match=r"photos\.h5"):
            read_manifest(path)


def test_an_unknown_dataset_names_those_that_there_are(layout, manifest):
    write_manifest(layout, manifest)
    with pytest.raises(DatasetError, match="no dataset 'fotos' in the cache .* which has: photos"):
        find_manifest(layout, "fotos")
