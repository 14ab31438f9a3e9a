"""Labels and splits, missing ones among them, under the names that people give them."""

import json

import numpy as np
import pytest

from featx.exceptions import DatasetError
from featx.images.dataset import ImageDataset
from featx.images.labels import (
    complete_labels,
    look_like_measurements,
    look_like_sets,
    parse_names,
    read_label_sets,
    split_of,
)

MISSING = [None, float("nan"), np.float32("nan"), "", "NaN", " NA ", "<NA>", "null", "N/A", b"nan"]
try:
    import pandas
except ImportError:
    pandas = None
else:
    MISSING += [pandas.NA, pandas.NaT]


@pytest.mark.parametrize("value", MISSING, ids=repr)
def test_missing_labels_are_none_through_every_door(value):
    data = ImageDataset.from_paths(
        ["a", "b", "c"], ["ant", value, "none"], groups=["1", value, "1"]
    )
    assert data.y.tolist() == ["ant", "", "none"]
    assert data.groups == ("1", "", "1")
    array = np.array(["ant", value, "none"], dtype=object)
    assert ImageDataset.from_arrays(np.zeros((3, 8, 8), np.uint8), array).y.tolist()[1] == ""
    with pytest.raises(DatasetError, match=r"1 have none .*: rows 1; leave these rows out"):
        complete_labels(["ant", value, "none"])
    with pytest.raises(DatasetError, match="rows 0"):
        read_label_sets([value, "ant|bee"])
    assert read_label_sets([["ant", value], ["bee"]])[0].tolist() == ["ant", "bee"]


def test_a_folder_is_a_class_whatever_it_is_called(tmp_path):
    for name in ("NA", "null", "nan"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(b"x")
    assert ImageDataset.from_folder(tmp_path).y.tolist() == ["NA", "nan", "null"]
    named = ImageDataset.from_paths(["a", "b"]).with_labels(["NA", "x"], classes=["NA", "x"])
    assert named.y.tolist() == ["NA", "x"]


@pytest.mark.parametrize(
    ("values", "rows", "measured"),
    [
        (range(10), 20, False),
        (range(1, 103), 510, False),
        ([0, 1], 5, False),
        ([-1, 0, 1], 9, False),
        ([1001, 1007, 1012], 30, False),
        (range(75), 75, True),
        (range(18, 93), 300, True),
        (range(1, 90, 2), 9000, True),
        ([20.5, 21.5, 30.0], 3000, True),
        (["0,5", "1,5", "2,5"], 30, True),
        (["1e3", "nan", "inf"], 30, False),
        (["ant", "2"], 3, False),
    ],
)
def test_measurements(values, rows, measured):
    assert bool(look_like_measurements(list(map(str, values)), rows)) is measured


def test_sets_of_labels():
    assert look_like_sets(["ant|winged", "|", "bee"])
    assert look_like_sets(["ant", "ant|winged"])
    assert not look_like_sets(["ant", "bee"])
    assert not look_like_sets(["ant|bee", "wasp"])


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
        (("Training", "Validation"), {"Training": "train", "Validation": "val"}),
        (("valid", "testing"), {"valid": "val", "testing": "test"}),
        (("a/train", "a/test"), {}),
    ],
)
def test_folders_of_splits(tmp_path, tops, meant):
    data = ImageDataset.from_folder(folder(tmp_path, *below(tops)))
    if meant is not None:
        assert dict(data.split_names) == meant
    assert data.classes == (("ant", "bee") if meant != {} else ("a",))
    for path, label, split in zip(data.paths, data.y, data.splits or (), strict=meant != {}):
        assert path.split("/")[:2] == [next(n for n, s in data.split_names if s == split), label]


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


def test_splits_are_printed_and_are_in_the_json(featx_command, draw_photo, tmp_path, small_network):
    for top in ("set_train", "set_holdout"):
        for number, name in enumerate(("ant", "bee")):
            for i in range(3):
                colour = (200, 60, 60) if number else (60, 60, 200)
                draw_photo(tmp_path / "d", f"{top}/{name}/{i}.jpg", seed=i, colour=colour)
    extract = ("extract", tmp_path / "d", "-b", f"file:{small_network}", "--cache", tmp_path / "c")
    shown = featx_command(*extract).stdout
    assert "splits: set_train = train (6 images), set_holdout = test (6 images)" in shown
    report = json.loads(featx_command(*extract, "--json").stdout)
    assert report["splits"] == {"train": 6, "test": 6}


@pytest.mark.parametrize("beside", ["docs/figures/1.png", "docs/1.png", "models/m.txt", "1.png"])
@pytest.mark.parametrize("tops", [("train", "test"), ("seg_train", "seg_test")])
def test_splits_stay_splits_whatever_lies_beside_them(tmp_path, tops, beside):
    files = [f"{tops[0]}/ant/1.png", f"{tops[0]}/bee/1.png", f"{tops[1]}/1.png"]
    folder(tmp_path, *files, beside)
    data = ImageDataset.from_folder(tmp_path)
    assert data.classes == ("ant", "bee")
    assert dict(zip(data.paths, data.splits, strict=True)) == dict(
        zip(files, ["train", "train", "test"], strict=True)
    )
    assert data.strays == (beside,)


def test_splits_in_classes_stay_beside_other_folders(tmp_path):
    root = folder(tmp_path, *below(("ant", "bee"), ("train", "test")), "docs/1.png")
    data = ImageDataset.from_folder(root)
    assert data.classes == ("ant", "bee")
    assert data.splits == ("test", "test", "train", "train") * 2
    assert data.strays == ("docs/1.png",)
    assert data.empty_classes == ()
    folder(tmp_path, *below(("ant", "bee"), ("extra",)))
    with pytest.raises(DatasetError, match=r"'extra' in the classes .* --splits extra=test"):
        ImageDataset.from_folder(root)
    data = ImageDataset.from_folder(root, splits={"extra": "train"})
    assert data.splits == ("train", "train", "test", "test", "train", "train") * 2


def test_missing_labels_of_any_column_are_refused_by_row():
    values = ["ant", None, "bee"]
    columns = [
        values,
        np.array(values, object)[:, None],
        np.ma.array(["ant", "x", "bee"], mask=[False, True, False]),
        np.ma.array([1, 2, 3], mask=[False, True, False]),
        np.array(["ant", "NaN", "bee"], np.dtypes.StringDType()),
        np.array([b"ant", b"Null", b"bee"]),
        ["ant", np.ma.masked, "bee"],
    ]
    pandas = pytest.importorskip("pandas")
    columns += [
        pandas.Series(values),
        pandas.DataFrame({"y": values}),
        pandas.Series([1, None, 2], dtype="Int64"),
        pandas.Series(values, dtype="category"),
    ]
    for column in columns:
        with pytest.raises(DatasetError, match="1 have none .*rows 1;"):
            complete_labels(column)


def test_complete_labels_are_what_scikit_learn_takes():
    assert complete_labels([b"ant", b"bee"]).tolist() == ["ant", "bee"]
    text = complete_labels(np.array(["ant", "bee"], np.dtypes.StringDType()))
    assert text.dtype.kind == "U"
    y = np.array([[1], [0]])
    assert complete_labels(y) is y
    pandas = pytest.importorskip("pandas")
    assert complete_labels(pandas.Series([1, 2], dtype="Int64")).dtype.kind == "i"
