"""Features of one specification are found by key, in the midst of damage and other writers."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest

from featx.cache.key_index import KeyIndex
from featx.cache.space import FeatureSpace, ShardWriter, open_space, read_spec
from featx.exceptions import CacheFormatError, FeaturesError


def test_rows_are_gathered_in_the_order_of_their_keys_over_shards(layout, kit, space):
    keys, values = kit.rows(30)
    for start in (0, 10, 20):
        space.add(keys[start : start + 10], {"avg": values[start : start + 10]}, {})
    order = np.random.default_rng(1).permutation(30)
    np.testing.assert_array_equal(space.gather("avg", keys[order]), values[order])
    again = FeatureSpace(layout, kit.spec)
    np.testing.assert_array_equal(again.gather("avg", keys[order]), values[order])


def test_rows_that_lie_together_are_mapped_not_copied(layout, kit, space):
    keys, values = kit.rows(30)
    space.add(keys, {"avg": values}, {})
    assert isinstance(space.gather("avg", keys[5:20]), np.memmap)
    np.testing.assert_array_equal(space.gather("avg", keys[5:20]), values[5:20])


def test_taps_may_lie_in_different_shards(layout, kit, space):
    keys, values = kit.rows(6)
    space.add(keys, {"avg": values}, {})
    space.add(keys[:3], {"max": values[:3]}, {})
    assert space.has(["avg"], keys).all()
    assert space.has(["avg", "max"], keys).tolist() == [True] * 3 + [False] * 3
    with pytest.raises(FeaturesError, match="3 of 6 images have no features of tap 'max'"):
        space.gather("max", keys)
    with pytest.raises(FeaturesError, match="no features of tap 'gem' in tiny-.*avg, max"):
        space.gather("gem", keys)


def test_a_reader_sees_what_another_writer_added_after_a_refresh(layout, kit, space):
    reader = FeatureSpace(layout, kit.spec)
    keys, values = kit.rows(4)
    space.add(keys, {"avg": values}, {})
    assert not reader.has(["avg"], keys).any()
    reader.refresh()
    assert reader.has(["avg"], keys).all()


def test_a_damaged_shard_is_named_and_the_rest_stays_usable(layout, kit, space, caplog):
    keys, values = kit.rows(8)
    bad = space.add(keys[:4], {"avg": values[:4]}, {})
    space.add(keys[4:], {"avg": values[4:]}, {})
    bad.write_bytes(bad.read_bytes()[:-100])
    with caplog.at_level(logging.WARNING, "featx"):
        again = FeatureSpace(layout, kit.spec)
    assert list(again.damaged) == [bad]
    assert bad.name in caplog.text
    assert again.has(["avg"], keys).tolist() == [False] * 4 + [True] * 4
    np.testing.assert_array_equal(again.gather("avg", keys[4:]), values[4:])


def test_a_specification_that_disagrees_with_its_folder_is_an_error(layout, kit, space):
    keys, values = kit.rows(2)
    space.add(keys, {"avg": values}, {})
    path = space.folder / "spec.json"
    changed = json.loads(path.read_text()) | {"input_size_px": [96, 96]}
    path.write_text(json.dumps(changed))
    with pytest.raises(CacheFormatError, match="the folder was renamed or its specification"):
        FeatureSpace(layout, kit.spec)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"type": "featx-spec", "version": 9}'])
def test_a_damaged_specification_is_an_error(layout, kit, text):
    folder = layout.space(kit.spec)
    folder.mkdir(parents=True)
    (folder / "spec.json").write_text(text)
    with pytest.raises(CacheFormatError, match=r"spec\.json"):
        read_spec(folder)


def test_the_writer_commits_by_size_and_by_time(layout, kit, space, monkeypatch):
    keys, values = kit.rows(40)
    monkeypatch.setattr("featx.cache.space.SHARD_BYTES", 10 * 4 * 4)
    writer = ShardWriter(space, {})
    for row in range(25):
        writer.add(keys[row : row + 1], {"avg": values[row : row + 1]})
    assert len(space.paths) == 2
    writer.flush()
    assert len(space.paths) == 3
    monkeypatch.setattr("featx.cache.space.SHARD_SECONDS", 0.0)
    writer.add(keys[30:31], {"avg": values[30:31]})
    assert len(space.paths) == 4
    writer.flush()
    assert len(space.paths) == 4


def test_a_reader_finds_rows_that_were_moved_to_another_shard(layout, kit, space):
    keys, values = kit.rows(20)
    old = space.add(keys[:10], {"avg": values[:10]}, {})
    space.add(keys[10:], {"avg": values[10:]}, {})
    reader = FeatureSpace(layout, kit.spec)
    space.add(keys, {"avg": values}, {})
    old.unlink()
    np.testing.assert_array_equal(reader.gather("avg", keys), values)


def test_a_space_whose_specification_is_not_written_yet_can_be_opened(layout, kit):
    (layout.space(kit.spec) / "shards").mkdir(parents=True)
    space = FeatureSpace(layout, kit.spec)
    keys, values = kit.rows(2)
    space.add(keys, {"avg": values}, {})
    assert read_spec(space.folder) == kit.spec


def test_a_shard_that_goes_while_a_space_is_opened_is_left_out(layout, kit, space, monkeypatch):
    keys, values = kit.rows(20)
    old = space.add(keys[:10], {"avg": values[:10]}, {})
    space.add(keys[10:], {"avg": values[10:]}, {})
    real = KeyIndex.extended

    def collect_first(index, parts):
        old.unlink(missing_ok=True)
        return real(index, parts)

    monkeypatch.setattr(KeyIndex, "extended", collect_first)
    again = FeatureSpace(layout, kit.spec)
    assert again.has(["avg"], keys).tolist() == [False] * 10 + [True] * 10


def test_a_shard_that_comes_to_a_space_does_not_cost_a_look_at_the_others(layout, kit, space):
    keys, values = kit.rows(30)
    first = space.add(keys[:10], {"avg": values[:10], "max": values[:10]}, {})
    whole = first.read_bytes()
    first.write_bytes(b"")  # it would be an error to read it again
    space.add(keys[10:20], {"avg": values[10:20]}, {})
    space.add(keys[20:], {"max": values[20:]}, {})
    assert not space.damaged
    first.write_bytes(whole)
    assert space.has(["avg"], keys).tolist() == [True] * 20 + [False] * 10
    assert space.has(["max"], keys).tolist() == [True] * 10 + [False] * 10 + [True] * 10


def test_a_process_that_may_open_few_files_can_open_many_shards(layout, kit, space, run_python):
    keys, values = kit.rows(100)
    for start in range(0, 100, 2):
        space.add(keys[start : start + 2], {"avg": values[start : start + 2]}, {})
    code = f"""
import resource, numpy as np
from featx.cache.layout import CacheLayout
from featx.cache.space import open_space
import h5py
resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
space = open_space(CacheLayout.at({str(layout.root)!r}), {kit.spec.name!r})
keys = np.random.default_rng(0).integers(0, 256, (100, 32), dtype=np.uint8)
print(space.has(["avg"], keys).sum(), space.gather("avg", keys).shape, len(space.damaged))
"""
    assert run_python(code).stdout == "100 (100, 4) 0\n"


def test_a_specification_that_was_lost_is_written_again_where_that_is_possible(layout, kit, space):
    keys, values = kit.rows(2)
    space.add(keys, {"avg": values}, {})
    path = space.folder / "spec.json"
    good = path.read_bytes()
    path.unlink()
    with pytest.raises(CacheFormatError, match=r"spec\.json is missing: extract again"):
        open_space(layout, kit.spec.name)
    FeatureSpace(layout, kit.spec)
    assert path.read_bytes() == good
    path.unlink()
    layout.tmp.rmdir()
    layout.tmp.write_text("in the way")
    assert FeatureSpace(layout, kit.spec).has(["avg"], keys).all()
    assert not path.exists()


# The index of keys


def random_keys(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 32), dtype=np.uint8)


def test_keys_that_share_their_first_eight_bytes_are_kept_apart():
    keys = np.zeros((50, 32), np.uint8)
    keys[:, 31] = np.arange(50)
    index = KeyIndex([keys])
    order = np.random.default_rng(0).permutation(50)
    np.testing.assert_array_equal(index.find(keys[order])[1], order)
    stranger = np.full((1, 32), 0, np.uint8)
    stranger[0, 30] = 1
    assert index.find(stranger)[1][0] == -1


def test_an_empty_index_finds_nothing():
    assert KeyIndex([]).find(random_keys(2))[0].tolist() == [-1, -1]
    assert KeyIndex([random_keys(2)]).find(random_keys(0))[0].tolist() == []


def test_an_index_that_grew_part_by_part_finds_what_one_made_at_once_finds():
    generator = np.random.default_rng(0)
    keys = random_keys(6000)
    keys[4000:4100] = keys[:100]  # rows that came twice
    keys[:, :8] %= 3  # many keys that begin alike
    cuts = np.sort(generator.integers(0, 6000, 60))
    parts = np.split(keys, cuts)
    grown = KeyIndex()
    for part in parts:
        before = len(grown)
        grown = grown.extended([part])
        assert len(grown) == before + len(part)
    asked = np.concatenate([keys, random_keys(500, seed=1)])[generator.permutation(6500)]
    for index in (grown, KeyIndex(parts), KeyIndex(parts[:20]).extended(parts[20:])):
        part, row = index.find(asked)
        here = part >= 0
        assert here.sum() == 6000
        found = np.stack([parts[p][r] for p, r in zip(part[here], row[here], strict=True)])
        np.testing.assert_array_equal(found, asked[here])


def test_extending_leaves_the_index_as_it_was_for_those_who_use_it():
    keys = random_keys(20)
    index = KeyIndex([keys[:10]])
    extended = index.extended([keys[10:]])
    assert (index.find(keys)[1] >= 0).tolist() == [True] * 10 + [False] * 10
    assert (extended.find(keys)[1] >= 0).all()
    assert index.extended([]) is index


def test_a_key_costs_40_bytes_and_growing_sorts_little():
    parts = np.split(random_keys(200_000), 200)
    index = KeyIndex()
    sorted_rows = 0
    for part in parts:
        before = index._runs
        index = index.extended([part])
        sorted_rows += sum(len(run) for run in index._runs if run not in before)
    assert sum(run.words.nbytes + run.slots.nbytes for run in index._runs) == 40 * 200_000
    assert len(index._runs) <= 4
    assert sorted_rows < 200_000 * 25  # all of them each time would be 100 times
