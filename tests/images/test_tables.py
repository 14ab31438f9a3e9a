"""CSV tables, as spreadsheets and people write them."""

import sys

import pytest

from featx.exceptions import DatasetError
from featx.images.dataset import ImageDataset
from featx.images.reading import Reading
from featx.images.tables import read_columns


def table(tmp_path, text, encoding="utf-8"):
    file = tmp_path / "birds.csv"
    file.write_bytes(text.encode(encoding))
    return file


def test_columns_in_any_order_and_others_left_alone(tmp_path):
    file = table(
        tmp_path,
        "group,Label,width, path ,split\n1,tit, 10,a/1.jpg,training\n2,,9,a/2.jpg,validation\n"
        "1,tit,3,a/1.jpg,holdout\n",
    )
    data = ImageDataset.from_csv(file)
    assert data.paths == ("a/1.jpg", "a/2.jpg", "a/1.jpg")
    assert data.labels.tolist() == [0, -1, 0]
    assert data.groups == ("1", "2", "1")
    assert data.splits == ("train", "val", "test")
    assert data.name == "birds"
    assert data.file(0) == tmp_path / "a/1.jpg"
    other = ImageDataset.from_csv(file, root=tmp_path / "elsewhere")
    assert other.file(0) == tmp_path / "elsewhere/a/1.jpg"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_dialects(tmp_path, delimiter, encoding, end):
    rows = [("path", "label"), ("vögel/ä.jpg", "Möwe"), ('"x, y; z.jpg"', "Tölpel"), ("", "")]
    text = end.join(delimiter.join(row) for row in rows) + end
    data = ImageDataset.from_csv(table(tmp_path, text, encoding))
    assert data.paths == ("vögel/ä.jpg", "x, y; z.jpg")
    assert data.y.tolist() == ["Möwe", "Tölpel"]


def test_unlabelled_absolute_and_short_rows(tmp_path):
    data = ImageDataset.from_csv(table(tmp_path, "path\n/abs/a.jpg\nb.jpg"))
    assert data.classes is None
    assert data.paths == ("/abs/a.jpg", "b.jpg")
    assert str(data.file(0)) == "/abs/a.jpg"
    short = ImageDataset.from_csv(table(tmp_path, "path,label\na.jpg\nb.jpg,x\n"))
    assert short.labels.tolist() == [-1, 0]


def test_backslashes_of_another_system(tmp_path):
    data = ImageDataset.from_csv(table(tmp_path, "path,label\ncats\\1.jpg,cat\n"))
    assert data.paths == ("cats/1.jpg",)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_paths_need_not_be_utf8_but_labels_must(tmp_path):
    file = tmp_path / "x.csv"
    file.write_bytes(b"path,label\n\xff.png,a\n")
    assert ImageDataset.from_csv(file).paths == ("\udcff.png",)
    file.write_bytes(b"path,label\na.png,M\xf6we\n")
    with pytest.raises(DatasetError, match=r"line 2: the label .* is not UTF-8: save the file"):
        ImageDataset.from_csv(file)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty table: .*expected a header such as path,label"),
        ("path,label\n", "no rows below the header"),
        ("filename,label\na.jpg,x\n", "found columns: filename, label; did you mean 'filename'"),
        (
            "Image,class\na.jpg,x\n",
            "'Image'. Name it with --path-column Image ",
        ),
        ("paths,label\na.jpg,x\n", "did you mean 'paths'"),
        ("u,v\na.jpg,x\n", "expected a column 'path' in .*found columns: u, v$"),
        ("a.jpg,cat\nb.jpg,dog\n", r"expected a header in the first line .*received 'a\.jpg,cat'"),
        ("path,class\na.jpg,x\n", "no column 'label' .*did you mean 'class'"),
        ("path,label,path\na.jpg,x,y\n", "2 columns named 'path'"),
        ("path,label\na.jpg,x\n ,y\n", "line 3: expected a path, received ''"),
        ("path,label\na,b.jpg,x\n", "line 2: 3 values under 2 columns; put quotes"),
        ('path,label\n"a.jpg,x\n', r"line \d: unexpected end of data"),
    ],
)
def test_damaged_tables(tmp_path, text, reason):
    with pytest.raises(DatasetError, match=reason):
        ImageDataset.from_csv(table(tmp_path, text))


def test_other_encodings_and_missing_files(tmp_path):
    file = table(tmp_path, "path,label\na.jpg,x\n", "utf-16")
    with pytest.raises(DatasetError, match=r"is not UTF-8 text \(UTF-16\?\)"):
        ImageDataset.from_csv(file)
    with pytest.raises(
        DatasetError, match=r"no such file: .*bird\.csv'.*did you mean .*birds\.csv"
    ):
        ImageDataset.from_csv(tmp_path / "bird.csv")
    with pytest.raises(DatasetError, match=r"cannot read .*: Is a directory"):
        ImageDataset.from_csv(tmp_path)


ONE_HOT = "path,Cat,dog,split\na.jpg,1,0,train\nb.jpg,1,1,test\nc.jpg,0,0,\nd.jpg,,,\n"


@pytest.mark.parametrize("multilabel", [False, True])
def test_columns_of_0_and_1_are_labels(tmp_path, multilabel):
    data = ImageDataset.from_csv(table(tmp_path, ONE_HOT), multilabel=multilabel)
    assert data.y.tolist() == ["Cat", "Cat|dog", "|", ""]
    assert data.splits == ("train", "test", "", "")
    other = ONE_HOT.replace("1,0,", "True,false,").replace("1,1,", "1.0,1,").replace(",", ";")
    data = ImageDataset.from_csv(table(tmp_path, other), multilabel=multilabel)
    assert data.y.tolist() == ["Cat", "Cat|dog", "|", ""]
    # A column of that name is where labels are, whatever stands beside it.
    text = "path,label,dog,red\na.jpg,cat|indoor,0,1\n"
    data = ImageDataset.from_csv(table(tmp_path, text), multilabel=multilabel)
    assert data.y.tolist() == ["cat|indoor"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("path,cat,dog\na,1,0\nb,1,2\n", "line 3, column 'dog': expected 0 or 1, received '2'"),
        ("path,cat,dog\na,1,0\nb,1\n", "line 3, column 'dog': expected 0 or 1, received ''"),
        ("path,cat,width\na,1,640\n", "'width': .*'640': without a column label .* take the col"),
        ("path,split\na,train\n", "has no labels, found columns: path, split; expected a column"),
        (",path,cat,dog\n0,a,1,0\n", "column 1 is called ''; expected the name of a label"),
        ("path,cat,cat\na,1,0\n", "column 2 is called 'cat'; expected the name of a label, each"),
        ("path,cat|dog,red\na,1,0\n", r"column 2 is called 'cat\|dog'"),
    ],
)
def test_columns_that_have_to_be_labels_and_are_not(tmp_path, text, reason):
    file = table(tmp_path, text)
    with pytest.raises(DatasetError, match=reason):
        ImageDataset.from_csv(file, multilabel=True)
    assert ImageDataset.from_csv(file).labels is None


def test_two_labels_for_one_file_stop(tmp_path):
    same = table(tmp_path, "path,label\na.jpg,ant\nb.jpg,bee\n./a.jpg,ant\na.jpg,\na.jpg,NA\n")
    assert ImageDataset.from_csv(same).y.tolist() == ["ant", "bee", "ant", "", ""]
    other = table(tmp_path, "path,label\na.jpg,ant\nb.jpg,bee\n./a.jpg,wasp\n")
    with pytest.raises(DatasetError, match=r"lines 2 and 4: './a.jpg' has two labels, 'ant' "):
        ImageDataset.from_csv(other)
    sets = table(tmp_path, "path,label\na.jpg,ant|winged\na.jpg,winged|ant\n")
    assert len(ImageDataset.from_csv(sets)) == 2


@pytest.mark.parametrize("text", ["NaN", "NA", "N/A", "null", "None", "<NA>", "nan", "NaT", " "])
def test_texts_that_stand_for_no_label(tmp_path, text):
    data = ImageDataset.from_csv(table(tmp_path, f"path;label\na;ant\nb;{text}\nc;none\n"))
    assert data.y.tolist() == ["ant", "", "none"]


def test_a_column_that_looks_like_splits_is_named(tmp_path):
    text = "path,label,Subset\na,ant,train\nb,bee,test\n"
    data = ImageDataset.from_csv(table(tmp_path, text))
    assert data.splits is None
    assert data.notes == (
        "the column 'Subset' looks like splits and is not used: name it with --split-column Subset "
        "(split_column='Subset')",
    )
    assert not ImageDataset.from_csv(table(tmp_path, text.replace("train", "red"))).notes


def test_addresses_of_files_and_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    text = "path\nfile:///photos/a%20b.jpg\n~/c.jpg\nhttps://d/e.jpg\n"
    data = ImageDataset.from_csv(table(tmp_path, text))
    assert data.paths == ("/photos/a b.jpg", f"{tmp_path}/c.jpg", "https://d/e.jpg")
    listed = ImageDataset.from_paths(["file:///photos/a.jpg", "~/c.jpg"])
    assert listed.paths == ("/photos/a.jpg", f"{tmp_path}/c.jpg")


OTHER_NAMES = "Image ID,species,Fold,Specimen,path\na.jpg,ant,pilot,1,x\nb.jpg,bee,train,2,y\n"


def test_columns_of_any_name(tmp_path):
    file = table(tmp_path, OTHER_NAMES)
    named = {"path_column": "image id", "label_column": "species", "split_column": "Fold"}
    data = ImageDataset.from_any(
        file, **named, group_column="specimen", splits={"pilot": "test"}, root=tmp_path / "x"
    )
    assert data.paths == ("a.jpg", "b.jpg")
    assert data.y.tolist() == ["ant", "bee"]
    assert data.splits == ("test", "train")
    assert data.groups == ("1", "2")
    assert data.file(0) == tmp_path / "x/a.jpg"
    # Columns that are named are no labels.
    file = table(tmp_path, "file,cat,dog,part\na.jpg,1,0,train\nb.jpg,1,1,test\n")
    data = ImageDataset.from_csv(file, path_column="file", split_column="part", multilabel=True)
    assert data.y.tolist() == ["cat", "cat|dog"]


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"path_column": "imageid"}, "'imageid' in .*--path-column .*did you mean 'Image ID'"),
        ({"path_column": "path", "label_column": "kind"}, r"'kind' .*label_column=\.\.\..* found"),
        ({"label_column": "species", "target_columns": ["Fold"]}, "--label-column .*leave one of"),
    ],
)
def test_columns_that_are_not_there(tmp_path, columns, reason):
    with pytest.raises(DatasetError, match=reason):
        ImageDataset.from_csv(table(tmp_path, OTHER_NAMES), **columns)


def test_columns_are_of_tables_only(tmp_path):
    with pytest.raises(DatasetError, match=r"--label-column \(.*\) names a column"):
        ImageDataset.from_any(["a.jpg"], label_column="species")


def test_columns_in_memory_are_read_as_those_of_a_file(tmp_path):
    columns = {
        "file": [tmp_path / "a.jpg", b"b.jpg", "c.jpg"],
        "cat": [1, True, None],
        "dog": [0.0, 1, float("nan")],
        "part": ["train", None, "test"],
    }
    reading = Reading(path_column="file", split_column="part", multilabel=True)
    listing = read_columns(columns, "the frame", root=tmp_path, reading=reading)
    assert listing.paths == [f"{tmp_path}/a.jpg", "b.jpg", "c.jpg"]
    assert listing.labels == ["cat", "cat|dog", ""]
    assert listing.splits == ["train", "", "test"]
    reading = Reading(path_column="file", target_columns=["age"])
    ages = {"file": columns["file"], "age": [3, 4.5, None]}
    listing = read_columns(ages, "the frame", root=tmp_path, reading=reading)
    assert listing.labels == ["age=3.0", "age=4.5", ""]
    wrong = {"path": ["a.jpg", None], "label": [7, 8]}
    with pytest.raises(DatasetError, match="the frame, row 1: expected a path, received None"):
        read_columns(wrong, "the frame", root=tmp_path, reading=Reading())


def test_two_labels_under_two_spellings_of_a_path_stop(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real/a.jpg").write_bytes(b"x")
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "b.jpg").symlink_to("real/a.jpg")
    for other in ("./real/../real/a.jpg", f"{tmp_path}/real/a.jpg", "link/a.jpg", "b.jpg"):
        file = table(tmp_path, f"path,label\nreal/a.jpg,ant\n{other},bee\n")
        with pytest.raises(DatasetError, match=r"has two labels, 'ant' \(as 'real/a\.jpg'\) and"):
            ImageDataset.from_csv(file)
    with pytest.raises(DatasetError, match="rows 0 and 1: .* has two labels"):
        ImageDataset.from_paths(["a.jpg", "./a.jpg"], ["ant", "bee"])
