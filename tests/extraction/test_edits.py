from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest

import featx
from featx.cache.datasets import edit_dataset
from featx.cache.editing import add_rows, assign_splits, relabel, remove_rows, replay_edits
from featx.cache.manifest import find_manifest, read_manifest, same_manifest, write_manifest
from featx.exceptions import BackboneError, CacheFormatError, DatasetError
from featx.files import identity
from featx.importing.importer import import_features


@pytest.fixture
def layout(cache):
    return cache.layout


@pytest.fixture
def edit(layout):
    def run(function, *args, name="photos", **options):
        return edit_dataset(layout, name, lambda m: function(m, *args, **options))[1]

    return run


def by_path(features, column):
    return dict(zip(features.paths, getattr(features, column).tolist(), strict=True))


def test_edits_are_kept_in_the_manifest(photos, extract, edit, layout):
    extract(photos)
    edit(assign_splits, {"train": 0.9, "test": 0.1})
    edit(relabel, classes={"red": "rot"})
    edit(assign_splits, {"train": 0.5, "test": 0.5}, seed=1)
    stored = find_manifest(layout, "photos")
    assert [edit["edit"] for edit in stored.edits] == ["relabel", "split"]
    assert stored.edits[1]["seed"] == 1
    assert same_manifest(read_manifest(write_manifest(layout, stored)), stored)


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        (({"edit": "paint"},), "the edit 'paint' of 'photos' is not known .*: upgrade featx"),
        (({"edit": "split"},), "damaged edits of 'photos'"),
        (({"edit": "relabel", "classes": {}, "keys": {"x": "a"}},), "damaged edits of 'photos'"),
        (("split",), r"photos\.h5.* the edits are not a list of objects"),
    ],
)
def test_damaged_edits_are_named(photos, extract, layout, edits, message):
    extract(photos)
    write_manifest(layout, replace(find_manifest(layout, "photos"), edits=edits))
    with pytest.raises(CacheFormatError, match=message):
        replay_edits(find_manifest(layout, "photos"), find_manifest(layout, "photos"))


@pytest.mark.parametrize("method", ["hash", "stratified"])
def test_a_split_outlasts_new_images_renames_and_copies(photos, extract, edit, draw_photo, method):
    extract(photos)
    edit(assign_splits, {"train": 0.5, "test": 0.5}, method=method)
    before = by_path(extract(photos), "splits")
    assert set(before.values()) == {"train", "test"}
    for number in range(20):
        draw_photo(photos, f"red/new{number}.jpg", seed=500 + number, colour=(250, 0, 0))
    (photos / "red" / "0.jpg").rename(photos / "blue" / "moved.jpg")
    held_out = next(path for path, split in before.items() if split == "test" and "0" not in path)
    shutil.copy(photos / held_out, photos / "blue" / "copy.jpg")
    features = extract(photos)
    assert features.report["extracted"] == 20
    after = by_path(features, "splits")
    assert after["blue/moved.jpg"] == before.pop("red/0.jpg")
    assert after["blue/copy.jpg"] == "test"
    assert {path: after[path] for path in before} == before
    assert {after[f"red/new{number}.jpg"] for number in range(20)} == {"train", "test"}
    assert by_path(extract(photos), "splits") == after


def test_labels_outlast_the_folder_also_for_new_images(photos, extract, edit, draw_photo):
    extract(photos)
    edit(relabel, classes={"red": "blue", "blue": "red"})
    edit(relabel, paths={"red/3.jpg": "green"})
    draw_photo(photos, "red/new.jpg", seed=9, colour=(250, 0, 0))
    shutil.copy(photos / "red" / "3.jpg", photos / "blue" / "copy.jpg")
    for _ in range(3):
        features = extract(photos)
        y = by_path(features, "y")
        assert (y["red/0.jpg"], y["blue/0.jpg"], y["red/new.jpg"]) == ("blue", "red", "blue")
        assert (y["red/3.jpg"], y["blue/copy.jpg"]) == ("green", "green")
        assert set(features.classes) == {"blue", "red", "green"}


def test_edits_are_not_done_twice_when_the_dataset_is_named(photos, extract, edit):
    extract(photos)
    edit(relabel, classes={"red": "blue", "blue": "red"})
    edit(remove_rows, ["red/0.jpg"])
    features = extract("photos", taps="max")
    assert features.report["extracted"] == 11
    assert by_path(features, "y")["blue/1.jpg"] == "red"
    assert len(extract(photos, taps="max")) == 11
    assert by_path(extract(photos), "y")["blue/1.jpg"] == "red"


def test_what_was_left_out_is_neither_read_nor_computed_again(
    photos, extract, edit, draw_photo, layout, monkeypatch
):
    # Files that have just been drawn would be read again, unless the machine is slow.
    monkeypatch.setattr(identity, "_SETTLED_NS", 0)
    extract(photos)
    edit(remove_rows, ["blue/*"])
    draw_photo(photos, "blue/new.jpg", seed=9, colour=(0, 0, 250))
    before = find_manifest(layout, "photos")
    times = {path: path.stat().st_mtime_ns for path in layout.root.rglob("*.h5")}
    features = extract(photos)
    assert features.report["extracted"] == 0
    assert len(features) == 6
    assert features.classes == ("red",)
    assert same_manifest(find_manifest(layout, "photos"), before)
    assert {path: path.stat().st_mtime_ns for path in layout.root.rglob("*.h5")} == times


def test_an_interrupted_run_moves_no_image(photos, extract, edit):
    extract(photos)
    edit(assign_splits, {"train": 0.5, "test": 0.5}, method="stratified")
    before = by_path(extract(photos), "splits")

    def stop(done, *_):
        if done == 3:
            raise KeyboardInterrupt

    for path in photos.rglob("*.jpg"):
        os.utime(path)
    with pytest.raises(KeyboardInterrupt):
        extract(photos, progress=stop)
    assert by_path(extract(photos), "splits") == before


def test_joined_datasets_are_extracted_by_their_name(photos, extract, layout, draw_photo):
    more = photos.parent / "more"
    draw_photo(more, "green/1.jpg", seed=1, colour=(0, 250, 0))
    shutil.copytree(photos / "red", more / "red")
    extract(photos)
    extract(more)
    other = find_manifest(layout, "more")
    edit_dataset(layout, "photos", lambda m: add_rows(m, other, name="both"))
    features = featx.Features.open("both", cache=layout.root)
    assert features.X.shape == (19, 16)
    wider = extract("both", taps=["avg", "max"])
    assert wider.report["extracted"] == 13
    assert extract(photos).name == "photos"


# Imported features where images are expected


@pytest.fixture
def texts(layout):
    generator = np.random.default_rng(0)
    X = generator.normal(size=(40, 5)) + np.repeat([[0], [5]], 20, axis=0)
    return import_features("texts", X.astype("f4"), y=["a"] * 20 + ["b"] * 20, cache=layout.root)


def test_imported_features_are_found_by_name_and_only_they(texts, layout):
    features = featx.extract("texts", cache=layout.root)
    assert (features.report["images"], features.report["cached"]) == (40, 40)
    assert featx.extract("texts", backbone="import:texts", cache=layout.root).X.shape == (40, 5)
    with pytest.raises(DatasetError, match="'texts' was imported: .* no images for resnet50"):
        featx.extract("texts", backbone="resnet50", cache=layout.root)
    result = featx.train(features, backbone="import:texts")
    with pytest.raises(BackboneError, match="'import:texts' were made elsewhere"):
        result.model.predict(["a.jpg"])


@pytest.mark.parametrize("chosen", [(), ("-b", "import:texts")])
def test_a_head_is_trained_on_them_from_the_command_line(texts, featx_command, chosen):
    result = featx_command("train", "texts", *chosen, "-o", "m.featx", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["metrics"]["accuracy"] > 0.9
    scored = featx_command("evaluate", "m.featx", "texts", "--json")
    assert scored.returncode == 0, scored.stderr
    assert json.loads(scored.stdout)["accuracy"] > 0.9
    wrong = featx_command("train", "texts", "-b", "tiny")
    assert wrong.returncode == 1
    assert "leave -b (backbone) out" in wrong.stderr


def test_imported_features_keep_their_edits(texts, edit, layout):
    edit(assign_splits, {"train": 0.5, "test": 0.5}, name="texts")
    edit(relabel, classes={"a": "A"}, name="texts")
    again = import_features("texts", texts.X, y=["a"] * 20 + ["b"] * 20, cache=layout.root)
    assert set(again.splits) == {"train", "test"}
    assert again.classes == ("b", "A")


@pytest.mark.parametrize("by_name", [False, True])
def test_an_edit_during_an_extraction_is_kept(photos, extract, edit, cache, by_name):
    extract(photos)
    edited = []

    def remove_one(done, *_):
        if done == 6 and not edited:
            edited.append(edit(remove_rows, ["red/0.jpg"]))

    again = extract("photos" if by_name else photos, taps="max", progress=remove_one)
    assert edited
    assert "red/0.jpg" not in again.paths
    features = cache.features("photos")
    assert len(features) == 11
    assert {block.tap for block in features.blocks} == {"avg", "max"}


def test_two_extractions_of_one_dataset_keep_the_blocks_of_both(photos, extract, cache):
    def other(done, *_):
        if done == 6:
            extract(photos, taps="max")

    extract(photos, progress=other)
    assert {block.tap for block in cache.features("photos").blocks} == {"avg", "max"}
