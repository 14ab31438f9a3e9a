"""Numbers as labels of images: columns of a table, and text."""

import numpy as np
import pytest

from featx.exceptions import DatasetError
from featx.images.dataset import ImageDataset
from featx.images.values import look_like_values, read_values

TABLE = "path;age;Mass;note\na.jpg;3,5;7;x\nb.jpg;;;y\nc.jpg;1e3;-2.5;z\n"


def written(tmp_path, text=TABLE):
    path = tmp_path / "table.csv"
    path.write_text(text, "utf-8")
    return path


def test_columns_of_a_table_are_numbers_with_names(tmp_path):
    path = written(tmp_path)
    data = ImageDataset.from_csv(path, target_columns=["age", "mass"])
    assert data.y.tolist() == ["age=3.5|mass=7.0", "", "age=1000.0|mass=-2.5"]
    labelled = [text for text in data.y.tolist() if text]
    names, values = read_values(labelled, "table")
    assert names == ("age", "mass")
    np.testing.assert_array_equal(values, [[3.5, 7], [1000, -2.5]])
    assert look_like_values(labelled)
    alone = ImageDataset.from_any(path, target_columns=["Mass"])
    assert read_values([alone.y[0]], "table")[0] == ("Mass",)
    np.testing.assert_array_equal(read_values(labelled, "t", names=["mass"])[1], [[7], [-2.5]])


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        (TABLE, ["agee"], "one column 'agee' .* did you mean 'age'"),
        (TABLE, ["age", "AGE"], "given twice"),
        (TABLE, ["note"], "line 2, column 'note': expected a number, received 'x'"),
        (
            "path,a,b\nx.jpg,1,\n",
            ["a", "b"],
            "line 2, column 'b': expected a number, received none",
        ),
        ("path,a\nx.jpg,inf\n", ["a"], "expected a finite number, received 'inf'"),
        ("path,a=b\nx.jpg,1\n", ["a=b"], "without '='"),
        ("path,a\nx.jpg,1\nx.jpg,2\n", ["a"], "lines 2 and 3: 'x.jpg' has two"),
    ],
)
def test_columns_that_are_no_numbers_are_named(tmp_path, text, columns, message):
    path = written(tmp_path, text)
    with pytest.raises(DatasetError, match=message):
        ImageDataset.from_csv(path, target_columns=columns)


def test_target_columns_are_of_a_table(photos):
    with pytest.raises(DatasetError, match="names columns of a table"):
        ImageDataset.from_any(photos, target_columns=["age"])


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["3", "red"], "not all numbers, such as 'red'"),
        (["3", "inf"], "finite numbers, received 'inf'"),
        (["age=3", "mass=3"], "has labels of mass, expected numbers of age"),
        (["age=3|mass=x"], "not all numbers, such as 'age=3|mass=x'"),
    ],
)
def test_labels_that_are_no_numbers_are_named(texts, message):
    with pytest.raises(DatasetError, match=message.replace("|", r"\|")):
        read_values(texts, "the data")


def test_plain_labels_are_numbers():
    names, values = read_values(["3", "4,5", "-1e-3"], "the data")
    assert names == ("value",)
    np.testing.assert_array_equal(values, [[3], [4.5], [-0.001]])
    assert not look_like_values(["3", "4.5"])
