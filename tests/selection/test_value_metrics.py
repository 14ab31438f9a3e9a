"""Scores of predicted numbers, folds of them, and prediction intervals."""

import numpy as np
import pytest
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from featx.exceptions import DatasetError, HeadError
from featx.heads.making import make_head
from featx.selection.metrics import value_scores
from featx.selection.splits import repeated_folds
from featx.selection.value_metrics import (
    bootstrap_values,
    half_widths,
    kept_residuals,
    score_values,
)


@pytest.fixture
def answers():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(200, 2)) * [1, 50]
    return truth, truth + rng.normal(size=(200, 2)) * [0.5, 10]


def test_scores_are_scikit_learns_with_weights_too(answers):
    truth, predicted = answers
    weights = np.random.default_rng(1).uniform(0, 2, 200)
    for given in (None, weights):
        options = {"sample_weight": given, "multioutput": "raw_values"}
        expected = [
            r2_score(truth, predicted, **options),
            mean_absolute_error(truth, predicted, **options),
            root_mean_squared_error(truth, predicted, **options),
        ]
        np.testing.assert_allclose(value_scores(truth, predicted, given), expected)
    scores = score_values(truth, predicted, ["age", "mass"])
    assert [row["value"] for row in scores["values"]] == ["age", "mass"]
    assert scores["mae"] == pytest.approx(np.mean([row["mae"] for row in scores["values"]]))
    constant = np.ones((5, 1))
    assert value_scores(constant, constant)[0] == 1
    assert value_scores(constant, constant + 1)[0] == 0


def test_intervals_hold_the_scores_and_copies_are_drawn_together(answers):
    truth, predicted = answers
    scores = score_values(truth, predicted, ["a", "b"])
    intervals = bootstrap_values(truth, predicted, ["a", "b"], samples=300)
    for name in ("r2", "mae", "rmse"):
        assert intervals[name][0] < scores[name] < intervals[name][1]
        low, high = intervals["values"][1][name]
        assert low < scores["values"][1][name] < high
    three = (np.repeat(column, 3, axis=0) for column in answers)
    copies = bootstrap_values(*three, ["a", "b"], groups=np.repeat(np.arange(200), 3), samples=300)
    np.testing.assert_allclose(copies["mae"], intervals["mae"])


def test_folds_share_out_low_and_high_numbers_and_keep_groups_together():
    rng = np.random.default_rng(0)
    values = rng.exponential(size=(103, 1))
    groups = rng.integers(0, 60, 103)
    folds = repeated_folds(values, folds=5, groups=groups, seed=3)
    assert len(folds) == 5
    assert sorted(np.concatenate([test for _, test in folds]).tolist()) == list(range(103))
    for train, test in folds:
        assert not set(groups[train]) & set(groups[test])
    plain = repeated_folds(values, folds=5, seed=3)
    means = [values[test].mean() for _, test in plain]
    assert np.std(means) < 0.15
    again = repeated_folds(values, folds=5, seed=3)
    assert all((a[1] == b[1]).all() for a, b in zip(plain, again, strict=True))
    with pytest.raises(DatasetError, match="equal or of one group"):
        repeated_folds(values, folds=5, groups=np.zeros(103, int))
    assert len(repeated_folds(values[:3], folds=5)) == 3


def test_half_widths_are_of_the_right_rank_and_thinning_widens_them_little():
    errors = np.arange(1.0, 20.0)[:, None]
    assert half_widths(kept_residuals(errors, 0 * errors), 0.9) == 18
    assert half_widths(kept_residuals(errors, 0 * errors), 0.5) == 10
    assert half_widths(errors[:3], 0.9) == 3
    many = np.random.default_rng(0).normal(size=(50_000, 1))
    kept = kept_residuals(many, 0 * many)
    assert len(kept) < 1000
    exact = np.quantile(np.abs(many), 0.9)
    assert exact <= half_widths(kept, 0.9)[0] < exact * 1.01
    for coverage in (0, 1, 1.5):
        with pytest.raises(HeadError, match="between 0 and 1"):
            half_widths(kept, coverage)


def covered(seed, *, train=200, test=500):
    """Share of new rows within the interval of a ridge, from the errors of its folds."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(train + test, 20))
    y = X[:, :3].sum(axis=1, keepdims=True) + rng.standard_t(5, size=(train + test, 1))
    learnt, held = np.arange(train), np.arange(train, train + test)
    answers = np.zeros((train, 1))
    for inside, outside in repeated_folds(y[learnt], folds=5, seed=seed):
        head = make_head("ridge:alpha=10", regression=True).fit(X[inside], y[inside])
        answers[outside, 0] = head.predict(X[outside])
    width = half_widths(kept_residuals(y[learnt], answers))
    head = make_head("ridge:alpha=10", regression=True).fit(X[learnt], y[learnt])
    return np.mean(np.abs(y[held, 0] - head.predict(X[held])) <= width[0])


def test_intervals_cover_ninety_percent_over_twenty_splits():
    assert 0.88 <= np.mean([covered(seed) for seed in range(20)]) <= 0.92


@pytest.mark.slow
@pytest.mark.parametrize("train", [60, 2000])
def test_intervals_cover_ninety_percent_with_few_and_many_images(train):
    assert 0.88 <= np.mean([covered(seed, train=train) for seed in range(60)]) <= 0.92
