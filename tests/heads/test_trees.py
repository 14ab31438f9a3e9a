import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.ensemble import ExtraTreesClassifier, RandomForestClassifier

from featx.heads import trees
from featx.heads.trees import TreeEnsemble


@pytest.mark.parametrize(
    ("splits", "cls"), [("best", RandomForestClassifier), ("random", ExtraTreesClassifier)]
)
def test_it_is_scikit_learns(splits, cls):
    X, y = load_digits(return_X_y=True)
    X = X.astype(np.float32)
    theirs = cls(20, max_depth=6, class_weight="balanced", random_state=0).fit(X[:500], y[:500])
    ours = TreeEnsemble(
        splits=splits, n_estimators=20, max_depth=6, class_weight="balanced", random_state=0
    ).fit(X[:500], y[:500])
    np.testing.assert_array_equal(ours.predict_proba(X[500:]), theirs.predict_proba(X[500:]))
    np.testing.assert_array_equal(ours.predict(X[500:]), theirs.predict(X[500:]))


@pytest.mark.parametrize(("budget_trees", "grown"), [(500, 200), (40, 40), (1, 10)])
def test_many_classes_get_fewer_trees(monkeypatch, budget_trees, grown):
    monkeypatch.setattr(trees, "_BUDGET_BYTES", budget_trees * 16 * 30 * 3)
    X, y = np.random.default_rng(0).normal(size=(30, 4)), np.arange(30) % 3
    assert len(TreeEnsemble(splits="random").fit(X, y).model_.estimators_) == grown
