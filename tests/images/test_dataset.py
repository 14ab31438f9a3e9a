"""Datasets from folders, lists and labels."""

import os
import pickle
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featx.exceptions import DatasetError, ImageError
from featx.images.dataset import ImageDataset
from featx.images.labels import encode_labels


def photo(path, colour=(1, 2, 3)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), colour).save(path)


def touch(path, data=b"x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def test_sub_folders_are_classes_at_any_depth(tmp_path):
    for name in ("dog/b.png", "cat/deep/er/z.JPG", "cat/a.jpeg", "Ärger/x.webp", "猫/1.png"):
        photo(tmp_path / name)
    data = ImageDataset.from_folder(tmp_path)
    assert data.classes == ("cat", "dog", "Ärger", "猫")
    assert data.paths == (
        "cat/a.jpeg",
        "cat/deep/er/z.JPG",
        "dog/b.png",
        "Ärger/x.webp",
        "猫/1.png",
    )
    assert data.labels.tolist() == [0, 0, 1, 2, 3]
    assert data.labels.dtype == np.int32
    assert data.y.tolist() == ["cat", "cat", "dog", "Ärger", "猫"]
    assert data.class_counts() == {"cat": 2, "dog": 1, "Ärger": 1, "猫": 1}
    assert data.name == tmp_path.name
    assert data.file(1) == tmp_path / "cat/deep/er/z.JPG"
    assert data.read(0) == (tmp_path / "cat/a.jpeg").read_bytes()
    assert data.strays == ()
    assert len(data) == 5
    assert "5 images, 4 classes: cat 2, dog 1" in repr(data)


def test_order_is_by_class_then_path(tmp_path):
    for name in ("a b/1.png", "a/2.png", "a/1.png", "a-c/1.png"):
        touch(tmp_path / name)
    data = ImageDataset.from_folder(tmp_path)
    assert data.paths == ("a/1.png", "a/2.png", "a b/1.png", "a-c/1.png")
    assert data.labels.tolist() == sorted(data.labels.tolist())


def test_hidden_files_and_strays(tmp_path):
    photo(tmp_path / "cat/a.png")
    photo(tmp_path / "dog/a.png")
    photo(tmp_path / "top.png")
    for name in (
        ".DS_Store",
        ".git/config.png",
        "cat/.DS_Store",
        "cat/._a.png",
        "cat/Thumbs.db",
        "dog/desktop.ini",
        "__MACOSX/cat/a.png",
        "@eaDir/a.png",
        "cat/notes.txt",
        "README",
    ):
        touch(tmp_path / name)
    (tmp_path / "empty/deep").mkdir(parents=True)
    data = ImageDataset.from_folder(tmp_path)
    assert data.classes == ("cat", "dog")
    assert data.paths == ("cat/a.png", "dog/a.png")
    assert dict(zip(data.strays, data.stray_reasons, strict=True)) == {
        "README": "no image extension",
        "cat/notes.txt": "no image extension",
        "top.png": "an image beside the class folders",
    }
    assert data.empty_classes == ("empty",)
    assert "3 strays" in repr(data)


def test_composed_and_decomposed_names_stay_apart(tmp_path):
    names = [unicodedata.normalize(form, "é") for form in ("NFC", "NFD")]
    for name in names:
        touch(tmp_path / name / "a.png")
    if len(list(tmp_path.iterdir())) < 2:
        pytest.skip("this file system merges them")
    data = ImageDataset.from_folder(tmp_path)
    assert sorted(data.classes) == sorted(names)
    assert len(data) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_names_that_are_not_utf8_survive(tmp_path):
    photo(tmp_path / os.fsdecode(b"caf\xe9/\xff.png"))
    data = ImageDataset.from_folder(tmp_path)
    assert data.paths == ("caf\udce9/\udcff.png",)
    assert data.read(0).startswith(b"\x89PNG")
    assert len(data.digest()) == 64
    assert data.y.tolist() == ["caf\udce9"]


def test_a_split_without_classes_is_unlabelled(tmp_path):
    for name in ("train/cat/a.png", "train/dog/a.png", "train/x.png", "test/1.png"):
        touch(tmp_path / name)
    data = ImageDataset.from_folder(tmp_path)
    assert data.paths == ("test/1.png", "train/cat/a.png", "train/dog/a.png")
    assert data.splits == ("test", "train", "train")
    assert data.labels.tolist() == [-1, 0, 1]
    assert data.y.tolist() == ["", "cat", "dog"]
    assert data.strays == ("train/x.png",)
    assert "1 without a label" in repr(data)


def test_without_labels(tmp_path):
    touch(tmp_path / "b.png")
    touch(tmp_path / "a.png")
    touch(tmp_path / "notes.txt")
    data = ImageDataset.from_folder(tmp_path)
    assert (data.paths, data.classes, data.labels, data.y) == (("a.png", "b.png"), None, None, None)
    assert data.strays == ("notes.txt",)
    touch(tmp_path / "sub/c.png")
    every = ImageDataset.from_folder(tmp_path, labels="none")
    assert every.paths == ("a.png", "b.png", "sub/c.png")
    assert every.classes is None


def test_links_are_followed_and_loops_end(tmp_path):
    photo(tmp_path / "elsewhere/real.png")
    root = tmp_path / "data"
    photo(root / "cat/a.png")
    (root / "cat/linked.png").symlink_to(tmp_path / "elsewhere/real.png")
    (root / "cat/broken.png").symlink_to(tmp_path / "nowhere.png")
    (root / "cat/up").symlink_to(root)
    (root / "cat/self").symlink_to("self")
    (root / "dog").symlink_to(tmp_path / "elsewhere")
    data = ImageDataset.from_folder(root)
    assert data.paths == ("cat/a.png", "cat/linked.png", "dog/real.png")
    reasons = dict(zip(data.strays, data.stray_reasons, strict=True))
    assert reasons.pop("cat/self")
    assert reasons == {
        "cat/broken.png": "a link to nothing",
        "cat/up": "a link to a folder above it",
    }
    assert data.read(2) == (tmp_path / "elsewhere/real.png").read_bytes()


def test_wrong_folders(tmp_path):
    (tmp_path / "photos").mkdir()
    with pytest.raises(DatasetError, match=r"no such folder: .*phots'.*did you mean .*photos"):
        ImageDataset.from_folder(tmp_path / "phots")
    with pytest.raises(DatasetError, match=r"no such folder: .*'.*qqq' has no such|no such entry"):
        ImageDataset.from_folder(tmp_path / "qqq/deep")
    with pytest.raises(DatasetError, match=r"no image in .*expected a sub-folder .*found no files"):
        ImageDataset.from_folder(tmp_path / "photos")
    for i in range(12):
        touch(tmp_path / f"photos/{i}.txt")
    touch(tmp_path / "photos/x.csv")
    with pytest.raises(DatasetError, match=r"13 files, none .*: \.txt x 12, \.csv x 1"):
        ImageDataset.from_folder(tmp_path / "photos")
    with pytest.raises(DatasetError, match="expected a folder, received a file"):
        ImageDataset.from_folder(tmp_path / "photos/x.csv")
    with pytest.raises(DatasetError, match="labels must be 'infer' or 'none', received 'yes'"):
        ImageDataset.from_folder(tmp_path, labels="yes")


def test_one_class_only(tmp_path):
    for name in ("photos/cat/a.png", "photos/dog/a.png"):
        touch(tmp_path / name)
    data = ImageDataset.from_folder(tmp_path)
    with pytest.raises(
        DatasetError, match=r"at least 2 .*found 1: 'photos' \(2 images\).*give .*photos"
    ):
        data.require_classes()
    data.require_classes(1)
    (tmp_path / "photos/bird").mkdir()
    inner = ImageDataset.from_folder(tmp_path / "photos")
    inner.require_classes()
    with pytest.raises(
        DatasetError, match=r"at least 3 .*without any image: 'bird'; put the images"
    ):
        inner.require_classes(3)
    with pytest.raises(DatasetError, match="has no labels: put the images into one sub-folder"):
        ImageDataset.from_paths(["a.png"]).require_classes()


def test_a_large_folder_is_listed_once(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(3000):
            (tmp_path / name / f"{i}.jpg").touch()
    asked, stat, scandir = [], os.stat, os.scandir
    monkeypatch.setattr(os, "stat", lambda *a, **k: asked.append("stat") or stat(*a, **k))
    monkeypatch.setattr(os, "scandir", lambda *a: asked.append("scandir") or scandir(*a))
    assert len(ImageDataset.from_folder(tmp_path)) == 6000
    # Nothing is asked of the disk for each file: this is what makes it fast.
    assert len(asked) < 60


def test_paths(tmp_path):
    photo(tmp_path / "a.png")
    data = ImageDataset.from_paths(
        [tmp_path / "a.png", "missing.png"], ["x", None], groups=[1, 2], splits=["train", "test"]
    )
    assert data.paths == (f"{tmp_path.as_posix()}/a.png", "missing.png")
    assert (data.groups, data.splits) == (("1", "2"), ("train", "test"))
    assert data.labels.tolist() == [0, -1]
    assert data.read(0)
    with pytest.raises(ImageError, match=r"^no such file$"):
        data.read(1)
    with pytest.raises(DatasetError, match="are files, not arrays"):
        data.image(0)
    for bad, reason in (
        ("a.png", "expected a list of paths, received one"),
        ([], "at least one path"),
        ([3], "expected a path, received int: '3'"),
        ([""], "expected a path, received str"),
    ):
        with pytest.raises(DatasetError, match=reason):
            ImageDataset.from_paths(bad)
    with pytest.raises(DatasetError, match="expected 2 labels, one for each input, received 3"):
        ImageDataset.from_paths(["a", "b"], [1, 2, 3])
    with pytest.raises(DatasetError, match="expected 2 groups, one an image, received 1"):
        ImageDataset.from_paths(["a", "b"], groups=["g"])


@pytest.mark.parametrize(
    ("labels", "classes", "indices"),
    [
        (["b", "a", "b"], ("a", "b"), [1, 0, 1]),
        ([10, 9, 10], ("9", "10"), [1, 0, 1]),
        (["10", "9", "10"], ("10", "9"), [0, 1, 0]),
        (np.array([2, 1, 2]), ("1", "2"), [1, 0, 1]),
        (np.array([[2], [1], [2]]), ("1", "2"), [1, 0, 1]),
        (np.array([2.0, np.nan, 10.0]), ("2", "10"), [0, -1, 1]),
        ([True, False, None], ("False", "True"), [1, 0, -1]),
        (np.array([True, False, True]), ("False", "True"), [1, 0, 1]),
        (["", float("nan"), "x"], ("x",), [-1, -1, 0]),
        (np.array([b"u", b"v", b"u"]), ("u", "v"), [0, 1, 0]),
        (np.array(["猫", "é", "猫"], dtype=object), ("é", "猫"), [1, 0, 1]),
        ([-1, 3, 0], ("-1", "0", "3"), [0, 2, 1]),
        ([10.5, 9.0, None], ("9", "10.5"), [1, 0, -1]),
        ([None, None, None], (), [-1, -1, -1]),
    ],
)
def test_labels_of_every_form(labels, classes, indices):
    got, codes = encode_labels(labels, 3)
    assert (got, codes.tolist()) == (classes, indices)
    data = ImageDataset.from_paths(["1", "2", "3"], labels)
    assert data.y.tolist() == [classes[i] if i >= 0 else "" for i in indices]


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (np.eye(3), r"received \(3, 3\): turn one-hot rows .*argmax"),
        ([["a"], ["b"], ["c"]], "labels of str, int, float or bool, received list"),
        ("abc", "received the text 'abc'"),
        ([b"\xff", b"a", b"a"], "labels in UTF-8"),
    ],
)
def test_labels_that_are_none(labels, reason):
    with pytest.raises(DatasetError, match=reason):
        ImageDataset.from_paths(["1", "2", "3"], labels)


def test_subset_with_labels_and_digest():
    data = ImageDataset.from_paths(list("abcd"), [1, 2, 1, 3], groups=list("wxyz"))
    part = data.subset([3, 0])
    assert (part.paths, part.labels.tolist(), part.groups) == (("d", "a"), [2, 0], ("z", "w"))
    assert part.classes == data.classes
    assert data.subset(np.array([True, False, False, True])).paths == ("a", "d")
    assert data.subset([-1]).paths == ("d",)
    assert len(data.subset([])) == 0
    with pytest.raises(DatasetError, match="no such image among 4"):
        data.subset([4])
    with pytest.raises(DatasetError, match=r"a mask of 4 values, received \(2,\)"):
        data.subset([True, False])

    other = data.with_labels(["p", "q", None, "p"])
    assert (other.classes, other.labels.tolist()) == (("p", "q"), [0, 1, -1, 0])
    fixed = data.with_labels(["q", "q", "q", "q"], classes=["q", "p"])
    assert (fixed.classes, fixed.class_counts()) == (("q", "p"), {"q": 4, "p": 0})
    with pytest.raises(DatasetError, match="labels that are no classes: z; the classes are q, p"):
        data.with_labels(["z"] * 4, classes=["q", "p"])
    assert data.with_labels(None).classes is None

    same = ImageDataset.from_paths(list("abcd"), [1, 2, 1, 3], groups=list("wxyz"), name="other")
    assert same.digest() == data.digest()
    assert len({d.digest() for d in (data, part, other, data.with_labels(None))}) == 4
    with pytest.raises(ValueError, match="read-only"):
        data.labels[0] = 1
    with pytest.raises(AttributeError, match="cannot assign"):
        data.name = "x"
    assert pickle.loads(pickle.dumps(data)).digest() == data.digest()


def test_inconsistent_columns_are_refused():
    with pytest.raises(DatasetError, match="labels and classes together"):
        ImageDataset(name="x", paths=("a",), classes=("k",))
    with pytest.raises(DatasetError, match="distinct classes"):
        ImageDataset(name="x", paths=("a",), classes=("k", "k"), labels=np.array([0]))
    with pytest.raises(DatasetError, match="labels from -1 to 0"):
        ImageDataset(name="x", paths=("a",), classes=("k",), labels=np.array([1]))


def test_anything(tmp_path):
    photo(tmp_path / "set/cat/a.png")
    photo(tmp_path / "set/dog/a.png")
    (tmp_path / "table.csv").write_text("path,label\nset/cat/a.png,cat\n")
    np.savez(tmp_path / "arrays.npz", x=np.zeros((2, 4, 4), np.uint8))
    (tmp_path / "no_extension").write_bytes((tmp_path / "set/cat/a.png").read_bytes())
    (tmp_path / "notes.txt").write_text("hello")
    read = ImageDataset.from_any
    assert read(tmp_path / "set").classes == ("cat", "dog")
    assert read(str(tmp_path / "table.csv")).classes == ("cat",)
    assert len(read(tmp_path / "arrays.npz")) == 2
    one = read(tmp_path / "set/cat/a.png")
    assert (len(one), one.name, one.classes) == (1, "a", None)
    assert read(tmp_path / "no_extension").read(0).startswith(b"\x89PNG")
    mixed = read([str(tmp_path / "no_extension"), tmp_path / "set"])
    assert [Path(p).name for p in mixed.paths] == ["no_extension", "a.png", "a.png"]
    assert all(mixed.read(i) for i in range(3))
    assert read(np.array(["a.png", "b.png"])).paths == ("a.png", "b.png")
    assert read([np.zeros((3, 4), np.uint8), np.zeros((5, 6, 3), np.uint8)]).image(1).shape == (
        5,
        6,
        3,
    )
    assert read(one) is one
    with pytest.raises(DatasetError, match=r"no such file or folder: .*sett'.*did you mean .*set'"):
        read(tmp_path / "sett")
    with pytest.raises(DatasetError, match=r"expected a folder, a \.csv .*notes\.txt"):
        read(tmp_path / "notes.txt")
    with pytest.raises(DatasetError, match="received int"):
        read(3)


def test_one_picture_is_one_picture_through_every_door():
    one = np.zeros((32, 24, 3), np.uint8)
    assert len(ImageDataset.from_any(one)) == len(ImageDataset.from_arrays(one)) == 1
    assert len(ImageDataset.from_arrays(one, ["cat"])) == 1
    # Labels say which of two readings is meant.
    assert len(ImageDataset.from_arrays(one, ["cat"] * 32)) == 32
    ambiguous = np.zeros((3, 32, 24), np.uint8)
    assert len(ImageDataset.from_arrays(ambiguous, ["a", "b", "c"])) == 3
    for read in (ImageDataset.from_any, ImageDataset.from_arrays):
        with pytest.raises(DatasetError, match="3 grey pictures of 32x24 or one channels-first"):
            read(ambiguous)
