"""A manifest promises only what is in the cache, whatever happened to the run that wrote it."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest

import featx
from featx.cache import shard as shard_module
from featx.cache.maintenance import FeatureCache
from featx.cache.manifest import find_manifest, manifest_names
from featx.cache.space import FeatureSpace
from featx.exceptions import CacheError, CacheWriteError, DatasetError, EngineError
from featx.extraction.pipeline import Stage
from featx.importing.importer import import_features

TWO_DAYS_S = 2 * 86_400


def make_old(cache):
    """Let the shards be those of a run two days ago."""
    for path in cache.layout.spaces.rglob("*.h5"):
        old = path.stat().st_mtime - TWO_DAYS_S
        os.utime(path, (old, old))


def once(action):
    """A progress callback that does something when the run has begun, and nothing after that."""
    calls = []

    def progress(*_):
        if not calls:
            calls.append(1)
            action()

    return progress


def assert_promises_hold(cache, name):
    features = cache.features(name)
    for block in features.blocks:
        matrix = features.matrix(backbone=block.backbone, tap=block.tap)
        assert matrix.shape[0] == len(features) > 0
    assert not [f for f in cache.verify().findings if f.kind == "missing"]


def killed_run(extract, cache, photos):
    """The features of `photos`, two days old, and no dataset that has them."""
    extract([next(photos.rglob("*.jpg"))], name="one")
    extract(photos)
    cache.layout.dataset("photos").unlink()
    make_old(cache)


@pytest.mark.parametrize("older_than_s", [86_400, 0])
def test_shards_that_a_run_counts_on_outlast_a_collection(photos, extract, cache, older_than_s):
    killed_run(extract, cache, photos)
    once_done = []

    def late(done, total, _):
        if done == total and not once_done:
            once_done.append(cache.gc(older_than_s=older_than_s, dry_run=False))

    features = extract(photos, progress=late)
    assert len(features) == 12
    assert (features.report["extracted"] == 0) is (older_than_s > 0)  # else computed again
    assert_promises_hold(cache, "photos")


def test_what_a_collection_removed_as_the_run_began_is_computed_again(photos, extract, cache):
    killed_run(extract, cache, photos)
    features = extract(photos, progress=once(lambda: cache.gc(dry_run=False)))
    assert features.X.shape == (12, 16)
    assert_promises_hold(cache, "photos")


@pytest.fixture
def collected_at_the_last_moment(cache, monkeypatch):
    """All shards are removed when a writer looks for them under the lock."""
    real, done = FeatureSpace.intact, []

    def intact(space):
        if not done:
            done.append(1)
            for path in cache.layout.spaces.rglob("*.h5"):
                path.unlink()
        return real(space)

    return lambda: monkeypatch.setattr(FeatureSpace, "intact", intact)


def test_a_collection_at_the_last_moment_is_noticed(
    photos, extract, cache, collected_at_the_last_moment
):
    killed_run(extract, cache, photos)
    collected_at_the_last_moment()
    assert extract(photos).X.shape == (12, 16)
    assert_promises_hold(cache, "photos")


def test_features_that_are_removed_again_and_again_are_not_promised(
    photos, extract, cache, monkeypatch
):
    def gone(space):
        for path in cache.layout.spaces.rglob("*.h5"):
            path.unlink()
        return False

    monkeypatch.setattr(FeatureSpace, "intact", gone)
    with pytest.raises(CacheError, match="were removed 5 times while they were extracted"):
        extract(photos)
    assert manifest_names(cache.layout) == []


def test_rows_that_an_import_counts_on_outlast_a_collection(cache, collected_at_the_last_moment):
    rows = np.arange(40, dtype=np.float32).reshape(10, 4)
    import_features("texts", rows, cache=cache.root)
    cache.layout.dataset("texts").unlink()
    make_old(cache)
    collected_at_the_last_moment()
    np.testing.assert_array_equal(import_features("texts", rows, cache=cache.root).X, rows)
    assert_promises_hold(cache, "texts")


def test_rows_that_a_merge_counts_on_outlast_a_collection(tmp_path, photos, extract, cache):
    other = FeatureCache(tmp_path / "other")
    extract(photos, cache=other.root)
    killed_run(extract, cache, photos)
    cache.merge(other.root)
    cache.gc(dry_run=False)
    assert_promises_hold(cache, "photos")


def fail_with(monkeypatch, where, error):
    """Let the writing of a shard, or the step after the engine, fail."""

    def fail(*_, **__):
        raise error

    place = {"shard": (shard_module, "create"), "engine": (Stage, "keep")}[where]
    monkeypatch.setattr(*place, fail)


def disk_error(number):
    return "shard", OSError(number, os.strerror(number)), CacheWriteError


ENDS = {
    "full disk": disk_error(errno.ENOSPC),
    "broken disk": disk_error(errno.EIO),
    "too large": disk_error(errno.EFBIG),
    "engine": ("engine", EngineError("the forward pass failed"), EngineError),
    "bug": ("engine", ZeroDivisionError("a fault of featx"), ZeroDivisionError),
    "memory": ("engine", MemoryError("no memory"), MemoryError),
}


@pytest.mark.parametrize("end", ENDS)
def test_a_failed_run_leaves_a_dataset_that_opens(
    photos, extract, cache, draw_photo, monkeypatch, end
):
    where, error, raised = ENDS[end]
    before = np.array(extract(photos).X)
    for number in range(8):
        draw_photo(photos, f"red/new{number}.jpg", seed=50 + number, colour=(0, 200, 0))
    with monkeypatch.context() as patch:
        fail_with(patch, where, error)
        with pytest.raises(raised, match=str(error.args[-1])):
            extract(photos)
    assert_promises_hold(cache, "photos")
    kept = cache.features("photos")
    np.testing.assert_array_equal(kept.X, before)
    assert extract(photos).report["extracted"] == 8


def test_a_first_run_that_fails_at_once_leaves_no_dataset(photos, extract, cache, monkeypatch):
    fail_with(monkeypatch, *disk_error(errno.ENOSPC)[:2])
    with pytest.raises(CacheWriteError, match="No space left"):
        extract(photos)
    assert manifest_names(cache.layout) == []


def test_an_interrupt_keeps_the_rows_that_have_features(photos, extract, cache):
    def interrupt(done, *_):
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="of 12 images have their features"):
        extract(photos, progress=interrupt, batch_size=2)
    assert_promises_hold(cache, "photos")
    assert 0 < len(cache.features("photos")) <= 7
    pending = find_manifest(cache.layout, "photos").status == 3
    assert 5 <= pending.sum() < 12
    features = extract(photos)
    assert len(features) == 12
    assert features.report["extracted"] == int(pending.sum())


def test_an_interrupted_second_backbone_takes_nothing_from_the_first(
    photos, extract, cache, small_network
):
    before = np.array(extract(photos).X)

    def interrupt(done, *_):
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="of 12 images"):
        extract(photos, taps="max", progress=interrupt, batch_size=2)
    np.testing.assert_array_equal(cache.features("photos").X, before)
    assert_promises_hold(cache, "photos")
    both = extract(photos, taps="max")
    assert len(both) == 12
    assert [block.tap for block in cache.features("photos").blocks] == ["max", "avg"]


def test_of_two_backbones_the_one_that_fails_is_not_promised(
    photos, extract, cache, small_network, tmp_path, monkeypatch
):
    twin = tmp_path / "twin.keras"
    twin.write_bytes(small_network.read_bytes())
    real = Stage.keep

    def keep(stage, *args):
        if stage.spec.backbone == "file:twin":
            raise EngineError("the second network fails")
        return real(stage, *args)

    monkeypatch.setattr(Stage, "keep", keep)
    with pytest.raises(EngineError, match="the second network fails"):
        extract(photos, backbone=[f"file:{small_network}", f"file:{twin}"], batch_size=2)
    if manifest_names(cache.layout):
        assert_promises_hold(cache, "photos")
        assert [b.backbone for b in cache.features("photos").blocks] == ["file:small"]


def test_a_run_in_which_nothing_can_be_read_keeps_the_dataset(photos, extract, cache):
    before = np.array(extract(photos).X)
    for path in photos.rglob("*.jpg"):
        path.write_bytes(b"no image")
    with pytest.raises(DatasetError, match="none of the 12 images"):
        extract(photos)
    np.testing.assert_array_equal(cache.features("photos").X, before)


def test_two_folders_of_one_name_at_once_are_two_datasets(
    photos, extract, cache, tmp_path, draw_photo
):
    other = tmp_path / "elsewhere" / "photos"
    draw_photo(other, "green/1.jpg", seed=5, colour=(0, 255, 0))
    draw_photo(other, "red/1.jpg", seed=6, colour=(255, 0, 0))
    late = extract(photos, progress=once(lambda: extract(other)))
    assert len(late) == 12
    assert len(cache.features("photos")) == 2
    assert late.name.startswith("photos-")
    assert manifest_names(cache.layout) == ["photos", late.name]
    assert extract(photos).name == late.name
    assert extract(other).name == "photos"


def test_a_chosen_name_does_not_replace_what_came_in_meanwhile(
    photos, extract, cache, tmp_path, draw_photo
):
    other = tmp_path / "elsewhere" / "photos"
    draw_photo(other, "green/1.jpg", seed=5, colour=(0, 255, 0))
    with pytest.raises(DatasetError, match="another run wrote a dataset 'both' of other images"):
        extract(photos, name="both", progress=once(lambda: extract(other, name="both")))
    assert len(cache.features("both")) == 1
    assert extract(photos, name="again").report["extracted"] == 0


def test_arrays_do_not_replace_other_arrays_that_came_in_meanwhile(extract, cache):
    def arrays(seed):
        pixels = np.random.default_rng(seed).integers(0, 256, (4, 20, 20, 3), dtype=np.uint8)
        return featx.ImageDataset.from_arrays(pixels, list("abab"))

    with pytest.raises(DatasetError, match="another run wrote a dataset 'arrays'"):
        extract(arrays(0), progress=once(lambda: extract(arrays(1))))
    assert len(extract(arrays(1))) == 4


def test_imported_features_are_not_replaced_by_images(photos, extract, cache):
    rows = np.arange(40, dtype=np.float32).reshape(10, 4)
    import_features("texts", rows, cache=cache.root)
    with pytest.raises(DatasetError, match="has a dataset 'texts' of imported features"):
        extract(photos, name="texts")
    np.testing.assert_array_equal(cache.features("texts").X, rows)
