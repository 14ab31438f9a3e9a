from __future__ import annotations

import json

import pytest
from sklearn.naive_bayes import GaussianNB

import featx
from featx.exceptions import HeadError, MissingExtraError
from featx.heads.making import make_head
from featx.heads.table import HEADS
from featx.selection.search_space import SearchSpace, read_space_file

HERE = [("tiny", "avg")]


def texts(**given):
    return [candidate.text for candidate in SearchSpace.read(given).candidates(HERE)]


def test_heads_in_every_form():
    assert texts(heads="logistic:C=0.1|1,class_weight=balanced") == [
        "logistic:C=0.1,class_weight=balanced",
        "logistic:C=1,class_weight=balanced",
    ]
    assert texts(heads=["dense:256|512,dropout=0.1", "dense:64,32|16"]) == [
        "dense:hidden=(256,),dropout=0.1",
        "dense:hidden=(512,),dropout=0.1",
        "dense:hidden=(64, 32)",
        "dense:hidden=(64, 16)",
    ]
    assert texts(heads=[{"head": "knn", "n_neighbors": [1, 3]}]) == [
        "knn:n_neighbors=1",
        "knn:n_neighbors=3",
    ]
    assert texts(heads=[("knn", {"n_neighbors": "2|4"}), "lda:shrinkage=auto"]) == [
        "knn:n_neighbors=2",
        "knn:n_neighbors=4",
        "lda:shrinkage=auto",
    ]
    assert texts(heads=[(GaussianNB(), {"var_smoothing": [1e-9]})]) == [
        "GaussianNB():var_smoothing=1e-09"
    ]
    assert texts(heads=["ridge:alpha=1", "ridge:alpha=1"]) == ["ridge:alpha=1"]


@pytest.mark.parametrize("head", sorted(HEADS))
def test_the_own_grid_of_every_head_can_be_made_and_typed(head):
    for candidate in SearchSpace.read({"heads": head}).candidates(HERE):
        typed, made = make_head(candidate.text), candidate.make()
        assert repr(typed) == repr(made)


def test_parts_limit_blocks_of_their_own():
    there = [("tiny", "avg"), ("tiny", "max"), ("big", "avg")]
    space = SearchSpace.read(
        [
            {"heads": "ridge:alpha=1", "backbones": "tiny", "transforms": ["standard", "pca:2"]},
            {"heads": "knn:n_neighbors=1", "taps": "avg"},
        ]
    )
    found = {(c.backbone, c.tap, c.transform, c.head) for c in space.candidates(there)}
    assert found == {
        ("tiny", "avg", "standard", "ridge"),
        ("tiny", "avg", "pca:2", "ridge"),
        ("tiny", "max", "standard", "ridge"),
        ("tiny", "max", "pca:2", "ridge"),
        ("tiny", "avg", "standard", "knn"),
        ("big", "avg", "standard", "knn"),
    }


def test_ranges_are_drawn_from_by_random_search(features):
    arguments = {"heads": ["ridge:alpha=0.1..10000", "knn:n_neighbors=1..20"], "score": "none"}
    result = featx.search(features, **arguments, strategy="random", n_trials=12)
    assert len(result.leaderboard) == 12
    alphas = [row.params["alpha"] for row in result.leaderboard if "alpha" in row.params]
    near = [row.params["n_neighbors"] for row in result.leaderboard if "n_neighbors" in row.params]
    assert alphas
    assert min(alphas) >= 0.1
    assert max(alphas) <= 10000
    assert all(isinstance(number, int) and 1 <= number <= 20 for number in near)


TOML = """
[[parts]]
heads = ["knn:n_neighbors=1|5", { head = "ridge", alpha = [1, 10] }]
transforms = ["standard", "pca:3"]
"""
PART = {
    "heads": ["knn:n_neighbors=1|5", {"head": "ridge", "alpha": [1, 10]}],
    "transforms": ["standard", "pca:3"],
}
YAML = """
heads:
  - knn:n_neighbors=1|5
  - {head: ridge, alpha: [1, 10]}
transforms: [standard, "pca:3"]
"""


def test_files_say_what_objects_say(features, tmp_path):
    (tmp_path / "a.toml").write_text(TOML)
    (tmp_path / "a.json").write_text(json.dumps(PART))
    expected = SearchSpace.read(PART).candidates(HERE)
    for name in ("a.toml", "a.json"):
        assert SearchSpace.read(read_space_file(tmp_path / name)).candidates(HERE) == expected
    result = featx.search(features, space=tmp_path / "a.toml", score="none")
    assert result.planned == 8


def test_yaml_where_it_is_installed_and_its_extra_where_not(tmp_path):
    (tmp_path / "a.yaml").write_text(YAML)
    try:
        import yaml  # noqa: F401
    except ModuleNotFoundError:
        with pytest.raises(MissingExtraError, match=r"needs PyYAML.*pip install 'featx\[hpo\]'"):
            read_space_file(tmp_path / "a.yaml")
    else:
        assert read_space_file(tmp_path / "a.yaml") == PART
        (tmp_path / "bad.yaml").write_text("heads: [a")
        with pytest.raises(HeadError, match="is no valid YAML"):
            read_space_file(tmp_path / "bad.yaml")


def test_files_that_cannot_be_read_are_said(tmp_path):
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "bad.toml").write_text("= 3")
    for name, message in (
        ("bad.json", "is no valid JSON"),
        ("bad.toml", "is no valid TOML"),
        ("none.json", "cannot be read .No such file"),
        ("space.txt", "ends in .json, .toml, .yaml, .yml"),
    ):
        with pytest.raises(HeadError, match=message):
            read_space_file(tmp_path / name)


def test_optuna_where_it_is_installed_and_its_extra_where_not(features, tmp_path):
    arguments = {
        "heads": ["ridge:alpha=0.1..100000", "knn:n_neighbors=1|3|5"],
        "strategy": "optuna",
        "n_trials": 12,
        "score": "none",
    }
    try:
        import optuna  # noqa: F401
    except ModuleNotFoundError:
        with pytest.raises(MissingExtraError, match=r"needs optuna.*pip install 'featx\[hpo\]'"):
            featx.search(features, **arguments)
        return
    first = featx.search(features, **arguments, cache=tmp_path)
    again = featx.search(features, **arguments)
    resumed = featx.search(features, **arguments, cache=tmp_path)
    heads = [(row.head, row.scores) for row in first.leaderboard]
    assert 3 < len(heads) <= 12
    assert heads == [(row.head, row.scores) for row in again.leaderboard]
    assert heads == [(row.head, row.scores) for row in resumed.leaderboard]
    assert resumed.resumed == len(heads)
