from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from featx.exceptions import DatasetError
from featx.images.dataset import ImageDataset
from featx.images.sources import listed_paths

NAMES = ["a.jpg", "b/ü.jpg"]
BYTES = [name.encode() for name in NAMES]


class Column:
    """As pandas and polars have columns: no sequence, but `to_numpy` and a shape."""

    def __init__(self, values):
        self.values = np.asarray(values, dtype=object)
        self.shape = self.values.shape

    def to_numpy(self):
        return self.values

    def __getitem__(self, rows):
        return Column(self.values[rows])


FORMS = {
    "list": NAMES,
    "tuple": tuple(NAMES),
    "Path": [Path(name) for name in NAMES],
    "bytes": BYTES,
    "mixed": [NAMES[0], Path(NAMES[1])],
    "array of text": np.array(NAMES),
    "array of bytes": np.array(BYTES),
    "objects": np.array(NAMES, dtype=object),
    "objects that are bytes": np.array(BYTES, dtype=object),
    "objects that are paths": np.array([Path(name) for name in NAMES], dtype=object),
    "a column of objects": np.array(NAMES, dtype=object)[:, None],
    "a column of bytes": np.array(BYTES)[:, None],
    "rows of one": [[name] for name in NAMES],
    "Series": Column(NAMES),
    "frame": Column(np.array(NAMES)[:, None]),
}
if hasattr(np.dtypes, "StringDType"):
    FORMS["StringDType"] = np.array(NAMES, dtype=np.dtypes.StringDType())


@pytest.mark.parametrize("form", FORMS)
def test_every_usual_form_of_paths_is_understood(form):
    assert ImageDataset.from_any(FORMS[form]).paths == tuple(NAMES)


def test_columns_of_pandas_and_polars():
    pandas = pytest.importorskip("pandas")
    series = pandas.Series(NAMES)
    forms = [series, series.astype("string"), series.astype("category"), pandas.Index(NAMES)]
    for form in [*forms, pandas.DataFrame({"path": NAMES})]:
        assert ImageDataset.from_any(form).paths == tuple(NAMES)
    assert listed_paths(pandas.DataFrame(np.eye(3))) is None
    with pytest.raises(DatasetError, match="received 2 columns"):
        listed_paths(pandas.DataFrame({"path": NAMES, "other": NAMES}))
    polars = pytest.importorskip("polars")
    for form in (polars.Series(NAMES), polars.DataFrame({"path": NAMES})):
        assert ImageDataset.from_any(form).paths == tuple(NAMES)


@pytest.mark.parametrize(
    "features",
    [np.eye(3), np.eye(3).tolist(), [[0.5], [1.0]], np.eye(3).astype(object), [], np.zeros((0,))],
)
def test_features_are_no_paths(features):
    assert listed_paths(features) is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.array([NAMES, NAMES]), "expected one column of paths, received 2 columns"),
        (["a.jpg", None], "expected a path, received NoneType"),
        (Column(["a.jpg", float("nan")]), "expected a path, received float"),
        (
            ["a.jpg", b"\x89PNG\r\n\x1a\n\0\0"],
            "received the content of a file: give a list of paths",
        ),
        (["a.jpg", ""], "expected a path"),
    ],
)
def test_what_is_no_path_has_its_message(given, message):
    with pytest.raises(DatasetError, match=message):
        ImageDataset.from_any(given)
