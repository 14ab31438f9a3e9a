import numpy as np
import pytest
from sklearn.datasets import load_digits, make_blobs
from sklearn.linear_model import RidgeClassifier
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split
from sklearn.svm import LinearSVC

from featx.exceptions import HeadError
from featx.heads.calibrated import TemperatureCalibrated, fit_temperature


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return train_test_split(X / 16, y, test_size=0.5, random_state=0, stratify=y)


@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("estimator", [LinearSVC(random_state=0), RidgeClassifier()])
def test_predict_is_the_wrapped_estimators(digits, estimator, classes):
    X, fresh, y, _ = digits
    head = TemperatureCalibrated(estimator).fit(X[y < classes], y[y < classes])
    plain = type(estimator)(**estimator.get_params()).fit(X[y < classes], y[y < classes])
    np.testing.assert_array_equal(head.predict(fresh), plain.predict(fresh))
    np.testing.assert_allclose(
        head.decision_function(fresh), plain.decision_function(fresh), atol=1e-9
    )
    np.testing.assert_array_equal(
        head.classes_[head.predict_proba(fresh).argmax(axis=1)], plain.predict(fresh)
    )


@pytest.mark.parametrize("estimator", [LinearSVC(random_state=0), RidgeClassifier()])
def test_probabilities_say_how_often_it_is_right(digits, estimator):
    X, fresh, y, truth = digits
    head = TemperatureCalibrated(estimator).fit(X, y)
    probabilities = head.predict_proba(fresh)
    assert abs(probabilities.max(axis=1).mean() - head.score(fresh, truth)) < 0.05
    calibrated = log_loss(truth, probabilities)
    head.temperature_ = 1.0
    assert calibrated < log_loss(truth, head.predict_proba(fresh))


def test_separable_margins_do_not_make_every_probability_0_or_1():
    X, y = make_blobs(40, 5, centers=2, cluster_std=0.1, random_state=0)
    head = TemperatureCalibrated(LinearSVC(random_state=0)).fit(X, y)
    sure = head.predict_proba(X).max(axis=1)
    assert head.score(X, y) == 1
    assert sure.mean() == pytest.approx(41 / 42, abs=0.02)


def test_the_temperature_of_margins_drawn_from_a_softmax_is_found():
    rng = np.random.default_rng(0)
    margins = rng.normal(0, 3, (20_000, 4))
    powers = np.exp(margins / 2.5)
    shares = (powers / powers.sum(axis=1, keepdims=True)).cumsum(axis=1)
    codes = (rng.random((20_000, 1)) > shares).sum(axis=1)
    assert fit_temperature(margins, codes) == pytest.approx(2.5, rel=0.03)


def test_margins_that_say_nothing_keep_the_temperature_at_1():
    assert fit_temperature(np.zeros((6, 3)), np.arange(6) % 3) == 1.0


@pytest.mark.parametrize(
    ("counts", "folds"),
    [((1, 1), 0), ((1, 9), 0), ((2, 2), 2), ((3, 9), 3), ((9, 9), 5), ((1, 4, 9), 4)],
)
def test_the_folds_follow_the_smallest_class_that_has_two_images(counts, folds):
    y = np.repeat(np.arange(len(counts)), counts)
    X = np.random.default_rng(0).normal(size=(len(y), 6)) + 3 * np.eye(len(counts), 6)[y]
    head = TemperatureCalibrated(LinearSVC(random_state=0)).fit(X, y)
    assert head.n_folds_ == folds
    assert (head.temperature_ == 1.0) == (folds == 0)


def test_one_class_is_refused():
    with pytest.raises(HeadError, match="one class only: 'ants'; a classifier needs at least two"):
        TemperatureCalibrated(LinearSVC()).fit(np.eye(3), ["ants"] * 3)
