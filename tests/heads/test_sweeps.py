"""Every sweep against scikit-learn's estimators, fitted one by one on the same folds."""

import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from featx.exceptions import HeadError
from featx.heads.discriminant import sweep_lda
from featx.heads.making import make_head
from featx.heads.nearest_mean import sweep_nearest_mean
from featx.heads.neighbours import sweep_knn
from featx.heads.ridge import sweep_ridge
from featx.heads.sweep import sweep_rbf, sweep_svm

SHAPES = {"tall": (300, 40, 4), "two classes": (300, 40, 2), "wide": (60, 120, 3)}
SWEEPS = {
    "ridge": sweep_ridge,
    "lda": sweep_lda,
    "knn": sweep_knn,
    "nearest-mean": sweep_nearest_mean,
    "svm": sweep_svm,
    "rbf": sweep_rbf,
}


def features(shape):
    rows, width, classes = SHAPES[shape]
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(classes, width))
    y = np.arange(rows) % classes
    y[: rows // 10] = 0
    rng.shuffle(y)
    spread = 3 * np.arange(1, width + 1) ** -0.3
    X = np.maximum(centres[y] + rng.normal(size=(rows, width)) * spread, 0) * 5 + 3
    X[:, 7] = 3.3
    return X.astype(np.float32), y


def folds_of(X, y, holdout):
    folds = list(StratifiedKFold(5, shuffle=True, random_state=0).split(X, y))
    return folds[:1] if holdout else folds


def two_columns(values):
    return np.column_stack([-values, values]) if values.ndim == 1 else values


def log_odds(values):
    """Scores of one row count up to a constant."""
    return values - values.mean(axis=1, keepdims=True)


def compare(name, candidates, reference, *, holdout, shape, tolerance=2e-4, weight=None):
    X, y = features(shape)
    folds = folds_of(X, y, holdout)
    seen = set()
    for held in SWEEPS[name](X, y, folds, candidates, sample_weight=weight):
        train, test = folds[held.fold]
        scaler = StandardScaler().fit(X[train].astype(np.float64))
        expected = reference(
            candidates[held.candidate],
            scaler.transform(X[train]),
            y[train],
            scaler.transform(X[test]),
            train,
        )
        np.testing.assert_allclose(
            held.values, expected, atol=tolerance * max(1, np.abs(expected).max())
        )
        np.testing.assert_allclose(held.values.argmax(axis=1), expected.argmax(axis=1))
        seen.add((held.candidate, held.fold))
    assert len(seen) == len(candidates) * len(folds)


ANY_DATA = [
    pytest.param(shape, holdout, id=f"{shape}, {'hold-out' if holdout else 'folds'}")
    for shape in SHAPES
    for holdout in (False, True)
]


@pytest.mark.parametrize(("shape", "holdout"), ANY_DATA)
@pytest.mark.parametrize(
    "also", [{}, {"class_weight": "balanced"}, {"class_weight": {0: 2.0, 1: 0.5}}]
)
def test_ridge(shape, holdout, also):
    def reference(params, X, y, new, train):
        return two_columns(RidgeClassifier(**params).fit(X, y).decision_function(new))

    candidates = [{"alpha": float(a), **also} for a in np.logspace(-1, 5, 7)]
    compare("ridge", candidates, reference, holdout=holdout, shape=shape)


@pytest.mark.parametrize("shape", SHAPES)
def test_ridge_with_weights_of_rows_and_without_an_intercept(shape):
    weight = np.random.default_rng(1).uniform(0.1, 3, SHAPES[shape][0])

    def reference(params, X, y, new, train):
        fitted = RidgeClassifier(**params).fit(X, y, sample_weight=weight[train])
        return two_columns(fitted.decision_function(new))

    candidates = [
        {"alpha": alpha, "fit_intercept": fit} for alpha in (1.0, 100.0) for fit in (True, False)
    ]
    compare(
        "ridge", candidates, reference, holdout=False, shape=shape, tolerance=1e-3, weight=weight
    )


@pytest.mark.parametrize(("shape", "holdout"), ANY_DATA)
@pytest.mark.parametrize("balanced", [False, True])
def test_lda(shape, holdout, balanced):
    def reference(params, X, y, new, train):
        classes = int(y.max()) + 1
        priors = np.full(classes, 1 / classes) if balanced else None
        theirs = LinearDiscriminantAnalysis(
            solver="lsqr", shrinkage=params["shrinkage"], priors=priors
        )
        scores = theirs.fit(X, y).decision_function(new)
        if scores.ndim > 1:
            return scores
        # Two classes have one score, the difference of what the sweep gives.
        return np.column_stack([np.zeros(len(new)), scores])

    weight = {"class_weight": "balanced"} if balanced else {}
    candidates = [{"shrinkage": s, **weight} for s in (0.01, 0.1, 0.3, 0.9, 1.0)]
    X, y = features(shape)
    folds = folds_of(X, y, holdout)
    for held in sweep_lda(X, y, folds, candidates):
        train, test = folds[held.fold]
        scaler = StandardScaler().fit(X[train].astype(np.float64))
        expected = reference(
            candidates[held.candidate],
            scaler.transform(X[train]),
            y[train],
            scaler.transform(X[test]),
            train,
        )
        found, expected = log_odds(held.values), log_odds(expected)
        np.testing.assert_allclose(found, expected, atol=2e-3 * np.abs(expected).max())
        np.testing.assert_array_equal(found.argmax(axis=1), expected.argmax(axis=1))


@pytest.mark.parametrize(
    ("shape", "shrinkages"), [("tall", ("auto", 0.0)), ("wide", ("auto", 0.5))]
)
def test_lda_without_a_number_or_without_shrinkage_is_the_heads(shape, shrinkages):
    X, y = features(shape)
    X = np.delete(X, 7, axis=1)
    folds = folds_of(X, y, holdout=True)
    candidates = [{"shrinkage": s} for s in shrinkages]
    for held in sweep_lda(X, y, folds, candidates):
        train, test = folds[0]
        head = make_head("lda", **candidates[held.candidate]).fit(X[train], y[train])
        assert (held.values.argmax(axis=1) == head.predict(X[test])).all()


def test_lda_without_shrinkage_survives_more_columns_than_rows():
    X, y = features("wide")
    folds = folds_of(X, y, holdout=False)
    for held in sweep_lda(X, y, folds, [{"shrinkage": 0.0}]):
        assert np.isfinite(held.values).all()


@pytest.mark.parametrize(("shape", "holdout"), ANY_DATA)
def test_knn(shape, holdout):
    def reference(params, X, y, new, train):
        k = min(params["n_neighbors"], len(X))
        theirs = KNeighborsClassifier(**{**params, "n_neighbors": k}, algorithm="brute")
        return theirs.fit(X, y).predict_proba(new)

    candidates = [
        {"n_neighbors": k, "metric": metric, "weights": weights}
        for k in (1, 3, 10, 400)
        for metric in ("cosine", "euclidean", "manhattan")
        for weights in ("uniform", "distance")
    ]
    compare("knn", candidates, reference, holdout=holdout, shape=shape, tolerance=1e-5)


def test_an_identical_image_decides_alone_by_distance():
    X = np.array([[1.0, 0], [1.1, 0], [1.2, 0.1], [0, 1.0], [1.0, 0], [0, 1.0]], np.float32)
    y = np.array([1, 0, 0, 1, 0, 0])
    folds = [(np.arange(4), np.array([4, 5]))]
    (held,) = sweep_knn(X, y, folds, [{"n_neighbors": 4, "metric": "euclidean"}])
    np.testing.assert_array_equal(held.values, [[0, 1], [0, 1]])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["knn", "nearest-mean"])
def test_default_settings_are_the_heads(name, shape):
    X, y = features(shape)
    folds = folds_of(X, y, holdout=False)
    candidates = [{}, {"metric": "euclidean"}]
    for held in SWEEPS[name](X, y, folds, candidates):
        train, test = folds[held.fold]
        head = make_head(name, **candidates[held.candidate]).fit(X[train], y[train])
        assert (held.values.argmax(axis=1) == head.predict(X[test])).all()


@pytest.mark.parametrize("name", ["svm", "rbf"])
@pytest.mark.parametrize("shape", ["tall", "two classes"])
def test_support_vector_machines_are_the_heads(name, shape):
    X, y = features(shape)
    folds = folds_of(X, y, holdout=True)
    candidates = [{"C": 0.01}, {"C": 1.0, "class_weight": "balanced"}]
    for held in SWEEPS[name](X, y, folds, candidates, seed=3):
        train, test = folds[0]
        head = make_head(name, seed=3, **candidates[held.candidate]).fit(X[train], y[train])
        assert (held.values.argmax(axis=1) == head.predict(X[test])).mean() > 0.98
        assert not held.probabilities


def test_weights_of_rows_reach_the_linear_machine():
    X, y = features("tall")
    folds = folds_of(X, y, holdout=True)
    train, test = folds[0]
    weight = np.random.default_rng(0).uniform(0.1, 2, len(X))
    (held,) = sweep_svm(X, y, folds, [{"C": 0.01}], sample_weight=weight)
    scaler = StandardScaler().fit(X[train])
    theirs = LinearSVC(C=0.01, tol=1e-6, max_iter=100000, random_state=0)
    theirs.fit(scaler.transform(X[train]), y[train], sample_weight=weight[train])
    expected = theirs.decision_function(scaler.transform(X[test]))
    assert (held.values.argmax(axis=1) == expected.argmax(axis=1)).mean() > 0.95


@pytest.mark.parametrize("name", SWEEPS)
@pytest.mark.parametrize("holdout", [False, True])
def test_many_classes_of_few_images(name, holdout):
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(60, 16))
    y = np.repeat(np.arange(60), 3)
    X = (centres[y] + 0.1 * rng.normal(size=(180, 16))).astype(np.float32)
    folds = list(StratifiedKFold(3, shuffle=True, random_state=0).split(X, y))
    for held in SWEEPS[name](X, y, folds[:1] if holdout else folds, [{}]):
        right = held.values.argmax(axis=1) == y[folds[held.fold][1]]
        assert right.mean() > (0.6 if name == "ridge" else 0.95)


@pytest.mark.parametrize("name", SWEEPS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"candidates": [{}, {"alhpa": 1}]}, "unknown parameter 'alhpa'"),
        ({"nan": True}, "received NaN or inf in 1 of 60 rows"),
        ({"short": True}, "expected a matrix of features and a code a row"),
        ({"missing": True}, "class 2 has no row in the training part of fold 0"),
    ],
)
def test_what_cannot_be_measured_is_refused(name, change, message):
    X, y = features("wide")
    folds = folds_of(X, y, holdout=True)
    if "nan" in change:
        X[3, 4] = np.nan
    if "short" in change:
        y = y[:-1]
    if "missing" in change:
        folds = [(np.flatnonzero(y < 2), np.flatnonzero(y == 2))]
    with pytest.raises(HeadError, match=message):
        list(SWEEPS[name](X, y, folds, change.get("candidates", [{}])))


@pytest.mark.parametrize("name", ["knn", "lda", "nearest-mean", "rbf"])
def test_weights_of_rows_where_there_are_none_are_refused(name):
    X, y = features("wide")
    with pytest.raises(HeadError, match=f"{name!r} knows no weights of rows"):
        list(SWEEPS[name](X, y, folds_of(X, y, True), [{}], sample_weight=np.ones(len(y))))


def test_ridge_that_must_be_positive_has_no_shortcut():
    X, y = features("wide")
    with pytest.raises(HeadError, match="positive=True has no shortcut"):
        list(sweep_ridge(X, y, folds_of(X, y, True), [{"positive": True}]))
