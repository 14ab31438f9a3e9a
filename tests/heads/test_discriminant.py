import numpy as np
import pytest
from sklearn.datasets import load_digits, load_iris
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from featx.exceptions import HeadError
from featx.heads.discriminant import ShrinkageLDA


@pytest.mark.parametrize("shrinkage", ["auto", 0.1, 1.0])
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_it_agrees_with_scikit_learn(shrinkage, classes):
    X, y = load_digits(return_X_y=True)
    X, y = X[y < classes], y[y < classes]
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage).fit(X, y)
    ours = ShrinkageLDA(shrinkage=shrinkage).fit(X, y)
    np.testing.assert_allclose(ours.decision_function(X), theirs.decision_function(X), atol=1e-6)
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=1e-6)
    np.testing.assert_array_equal(ours.predict(X), theirs.predict(X))


def test_one_image_a_class_is_the_nearest_mean():
    X = np.array([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
    head = ShrinkageLDA().fit(X, ["a", "b", "c"])
    assert head.predict([[1.9, 0.0], [2.1, 0.0], [0.1, 3.0]]).tolist() == ["a", "b", "c"]


def test_without_shrinkage_it_survives_a_singular_covariance():
    X, y = load_iris(return_X_y=True)
    X = np.column_stack([X, X[:, 0], np.ones(len(X))])
    assert ShrinkageLDA(shrinkage=0.0).fit(X, y).score(X, y) > 0.9


def test_identical_images_are_no_obstacle():
    X = np.repeat(np.eye(2), 6, axis=0)
    head = ShrinkageLDA().fit(X, np.repeat([0, 1], 6))
    assert head.predict(np.eye(2)).tolist() == [0, 1]


@pytest.mark.parametrize("value", [-0.1, 1.5, "ledoit", True, None])
def test_a_shrinkage_out_of_range_is_refused(value):
    with pytest.raises(HeadError, match='shrinkage must be "auto" or a number from 0 to 1'):
        ShrinkageLDA(shrinkage=value).fit(np.eye(2), [0, 1])


def test_class_weights_are_scikit_learns_priors():
    X, y = load_digits(n_class=3, return_X_y=True)
    X, y = X[40:], y[40:]
    balanced = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.1, priors=[1 / 3] * 3)
    ours = ShrinkageLDA(shrinkage=0.1, class_weight="balanced").fit(X, y)
    expected = balanced.fit(X, y).decision_function(X)
    np.testing.assert_allclose(ours.decision_function(X), expected, atol=1e-6)
    counts = np.bincount(y)
    weights = np.array([1.0, 2.0, 5.0])
    given = LinearDiscriminantAnalysis(
        solver="lsqr", shrinkage=0.1, priors=counts * weights / (counts @ weights)
    )
    ours = ShrinkageLDA(shrinkage=0.1, class_weight={0: 1.0, 1: 2.0, 2: 5.0}).fit(X, y)
    expected = given.fit(X, y).decision_function(X)
    np.testing.assert_allclose(ours.decision_function(X), expected, atol=1e-6)


def test_a_model_saved_without_class_weight_still_shows_its_parameters():
    head = ShrinkageLDA().fit(np.eye(2), [0, 1])
    del head.__dict__["class_weight"]
    assert head.get_params() == {"shrinkage": "auto", "class_weight": None}
