from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import StandardScaler

from featx.exceptions import HeadError
from featx.heads.logistic import sweep_logistic
from featx.heads.logistic_path import fit_logistic_path
from featx.heads.making import make_head


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    folds = list(StratifiedKFold(3, shuffle=True, random_state=0).split(X, y))
    return X.astype(np.float32), y, folds


@pytest.mark.parametrize("classes", [10, 2])
@pytest.mark.parametrize("class_weight", [None, "balanced"])
def test_probabilities_are_those_of_scikit_learn(digits, classes, class_weight):
    X, y, folds = digits
    chosen = np.flatnonzero(y < classes)
    X, y = X[chosen], y[chosen]
    folds = list(StratifiedKFold(3, shuffle=True, random_state=0).split(X, y))
    Cs = [1.0, 0.01]
    candidates = [{"C": C, "class_weight": class_weight} for C in Cs]
    scaled = StandardScaler().fit_transform(X)
    found = {(held.candidate, held.fold): held for held in sweep_logistic(X, y, folds, candidates)}
    assert len(found) == 6
    for (number, fold), held in found.items():
        train, test = folds[fold]
        single = LogisticRegression(
            C=Cs[number], class_weight=class_weight, max_iter=9999, tol=1e-7
        )
        expected = single.fit(scaled[train], y[train]).predict_proba(scaled[test])
        np.testing.assert_allclose(held.values, expected, atol=0.03)
        assert held.probabilities
        assert not held.stopped


def test_values_of_c_that_cannot_win_are_marked(digits):
    X, y, folds = digits
    candidates = [{"C": C} for C in np.logspace(-4, 6, 11)]
    found = list(sweep_logistic(X, y, folds, candidates))
    stopped = {held.candidate for held in found if held.stopped}
    assert stopped
    assert min(stopped) > 4
    assert len(found) == 33


def test_a_weight_of_zero_leaves_a_row_out(digits):
    X, y, folds = digits
    weights = np.ones(len(X))
    weights[: len(X) // 2] = 0
    (one, *_) = sweep_logistic(X, y, folds[:1], [{}], sample_weight=weights)
    train, test = folds[0]
    scaled = StandardScaler().fit_transform(X)
    kept = train[train >= len(X) // 2]
    single = LogisticRegression(C=0.01, max_iter=5000).fit(scaled[kept], y[kept])
    np.testing.assert_allclose(one.values, single.predict_proba(scaled[test]), atol=0.01)


def test_an_unknown_parameter_is_named(digits):
    X, y, folds = digits
    with pytest.raises(HeadError, match="'c'"):
        list(sweep_logistic(X, y, folds, [{"c": 1.0}]))


def test_each_of_few_rows_is_standardised_with_those_that_it_is_trained_with():
    X, y = load_digits(return_X_y=True)
    X, y = X[:40].astype(np.float32), y[:40] % 2
    folds = list(StratifiedKFold(4, shuffle=True, random_state=0).split(X, y))
    for held in sweep_logistic(X, y, folds, [{}]):
        train, test = folds[held.fold]
        expected = make_head("logistic", tol=1e-7).fit(X[train], y[train]).predict_proba(X[test])
        np.testing.assert_allclose(held.values, expected, atol=1e-3)


def test_folds_too_large_for_the_memory_are_solved_in_turn(digits, monkeypatch):
    together = list(sweep_logistic(*digits, [{}]))
    # Room for one fold and a half: 6 arrays of 1,797 rows and 10 classes in float32.
    room = 4 * (6 * 1797 * 10 * 4 * 3 // 2)
    monkeypatch.setattr("featx.heads.logistic.machine_bytes", lambda: room)
    solved = []

    def counting(X, targets, folds, *settings):
        solved.append(len(folds))
        return fit_logistic_path(X, targets, folds, *settings)

    monkeypatch.setattr("featx.heads.logistic.fit_logistic_path", counting)
    in_turn = list(sweep_logistic(*digits, [{}]))
    assert solved == [1, 1, 1]
    assert [held.fold for held in in_turn] == [0, 1, 2]
    for one, other in zip(together, in_turn, strict=True):
        np.testing.assert_allclose(one.values, other.values, atol=0.01)


@pytest.mark.parametrize("params", [{"fit_intercept": False}, {"solver": "liblinear"}])
def test_what_the_path_solver_does_not_know_is_refused(digits, params):
    with pytest.raises(HeadError, match="has no shortcut: leave .* at"):
        next(sweep_logistic(*digits, [params]))
