from __future__ import annotations

import errno
import os

import h5py
import numpy as np
import pytest

from featx.cache.layout import CacheLayout
from featx.cache.shard import read_shard, write_shard
from featx.exceptions import CacheFormatError, CacheWriteError

DIGEST = "ab" * 32


@pytest.fixture
def layout(tmp_path):
    return CacheLayout(tmp_path / "cache")


def rows(n, d=5, seed=0):
    generator = np.random.default_rng(seed)
    keys = generator.integers(0, 256, (n, 32), dtype=np.uint8)
    return keys, generator.normal(size=(n, d)).astype(np.float32)


def write(layout, n=7, **features):
    keys, values = rows(n)
    path = write_shard(
        layout,
        layout.spaces / "tiny-000",
        spec_digest=DIGEST,
        keys=keys,
        features=features or {"avg": values},
        provenance={"engine": "keras"},
    )
    return path, keys, values


def test_what_is_written_is_read_back_by_mapping_the_file(layout):
    path, keys, values = write(layout)
    shard = read_shard(path, DIGEST)
    assert len(shard) == 7
    np.testing.assert_array_equal(shard.keys.map(), keys)
    mapped = shard.taps["avg"].map()
    assert isinstance(mapped, np.memmap)
    np.testing.assert_array_equal(mapped, values)
    assert shard.taps["avg"].offset % 64 == 0


def test_other_tools_can_read_a_shard(layout):
    path, _, values = write(layout)
    with h5py.File(path) as file:
        assert file.attrs["type"] == b"featx-shard"
        assert file["features/avg"].chunks is None
        assert file["features/avg"].compression is None
        np.testing.assert_array_equal(file["features/avg"][()], values)


def test_half_precision_is_kept(layout):
    values = np.ones((7, 3), np.float16)
    path, _, _ = write(layout, avg=values)
    assert read_shard(path, DIGEST).taps["avg"].map().dtype == np.float16


def test_nothing_is_left_in_tmp(layout):
    write(layout)
    assert list(layout.tmp.iterdir()) == []


def test_features_of_another_specification_are_refused(layout):
    path, _, _ = write(layout)
    with pytest.raises(CacheFormatError, match="expected features of specification cdcdcdcdcdcd"):
        read_shard(path, "cd" * 32)


def test_a_shard_cut_anywhere_is_refused_and_named(layout):
    path, _, _ = write(layout, n=300)
    whole = path.read_bytes()
    for size in range(0, len(whole) - 1, 997):
        path.write_bytes(whole[:size])
        with pytest.raises(CacheFormatError, match=path.name):
            read_shard(path, DIGEST)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.attrs.modify("version", 2), "version 2.*upgrade featx"),
        (lambda f: f.attrs.create("type", np.bytes_("other")), "expected 'featx-shard'"),
        (
            lambda f: f["features/avg"].attrs.create("type", np.bytes_("other")),
            "expected 'featx-features'",
        ),
        (lambda f: f.__delitem__("key"), "'key' is missing"),
        (lambda f: f.attrs.__delitem__("spec"), "attribute 'spec' is missing"),
        (lambda f: f.attrs.create("spec", np.zeros(9)), "'spec' .* is no text and no number"),
        (lambda f: f.attrs.create("spec", "x" * 70000), "is no text and no number"),
    ],
)
def test_foreign_elements_are_refused(layout, change, message):
    path, _, _ = write(layout)
    with h5py.File(path, "a") as file:
        change(file)
    with pytest.raises(CacheFormatError, match=message):
        read_shard(path, DIGEST)


def replace_features(path, make):
    with h5py.File(path, "a") as file:
        group = file["features"]
        del group["avg"]
        make(group)
        if "avg" in group and group.get("avg", getlink=True).__class__ is h5py.HardLink:
            group["avg"].attrs["type"] = np.bytes_("featx-features")
            group["avg"].attrs["version"] = np.int64(1)
            group["avg"].attrs["sha256"] = np.bytes_("0" * 64)


HOSTILE = {
    "external link": lambda g: g.__setitem__("avg", h5py.ExternalLink("/etc/passwd", "/x")),
    "soft link": lambda g: g.__setitem__("avg", h5py.SoftLink("/key")),
    "external storage": lambda g: g.create_dataset(
        "avg", (7, 4), "<f4", external=[("/etc/passwd", 0, 112)]
    ),
    "chunked": lambda g: g.create_dataset("avg", (7, 4), "<f4", chunks=(7, 4)),
    "compressed": lambda g: g.create_dataset("avg", (7, 4), "<f4", compression="gzip"),
    "objects": lambda g: g.create_dataset("avg", (7,), h5py.string_dtype()),
    "integers": lambda g: g.create_dataset("avg", (7, 4), "<i8"),
    "absurd shape": lambda g: g.create_dataset("avg", (7, 1 << 50), "<f4"),
    "other rows": lambda g: g.create_dataset("avg", data=np.zeros((6, 4), "<f4")),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_unsafe_elements_are_refused_before_their_data_is_read(layout, kind):
    path, _, _ = write(layout)
    replace_features(path, HOSTILE[kind])
    with pytest.raises(CacheFormatError, match=path.name):
        read_shard(path, DIGEST)


def test_a_virtual_dataset_is_refused(layout, tmp_path):
    path, _, _ = write(layout)
    source = h5py.VirtualSource(str(tmp_path / "other.h5"), "x", shape=(7, 4), dtype="<f4")
    virtual = h5py.VirtualLayout((7, 4), "<f4")
    virtual[:] = source
    replace_features(path, lambda g: g.create_virtual_dataset("avg", virtual))
    with pytest.raises(CacheFormatError, match="keeps its data in other files"):
        read_shard(path, DIGEST)


@pytest.mark.parametrize("content", [b"", b"not a shard", b"\x89HDF\r\n\x1a\n" + bytes(3000)])
def test_a_file_that_is_no_shard_is_refused(layout, content):
    path, _, _ = write(layout)
    path.write_bytes(content)
    with pytest.raises(CacheFormatError, match="is damaged or was not written by featx"):
        read_shard(path, DIGEST)


@pytest.mark.parametrize(
    ("number", "step"),
    [(errno.ENOSPC, "free some space"), (errno.EIO, "see that the disk is whole")],
)
def test_a_failed_write_is_named_and_leaves_nothing(layout, monkeypatch, number, step):
    def fail(_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(CacheWriteError, match=f"cannot write .*{os.strerror(number)}.*{step}"):
        write(layout)
    assert list(layout.root.rglob("*.h5")) == []


def test_a_file_in_the_way_of_the_cache_is_named(tmp_path):
    (tmp_path / "cache").write_text("")
    with pytest.raises(CacheWriteError, match="a file is in the way: name another folder"):
        write(CacheLayout(tmp_path / "cache"))
