from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from featx.cache import manifest as manifest_module
from featx.cache.datasets import delete_dataset, edit_dataset, rename_dataset
from featx.cache.editing import add_rows, relabel
from featx.cache.manifest import (
    find_manifest,
    manifest_names,
    read_manifest,
    same_manifest,
    write_manifest,
)
from featx.exceptions import CacheFormatError, DatasetError


@pytest.fixture
def manifest(kit):
    return kit.dataset(
        "photos", np.arange(96, dtype=np.uint8).reshape(3, 32), classes=("蟻", "пчела"),
        path=["蟻/1.jpg", "пчела/2.jpg", "odd\udcff.jpg"], label=np.array([0, 1, -1], np.int32),
        group=["", "a", "a"], reason=["", "", "truncated"], size=np.array([5, 6, -1]),
        mtime_ns=np.array([1 << 60, 2, -1]), inode=np.array([7, 8, -1]),
        status=np.array([0, 2, 1], np.uint8), strays=("notes.txt",),
    )  # fmt: skip


def test_round_trip_with_names_of_any_script(layout, manifest):
    path = write_manifest(layout, manifest)
    assert same_manifest(read_manifest(path), manifest)
    assert manifest_names(layout) == ["photos"]


def test_one_that_is_replaced_while_it_is_read_is_read_to_its_end(layout, manifest, monkeypatch):
    path = write_manifest(layout, manifest)
    real = manifest_module.read_columns

    def replace_first(file):
        longer = [*manifest.path[:2], "a much longer name than before.jpg"]
        write_manifest(layout, replace(manifest, path=longer))
        return real(file)

    monkeypatch.setattr(manifest_module, "read_columns", replace_first)
    assert same_manifest(read_manifest(path), manifest)


def test_an_empty_one_is_read_back(layout, manifest):
    empty = manifest.take(np.empty(0, np.intp))
    assert len(empty) == 0
    assert same_manifest(read_manifest(write_manifest(layout, empty)), empty)


def test_every_difference_counts(manifest):
    assert same_manifest(manifest, replace(manifest))
    assert not same_manifest(manifest, replace(manifest, split=["", "", "test"]))
    assert not same_manifest(manifest, replace(manifest, label=np.array([0, 0, -1], np.int32)))


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


# Changes


def flies(manifest):
    return relabel(manifest, classes={"蟻": "flies"})


def test_an_edit_is_written_under_its_name(layout, manifest):
    write_manifest(layout, manifest)
    before, after = edit_dataset(layout, "photos", flies)
    assert same_manifest(before, manifest)
    assert same_manifest(find_manifest(layout, "photos"), after)
    edit_dataset(layout, "photos", lambda m: add_rows(m, manifest, name="more"))
    assert manifest_names(layout) == ["more", "photos"]
    with pytest.raises(DatasetError, match="has a dataset 'more' already: delete it first"):
        edit_dataset(layout, "photos", lambda m: add_rows(m, manifest, name="more"))


def test_a_dataset_is_renamed_and_deleted(layout, manifest):
    write_manifest(layout, manifest)
    rename_dataset(layout, "photos", "käfer 1")
    assert find_manifest(layout, "käfer 1").name == "käfer 1"
    rename_dataset(layout, "käfer 1", "käfer-1")
    assert manifest_names(layout) == ["käfer-1"]
    with pytest.raises(DatasetError, match="without slashes, received 'a/b'"):
        rename_dataset(layout, "käfer-1", "a/b")
    delete_dataset(layout, "käfer-1")
    assert manifest_names(layout) == []
    with pytest.raises(DatasetError, match="no dataset 'käfer-1' in the cache"):
        delete_dataset(layout, "käfer-1")


def test_a_damaged_manifest_can_be_deleted_but_not_edited(layout, manifest):
    write_manifest(layout, manifest).write_bytes(b"damaged")
    with pytest.raises(CacheFormatError, match="is damaged"):
        edit_dataset(layout, "photos", flies)
    delete_dataset(layout, "photos")
    assert manifest_names(layout) == []
