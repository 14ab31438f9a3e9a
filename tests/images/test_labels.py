"""Labels that are missing, or are no classes."""

import numpy as np
import pytest

from featx.exceptions import DatasetError
from featx.images.dataset import ImageDataset
from featx.images.labels import (
    check_complete,
    look_like_measurements,
    look_like_sets,
    read_label_sets,
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
        check_complete(["ant", value, "none"])
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
