from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from featx.cache import merging
from featx.cache.layout import CacheLayout
from featx.cache.maintenance import FeatureCache
from featx.cache.manifest import Block, find_manifest, same_manifest, write_manifest
from featx.cache.shard import read_shard
from featx.cache.space import FeatureSpace
from featx.exceptions import CacheError, CacheWriteError


@pytest.fixture
def two(tmp_path, kit):
    """Two caches that share the rows 8 to 11 of 20, each with a dataset of its own."""
    keys, values = kit.rows(20)
    one = kit.fill(tmp_path / "one", keys[:12], values[:12])
    other = kit.fill(tmp_path / "other", keys[8:], values[8:], at_once=6)
    write_manifest(one.layout, kit.dataset("ants", keys[:12]))
    write_manifest(other.layout, kit.dataset("bees", keys[8:]))
    return one, other


def stored(kit, cache):
    """How often each key is stored."""
    counts = {}
    for path in kit.shards(cache):
        for key in read_shard(path, kit.spec.digest).keys.map():
            counts[key.tobytes()] = counts.get(key.tobytes(), 0) + 1
    return counts


def test_merging_either_way_gives_the_union_and_writes_nothing_into_the_source(kit, two, tmp_path):
    keys, values = kit.rows(20)
    one, other = two
    before = {cache.root: kit.state(cache) for cache in two}
    for order in (two, two[::-1]):
        union = FeatureCache(tmp_path / f"into-{order[0].root.name}")
        union.merge(order[0].root)
        (report,) = union.merge(order[1].root)
        assert (report.rows_copied, report.rows_present) == (8, 4)
        kit.check(union, keys, values)
        assert stored(kit, union) == {key.tobytes(): 1 for key in keys}
        assert union.datasets() == ["ants", "bees"]
        for source, name in ((one, "ants"), (other, "bees")):
            assert same_manifest(
                find_manifest(union.layout, name), find_manifest(source.layout, name)
            )
        assert union.verify().ok
    assert {cache.root: kit.state(cache) for cache in two} == before


def test_shards_that_are_new_as_a_whole_keep_every_byte(kit, two, tmp_path):
    one, _ = two
    union = FeatureCache(tmp_path / "into")
    (report,) = union.merge(one.root)
    assert (report.rows_copied, report.shards_written) == (12, 3)
    assert report.size_bytes == 12 * 48
    assert sorted(path.read_bytes() for path in kit.shards(union)) == sorted(
        path.read_bytes() for path in kit.shards(one)
    )


def test_a_second_merge_copies_nothing(kit, two):
    one, other = two
    one.merge(other.root)
    before = kit.state(one)
    (report,) = one.merge(other.root)
    assert (report.rows_copied, report.rows_present, report.shards_written) == (0, 12, 0)
    assert [dataset.outcome for dataset in report.datasets] == ["present"]
    assert kit.state(one) == before


def test_a_row_that_lacks_a_tap_is_copied(kit, two):
    keys, values = kit.rows(20)
    one, other = two
    FeatureSpace(other.layout, kit.spec).add(
        keys[:4], {"avg": values[:4], "max": 2 * values[:4]}, {}
    )
    assert one.merge(other.root)[0].rows_copied == 8 + 4
    kit.check(one, keys[:4], 2 * values[:4], tap="max")
    kit.check(one, keys, values)


def test_a_name_that_is_taken_gets_a_number_once(kit, two):
    keys, _ = kit.rows(20)
    one, other = two
    write_manifest(other.layout, kit.dataset("ants", keys[10:]))
    write_manifest(one.layout, kit.dataset("ants-2", keys[:3]))
    (report,) = one.merge(other.root)
    assert [(d.name, d.stored_as, d.outcome) for d in report.datasets] == [
        ("ants", "ants-3", "copied"),
        ("bees", "bees", "copied"),
    ]
    assert len(find_manifest(one.layout, "ants")) == 12
    assert len(find_manifest(one.layout, "ants-3")) == 10
    again = one.merge(other.root)[0].datasets
    assert [(d.stored_as, d.outcome) for d in again] == [("ants-3", "present"), ("bees", "present")]
    assert one.datasets() == ["ants", "ants-2", "ants-3", "bees"]


def test_the_same_images_in_another_folder_are_the_same_dataset_with_all_features(kit, two):
    keys, values = kit.rows(20)
    one, other = two
    blocks = (Block("tiny", "avg", kit.spec.name), Block("tiny", "max", kit.spec.name))
    space = FeatureSpace(other.layout, kit.spec)
    space.add(keys[:12], {"avg": values[:12], "max": 2 * values[:12]}, {})
    elsewhere = kit.dataset(
        "ants", keys[:12], root="/elsewhere", inode=np.arange(12), blocks=blocks[::-1]
    )
    write_manifest(other.layout, elsewhere)
    (ants, _) = one.merge(other.root)[0].datasets
    assert ants.outcome == "extended"
    merged = find_manifest(one.layout, "ants")
    assert (merged.root, merged.blocks) == ("/photos", blocks)
    assert one.verify().ok
    assert one.merge(other.root)[0].datasets[0].outcome == "present"


def test_damaged_files_are_left_out_and_named_and_the_rest_comes(kit, two, tmp_path):
    keys, values = kit.rows(20)
    _, other = two
    first, second = kit.shards(other)
    kept = np.array(read_shard(second, kit.spec.digest).keys.map())
    whole = first.read_bytes()
    offset = read_shard(first, kit.spec.digest).taps["avg"].offset
    kit.flip(first, offset, whole)
    bees = other.layout.dataset("bees")
    bees.write_bytes(bees.read_bytes()[:400])
    lost = other.layout.spaces / "lost-0123456789ab"
    (lost / "shards").mkdir(parents=True)
    (lost / "shards" / "x.h5").write_bytes(whole)
    (lost / "spec.json").write_text("{}")
    union = FeatureCache(tmp_path / "into")
    (report,) = union.merge(other.root)
    assert {finding.path: finding.kind for finding in report.skipped} == {
        first: "shard",
        bees: "manifest",
        lost / "spec.json": "spec",
    }
    assert all("featx cache verify" in finding.next_step for finding in report.skipped)
    rows = [row for row in range(20) if (kept == keys[row]).all(axis=1).any()]
    assert report.rows_copied == len(rows) == 6
    kit.check(union, keys[rows], values[rows])
    assert union.verify().ok
    first.write_bytes(whole)
    assert union.merge(other.root)[0].rows_copied == 6
    kit.check(union, keys[8:], values[8:])


def test_damage_here_is_mended_from_there(kit, two):
    keys, values = kit.rows(20)
    one, other = two
    one.merge(other.root)
    kit.shards(one)[0].write_bytes(b"")
    one.repair()
    assert not one.verify().ok
    write_manifest(other.layout, kit.dataset("ants", keys[:12]))
    kit.refill(other, keys, values)
    one.merge(other.root)
    kit.check(one, keys, values)
    assert one.verify().ok


def test_a_damaged_manifest_here_is_named_and_stays(two, kit):
    one, other = two
    keys, _ = kit.rows(20)
    write_manifest(other.layout, kit.dataset("ants", keys[:12]))
    path = one.layout.dataset("ants")
    path.write_bytes(b"damaged")
    (report,) = one.merge(other.root)
    assert [finding.path for finding in report.skipped] == [path]
    assert path.read_bytes() == b"damaged"
    assert one.datasets() == ["ants", "bees"]


def test_a_copy_that_went_wrong_on_the_way_is_not_published(kit, two, tmp_path, monkeypatch):
    one, _ = two
    monkeypatch.setattr(
        merging, "_read_chunks", lambda path: iter([path.read_bytes().replace(b"avg", b"abg")])
    )
    union = FeatureCache(tmp_path / "into")
    (report,) = union.merge(one.root)
    assert len(report.skipped) == 3
    assert kit.shards(union) == []
    assert list(union.layout.tmp.iterdir()) == []


def test_a_full_disk_is_the_fault_of_the_target(kit, two, tmp_path, monkeypatch):
    one, _ = two

    def full(path):
        yield path.read_bytes()[:10]
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(merging, "_read_chunks", full)
    with pytest.raises(CacheWriteError, match="into.*No space left.*free some space"):
        FeatureCache(tmp_path / "into").merge(one.root)


def test_shards_that_are_put_together_while_they_are_copied_are_not_lost(
    kit, two, tmp_path, monkeypatch
):
    keys, values = kit.rows(20)
    one, _ = two
    real, done = merging.read_shard, []

    def collect_and_read(path, digest):
        if not done:
            done.append(one.gc(older_than_s=0, dry_run=False))
        return real(path, digest)

    monkeypatch.setattr(merging, "read_shard", collect_and_read)
    union = FeatureCache(tmp_path / "into")
    (report,) = union.merge(one.root)
    assert (report.rows_copied, report.skipped) == (12, ())
    kit.check(union, keys[:12], values[:12])


@pytest.mark.parametrize("limit", range(1, 6))
def test_stopped_at_any_step_the_next_merge_finishes(kit, two, tmp_path, monkeypatch, limit):
    keys, values = kit.rows(20)
    one, other = two

    class Killed(BaseException):
        pass

    steps = []

    def counted(name):
        real = getattr(Path, name)

        def step(path, other):
            steps.append(path)
            if len(steps) == limit:
                raise Killed("stopped")
            return real(path, other)

        return step

    union = FeatureCache(tmp_path / "into")
    with monkeypatch.context() as patch:
        for name in ("replace", "rename", "hardlink_to"):
            patch.setattr(Path, name, counted(name))
        with pytest.raises(Killed, match="stopped"):
            union.merge(one.root)
    if union.layout.spaces.exists():
        assert union.verify().ok
    reports = union.merge(one.root, other.root)
    assert sum(report.rows_copied + report.rows_present for report in reports) == 24
    kit.check(union, keys, values)
    assert set(stored(kit, union).values()) == {1}
    assert union.verify().ok


def test_what_is_no_cache_is_an_error(two, tmp_path):
    one, _ = two
    with pytest.raises(CacheError, match="no cache at .*nowhere: expected a folder"):
        one.merge(tmp_path / "nowhere")
    with pytest.raises(CacheError, match="cannot be merged into itself"):
        one.merge(one.root / ".." / "one")


def test_another_specification_of_the_same_first_digits_is_left_out(kit, two, monkeypatch):
    one, other = two
    spec = replace(kit.spec, preprocessing="torch")
    keys, values = kit.rows(3)
    space = FeatureSpace(CacheLayout(other.root), spec)
    space.add(keys, {"avg": values}, {})
    taken = one.layout.space(spec)
    taken.mkdir()
    (taken / "spec.json").write_text("{}")
    (report,) = one.merge(other.root)
    assert [finding.path for finding in report.skipped] == [taken / "spec.json"]
