"""What is said of the data: contradictions, what was left out, and why files are missing."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

import featx
from featx.exceptions import DatasetError
from featx.images.dataset import ImageDataset


def table(folder, rows, header="path,label"):
    folder.mkdir(exist_ok=True)
    file = folder / "photos.csv"
    file.write_text("\n".join([header, *rows]) + "\n", "utf-8")
    return file


def test_equal_images_with_different_labels_are_named(photos, extract):
    shutil.copy(photos / "red/0.jpg", photos / "blue/copy.jpg")
    shutil.copy(photos / "red/1.jpg", photos / "red/copy.jpg")
    report = extract(photos).report
    expected = [[{"path": "blue/copy.jpg", "label": "blue"}, {"path": "red/0.jpg", "label": "red"}]]
    assert report["contradictions"] == expected
    assert extract("photos").report["contradictions"] == expected
    names = [f"{photos}/red/0.jpg", f"{photos}/blue/copy.jpg", f"{photos}/blue/1.jpg"]
    sets = ImageDataset.from_paths(names, ["ant|winged", "winged|ant", "ant"])
    assert extract(sets).report["contradictions"] == []


def test_what_was_left_out_is_in_the_report_and_printed(photos, extract, tmp_path, featx_command):
    (photos / "wasp").mkdir()
    (photos / "Red").mkdir()
    shutil.copy(photos / "red/2.jpg", photos / "Red/a.jpg")
    shutil.copy(photos / "red/0.jpg", photos / "loose.jpg")
    shutil.copy(photos / "red/0.jpg", photos / "blue/copy.jpg")
    (photos / "notes.txt").write_text("x")
    report = extract(photos).report
    assert report["empty_classes"] == ["wasp"]
    assert report["look_alike"] == [["Red", "red"]]
    assert report["left_out"] == [
        {"path": "loose.jpg", "reason": "an image beside the class folders"},
        {"path": "notes.txt", "reason": "no image extension"},
    ]
    cache = ("--cache", tmp_path / "cache")
    shown = featx_command("extract", photos, *cache).stdout
    assert "1 image lies beside the class folders and has no label: loose.jpg" in shown
    assert "wasp/ has no image" in shown
    assert "differ only in case, spaces or the form of accents: 'Red' and 'red'" in shown
    assert "4 images have the same content but different labels:" in shown
    assert "blue/copy.jpg (blue), red/0.jpg (red)" in shown
    known = json.loads(featx_command("dataset", "show", "photos", *cache, "--json").stdout)
    assert len(known["contradictions"]) == 2
    assert "blue/copy.jpg (blue)" in featx_command("dataset", "show", "photos", *cache).stdout


def test_a_class_without_a_readable_image_says_why(photos, extract):
    for file in (photos / "red").iterdir():
        file.write_bytes(b"\xff\xd8\xff damaged")
    features = extract(photos)
    with pytest.raises(DatasetError, match=r"one class only: 'blue' \(6 .* 6 images could not be"):
        featx.train(features)
    with pytest.raises(DatasetError, match=r"could not be read, such as red/0.jpg: "):
        featx.search(features, heads="ridge")


def test_a_wrapper_folder_is_named_with_what_to_give(photos, extract):
    outer = photos.parent / "outer"
    outer.mkdir()
    photos.rename(outer / "inner")
    features = extract(outer)
    assert f"give '{outer / 'inner'}'" in features.report["notes"][0]
    for job in (featx.train, featx.search):
        with pytest.raises(DatasetError, match=r"'outer' has one folder 'inner'.*give .*inner'"):
            job(features)


def test_missing_files_are_looked_for_nearby(photos, extract, monkeypatch):
    monkeypatch.chdir(photos.parent)
    paths = [f"{name}/{i}.jpg" for name in ("red", "blue") for i in range(3)]
    meta = table(photos.parent / "meta", [f"photos/{p},{p[:3]}" for p in paths])
    with pytest.raises(DatasetError, match=r"are taken from '.*meta'; .* exists: use --root \. "):
        extract(meta)
    assert len(extract(meta, root=".")) == 6
    inside = table(photos / "red", [f"{p},{p[:3]}" for p in paths])
    with pytest.raises(DatasetError, match=rf"exists: use --root {photos} "):
        extract(inside)
    for wrong, near in (("RED/0.jpg", "red/0.jpg"), ("red/0.jpeg ", "red/0.jpg")):
        with pytest.raises(DatasetError, match=rf"taken from '{photos}'; '{near}' exists"):
            extract(table(photos, [f"{wrong},x"]))
    with pytest.raises(DatasetError, match="is for the paths of a table"):
        extract(photos, root=".")


def test_labels_that_are_no_classes_stop_before_training(photos, extract):
    files = [f"{name}/{i}.jpg" for name in ("red", "blue") for i in range(6)]
    ages = extract(table(photos, [f"{p},{20.5 + i}" for i, p in enumerate(files)]))
    for job in (featx.train, featx.search):
        with pytest.raises(DatasetError, match=r"look like measurements: 12 .* --label-kind class"):
            job(ages)
    several = table(photos, [f"{p},1,{i % 2}" for i, p in enumerate(files)], "path,warm,odd")
    features = extract(several)
    for job in (featx.train, featx.search):
        with pytest.raises(
            DatasetError, match=r"several labels an image, .*warm\|odd.* --multilab"
        ):
            job(features)
    assert featx.train(features, label_kind="class", cv=0).model.classes_.tolist() == [
        "warm",
        "warm|odd",
    ]
    with pytest.raises(DatasetError, match="label_kind must be 'auto' or 'class'"):
        featx.train(features, label_kind="regression")


def test_folders_of_numbers_and_of_nothing_are_classes(tmp_path, extract, draw_photo):
    for number, name in enumerate(("20.5", "30.25", "NA")):
        for i in range(3):
            draw_photo(tmp_path / "d", f"{name}/{i}.jpg", seed=i, colour=(80 * number, 90, 60))
    features = extract(tmp_path / "d")
    expected = ["20.5", "30.25", "NA"]
    assert featx.train(features, cv=0).model.classes_.tolist() == expected
    best = featx.search(features, heads="ridge", score="none", cv=3)
    assert best.model.classes_.tolist() == expected


@pytest.mark.parametrize("value", [None, float("nan"), "NaN", ""])
def test_fitting_on_missing_labels_names_the_rows(value):
    X = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    y = ["ant", "bee", value] * 2
    with pytest.raises(DatasetError, match=r"2 have none .*: rows 2, 5; leave"):
        featx.ImageClassifier().fit(X, y)
    with pytest.raises(DatasetError, match="rows 2, 5"):
        featx.ImageClassifier(multilabel=True).fit(X, y)


def test_a_named_dataset_keeps_its_splits_and_unknown_ones_stop(photos, extract, tmp_path):
    from dataclasses import replace

    from featx.cache.datasets import edit_dataset
    from featx.cache.layout import CacheLayout

    extract(photos)
    layout = CacheLayout(tmp_path / "cache")
    odd = lambda m: replace(m, split=["pilot" if i % 3 else "" for i in range(len(m))])  # noqa: E731
    edit_dataset(layout, "photos", odd)
    with pytest.raises(DatasetError, match="'pilot' in 'photos' could be a split"):
        extract("photos")
    assert extract("photos", splits={"pilot": "test"}).report["splits"] == {"test": 8, "": 4}
    with pytest.raises(DatasetError, match="'pilot' in 'photos' could be a split"):
        featx.train(featx.Features.open("photos", cache=tmp_path / "cache"))
    Image.new("RGB", (8, 8)).save(photos / "red/new.png")
    assert "" in extract(photos).report["splits"] or not extract(photos).report["splits"]
