import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from featx.exceptions import HeadError
from featx.heads.neighbours import NearestNeighbours


def test_it_is_scikit_learns_where_there_are_images_enough():
    X, y = load_digits(return_X_y=True)
    ours = NearestNeighbours(n_neighbors=7, weights="uniform", metric="euclidean").fit(
        X[:900], y[:900]
    )
    theirs = KNeighborsClassifier(7, algorithm="brute").fit(X[:900], y[:900])
    np.testing.assert_array_equal(ours.predict_proba(X[900:]), theirs.predict_proba(X[900:]))
    np.testing.assert_array_equal(ours.predict(X[900:]), theirs.predict(X[900:]))


def test_fewer_images_than_neighbours_all_vote():
    head = NearestNeighbours(n_neighbors=10).fit(np.eye(3), ["a", "b", "c"])
    assert head.model_.n_neighbors == 3
    assert head.n_neighbors == 10
    assert head.predict([[0.1, 0.2, 0.9]]).tolist() == ["c"]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"n_neighbors": 0}, "'n_neighbors'"),
        ({"weights": "heavy"}, "'weights'"),
        ({"metric": "x"}, "'metric'"),
    ],
)
def test_a_parameter_out_of_range_is_refused(params, message):
    with pytest.raises(ValueError, match=message):
        NearestNeighbours(**params).fit(np.eye(2), [0, 1])


def test_one_class_is_refused():
    with pytest.raises(HeadError, match="one class only: 3"):
        NearestNeighbours().fit(np.eye(2), [3, 3])
