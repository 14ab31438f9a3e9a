"""Heads from other packages, by their import path and with trust."""

from __future__ import annotations

import numpy as np
import pytest

import featx
from featx.exceptions import ArtefactError, HeadError
from featx.heads.foreign import trusted_head
from featx.heads.making import make_head
from featx.heads.storage import dump_head, load_head

# Like xgboost's, it takes no text for labels.
MODULE = """
import numpy as np
from sklearn.naive_bayes import GaussianNB


class CatBoostClassifier(GaussianNB):
    def __init__(self, *, rounds=3, priors=None, var_smoothing=1e-9):
        super().__init__(priors=priors, var_smoothing=var_smoothing)
        self.rounds = rounds

    def fit(self, X, y):
        if np.asarray(y).dtype.kind not in "iu":
            raise ValueError("labels have to be numbers from 0 on")
        return super().fit(X, y)


class NoClassifier:
    pass
"""
PATH = "catboost.made.CatBoostClassifier"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of a known name, which is not the real one."""
    folder = tmp_path / "site" / "catboost"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "made.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path / "site")
    for name in ("catboost", "catboost.made"):
        monkeypatch.delitem(__import__("sys").modules, name, raising=False)
    yield
    for name in ("catboost", "catboost.made"):
        monkeypatch.delitem(__import__("sys").modules, name, raising=False)


@pytest.fixture
def features(photos, tmp_path):
    return featx.extract(photos, cache=tmp_path / "cache")


def test_text_labels_are_encoded_for_it(package, features, photos):
    result = featx.train(features, head=f"{PATH}:rounds=7", trust=True, cv=3)
    assert result.metrics["accuracy"] == 1.0
    assert result.model.head_.estimator_.rounds == 7
    assert set(result.model.predict(photos).tolist()) == {"blue", "red"}


def test_it_is_saved_and_read_with_trust_alone(package, features, photos, tmp_path):
    model = featx.train(features, head=PATH, trust=True, cv=0).model
    model.save(tmp_path / "m.featx")
    with pytest.raises(ArtefactError, match="give --trust"):
        featx.load(tmp_path / "m.featx")
    loaded = featx.load(tmp_path / "m.featx", trust=True)
    np.testing.assert_allclose(loaded.predict_proba(photos), model.predict_proba(photos), atol=1e-6)


def test_a_search_tries_its_parameters(package, features):
    result = featx.search(
        features, heads=[f"{PATH}:rounds=2|5", "ridge"], trust=True, score="none", cv=3
    )
    heads = {row.head for row in result.leaderboard}
    assert {f"{PATH}:rounds=2", f"{PATH}:rounds=5"} <= heads


def test_the_commands_take_it(package, photos, featx_command):
    done = featx_command("train", photos, "--head", PATH, "--trust", "-o", "m.featx")
    assert done.returncode == 0, done.stderr
    assert f"head      {PATH} on 2 classes" in done.stdout
    refused = featx_command("predict", "m.featx", photos)
    assert refused.returncode == 1
    predicted = featx_command("predict", "m.featx", photos, "--trust")
    assert predicted.returncode == 0, predicted.stderr


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ("catboost.made.Nothing", "cannot be imported .*: install its package"),
        ("catboost.made.NoClassifier", "is no classifier: expected a class with fit and predict"),
        (f"{PATH}:3", "takes parameters by name, received 3"),
        (f"{PATH}:round=3", "unknown parameter 'round' .*did you mean 'rounds'"),
        ("some.where.Classifier", "cannot be saved: expected a path below sklearn, xgboost"),
    ],
)
def test_what_cannot_be_is_said(package, head, message):
    with pytest.raises(HeadError, match=message):
        trusted_head(head, saved=True)


def test_without_trust_nothing_is_imported(package, features):
    with pytest.raises(HeadError, match=r"--trust \(trust=True\) takes other packages"):
        featx.train(features, head=PATH)


def test_other_heads_are_left_as_they_are():
    assert trusted_head("logistic:C=0.1") == "logistic:C=0.1"
    assert trusted_head("sklearn.naive_bayes.GaussianNB") == "sklearn.naive_bayes.GaussianNB"
    head = make_head("ridge")
    assert trusted_head(head) is head


@pytest.mark.parametrize("path", ["lightgbm.LGBMClassifier", "xgboost.XGBClassifier"])
def test_the_real_ones(path):
    pytest.importorskip(path.partition(".")[0])
    generator = np.random.default_rng(0)
    y = np.repeat(["ant", "bee", "wasp"], 30)
    X = (generator.normal(size=(90, 5)) + np.unique(y, return_inverse=True)[1][:, None] * 2).astype(
        "f4"
    )
    head = make_head(trusted_head(f"{path}:n_estimators=10", seed=1)).fit(X, y)
    assert (head.predict(X) == y).mean() > 0.9
    loaded = load_head(dump_head(head), trust=True)
    np.testing.assert_allclose(loaded.predict_proba(X), head.predict_proba(X), atol=1e-6)
