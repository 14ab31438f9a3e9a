"""A selection of rows is features again: same blocks, its own rows, and taken wherever all are."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

import featx
from featx.exceptions import DatasetError, FeaturesError


@pytest.fixture(scope="module")
def feats(tmp_path_factory):
    """Numbers of 3 classes, 20 rows each in turn, of which the last 15 rows are for testing."""
    generator = np.random.default_rng(0)
    y = np.array(["ants", "bees", "wasps"] * 20)
    X = generator.normal(size=(60, 5)) + 4 * (
        np.unique(y, return_inverse=True)[1][:, None] == [0, 1, 2, 0, 1]
    )
    cache = tmp_path_factory.mktemp("selecting") / "cache"
    return featx.import_features(
        "insects",
        X.astype(np.float32),
        y=y,
        splits=["train"] * 45 + ["test"] * 15,
        groups=[f"nest {row // 2}" for row in range(60)],
        cache=cache,
    )


MASK = np.arange(60) % 7 == 0


@pytest.mark.parametrize(
    ("index", "rows"),
    [
        (slice(10, 20), range(10, 20)),
        (slice(None, None, -9), range(59, -1, -9)),
        (slice(55, 99), range(55, 60)),
        ([3, 1, 2, 1], [3, 1, 2, 1]),
        ([-1, 0], [59, 0]),
        (np.array([7, 8], np.uint8), [7, 8]),
        (MASK, np.flatnonzero(MASK)),
        (MASK.tolist(), np.flatnonzero(MASK)),
        (5, [5]),
        (-1, [59]),
        ([], []),
        (np.zeros(60, bool), []),
    ],
)
def test_everything_that_is_known_of_a_row_goes_with_it(feats, index, rows):
    part, rows = feats[index], list(rows)
    assert isinstance(part, featx.Features)
    assert len(part) == len(rows)
    assert part.name == "insects"
    assert (part.blocks, part.classes) == (feats.blocks, feats.classes)
    for name in ("X", "y", "labels", "keys", "splits", "groups"):
        expected = getattr(feats, name)[rows]
        if len(rows) or name in ("X", "y", "labels", "keys"):
            np.testing.assert_array_equal(getattr(part, name), expected, err_msg=name)
    assert part.paths == [feats.paths[row] for row in rows]
    assert f"{len(rows)} of 60 images" in repr(part)


def test_a_selection_is_selected_from_and_read_in_batches(feats):
    part = feats[feats.splits == "test"][::-1][2:6]
    rows = [57, 56, 55, 54]
    assert repr(part).startswith("<Features 'insects': 4 of 60 images")
    np.testing.assert_array_equal(part.X, feats.X[rows])
    np.testing.assert_array_equal(part.take(np.array([3, 0])), feats.X[[54, 57]])
    batches = list(part.batches(batch_size=3, rows=np.array([1, 2, 3])))
    np.testing.assert_array_equal(np.concatenate([X for X, _ in batches]), feats.X[[56, 55, 54]])
    assert np.concatenate([numbers for _, numbers in batches]).tolist() == [1, 2, 3]
    assert part.width() == 5
    assert [one.y.tolist() for one in part] == [[feats.y[row]] for row in rows]


def test_images_without_features_belong_to_no_selection(photos, tmp_path):
    (photos / "red" / "bad.jpg").write_bytes(b"no image")
    feats = featx.extract(photos, cache=tmp_path / "cache")
    assert len(feats.failed) == 1
    part = feats[feats.y == "red"]
    assert part.failed == []
    assert part.paths == [f"red/{number}.jpg" for number in range(6)]
    assert part.report == {}


def test_training_and_scoring_take_a_selection(feats):
    two = feats[feats.y != "wasps"]
    result = featx.train(two)
    assert result.model.classes_.tolist() == ["ants", "bees"]
    assert result.metrics["protocol"] == "held-out split of 10 images"
    assert result.training["images"] == 30
    scores = featx.evaluate(result.model, two[two.splits == "train"], bootstrap=0)
    assert scores["images"] == 30
    assert scores["training_overlap"]["in_training"] == 30
    with pytest.raises(
        DatasetError, match="one class only: 'ants' .*these are 20 of its 60 images"
    ):
        featx.train(feats[feats.y == "ants"])
    for action in (featx.train, featx.search):
        with pytest.raises(DatasetError, match="none of the 60 images of 'insects' is selected"):
            action(feats[feats.y == "beetles"])


def test_a_search_of_other_rows_does_not_take_their_trials(feats, tmp_path):
    options = {"heads": "knn", "cv": 3, "score": "none", "cache": tmp_path}
    halves = [feats[feats.splits == "train"][start::2] for start in (0, 1)]
    first, second = (featx.search(half[half.y != "wasps"], **options) for half in halves)
    assert first.resumed == 0
    assert second.resumed == 0
    again = featx.search(halves[0][halves[0].y != "wasps"], **options)
    assert again.resumed == len(again.leaderboard)


def test_a_selection_is_packed_and_copied_as_it_is(feats, tmp_path):
    part = feats[[4, 2]]
    featx.pack_dataset(part, tmp_path / "two.npz")
    with np.load(tmp_path / "two.npz") as packed:
        np.testing.assert_array_equal(packed["X"], feats.X[[4, 2]])
    copy = pickle.loads(pickle.dumps(part))
    np.testing.assert_array_equal(copy.X, part.X)
    assert repr(copy) == repr(part)
    assert len(pickle.dumps(part)) < 20_000


def test_numpy_and_scikit_learn_take_features_for_their_matrix(feats):
    from sklearn.model_selection import train_test_split
    from sklearn.neighbors import KNeighborsClassifier

    np.testing.assert_array_equal(np.asarray(feats[:7], dtype=np.float64), feats.X[:7])
    knn = KNeighborsClassifier().fit(feats, feats.y)
    assert knn.score(feats[MASK], feats[MASK].y) > 0.8
    assert feats.shape == (60, 5)
    train, test = train_test_split(feats, test_size=0.25, stratify=feats.y, random_state=0)
    assert isinstance(test, featx.Features)
    assert sorted(train.paths + test.paths) == sorted(feats.paths)
    assert featx.train(train[train.y != "ants"], cv=0).training["images"] > 20


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (60, "there are rows 0 to 59, received row 60"),
        ([1, -61], "there are rows 0 to 59, received row -61"),
        (MASK[:-1], "True or False for each of 60 rows, received 59: make the mask from the same"),
        ("ants", r"received 'ants': for example feats\[10:20\], feats\[feats.y == 'ants'\]"),
        ((1, 2), r"received '\(1, 2\)'"),
        (1.5, "received '1.5'"),
        ([0.0, 1.0], "slice, a mask or row numbers"),
        (None, "received 'None'"),
        ([[1], [2, 3]], "slice, a mask or row numbers"),
        ([["a"]], "slice, a mask or row numbers"),
        (slice("a", "b"), "slice, a mask or row numbers"),
        (None == "test", "received False: .splits, .groups and .y are None where"),
    ],
)  # fmt: skip
def test_a_wrong_index_says_what_a_right_one_is(feats, index, message):
    with pytest.raises(FeaturesError, match=message):
        feats[index]


def test_an_empty_selection_has_no_rows(feats):
    with pytest.raises(FeaturesError, match="there are no rows, received row 0"):
        feats[[]][0]
