"""The index of keys on disk gives the answers of the one in memory, whatever state it is in."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import h5py
import numpy as np
import pytest

from featx.cache import space as space_module
from featx.cache import stored_index
from featx.cache.features import Features
from featx.cache.layout import list_shards
from featx.cache.manifest import write_manifest
from featx.cache.merging import merge_cache
from featx.cache.space import FeatureSpace, open_space
from featx.exceptions import CacheFormatError


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Spaces of a few rows get an index, of blocks and ranges of a few entries."""
    monkeypatch.setattr(space_module, "INDEX_ROWS", 1)
    monkeypatch.setattr(stored_index, "_SORTED_AT_ONCE", 100)


def index_path(space):
    return space.layout.index(space.spec.name)


@pytest.fixture
def without(monkeypatch):
    """Opens a space as if there were no index on disk."""

    def opened(space):
        with monkeypatch.context() as patch:
            patch.setattr(space_module, "open_index", lambda *_: None)
            return FeatureSpace(space.layout, space.spec)

    return opened


@pytest.fixture
def filled(space, kit):
    """40 shards with keys that begin alike, that repeat, and whose taps are not the same."""
    generator = np.random.default_rng(0)
    keys, values = kit.rows(800)
    keys[:, :8] %= 2  # keys with the same first 8 bytes
    keys[::2, :7] = 1
    for start in range(0, 800, 20):
        part = slice(start, start + 20)
        taps = [{"avg": values[part]}, {"max": values[part]}][start % 60 == 0]
        if start % 100 == 0:
            taps = {"avg": values[part], "max": values[part]}
        space.add(keys[part], taps, {})
    again = generator.permutation(800)[:100]  # rows that come twice, in a shard of the other tap
    space.add(keys[again], {"max": values[again]}, {})
    space.write_index()
    return keys, values


def check_same(space, other, keys, values):
    """Two spaces find the same rows, and these are right."""
    strangers = np.random.default_rng(9).integers(0, 2, (50, 32), dtype=np.uint8)
    queries = np.concatenate([keys, strangers])
    assert space.taps == other.taps
    assert sorted(space.paths) == sorted(other.paths)
    assert space.rows == other.rows
    for tap in ("avg", "max"):
        here = other.has([tap], queries)
        np.testing.assert_array_equal(space.has([tap], queries), here)
        assert here[: len(keys)].any()
        assert not here[len(keys) :].any()
        chosen = here[: len(keys)]
        np.testing.assert_array_equal(space.gather(tap, keys[chosen]), values[chosen])
        order = space.disk_order(tap, keys[chosen])
        assert sorted(order.tolist()) == list(range(np.count_nonzero(chosen)))
    both = other.has(["avg", "max"], queries)
    np.testing.assert_array_equal(space.has(["avg", "max"], queries), both)


def indexed(space):
    return space._stored is not None


def test_answers_are_those_of_the_index_in_memory(space, filled, without):
    keys, values = filled
    stored = FeatureSpace(space.layout, space.spec)
    assert indexed(stored)
    assert not stored._known  # no key is held in memory
    check_same(stored, without(space), keys, values)
    assert stored.gather("avg", keys[:0]).shape == (0, 4)


def test_keys_are_asked_one_by_one_in_any_order(space, filled, without):
    keys, _ = filled
    stored, other = FeatureSpace(space.layout, space.spec), without(space)
    for row in np.random.default_rng(1).permutation(800)[:100]:
        key = keys[row : row + 1]
        assert stored.has(["avg"], key) == other.has(["avg"], key)
        assert stored.has(["max"], key) == other.has(["max"], key)


def test_random_keys_over_many_blocks_are_found(space, kit, monkeypatch, without):
    monkeypatch.setattr(stored_index, "_SORTED_AT_ONCE", 3000)
    keys, values = kit.rows(10_000)
    for start in range(0, 10_000, 2500):
        space.add(keys[start : start + 2500], {"avg": values[start : start + 2500]}, {})
    space.write_index()
    stored = FeatureSpace(space.layout, space.spec)
    assert indexed(stored)
    order = np.random.default_rng(2).permutation(10_000)
    np.testing.assert_array_equal(stored.gather("avg", keys[order]), values[order])
    np.testing.assert_array_equal(
        keys[stored.disk_order("avg", keys[order])].shape, keys[order].shape
    )
    np.testing.assert_array_equal(
        stored.disk_order("avg", keys[order]), without(space).disk_order("avg", keys[order])
    )


def test_shards_that_come_and_go_later_are_taken_into_account(space, filled, kit, without):
    keys, values = filled
    more, new = kit.rows(60, seed=5)
    FeatureSpace(space.layout, space.spec).add(more[:30], {"avg": new[:30], "max": new[:30]}, {})
    reader = FeatureSpace(space.layout, space.spec)
    list_shards(space.folder)[3].unlink()
    list_shards(space.folder)[7].unlink()
    FeatureSpace(space.layout, space.spec).add(more[30:], {"avg": new[30:], "max": new[30:]}, {})
    every = np.concatenate([keys, more]), np.concatenate([values, new])
    stored = FeatureSpace(space.layout, space.spec)
    assert indexed(stored)
    assert len(stored._known) == 2
    check_same(stored, without(space), *every)
    reader.refresh()
    check_same(reader, without(space), *every)


def test_a_reader_finds_rows_whose_shard_was_compacted_away(space, kit):
    keys, values = kit.rows(20)
    old = space.add(keys[:10], {"avg": values[:10]}, {})
    space.add(keys[10:], {"avg": values[10:]}, {})
    space.write_index()
    fresh = FeatureSpace(space.layout, space.spec)
    used = FeatureSpace(space.layout, space.spec)
    np.testing.assert_array_equal(used.gather("avg", keys), values)
    space.add(keys[:10], {"avg": values[:10]}, {})
    old.unlink()
    for reader in (fresh, used):
        assert indexed(reader)
        assert reader.has(["avg"], keys).all()
        np.testing.assert_array_equal(reader.gather("avg", keys), values)
        assert reader.intact()


def test_an_index_that_is_written_again_goes_on_from_the_earlier_one(space, filled, kit, without):
    keys, values = filled
    list_shards(space.folder)[5].unlink()
    more, new = kit.rows(40, seed=5)
    writer = FeatureSpace(space.layout, space.spec)
    writer.add(more, {"avg": new, "max": new}, {})
    before = index_path(space).read_bytes()
    writer.write_index()
    assert index_path(space).read_bytes() != before
    stored = FeatureSpace(space.layout, space.spec)
    assert indexed(stored)
    assert not stored._known
    every = np.concatenate([keys, more]), np.concatenate([values, new])
    check_same(stored, without(space), *every)


def test_a_small_space_gets_none_and_a_large_one_again_only_for_many_rows(space, kit, monkeypatch):
    monkeypatch.setattr(space_module, "INDEX_ROWS", 100)
    keys, values = kit.rows(300)
    path = space.add(keys[:99], {"avg": values[:99]}, {})
    space.write_index()
    assert not space.layout.indexes.exists()
    space.add(keys[99:150], {"avg": values[99:150]}, {})
    space.write_index()
    first = index_path(space).read_bytes()
    again = FeatureSpace(space.layout, space.spec)
    again.add(keys[150:200], {"avg": values[150:200]}, {})
    again.write_index()
    assert index_path(space).read_bytes() == first
    path.unlink()
    again.refresh()
    again.write_index()  # a quarter of its rows are gone
    assert index_path(space).read_bytes() != first


def test_an_index_cut_anywhere_is_ignored_and_made_again(space, filled, without):
    keys, values = filled
    path = index_path(space)
    whole = path.read_bytes()
    other = without(space)
    here = other.has(["avg"], keys)
    for size in range(0, len(whole), len(whole) // 10):
        path.write_bytes(whole[:size])
        stored = FeatureSpace(space.layout, space.spec)
        assert not indexed(stored)
        np.testing.assert_array_equal(stored.has(["avg"], keys), here)
    stored.write_index()
    check_same(FeatureSpace(space.layout, space.spec), other, keys, values)


def test_a_flipped_bit_changes_no_answer(space, kit, filled, without):
    keys, values = filled
    path = index_path(space)
    whole = path.read_bytes()
    here = without(space).has(["avg"], keys)
    noticed = 0
    for position in range(7, len(whole), len(whole) // 150):
        kit.flip(path, position, whole)
        stored = FeatureSpace(space.layout, space.spec)
        np.testing.assert_array_equal(stored.has(["avg"], keys), here)
        np.testing.assert_array_equal(stored.gather("avg", keys[here]), values[here])
        noticed += not indexed(stored)
    assert noticed > 50


def test_a_damaged_index_is_written_anew_from_the_shards(space, kit, filled, without):
    keys, values = filled
    path = index_path(space)
    with h5py.File(path, "r") as file:
        offset = file["entries"].id.get_offset()
    kit.flip(path, offset + 100, path.read_bytes())
    more, new = kit.rows(40, seed=5)
    writer = FeatureSpace(space.layout, space.spec)
    assert indexed(writer)
    writer.add(more, {"avg": new, "max": new}, {})
    writer.write_index()
    stored = FeatureSpace(space.layout, space.spec)
    assert indexed(stored)
    every = np.concatenate([keys, more]), np.concatenate([values, new])
    check_same(stored, without(space), *every)
    assert indexed(stored)


@pytest.mark.parametrize(
    "change",
    [
        lambda f: f.attrs.modify("version", 2),
        lambda f: f.attrs.create("type", np.bytes_("other")),
        lambda f: f.attrs.create("space", np.bytes_("tiny-000000000000")),
        lambda f: f.__delitem__("entries"),
        lambda f: f.__setitem__("firsts", f.__getitem__("firsts")[:0]),
    ],
)
def test_an_index_of_others_is_ignored(space, filled, without, change):
    keys, values = filled
    with h5py.File(index_path(space), "a") as file:
        try:
            change(file)
        except (OSError, RuntimeError, ValueError):
            del file["firsts"]
    stored = FeatureSpace(space.layout, space.spec)
    assert not indexed(stored)
    check_same(stored, without(space), keys, values)


def test_an_index_that_says_wrong_places_gives_no_wrong_row(space, filled, monkeypatch):
    keys, values = filled
    real = stored_index._joined
    moved = lambda begins, shard, row: real(begins, shard, row[::-1])  # noqa: E731
    monkeypatch.setattr(stored_index, "_joined", moved)
    index_path(space).unlink()
    space.write_index()
    stored = FeatureSpace(space.layout, space.spec)
    assert indexed(stored)
    here = stored.has(["avg"], keys)
    np.testing.assert_array_equal(stored.gather("avg", keys[here]), values[here])


def test_damaged_shards_are_left_out_and_named_when_a_row_of_theirs_is_asked_for(
    space, kit, caplog
):
    keys, values = kit.rows(40)
    paths = []
    for start in range(0, 40, 10):
        part = slice(start, start + 10)
        paths.append(space.add(keys[part], {"avg": values[part]}, {}))
    space.write_index()
    whole = [path.read_bytes() for path in paths]
    with h5py.File(paths[0], "r") as file:
        kit.flip(paths[0], file["key"].id.get_offset() + 33, whole[0])
    with h5py.File(paths[1], "r") as file:
        kit.flip(paths[1], file["features/avg"].id.get_offset() + 5, whole[1])
    paths[2].write_bytes(whole[2][:-500])
    stored = FeatureSpace(space.layout, space.spec)
    assert indexed(stored)
    assert stored.has(["avg"], keys).tolist() == [False] * 30 + [True] * 10
    assert sorted(stored.damaged) == sorted(paths[:3])
    assert all(path.name in caplog.text for path in paths[:3])
    np.testing.assert_array_equal(stored.gather("avg", keys[30:]), values[30:])
    stored.add(keys[:30], {"avg": values[:30]}, {})
    np.testing.assert_array_equal(stored.gather("avg", keys), values)


def test_a_shard_that_another_replaced_under_its_name_is_read(space, kit):
    keys, values = kit.rows(20)
    first = space.add(keys[:10], {"avg": values[:10]}, {})
    space.write_index()
    second = space.add(np.concatenate([keys[:1], keys[10:]]), {"avg": values[9:]}, {})
    second.replace(first)
    stored = FeatureSpace(space.layout, space.spec)
    assert indexed(stored)
    assert stored.has(["avg"], keys[:1]).all()  # only now is it opened
    assert stored.has(["avg"], keys).tolist() == [True] + [False] * 9 + [True] * 10


def test_upkeep_knows_the_index(kit, cache):
    keys, values = kit.rows(12)
    space = open_space(cache.layout, kit.spec.name)
    space.write_index()
    assert cache.verify().ok
    info = cache.info()["spaces"][0]
    assert (info.rows, info.shards, info.damaged) == ({"avg": 12}, 3, {})
    assert info.size_bytes == sum(path.stat().st_size for path in kit.shards(cache))
    path = index_path(space)
    before = path.read_bytes()
    cache.gc(older_than_s=0.0, dry_run=False)  # puts the shards together
    assert path.read_bytes() != before
    stored = FeatureSpace(cache.layout, kit.spec)
    assert indexed(stored)
    assert len(stored.paths) == 1
    assert not stored._known
    kit.check(cache, keys, values)
    kit.flip(path, len(before) // 2, path.read_bytes())
    (finding,) = cache.verify().findings
    assert (finding.path, finding.kind) == (path, "index")
    kit.check(cache, keys, values)
    assert [found.path for found in cache.repair().removed] == [path]
    assert cache.verify().ok
    stray = cache.layout.indexes / "notes.txt"
    stray.write_text("")
    assert [found.kind for found in cache.verify().findings] == ["foreign"]


def test_a_space_that_is_removed_takes_its_index_along(kit, cache):
    space = open_space(cache.layout, kit.spec.name)
    space.write_index()
    cache.layout.dataset("photos").unlink()
    cache.gc(older_than_s=0.0, dry_run=True)
    assert index_path(space).exists()
    cache.gc(older_than_s=0.0, dry_run=False)
    assert not space.folder.exists()
    assert not index_path(space).exists()


def test_a_merge_reads_beside_an_index_and_writes_one(kit, cache, tmp_path):
    keys, values = kit.rows(12)
    open_space(cache.layout, kit.spec.name).write_index()
    other_keys, other_values = kit.rows(8, seed=3)
    other = kit.fill(tmp_path / "other", other_keys, other_values)
    write_manifest(other.layout, kit.dataset("more", other_keys))
    merge_cache(cache.layout, other.layout)
    stored = open_space(cache.layout, kit.spec.name)
    assert indexed(stored)
    assert not stored._known
    every = np.concatenate([keys, other_keys]), np.concatenate([values, other_values])
    np.testing.assert_array_equal(stored.gather("avg", every[0]), every[1])
    features = Features.open("more", cache=cache.root)
    np.testing.assert_array_equal(features.X, other_values)
    assert len(list(features.batches(batch_size=3, shuffle=True))) == 3


def test_a_cache_without_permission_gets_none_and_works(space, filled, without, monkeypatch):
    keys, values = filled
    shutil.rmtree(space.layout.indexes)

    def refuse(*_, **__):
        raise PermissionError(13, os.strerror(13))

    stored = FeatureSpace(space.layout, space.spec)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        stored.write_index()
    assert not index_path(space).exists()
    assert list(space.layout.tmp.iterdir()) == []
    check_same(stored, without(space), keys, values)


def test_two_writers_at_once_are_both_right(space, filled, without):
    keys, values = filled
    index_path(space).unlink()
    code = f"""
from featx.cache import space
from featx.cache.layout import CacheLayout
space.INDEX_ROWS = 1
opened = space.open_space(CacheLayout.at({str(space.layout.root)!r}), {space.spec.name!r})
for _ in range(20):
    opened.write_index()
"""
    writers = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    while any(writer.poll() is None for writer in writers):
        check_same(FeatureSpace(space.layout, space.spec), without(space), keys, values)
    assert [writer.returncode for writer in writers] == [0, 0]
    stored = FeatureSpace(space.layout, space.spec)
    assert indexed(stored)
    check_same(stored, without(space), keys, values)


def test_a_killed_writer_leaves_the_earlier_index(space, filled, without, kit):
    keys, values = filled
    more, new = kit.rows(40, seed=5)
    space.add(more, {"avg": new, "max": new}, {})
    before = index_path(space).read_bytes()
    code = f"""
import os
from featx.cache import space, stored_index
from featx.cache.layout import CacheLayout
space.INDEX_ROWS = 1
stored_index.zlib.crc32 = lambda _: os.kill(os.getpid(), 9)
opened = space.open_space(CacheLayout.at({str(space.layout.root)!r}), {space.spec.name!r})
opened.write_index()
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert index_path(space).read_bytes() == before
    assert len(list(space.layout.tmp.iterdir())) == 1  # which `repair` removes
    every = np.concatenate([keys, more]), np.concatenate([values, new])
    check_same(FeatureSpace(space.layout, space.spec), without(space), *every)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_an_index_takes_little_memory(space, kit, run_python):
    keys, values = kit.rows(200_000, d=1)
    for start in range(0, 200_000, 20_000):
        part = slice(start, start + 20_000)
        space.add(keys[part], {"avg": values[part]}, {})
    code = f"""
import sys
import numpy as np, h5py
from featx.cache import space
from featx.cache.layout import CacheLayout
def anonymous():
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon"):
            return int(line.split()[1])
space.INDEX_ROWS = int(sys.argv[1]) if len(sys.argv) > 1 else 1
layout = CacheLayout.at({str(space.layout.root)!r})
before = anonymous()
opened = space.open_space(layout, {space.spec.name!r})
print(anonymous() - before)
opened.write_index()
"""
    in_memory = int(run_python(code).stdout)
    stored = int(run_python(code).stdout)
    assert in_memory > 5000  # 40 bytes a row
    assert stored < 2000


def test_an_index_that_does_not_fit_its_name_is_named(space, filled):
    path = index_path(space)
    other = path.with_name("tiny-000000000000.h5")
    shutil.copy(path, other)
    with pytest.raises(CacheFormatError, match="expected the index of the space tiny-0000"):
        stored_index.read_index(other)
