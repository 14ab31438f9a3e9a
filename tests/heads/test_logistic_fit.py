"""scikit-learn's logistic regression fitted by the path solver inside a head."""

import numpy as np
import pytest
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from featx.heads import logistic_fit
from featx.heads.logistic_fit import fit_logistic, is_solved_by_path
from featx.heads.making import make_head


def drawn(classes=4, dtype="f4", n=400, d=30):
    X, y = make_classification(
        n, d, n_informative=12, n_classes=classes, class_sep=0.7, random_state=0
    )
    return X.astype(dtype), np.array(["ants", "bees", "flies", "wasps"])[y]


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("class_weight", [None, "balanced", {"ants": 5.0}])
def test_the_head_is_scikit_learns_solution(classes, dtype, class_weight):
    X, y = drawn(classes, dtype)
    params = {"C": 0.3, "class_weight": class_weight}
    head = make_head("logistic", **params).fit(X, y)
    exact = LogisticRegression(**params, tol=1e-10, max_iter=20_000)
    exact = make_pipeline(StandardScaler(), exact).fit(X.astype("f8"), y)
    np.testing.assert_allclose(head.predict_proba(X), exact.predict_proba(X), atol=2e-3)
    assert head[-1].coef_.shape == exact[-1].coef_.shape
    assert head[-1].coef_.dtype == head[-1].intercept_.dtype == X.dtype
    assert head.classes_.tolist() == exact.classes_.tolist()
    assert head.n_features_in_ == head[-1].n_features_in_ == X.shape[1]
    assert head[-1].n_iter_.shape == (1,)


def test_it_is_nearer_to_the_minimum_than_scikit_learns_own():
    X, y = drawn(n=2000, d=600)
    X = StandardScaler().fit_transform(X)
    model = LogisticRegression(C=0.01)

    def excess(fitted):
        proba = np.log(fitted.predict_proba(X.astype("f8")))
        losses = -proba[np.arange(len(y)), np.searchsorted(fitted.classes_, y)]
        return 0.01 * losses.sum() + (fitted.coef_.astype("f8") ** 2).sum() / 2

    theirs = excess(LogisticRegression(C=0.01).fit(X, y))
    least = excess(LogisticRegression(C=0.01, tol=1e-9, max_iter=20_000).fit(X.astype("f8"), y))
    ours = excess(fit_logistic(model, X, y))
    assert ours <= theirs
    assert ours == pytest.approx(least, rel=1e-5)


@pytest.mark.parametrize(
    "params",
    [{"fit_intercept": False}, {"solver": "saga"}, {"l1_ratio": 0.5, "solver": "saga"}],
    ids=str,
)
def test_what_the_solver_does_not_know_is_left_to_scikit_learn(params):
    X, y = drawn(2)
    head = make_head("logistic", **params).fit(X, y)
    own = LogisticRegression(C=0.01, max_iter=5000, random_state=0, **params)
    assert not is_solved_by_path(own, X, y)
    own = make_pipeline(StandardScaler(), own).fit(X, y)
    np.testing.assert_allclose(head[-1].coef_, own[-1].coef_, rtol=1e-6)


def test_what_would_not_fit_twice_is_left_to_scikit_learn(monkeypatch):
    X, y = drawn(2)
    assert is_solved_by_path(LogisticRegression(), X, y)
    monkeypatch.setattr(logistic_fit, "machine_bytes", lambda: 8 * X.nbytes)
    assert not is_solved_by_path(LogisticRegression(), X, y)


def test_a_parameter_out_of_range_has_scikit_learns_message():
    X, y = drawn(2)
    with pytest.raises(ValueError, match="'C' parameter of LogisticRegression"):
        make_head("logistic", C=-1.0).fit(X, y)


def test_weights_of_rows_reach_scikit_learn():
    X, y = drawn(2)
    weights = np.where(y == "ants", 3.0, 1.0)
    head = make_head("logistic").fit(X, y, head__sample_weight=weights)
    same = make_head("logistic", class_weight={"ants": 3.0}).fit(X, y)
    np.testing.assert_allclose(head.predict_proba(X), same.predict_proba(X), atol=2e-3)
