"""Features come in batches within a budget; what a disk changed is found by whoever reads it."""

from __future__ import annotations

import json
import os

import h5py
import numpy as np
import pytest

from featx.cache import records
from featx.cache.features import Features
from featx.cache.manifest import write_manifest
from featx.cache.nearest import nearest
from featx.cache.pack import pack_dataset
from featx.cache.shard import Shard, read_shard
from featx.cache.space import FeatureSpace
from featx.exceptions import DatasetError, FeaturesError
from featx.importing.feature_files import read_feature_file
from featx.importing.importer import import_features


@pytest.fixture
def later(monkeypatch):
    """Let readers take the files for old, which a test has no time to wait for."""
    monkeypatch.setattr(records, "is_settled", lambda stamp, looked_ns: True)


def flip_feature(path, spec, row=0):
    """Change one bit of a feature in place, and keep size, inode and modification time."""
    array = read_shard(path, spec.digest).taps["avg"]
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(array.offset + row * array.shape[1] * 4 + 1)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def count_checks(monkeypatch):
    seen = []
    real = Shard.check
    monkeypatch.setattr(Shard, "check", lambda shard: (seen.append(shard.path), real(shard))[1])
    return seen


def test_reading_a_damaged_shard_is_an_error_that_names_file_rows_and_command(kit, cache):
    bad = kit.shards(cache)[1]
    flip_feature(bad, kit.spec)
    features = Features.open("photos", cache=cache.root)
    expected = f"4 of 12 images have no features.*{bad.name}.*featx extract photos -b tiny"
    with pytest.raises(FeaturesError, match=expected):
        features.matrix()
    for shuffle in (False, True):
        with pytest.raises(FeaturesError, match=bad.name):
            list(features.batches(batch_size=2, shuffle=shuffle))
    with pytest.raises(FeaturesError, match=bad.name):
        features.take(np.arange(12))


def test_rows_of_damaged_shards_are_computed_again_and_then_used(kit, cache, caplog):
    keys, values = kit.rows(12)
    bad = kit.shards(cache)[0]
    flip_feature(bad, kit.spec)
    assert kit.refill(cache, keys, values) == 4
    assert bad.name in caplog.text
    assert "computes its rows again" in caplog.text
    kit.check(cache, keys, values)
    assert cache.repair().removed[0].path == bad
    kit.check(cache, keys, values)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_number_that_is_not_finite_is_damage_even_with_its_digest(kit, cache, value, caplog):
    keys, values = kit.rows(12)
    values[[2, 9], 1] = value
    other = kit.fill(cache.root.parent / "other", keys, values, at_once=12)
    write_manifest(other.layout, kit.dataset("photos", keys))
    with pytest.raises(FeaturesError, match="12 of 12 images have no features"):
        Features.open("photos", cache=other.root).matrix()
    assert "/features/avg holds NaN or infinity in 2 of 12 rows, the first is 2" in caplog.text
    assert kit.shards(other)[0].name in caplog.text


def test_damaged_keys_are_found_when_a_space_is_opened(kit, cache):
    keys, _ = kit.rows(12)
    path = kit.shards(cache)[0]
    array = read_shard(path, kit.spec.digest).keys
    with path.open("r+b") as file:  # the first row twice: the second key is lost
        file.seek(array.offset)
        first = file.read(32)
        file.write(first)
    space = FeatureSpace(cache.layout, kit.spec)
    assert list(space.damaged) == [path]
    assert np.count_nonzero(space.has(["avg"], keys)) == 8


def test_each_shard_is_read_for_it_once_whatever_process_asks(kit, cache, later, monkeypatch):
    keys, values = kit.rows(12)
    seen = count_checks(monkeypatch)
    kit.check(cache, keys, values)
    assert sorted(seen) == kit.shards(cache)
    for _ in range(2):
        kit.check(cache, keys, values)
        assert FeatureSpace(cache.layout, kit.spec).has(["avg"], keys).all()
    assert len(seen) == 3
    os.utime(kit.shards(cache)[1])  # as a copy or a restored backup has it
    kit.check(cache, keys, values)
    assert seen[3:] == [kit.shards(cache)[1]]


def test_only_shards_whose_rows_are_asked_for_are_read(kit, cache, monkeypatch):
    keys, values = kit.rows(12)
    seen = count_checks(monkeypatch)
    space = FeatureSpace(cache.layout, kit.spec)
    np.testing.assert_array_equal(space.gather("avg", keys[5:6]), values[5:6])
    assert len(seen) == 1


def test_a_change_under_the_same_size_inode_and_modification_time_is_found(kit, cache, later):
    keys, values = kit.rows(12)
    kit.check(cache, keys, values)
    features = Features.open("photos", cache=cache.root)
    features.take(np.arange(12))
    bad = kit.shards(cache)[2]
    flip_feature(bad, kit.spec)
    with pytest.raises(FeaturesError, match=bad.name):  # by the process that had read it
        features.take(np.arange(12))
    assert kit.refill(cache, keys, values) == 4  # and by another


def test_a_file_that_changed_just_now_is_checked_again(kit, cache):
    keys, values = kit.rows(12)
    kit.check(cache, keys, values)
    assert not cache.layout.checked.exists()


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "version"])
def test_a_damaged_list_of_checked_shards_is_not_believed(kit, cache, later, monkeypatch, damage):
    keys, values = kit.rows(12)
    kit.check(cache, keys, values)
    (path,) = cache.layout.checked.iterdir()
    text = path.read_text()
    record = json.loads(text)
    record["version"] = 2
    changed = {
        "cut": text[:-20],
        "flip": text.replace('"version": 1', '"version": 3'),
        "empty": "",
        "version": json.dumps(record),
    }
    path.write_text(changed[damage])
    seen = count_checks(monkeypatch)
    kit.check(cache, keys, values)
    assert len(seen) == 3
    assert path.read_text() == text


def test_a_pack_is_made_of_shards_that_are_read_again(kit, cache, later, tmp_path, monkeypatch):
    # Bits change without a write that the file system knows of.
    monkeypatch.setattr(records, "stamp_of", lambda status: (0, 0, 0, 0, 0))
    features = Features.open("photos", cache=cache.root)
    features.matrix()
    seen = count_checks(monkeypatch)
    pack_dataset(features, tmp_path / "sound.npz")
    assert sorted(seen) == kit.shards(cache)
    bad = kit.shards(cache)[1]
    flip_feature(bad, kit.spec)
    Features.open("photos", cache=cache.root).matrix()
    for suffix in ("h5", "npz", "safetensors"):
        target = tmp_path / f"photos.{suffix}"
        with pytest.raises(FeaturesError, match=f"4 of 12 images.*{bad.name}"):
            pack_dataset(Features.open("photos", cache=cache.root), target)
        assert not target.exists()


def test_what_is_remembered_goes_with_its_shards(kit, cache, later):
    keys, values = kit.rows(12)
    kit.check(cache, keys, values)
    (path,) = cache.layout.checked.iterdir()
    cache.gc(older_than_s=0.0, dry_run=False)
    kit.check(cache, keys, values)
    assert list(json.loads(path.read_text())["shards"]) == [p.name for p in kit.shards(cache)]
    cache.layout.dataset("photos").unlink()
    cache.gc(older_than_s=0.0, dry_run=False)
    assert not path.exists()


def bring_in(path, cache):
    table = read_feature_file(path)
    import_features("packed", table.rows, y=table.y, cache=cache)


@pytest.mark.parametrize("element", ["X", "y"])
def test_a_damaged_pack_is_not_imported(kit, cache, tmp_path, element):
    path = tmp_path / "packed.h5"
    pack_dataset(Features.open("photos", cache=cache.root), path)
    bring_in(path, tmp_path / "sound")
    with h5py.File(path, "r") as file:
        offset = file[element].id.get_offset()
    whole = path.read_bytes()
    kit.flip(path, offset + 5, whole)
    with pytest.raises(DatasetError, match=f"packed.h5': .*'{element}' do not have the digest"):
        bring_in(path, tmp_path / "other")
    assert not (tmp_path / "other").exists()


# Batches


@pytest.fixture
def features(layout, space, kit):
    """1000 rows that lie scattered in 7 shards; the first feature is the number of the row."""
    keys, values = kit.rows(1000, d=8)
    values[:, 0] = np.arange(1000)
    for part in np.array_split(np.random.default_rng(0).permutation(1000), 7):
        space.add(keys[part], {"avg": values[part]}, {})
    return Features(kit.dataset("x", keys), [space])


def read(features, **options):
    batches = list(features.batches(**options))
    return [len(rows) for _, rows in batches], *map(np.concatenate, zip(*batches, strict=True))


def test_in_order_every_row_comes_with_its_number(features):
    sizes, X, rows = read(features, batch_size=300)
    assert sizes == [300, 300, 300, 100]
    assert rows.tolist() == list(range(1000))
    np.testing.assert_array_equal(X, features.X)


def test_shuffled_every_row_comes_once_an_epoch_and_the_seed_decides(features):
    options = {"batch_size": 16, "shuffle": True, "max_ram_bytes": 200 * 32}
    sizes, X, rows = read(features, seed=1, **options)
    assert sorted(rows.tolist()) == list(range(1000))
    assert set(sizes[:-1]) == {16}
    np.testing.assert_array_equal(X, features.X[rows])
    np.testing.assert_array_equal(rows, read(features, seed=1, **options)[2])
    assert not np.array_equal(rows, read(features, seed=2, **options)[2])
    assert abs(np.corrcoef(rows, np.arange(1000))[0, 1]) < 0.2


def test_no_read_is_larger_than_half_the_budget(features, monkeypatch):
    largest = 0
    gather = FeatureSpace.gather

    def measure(self, tap, keys):
        nonlocal largest
        largest = max(largest, len(keys) * 32)
        return gather(self, tap, keys)

    monkeypatch.setattr(FeatureSpace, "gather", measure)
    read(features, batch_size=8, shuffle=True, max_ram_bytes=6400)
    assert largest <= 3200


def test_a_budget_below_two_batches_is_refused(features):
    with pytest.raises(FeaturesError, match="two batches of 100 rows need 6,400 bytes, more than"):
        next(features.batches(batch_size=100, max_ram_bytes=6000))
    with pytest.raises(FeaturesError, match="positive batch_size"):
        next(features.batches(batch_size=0))


def test_neighbours_are_read_as_they_lie_and_found_by_row_path_or_features(kit, tmp_path):
    keys, values = kit.rows(700)
    cache = kit.fill(tmp_path / "cache", keys, values, at_once=350)
    chosen = np.random.default_rng(3).permutation(700)[:600]
    chosen[500:] = np.arange(100)  # long runs, scattered rows, and images that come twice
    write_manifest(cache.layout, kit.dataset("some", keys[chosen]))
    features = Features.open("some", cache=cache.root)
    X = values[chosen]
    expected = nearest(X[:40], X, 5, exclude=np.arange(40))
    rows, similarities = features.neighbours(np.arange(40), 5)
    np.testing.assert_array_equal(rows, expected.rows)
    np.testing.assert_array_equal(similarities, expected.values)
    single = features.neighbours(features.paths[7], 5)
    np.testing.assert_array_equal(single.rows, expected.rows[7])
    other = features.neighbours(X[7], 5)
    assert other.rows.shape == (5,)
    assert other.values[0] == 1
    with pytest.raises(FeaturesError, match="'some' has no image 'lost.jpg'; its paths are such"):
        features.neighbours("lost.jpg")
    with pytest.raises(FeaturesError, match="has rows 0 to 599, received 600"):
        features.neighbours(600)
