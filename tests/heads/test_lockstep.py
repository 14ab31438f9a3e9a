"""The descent of streamed logistic regression, on what such descents fail on."""

import warnings

import numpy as np
import pytest
from scipy.special import logsumexp
from sklearn.linear_model import LogisticRegression

from featx.heads.logistic_fit import fit_logistic_labels, fit_logistic_streamed
from featx.heads.logistic_lbfgs import minimise_in_lockstep

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
    heads, _ = fit_logistic_labels(model, source, Y, max_ram_bytes=ram)
    several = np.array(["a", "b", "c", "d", "e"])[Y[:, :3].sum(axis=1) + Y[:, 3]]
    by_class = fit_logistic_streamed(model, source_of(X), several, max_ram_bytes=ram)
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
    heads, _ = fit_logistic_labels(LogisticRegression(), source, Y, max_ram_bytes=4096)
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
