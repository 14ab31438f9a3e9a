"""Rare classes: heads whose classes count the same, however few images they have."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner
from sklearn.linear_model import LogisticRegression, RidgeClassifier

import featx
from featx.cli.main import cli
from featx.exceptions import HeadError
from featx.heads.making import balanced_head


@pytest.fixture
def rare(tmp_path):
    """Features of 180 common images and 20 rare ones, which overlap."""
    generator = np.random.default_rng(0)
    y = np.repeat(["common", "rare"], [180, 20])
    X = generator.normal(size=(200, 6)) + 0.8 * (y == "rare")[:, None]
    return featx.import_features("some", X.astype(np.float32), y=y, cache=tmp_path / "cache")


@pytest.mark.parametrize("head", ["logistic", "ridge", "lda", "svm", LogisticRegression()])
def test_more_of_the_rare_class_is_found(rare, head):
    plain = featx.train(rare, head=head, seed=1)
    balanced = featx.train(rare, head=head, seed=1, balanced=True)
    recall = [result.model.predict(rare.X)[180:] == "rare" for result in (plain, balanced)]
    assert recall[1].mean() > recall[0].mean() + 0.2
    scores = [result.metrics["balanced_accuracy"] for result in (plain, balanced)]
    assert scores[1] > scores[0] + 0.05, "cross-validation weighs classes too"
    if isinstance(head, str):
        assert balanced.model.head == f"{head}:class_weight=balanced"
        typed = featx.train(rare, head=f"{head}:class_weight=balanced", seed=1)
        np.testing.assert_array_equal(
            typed.model.predict_proba(rare.X), balanced.model.predict_proba(rare.X)
        )


def test_weights_that_a_head_has_stay():
    assert balanced_head("ridge:class_weight=balanced,alpha=1") == (
        "ridge:class_weight=balanced,alpha=1"
    )
    assert balanced_head("dense:8") == "dense:8,class_weight=balanced"
    own = RidgeClassifier(class_weight={0: 1.0, 1: 5.0})
    assert balanced_head(own) is own
    assert balanced_head(RidgeClassifier()).class_weight == "balanced"


def test_a_search_weighs_the_heads_that_can_be(rare):
    result = featx.search(
        rare,
        heads=["ridge:alpha=10|1000", "knn:n_neighbors=5", "logistic:C=0.1,class_weight=balanced"],
        scoring="balanced_accuracy",
        balanced=True,
        score="none",
        ensemble=False,
    )
    weighted = {row.head: "class_weight=balanced" in row.head for row in result.leaderboard}
    assert len(weighted) == 4
    assert sum(weighted.values()) == 3
    assert not weighted["knn:n_neighbors=5"]
    assert "class_weight=balanced" in result.head
    with pytest.raises(HeadError, match=r"no head of the space weighs classes.*--balanced"):
        featx.search(rare, heads="knn", balanced=True)


def test_the_commands_say_which_head_they_trained(photos, small_network, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    common = [str(photos), "-b", f"file:{small_network}", "--balanced", "--json"]
    trained = CliRunner().invoke(cli, ["train", *common, "--cv", "0", "-o", "m.featx"])
    assert json.loads(trained.stdout)["head"] == "logistic:class_weight=balanced"
    search = ["search", *common, "--head", "ridge:alpha=1", "--score", "none", "-o", "s.featx"]
    found = json.loads(CliRunner().invoke(cli, search).stdout)
    assert "class_weight=balanced" in found["best"]["head"]
    refused = CliRunner().invoke(cli, ["train", *common, "--head", "knn"])
    assert isinstance(refused.exception, HeadError)
    assert "takes no class_weight: leave it (or --balanced) out" in str(refused.exception)
