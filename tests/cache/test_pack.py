from __future__ import annotations

import errno
import hashlib
import json
import os
import tracemalloc
from dataclasses import replace

import h5py
import numpy as np
import pytest

from featx.cache.features import Features
from featx.cache.manifest import Block, write_manifest
from featx.cache.pack import FORMATS, pack_dataset
from featx.cache.space import FeatureSpace
from featx.exceptions import (
    CacheWriteError,
    DatasetError,
    FeaturesError,
    MissingExtraError,
    UnknownNameError,
)
from featx.spec import FeatureSpec

PATHS = ["蟻/1.jpg", "蟻/2.jpg", "пчела/3.jpg", "odd\udcff.jpg", "пчела/broken.jpg"]


@pytest.fixture
def fill(layout, kit):
    """Make a dataset whose rows lie scattered in two shards; the last of 5 images failed."""

    def run(*, dtype="float32", taps=("avg",), n=5, d=3, **columns):
        spec = replace(kit.spec, dtype=dtype)
        keys, _ = kit.rows(n)
        values = {tap: kit.rows(n, seed, d)[1].astype(dtype) for seed, tap in enumerate(taps)}
        space = FeatureSpace(layout, spec)
        for rows in (np.arange(n - 1, -1, -2), np.arange(n - 2, -1, -2)):
            space.add(keys[rows], {tap: values[tap][rows] for tap in taps}, {})
        content = {
            "classes": ("蟻", "пчела"), "path": PATHS,
            "label": np.array([0, 0, 1, -1, 1], np.int32),
            "group": ["", "a", "a", "", ""], "split": ["train", "test", "", "", ""],
            "status": np.array([0, 0, 0, 2, 1], np.uint8),
            "blocks": tuple(Block("tiny", tap, spec.name) for tap in taps),
        }  # fmt: skip
        write_manifest(layout, kit.dataset("photos", keys, **{**content, **columns}))
        return Features.open("photos", cache=layout.root), keys, values

    return run


def test_hdf5_is_read_by_plain_h5py(fill, tmp_path):
    features, keys, values = fill()
    packed = pack_dataset(features, tmp_path / "photos.h5")
    assert (packed.format, packed.rows, packed.width) == ("h5", 4, 3)
    assert packed.size_bytes == (tmp_path / "photos.h5").stat().st_size
    with h5py.File(tmp_path / "photos.h5") as file:
        np.testing.assert_array_equal(file["X"][()], values["avg"][:4])
        np.testing.assert_array_equal(file["keys"][()], keys[:4])
        assert file["y"][()].tolist() == [0, 0, 1, -1]
        assert file["classes"].asstr()[()].tolist() == ["蟻", "пчела"]
        assert file["paths"].asstr(errors="surrogateescape")[()].tolist() == PATHS[:4]
        assert file["groups"].asstr()[()].tolist() == ["", "a", "a", ""]
        assert file["splits"].asstr()[()].tolist() == ["train", "test", "", ""]
        spec = FeatureSpec.from_dict(json.loads(file.attrs["spec"]))
        assert spec == features.spec()
        facts = [file.attrs[name].decode() for name in ("dataset", "backbone", "tap")]
        assert facts == ["photos", "tiny", "avg"]


def test_every_element_of_hdf5_is_typed_contiguous_and_digested(fill, tmp_path):
    features, _, _ = fill()
    pack_dataset(features, tmp_path / "photos.h5")
    with h5py.File(tmp_path / "photos.h5") as file:
        assert (file.attrs["type"], file.attrs["version"]) == (b"featx-pack", 1)
        for name, dataset in file.items():
            assert dataset.attrs["type"].startswith(b"featx-"), name
            assert dataset.attrs["version"] == 1
            assert dataset.chunks is None
            assert dataset.nbytes < 64 or dataset.id.get_offset() % 64 == 0
            digest = hashlib.sha256(dataset[()].tobytes()).hexdigest()
            assert dataset.attrs["sha256"] == digest.encode(), name


def test_npz_is_read_without_pickle(fill, tmp_path):
    features, keys, values = fill()
    pack_dataset(features, tmp_path / "photos.npz")
    with np.load(tmp_path / "photos.npz", allow_pickle=False) as stored:
        np.testing.assert_array_equal(stored["X"], values["avg"][:4])
        np.testing.assert_array_equal(stored["keys"], keys[:4])
        assert stored["classes"][stored["y"][:3]].tolist() == ["蟻", "蟻", "пчела"]
        assert stored["paths"].tolist() == PATHS[:4]
        assert stored["groups"].tolist() == ["", "a", "a", ""]
        assert FeatureSpec.from_dict(json.loads(stored["spec"].item())) == features.spec()


def test_parquet_is_read_by_pyarrow(fill, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs the extra `parquet`")
    features, keys, values = fill()
    pack_dataset(features, tmp_path / "photos.parquet")
    table = parquet.read_table(tmp_path / "photos.parquet")
    assert table["path"].to_pylist() == ["蟻/1.jpg", "蟻/2.jpg", "пчела/3.jpg", "odd\\xff.jpg"]
    assert table["label"].to_pylist() == ["蟻", "蟻", "пчела", None]
    assert table["split"].to_pylist() == ["train", "test", None, None]
    assert table["group"].to_pylist() == [None, "a", "a", None]
    assert table["key"].to_pylist() == [key.tobytes().hex() for key in keys[:4]]
    np.testing.assert_array_equal(np.array(table["feature"].to_pylist(), "<f4"), values["avg"][:4])
    spec = json.loads(table.schema.metadata[b"featx.spec"])
    assert FeatureSpec.from_dict(spec) == features.spec()


def test_safetensors_is_read_by_its_own_package(fill, tmp_path):
    safetensors = pytest.importorskip("safetensors", reason="safetensors is not installed")
    features, keys, values = fill()
    pack_dataset(features, tmp_path / "photos.safetensors")
    with safetensors.safe_open(tmp_path / "photos.safetensors", framework="numpy") as file:
        np.testing.assert_array_equal(file.get_tensor("X"), values["avg"][:4])
        np.testing.assert_array_equal(file.get_tensor("keys"), keys[:4])
        assert file.get_tensor("y").tolist() == [0, 0, 1, -1]
        metadata = file.metadata()
    assert json.loads(metadata["classes"]) == ["蟻", "пчела"]
    assert json.loads(metadata["paths"])[3] == "odd\\xff.jpg"
    assert FeatureSpec.from_dict(json.loads(metadata["spec"])) == features.spec()


def test_safetensors_follows_the_written_format(fill, tmp_path):
    features, _, values = fill()
    pack_dataset(features, tmp_path / "photos.safetensors")
    data = (tmp_path / "photos.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    start, end = header["X"]["data_offsets"]
    assert header["X"]["dtype"] == "F32"
    body = data[8 + length :]
    np.testing.assert_array_equal(
        np.frombuffer(body[start:end], "<f4").reshape(4, 3), values["avg"][:4]
    )
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    assert max(ends) == len(body)


@pytest.mark.parametrize("suffix", ["h5", "npz", "safetensors"])
def test_half_precision_stays_half(fill, tmp_path, suffix):
    features, _, values = fill(dtype="float16")
    pack_dataset(features, tmp_path / f"photos.{suffix}")
    data = (tmp_path / f"photos.{suffix}").read_bytes()
    assert values["avg"][:4].tobytes() in data


@pytest.mark.parametrize("suffix", ["h5", "npz", "safetensors"])
def test_unlabelled_data_has_no_labels_in_the_file(fill, tmp_path, suffix):
    nothing = [""] * 5
    features, _, _ = fill(
        classes=None, label=np.full(5, -1, np.int32), group=nothing, split=nothing
    )
    path = tmp_path / f"photos.{suffix}"
    pack_dataset(features, path)
    if suffix == "h5":
        with h5py.File(path) as file:
            assert sorted(file) == ["X", "keys", "paths"]
    elif suffix == "npz":
        with np.load(path) as stored:
            assert not {"y", "classes", "groups", "splits"} & set(stored)
    else:
        assert b'"y"' not in path.read_bytes()


def test_a_file_holds_one_matrix_that_has_to_be_named_among_several(fill, tmp_path):
    features, _, values = fill(taps=("avg", "max"))
    with pytest.raises(FeaturesError, match="there are: tiny/avg, tiny/max"):
        pack_dataset(features, tmp_path / "photos.h5")
    packed = pack_dataset(features, tmp_path / "photos.h5", tap="max")
    assert (packed.backbone, packed.tap) == ("tiny", "max")
    with h5py.File(tmp_path / "photos.h5") as file:
        np.testing.assert_array_equal(file["X"][()], values["max"][:4])


@pytest.mark.parametrize("suffix", sorted(FORMATS))
def test_chunks_join_without_a_seam_and_the_set_is_never_whole_in_memory(
    fill, tmp_path, suffix, monkeypatch
):
    if suffix == "parquet":
        pytest.importorskip("pyarrow", reason="needs the extra `parquet`")
    n, d = 3000, 256
    nothing = [""] * n
    features, _, values = fill(
        n=n,
        d=d,
        path=[f"{row}.jpg" for row in range(n)],
        classes=None,
        label=np.full(n, -1, np.int32),
        group=nothing,
        split=nothing,
        status=np.zeros(n, np.uint8),
    )
    monkeypatch.setattr("featx.cache.pack._CHUNK_BYTES", 100_000)
    pack_dataset(features, tmp_path / f"warm.{suffix}")
    tracemalloc.start()
    pack_dataset(features, tmp_path / f"photos.{suffix}")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < values["avg"].nbytes / 2
    data = (tmp_path / f"photos.{suffix}").read_bytes()
    if suffix == "parquet":
        from pyarrow import parquet

        column = parquet.read_table(tmp_path / "photos.parquet")["feature"].combine_chunks()
        found = column.flatten().to_numpy().reshape(n, d)
        np.testing.assert_array_equal(found, values["avg"])
    else:
        assert values["avg"].tobytes() in data


def test_the_format_may_be_named_and_an_unknown_one_is_an_error(fill, tmp_path):
    features, _, _ = fill()
    pack_dataset(features, tmp_path / "photos.bin", format="npz")
    assert np.load(tmp_path / "photos.bin")["X"].shape == (4, 3)
    assert pack_dataset(features, tmp_path / "photos.HDF5").format == "h5"
    with pytest.raises(UnknownNameError, match=r"'npy': did you mean 'npz'.*Name a file such as"):
        pack_dataset(features, tmp_path / "photos.npy")


def test_nothing_to_pack_is_an_error(fill, tmp_path):
    features, _, _ = fill(status=np.ones(5, np.uint8))
    with pytest.raises(DatasetError, match="'photos' has no rows to pack"):
        pack_dataset(features, tmp_path / "photos.h5")


def test_features_that_are_missing_leave_no_file(layout, fill, tmp_path):
    features, _, _ = fill()
    for shard in layout.spaces.rglob("shards/*.h5"):
        shard.unlink()
        break
    features = Features.open("photos", cache=layout.root)
    with pytest.raises(FeaturesError, match="2 of 4 images have no features.*: featx extract"):
        pack_dataset(features, tmp_path / "photos.npz")
    assert list(tmp_path.glob("*photos*")) == []


@pytest.mark.parametrize("suffix", ["h5", "npz", "safetensors"])
def test_a_failed_write_keeps_the_old_file_and_leaves_nothing(fill, tmp_path, monkeypatch, suffix):
    features, _, _ = fill()
    target = tmp_path / f"photos.{suffix}"
    target.write_text("old")

    def fail(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(CacheWriteError, match=r"cannot write .*photos.*No space left.*\(-o\)"):
        pack_dataset(features, target, overwrite=True)
    assert target.read_text() == "old"
    assert list(tmp_path.glob(".*.tmp")) == []


@pytest.mark.parametrize("suffix", ["h5", "npz", "safetensors"])
def test_a_folder_that_is_not_there_is_named(fill, tmp_path, suffix):
    features, _, _ = fill()
    with pytest.raises(CacheWriteError, match="in a folder that exists"):
        pack_dataset(features, tmp_path / "nowhere" / f"photos.{suffix}")


def test_parquet_without_pyarrow_names_the_extra(fill, tmp_path, monkeypatch):
    features, _, _ = fill()
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'featx\[parquet\]'"):
        pack_dataset(features, tmp_path / "photos.parquet")
