from __future__ import annotations

import json
import os
import pickle
import shutil
import time
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

import featx
from featx.cache.layout import CacheLayout
from featx.cache.manifest import find_manifest, write_manifest
from featx.exceptions import (
    BackboneError,
    CacheWriteError,
    DatasetError,
    ImageError,
    UnknownNameError,
)
from featx.extraction import pipeline
from featx.extraction.job import Request
from featx.images.loader import load_images as load


def counts(features):
    return {key: features.report[key] for key in ("cached", "extracted", "failed")}


def test_features_come_with_the_labels_and_paths_of_their_rows(photos, extract):
    features = extract(photos)
    assert features.X.shape == (12, 16)
    assert features.X.dtype == np.float32
    assert features.classes == ("blue", "red")
    assert [path.split("/")[0] for path in features.paths] == features.y.tolist()
    assert features.report["images"] == 12
    for row in (0, 7):
        alone = extract([photos / features.paths[row]], name="alone")
        np.testing.assert_array_equal(alone.X[0], features.X[row])


def test_features_are_what_keras_computes_from_the_same_file(photos, extract, small_network):
    import keras

    features = extract(photos)
    model = keras.models.load_model(small_network)
    for row, path in enumerate(features.paths):
        image = keras.utils.load_img(photos / path, target_size=(32, 32), interpolation="bilinear")
        expected = model.predict(np.asarray(image)[None], verbose=0).mean(axis=(1, 2))[0]
        np.testing.assert_allclose(features.X[row], expected, rtol=1e-4, atol=1e-6)


def test_the_second_run_computes_nothing_and_imports_no_tensorflow(
    photos, extract, tmp_path, small_network, run_python
):
    extract(photos)
    code = (
        "import sys, featx, json;"
        f"f = featx.extract({str(photos)!r}, backbone='file:{small_network}', "
        f"cache={str(tmp_path / 'cache')!r});"
        "print(json.dumps([f.report, sorted({'tensorflow', 'keras'} & set(sys.modules))]))"
    )
    report, modules = json.loads(run_python(code).stdout)
    assert (report["cached"], report["extracted"]) == (12, 0)
    assert modules == []


def test_only_added_images_are_computed(photos, extract, draw_photo):
    before = extract(photos)
    draw_photo(photos, "red/new.jpg", seed=77, colour=(0, 200, 0))
    features = extract(photos)
    assert counts(features) == {"cached": 12, "extracted": 1, "failed": 0}
    old = [row for row, path in enumerate(features.paths) if path in before.paths]
    np.testing.assert_array_equal(features.X[old], before.X)


def test_renaming_relabelling_and_copying_cost_nothing(photos, extract):
    before = extract(photos)
    (photos / "red" / "0.jpg").rename(photos / "red" / "renamed.jpg")
    (photos / "red" / "1.jpg").rename(photos / "blue" / "moved.jpg")
    shutil.copy(photos / "red" / "2.jpg", photos / "red" / "copy.jpg")
    features = extract(photos)
    assert counts(features) == {"cached": 13, "extracted": 0, "failed": 0}
    assert features.report["duplicates"] == 1
    row = {path: features.X[number] for number, path in enumerate(features.paths)}
    old = {path: before.X[number] for number, path in enumerate(before.paths)}
    np.testing.assert_array_equal(row["red/renamed.jpg"], old["red/0.jpg"])
    np.testing.assert_array_equal(row["blue/moved.jpg"], old["red/1.jpg"])
    np.testing.assert_array_equal(row["red/copy.jpg"], row["red/2.jpg"])
    assert features.y[features.paths.index("blue/moved.jpg")] == "blue"


def test_a_file_replaced_under_its_old_name_and_time_is_computed(photos, extract, draw_photo):
    path = photos / "red" / "0.jpg"
    old = path.stat()
    before = extract(photos)
    draw_photo(photos, "red/0.jpg", seed=99, colour=(0, 255, 0))
    os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))
    features = extract(photos)
    assert counts(features)["extracted"] == 1
    row = features.paths.index("red/0.jpg")
    assert not np.array_equal(features.X[row], before.X[row])


def later(monkeypatch, seconds=10):
    """Let files that were written just now count as old ones."""
    now = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now() + seconds * 1_000_000_000)


def rewrite_in_place(path, content):
    """Change the bytes of a file as `rsync --inplace -t` does; size, time and inode stay."""
    old = path.stat()
    assert len(content) == old.st_size
    with path.open("r+b") as file:
        file.write(content)
    os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))
    new = path.stat()
    assert (new.st_mtime_ns, new.st_ino) == (old.st_mtime_ns, old.st_ino)


@pytest.fixture
def bitmaps(tmp_path):
    """A folder of 6 images of equal size in bytes, with an old modification time."""
    for number in range(6):
        path = tmp_path / "bitmaps" / "ab"[number % 2] / f"{number}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        os.utime(path, (1.5e9, 1.5e9))
    return tmp_path / "bitmaps"


def test_a_file_changed_in_place_under_its_old_time_is_computed(bitmaps, extract, monkeypatch):
    later(monkeypatch)
    before = np.array(extract(bitmaps).X)
    path = bitmaps / "a" / "2.bmp"
    content = bytearray(path.read_bytes())
    content[100:2000] = bytes(1900)
    rewrite_in_place(path, content)
    features = extract(bitmaps)
    assert counts(features) == {"cached": 5, "extracted": 1, "failed": 0}
    row = features.paths.index("a/2.bmp")
    assert not np.array_equal(features.X[row], before[row])
    alone = extract([path], name="alone", cache=bitmaps.parent / "other")
    np.testing.assert_array_equal(features.X[row], alone.X[0])


def test_a_file_changed_twice_within_one_tick_is_read_again(bitmaps, extract, monkeypatch):
    extract(bitmaps)  # at once after the files were written: any of them may change once more
    same = {path: path.stat() for path in bitmaps.rglob("*.bmp")}
    content = bytearray((bitmaps / "b" / "1.bmp").read_bytes())
    content[100:2000] = bytes(1900)
    rewrite_in_place(bitmaps / "b" / "1.bmp", content)
    # The clock of the file system did not move: every stamp is what it was.
    real = os.stat
    monkeypatch.setattr(os, "stat", lambda path, **kw: same.get(Path(path)) or real(path, **kw))
    assert counts(extract(bitmaps))["extracted"] == 1


def test_permissions_and_links_cost_a_reading_and_no_forward_pass(bitmaps, extract, monkeypatch):
    later(monkeypatch)
    before = np.array(extract(bitmaps).X)
    (bitmaps / "a" / "0.bmp").chmod(0o600)
    (bitmaps.parent / "link.bmp").hardlink_to(bitmaps / "a" / "2.bmp")
    features = extract(bitmaps)
    assert counts(features) == {"cached": 6, "extracted": 0, "failed": 0}
    np.testing.assert_array_equal(features.X, before)


def test_a_manifest_without_change_times_is_read_and_its_files_once_more(
    bitmaps, extract, tmp_path, monkeypatch
):
    later(monkeypatch)
    before = np.array(extract(bitmaps).X)
    layout = CacheLayout(tmp_path / "cache")
    manifest = find_manifest(layout, "bitmaps")
    unknown = np.full(len(manifest), -1, np.int64)
    write_manifest(layout, replace(manifest, ctime_ns=unknown, birth_ns=unknown))
    with h5py.File(layout.dataset("bitmaps")) as file:
        assert not {"ctime_ns", "birth_ns"} & set(file)  # as featx 0.1 wrote it
    read = []
    monkeypatch.setattr(pipeline, "load_images", lambda *a, **k: read.append(a[1]) or load(*a, **k))
    features = extract(bitmaps)
    assert counts(features) == {"cached": 6, "extracted": 0, "failed": 0}
    np.testing.assert_array_equal(features.X, before)
    extract(bitmaps)
    assert [len(rows) for rows in read] == [6, 0]


def test_new_stamps_alone_need_no_permission_to_write(bitmaps, extract, tmp_path, monkeypatch):
    later(monkeypatch)
    before = np.array(extract(bitmaps).X)
    for path in bitmaps.rglob("*.bmp"):
        path.chmod(0o600)

    def full(*_, **__):
        raise OSError(30, os.strerror(30))

    monkeypatch.setattr(Path, "replace", full)
    np.testing.assert_array_equal(extract(bitmaps).X, before)


def test_another_folder_with_the_same_name_is_another_dataset(
    photos, extract, tmp_path, draw_photo
):
    extract(photos)
    other = tmp_path / "elsewhere" / "photos"
    draw_photo(other, "green/1.jpg", seed=5, colour=(0, 255, 0))
    draw_photo(other, "red/1.jpg", seed=6, colour=(255, 0, 0))
    features = extract(other)
    assert features.name.startswith("photos-")
    assert extract(other).name == features.name
    assert len(extract("photos")) == 12


def test_several_backbones_and_taps_in_one_call(photos, extract, small_network, tmp_path):
    twin = tmp_path / "twin.keras"
    shutil.copy(small_network, twin)
    features = extract(
        photos, backbone=[f"file:{small_network}", f"file:{twin}"], taps=["avg", "first:grid:2"]
    )
    assert [(b.backbone, b.tap) for b in features.blocks] == [
        ("file:small", "avg"),
        ("file:small", "first:grid:2"),
        ("file:twin", "avg"),
        ("file:twin", "first:grid:2"),
    ]
    first = features.matrix(backbone="file:small", tap="first:grid:2")
    assert first.shape == (12, 32)
    np.testing.assert_array_equal(first, features.matrix(backbone="file:twin", tap="first:grid:2"))
    with pytest.raises(featx.FeaturesError, match="holds 4 blocks: choose one"):
        _ = features.X
    with pytest.raises(featx.FeaturesError, match="found 2; there are: file:small/avg"):
        features.matrix(tap="avg")


def test_a_new_tap_is_added_beside_the_old_one(photos, extract, tmp_path):
    extract(photos)
    assert counts(extract(photos, taps="max"))["extracted"] == 12
    both = featx.Features.open("photos", cache=tmp_path / "cache")
    assert [block.tap for block in both.blocks] == ["max", "avg"]
    assert counts(extract(photos, taps=["avg", "max"]))["extracted"] == 0


def test_half_precision_and_another_size_are_other_spaces(photos, extract):
    whole, half = extract(photos), extract(photos, dtype="float16")
    assert half.X.dtype == np.float16
    assert half.spec() != whole.spec()
    np.testing.assert_allclose(half.X, whole.X, rtol=1e-2, atol=1e-3)
    cropped = extract(photos, image=featx.ImagePolicy(resize="crop"))
    assert counts(cropped)["extracted"] == 12
    assert not np.allclose(cropped.X, whole.X)


def test_a_dataset_is_found_by_its_name_after_its_images_have_gone(photos, extract):
    before = extract(photos)
    shutil.rmtree(photos)
    features = extract("photos")
    np.testing.assert_array_equal(features.X, before.X)
    assert features.y.tolist() == before.y.tolist()
    with pytest.raises(UnknownNameError, match="did you mean 'photos'"):
        extract("photo")


def test_an_unreadable_image_is_named_and_no_row_shifts(photos, extract):
    whole = extract(photos)
    (photos / "red" / "2.jpg").write_bytes(b"<html>not found</html>")
    (photos / "blue" / "3.jpg").write_bytes(b"")
    broken = (photos / "red" / "4.jpg").read_bytes()
    (photos / "red" / "4.jpg").write_bytes(broken[: len(broken) // 2])
    features = extract(photos)
    assert counts(features) == {"cached": 9, "extracted": 0, "failed": 3}
    assert [path for path, _ in features.failed] == ["blue/3.jpg", "red/2.jpg", "red/4.jpg"]
    assert all(reason for _, reason in features.failed)
    for row, path in enumerate(features.paths):
        np.testing.assert_array_equal(features.X[row], whole.X[whole.paths.index(path)])
    (photos / "red" / "4.jpg").write_bytes(broken)
    shutil.copy(photos / "red" / "2.jpg", photos / "blue" / "equal.jpg")
    assert counts(extract(photos)) == {"cached": 10, "extracted": 0, "failed": 3}


def test_on_error_raise_names_the_file_and_keeps_what_was_computed(photos, extract):
    (photos / "red" / "5.jpg").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"red/5\.jpg: not an image"):
        extract(photos, on_error="raise", batch_size=1)
    assert counts(extract(photos)) == {"cached": 11, "extracted": 0, "failed": 1}


def test_max_failures_stops_the_run(photos, extract):
    for name in ("0", "1", "2"):
        (photos / "blue" / f"{name}.jpg").write_bytes(b"no image")
    with pytest.raises(DatasetError, match="2 images could not be read, more than the 1 allowed"):
        extract(photos, max_failures=1)
    assert counts(extract(photos, max_failures=3))["failed"] == 3


def test_nothing_readable_is_an_error_that_names_files(tmp_path, extract):
    (tmp_path / "bad" / "a").mkdir(parents=True)
    (tmp_path / "bad" / "a" / "1.jpg").write_bytes(b"no image")
    with pytest.raises(DatasetError, match=r"none of the 1 images of 'bad' .*: a/1\.jpg"):
        extract(tmp_path / "bad")


def test_arrays_are_found_again_by_their_bytes(extract):
    images = np.random.default_rng(0).integers(0, 256, (5, 20, 20, 3), dtype=np.uint8)
    data = featx.ImageDataset.from_arrays(images, ["a", "b", "a", "b", "a"])
    first = extract(data)
    assert counts(first)["extracted"] == 5
    again = extract(featx.ImageDataset.from_arrays(images[::-1].copy(), list("ababa")))
    assert counts(again)["extracted"] == 0
    np.testing.assert_array_equal(again.X, first.X[::-1])


def test_a_csv_brings_splits_and_groups(photos, extract):
    lines = ["path,label,split,group"]
    lines += [f"photos/red/{n}.jpg,r,{'test' if n > 3 else 'train'},g{n // 2}" for n in range(6)]
    lines += [f"photos/blue/{n}.jpg,b,train,h{n // 2}" for n in range(6)]
    table = photos.parent / "table.csv"
    table.write_text("\n".join(lines))
    features = extract(table)
    assert features.splits.tolist().count("test") == 2
    assert features.groups.tolist()[:2] == ["g0", "g0"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_named(photos, extract, tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    with pytest.raises(CacheWriteError, match="change its permissions, or name another folder"):
        extract(photos, cache=closed / "cache")


def test_a_cache_that_cannot_be_written_is_an_error(photos, extract, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheWriteError, match="cannot write .*file.*name another folder"):
        extract(photos, cache=tmp_path / "file")


def test_a_cache_that_has_everything_need_not_be_writable(photos, extract, tmp_path, monkeypatch):
    later(monkeypatch)
    extract(photos)
    before = sorted((tmp_path / "cache").rglob("*"))
    times = [path.stat().st_mtime_ns for path in before]
    extract(photos)
    after = sorted((tmp_path / "cache").rglob("*"))
    assert after == before
    assert [path.stat().st_mtime_ns for path in after] == times


@pytest.mark.parametrize(
    ("pattern", "extracted"), [("datasets/photos.h5", 0), ("spaces/*/shards/*.h5", 12)]
)
def test_a_damaged_file_of_the_cache_is_made_again(
    photos, extract, tmp_path, caplog, pattern, extracted
):
    before = np.array(extract(photos).X)
    (path,) = (tmp_path / "cache").glob(pattern)
    path.write_bytes(path.read_bytes()[:-10])
    again = extract(photos)
    assert counts(again)["extracted"] == extracted
    np.testing.assert_array_equal(again.X, before)
    assert path.name in caplog.text


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"backbone": "mobilnet_v2"}, UnknownNameError, "did you mean 'mobilenet_v2'"),
        ({"taps": "frist"}, UnknownNameError, "did you mean 'first'"),
        ({"taps": []}, BackboneError, "at least one tap"),
        ({"backbone": []}, BackboneError, "at least one backbone"),
        ({"engine": "kerras"}, UnknownNameError, "did you mean 'keras'"),
        ({"batch_size": 0}, BackboneError, "'auto' or a positive number"),
        ({"on_error": "ignore"}, DatasetError, "'skip' or 'raise'"),
        ({"weights": {"resnet50": "imagenet"}}, BackboneError, "weights are given for resnet50"),
        (
            {"backbone": ["tiny", "resnet50"], "weights": "mine.h5"},
            BackboneError,
            r"of one network .* for 2 backbones: .* --weights resnet50=mine\.h5",
        ),
    ],
)
def test_bad_options_are_named(photos, extract, options, error, message):
    with pytest.raises(error, match=message):
        extract(photos, **options)


def test_parts_of_a_job_run_in_other_processes(photos, tmp_path, small_network, run_python):
    options = {"backbone": f"file:{small_network}", "cache": tmp_path / "cache", "views": 1}
    job = Request(**options).settle(photos)
    images = job.images()
    for number, rows in enumerate((range(7), range(5, 12))):
        part = replace(job, data=images.subset(rows))
        (tmp_path / f"{number}.pickle").write_bytes(pickle.dumps(part))
        run_python(
            "import pickle;"
            f"job = pickle.load(open({str(tmp_path / f'{number}.pickle')!r}, 'rb'));"
            "(plain, view), ledger = job.compute();"
            "assert plain.shape == view.shape == (7, 16)"
        )
    whole = featx.extract(photos, **options)
    assert counts(whole) == {"cached": 12, "extracted": 0, "failed": 0}
    alone = featx.extract(photos, **{**options, "cache": tmp_path / "alone"})
    np.testing.assert_array_equal(whole.matrix(view=0), alone.matrix(view=0))


def test_progress_counts_every_image(photos, extract):
    seen = []
    extract(photos, progress=lambda *numbers: seen.append(numbers))
    assert seen[0] == (0, 12, 0)
    assert seen[-1] == (12, 12, 0)
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)


def test_an_interrupted_run_keeps_its_work(tmp_path, small_network, featx_process, run_python):
    pixels = np.random.default_rng(0).integers(0, 256, (100, 40, 40, 3), dtype=np.uint8)
    for number, picture in enumerate(pixels):
        path = tmp_path / "many" / "a" / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
    command = ["extract", "many", "-b", f"file:{small_network}", "--batch-size", "4"]
    done = run_python(
        "import os, signal, featx.extraction.pipeline as pipeline;"
        "from featx.cli.main import main;"
        f"os.chdir({str(tmp_path)!r});"
        "keep, Stage, calls = pipeline.Stage.keep, pipeline.Stage, [];"
        "Stage.keep = lambda *batch: (keep(*batch), calls.append(1), len(calls) == 3 and"
        " os.kill(os.getpid(), signal.SIGINT));"
        f"main({command})",
        check=False,
    )
    assert done.returncode == 130, done.stderr
    assert "of 100 images have their features in the cache; the same command goes on" in done.stderr
    assert "Traceback" not in done.stderr
    report = json.loads(featx_process(*command, "--json").stdout)
    assert report["cached"] >= 12
    assert report["cached"] + report["extracted"] == 100


def test_a_missing_specification_is_written_again(photos, extract, tmp_path):
    features = extract(photos)
    spec = tmp_path / "cache" / "spaces" / features.spec().name / "spec.json"
    text = spec.read_text()
    spec.unlink()
    with pytest.raises(featx.CacheFormatError, match=r"spec\.json is missing: extract again"):
        featx.Features.open("photos", cache=tmp_path / "cache")
    assert counts(extract(photos))["cached"] == 12
    assert spec.read_text() == text


def test_jpeg_files_are_decoded_at_a_reduced_size_by_default(tmp_path, draw_photo, extract):
    large = Image.open(draw_photo(tmp_path / "few", "a/1.jpg", seed=1, colour=(80, 90, 200)))
    large.resize((640, 480)).save(tmp_path / "few" / "a" / "1.jpg", quality=95)
    usual = extract(tmp_path / "few")
    assert usual.spec().image == featx.ImagePolicy() == featx.ImagePolicy(draft=True)
    whole = extract(tmp_path / "few", image=featx.ImagePolicy(draft=False))
    assert not np.array_equal(whole.X, usual.X)
    np.testing.assert_allclose(whole.X, usual.X, atol=0.05)


def test_a_dataset_keeps_the_way_in_which_its_images_were_decoded(photos, extract, draw_photo):
    before = extract(photos, image=featx.ImagePolicy(draft=False))
    draw_photo(photos, "red/new.jpg", seed=7, colour=(210, 60, 60))
    again = extract(photos)
    assert counts(again) == {"cached": 12, "extracted": 1, "failed": 0}
    assert again.spec() == before.spec()
    # Taps that are added come from the same pixels; another policy is another space.
    assert extract(photos, taps=["avg", "max"]).spec(tap="max") == before.spec()
    chosen = extract(photos, image=featx.ImagePolicy())
    assert counts(chosen)["extracted"] == 13
    # With features of both in the dataset, the default decides.
    assert extract(photos).spec() == chosen.spec()
