"""Splits in folders, tables and arrays, under the names that people give them."""

import json

import numpy as np
import pytest

from featx.exceptions import DatasetError
from featx.images.dataset import ImageDataset
from featx.images.labels import parse_names, split_of


def folder(root, *names):
    for name in names:
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x")
    return root


def below(tops, classes=("ant", "bee")):
    return [f"{top}/{name}/{i}.png" for top in tops for name in classes for i in range(2)]


@pytest.mark.parametrize(
    ("names", "split"),
    [
        (
            ("train", "TRAIN", "Training", "train_set", "seg_train", "train2017", "TrainData"),
            "train",
        ),
        (("trainset", "training-images", "x_train", "cats and dogs train", "trn"), "train"),
        (("val", "valid", "Validation", "validation_data", "val2", "dev", "dev-set"), "val"),
        (("test", "Testing", "test_set", "TestImages", "holdout", "hold_out", "eval"), "test"),
        (("trainval", "train_test", "pilot", "unlabelled", "trainers", "contest", "devices"), ""),
    ],
)
def test_usual_names(names, split):
    assert {name: split_of(name) for name in names} == dict.fromkeys(names, split)


@pytest.mark.parametrize(
    ("tops", "meant"),
    [
        (("seg_train", "seg_test"), {"seg_train": "train", "seg_test": "test"}),
        (("training_set", "test_set"), {"training_set": "train", "test_set": "test"}),
        (("Training", "Testing", "validation"), None),
        (("train", "dev", "eval"), {"train": "train", "dev": "val", "eval": "test"}),
        (("training_set",), {"training_set": "train"}),
        (("a/train", "a/test"), {}),
    ],
)
def test_folders_of_splits(tmp_path, tops, meant):
    data = ImageDataset.from_folder(folder(tmp_path, *below(tops)))
    if meant is not None:
        assert dict(data.split_names) == meant
    assert data.classes == (("ant", "bee") if meant != {} else ("a",))


def test_wrappers_inside_splits(tmp_path):
    tops = ("seg_train/seg_train", "seg_test/seg_test")
    root = folder(tmp_path, *below(tops), "seg_pred/seg_pred/1.png", "seg_test/seg_test/loose.png")
    data = ImageDataset.from_folder(root)
    assert data.classes == ("ant", "bee")
    assert set(zip(data.paths, data.splits, strict=True)) >= {
        ("seg_train/seg_train/ant/0.png", "train"),
        ("seg_test/seg_test/bee/1.png", "test"),
    }
    assert dict(zip(data.strays, data.stray_reasons, strict=True)) == {
        "seg_pred/seg_pred/1.png": "an image beside the folders of the splits",
        "seg_test/seg_test/loose.png": "an image beside the class folders",
    }
    images = ImageDataset.from_folder(folder(tmp_path / "b", *below(("train/img", "test/img"))))
    assert images.classes == ("ant", "bee")


def test_splits_in_every_class(tmp_path):
    data = ImageDataset.from_folder(folder(tmp_path, *below(("ant", "bee"), ("train", "test"))))
    assert data.classes == ("ant", "bee")
    assert data.splits == ("test", "test", "train", "train") * 2


def test_classes_that_are_called_as_splits_are(tmp_path):
    vehicles = folder(tmp_path / "a", "car/1.png", "train/1.png", "plane/1.png", "test/2.png")
    data = ImageDataset.from_folder(vehicles)
    assert data.classes == ("car", "plane", "test", "train")
    assert data.splits is None
    assert "taken as classes, not as splits" in data.notes[0]
    folder(vehicles, "train/steam/1.png", "car/sport/1.png")
    assert ImageDataset.from_folder(vehicles).classes == ("car", "plane", "test", "train")
    boards = folder(tmp_path / "b", *below(("dev", "test"), ("front", "back")))
    assert ImageDataset.from_folder(boards).classes == ("back", "front")
    assert ImageDataset.from_folder(boards, splits="none").classes == ("dev", "test")


def test_a_folder_that_may_be_a_split_stops(tmp_path):
    root = folder(tmp_path, *below(("train", "test", "pilot")), "docs/figure.png")
    with pytest.raises(DatasetError, match=r"'pilot' in .* --splits pilot=test .*--splits none"):
        ImageDataset.from_folder(root)
    data = ImageDataset.from_folder(root, splits={"pilot": "val"})
    assert [data.splits.count(name) for name in ("train", "val", "test")] == [4, 4, 4]
    assert data.strays == ("docs/figure.png",)
    with pytest.raises(DatasetError, match=r"no split is called 'pilto' .*which has: .*'pilot'"):
        ImageDataset.from_folder(root, splits={"pilto": "val"})
    with pytest.raises(DatasetError, match="expected train, val or test .*received 'exam'"):
        ImageDataset.from_folder(root, splits={"pilot": "exam"})


@pytest.mark.parametrize("place", ["", "store/", "ant/"])
def test_a_cache_of_featx_is_known_by_its_content(tmp_path, place):
    root = folder(tmp_path, "ant/1.png", "bee/1.png", "spaces/real.png")
    folder(root, *(f"{place}{name}" for name in ("engines/m/model.bin", "tmp/x")))
    folder(root, f"{place}spaces/tiny-0/spec.json", f"{place}spaces/tiny-0/picture.png")
    data = ImageDataset.from_folder(root)
    assert data.classes == (("ant", "bee") if not place else ("ant", "bee", "spaces"))
    assert not data.empty_classes
    assert not data.strays


@pytest.mark.parametrize("word", ["pilot", "extra", "3"])
def test_columns_of_splits(tmp_path, word):
    table = tmp_path / "d.csv"
    table.write_text(f"path,label,split\na,x,Train\nb,y,{word}\nc,x,TESTING\nd,x,NaN\n", "utf-8")
    with pytest.raises(DatasetError, match=rf"'{word}' in 'd.csv' .* --splits {word}=test"):
        ImageDataset.from_csv(table)
    data = ImageDataset.from_any(table, splits={word: "val"})
    assert data.splits == ("train", "val", "test", "")
    assert dict(data.split_names) == {"Train": "train", word: "val", "TESTING": "test"}
    with pytest.raises(DatasetError, match=f"'{word}' in 'paths' could be a split"):
        ImageDataset.from_paths(["a"], splits=[word])
    images = np.zeros((2, 8, 8), np.uint8)
    np.savez(tmp_path / "d.npz", x=images, split=np.array(["train", word]))
    with pytest.raises(DatasetError, match=f"'{word}' in 'd' could be a split"):
        ImageDataset.from_npz(tmp_path / "d.npz")
    np.savez(tmp_path / "e.npz", x_train=images, **{f"x_{word}": images})
    with pytest.raises(DatasetError, match=f"'{word}' in 'e' could be a split"):
        ImageDataset.from_npz(tmp_path / "e.npz")
    assert ImageDataset.from_npz(tmp_path / "e.npz", splits={word: "test"}).splits[-1] == "test"


def test_options():
    assert parse_names(["a=b=test", "x=val"]) == {"a=b": "test", "x": "val"}
    assert parse_names(["none"]) == "none"
    assert parse_names([]) is None
    for wrong in ("pilot", "=test", "pilot="):
        with pytest.raises(DatasetError, match="expected "):
            parse_names([wrong])


def test_splits_are_printed_and_are_in_the_json(featx_command, draw_photo, tmp_path):
    for top in ("set_train", "set_holdout"):
        for number, name in enumerate(("ant", "bee")):
            for i in range(3):
                colour = (200, 60, 60) if number else (60, 60, 200)
                draw_photo(tmp_path / "d", f"{top}/{name}/{i}.jpg", seed=i, colour=colour)
    shown = featx_command("extract", tmp_path / "d", "--cache", tmp_path / "c").stdout
    assert "splits: set_train = train (6 images), set_holdout = test (6 images)" in shown
    again = featx_command("extract", "d", "--cache", tmp_path / "c", "--json")
    report = json.loads(again.stdout)
    assert report["splits"] == {"train": 6, "test": 6}
