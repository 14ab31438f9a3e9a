from __future__ import annotations

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler

from featx.exceptions import ExportError
from featx.exporting.graph import EXPORTABLE_HEADS, head_steps
from featx.heads.dense import DenseClassifier
from featx.heads.logistic import LogisticPathCV
from featx.heads.making import make_head
from featx.heads.multilabel import MultiLabelHead
from featx.heads.steps import Linear, Sigmoid, Softmax, apply_steps
from featx.selection.transforms import parse_transform, pipeline

WIDTH = 24
TEXTS = {name: name for name in EXPORTABLE_HEADS} | {"dense": "dense:16,8,max_epochs=3"}


def drawn(classes, *, rows=12, seed=0):
    """Features far from 0 and of very different scales, as those of a network can be."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(classes, WIDTH))
    X = np.repeat(centres, rows, axis=0) + 0.7 * rng.normal(size=(classes * rows, WIDTH))
    X = (X + 3) * np.geomspace(0.01, 30, WIDTH)
    return X.astype(np.float32), np.repeat([f"class {k:04d}" for k in range(classes)], rows)


def same(head, X):
    found = apply_steps(X, head_steps(head))
    np.testing.assert_allclose(found, head.predict_proba(X), atol=1e-5)


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("name", EXPORTABLE_HEADS)
def test_steps_give_the_probabilities_of_the_head(name, classes):
    X, y = drawn(classes)
    same(make_head(TEXTS[name]).fit(X, y), X)


@pytest.mark.parametrize("transform", ["none", "l2", "pca:6", "whiten:0.9"])
@pytest.mark.parametrize("name", ["logistic", "nearest-mean"])
def test_what_a_search_puts_before_a_head_goes_along(name, transform):
    X, y = drawn(3)
    same(pipeline(parse_transform(transform), make_head(name), X.shape).fit(X, y), X)


@pytest.mark.parametrize(
    "head",
    [
        "nearest-mean:metric=euclidean",
        "sklearn.linear_model.SGDClassifier:random_state=0",
        "sklearn.discriminant_analysis.LinearDiscriminantAnalysis",
        LogisticPathCV(Cs=[1e-3, 1e-2], cv=2),
    ],
)
def test_other_linear_heads_go_too(head):
    X, y = drawn(3)
    if "SGD" in str(head):  # its own probabilities are not a softmax: only calibrated ones are
        with pytest.raises(ExportError, match="SGDClassifier"):
            head_steps(make_head(head + ",loss=log_loss").fit(X, y))
    same(make_head(head).fit(X, y), X)


def test_a_scaler_components_and_a_linear_head_become_one_matrix():
    X, y = drawn(3)
    head = pipeline(parse_transform("pca:6"), make_head("logistic"), X.shape).fit(X, y)
    linear, softmax = head_steps(head)
    assert isinstance(linear, Linear)
    assert linear.kernel.shape == (WIDTH, 3)
    assert isinstance(softmax, Softmax)


def test_a_thousand_classes():
    X, y = drawn(1000, rows=2)
    same(make_head("nearest-mean").fit(X, y), X)


@pytest.mark.parametrize("name", [name for name in EXPORTABLE_HEADS if name != "dense"])
def test_labels_that_do_not_exclude_one_another(name):
    X, y = drawn(4)
    codes = np.unique(y, return_inverse=True)[1]
    labels = np.column_stack([codes == 0, codes > 1, codes < 0, codes >= 0, codes % 2]).astype(int)
    head = make_head(TEXTS[name], multilabel=True).fit(X, labels)
    same(head, X)
    assert head.predict_proba(X)[0, 2:4].tolist() == [0.0, 1.0]


def test_a_dense_head_of_several_labels_is_one_network():
    X, y = drawn(4)
    labels = np.column_stack([y == y[0], y > "class 0001", y >= y[0]]).astype(int)
    for given in (TEXTS["dense"], DenseClassifier((8,), max_epochs=2)):
        head = make_head(given, multilabel=True).fit(X, labels)
        same(head, X)
        assert isinstance(head_steps(head)[-1], Sigmoid)
    apart = MultiLabelHead(DenseClassifier((8,), max_epochs=2)).fit(X, labels)
    with pytest.raises(ExportError, match="own for each label .*head='dense' is one"):
        head_steps(apart)


@pytest.mark.parametrize(
    ("head", "named"),
    [
        ("knn", "NearestNeighbours"),
        ("forest:n_estimators=3", "TreeEnsemble"),
        ("rbf", "ReducedRBF"),
        (GaussianNB(), "GaussianNB"),
        (make_pipeline(MinMaxScaler(), PCA(3), GaussianNB()), "MinMaxScaler"),
    ],
)
def test_other_heads_say_which_ones_can(head, named):
    X, y = drawn(3)
    with pytest.raises(ExportError, match=rf"{named}.* cannot be exported: expected"):
        head_steps(make_head(head).fit(X, y))


def test_a_class_derived_from_a_known_one_is_not_taken_for_it():
    class Doubtful(LogisticPathCV):
        def predict_proba(self, X):
            return super().predict_proba(X)[:, ::-1]

    X, y = drawn(3)
    with pytest.raises(ExportError, match="Doubtful cannot be exported"):
        head_steps(make_pipeline(StandardScaler(), Doubtful(Cs=[1e-2], cv=2)).fit(X, y))


def test_wrong_steps_are_noticed():
    X, y = drawn(3)
    head = make_pipeline(StandardScaler(), LogisticPathCV(Cs=[1e-2], cv=2)).fit(X, y)
    head[-1].intercept_ = head[-1].intercept_[::-1]
    head[-1].predict_proba = make_head("logistic").fit(X, y)[-1].predict_proba
    with pytest.raises(ExportError, match=r"layers differ from it by [1-9]"):
        head_steps(head)
