"""scikit-learn's logistic regression fitted in memory, by the path, and by passes over batches."""

import warnings

import numpy as np
import pytest
from scipy.special import logsumexp
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from featx.heads import logistic_path
from featx.heads.logistic_path import fit_logistic, fit_rows, is_solved_by_path
from featx.heads.logistic_solver import minimise_in_lockstep
from featx.heads.making import make_head
from featx.heads.rows import Rows
from featx.heads.targets import Targets


def named(classes=4, dtype="f4", n=400, d=30):
    X, y = make_classification(
        n, d, n_informative=12, n_classes=classes, class_sep=0.7, random_state=0
    )
    return X.astype(dtype), np.array(["ants", "bees", "flies", "wasps"])[y]


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("class_weight", [None, "balanced", {"ants": 5.0}])
def test_the_head_is_scikit_learns_solution(classes, dtype, class_weight):
    X, y = named(classes, dtype)
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


def test_it_is_nearer_to_the_minimum_than_scikit_learns_own(monkeypatch):
    monkeypatch.setattr(logistic_path, "_SMALL", 1 << 11)
    X, y = named(n=300, d=120)
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
    X, y = named(2)
    head = make_head("logistic", **params).fit(X, y)
    own = LogisticRegression(C=0.01, max_iter=5000, random_state=0, **params)
    assert not is_solved_by_path(own, X, y)
    own = make_pipeline(StandardScaler(), own).fit(X, y)
    np.testing.assert_allclose(head[-1].coef_, own[-1].coef_, rtol=1e-6)


def test_what_would_not_fit_twice_is_left_to_scikit_learn(monkeypatch):
    X, y = named(2)
    assert is_solved_by_path(LogisticRegression(), X, y)
    monkeypatch.setattr(logistic_path, "machine_bytes", lambda: 8 * X.nbytes)
    assert not is_solved_by_path(LogisticRegression(), X, y)


def test_a_parameter_out_of_range_has_scikit_learns_message():
    X, y = named(2)
    with pytest.raises(ValueError, match="'C' parameter of LogisticRegression"):
        make_head("logistic", C=-1.0).fit(X, y)


def test_weights_of_rows_reach_scikit_learn():
    X, y = named(2)
    weights = np.where(y == "ants", 3.0, 1.0)
    head = make_head("logistic").fit(X, y, head__sample_weight=weights)
    same = make_head("logistic", class_weight={"ants": 3.0}).fit(X, y)
    np.testing.assert_allclose(head.predict_proba(X), same.predict_proba(X), atol=2e-3)


MIB = 1 << 20
ROWS, WIDTH = 500, 6


def drawn(kind):
    """Features (500, 6) in single precision, and labels (500, 4), the last with one positive."""
    generator = np.random.default_rng(0)
    X = generator.normal(size=(ROWS, WIDTH))
    margins = X @ generator.normal(size=(WIDTH, 4)) + generator.normal(size=(ROWS, 4))
    if kind == "separable":
        margins = 5 * X[:, :4]
    Y = (margins > [0, 1, 2, 0]).astype(np.uint8)
    Y[:, 3] = np.arange(ROWS) == ROWS // 2
    if kind == "ill-conditioned":
        X = X @ generator.normal(size=(WIDTH, WIDTH)) * np.logspace(0, -3, WIDTH)
    elif kind == "constant columns":
        X[:, [1, 4]] = 3, 0
    elif kind == "huge":
        X = X * 1e3
    elif kind == "small":
        X = X * 1e-4
    elif kind == "far from zero":
        X = X + 100
    return X.astype(np.float32), Y


def source_of(X):
    passes = []

    def source(seed):
        passes.append(seed)
        for start in range(0, len(X), 150):
            yield X[start : start + 150], np.arange(start, min(start + 150, len(X)))

    source.passes = passes
    return source


def objective(head, X, y, C):
    scores = head.decision_function(X.astype(np.float64))
    scores = np.column_stack([np.zeros(len(X)), scores]) if scores.ndim == 1 else scores
    own = scores[np.arange(len(y)), np.searchsorted(head.classes_, y)]
    loss = (logsumexp(scores, axis=1) - own).sum()
    return loss + 0.5 * (head.coef_.astype(np.float64) ** 2).sum() / C


KINDS = ["plain", "separable", "ill-conditioned", "constant columns", "huge", "small"]


@pytest.mark.parametrize("ram", [4 * 1024, MIB], ids=["sample", "all rows"])
@pytest.mark.parametrize("C", [1e-3, 1e4])
@pytest.mark.parametrize("kind", [*KINDS, "far from zero"])
def test_every_problem_comes_to_its_minimum(kind, C, ram, caplog):
    X, Y = drawn(kind)
    model = LogisticRegression(C=C, tol=1e-4, max_iter=1000)
    source = source_of(X)
    heads = fit_rows(model, Rows.stream(source, len(Y), ram), Targets.of_labels(Y))
    several = np.array(["a", "b", "c", "d", "e"])[Y[:, :3].sum(axis=1) + Y[:, 3]]
    rows = Rows.stream(source_of(X), len(several), ram)
    (by_class,) = fit_rows(model, rows, Targets.of_classes(several))
    assert caplog.text == ""
    assert len(source.passes) < 400
    for head, y in [*zip(heads, Y.T, strict=True), (by_class, several)]:
        assert np.isfinite(head.coef_).all()
        assert np.isfinite(head.intercept_).all()
        best = LogisticRegression(C=C, tol=1e-8, max_iter=3000, solver="newton-cholesky")
        with warnings.catch_warnings():
            # Of a Hessian that it cannot invert; it goes on by another solver.
            warnings.simplefilter("ignore")
            best.fit(X.astype(np.float64), y)
        least = objective(best, X, y, C)
        assert objective(head, X, y, C) <= least + 5e-3 * max(least, ROWS * 1e-2)


def test_a_label_without_a_row_in_the_sample_converges_all_the_same():
    generator = np.random.default_rng(1)
    X = generator.normal(size=(4000, 8)).astype(np.float32)
    Y = (X[:, :3] > 0).astype(np.uint8)
    Y[:, 2] = np.arange(4000) == 3999
    source = source_of(X)
    rows = Rows.stream(source, len(Y), 4096)
    heads = fit_rows(LogisticRegression(), rows, Targets.of_labels(Y))
    assert len(source.passes) < 60
    assert np.abs(heads[2].coef_).max() < 20
    assert -20 < heads[2].intercept_[0] < -3


def test_a_function_that_overflows_is_stepped_back_from():
    """``exp(-x) + exp(60 x)`` is nearly flat on one side, and a wall on the other."""

    def function(points, which):
        left, right = np.exp(-points), np.exp(60 * points)
        slopes = 60 * right - left
        values = (left + right).sum(axis=(1, 2))
        return values, slopes, np.abs(slopes).max(axis=(1, 2)) < 1e-6

    minima = minimise_in_lockstep(function, (1, 1, 1), most=100, noise=1e-15)
    assert minima.finished.all()
    np.testing.assert_allclose(minima.points.ravel(), -np.log(60) / 61, atol=1e-6)


def test_a_function_that_rounding_makes_rough_ends():
    generator = np.random.default_rng(0)

    def function(points, which):
        rough = 1 + 1e-7 * generator.normal(size=len(points))
        values = (1 + 0.5 * (points**2).sum(axis=(1, 2))) * rough
        return values, points - 1e-5 + 1e-7 * generator.normal(size=points.shape), values < 0

    minima = minimise_in_lockstep(function, (3, 1, 5), most=1000, noise=1e-7)
    assert minima.passes < 200
    assert np.abs(minima.points).max() < 1e-3


@pytest.mark.parametrize("class_weight", [None, "balanced", {0: 2.0, 1: 0.5}])
@pytest.mark.parametrize("kind", ["classes", "labels"])
def test_weighted_rows_give_the_same_in_memory_and_by_passes(kind, class_weight):
    X, Y = drawn("plain")
    weights = np.random.default_rng(0).uniform(0.5, 2.0, ROWS)
    if class_weight == "balanced" and kind == "labels":
        weights = None
    model = LogisticRegression(C=0.1, tol=1e-8, max_iter=1000, class_weight=class_weight)
    targets = Targets.of_labels(Y, weights)
    targets = targets.label(1) if kind == "classes" else targets
    stream = Rows.stream(source_of(X), ROWS, MIB)
    whole = [
        [(head.coef_, head.intercept_) for head in fit_rows(model, rows, targets)]
        for rows in (Rows.of(X), stream)
    ]
    for (coef, intercept), (others, constant) in zip(*whole, strict=True):
        np.testing.assert_allclose(others, coef, atol=2e-3)
        np.testing.assert_allclose(constant, intercept, atol=2e-3)
