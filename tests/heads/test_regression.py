"""Heads for numbers: what they learn, how they are kept, and what they refuse."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.neighbors import KNeighborsRegressor
from sklearn.svm import SVR
from sklearn.utils.estimator_checks import parametrize_with_checks

from featx.exceptions import HeadError, UnknownNameError
from featx.heads.dense import DenseRegressor
from featx.heads.learning import fit_head_streamed
from featx.heads.making import make_head
from featx.heads.neighbours import NearestValues
from featx.heads.regression import EachValue
from featx.heads.storage import dump_head, load_head
from featx.heads.table import VALUE_HEADS, find_row, head_names, make_estimator
from featx.selection.measuring import FeatureBlock, fold_data, held_out_together
from featx.selection.search_space import Candidate

SETTINGS = {
    "ridge": {"alpha": 1.0},
    "knn": {"metric": "euclidean"},
    "forest": {"n_estimators": 20, "max_features": 1.0},
    "extra-trees": {"n_estimators": 20, "max_features": 1.0},
    "svm": {"C": 1.0},
    "dense": {"hidden": (), "learning_rate": 0.05, "batch_size": 32, "dropout": 0.0},
}
DENSE = DenseRegressor((16,), learning_rate=0.2, dropout=0.0, batch_size=1000, max_epochs=10)
CHANGES_STEPS = "scikit-learn's Pipeline fits its own steps; scikit-learn expects it to fail too"
FAILURES = {
    "ValuePipeline": {
        "check_dont_overwrite_parameters": CHANGES_STEPS,
        "check_estimators_overwrite_params": CHANGES_STEPS,
    },
    "DenseRegressor": {
        "check_sample_weight_equivalence_on_dense_data": (
            "a random start and rows in shuffled batches: a weight of 2 is no second row"
        )
    },
    "NearestValues": {
        "check_methods_sample_order_invariance": (
            "the distance of a row to itself is a rounding error, which depends on the order"
        )
    },
}


def expected_failures(estimator):
    return FAILURES.get(type(estimator).__name__, {})


@parametrize_with_checks(
    [
        *(make_head(name, regression=True, **SETTINGS[name]) for name in ("ridge", "svm")),
        NearestValues(metric="euclidean"),
        EachValue(Ridge()),
    ],
    expected_failed_checks=expected_failures,
)
def test_scikit_learn_check(estimator, check):
    check(estimator)


@pytest.mark.slow
@parametrize_with_checks(
    [
        DENSE,
        *(make_head(name, regression=True, **SETTINGS[name]) for name in ("forest", "extra-trees")),
    ],
    expected_failed_checks=expected_failures,
)
def test_scikit_learn_check_of_heads_that_take_long(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def data():
    """Features with an offset, and two linear columns of numbers far from 0."""
    rng = np.random.default_rng(0)
    X = (rng.normal(size=(300, 12)) + 3).astype(np.float32)
    y = X @ rng.normal(size=(12, 2)) + rng.normal(size=(300, 2)) * 0.5 + [1000, -40]
    return X, y


@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize("name", head_names(regression=True))
def test_every_head_learns_numbers_and_is_kept(data, name, columns):
    X, y = data
    y = y[:, 0] if columns == 1 else y
    head = make_head(name, regression=True, **SETTINGS[name]).fit(X[:200], y[:200])
    predicted = head.predict(X[200:])
    assert predicted.shape == y[200:].shape
    assert r2_score(y[200:], predicted) > 0.35
    files = dump_head(head)
    assert sorted(files) == ["head.h5", "head.json"]
    np.testing.assert_allclose(load_head(files).predict(X[200:]), predicted, atol=2e-3)


def test_the_table_says_what_each_head_learns():
    assert set(SETTINGS) == set(VALUE_HEADS)
    assert {row.learns for row in VALUE_HEADS.values()} == {("values",)}
    assert find_row("ridge").estimator != find_row("ridge", regression=True).estimator


def test_a_regressor_of_scikit_learn_by_path_learns_one_number_or_several(data):
    X, y = data
    head = make_head("sklearn.svm.SVR:C=100", regression=True)
    theirs = SVR(C=100)
    scaled = (X - X[:200].mean(0)) / X[:200].std(0)
    for column in (0, 1):
        expected = theirs.fit(scaled[:200], y[:200, column]).predict(scaled[200:])
        alone = head.fit(X[:200], y[:200, column]).predict(X[200:])
        both = head.fit(X[:200], y[:200]).predict(X[200:])
        np.testing.assert_allclose(alone, expected, atol=1e-2)
        np.testing.assert_allclose(both[:, column], expected, atol=1e-2)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ridge_is_scikit_learns_and_so_is_each_penalty_of_its_sweep(data, dtype):
    X, y = data[0].astype(dtype), data[1]
    alphas = (0.1, 10.0, 1000.0)
    folds = [(np.arange(200), np.arange(200, 300)), (np.arange(100, 300), np.arange(100))]
    candidates = [
        Candidate("b", "avg", "standard", "ridge", (("alpha", a),), regression=True) for a in alphas
    ]
    swept = swept_values(candidates, X, y, folds)
    for number, alpha in enumerate(alphas):
        for fold, (train, test) in enumerate(folds):
            mean, spread = X[train].mean(0), X[train].std(0)
            theirs = Ridge(alpha).fit((X[train] - mean) / spread, y[train])
            expected = theirs.predict((X[test] - mean) / spread)
            head = make_head("ridge", regression=True, alpha=alpha).fit(X[train], y[train])
            np.testing.assert_allclose(head.predict(X[test]), expected, atol=2e-3)
            np.testing.assert_allclose(swept[number, fold], expected, atol=2e-3)


def test_the_sweep_of_neighbours_is_scikit_learns(data):
    X, y = data
    folds = [(np.arange(200), np.arange(200, 300))]
    settings = [
        {"n_neighbors": n, "metric": metric, "weights": weights}
        for n in (1, 3, 500)
        for metric in ("cosine", "euclidean")
        for weights in ("uniform", "distance")
    ]
    candidates = [
        Candidate("b", "avg", "standard", "knn", (*s.items(),), regression=True) for s in settings
    ]
    swept = swept_values(candidates, X, y, folds)
    scaled = (X - X[:200].mean(0)) / X[:200].std(0)
    for number, setting in enumerate(settings):
        setting = {**setting, "n_neighbors": min(setting["n_neighbors"], 200)}
        theirs = KNeighborsRegressor(**setting, algorithm="brute").fit(scaled[:200], y[:200])
        np.testing.assert_allclose(swept[number, 0], theirs.predict(scaled[200:]), atol=1e-3)


def swept_values(candidates, X, y, folds):
    """What a sweep says of each candidate and fold."""
    from featx.selection.measuring import Sample, find_sweep

    rows = np.arange(len(y))
    sample = Sample(rows, rows, rows, rows, y)
    data = fold_data(FeatureBlock("b", "avg", X), sample, folds)
    held = held_out_together(find_sweep(candidates[0]), candidates, data, seed=0)
    return {(each.candidate, each.fold): each.values for each in held}


@pytest.mark.parametrize("name", ["ridge", "dense"])
def test_numbers_are_learnt_from_batches(data, name):
    X, y = data
    head = make_head(name, regression=True, **SETTINGS[name])
    whole = make_head(name, regression=True, **SETTINGS[name]).fit(X, y)

    def source(seed):
        for start in range(0, 300, 70):
            yield X[start : start + 70], np.arange(start, min(start + 70, 300))

    streamed = fit_head_streamed(head, source, y, max_ram_bytes=1 << 24)
    worst = np.abs(streamed.predict(X) - whole.predict(X)).max()
    assert worst < (0.01 if name == "ridge" else 1.5)


def test_weights_count_rows(data):
    X, y = data
    from featx.heads.learning import fit_weighted

    weights = np.arange(300) % 3
    weighted = make_head("ridge", regression=True, alpha=1.0)
    fit_weighted(weighted, X, y, weights.astype(float))
    often = np.repeat(np.arange(300), weights)
    repeated = make_head("ridge", regression=True, alpha=1.0).fit(X[often], y[often])
    np.testing.assert_allclose(weighted.predict(X), repeated.predict(X), atol=2e-3)
    with pytest.raises(HeadError, match="NearestValues takes no sample weights"):
        fit_weighted(make_head("knn", regression=True), X, y, weights.astype(float))


def test_a_spread_that_is_small_beside_the_mean_is_learnt(data):
    X, y = data
    far = y[:, 0] * 1e-3 + 1e6
    for name in ("ridge", "svm", "dense"):
        head = make_head(name, regression=True, **SETTINGS[name]).fit(X.astype(float), far)
        assert head.score(X.astype(float), far) > 0.8, name


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (["red", "blue"] * 10, "learns numbers, received 'red'"),
        ([1.0, np.nan] * 10, "NaN or inf in 10 of 20 rows .the first is row 1"),
        ([np.inf] * 20, "must be finite"),
        ([3.5] * 20, "all 20 rows have the number 3.5: there is nothing to learn"),
        (np.stack([np.arange(20.0), np.ones(20)], axis=1), "the number 1 in column 1"),
        (np.zeros((20, 2, 2)), r"of shape \(n,\), or \(n, k\)"),
        (np.arange(19.0), "20 rows and 19"),
    ],
)
def test_what_cannot_be_learnt_is_refused(y, message):
    X = np.random.default_rng(0).normal(size=(20, 3))
    for head in (make_head("ridge", regression=True), NearestValues()):
        with pytest.raises(HeadError, match=message):
            head.fit(X, y)


@pytest.mark.parametrize(
    ("head", "error", "message"),
    [
        ("rigde", UnknownNameError, "did you mean 'ridge'"),
        ("logistic", HeadError, "'logistic' learns classes, and --regression"),
        ("sklearn.naive_bayes.GaussianNB", HeadError, "is no regressor"),
        ("sklearn.linear_model.Laso", UnknownNameError, "Lasso"),
        ("ridge:alpha=-1", HeadError, "alpha"),
        ("knn:n_neighbors=0", HeadError, "n_neighbors"),
        ("svm:C=0", HeadError, "'C' parameter"),
        ("dense:hidden=0", HeadError, "hidden must be"),
    ],
)
def test_a_head_that_there_is_not_is_refused(head, error, message):
    with pytest.raises(error, match=message):
        make_head(head, regression=True)


def test_a_classifier_is_refused_and_a_regressor_for_classes_points_to_regression():
    from sklearn.naive_bayes import GaussianNB

    with pytest.raises(HeadError, match="GaussianNB predicts no numbers"):
        make_head(GaussianNB(), regression=True)
    with pytest.raises(HeadError, match="add --regression"):
        make_head("sklearn.linear_model.Lasso")


def test_rows_of_the_table_make_their_estimators():
    for row in VALUE_HEADS.values():
        for name, values in row.grid.items():
            for value in values:
                make_estimator(row, {name: value}, 0)
