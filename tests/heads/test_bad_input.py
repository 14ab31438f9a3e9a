"""What cannot be learned from has one message, whichever head would meet it first."""

import logging

import numpy as np
import pytest

from featx.exceptions import HeadError
from featx.heads.estimators import check_folds, refuse_unlearnable
from featx.heads.making import make_head
from featx.heads.table import head_names

HEADS = [*head_names(), "sklearn.naive_bayes.GaussianNB", "sklearn.svm.SVC"]


def bad(what):
    X, y = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32), np.arange(12) % 3
    if what == "NaN":
        X[5, 1] = np.nan
    elif what == "infinity":
        X[5, 1] = X[9, 0] = np.inf
    elif what == "one class":
        y[:] = 2
    elif what == "labels of another length":
        y = y[:-1]
    elif what == "every column constant":
        X[:] = X[0]
    return X, y


MESSAGES = {
    "NaN": "features must be finite, received NaN or inf in 1 of 12 rows .the first is row 5.",
    "infinity": "received NaN or inf in 2 of 12 rows .the first is row 5.: leave these rows out",
    "one class": "one class only: 2; a classifier needs at least two: add images",
    "labels of another length": "expected one label a feature row, received 12 rows and 11 labels",
    "every column constant": "every column of the features is constant: all 12 rows are the same",
}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("what", MESSAGES)
def test_bad_input_has_its_message(head, what):
    with pytest.raises(HeadError, match=MESSAGES[what]):
        make_head(head).fit(*bad(what))


@pytest.mark.parametrize("name", [name for name in head_names() if name != "dense"])
def test_constant_columns_make_no_nan_and_are_logged(name, caplog):
    rng = np.random.default_rng(0)
    y = np.arange(40) % 2
    X = (rng.normal(size=(40, 6)) + 3 * y[:, None]).astype(np.float32)
    X[:, 2], X[:, 4] = 0, 1e6
    with caplog.at_level(logging.INFO, logger="featx"):
        head = make_head(name).fit(X, y)
    assert "2 of 6 columns are constant" in caplog.text
    assert np.isfinite(head.predict_proba(X)).all()
    assert head.score(X, y) > 0.9


@pytest.mark.parametrize(
    ("y", "folds", "message"),
    [
        (["a"] * 9 + ["b"], 5, "class 'b' has 1 image, 5 folds need 5 of each class: add images"),
        (["a"] * 9 + ["b"] * 3, 5, "class 'b' has 3 images, 5 folds need 5.*: use 3 folds, add"),
        ([0, 1, 2] * 2, 3, r"class 0 has 2 images.*\(2 more classes have too few\)"),
        ([0, 1], 1, "at least 2 folds, received 1"),
    ],
)
def test_more_folds_than_images_of_a_class(y, folds, message):
    with pytest.raises(HeadError, match=message):
        check_folds(y, folds)


def test_folds_that_every_class_can_fill():
    check_folds(["a", "b"] * 5, 5)


@pytest.mark.parametrize("name", [n for n in head_names() if n not in ("dense", "logistic")])
def test_hundreds_of_classes_of_two_and_three_images(name):
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(200, 64)).astype(np.float32)
    y = np.repeat(np.arange(200), [2, 3] * 100)
    X, new = (centres[k] + 0.3 * rng.normal(size=(len(k), 64)) for k in (y, np.arange(200)))
    quick = {"n_estimators": 10} if name in ("forest", "extra-trees") else {}
    head = make_head(name, **quick).fit(X.astype(np.float32), y)
    assert head.predict_proba(new).shape == (200, 200)
    assert head.score(new, np.arange(200)) > (0.5 if quick else 0.95)


def test_large_values_whose_sum_overflows_are_finite_all_the_same():
    refuse_unlearnable(np.linspace(1e307, 1e308, 16).reshape(4, 4), [0, 1, 0, 1])
