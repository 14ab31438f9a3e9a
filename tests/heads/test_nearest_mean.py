import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.metrics import log_loss
from sklearn.neighbors import NearestCentroid

from featx.exceptions import HeadError
from featx.heads.nearest_mean import NearestMean


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    X = X[:, X.std(axis=0) > 2]
    return X[:900], y[:900], X[900:], y[900:]


@pytest.mark.parametrize("classes", [2, 10])
def test_by_distance_it_is_the_nearest_centroid(digits, classes):
    X, y, new, _ = digits
    some = y < classes
    theirs = NearestCentroid().fit(X[some], y[some])
    ours = NearestMean(metric="euclidean").fit(X[some], y[some])
    np.testing.assert_array_equal(ours.predict(new), theirs.predict(new))


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_probabilities_are_calibrated_on_rows_the_means_have_not_seen(digits, metric):
    X, y, new, truth = digits
    head = NearestMean(metric=metric).fit(X, y)
    fitted = log_loss(truth, head.predict_proba(new))
    for factor in (0.25, 4):
        other = NearestMean(metric=metric).fit(X, y)
        other.temperature_ *= factor
        assert log_loss(truth, other.predict_proba(new)) > fitted


def test_the_size_of_a_class_and_of_a_row_do_not_count():
    X = np.array([[1.0, 0.1], [2.0, 0.1], [3.0, 0.2], [0.1, 5.0]])
    head = NearestMean().fit(X, ["a", "a", "a", "b"])
    assert head.predict([[0.01, 0.011], [10, 9]]).tolist() == ["b", "a"]
    assert head.predict([[0.0, 0.0]]).tolist() == ["a"]


def test_one_image_a_class():
    head = NearestMean(metric="euclidean").fit(np.eye(3), ["a", "b", "c"])
    assert head.temperature_ == 1.0
    assert head.predict([[0.1, 0.2, 0.9]]).tolist() == ["c"]


def test_an_unknown_metric_is_refused():
    with pytest.raises(HeadError, match="metric must be 'cosine' or 'euclidean', received 'x'"):
        NearestMean(metric="x").fit(np.eye(2), [0, 1])
