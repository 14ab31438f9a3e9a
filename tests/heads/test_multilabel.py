import numpy as np
import pytest
from sklearn.datasets import make_multilabel_classification
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

from featx.exceptions import HeadError
from featx.heads.making import make_head
from featx.heads.multilabel import MultiLabelHead
from featx.heads.storage import dump_head, load_head
from featx.heads.table import head_names

QUICK = {
    "dense": {"hidden": (16,), "max_epochs": 5},
    "knn": {"metric": "euclidean"},
    "forest": {"n_estimators": 20},
    "extra-trees": {"n_estimators": 20},
}
NAMES = [name for name in head_names() if name != "dense"]


@pytest.fixture(scope="module")
def photos():
    X, Y = make_multilabel_classification(
        300, 20, n_classes=4, n_labels=2, length=200, random_state=0
    )
    Y = np.column_stack([Y, np.zeros(300, int), np.ones(300, int)])
    return X.astype(np.float32), Y


@pytest.mark.parametrize("name", NAMES)
def test_every_named_head_learns_several_labels_and_is_kept(photos, name):
    X, Y = photos
    head = make_head(name, multilabel=True, **QUICK.get(name, {})).fit(X[:200], Y[:200])
    probabilities, labels = head.predict_proba(X[200:]), head.predict(X[200:])
    assert probabilities.shape == labels.shape == (100, 6)
    assert ((probabilities >= 0) & (probabilities <= 1)).all()
    assert f1_score(Y[200:, :4], labels[:, :4], average="macro") > 0.75
    # What no image has, or every image, is said of every new one.
    assert (probabilities[:, 4] == 0).all()
    assert (probabilities[:, 5] == 1).all()
    twin = load_head(dump_head(head))
    np.testing.assert_allclose(twin.predict_proba(X[200:]), probabilities, atol=1e-5)


@pytest.mark.parametrize("name", ["ridge", "knn"])
def test_one_fit_serves_all_labels_and_says_the_same(photos, name):
    X, Y = photos
    shared = make_head(name, multilabel=True).fit(X, Y)
    assert len(shared["head"].estimators_) == 1
    for label in range(4):
        single = make_head(name).fit(X, Y[:, label])
        found = shared.predict_proba(X)[:, label]
        expected = single.predict_proba(X)[:, 1]
        np.testing.assert_allclose(found, expected, atol=1e-6 if name == "knn" else 0.1)
        assert ((found > 0.5) == (expected > 0.5)).all()


def test_ridge_with_class_weights_is_fitted_label_by_label(photos):
    X, Y = photos
    head = make_head("ridge:class_weight=balanced", multilabel=True).fit(X, Y)
    assert len(head["head"].estimators_) == 4
    expected = make_head("ridge:class_weight=balanced").fit(X, Y[:, 1]).predict_proba(X)[:, 1]
    np.testing.assert_allclose(head.predict_proba(X)[:, 1], expected, atol=1e-6)


def test_one_label_and_none_that_varies():
    X = np.random.default_rng(0).normal(size=(30, 3))
    one = (X[:, :1] > 0).astype(int)
    assert (
        make_head("ridge", multilabel=True, alpha=1.0).fit(X, one).predict(X) == one
    ).mean() > 0.9
    none = make_head("ridge", multilabel=True).fit(X, np.ones((30, 2), bool))
    assert (none.predict(X) == 1).all()


def test_two_images_with_a_label_are_enough():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(8, 30))
    Y = np.zeros((8, 3), int)
    Y[:2, 0] = Y[2:4, 1] = Y[4:6, 2] = 1
    for name in NAMES:
        head = make_head(name, multilabel=True, **QUICK.get(name, {}))
        assert head.fit(X, Y).predict_proba(X).shape == (8, 3)


def test_an_estimator_and_a_threshold(photos):
    X, Y = photos
    head = make_head(LogisticRegression(max_iter=1000), multilabel=True).fit(X, Y)
    assert isinstance(head, MultiLabelHead)
    bolder = MultiLabelHead(LogisticRegression(max_iter=1000), threshold=0.2).fit(X, Y)
    assert bolder.predict(X).sum() > head.predict(X).sum()
    assert head.score(X, Y) > 0.3


@pytest.mark.parametrize(
    ("Y", "message"),
    [
        (np.arange(8) % 2, r"a matrix of shape \(images, labels\), received shape \(8,\)"),
        (np.zeros((8, 0), int), r"received shape \(8, 0\)"),
        (np.full((8, 2), 2), r"labels must be 0 or 1, received \[2\]"),
        (np.array([["a", "b"]] * 8), "labels must be 0 or 1, received"),
        (np.zeros((7, 2), int), "received 8 rows and 7 labels"),
    ],
)
def test_labels_that_are_no_matrix_of_yes_and_no_are_refused(Y, message):
    with pytest.raises(HeadError, match=message):
        make_head("ridge", multilabel=True).fit(np.random.default_rng(0).normal(size=(8, 3)), Y)


@pytest.mark.parametrize("threshold", [0, 1, True, "half"])
def test_a_threshold_out_of_range_is_refused(threshold):
    with pytest.raises(HeadError, match="threshold must be a number between 0 and 1"):
        MultiLabelHead(LogisticRegression(), threshold=threshold).fit(np.eye(4), np.eye(4))
