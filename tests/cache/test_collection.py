from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from featx.cache import collection
from featx.cache.manifest import write_manifest
from featx.cache.shard import read_shard
from featx.cache.space import FeatureSpace
from featx.exceptions import CacheError


def age(cache, seconds=100_000.0):
    """Make every file as old as a finished extraction."""
    then = time.time() - seconds
    for path in cache.root.rglob("*"):
        os.utime(path, (then, then))


def stored_rows(kit, cache, digest=None):
    """The bytes of each row by key, and how often each key is stored."""
    rows, counts = {}, {}
    for path in kit.shards(cache):
        shard = read_shard(path, digest or kit.spec.digest)
        shard.check()
        for key, values in zip(shard.keys.map(), shard.taps["avg"].map(), strict=True):
            rows.setdefault(key.tobytes(), values.tobytes())
            counts[key.tobytes()] = counts.get(key.tobytes(), 0) + 1
    return rows, counts


@pytest.fixture
def littered(tmp_path, kit):
    """30 rows in 6 shards, of which datasets use 14, and a space that no dataset names."""
    keys, values = kit.rows(30)
    cache = kit.fill(tmp_path / "cache", keys, values, at_once=5)
    write_manifest(cache.layout, kit.dataset("one", keys[:9]))
    write_manifest(cache.layout, kit.dataset("two", keys[4:14]))
    unused = FeatureSpace(cache.layout, replace(kit.spec, dtype="float16"))
    unused.add(keys, {"avg": values}, {})
    age(cache)
    return cache


def test_a_dry_run_says_what_would_go_and_changes_nothing(kit, littered):
    before = kit.state(littered)
    report = littered.gc()
    assert report.dry_run
    assert kit.state(littered) == before
    done = littered.gc(dry_run=False)
    assert replace(done, dry_run=True) == report
    spaces = {space.space: space for space in report.spaces}
    used = spaces.pop(kit.spec.name)
    assert (used.rows, used.rows_unused, used.rows_repeated) == (14, 16, 0)
    assert (used.shards_removed, used.shards_written) == (6, 1)
    assert used.size_bytes == 16 * (32 + 4 * 4)
    assert not used.removed
    (unused,) = spaces.values()
    assert (unused.used, unused.removed, unused.rows_unused) == (False, True, 30)


def test_what_datasets_use_stays_byte_for_byte_and_the_rest_goes(kit, littered):
    keys, values = kit.rows(30)
    littered.gc(dry_run=False)
    rows, counts = stored_rows(kit, littered)
    assert rows == {keys[n].tobytes(): values[n].tobytes() for n in range(14)}
    assert set(counts.values()) == {1}
    assert [path.name for path in littered.layout.spaces.iterdir()] == [kit.spec.name]
    kit.check(littered, keys[:14], values[:14])
    assert littered.verify().ok


def test_a_second_run_finds_nothing_to_do(kit, littered):
    littered.gc(dry_run=False)
    before = kit.state(littered)
    (space,) = littered.gc(dry_run=False, older_than_s=0).spaces
    assert (space.rows, space.shards_removed, space.shards_written) == (14, 0, 0)
    assert kit.state(littered) == before


def test_young_shards_are_left_alone(kit, littered):
    path = kit.shards(littered)[-1]
    os.utime(path)
    before = path.read_bytes()
    used, _ = sorted(littered.gc(dry_run=False).spaces, key=lambda space: not space.used)
    assert used.shards_young == 1
    assert path.read_bytes() == before
    littered.gc(dry_run=False, older_than_s=0)
    assert not path.exists()


def test_a_space_at_whose_first_shard_an_extraction_works_is_left_alone(kit, tmp_path):
    keys, values = kit.rows(4)
    cache = kit.fill(tmp_path / "cache", keys, values)
    (space,) = cache.gc(dry_run=False).spaces
    assert (space.removed, space.shards_young) == (False, 1)
    age(cache)
    os.utime(cache.layout.spaces / kit.spec.name / "spec.json")
    (space,) = cache.gc(dry_run=False).spaces
    assert (space.removed, space.rows_unused) == (False, 4)
    kit.refill(cache, keys, values)


def test_a_damaged_manifest_stops_it_before_anything_is_removed(kit, littered):
    path = littered.layout.dataset("two")
    path.write_bytes(path.read_bytes()[:500])
    before = kit.state(littered)
    with pytest.raises(CacheError, match=r"two\.h5.*nothing is removed: run `featx cache verify`"):
        littered.gc(dry_run=False)
    assert kit.state(littered) == before


def test_a_damaged_shard_is_named_left_and_gets_no_new_digest(kit, littered):
    path = kit.shards(littered)[2]
    whole = path.read_bytes()
    keys, values = kit.rows(30)
    shard = read_shard(path, kit.spec.digest)
    write_manifest(littered.layout, kit.dataset("all", keys))
    age(littered)
    kit.flip(path, shard.taps["avg"].offset, whole)
    age(littered)
    report = littered.gc(dry_run=False)
    used = next(space for space in report.spaces if space.used)
    assert list(used.damaged) == [path.name]
    assert path.exists()
    assert used.shards_removed == 5
    littered.repair()
    rows, _ = stored_rows(kit, littered)
    assert len(rows) == 25
    assert kit.refill(littered, keys, values) == 5


def test_shards_whose_keys_are_damaged_do_not_look_unused(kit, littered):
    path = kit.shards(littered)[0]
    shard = read_shard(path, kit.spec.digest)
    whole = bytearray(path.read_bytes())
    whole[shard.keys.offset : shard.keys.offset + 5 * 32] = bytes(5 * 32)
    path.write_bytes(whole)
    age(littered)
    used = next(space for space in littered.gc(dry_run=False).spaces if space.used)
    assert list(used.damaged) == [path.name]
    assert path.exists()


def test_small_shards_are_put_together_and_repeated_keys_dropped(kit, tmp_path):
    keys, values = kit.rows(40)
    cache = kit.fill(tmp_path / "cache", keys, values, at_once=5)
    kit.fill(cache.root, keys[3:17], values[3:17], at_once=14)
    write_manifest(cache.layout, kit.dataset("all", keys))
    assert cache.gc(older_than_s=0).spaces[0].rows_repeated == 14
    (space,) = cache.gc(older_than_s=0, dry_run=False).spaces
    assert (space.rows, space.rows_unused, space.rows_repeated) == (40, 0, 14)
    rows, counts = stored_rows(kit, cache)
    assert len(rows) == 40
    assert set(counts.values()) == {1}
    kit.check(cache, keys, values)
    cache.gc(older_than_s=0, dry_run=False)
    assert len(kit.shards(cache)) == 1


def test_shards_stay_below_their_size_and_large_ones_are_not_written_again(
    kit, tmp_path, monkeypatch
):
    monkeypatch.setattr(collection, "_SMALL_BYTES", 6 * 48)
    monkeypatch.setattr(collection, "SHARD_BYTES", 10 * 48)
    monkeypatch.setattr("featx.cache.shard.SHARD_BYTES", 10 * 48)
    keys, values = kit.rows(60)
    cache = kit.fill(tmp_path / "cache", keys[:40], values[:40], at_once=4)
    kit.fill(cache.root, keys[40:60], values[40:60], at_once=10)
    large = [path for path in kit.shards(cache) if len(read_shard(path, kit.spec.digest)) == 10]
    write_manifest(cache.layout, kit.dataset("all", keys))
    (space,) = cache.gc(older_than_s=0, dry_run=False).spaces
    assert (space.shards_removed, space.shards_written) == (10, 5)
    assert all(path.exists() for path in large)
    sizes = [len(read_shard(path, kit.spec.digest)) for path in kit.shards(cache)]
    assert sorted(sizes) == [8] * 5 + [10] * 2
    kit.check(cache, keys, values)
    assert cache.gc(older_than_s=0).spaces[0].shards_removed == 0


def test_a_shard_of_any_size_is_cut_into_usual_ones(kit, tmp_path, monkeypatch):
    monkeypatch.setattr("featx.cache.shard.SHARD_BYTES", 7 * 48)
    monkeypatch.setattr(collection, "SHARD_BYTES", 7 * 48)
    keys, values = kit.rows(30)
    cache = kit.fill(tmp_path / "cache", keys, values, at_once=30)
    write_manifest(cache.layout, kit.dataset("most", keys[2:]))
    (space,) = cache.gc(older_than_s=0, dry_run=False).spaces
    assert space.shards_written == 4
    assert {len(read_shard(path, kit.spec.digest)) for path in kit.shards(cache)} == {7}
    kit.check(cache, keys[2:], values[2:])


def test_shards_of_other_taps_are_kept_apart(kit, tmp_path):
    keys, values = kit.rows(8)
    cache = kit.fill(tmp_path / "cache", keys, values, at_once=4)
    kit.fill(cache.root, keys, 2 * values, at_once=4, tap="max")
    write_manifest(cache.layout, kit.dataset("all", keys))
    (space,) = cache.gc(older_than_s=0, dry_run=False).spaces
    assert (space.rows_repeated, space.shards_removed, space.shards_written) == (0, 4, 2)
    kit.check(cache, keys, values)
    kit.check(cache, keys, 2 * values, tap="max")


def test_what_made_the_rows_stays_known(kit, tmp_path):
    keys, values = kit.rows(8)
    cache = kit.fill(tmp_path / "cache", keys[:4], values[:4])
    space = FeatureSpace(cache.layout, kit.spec)
    space.add(keys[4:], {"avg": values[4:]}, {"engine": "openvino"})
    write_manifest(cache.layout, kit.dataset("all", keys))
    cache.gc(older_than_s=0, dry_run=False)
    (path,) = kit.shards(cache)
    with h5py.File(path) as file:
        stated = str(file.attrs["provenance"])
    assert "keras" in stated
    assert "openvino" in stated


def test_rows_of_interrupted_and_failed_inputs_count_as_used(kit, tmp_path):
    keys, values = kit.rows(4)
    cache = kit.fill(tmp_path / "cache", keys, values)
    status = np.array([0, 1, 2, 3], np.uint8)
    write_manifest(cache.layout, kit.dataset("all", keys, status=status))
    assert cache.gc(older_than_s=0).spaces[0].rows_unused == 0


def test_a_dataset_that_comes_meanwhile_keeps_its_rows(kit, littered, monkeypatch):
    """An extraction that finds old rows writes its manifest while the collection writes shards."""
    keys, values = kit.rows(30)
    real = collection.write_parts

    def write_and_extract(*args):
        written = real(*args)
        if not littered.layout.dataset("late").exists():
            write_manifest(littered.layout, kit.dataset("late", keys[20:]))
        return written

    monkeypatch.setattr(collection, "write_parts", write_and_extract)
    littered.gc(dry_run=False, older_than_s=0)
    kit.check(littered, keys[:14], values[:14])
    kit.check(littered, keys[20:], values[20:])
    assert littered.verify().ok


def test_an_extraction_that_begins_while_its_space_is_removed_keeps_its_specification(
    kit, tmp_path, monkeypatch
):
    keys, values = kit.rows(4)
    cache = kit.fill(tmp_path / "cache", keys, values)
    folder = cache.layout.spaces / kit.spec.name
    spec = (folder / "spec.json").read_bytes()
    writer = FeatureSpace(cache.layout, kit.spec)
    real, came = Path.rmdir, []

    def rmdir(path):
        real(path)
        if path.name == "shards" and not came:
            came.append(writer.add(keys, {"avg": values}, {}))

    monkeypatch.setattr(Path, "rmdir", rmdir)
    (space,) = cache.gc(dry_run=False, older_than_s=0).spaces
    assert not space.removed
    assert (folder / "spec.json").read_bytes() == spec
    kit.check(cache, keys, values)


def test_files_of_others_keep_a_space(kit, tmp_path):
    keys, values = kit.rows(4)
    cache = kit.fill(tmp_path / "cache", keys, values)
    folder = cache.layout.spaces / kit.spec.name
    (folder / "notes").write_text("mine")
    (space,) = cache.gc(dry_run=False, older_than_s=0).spaces
    assert (space.removed, space.rows_unused) == (False, 4)
    assert sorted(path.name for path in folder.iterdir()) == ["notes", "shards", "spec.json"]


def test_a_space_that_was_renamed_is_not_taken_for_unused(kit, littered):
    folder = littered.layout.spaces / kit.spec.name
    folder.rename(folder.with_name("tiny-0123456789ab"))
    report = littered.gc(dry_run=False, older_than_s=0)
    renamed = next(space for space in report.spaces if space.space == "tiny-0123456789ab")
    assert (renamed.rows_unused, len(renamed.damaged), renamed.removed) == (0, 6, False)


class Killed(BaseException):
    """Stands for SIGKILL: nothing of featx catches it."""


def counted_steps(monkeypatch, limit):
    """Stop the process at the change of a file number `limit`: before it, and after it."""
    steps = []

    def wrap(name):
        real = getattr(Path, name)

        def step(path, *args, **kwargs):
            steps.append((name, path))
            if len(steps) == limit:
                raise Killed
            return real(path, *args, **kwargs)

        monkeypatch.setattr(Path, name, step)

    for name in ("replace", "rename", "unlink", "rmdir"):
        wrap(name)
    return steps


def test_stopped_at_any_step_the_cache_is_whole_and_the_next_run_finishes(
    kit, tmp_path, monkeypatch
):
    keys, values = kit.rows(12)
    expected = {keys[n].tobytes(): values[n].tobytes() for n in range(6)}
    stopped = 0
    for limit in range(1, 100):
        cache = kit.fill(tmp_path / f"cache{limit}", keys, values, at_once=3)
        kit.fill(cache.root, keys[:2], values[:2], at_once=2)
        unused = FeatureSpace(cache.layout, replace(kit.spec, dtype="float16"))
        unused.add(keys, {"avg": values}, {})
        write_manifest(cache.layout, kit.dataset("photos", keys[:6]))
        with monkeypatch.context() as patch:
            counted_steps(patch, limit)
            try:
                cache.gc(older_than_s=0, dry_run=False)
            except Killed:
                stopped += 1
            else:
                break
        kit.check(cache, keys[:6], values[:6])
        assert cache.verify().ok, limit
        cache.gc(older_than_s=0, dry_run=False)
        assert stored_rows(kit, cache) == (expected, dict.fromkeys(expected, 1))
        assert len(list(cache.layout.spaces.iterdir())) == 1
        assert cache.verify().ok
    assert stopped == 9


COLLECT = """
import sys
from featx.cache.maintenance import FeatureCache
sys.stdin.readline()
FeatureCache(sys.argv[1]).gc(older_than_s=0, dry_run=False)
"""


def test_collections_at_once_lose_nothing(kit, tmp_path):
    keys, values = kit.rows(300)
    cache = kit.fill(tmp_path / "cache", keys, values, at_once=10)
    kit.fill(cache.root, keys[100:], values[100:], at_once=14)
    write_manifest(cache.layout, kit.dataset("photos", keys[:200]))
    command = [sys.executable, "-c", COLLECT, str(cache.root)]
    pipes = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE}
    folder = Path(__file__).parents[2]
    processes = [subprocess.Popen(command, cwd=folder, text=True, **pipes) for _ in range(3)]
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        _, errors = process.communicate(timeout=900)
        assert process.returncode == 0, errors
    kit.check(cache, keys[:200], values[:200])
    cache.gc(older_than_s=0, dry_run=False)
    _, counts = stored_rows(kit, cache)
    assert len(counts) == 200
    assert set(counts.values()) == {1}
    assert cache.verify().ok


def test_finished_searches_are_nobodys_litter(kit, cache):
    kept = cache.layout.root / "searches" / f"{'a' * 40}.jsonl"
    kept.parent.mkdir()
    kept.write_text('{"trial": 1}\n{"cut')
    assert cache.verify().ok
    cache.gc(older_than_s=0, dry_run=False)
    assert kept.read_text() == '{"trial": 1}\n{"cut'
