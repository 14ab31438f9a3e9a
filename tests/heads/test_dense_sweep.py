"""The sweep says of every setting and fold what the head by itself would."""

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.model_selection import StratifiedKFold

from featx.exceptions import HeadError
from featx.heads.dense_sweep import sweep_dense
from featx.heads.table import make_head

CANDIDATES = [
    {"hidden": (16,), "learning_rate": 1e-2, "max_epochs": 4},
    {"hidden": (16,), "learning_rate": 3e-3, "dropout": 0.5, "max_epochs": 6},
    {"hidden": (24, 8), "learning_rate": 1e-2, "max_epochs": 4},
]


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return X.astype(np.float32)[:500], y[:500]


@pytest.fixture(scope="module")
def folds(digits):
    return list(StratifiedKFold(2, shuffle=True, random_state=0).split(*digits))


def test_each_is_the_head_by_itself(digits, folds):
    X, y = digits
    weights = np.where(y == 3, 2.0, 1.0)
    found = list(sweep_dense(X, y, folds, CANDIDATES, seed=4, sample_weight=weights))
    assert {(h.candidate, h.fold) for h in found} == {(c, f) for c in range(3) for f in range(2)}
    for held in found:
        train, test = folds[held.fold]
        head = make_head("dense", seed=4, **CANDIDATES[held.candidate])
        head.fit(X[train], y[train], head__sample_weight=weights[train])
        np.testing.assert_allclose(held.values, head.predict_proba(X[test]), atol=1e-3)
        assert held.probabilities
        assert not held.stopped


def test_one_that_diverges_is_marked(digits, folds, caplog):
    rates = [{"hidden": (8,), "max_epochs": 2, "learning_rate": rate} for rate in (1e30, 1e-2)]
    lost, kept = sweep_dense(*digits, folds[:1], rates)
    assert lost.stopped
    np.testing.assert_allclose(lost.values, 0.1)
    assert not kept.stopped
    assert "candidate 0, fold 0: training diverged" in caplog.text


def test_labels_are_swept_too(digits, folds):
    Y = np.column_stack([digits[1] < 5, digits[1] % 2]).astype(int)
    (held,) = sweep_dense(digits[0], Y, folds[:1], CANDIDATES[:1])
    assert held.values.shape == (250, 2)
    assert ((held.values > 0.5) == Y[folds[0][1]]).mean() > 0.7


@pytest.mark.parametrize(
    ("candidate", "message"),
    [
        ({"learning_rat": 0.1}, "unknown parameter 'learning_rat' of 'dense': did you mean 'lea"),
        ({"dropout": 1.5}, "dropout must be a number from 0 to less than 1, received 1.5"),
    ],
)
def test_bad_settings_are_said_before_any_training(digits, candidate, message):
    with pytest.raises(HeadError, match=message):
        next(sweep_dense(*digits, [], [{}, candidate]))
