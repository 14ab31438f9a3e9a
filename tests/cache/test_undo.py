"""Edits are taken back, told as sentences, and contradicted by nobody in silence."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from featx.cache.datasets import edit_dataset
from featx.cache.editing import (
    assign_splits,
    describe_edit,
    label_conflicts,
    relabel,
    remove_rows,
    undo_edit,
)
from featx.cache.manifest import (
    PENDING,
    find_manifest,
    read_manifest,
    same_manifest,
    write_manifest,
)
from featx.exceptions import DatasetError, UnknownNameError
from featx.files.identity import STAMP

HALVES = {"train": 0.5, "test": 0.5}


@pytest.fixture
def manifest(kit):
    keys, _ = kit.rows(12)
    keys[3] = keys[0]
    return kit.dataset(
        "photos", keys, classes=("ants", "bees"), source="files",
        label=np.repeat([0, 1], 6).astype(np.int32), status=np.array([0] * 3 + [2] + [0] * 8, "u1"),
        path=[f"ants/{n}.jpg" for n in range(6)] + [f"bees/[{n}]*.jpg" for n in range(6)],
    )  # fmt: skip


STEPS = {
    "join": lambda m: relabel(m, classes={"ants": "bees"}),
    "label": lambda m: relabel(m, paths={"ants/1.jpg": "bees", "bees/[0]*.jpg": ""}),
    "remove": lambda m: remove_rows(m, paths=["bees/[1]*.jpg"]),
    "copies": lambda m: remove_rows(m, status=["duplicate"]),
    "hash": lambda m: assign_splits(m, HALVES),
    "stratified": lambda m: assign_splits(m, HALVES, method="stratified", seed=3),
    "again": lambda m: assign_splits(m, HALVES, seed=5),
}


@pytest.mark.parametrize("order", [list(STEPS), list(STEPS)[::-1], [*list(STEPS)[3:], "label"]])
def test_each_edit_is_taken_back_in_turn_also_from_disk(manifest, layout, order):
    states = [manifest]
    for name in order:
        states.append(STEPS[name](states[-1]))
    last = read_manifest(write_manifest(layout, states[-1]))
    assert same_manifest(last, states[-1])
    for state in reversed(states[:-1]):
        last = read_manifest(write_manifest(layout, undo_edit(last)))
        assert same_manifest(last, state, but={"edits", "unedited"})
        assert [edit["edit"] for edit in last.edits] == [edit["edit"] for edit in state.edits]
    with pytest.raises(DatasetError, match="'photos' has no edit that could be taken back"):
        undo_edit(last)


def test_edits_of_an_old_featx_cannot_be_taken_back(manifest):
    old = replace(STEPS["join"](manifest), unedited=None)
    with pytest.raises(DatasetError, match="kept no rows from before: `featx extract /photos`"):
        undo_edit(old)
    with pytest.raises(DatasetError, match="kept no rows from before"):
        undo_edit(STEPS["remove"](old))


def test_rows_come_back_only_with_their_features(cache, kit):
    keys, _ = kit.rows(12)
    layout = cache.layout
    edit_dataset(layout, "photos", lambda m: remove_rows(m, ["a/1*.jpg"]))
    assert len(edit_dataset(layout, "photos", undo_edit)[1].usable) == 12
    edit_dataset(layout, "photos", lambda m: remove_rows(m, ["a/1*.jpg"]))
    cache.gc(dry_run=False, older_than_s=0)
    after = edit_dataset(layout, "photos", undo_edit)[1]
    lost = [
        path for path, status in zip(after.path, after.status, strict=True) if status == PENDING
    ]
    assert lost == ["a/1.jpg", "a/10.jpg", "a/11.jpg"]
    np.testing.assert_array_equal(after.key, keys)


def test_history_reads_as_sentences(manifest):
    for step in STEPS.values():
        manifest = step(manifest)
    manifest = remove_rows(manifest, ["ants/*5.jpg"])
    assert [describe_edit(edit) for edit in manifest.edits] == [
        '"relabel" renamed the class ants to bees.',
        '"relabel" labelled 2 images: 1 as bees and 1 as none.',
        '"remove" left out bees/[1]*.jpg.',
        '"remove" left out images that equal an earlier one.',
        '"split" made 50% train and 50% test by hash, seed 5.',
        '"remove" left out ants/*5.jpg.',
    ]


def test_an_unknown_class_of_single_images_has_to_be_meant(manifest):
    with pytest.raises(UnknownNameError, match="unknown class 'bess': did you mean 'bees'"):
        relabel(manifest, paths={"ants/1.jpg": "bess"}, new_classes=False)
    renamed = relabel(
        manifest, classes={"ants": "flies"}, paths={"ants/1.jpg": "flies"}, new_classes=False
    )
    assert renamed.classes == ("bees", "flies")
    blank = replace(manifest, classes=None, label=np.full(12, -1, np.int32))
    assert relabel(blank, paths={"ants/1.jpg": "a"}, new_classes=False).classes == ("a",)


@pytest.mark.parametrize("named", [False, True])
def test_edits_are_taken_back_after_the_folder_was_extracted_again(
    photos, tmp_path, small_network, draw_photo, named
):
    import featx
    from featx.cache.layout import CacheLayout

    layout = CacheLayout.at(tmp_path / "cache")

    def extract(data=photos):
        return featx.extract(data, backbone=f"file:{small_network}", cache=layout.root)

    extract()
    before = find_manifest(layout, "photos")
    edit_dataset(layout, "photos", lambda m: relabel(m, paths={"red/1.jpg": "blue"}))
    edit_dataset(layout, "photos", lambda m: remove_rows(m, paths=["red/2.jpg", "blue/3.jpg"]))
    (photos / "blue" / "3.jpg").unlink()
    if named:
        assert len(extract("photos")) == 10
    else:
        draw_photo(photos, "blue/new.jpg", seed=77, colour=(0, 0, 255))
        assert len(extract()) == 11
        # Whether a time stamp counts as known depends on how long ago the file was written.
        assert same_manifest(find_manifest(layout, "photos"), extract().manifest, but=STAMP)
    paths = {*before.path} if named else {*before.path, "blue/new.jpg"} - {"blue/3.jpg"}
    after = edit_dataset(layout, "photos", undo_edit)[1]
    assert set(after.path) == paths
    assert featx.Features.open("photos", cache=layout.root).X.shape[0] == len(paths)
    assert dict(zip(after.path, after.label_names, strict=True))["red/1.jpg"] == "blue"
    after = edit_dataset(layout, "photos", undo_edit)[1]
    assert dict(zip(after.path, after.label_names, strict=True))["red/1.jpg"] == "red"
    assert after.edits == ()


def test_a_labelled_file_that_moves_is_a_conflict_until_it_is_labelled_again(
    photos, featx_command, small_network
):
    own = ("-b", f"file:{small_network}")
    (photos / "green").mkdir()
    shutil.move(photos / "red" / "5.jpg", photos / "green" / "5.jpg")
    assert featx_command("extract", photos, *own).returncode == 0
    (photos.parent / "labels.csv").write_text("path,label\nred/1.jpg,blue\nred/2.jpg,blue\n")
    assert featx_command("dataset", "relabel", "photos", "--labels", "labels.csv").returncode == 0
    shutil.move(photos / "red" / "1.jpg", photos / "green" / "1.jpg")
    shutil.move(photos / "red" / "2.jpg", photos / "blue" / "2b.jpg")
    shown = featx_command("extract", photos, *own).stdout
    assert "green/1.jpg: moved from red to green, labelled blue" in shown
    assert "2b.jpg" not in shown
    for _ in range(2):
        shown = json.loads(featx_command("dataset", "show", "photos", "--json").stdout)
        conflict = {"path": "green/1.jpg", "label": "blue", "folder": "green", "before": "red"}
        assert shown["conflicts"] == [conflict]
        featx_command("extract", photos, *own)
    (photos.parent / "labels.csv").write_text("path,label\ngreen/1.jpg,green\n")
    featx_command("dataset", "relabel", "photos", "--labels", "labels.csv")
    shown = json.loads(featx_command("dataset", "show", "photos", "--json").stdout)
    assert shown["conflicts"] == []
    assert shown["history"][-1] == '"relabel" labelled 1 image: 1 as green.'
    undone = featx_command("dataset", "undo", "photos").stdout
    assert 'taken back: "relabel" labelled 1 image: 1 as green.' in undone


def test_copies_in_several_folders_are_no_conflict(manifest):
    copies = replace(manifest, label=np.array([0, 0, 0, 1] + [0] * 2 + [1] * 6, np.int32))
    assert label_conflicts(relabel(copies, paths={"ants/0.jpg": "bees"})) == []
