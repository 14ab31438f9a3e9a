from __future__ import annotations

import hashlib
import json
import os
import time
from dataclasses import replace

import h5py
import numpy as np
import pytest

from featx.cache.hdf5 import tag
from featx.cache.layout import CacheLayout
from featx.cache.maintenance import FeatureCache
from featx.cache.manifest import Block, read_manifest, same_manifest, write_manifest
from featx.cache.shard import read_shard
from featx.cache.space import FeatureSpace, read_spec
from featx.exceptions import CacheError, CacheFormatError, CacheWriteError


def kinds(report):
    return [finding.kind for finding in report.findings]


def test_a_sound_cache_has_no_findings_and_is_not_touched(kit, cache):
    before = kit.state(cache)
    report = cache.verify()
    assert report.ok
    assert (report.files, report.rows) == (5, 12)
    assert report.size_bytes == sum(len(b) for p, (b, _) in before.items() if p.suffix == ".h5")
    assert kit.state(cache) == before


def test_a_cache_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(CacheError, match="no cache at .*expected a folder with spaces/"):
        FeatureCache(tmp_path / "nowhere").verify()


EVERY = [pytest.param(1, marks=pytest.mark.slow), 4]
"""Of how many positions one is tried."""


@pytest.mark.parametrize("share", EVERY)
def test_every_flipped_byte_of_a_shard_is_found_or_harmless(kit, cache, share):
    """Bytes between the arrays mean nothing; those of the arrays and of HDF5's headers do."""
    path = kit.shards(cache)[0]
    whole = path.read_bytes()
    shard = read_shard(path, kit.spec.digest)
    arrays = (shard.keys, shard.taps["avg"])
    inside = np.zeros(len(whole), np.bool_)
    for array in arrays:
        inside[array.offset : array.offset + array.map().nbytes] = True
    expected = [np.array(array.map()) for array in arrays]
    found = 0
    positions = [*np.flatnonzero(inside)[:: 4 * share], *range(0, len(whole), 17 * share)]
    for position in positions:
        kit.flip(path, position, whole)
        report = cache.verify(workers=1)
        found += not report.ok
        if not report.ok:
            assert report.findings[0].path == path
            assert kinds(report)[-1] == "missing"
        else:
            assert not inside[position]
            seen = read_shard(path, kit.spec.digest)
            for array, values in zip((seen.keys, seen.taps["avg"]), expected, strict=True):
                np.testing.assert_array_equal(array.map(), values)
    assert found > (inside.sum() // 4 + 20) // share, (found, len(positions))


@pytest.mark.parametrize("share", EVERY)
def test_every_flipped_byte_of_a_manifest_is_found_or_harmless(kit, cache, share):
    path = cache.layout.dataset("photos")
    manifest = read_manifest(path)
    whole = path.read_bytes()
    found = 0
    for position in range(0, len(whole), 97 * share):
        kit.flip(path, position, whole)
        report = cache.verify(workers=1)
        if report.ok:
            assert same_manifest(read_manifest(path), manifest)
        else:
            assert [(f.path, f.kind) for f in report.findings] == [(path, "manifest")]
            found += 1
    assert found > 40 // share


@pytest.mark.parametrize("where", ["superblock", "header", "key", "features", "cut"])
def test_a_damaged_shard_is_removed_and_its_rows_are_computed_again(kit, cache, where):
    keys, values = kit.rows(12)
    path = kit.shards(cache)[1]
    whole = path.read_bytes()
    shard = read_shard(path, kit.spec.digest)
    lost = np.array(shard.keys.map())
    position = {
        "superblock": 10,
        "header": 70,
        "key": shard.keys.offset + 3,
        "features": shard.taps["avg"].offset + 5,
        "cut": 0,
    }[where]
    kit.flip(path, position, whole)
    if where == "cut":
        path.write_bytes(whole[:-9])
    before = kit.state(cache)
    dry = cache.repair(dry_run=True)
    assert kit.state(cache) == before
    report = cache.repair()
    assert replace(dry, dry_run=False) == report
    assert [finding.path for finding in report.removed] == [path]
    assert set(before) - set(kit.state(cache)) == {path.relative_to(cache.root)}
    (missing,) = report.missing
    assert missing.rows == 4
    assert missing.next_step == "featx extract photos -b tiny (with the options of before)"
    of = [row for row in range(12) if (lost == keys[row]).all(axis=1).any()]
    assert list(missing.examples) == [f"a/{row}.jpg" for row in of]
    assert kit.refill(cache, keys, values) == 4
    assert cache.verify().ok
    assert not cache.repair().removed


def test_a_damaged_manifest_is_removed_and_the_folder_to_extract_is_named(kit, cache):
    path = cache.layout.dataset("photos")
    whole = path.read_bytes()
    with h5py.File(path) as file:
        position = file["key"].id.get_offset()
    kit.flip(path, position + 1, whole)
    report = cache.repair()
    (finding,) = report.removed
    assert finding.kind == "manifest"
    assert "the features stay, and `featx extract /photos -b tiny` makes it anew" in (
        finding.next_step
    )
    assert not path.exists()
    assert cache.verify().rows == 12


def test_a_manifest_of_which_nothing_can_be_read_is_removed_by_its_name(cache):
    path = cache.layout.dataset("photos")
    path.write_bytes(path.read_bytes()[:200])
    (finding,) = cache.repair().removed
    assert "`featx extract photos` makes it anew" in finding.next_step


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "flipped"])
def test_a_damaged_specification_is_removed_and_the_next_extraction_writes_it_again(
    kit, cache, text
):
    path = cache.layout.spaces / kit.spec.name / "spec.json"
    good = path.read_text()
    path.write_text(good.replace('"tf"', '"tg"') if text == "flipped" else text)
    (finding,) = cache.verify().findings
    assert (finding.path, finding.kind, finding.rows) == (path, "spec", 12)
    assert finding.next_step.endswith(
        "featx extract photos -b tiny (with the options of before) writes it again, and computes "
        "nothing"
    )
    assert [found.path for found in cache.repair().removed] == [path]
    assert kinds(cache.verify()) == ["no_spec"]
    keys, values = kit.rows(12)
    assert kit.refill(cache, keys, values) == 0  # its shards are used as they are
    assert path.read_text() == good
    assert cache.verify().ok


def test_a_space_that_was_renamed_is_named_and_left(kit, cache):
    folder = cache.layout.spaces / kit.spec.name
    folder.rename(folder.with_name("old-0123456789ab"))
    before = kit.state(cache)
    report = cache.repair()
    assert kit.state(cache) == before
    assert [finding.kind for finding in report.left] == ["misnamed"]
    assert [finding.rows for finding in report.missing] == [12]


def test_a_manifest_that_was_renamed_is_named_and_left(cache):
    path = cache.layout.dataset("photos")
    path.rename(cache.layout.dataset("other"))
    (finding,) = cache.repair().left
    assert finding.kind == "misnamed"
    assert finding.next_step == "rename it to photos.h5"


def test_files_of_others_and_of_later_versions_are_named_and_left(kit, cache):
    space = cache.layout.spaces / kit.spec.name
    strays = {
        cache.layout.datasets / "notes.txt": "foreign",
        cache.layout.datasets / "mine.h5": "foreign",
        cache.layout.datasets / "later.h5": "later",
        cache.layout.spaces / "README": "foreign",
        space / "notes": "foreign",
        space / "shards" / "x.npy": "foreign",
        space / "shards" / "mine.h5": "foreign",
        space / "shards" / f"{'0' * 32}.h5": "foreign",
        space / "shards" / f"{'1' * 32}.h5": "later",
    }
    whole = kit.shards(cache)[2].read_bytes()
    (cache.layout.datasets / ".nfs0001").write_text("open somewhere")
    for path in strays:
        path.write_text("mine")
    for name in ("mine", "later"):
        with h5py.File(cache.layout.datasets / f"{name}.h5", "w") as file:
            if name == "later":
                tag(file, "featx-manifest", 3)
            else:
                file.attrs["type"] = "text of any length, which featx does not write"
    other = FeatureSpace(CacheLayout(cache.root / "else"), replace(kit.spec, preprocessing="torch"))
    keys, values = kit.rows(2)
    elsewhere = other.add(keys, {"avg": values}, {})
    (space / "shards" / f"{'0' * 32}.h5").write_bytes(elsewhere.read_bytes())
    later = space / "shards" / f"{'1' * 32}.h5"
    later.write_bytes(whole)
    with h5py.File(later, "a") as file:
        file.attrs.modify("version", np.int64(2))
    before = kit.state(cache)
    report = cache.repair()
    assert {finding.path: finding.kind for finding in report.left} == strays
    assert not report.removed
    assert kit.state(cache) == before


def test_a_specification_of_a_later_version_is_left(kit, cache):
    path = cache.layout.spaces / kit.spec.name / "spec.json"
    data = {**json.loads(path.read_text()), "crop": "centre"}
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(text.encode()).hexdigest()
    folder = cache.layout.spaces / f"tiny-{digest[:12]}"
    folder.mkdir()
    (folder / "spec.json").write_text(json.dumps(data, indent=2))
    (finding,) = cache.repair().left
    assert (finding.kind, finding.path) == ("later", folder / "spec.json")
    assert (folder / "spec.json").exists()


def test_only_old_files_in_tmp_are_leftovers(cache):
    cache.layout.tmp.mkdir(exist_ok=True)
    old, new = cache.layout.tmp / "old.h5", cache.layout.tmp / "new.h5"
    for path in (old, new):
        path.write_text("half")
    hours_ago = time.time() - 7300
    os.utime(old, (hours_ago, hours_ago))
    assert [finding.kind for finding in cache.repair().removed] == ["leftover"]
    assert not old.exists()
    assert new.exists()


def test_images_without_features_are_counted_with_their_copies(kit, cache):
    keys, _ = kit.rows(12)
    more, _ = kit.rows(2, seed=5)
    twice = np.concatenate([keys[:2], more, more[:1]])
    status = np.array([0, 0, 0, 0, 2], np.uint8)
    blocks = (Block("tiny", "avg", kit.spec.name), Block("tiny", "max", kit.spec.name))
    write_manifest(cache.layout, kit.dataset("more", twice, status=status, blocks=blocks))
    avg, greatest = cache.verify().findings
    assert (avg.rows, avg.examples) == (3, ("a/2.jpg", "a/3.jpg", "a/4.jpg"))
    assert "3 of 5 images have no features of tiny avg" in avg.reason
    assert greatest.rows == 5
    assert greatest.next_step.startswith("featx extract more -b tiny --tap max")


def test_failed_images_need_no_features(kit, cache):
    keys, _ = kit.rows(12)
    status = np.array([0] * 11 + [1], np.uint8)
    key = keys.copy()
    key[11] = 0
    write_manifest(cache.layout, kit.dataset("photos", key, status=status))
    assert cache.verify().ok


@pytest.mark.parametrize("width", [3, 5])
def test_rows_of_another_width_or_type_are_found(kit, cache, width):
    space = FeatureSpace(cache.layout, kit.spec)
    keys, values = kit.rows(2, seed=3, d=width)
    path = space.add(keys, {"avg": values}, {})
    (finding,) = cache.verify().findings
    assert (finding.path, finding.kind) == (path, "shard")
    assert f"'avg' has {width} values a row, in other shards 4" in finding.reason


def test_a_file_out_of_reach_is_no_damage(kit, cache, monkeypatch):
    path = kit.shards(cache)[0]
    real = type(path).open

    def fail(self, *args, **kwargs):
        if self == path:
            raise OSError(5, "Input/output error")
        return real(self, *args, **kwargs)

    monkeypatch.setattr(type(path), "open", fail)
    report = cache.repair()
    assert [(finding.path, finding.kind) for finding in report.left] == [(path, "unreadable")]
    assert path.exists()


def test_a_manifest_written_anew_meanwhile_is_not_removed(cache, monkeypatch):
    path = cache.layout.dataset("photos")
    whole = path.read_bytes()
    path.write_bytes(b"")
    from featx.cache import repair

    real = repair.verify_cache

    def verify_and_then_extract(*args, **kwargs):
        report = real(*args, **kwargs)
        path.write_bytes(whole)
        return report

    monkeypatch.setattr(repair, "verify_cache", verify_and_then_extract)
    assert cache.repair().removed == ()
    assert path.read_bytes() == whole


def test_a_shard_that_moves_to_another_while_it_is_verified_is_not_missing(kit, cache, monkeypatch):
    from featx.cache import repair

    real, path = repair.read_shard, kit.shards(cache)[0]

    def replace_it(opened, digest):
        if opened == path and path.exists():
            path.rename(path.with_name(f"{'f' * 32}.h5"))
        return real(opened, digest)

    monkeypatch.setattr(repair, "read_shard", replace_it)
    report = cache.verify(workers=1)
    assert report.ok
    assert report.rows == 12


def test_a_file_that_cannot_be_removed_is_named(kit, cache, monkeypatch):
    path = kit.shards(cache)[0]
    path.write_bytes(b"")

    def refuse(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(path), "unlink", refuse)
    with pytest.raises(CacheWriteError, match=f"{path.name}.*change its permissions"):
        cache.repair()


def test_progress_counts_files_and_findings(kit, cache):
    seen = []
    kit.shards(cache)[0].write_bytes(b"")
    cache.verify(progress=lambda *numbers: seen.append(numbers))
    assert seen[-1] == (4, 4, 2)
    assert [done for done, _, _ in seen] == [1, 2, 3, 4]


def test_the_small_network_computes_exactly_the_lost_rows(
    kit, photos, draw_photo, small_network, tmp_path
):
    import featx

    options = {"backbone": f"file:{small_network}", "cache": tmp_path / "cache"}
    before = np.array(featx.extract(photos, **options).X)
    cache = FeatureCache(tmp_path / "cache")
    (path,) = cache.root.rglob("shards/*.h5")
    kit.flip(path, path.read_bytes().rindex(before[3].tobytes()) + 2, path.read_bytes())
    report = cache.repair()
    assert report.missing[0].rows == 12
    again = featx.extract(photos, **options)
    assert again.report["extracted"] == 12
    np.testing.assert_array_equal(again.X, before)
    (spec_path,) = cache.root.rglob("spec.json")
    spec_path.write_text("{")
    with pytest.raises(CacheFormatError, match=r"spec\.json"):
        featx.extract(photos, **options)
    cache.repair()
    draw_photo(photos, "red/new.jpg", seed=77, colour=(0, 200, 0))
    rebuilt = featx.extract(photos, **options)
    assert (rebuilt.report["cached"], rebuilt.report["extracted"]) == (12, 1)
    assert read_spec(spec_path.parent) == again.spec()
    assert cache.verify().ok


def test_a_space_that_no_dataset_uses_and_that_has_no_specification_is_for_gc(kit, cache):
    (cache.layout.spaces / kit.spec.name / "spec.json").unlink()
    cache.layout.dataset("photos").unlink()
    (finding,) = cache.repair().left
    assert finding.next_step == "no dataset uses it, and `featx cache gc` removes its features"
    cache.gc(older_than_s=0, dry_run=False)
    assert cache.verify().ok


@pytest.mark.parametrize("damage", ["shard", "manifest", "spec"])
def test_imported_features_are_to_be_imported_again(tmp_path, kit, damage):
    from featx.cache.datasets import rename_dataset
    from featx.importing.importer import import_features

    cache = FeatureCache(tmp_path / "cache")
    _, values = kit.rows(5)
    expected = np.array(import_features("reviews", values, cache=cache.root).X)
    rename_dataset(cache.layout, "reviews", "all reviews")
    path, what = {
        "shard": (next(cache.root.rglob("shards/*.h5")), values[3].tobytes()),
        "manifest": (cache.layout.dataset("all reviews"), b"row:000003"),
        "spec": (next(cache.root.rglob("spec.json")), b"reviews"),
    }[damage]
    whole = path.read_bytes()
    kit.flip(path, whole.rindex(what), whole)
    report = cache.repair()
    assert [finding.kind for finding in report.removed] == [damage]
    steps = [finding.next_step for finding in (*report.removed, *report.missing)]
    assert any("featx import reviews FILE" in step for step in steps)
    assert not any("featx extract" in step for step in steps)
    if damage == "shard":
        assert report.missing[0].reason.startswith("5 of 5 rows have no features of import:reviews")
        assert report.missing[0].next_step.startswith("import the same features again: ")
    import_features("reviews", values, cache=cache.root)
    assert cache.verify().ok
    np.testing.assert_array_equal(cache.features("reviews").X, expected)
