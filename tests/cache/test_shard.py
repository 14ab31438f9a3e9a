"""Shards are written whole, and refused before their data is read when anything in them is odd."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from featx.cache.layout import CacheLayout
from featx.cache.shard import read_shard, write_shard
from featx.exceptions import CacheFormatError, CacheWriteError
from featx.memory import peak_bytes

DIGEST = "ab" * 32
KEYS = np.random.default_rng(0).integers(0, 256, (300, 32), dtype=np.uint8)
VALUES = np.random.default_rng(0).normal(size=(300, 5)).astype(np.float32)


def write(layout, n=7, **features):
    return write_shard(
        layout,
        layout.spaces / "tiny-000",
        spec_digest=DIGEST,
        keys=KEYS[:n],
        features=features or {"avg": VALUES[:n]},
        provenance={"engine": "keras"},
    )


def test_what_is_written_is_read_back_by_mapping_the_file(layout):
    shard = read_shard(write(layout), DIGEST)
    assert len(shard) == 7
    np.testing.assert_array_equal(shard.keys.map(), KEYS[:7])
    mapped = shard.taps["avg"].map()
    assert isinstance(mapped, np.memmap)
    np.testing.assert_array_equal(mapped, VALUES[:7])
    assert shard.taps["avg"].offset % 64 == 0
    assert list(layout.tmp.iterdir()) == []


def test_other_tools_can_read_a_shard(layout):
    with h5py.File(write(layout)) as file:
        assert file.attrs["type"] == b"featx-shard"
        assert file["features/avg"].chunks is None
        assert file["features/avg"].compression is None
        np.testing.assert_array_equal(file["features/avg"][()], VALUES[:7])


def test_half_precision_is_kept(layout):
    path = write(layout, avg=np.ones((7, 3), np.float16))
    assert read_shard(path, DIGEST).taps["avg"].map().dtype == np.float16


def test_features_of_another_specification_are_refused(layout):
    with pytest.raises(CacheFormatError, match="expected features of specification cdcdcdcdcdcd"):
        read_shard(write(layout), "cd" * 32)


def test_a_shard_cut_anywhere_is_refused_and_named(layout):
    path = write(layout, n=300)
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
        (lambda f: f.attrs.create("spec", np.zeros(9)), "'spec' .* is neither text nor a number"),
        (lambda f: f.attrs.create("spec", "x" * 70000), "is neither text nor a number"),
    ],
)
def test_foreign_elements_are_refused(layout, change, message):
    path = write(layout)
    with h5py.File(path, "a") as file:
        change(file)
    with pytest.raises(CacheFormatError, match=message):
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


def test_a_file_in_the_way_of_the_cache_is_named(layout):
    layout.root.write_text("")
    with pytest.raises(CacheWriteError, match="a file is in the way: name another folder"):
        write(layout)


# Crafted shards. Those that Keras 3.15 rejects in weights files are among them: external links,
# external storage, virtual datasets, and shapes that no file can hold.


def features(make):
    """Craft a shard by putting something else in the place of its features."""

    def craft(path):
        with h5py.File(path, "a") as file:
            group = file["features"]
            del group["avg"]
            make(group)
            if isinstance(group.get("avg", getlink=True), h5py.HardLink):
                group["avg"].attrs["type"] = np.bytes_("featx-features")
                group["avg"].attrs["version"] = np.int64(1)
                group["avg"].attrs["sha256"] = np.bytes_("0" * 64)

    return craft


def stored(*args, **options):
    return features(lambda group: group.create_dataset("avg", *args, **options))


def virtual(group):
    parts = h5py.VirtualLayout((7, 4), "<f4")
    parts[:] = h5py.VirtualSource("/etc/passwd", "x", shape=(7, 4), dtype="<f4")
    group.create_virtual_dataset("avg", parts)


def nested(group):
    for _ in range(1000):
        group = group.create_group("avg")


def attribute(name, value):
    def craft(path):
        with h5py.File(path, "a") as file:
            del file.attrs[name]
            file.attrs[name] = value

    return craft


CRAFTS = {
    "external link": features(lambda g: g.__setitem__("avg", h5py.ExternalLink("o.h5", "/x"))),
    "external link to a device": features(
        lambda g: g.__setitem__("avg", h5py.ExternalLink("/dev/zero", "/x"))
    ),
    "soft link": features(lambda g: g.__setitem__("avg", h5py.SoftLink("/key"))),
    "soft link to itself": features(lambda g: g.__setitem__("avg", h5py.SoftLink("/features/avg"))),
    "external storage": stored((7, 4), "<f4", external=[("/etc/passwd", 0, 112)]),
    "virtual dataset": features(virtual),
    "chunks": stored((7, 4), "<f4", chunks=(7, 4)),
    "gzip bomb": stored((7, 1 << 26), "<f4", compression="gzip"),
    "shape bomb": stored((7, 1 << 55), "<f4"),
    "rows beyond the file": stored((1 << 40, 4), "<f4"),
    "other rows than keys": stored(data=np.zeros((6, 4), "<f4")),
    "integers": stored((7, 4), "<i8"),
    "variable-length text": stored((7, 4), h5py.string_dtype()),
    "references": stored((7, 4), h5py.ref_dtype),
    "compound type": stored((7, 4), [("a", "<f4")]),
    "a group in place of an array": features(lambda group: group.create_group("avg")),
    "a great attribute": attribute("spec", np.zeros(1 << 12, "S8")),
    "an attribute of text without end": attribute("spec", "x" * (1 << 15)),
    "a foreign type": attribute("type", np.bytes_("pickle")),
    "a later version": attribute("version", np.int64(2)),
    "a thousand nested groups": features(nested),
    "nothing": lambda path: path.write_bytes(b""),
    "no HDF5": lambda path: path.write_bytes(b"\x80\x04cos\nsystem\n"),
    "only a signature": lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n"),
    "a signature and zeros": lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(3000)),
}


def read_crafted(folder):
    """Read each crafted shard; print its name, what was said, and what memory it took."""
    for kind, craft in CRAFTS.items():
        path = write(CacheLayout(folder))
        read_shard(path, DIGEST)
        craft(path)
        before = peak_bytes()
        message = ""
        try:
            read_shard(path, DIGEST)
        except CacheFormatError as error:
            message = str(error)
        print(json.dumps([kind, path.name, message, (peak_bytes() - before) / 2**20]), flush=True)


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_crafted_shards_are_refused_soon_and_cheaply(tmp_path):
    """Each is refused before its data is read; a crash of HDF5 would take a process along."""
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert [kind for kind, *_ in results] == list(CRAFTS)
    assert [kind for kind, name, message, mib in results if name not in message or mib > 100] == []
    messages = {kind: message for kind, _, message, _ in results}
    for kind in ("nothing", "no HDF5", "only a signature", "a signature and zeros"):
        assert "is damaged or was not written by featx" in messages[kind]
    assert "keeps its data in other files" in messages["virtual dataset"]


if __name__ == "__main__":
    read_crafted(Path(sys.argv[1]))
