"""Ridge regression and nearest neighbours learn numbers, as scikit-learn's regressors do."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.neighbors import KNeighborsRegressor

from featx.heads.neighbours import NearestNeighbours, neighbours_of_values
from featx.heads.ridge import solve_ridge
from featx.heads.rows import Rows
from featx.heads.targets import Targets


def drawn(rows, width):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(rows, width)) + 5
    values = X[:, :3] @ rng.normal(size=(3, 2)) + rng.normal(size=(rows, 2)) - 40
    return X, values, rng.uniform(0.1, 3, rows)


@pytest.mark.parametrize("shape", [(200, 12), (30, 50)])
@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_ridge_of_numbers_is_scikit_learns(shape, intercept, weighted):
    X, values, weights = drawn(*shape)
    targets = Targets.of_values(values, weights if weighted else None)
    alphas = [0.5, 30.0]
    coef, constant = solve_ridge(Rows.of(X), targets, alphas, intercept)
    alone, _ = solve_ridge(Rows.of(X), targets, alphas[:1], intercept)
    np.testing.assert_allclose(alone[0], coef[0], atol=1e-8)
    for number, alpha in enumerate(alphas):
        theirs = Ridge(alpha=alpha, fit_intercept=intercept).fit(
            X, values, sample_weight=weights if weighted else None
        )
        np.testing.assert_allclose(coef[number].T, theirs.coef_, atol=1e-7)
        np.testing.assert_allclose(constant[number], theirs.intercept_, atol=1e-6)


def test_ridge_of_numbers_in_batches():
    X, values, _ = drawn(200, 12)

    def source(seed):
        for start in range(0, 200, 70):
            yield X[start : start + 70], np.arange(start, min(start + 70, 200))

    rows = Rows.stream(source, 200, 1 << 20)
    coef, constant = solve_ridge(rows, Targets.of_values(values), [1.0], True)
    theirs = Ridge().fit(X, values)
    np.testing.assert_allclose(X @ coef[0] + constant[0], theirs.predict(X), atol=1e-4)


@pytest.mark.parametrize("weights", ["uniform", "distance"])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_neighbours_average_numbers(weights, metric):
    X, values, _ = drawn(60, 8)
    head = NearestNeighbours(n_neighbors=5, weights=weights, metric=metric)
    step = neighbours_of_values(Rows.of(X[:40]), Targets.of_values(values[:40]), head)
    theirs = KNeighborsRegressor(5, weights=weights, metric=metric, algorithm="brute")
    expected = theirs.fit(X[:40], values[:40]).predict(X[30:])
    np.testing.assert_allclose(step.apply(X[30:]), expected, atol=1e-9)
