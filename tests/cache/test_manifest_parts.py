"""Manifests of more rows than one file holds, which lie in parts; the tests make these small."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

import featx
from featx.cache import manifest as manifest_module
from featx.cache.datasets import delete_dataset, edit_dataset, rename_dataset
from featx.cache.editing import assign_splits, relabel, remove_rows, undo_edit
from featx.cache.hdf5 import create, tag, write_strings
from featx.cache.layout import CacheLayout
from featx.cache.manifest import (
    find_manifest,
    read_heading,
    read_manifest,
    same_manifest,
    write_manifest,
)
from featx.cache.manifest_parts import PART_ROWS
from featx.cache.pack import pack_dataset
from featx.exceptions import CacheFormatError

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr("featx.cache.manifest_parts.PART_ROWS", 16)


@pytest.fixture
def manifest(kit):
    """60 rows with all that is odd: names of any bytes, empty columns, duplicates, failures."""
    keys, _ = kit.rows(60)
    keys[7], keys[30] = keys[6], 0
    status = np.zeros(60, np.uint8)
    status[[7, 30]] = 2, 1
    path = [f"{'蟻' if row % 2 else 'пчела'}/{row}.jpg" for row in range(60)]
    path[20], path[40] = "odd\udcff.jpg", path[41]
    reason = ["truncated" if row == 30 else "" for row in range(60)]
    return kit.dataset(
        "photos", keys, path=path, status=status, reason=reason, classes=("蟻", "пчела"),
        label=np.arange(60, dtype=np.int32) % 3 - 1, size=np.arange(60),
    )  # fmt: skip


def files(layout):
    return {path.name for path in layout.parts.iterdir()}


def named(path):
    return {part.file_name for part in read_heading(path).parts}


def version(path):
    with h5py.File(path) as file:
        return int(file.attrs["version"])


def age(folder, hours):
    for path in folder.iterdir():
        os.utime(path, (time.time() - hours * 3600,) * 2)


def test_a_manifest_in_parts_is_read_back(layout, manifest):
    path = write_manifest(layout, manifest)
    assert version(path) == 2
    assert same_manifest(read_manifest(path), manifest)
    parts = read_heading(path).parts
    assert sum(part.rows for part in parts) == 60
    assert max(part.rows for part in parts) <= 16
    assert files(layout) == named(path)
    assert path.stat().st_size < 20_000
    doubled = manifest.joined(manifest)
    assert same_manifest(read_manifest(write_manifest(layout, doubled)), doubled)


def test_what_fits_one_file_stays_one_that_older_versions_read(layout, manifest):
    few = manifest.take(np.arange(16))
    assert version(write_manifest(layout, few)) == 1
    assert not layout.parts.exists()
    nothing = manifest.take(np.empty(0, np.intp))
    assert same_manifest(read_manifest(write_manifest(layout, nothing)), nothing)
    assert PART_ROWS == 1_000_000


def test_rows_of_keys_that_say_nothing_are_cut_all_the_same(layout, manifest):
    unread = manifest.changed(key=np.zeros((60, 32), np.uint8), status=np.ones(60, np.uint8))
    path = write_manifest(layout, unread)
    assert [part.rows for part in read_heading(path).parts] == [16, 16, 16, 12]
    assert same_manifest(read_manifest(path), unread)


def test_an_edit_writes_the_parts_of_its_rows_alone(layout, manifest):
    path = write_manifest(layout, manifest)
    before = named(path)
    edit_dataset(layout, "photos", lambda m: relabel(m, paths={m.path[3]: "蟻"}))
    # The rows before the edit are those that were there.
    assert before < named(path)
    assert len(named(path) - before) == 1
    edit_dataset(layout, "photos", lambda m: remove_rows(m, paths=[m.path[59]]))
    assert len(named(path) - before) == 2
    assert files(layout) >= named(path)


def test_edits_are_done_and_taken_back(layout, manifest):
    states = [manifest]
    for edit in (
        lambda m: relabel(m, classes={"蟻": "ants"}),
        lambda m: assign_splits(m, {"train": 0.5, "test": 0.5}, method="stratified"),
        lambda m: remove_rows(m, ["*/1*"]),
    ):
        states.append(edit(states[-1]))
        last = read_manifest(write_manifest(layout, states[-1]))
        assert same_manifest(last, states[-1])
    assert 0 < len(last) < 60
    for state in states[-2::-1]:
        last = read_manifest(write_manifest(layout, undo_edit(last)))
        assert same_manifest(last, state, but={"edits", "unedited"})


def test_few_rows_left_of_many_keep_those_before_in_parts(layout, manifest):
    path = write_manifest(layout, manifest)
    parts = named(path)
    _, after = edit_dataset(layout, "photos", lambda m: remove_rows(m, ["*/[2-9]*"]))
    assert len(after) <= 16
    assert version(path) == 2
    assert parts < named(path)
    assert same_manifest(read_manifest(path), after)


def test_a_new_name_writes_no_part(layout, manifest):
    write_manifest(layout, manifest)
    before = {path.name: path.stat().st_ino for path in layout.parts.iterdir()}
    rename_dataset(layout, "photos", "pictures")
    assert {path.name: path.stat().st_ino for path in layout.parts.iterdir()} == before
    assert same_manifest(find_manifest(layout, "pictures"), manifest, but={"name"})


# Collections


def test_parts_that_no_manifest_names_go_after_their_age(layout, manifest):
    cache = featx.FeatureCache(layout.root)
    layout.spaces.mkdir(parents=True)
    write_manifest(layout, manifest)
    write_manifest(layout, manifest.changed(name="same"))
    (layout.parts / "notes.h5").write_bytes(b"somebody's")
    delete_dataset(layout, "photos")
    age(layout.parts, 48)
    assert cache.gc(dry_run=False).parts_removed == 0
    delete_dataset(layout, "same")
    age(layout.parts, 0.5)
    assert cache.gc(dry_run=False, older_than_s=0).parts_removed == 0
    age(layout.parts, 2)
    count = len(files(layout)) - 1
    assert cache.gc(dry_run=False).parts_removed == 0
    dry = cache.gc(older_than_s=0)
    assert (dry.parts_removed, len(files(layout))) == (count, count + 1)
    done = cache.gc(dry_run=False, older_than_s=0)
    assert (done.parts_removed, done.parts_bytes) == (count, dry.parts_bytes)
    assert files(layout) == {"notes.h5"}


def test_a_reader_keeps_what_it_opened(layout, manifest):
    path = write_manifest(layout, manifest)
    opened = read_manifest(path)
    write_manifest(layout, manifest.take(np.arange(20)))
    for name in files(layout) - named(path):
        (layout.parts / name).unlink()
    assert same_manifest(opened, manifest)


def test_parts_that_go_while_they_are_looked_for_belong_to_an_older_manifest(
    layout, manifest, monkeypatch
):
    path = write_manifest(layout, manifest)
    real = manifest_module.read_parts

    def replace_first(folder, parts):
        monkeypatch.setattr(manifest_module, "read_parts", real)
        write_manifest(layout, newer)
        for name in files(layout) - named(path):
            (layout.parts / name).unlink()
        return real(folder, parts)

    newer = manifest.changed(split=["test"] * 60)
    monkeypatch.setattr(manifest_module, "read_parts", replace_first)
    assert same_manifest(read_manifest(path), newer)


def test_a_part_that_goes_before_its_manifest_is_written_again(layout, manifest, monkeypatch):
    real = manifest_module.write_heading

    def take_one(manifest, parts, unedited, path):
        monkeypatch.setattr(manifest_module, "write_heading", real)
        (layout.parts / parts[1].file_name).unlink()
        real(manifest, parts, unedited, path)

    monkeypatch.setattr(manifest_module, "write_heading", take_one)
    assert same_manifest(read_manifest(write_manifest(layout, manifest)), manifest)


KILLED = """
import os, sys
from featx.cache import manifest as module, manifest_parts as parts
from featx.cache.hdf5 import create, tag, write_strings
from featx.cache.layout import CacheLayout
parts.PART_ROWS = 16
layout = CacheLayout.at(sys.argv[1])
module.write_heading = lambda *_: os._exit(9)
manifest = module.find_manifest(layout, "photos")
module.write_manifest(layout, manifest.changed(split=["test"] * len(manifest)))
"""


def test_a_writer_that_is_killed_before_its_manifest_loses_nothing(layout, manifest):
    path = write_manifest(layout, manifest)
    before = files(layout)
    command = [sys.executable, "-c", KILLED, str(layout.root)]
    assert subprocess.run(command, cwd=REPOSITORY, check=False).returncode == 9
    assert len(files(layout)) == 2 * len(before)
    assert same_manifest(read_manifest(path), manifest)
    assert not [
        finding for finding in featx.FeatureCache(layout.root).verify().findings
        if finding.kind != "missing"
    ]  # fmt: skip
    split = manifest.changed(split=["test"] * 60)
    assert same_manifest(read_manifest(write_manifest(layout, split)), split)


# Damage


def test_rows_that_change_on_the_disk_after_they_were_read_get_no_digest(layout, manifest):
    path = write_manifest(layout, manifest)
    opened = read_manifest(path)
    part = layout.parts / read_heading(path).parts[1].file_name
    whole = part.read_bytes()
    position = whole.index("蟻/".encode())
    with part.open("r+b") as file:  # in place, as a failing disk does
        file.seek(position)
        file.write(b"x")
    with pytest.raises(CacheFormatError, match="path/bytes has changed on the disk"):
        write_manifest(layout, opened.changed(name="other"))


def cut(path):
    path.write_bytes(path.read_bytes()[:-600])


def flip(path):
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 4
    path.write_bytes(whole)


def foreign(path):
    with h5py.File(path, "w") as file:
        tag(file, "someone-else")


def other_rows(path):
    path.write_bytes(next(p for p in path.parent.iterdir() if p != path).read_bytes())


DAMAGES = {
    cut: ("part", "cut short|damaged"),
    flip: ("part", "digest stated with them|damaged"),
    Path.unlink: (None, "is missing"),
    foreign: ("foreign", "expected 'featx-rows'"),
    other_rows: ("misnamed", "which is not its name"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_parts_are_named_removed_and_written_again(layout, manifest, damage):
    kind, reason = DAMAGES[damage]
    path = write_manifest(layout, manifest)
    layout.spaces.mkdir(exist_ok=True)
    part = layout.parts / read_heading(path).parts[1].file_name
    damage(part)
    with pytest.raises(CacheFormatError, match=reason) as caught:
        read_manifest(path)
    assert str(part) in str(caught.value)
    assert str(path) in str(caught.value)
    cache = featx.FeatureCache(layout.root)
    findings = {finding.path: finding for finding in cache.verify().findings}
    assert findings.pop(path).kind == "manifest"
    assert {p: finding.kind for p, finding in findings.items()} == ({part: kind} if kind else {})
    with pytest.raises(featx.FeatxError, match="nothing is removed"):
        cache.gc(dry_run=False)
    cache.repair()
    assert not path.exists()
    assert part.exists() == (kind in ("foreign", "misnamed"))
    assert same_manifest(read_manifest(write_manifest(layout, manifest)), manifest)
    assert cache.verify().findings[0].kind == "missing"


def test_no_flipped_bit_of_a_part_is_read_as_another_value(layout, manifest, kit):
    path = write_manifest(layout, manifest)
    part = layout.parts / read_heading(path).parts[0].file_name
    whole = part.read_bytes()
    caught = 0
    for position in range(0, len(whole), 97):
        kit.flip(part, position, whole)
        try:
            assert same_manifest(read_manifest(path), manifest)  # a bit of the padding
        except CacheFormatError:
            caught += 1
    assert caught > 20


def test_a_damaged_header_is_removed_and_its_parts_stay(layout, manifest):
    path = write_manifest(layout, manifest)
    layout.spaces.mkdir(exist_ok=True)
    parts = files(layout)
    cut(path)
    (finding,) = featx.FeatureCache(layout.root).repair().removed
    assert (finding.path, finding.kind) == (path, "manifest")
    assert files(layout) == parts


def test_a_header_names_no_file_outside_of_its_folder(layout, manifest):
    path = write_manifest(layout, manifest)
    with h5py.File(path, "r") as file:
        header = json.loads(bytes(file["header/bytes"][...]))
    header["parts"][0][0] = "../datasets/photos"
    path.unlink()
    with create(path) as file:
        tag(file, "featx-manifest", 2)
        write_strings(file, "header", [json.dumps(header)])
    with pytest.raises(CacheFormatError, match="no digest for its name"):
        read_manifest(path)


# Other caches


@pytest.fixture
def cache(tmp_path, kit, manifest):
    """The manifest and the features of its rows."""
    values = np.ones((60, 4), np.float32)
    cache = kit.fill(tmp_path / "cache", manifest.key, values, at_once=60)
    write_manifest(cache.layout, manifest)
    return cache


def test_a_merge_brings_the_parts(cache, manifest, tmp_path):
    one = featx.FeatureCache(tmp_path / "one")
    one.merge(cache.root)
    assert same_manifest(find_manifest(one.layout, "photos"), manifest)
    assert files(one.layout) == files(cache.layout)
    assert one.verify().ok
    assert one.merge(cache.root)[0].datasets[0].outcome == "present"


def test_a_store_holds_the_parts(cache, manifest, tmp_path):
    pytest.importorskip("fsspec")
    address = (tmp_path / "store").as_uri()
    (tmp_path / "store").mkdir()
    pushed = cache.push(address)
    assert [dataset.outcome for dataset in pushed.datasets] == ["copied"]
    store = CacheLayout(tmp_path / "store")
    assert files(store) == files(cache.layout)
    assert cache.push(address).files == 0
    one = featx.FeatureCache(tmp_path / "one")
    one.pull(address)
    assert same_manifest(find_manifest(one.layout, "photos"), manifest)
    assert one.verify().ok
    assert one.pull(address).datasets[0].outcome == "present"
    cache.layout.dataset("photos").unlink()
    write_manifest(cache.layout, manifest.changed(split=["test"] * 60))
    assert [d.stored_as for d in cache.push(address).datasets] == ["photos-2"]
    next(store.parts.iterdir()).unlink()
    two = featx.FeatureCache(tmp_path / "two")
    skipped = two.pull(address).skipped
    assert {finding.kind for finding in skipped} == {"manifest"}
    assert "is missing" in skipped[0].reason


def test_features_of_a_dataset_in_parts(cache, manifest, tmp_path):
    features = featx.Features.open("photos", cache=cache.root)
    assert len(features) == 59
    assert features.paths[20] == "odd\udcff.jpg"
    assert features.failed == [(manifest.path[30], "truncated")]
    assert features[[5, 3]].paths == [manifest.path[5], manifest.path[3]]
    assert pack_dataset(features, tmp_path / "photos.npz").rows == 59


MEMORY = """
import sys
from pathlib import Path
import h5py
from featx.cache.hdf5 import create, tag, write_strings
from featx.cache.layout import CacheLayout
from featx.cache.manifest import find_manifest
def private_mib():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty")) / 1024
before = private_mib()
manifest = find_manifest(CacheLayout.at(sys.argv[1]), "photos")
print(len(manifest), private_mib() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs /proc of Linux")
@pytest.mark.parametrize("rows", [16, 1_000_000])
def test_a_million_rows_are_opened_without_a_copy(layout, kit, monkeypatch, rows):
    # In one file, and in parts of a million at most.
    count = 1_000_000 + (rows == 16)
    monkeypatch.setattr("featx.cache.manifest_parts.PART_ROWS", 1_000_000)
    keys = np.random.default_rng(0).integers(0, 256, (count, 32), dtype=np.uint8)
    path = write_manifest(layout, kit.dataset("photos", keys))
    assert version(path) == 1 + (rows == 16)
    command = [sys.executable, "-c", MEMORY, str(layout.root)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY)
    length, mib = done.stdout.split()
    assert int(length) == count
    assert float(mib) < 20


def test_replace_of_dataclasses_gives_the_same(manifest, layout):
    stored = read_manifest(write_manifest(layout, manifest))
    assert same_manifest(replace(stored, root="/else"), stored.changed(root="/else"))
