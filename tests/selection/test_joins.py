"""A search tries blocks side by side, and the mean of its best heads."""

from __future__ import annotations

import numpy as np
import pytest

import featx
from featx.heads.ensemble import Ensemble, choose_weights, columns_of
from featx.heads.making import make_head
from featx.heads.storage import dump_head, load_head
from featx.selection.leaderboard import Cost, choose, ranked
from featx.selection.measuring import FeatureBlock, SearchOptions
from featx.selection.search_space import Candidate, SearchSpace
from featx.selection.searching import search_arrays
from featx.selection.trials import Trial

GRID = {"heads": ["ridge:alpha=1|100", "logistic:C=0.01|0.1", "lda"]}


def complementary(rows=300, seed=0):
    """Four classes: one block tells the first two pairs apart, the other the members of a pair."""
    generator = np.random.default_rng(seed)
    y = np.arange(rows) % 4
    blocks = []
    for tap, code in (("pair", y // 2), ("member", y % 2)):
        X = generator.normal(size=(rows, 12)).astype(np.float32)
        X[:, 0] += 3.0 * code
        blocks.append(FeatureBlock("net", tap, X, ms=2.0, bytes=100, cost=1.0))
    noise = generator.normal(size=(rows, 12)).astype(np.float32)
    blocks.append(FeatureBlock("net", "noise", noise, ms=2.0, bytes=100, cost=1.0))
    return blocks, y


def searched(blocks, y, **options):
    space = SearchSpace.read(GRID)
    return search_arrays(blocks, y, space, SearchOptions(score="none", **options))


def test_blocks_that_complete_each_other_are_joined():
    blocks, y = complementary()
    board = searched(blocks, y, ensemble=False).leaderboard
    assert {"pair", "member"} <= set(board.winner.tap.split(","))
    alone = searched(blocks, y, ensemble=False, joins=False).leaderboard
    assert board.rows[0].score > alone.rows[0].score + 0.2
    # What one network gives costs its time once.
    assert board.rows[0].backbone_ms == alone.rows[0].backbone_ms == 2.0


def test_a_join_is_tried_with_every_head_in_the_end():
    blocks, y = complementary()
    rows = searched(blocks, y, ensemble=False).leaderboard.rows
    winner = rows[0].tap
    assert {row.head.partition(":")[0] for row in rows if row.tap == winner} == {
        "ridge",
        "logistic",
        "lda",
    }


def test_joins_of_one_network_and_another_add_their_costs():
    parts = [
        FeatureBlock("a", "avg", np.zeros((3, 2), np.float32), ms=1.0, bytes=10, cost=1.0),
        FeatureBlock("a", "max", np.ones((3, 2), np.float32), ms=1.5, bytes=10, cost=1.0),
        FeatureBlock("b", "avg", np.full((3, 1), 2, np.float32), ms=4.0, bytes=30, cost=5.0),
    ]
    joint = FeatureBlock.joined(parts)
    assert (joint.ms, joint.bytes, joint.cost, joint.width) == (5.5, 40, 6.0, 5)
    assert joint.block_key == ("a + b", "avg,max + avg")
    np.testing.assert_array_equal(joint.take(np.array([1])), [[0, 0, 1, 1, 2]])
    again = FeatureBlock.joined([FeatureBlock.joined(parts[:2]), parts[2]])
    assert again.block_key == joint.block_key


def test_views_of_blocks_are_joined_too():
    X, views = np.zeros((3, 1), np.float32), (np.ones((3, 1), np.float32),)
    joint = FeatureBlock.joined(
        [FeatureBlock("a", "avg", X, views=views), FeatureBlock("a", "max", X + 5, views=views)]
    )
    assert joint.copies == 2
    np.testing.assert_array_equal(joint.take(np.array([0, 2])), [[0, 5], [0, 5], [1, 1], [1, 1]])


def noisy(rows=240, seed=0):
    """Three classes that two blocks show with independent noise."""
    generator = np.random.default_rng(seed)
    y = np.arange(rows) % 3
    means = generator.normal(size=(3, 10))
    return [
        FeatureBlock(
            name, "avg", (means[y] * 0.7 + generator.normal(size=(rows, 10))).astype(np.float32)
        )
        for name in ("a", "b")
    ], y


def test_an_ensemble_is_one_more_candidate_and_can_win():
    blocks, y = noisy()
    board = searched(blocks, y, joins=False).leaderboard
    (row,) = [row for row in board.rows if row.head.startswith("ensemble of ")]
    assert row.backbone == "a + b"
    assert row.ms is None or row.ms > 0
    assert len(row.scores) == 5
    best = max(other.score for other in board.rows if other is not row)
    assert row.score > best
    assert board.winner.text == row.head
    assert not any(
        row.head.startswith("ensemble")
        for row in searched(blocks, y, joins=False, ensemble=False).leaderboard.rows
    )


def test_weights_are_of_what_explains_the_truth():
    truth = np.array([0, 1, 0, 1] * 20)
    good = np.where(np.eye(2)[truth] > 0, 0.9, 0.1)
    bad = np.full((80, 2), 0.5)
    assert choose_weights([bad, good], truth).tolist() == [0.0, 1.0]
    generator = np.random.default_rng(0)
    halves = [good.copy(), good.copy()]
    for half, some in zip(halves, np.split(generator.permutation(80), 2), strict=True):
        half[some] = 0.5
    assert choose_weights(halves, truth).tolist() == [0.5, 0.5]
    sets = np.eye(2, dtype=int)[truth]
    assert choose_weights([bad, good], sets).tolist() == [0.0, 1.0]


@pytest.fixture
def ensemble():
    blocks, y = noisy()
    X = np.hstack([block.X for block in blocks])
    members = [
        (make_head("logistic:C=0.1"), ((0, 10),)),
        (make_head("ridge"), ((5, 8), (10, 20))),
        (make_head("nearest-mean"), ((0, 20),)),
    ]
    return Ensemble(members, [0.5, 0.3, 0.2]).fit(X, y), X, y


def test_the_mean_is_that_of_the_members(ensemble):
    head, X, _ = ensemble
    parts = [X[:, :10], np.hstack([X[:, 5:8], X[:, 10:]]), X]
    each = zip(head.members_, parts, head.weights, strict=True)
    expected = sum(weight * member.predict_proba(part) for member, part, weight in each)
    np.testing.assert_allclose(head.predict_proba(X), expected, atol=1e-7)
    np.testing.assert_array_equal(columns_of(X, ((5, 8), (10, 20))), parts[1])


def test_a_stored_ensemble_answers_alike(ensemble):
    head, X, _ = ensemble
    stored = load_head(dump_head(head))
    np.testing.assert_allclose(stored.predict_proba(X), head.predict_proba(X), atol=1e-6)
    np.testing.assert_array_equal(stored.predict(X), head.predict(X))


def test_a_weight_of_two_is_a_row_that_is_there_twice(ensemble):
    _, X, y = ensemble
    weights = np.where(np.arange(len(X)) % 3 == 0, 2.0, 1.0)
    twice = np.repeat(np.arange(len(X)), weights.astype(int))
    members = [
        (make_head("logistic:C=0.1,tol=1e-7"), ((0, 10),)),
        (make_head("nearest-mean"), ((0, 20),)),
    ]
    weighted = Ensemble(members, [0.5, 0.5]).fit(X, y, sample_weight=weights)
    repeated = Ensemble(members, [0.5, 0.5]).fit(X[twice], y[twice])
    np.testing.assert_allclose(weighted.predict_proba(X), repeated.predict_proba(X), atol=2e-3)


def test_an_ensemble_without_members_is_refused():
    with pytest.raises(featx.FeatxError, match="expected members and a weight each, received 0"):
        Ensemble([], []).fit(np.zeros((2, 1)), [0, 1])


def test_label_sets_are_searched_and_mixed():
    blocks, y = noisy()
    sets = np.eye(3, dtype=int)
    outcome = search_arrays(
        blocks,
        y,
        SearchSpace.read({"heads": ["ridge", "logistic:C=0.1"]}),
        SearchOptions(score="none", scoring="mean_average_precision", joins=False, cv=3),
        label_sets=(np.arange(3), sets),
    )
    assert any(row.head.startswith("ensemble of ") for row in outcome.leaderboard.rows)


@pytest.mark.parametrize("style", ["m.keras", "m.xml"])
def test_a_found_ensemble_is_saved_exported_and_verified(photos, small_network, tmp_path, style):
    own = f"file:{small_network}"
    feats = featx.extract(photos, backbone=own, taps=["avg", "first"], cache=tmp_path / "cache")
    y = np.array(["a", "b", "c"] * (len(feats) // 3))
    members = [
        (make_head("logistic"), ((0, 16),)),
        (make_head("nearest-mean"), ((16, 24),)),
        (make_head("ridge"), ((0, 24),)),
    ]
    model = featx.ImageClassifier(own, Ensemble(members, [0.5, 0.25, 0.25]), tap=["avg", "first"])
    X = feats.matrix(backbone="file:small", tap="avg,first:avg")
    model.take_head(model.head.fit(X, y), feats.specs(tap="avg"), n_features=24)
    model.save(tmp_path / "m.featx")
    loaded = featx.load(tmp_path / "m.featx")
    np.testing.assert_allclose(loaded.predict_proba(photos), model.predict_proba(photos), atol=1e-6)
    report = featx.export(loaded, tmp_path / style, verify=photos).verification
    assert report["passed"]


def trial(name, scores):
    candidate = Candidate("net", "avg", "standard", name)
    return Trial(candidate, scores=scores, fit_s=[0.0] * len(scores), score_s=[0.0] * len(scores))


@pytest.mark.parametrize(
    ("scores", "rows", "winner"),
    [
        ([0.92, 0.92, 0.92, 0.92, 0.92], 50, "usual"),  # one image in 50: chance
        ([0.92, 0.92, 0.92, 0.92, 0.92], 50_000, "other"),
        ([1.0, 0.95, 0.99, 0.97, 1.0], 200, "other"),
        ([0.99, 0.80, 0.99, 0.80, 0.97], 5_000, "usual"),  # the folds disagree
        ([0.89, 0.9, 0.9, 0.9, 0.9], 1_000_000, "usual"),
    ],
)
def test_caution_asks_for_more_than_chance(scores, rows, winner):
    trials = ranked([trial("usual", [0.9] * 5), trial("other", scores)])
    costs = {
        one.candidate: Cost(None, None, None, None, (float(one.candidate.head == "other"),))
        for one in trials
    }
    usual = {one.candidate for one in trials if one.candidate.head == "usual"}
    chosen = choose(trials, costs, usual=usual, caution=1.0, rows=rows)
    assert trials[chosen].candidate.head == winner
    best = max(trials, key=lambda one: one.score)
    assert trials[choose(trials, costs, usual=usual, rows=rows)] is best


def test_scores_that_are_no_shares_are_compared_by_their_folds():
    trials = ranked([trial("usual", [-0.9] * 5), trial("other", [-0.7, -0.6, -0.65, -0.6, -0.7])])
    costs = {one.candidate: Cost(None, None, None, None, ()) for one in trials}
    usual = {one.candidate for one in trials if one.candidate.head == "usual"}
    assert trials[choose(trials, costs, usual=usual, caution=1.0, rows=9)].candidate.head == "other"


def test_a_search_without_named_heads_is_cautious(photos, tmp_path):
    feats = featx.extract(photos, cache=tmp_path / "cache")
    assert featx.search(feats, heads="ridge", score="none", cv=2).caution == 0
    assert featx.search(feats, score="none", cv=2).caution == 1.5
    assert featx.search(feats, score="none", cv=2, caution=3).caution == 3
