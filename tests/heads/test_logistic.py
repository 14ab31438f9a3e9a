import logging

import numpy as np
import pytest
from sklearn.datasets import load_digits, make_classification
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from featx.exceptions import HeadError
from featx.heads import logistic_path, logistic_solver
from featx.heads.logistic import LogisticPathCV, sweep_logistic
from featx.heads.logistic_path import PathOptions, fit_logistic_path
from featx.heads.making import make_head
from featx.heads.targets import Targets

CS = np.logspace(-3, 1, 5)


# Weights and repeated rows are compared to nine digits, which takes the tolerance.
@parametrize_with_checks([LogisticPathCV(Cs=[0.1, 1.0], cv=2, tol=1e-11)])
def test_scikit_learn_check(estimator, check):
    check(estimator)


def digits(classes=10, rows=None):
    X, y = load_digits(return_X_y=True)
    X, y = X[y < classes] / 16, y[y < classes]
    return X[:rows], y[:rows]


def wide(n=120, d=300, classes=4, informative=30):
    """Features beyond the size from which `single_precision` has it."""
    X, y = make_classification(
        n, d, n_informative=informative, n_redundant=0, n_classes=classes, random_state=0
    )
    return X.astype(np.float32), y


@pytest.fixture
def single_precision(monkeypatch):
    """Single precision from 2,048 numbers on, not a million, so that tests are quick."""
    monkeypatch.setattr(logistic_path, "_SMALL", 1 << 11)


def folds_of(X, y, number=3):
    return list(StratifiedKFold(number, shuffle=True, random_state=0).split(X, y))


def walk(X, y, folds, Cs, **options):
    return fit_logistic_path(
        X, Targets.of_classes(y), folds, np.asarray(Cs), PathOptions(**options)
    )


def objective(X, y, C, coef, intercept):
    Z = X.astype(np.float64) @ np.asarray(coef, np.float64).T + intercept
    if Z.shape[1] == 1:
        Z = np.concatenate([np.zeros_like(Z), Z], axis=1)
    top = Z.max(axis=1, keepdims=True)
    losses = np.log(np.exp(Z - top).sum(axis=1)) + top[:, 0] - Z[np.arange(len(y)), y]
    penalty = (np.asarray(coef, np.float64) ** 2).sum() / 2
    return C * losses.sum() + penalty


def optimum(X, y, C):
    newton = X.shape[1] * len(np.unique(y)) < 2000
    solver = "newton-cholesky" if newton else "lbfgs"
    model = LogisticRegression(C=C, solver=solver, tol=1e-8, max_iter=5000)
    return model.fit(X.astype(np.float64), y)


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_every_solution_is_scikit_learns(classes):
    X, y = digits(classes, 400)
    folds = folds_of(X, y)
    # scikit-learn takes its time for many classes.
    Cs = CS if classes < 10 else CS[1:4]
    path = walk(X, y, folds, Cs, tol=1e-7)
    for place, C in enumerate(Cs):
        for fold, (train, test) in enumerate(folds):
            theirs = optimum(X[train], y[train], C)
            found = path.coef[place][fold], path.intercept[place][fold]
            np.testing.assert_allclose(found[0], theirs.coef_, atol=2e-3)
            centre = theirs.intercept_.mean() if classes > 2 else 0.0
            np.testing.assert_allclose(found[1], theirs.intercept_ - centre, atol=2e-3)
            least = objective(X[train], y[train], C, theirs.coef_, theirs.intercept_)
            assert objective(X[train], y[train], C, *found) <= least * (1 + 1e-6)
            assert path.scores[fold, place] == pytest.approx(
                theirs.score(X[test], y[test]), abs=0.01
            )
    assert path.converged.all()
    assert (path.gradient_norm <= 1e-7).all()


def few_and_wide():
    """Two images of each of five classes."""
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(5), 2)
    return (rng.normal(size=(5, 1280))[y] + rng.normal(size=(10, 1280))).astype(np.float32), y


def far_from_standardised():
    X, y = digits(3)
    return X * np.logspace(-3, 3, X.shape[1]) + 100.0, y


@pytest.mark.parametrize(
    ("data", "params", "excess"),
    [
        (lambda: wide(120, 300), {"Cs": [1e-3, 1e-2, 1e-1], "cv": 3}, 1e-5),
        (lambda: wide(800, 60), {"Cs": [1e-3, 1e-2, 1e-1], "cv": 3}, 1e-5),
        (few_and_wide, {}, 1e-5),
        (far_from_standardised, {"Cs": [1e-3], "cv": 2}, 1e-4),
    ],
    ids=["wide", "tall", "two images a class", "far from standardised"],
)
def test_the_refit_reaches_scikit_learns_objective(data, params, excess, request):
    X, y = data()
    if X.dtype == np.float32 and len(X) > 10:
        request.getfixturevalue("single_precision")
    head = LogisticPathCV(**params).fit(X, y)
    theirs = optimum(X, y, head.C_)
    least = objective(X, y, head.C_, theirs.coef_, theirs.intercept_)
    assert objective(X, y, head.C_, head.coef_, head.intercept_) <= least * (1 + excess)
    assert head.coef_.dtype == X.dtype
    assert head.converged_
    assert head.scores_.shape[1] == len(head.Cs_) == len(params.get("Cs", range(13)))


@pytest.mark.usefixtures("single_precision")
def test_a_tolerance_beyond_single_precision_is_reached_in_double():
    X, y = wide(classes=3)
    path = walk(X, y, folds_of(X, y), [1e-3, 1e-2], tol=1e-9)
    assert path.converged.all()
    assert (path.gradient_norm <= 1e-9).all()


def test_the_reported_gradient_is_the_gradient():
    X, y = digits(3)
    X = X + 5.0
    everything = [(np.arange(len(y)), np.arange(0))]
    path = walk(X, y, everything, [0.1], tol=1e-3)
    coef, intercept = path.coef[0][0], path.intercept[0][0]
    Z = X @ coef.T + intercept
    residual = np.exp(Z - Z.max(axis=1, keepdims=True))
    residual /= residual.sum(axis=1, keepdims=True)
    residual[np.arange(len(y)), y] -= 1
    gradient = np.column_stack([residual.T @ X + coef / 0.1, residual.sum(axis=0)]) / len(y)
    assert path.gradient_norm[0, 0] == pytest.approx(np.abs(gradient).max(), rel=1e-6)


@pytest.mark.parametrize("scoring", ["accuracy", "neg_log_loss"])
def test_scores_are_those_of_a_grid_search(scoring):
    X, y = digits(5, 500)
    folds = folds_of(X, y)
    exact = LogisticRegression(solver="newton-cholesky", tol=1e-8)
    theirs = GridSearchCV(exact, {"C": CS}, cv=folds, scoring=scoring).fit(X, y)
    ours = LogisticPathCV(Cs=CS, cv=folds, scoring=scoring, racing=False).fit(X, y)
    np.testing.assert_allclose(
        ours.scores_.mean(axis=0), theirs.cv_results_["mean_test_score"], atol=0.002
    )
    assert theirs.best_params_["C"] == ours.C_
    assert (ours.predict(X) == theirs.predict(X)).mean() > 0.995
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=0.02)
    np.testing.assert_allclose(ours.predict_log_proba(X), np.log(ours.predict_proba(X)), atol=1e-9)
    raced = LogisticPathCV(Cs=CS, cv=folds, scoring=scoring).fit(X, y)
    run = ~raced.stopped_
    np.testing.assert_allclose(
        raced.scores_.mean(axis=0)[run], ours.scores_.mean(axis=0)[run], atol=0.01
    )
    assert raced.C_ == ours.C_


@pytest.mark.parametrize("class_weight", ["balanced", {0: 3.0, 2: 0.5}])
def test_class_weights_count_in_each_fold(class_weight):
    X, y = digits(3)
    X, y = X[60:], y[60:]
    weight = np.random.default_rng(0).uniform(0.5, 2.0, len(y))
    ours = LogisticPathCV(Cs=[0.1], cv=3, class_weight=class_weight, tol=1e-7)
    theirs = LogisticRegression(C=0.1, class_weight=class_weight, tol=1e-8, max_iter=5000)
    ours.fit(X, y, sample_weight=weight)
    theirs.fit(X, y, sample_weight=weight)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-4)
    np.testing.assert_allclose(ours.intercept_, theirs.intercept_, atol=1e-4)


def test_a_weight_of_two_is_a_second_row():
    X, y = digits(4)
    X, y = X[:200], y[:200]
    train, test = np.arange(100), np.arange(100, 200)
    weight = np.random.default_rng(0).integers(0, 3, 200)
    again = np.repeat(np.arange(200), weight)
    folds = [(np.flatnonzero(again < 100), np.flatnonzero(again >= 100))]
    weighted = LogisticPathCV(Cs=CS, cv=[(train, test)], tol=1e-7).fit(X, y, sample_weight=weight)
    repeated = LogisticPathCV(Cs=CS, cv=folds, tol=1e-7).fit(X[again], y[again])
    np.testing.assert_allclose(weighted.scores_, repeated.scores_, atol=1e-9)
    np.testing.assert_allclose(weighted.coef_, repeated.coef_, atol=1e-4)


def test_racing_stops_what_has_lost_and_says_so():
    X, y = wide(400, 80, classes=5, informative=10)
    grid = np.logspace(-5, 3, 17)
    full = LogisticPathCV(Cs=grid, racing=False).fit(X, y)
    raced = LogisticPathCV(Cs=grid).fit(X, y)
    assert raced.stopped_.any()
    assert not full.stopped_.any()
    assert np.isnan(raced.scores_[:, raced.stopped_]).all()
    assert np.isfinite(raced.scores_[:, ~raced.stopped_]).all()
    assert abs(np.searchsorted(grid, raced.C_) - np.searchsorted(grid, full.C_)) <= 1
    best = full.scores_.mean(axis=0).max()
    assert (full.scores_.mean(axis=0)[raced.stopped_] < best).all()


def test_of_equal_scores_the_smaller_c_wins():
    X = np.repeat([[-1.0, 0.0], [1.0, 0.0]], 20, axis=0)
    head = LogisticPathCV(Cs=[10.0, 0.1, 1.0], cv=2).fit(X, np.repeat(["ants", "bees"], 20))
    assert head.C_ == 0.1
    assert head.Cs_.tolist() == [0.1, 1.0, 10.0]


def test_a_thousand_classes():
    rng = np.random.default_rng(0)
    y = np.tile(np.arange(1000), 3)
    X = (rng.normal(size=(1000, 64))[y] + 0.3 * rng.normal(size=(3000, 64))).astype(np.float32)
    head = LogisticPathCV(Cs=[0.1, 1.0], cv=3).fit(X, y)
    assert head.coef_.shape == (1000, 64)
    assert head.scores_.mean(axis=0).max() > 0.9
    assert head.converged_


def test_a_fold_without_a_class_is_no_obstacle():
    X, y = digits(3)
    folds = [(np.flatnonzero(y != 2), np.flatnonzero(y == 2)), *folds_of(X, y, 2)]
    head = LogisticPathCV(Cs=[0.1, 1.0], cv=folds).fit(X, y)
    assert head.scores_[0].tolist() == [0.0, 0.0]
    assert head.score(X, y) > 0.99


def test_what_does_not_converge_is_left_to_scikit_learn(caplog):
    X, y = digits(3)
    with caplog.at_level(logging.WARNING, logger="featx"):
        head = LogisticPathCV(Cs=[1.0], cv=2, max_iter=1).fit(X, y)
    assert "scikit-learn solves it" in caplog.text
    assert not head.converged_
    theirs = LogisticRegression(C=1.0, max_iter=5000).fit(X, y)
    np.testing.assert_allclose(head.predict_proba(X), theirs.predict_proba(X), atol=0.02)


def test_a_diagonal_serves_where_the_eigenproblem_is_too_large(monkeypatch):
    monkeypatch.setattr(logistic_solver, "_MOST_DIRECTIONS", 16)
    X, y = digits(3)
    head = LogisticPathCV(Cs=[0.1], cv=2, tol=1e-6).fit(X, y)
    np.testing.assert_allclose(head.coef_, optimum(X, y, 0.1).coef_, atol=1e-3)


def test_threads_change_nothing_but_the_time(monkeypatch):
    X, y = wide(400, 60)
    folds = folds_of(X, y)
    monkeypatch.setattr(logistic_solver, "blas_threads_now", lambda: 1)
    alone = walk(X, y, folds, CS[:3])
    monkeypatch.setattr(logistic_solver, "blas_threads_now", lambda: 2)
    together = walk(X, y, folds, CS[:3])
    np.testing.assert_allclose(together.coef[-1], alone.coef[-1], atol=1e-3)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"Cs": 0}, "Cs must be a whole number above 0, received 0"),
        ({"Cs": [1.0, -1.0]}, "Cs must be a number of values or positive values"),
        ({"Cs": "many"}, "Cs must be a number of values or positive values, received 'many'"),
        ({"cv": 1}, "cv must be a whole number above 1, received 1"),
        ({"tol": 0.0}, "tol must be a number above 0, received 0.0"),
        ({"max_iter": 0}, "max_iter must be a whole number above 0"),
        ({"scoring": "f1"}, "scoring must be one of accuracy, neg_log_loss, received 'f1'"),
        ({"class_weight": "even"}, "class_weight must be None, .* a dict .* received 'even'"),
    ],
)
def test_a_parameter_out_of_range_is_refused(params, message):
    X, y = digits(3)
    with pytest.raises(HeadError, match=message):
        LogisticPathCV(**params).fit(X, y)


@pytest.mark.parametrize(
    ("X", "y", "message"),
    [
        (np.eye(9), np.arange(8), "received 9 rows and 8 labels"),
        (np.eye(9), np.zeros(9, int), "one class only: 0"),
        (
            np.eye(6),
            [0, 0, 0, 1, 1, 2],
            "class 2 has one row only: .* 2 or more of each class; add",
        ),
        (np.diag([1.0, 2, np.nan, 4]), [0, 0, 1, 1], "NaN or inf in 1 of .* row 2"),
    ],
)
def test_bad_data_is_refused(X, y, message):
    with pytest.raises(HeadError, match=message):
        LogisticPathCV().fit(X, y)


def test_a_smaller_class_means_fewer_folds(caplog):
    X, y = digits(3)
    few = np.concatenate([np.flatnonzero(y < 2), np.flatnonzero(y == 2)[:3]])
    with caplog.at_level(logging.INFO, logger="featx"):
        head = LogisticPathCV(Cs=3).fit(X[few], y[few])
    assert head.scores_.shape == (3, 3)
    assert "3 folds instead of 5" in caplog.text


@pytest.fixture(scope="module")
def swept():
    X, y = load_digits(return_X_y=True)
    X, y = X[:500].astype(np.float32), y[:500]
    return X, y, folds_of(X, y)


@pytest.mark.parametrize("classes", [4, 2])
@pytest.mark.parametrize("class_weight", [None, "balanced"])
def test_swept_probabilities_are_those_of_scikit_learn(swept, classes, class_weight):
    X, y, folds = swept
    chosen = np.flatnonzero(y < classes)
    X, y = X[chosen], y[chosen]
    folds = folds_of(X, y)
    Cs = [1.0, 0.01]
    candidates = [{"C": C, "class_weight": class_weight} for C in Cs]
    scaled = StandardScaler().fit_transform(X.astype(np.float64))
    found = {(held.candidate, held.fold): held for held in sweep_logistic(X, y, folds, candidates)}
    assert len(found) == 6
    for (number, fold), held in found.items():
        train, test = folds[fold]
        single = LogisticRegression(
            C=Cs[number], class_weight=class_weight, solver="newton-cholesky", tol=1e-8
        )
        expected = single.fit(scaled[train], y[train]).predict_proba(scaled[test])
        np.testing.assert_allclose(held.values, expected, atol=0.03)
        assert held.probabilities
        assert not held.stopped


def test_values_of_c_that_cannot_win_are_marked():
    X, y = wide(400, 80, classes=5, informative=10)
    folds = folds_of(X, y)
    candidates = [{"C": C} for C in np.logspace(-4, 6, 11)]
    found = list(sweep_logistic(X, y, folds, candidates))
    stopped = {held.candidate for held in found if held.stopped}
    assert stopped
    assert min(stopped) > 4
    assert len(found) == 33


def test_a_weight_of_zero_in_a_sweep_leaves_a_row_out(swept):
    X, y, folds = swept
    weights = np.ones(len(X))
    weights[: len(X) // 2] = 0
    (held, *_) = sweep_logistic(X, y, folds[:1], [{}], sample_weight=weights)
    train, test = folds[0]
    scaled = StandardScaler().fit_transform(X)
    kept = train[train >= len(X) // 2]
    single = LogisticRegression(C=0.01, max_iter=5000).fit(scaled[kept], y[kept])
    np.testing.assert_allclose(held.values, single.predict_proba(scaled[test]), atol=0.01)


def test_an_unknown_parameter_of_a_sweep_is_named(swept):
    X, y, folds = swept
    with pytest.raises(HeadError, match="'c'"):
        list(sweep_logistic(X, y, folds, [{"c": 1.0}]))


def test_each_of_few_rows_is_standardised_with_those_that_it_is_trained_with():
    X, y = load_digits(return_X_y=True)
    X, y = X[:40].astype(np.float32), y[:40] % 2
    folds = folds_of(X, y, 4)
    for held in sweep_logistic(X, y, folds, [{}]):
        train, test = folds[held.fold]
        expected = make_head("logistic", tol=1e-7).fit(X[train], y[train]).predict_proba(X[test])
        np.testing.assert_allclose(held.values, expected, atol=1e-3)


def test_folds_too_large_for_the_memory_are_solved_in_turn(swept, monkeypatch):
    together = list(sweep_logistic(*swept, [{}]))
    # Room for one fold and a half: 6 arrays of 500 rows and 10 classes in float32.
    room = 4 * (6 * 500 * 10 * 4 * 3 // 2)
    monkeypatch.setattr("featx.heads.logistic.machine_bytes", lambda: room)
    solved = []

    def counting(X, targets, folds, *settings):
        solved.append(len(folds))
        return fit_logistic_path(X, targets, folds, *settings)

    monkeypatch.setattr("featx.heads.logistic.fit_logistic_path", counting)
    in_turn = list(sweep_logistic(*swept, [{}]))
    assert solved == [1, 1, 1]
    assert [held.fold for held in in_turn] == [0, 1, 2]
    for first, second in zip(together, in_turn, strict=True):
        np.testing.assert_allclose(first.values, second.values, atol=0.01)


@pytest.mark.parametrize("params", [{"fit_intercept": False}, {"solver": "liblinear"}])
def test_a_sweep_refuses_what_the_path_solver_does_not_know(swept, params):
    with pytest.raises(HeadError, match="has no shortcut: leave .* at"):
        next(sweep_logistic(*swept, [params]))
