from __future__ import annotations

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.preprocessing import Normalizer, StandardScaler

from featx.heads.head_pipeline import HeadPipeline
from featx.heads.quick import quick_head
from featx.heads.registry import make_head
from featx.heads.storage import dump_head

QUICK = [
    "logistic",
    "svm",
    "ridge",
    "lda",
    "nearest-mean",
    "nearest-mean:metric=euclidean",
    "dense:8",
]
GENERATOR = np.random.default_rng(0)


def data(classes):
    y = np.arange(60) % len(classes)
    X = GENERATOR.normal(size=(60, 7)) + y[:, None]
    return X.astype(np.float32), np.array(classes)[y]


@pytest.mark.parametrize("classes", [["no", "yes"], ["ant", "蜂", "caf\udce9"], [3, 5, 9]], ids=len)
@pytest.mark.parametrize("name", QUICK)
def test_it_answers_as_the_head_itself(name, classes):
    X, y = data(classes)
    head = make_head(name, **({"max_epochs": 2} if "dense" in name else {})).fit(X, y)
    quick = quick_head(dump_head(head))
    fresh = (3 * GENERATOR.normal(size=(40, 7))).astype(np.float32)
    np.testing.assert_allclose(quick.predict_proba(fresh), head.predict_proba(fresh), atol=1e-6)
    assert quick.classes_.tolist() == head.classes_.tolist()
    assert quick.n_features_in_ == 7


@pytest.mark.parametrize(
    "steps", [[("l2", Normalizer())], [("scale", StandardScaler()), ("pca", PCA(3))], []]
)
def test_transforms_of_a_search_are_known(steps):
    X, y = data(["a", "b", "c"])
    head = HeadPipeline([*steps, ("head", LogisticRegression(max_iter=500))]).fit(X, y)
    quick = quick_head(dump_head(head))
    np.testing.assert_allclose(quick.predict_proba(X), head.predict_proba(X), atol=1e-6)


@pytest.mark.parametrize(
    "head",
    [
        make_head("knn"),
        make_head("rbf"),
        GaussianNB(),
        LogisticRegression(solver="liblinear"),
        HeadPipeline([("pca", PCA(3, whiten=True)), ("head", LogisticRegression())]),
    ],
    ids=["knn", "rbf", "bayes", "liblinear", "whitened"],
)
def test_other_heads_are_left_to_scikit_learn(head):
    X, y = data(["a", "b"])
    assert quick_head(dump_head(head.fit(X, y))) is None


def test_damaged_files_are_left_to_the_reader_that_names_the_damage():
    X, y = data(["a", "b"])
    data_ = dump_head(make_head("logistic").fit(X, y))["head.skops"]
    assert quick_head({"head.skops": data_[: len(data_) // 2]}) is None
    assert quick_head({}) is None
