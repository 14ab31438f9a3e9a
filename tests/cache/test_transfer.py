from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from featx.cache import transfer
from featx.cache.maintenance import FeatureCache
from featx.cache.manifest import find_manifest, same_manifest, write_manifest
from featx.cache.space import FeatureSpace
from featx.exceptions import CacheError, StoreError

pytest.importorskip("obstore")
from object_server import serving


@pytest.fixture
def server():
    with serving(page=3) as server:
        yield server


@pytest.fixture(params=["s3", "file"])
def url(request, server, tmp_path):
    """The address of an empty store."""
    return "s3://bucket/team/cache" if request.param == "s3" else (tmp_path / "share").as_uri()


def more_rows(kit):
    """The rows of the cache, and 8 more."""
    return tuple(map(np.concatenate, zip(kit.rows(12), kit.rows(8, seed=9), strict=True)))


def test_a_cache_goes_through_a_store_whole_and_once(kit, cache, url, tmp_path):
    keys, values = kit.rows(12)
    pushed = cache.push(url)
    assert (pushed.files, pushed.shards_present, pushed.skipped) == (5, 0, ())
    assert pushed.address.rstrip("/") == url
    other = FeatureCache(tmp_path / "other")
    pulled = other.pull(url)
    assert (pulled.files, pulled.size_bytes) == (5, pushed.size_bytes)
    assert [(d.name, d.outcome) for d in pulled.datasets] == [("photos", "copied")]
    kit.check(other, keys, values)
    assert other.verify().ok
    assert same_manifest(
        find_manifest(other.layout, "photos"), find_manifest(cache.layout, "photos")
    )
    before = kit.state(other)
    for again in (cache.push(url), other.pull(url), other.push(url)):
        assert (again.files, again.size_bytes, again.shards_present) == (0, 0, 3)
        assert [d.outcome for d in again.datasets] == ["present"]
    assert kit.state(other) == before


def test_only_what_is_new_is_copied(kit, cache, url, tmp_path):
    keys, values = more_rows(kit)
    cache.push(url)
    other = FeatureCache(tmp_path / "other")
    other.pull(url)
    FeatureSpace(cache.layout, kit.spec).add(keys[12:], {"avg": values[12:]}, {})
    write_manifest(cache.layout, kit.dataset("more", keys))
    for copied in (cache.push(url), other.pull(url)):
        assert (copied.files, copied.shards_present) == (2, 3)
    kit.check(other, keys, values)


def test_rows_that_are_here_under_other_names_are_not_fetched(kit, cache, url, tmp_path):
    keys, values = kit.rows(12)
    cache.push(url)
    other = kit.fill(tmp_path / "other", keys, values, at_once=12)
    pulled = other.pull(url)
    assert (pulled.files, pulled.shards_present) == (1, 3)
    assert len(kit.shards(other)) == 1


def test_a_name_that_is_taken_gets_a_number_on_either_side(kit, cache, url, tmp_path):
    keys, values = kit.rows(12, seed=1)
    cache.push(url)
    other = kit.fill(tmp_path / "other", keys, values)
    write_manifest(other.layout, kit.dataset("photos", keys))
    for _ in range(2):
        (dataset,) = other.push(url).datasets
        assert (dataset.name, dataset.stored_as) == ("photos", "photos-2")
    names = [(d.name, d.stored_as) for d in other.pull(url).datasets]
    assert sorted(names) == [("photos", "photos-2"), ("photos-2", "photos")]
    assert other.datasets() == ["photos", "photos-2"]


def test_damage_is_left_out_and_named(kit, cache, url, tmp_path):
    first, second, _ = kit.shards(cache)
    kit.flip(first, -5, first.read_bytes())
    pushed = cache.push(url)
    assert [finding.path for finding in pushed.skipped] == [first]
    assert pushed.files == 4
    stored = transfer.Store.below(url)
    second.write_bytes(second.read_bytes()[:-3])
    name = f"spaces/{kit.spec.name}/shards/{second.name}"
    stored.write(name, second)
    other = FeatureCache(tmp_path / "other")
    (finding,) = other.pull(url).skipped
    assert finding.path.name == second.name
    assert "featx-pull" not in str(finding.path) + finding.reason
    assert len(kit.shards(other)) == 1


def test_a_space_without_its_specification_is_left_out(kit, cache, server, tmp_path):
    cache.push("s3://bucket/c")
    name = f"spaces/{kit.spec.name}/spec.json"
    server.objects.pop(f"c/{name}")
    (finding,) = FeatureCache(tmp_path / "other").pull("s3://bucket/c").skipped
    assert (finding.kind, finding.path.name) == ("spec", "spec.json")
    cache.push("s3://bucket/c")
    server.dead(f"c/{name}", 403)
    with pytest.raises(StoreError, match="access denied"):
        FeatureCache(tmp_path / "third").pull("s3://bucket/c")


def test_no_dataset_is_in_the_store_before_its_features(kit, cache, server, tmp_path):
    """Stopped after any number of files, a store has no dataset without features."""
    keys, values = kit.rows(12)
    for limit in range(8):
        written = []

        def misbehave(method, name, written=written, limit=limit):
            if method == "PUT":
                written.append(name)
            return 403 if method == "PUT" and len(written) > limit else None

        server.objects.clear()
        server.misbehave = misbehave
        try:
            cache.push("s3://bucket/c")
        except StoreError as error:
            assert "access denied" in str(error)
        if any(name.startswith("c/datasets") for name in server.objects):
            other = FeatureCache(tmp_path / f"other-{limit}")
            other.pull("s3://bucket/c")
            kit.check(other, keys, values)
        server.misbehave = lambda method, name: None
        cache.push("s3://bucket/c")
        assert len(server.objects) == 5


def test_a_pull_that_was_stopped_goes_on(kit, cache, server, tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "_BATCH_BYTES", 1)
    cache.push("s3://bucket/c")
    last = max(name for name in server.objects if "shards" in name)
    server.dead(last, 403)
    other = FeatureCache(tmp_path / "other")
    with pytest.raises(StoreError, match="access denied"):
        other.pull("s3://bucket/c")
    assert len(kit.shards(other)) == 2
    assert other.datasets() == []
    server.misbehave = lambda method, name: None
    assert other.pull("s3://bucket/c").files == 2
    assert other.datasets() == ["photos"]


def test_features_that_come_while_a_pull_is_at_work_are_not_missed(kit, cache, server, tmp_path):
    keys, values = more_rows(kit)
    cache.push("s3://bucket/c")
    FeatureSpace(cache.layout, kit.spec).add(keys[12:], {"avg": values[12:]}, {})
    write_manifest(cache.layout, replace(kit.dataset("photos", keys), root="/elsewhere"))
    other, asked = FeatureCache(tmp_path / "other"), []

    def misbehave(method, name):
        # The dataset is replaced between the listing and its reading.
        if method == "GET" and name.endswith("photos.h5") and not asked:
            asked.append(name)
            del server.objects[name]
            cache.push("s3://bucket/c")

    server.misbehave = misbehave
    other.pull("s3://bucket/c")
    kit.check(other, keys, values)
    assert len(find_manifest(other.layout, "photos")) == 20


@pytest.mark.parametrize("address", ["https://host/cache", "cache", "file:cache", "s3:"])
def test_what_is_no_address_of_a_store_is_an_error(cache, address):
    with pytest.raises(CacheError, match="expected the address of a cache in a store"):
        cache.push(address)


def test_a_store_without_a_cache_is_an_error(cache, url):
    with pytest.raises(CacheError, match="no cache at"):
        cache.pull(url)


def test_the_command_says_what_was_copied(cache, url, featx_command, tmp_path):
    done = featx_command("cache", "push", url, "--cache", cache.root)
    assert "5 files copied" in done.stdout
    assert "dataset photos: copied" in done.stdout
    done = featx_command("cache", "pull", url, "--cache", tmp_path / "other", "--json")
    report = json.loads(done.stdout)
    assert (report["files"], report["shards_present"]) == (5, 0)
    done = featx_command("cache", "pull", url, "--cache", tmp_path / "other")
    assert "0 files copied (0 B), 3 shards were here" in done.stdout
