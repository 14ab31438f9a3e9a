"""`featx.search` as a user meets it."""

from __future__ import annotations

import csv
import io
import json
import warnings

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import featx
from featx.exceptions import DatasetError, FeaturesError, HeadError, UnknownNameError
from featx.files.identity import related_rows
from featx.heads.making import make_head
from featx.selection.splits import repeated_folds

CHEAP = ["knn:n_neighbors=1|5|15", "ridge:alpha=1|100|10000"]
TIMES = ("ms", "backbone_ms", "head_ms", "pareto")


def timeless(result):
    """The leaderboard without what a clock says."""
    rows = [row.to_dict() for row in result.leaderboard]
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


@pytest.mark.parametrize(
    ("head", "grid"), [("knn", {"n_neighbors": [1, 5, 15]}), ("ridge", {"alpha": [1, 100, 10000]})]
)
def test_scores_are_those_of_grid_search_cv_on_the_same_folds(features, head, grid):
    result = featx.search(features, heads=[(head, grid)], score="none", seed=3)
    folds = repeated_folds(features.y, groups=related_rows(features.keys, None), seed=3)
    prefixed = {f"head__{name}": values for name, values in grid.items()}
    made = make_head(head)
    if hasattr(made[-1], "estimator"):
        prefixed = {f"head__estimator__{name}": values for name, values in grid.items()}
    theirs = GridSearchCV(made, prefixed, cv=folds).fit(features.X, features.y)
    ours = result.cv_results_
    value = {one[f"head__{next(iter(grid))}"]: i for i, one in enumerate(ours["params"])}
    for place, params in enumerate(theirs.cv_results_["params"]):
        own = value[next(iter(params.values()))]
        for fold in range(5):
            key = f"split{fold}_test_score"
            # A sweep may decide a tie between two classes the other way: one image of 48.
            assert ours[key][own] == pytest.approx(theirs.cv_results_[key][place], abs=1.01 / 48)
        assert ours["mean_test_score"][own] == pytest.approx(
            theirs.cv_results_["mean_test_score"][place], abs=0.009
        )


def test_heads_fitted_one_by_one_score_as_cross_val_score(features):
    from sklearn.model_selection import cross_val_score

    grid = {"C": [0.01, 1.0]}
    for transform, before in (
        ("standard", []),
        ("none", []),
        ("pca:4", ["scale", "pca"]),
        ("pca:0.7", ["scale", "pca"]),
    ):
        own = LogisticRegression(max_iter=500)
        result = featx.search(
            features, heads=[(own, grid)], transforms=transform, score="none", n_jobs=1
        )
        folds = repeated_folds(features.y, seed=0)
        for row in result.leaderboard:
            from sklearn.decomposition import PCA

            size = float(transform[4:]) if "." in transform else 4
            steps = [StandardScaler(), PCA(size, svd_solver="covariance_eigh")] if before else []
            pipe = make_pipeline(*steps, LogisticRegression(max_iter=500, **row.params))
            expected = cross_val_score(pipe, features.X, features.y, cv=folds)
            np.testing.assert_allclose(row.scores, expected, atol=1e-9)


def test_cv_results_have_the_form_of_scikit_learn(features):
    import sklearn.model_selection as theirs

    result = featx.search(features, heads=CHEAP, score="none")
    found = result.cv_results_
    search = theirs.GridSearchCV(LogisticRegression(), {"C": [0.1]}, cv=5)
    expected = search.fit(features.X, features.y).cv_results_
    assert {key for key in found if not key.startswith("param_")} == {
        key for key in expected if not key.startswith("param_")
    }
    for key in found.keys() & expected.keys():
        assert type(found[key]) is type(expected[key]), key
        if isinstance(expected[key], np.ndarray):
            assert found[key].dtype == expected[key].dtype, key
    assert isinstance(found["param_head__alpha"], np.ma.MaskedArray)
    assert found["param_head__alpha"].mask.sum() == 3
    means = np.mean([found[f"split{fold}_test_score"] for fold in range(5)], axis=0)
    np.testing.assert_allclose(found["mean_test_score"], means)
    assert found["rank_test_score"][0] == 1
    assert found["params"][0]["head"] == result.best.head.partition(":")[0]


def test_the_winner_is_fitted_saved_and_loads(features, tmp_path):
    result = featx.search(features, heads=CHEAP, transforms=["standard", "l2", "pca:6", "whiten:6"])
    assert len(result.leaderboard) == result.planned == 24
    assert [row.rank for row in result.leaderboard] == list(range(1, 25))
    assert result.best.score == max(row.score for row in result.leaderboard)
    result.save(tmp_path / "m.featx")
    loaded = featx.load(tmp_path / "m.featx")
    np.testing.assert_array_equal(loaded.predict(features.X), result.model.predict(features.X))
    rows = list(csv.DictReader(io.StringIO(result.to_csv())))
    assert [row["head"] for row in rows] == [row.head for row in result.leaderboard]
    assert json.loads(json.dumps(result.to_dict()))["best"]["rank"] == result.best.rank


@pytest.mark.parametrize("transform", ["none", "l2", "pca:5", "pca:0.8", "whiten:5"])
def test_a_winner_behind_any_transform_is_saved_with_it(features, tmp_path, transform):
    result = featx.search(
        features, heads="ridge:alpha=10", transforms=transform, cache=tmp_path, score="none"
    )
    assert result.best.transform == transform
    result.save(tmp_path / "m.featx")
    loaded = featx.load(tmp_path / "m.featx")
    np.testing.assert_allclose(
        loaded.predict_proba(features.X), result.model.predict_proba(features.X), atol=1e-6
    )
    assert loaded.score(features.X, features.y) > 0.5


def test_one_seed_gives_one_answer_whatever_the_number_of_jobs(features):
    arguments = {
        "heads": ["svm:C=0.001|0.1", "forest:n_estimators=20", *CHEAP],
        "transforms": ["standard", "pca:4"],
        "strategy": "random",
        "n_trials": 7,
        "score": "holdout",
    }
    first = featx.search(features, **arguments, n_jobs=1)
    again = featx.search(features, **arguments, n_jobs=2)
    other = featx.search(features, **arguments, seed=1)
    assert len(first.leaderboard) == 7
    assert timeless(first) == timeless(again)
    assert first.score == again.score
    assert timeless(first) != timeless(other)


class WarnsOnFolds(LogisticRegression):
    def fit(self, X, y):
        if len(X) < 240:
            warnings.warn("as a head may do", UserWarning, stacklevel=1)
        return super().fit(X, y)


@pytest.mark.filterwarnings("ignore:as a head may do")
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_a_warning_fails_no_candidate_where_warnings_are_errors(features, n_jobs):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        kept = list(warnings.filters)
        result = featx.search(features, heads=WarnsOnFolds(), score="none", n_jobs=n_jobs)
        assert list(warnings.filters) == kept
    assert [row.failed for row in result.leaderboard] == [""]


def test_the_test_split_takes_no_part_in_the_selection_and_scores_the_winner(
    tmp_path, draw_clusters
):
    X, codes = draw_clusters()
    splits = np.where(np.arange(240) % 4 == 0, "test", "train")
    y = np.array(["ant", "bee", "fly"])[codes]
    arguments = {"splits": splits.tolist(), "cache": tmp_path}
    honest = featx.search(featx.import_features("a", X, y=y, **arguments), heads=CHEAP)
    swapped = y.copy()
    swapped[splits == "test"] = np.roll(y[splits == "test"], 1)
    fooled = featx.search(featx.import_features("a", X, y=swapped, **arguments), heads=CHEAP)
    assert timeless(honest) == timeless(fooled)
    assert honest.score.protocol == ("the test split: 60 images that the selection has not seen")
    assert honest.training["images"] == 180
    assert honest.score.value > 0.6 > fooled.score.value
    low, high = honest.score.interval
    assert low < honest.score.value < high


def test_training_rows_that_equal_test_rows_do_not_count(tmp_path, draw_clusters):
    X, codes = draw_clusters()
    X[:10] = X[200:210]
    splits = ["test" if row < 60 else "train" for row in range(240)]
    codes[:10] = codes[200:210]
    features = featx.import_features("a", X, y=codes, splits=splits, cache=tmp_path)
    result = featx.search(features, heads="ridge:alpha=100")
    assert result.score.images == 50
    assert "10 test images equal a training image" in result.notes[0]


def test_equal_images_are_on_one_side_so_that_copies_do_not_flatter(tmp_path):
    generator = np.random.default_rng(0)
    X = np.repeat(generator.normal(size=(60, 8)).astype(np.float32), 4, axis=0)
    y = np.repeat(np.array(["ant", "bee"])[generator.integers(0, 2, 60)], 4)
    features = featx.import_features("noise", X, y=y, cache=tmp_path)
    result = featx.search(features, heads="knn:n_neighbors=1", score="nested")
    assert result.best.score < 0.75  # four copies of pure noise: 1.0 where they leak
    assert result.score.value < 0.75


def test_selection_on_noise_is_optimistic_and_the_nested_score_is_not(tmp_path):
    generator = np.random.default_rng(1)
    X = generator.normal(size=(60, 30)).astype(np.float32)
    features = featx.import_features("noise", X, y=np.arange(60) % 2, cache=tmp_path)
    result = featx.search(features, heads=["knn", "lda", "nearest-mean"], cv=3)
    assert result.score.protocol.startswith("nested 5-fold cross-validation")
    assert result.score.images == 60
    low, high = result.score.interval
    assert low < 0.5 < high
    assert result.best.score > 0.55
    assert "optimistic" in result.metrics["selected_by"]["note"]


def test_selection_by_a_named_split(tmp_path, draw_clusters):
    X, codes = draw_clusters()
    splits = np.array(["train", "val", "test"])[np.arange(240) % 5 % 3]
    features = featx.import_features("a", X, y=codes, splits=splits.tolist(), cache=tmp_path)
    result = featx.search(features, heads="ridge:alpha=1|100", cv="val")
    assert all(len(row.scores) == 1 for row in result.leaderboard)
    head = make_head("ridge:alpha=100").fit(features.X[splits == "train"], codes[splits == "train"])
    expected = head.score(features.X[splits == "val"], codes[splits == "val"])
    by_head = {row.head: row.score for row in result.leaderboard}
    assert by_head["ridge:alpha=100"] == pytest.approx(expected, abs=0.02)
    with pytest.raises(DatasetError, match="received cv='vall'; splits are: train, val"):
        featx.search(features, cv="vall")


def test_halving_ends_on_all_rows_and_agrees_with_the_grid(tmp_path, draw_clusters):
    X, codes = draw_clusters(n=1500)
    features = featx.import_features("a", X, y=codes, cache=tmp_path)
    heads = ["ridge:alpha=1|10|100|1000|10000|100000", "knn:n_neighbors=1|3|9"]
    arguments = {"heads": heads, "score": "none"}
    halved = featx.search(features, strategy="halving", **arguments)
    full = featx.search(features, **arguments)
    shares = [row.share for row in halved.leaderboard]
    assert len(shares) == 9
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == 1
    assert min(shares) < 0.2
    assert shares.count(1) == 1 or shares.count(1) == 3
    best = {row.head: row.score for row in full.leaderboard}[halved.best.head]
    assert best >= full.best.score - 0.01


def test_repeats_and_every_scoring(tmp_path, draw_clusters):
    X, codes = draw_clusters(k=7, n=280)
    features = featx.import_features("a", X, y=codes, cache=tmp_path)
    for scoring in ("accuracy", "balanced_accuracy", "macro_f1", "log_loss", "top5"):
        result = featx.search(
            features,
            heads=["ridge:alpha=1|100", "lda:shrinkage=0.1"],
            scoring=scoring,
            repeats=2,
            score="holdout",
        )
        assert all(len(row.scores) == 10 for row in result.leaderboard)
        scores = [row.score for row in result.leaderboard]
        better = min if scoring == "log_loss" else max
        assert result.best.score == better(scores)
        low, high = result.score.interval
        assert low <= result.score.value <= high
        mean = result.cv_results_["mean_test_score"][0]
        assert mean == pytest.approx(-scores[0] if scoring == "log_loss" else scores[0])


def test_of_equal_scores_the_cheaper_wins(tmp_path):
    generator = np.random.default_rng(0)
    codes = np.arange(120) % 2
    X = (generator.normal(size=(120, 6)) + 20 * codes[:, None]).astype(np.float32)
    features = featx.import_features("easy", X, y=codes, cache=tmp_path)
    result = featx.search(
        features,
        heads=["knn:n_neighbors=5", "forest:n_estimators=20", "ridge:alpha=1"],
        score="none",
    )
    assert {row.score for row in result.leaderboard} == {1.0}
    assert result.leaderboard[0].head == "ridge:alpha=1"
    assert result.best.mb < result.leaderboard[-1].mb


def test_one_standard_error_takes_the_cheaper_head(tmp_path, draw_clusters):
    X, codes = draw_clusters(spread=2.5)
    features = featx.import_features("a", X, y=codes, cache=tmp_path)
    heads = ["forest:n_estimators=20", "nearest-mean", "ridge:alpha=100"]
    plain = featx.search(features, heads=heads, score="none")
    careful = featx.search(features, heads=heads, score="none", one_standard_error=True)
    best = plain.best
    limit = best.score - np.std(best.scores, ddof=1) / np.sqrt(5)
    assert careful.best.score >= limit
    assert timeless(plain)[0]["head"] == timeless(careful)[0]["head"]
    cheap = [row.head for row in plain.leaderboard if row.score >= limit]
    if any(head.startswith("nearest-mean") for head in cheap):
        assert careful.best.head.startswith("nearest-mean")


def test_several_blocks_and_the_pareto_front(photos, small_network, tmp_path):
    features = featx.extract(
        photos, backbone=f"file:{small_network}", taps=["avg", "max"], cache=tmp_path / "cache"
    )
    result = featx.search(
        features,
        heads="ridge:alpha=1",
        backbones=f"file:{small_network}",
        taps=["avg", "max"],
        cache=tmp_path / "cache",
        score="none",
        joins=False,
        ensemble=False,
    )
    assert {row.tap for row in result.leaderboard} == {"avg", "max"}
    assert all(row.backbone_ms > 0 and row.backbone_mb > 0 for row in result.leaderboard)
    assert any(row.pareto for row in result.leaderboard)
    assert result.model.predict([photos / "red" / "0.jpg"]).tolist() == ["red"]
    one = featx.search(features, heads="ridge:alpha=1", taps="max", score="none")
    assert {row.tap for row in one.leaderboard} == {"max"}
    with pytest.raises(UnknownNameError, match="tap of these features 'gem'"):
        featx.search(features, taps="gem")


def test_views_are_trained_on_and_never_tested_on(photos, small_network, tmp_path):
    features = featx.extract(
        photos, backbone=f"file:{small_network}", views=2, cache=tmp_path / "cache"
    )
    result = featx.search(
        features, heads="ridge:alpha=1", backbones=f"file:{small_network}", score="none", cv=3
    )
    assert result.model.views == 2
    assert result.best.score == 1.0


def test_a_budget_finishes_one_and_says_how_many_it_left(features):
    slow = [f"forest:n_estimators={number}" for number in (60, 61, 62, 63, 64, 65)]
    result = featx.search(features, heads=slow, budget_s=0.05, n_jobs=1)
    assert 1 <= len(result.leaderboard) < 6
    assert result.untried == 6 - len(result.leaderboard)
    assert result.score.protocol.startswith("a fifth of the images")


def test_a_head_that_fails_is_a_row_and_all_failing_is_an_error(features):
    bad = "sklearn.naive_bayes.MultinomialNB"  # refuses negative features
    result = featx.search(features, heads=[bad, "ridge:alpha=1"], score="none")
    assert "Negative values" in result.leaderboard[-1].failed
    assert result.leaderboard[-1].score is None
    assert np.isnan(result.cv_results_["mean_test_score"][-1])
    with pytest.raises(HeadError, match="all 1 candidates failed: Negative values"):
        featx.search(features, heads=bad)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"heads": []}, HeadError, "the search space is empty .heads is an empty list"),
        ({"space": []}, HeadError, "the search space is empty"),
        ({"heads": [("knn", {"n_neighbors": []})]}, HeadError, "is empty .no value for 'n_neigh"),
        ({"heads": "logistik"}, UnknownNameError, "did you mean 'logistic'"),
        ({"heads": "logistic:c=1"}, HeadError, "unknown parameter 'c'.*did you mean 'C'"),
        ({"heads": "knn:n_neighbours=1|2"}, HeadError, "did you mean 'n_neighbors'"),
        ({"heads": "knn:n_neighbors=0|2"}, HeadError, "n_neighbors"),
        ({"heads": "logistic:C=1|"}, HeadError, "nothing beside a '|'"),
        ({"heads": "logistic:C=2..1"}, HeadError, "from a number to a greater one"),
        ({"heads": "logistic:C=0.1..1"}, HeadError, "is a range.*--strategy random"),
        ({"heads": "lda:1|2"}, HeadError, "takes parameters by name"),
        ({"transforms": "pcaa:2"}, HeadError, "unknown transform 'pcaa:2': did you mean 'pca'"),
        ({"transforms": "pca"}, HeadError, "takes the number of components"),
        ({"transforms": "pca:13"}, HeadError, "more components than the 12 columns"),
        ({"transforms": "l2:3"}, HeadError, "takes no size"),
        ({"transforms": "pca:1.5"}, HeadError, "a share of the variance between 0 and 1"),
        ({"space": {"head": ["knn"]}}, UnknownNameError, "did you mean 'heads'"),
        ({"space": 3}, HeadError, "a search space is a mapping"),
        ({"space": {}, "heads": "knn"}, HeadError, "a space and heads were given"),
        ({"strategy": "gird"}, UnknownNameError, "did you mean 'grid'"),
        ({"strategy": "grid", "n_trials": 3}, HeadError, "a grid tries everything"),
        ({"scoring": "acuracy"}, UnknownNameError, "did you mean 'accuracy'"),
        ({"scoring": "top5"}, HeadError, "top5 needs more than 5 classes, received 3"),
        ({"score": "nestd"}, UnknownNameError, "did you mean 'nested'"),
        ({"score": "test"}, DatasetError, "there are none: take"),
        ({"cv": 1}, HeadError, "2 folds or more"),
        ({"cv": "val"}, DatasetError, "splits are: none"),
        ({"budget_s": 0}, HeadError, "more than 0 seconds"),
        ({"budget_s": 9, "score": "nested"}, HeadError, "a budget bounds one search"),
        ({"backbones": "tiny"}, UnknownNameError, "backbone of these features 'tiny'"),
        ({"y": ["a", "b"]}, DatasetError, "one label for each of 240 rows .* received 2"),
    ],
)
def test_what_cannot_be_is_refused_with_what_to_do(features, options, error, message):
    with pytest.raises(error, match=message):
        featx.search(features, **options)


def test_features_and_labels_that_cannot_be_learned_from(draw_clusters):
    from featx.selection.measuring import FeatureBlock
    from featx.selection.search_space import SearchSpace
    from featx.selection.searching import search_arrays

    X, codes = draw_clusters()
    space = SearchSpace.read({"heads": ["ridge:alpha=1"]})

    def refused(X, y, error, message, **options):
        with pytest.raises(error, match=message):
            search_arrays([FeatureBlock("tiny", "avg", X)], y, space, **options)

    for bad in (np.nan, np.inf, -np.inf):
        broken = X.copy()
        broken[7, 3] = bad
        refused(
            broken, codes, FeaturesError, r"tiny avg must be finite.* in 1 of 240 .*first is row 7"
        )
    refused(X, codes[:-1], DatasetError, "one label for each of 240 rows of tiny avg, received 239")
    refused(X, np.zeros(240), DatasetError, r"one class only: '0.0' \(240 images\)")
    refused(np.ones_like(X), codes, FeaturesError, "all 12 columns of tiny avg are constant")
    refused(X[:, :0], codes, FeaturesError, "to be a matrix of numbers")
    lonely = codes.copy()
    lonely[0] = 9
    refused(X, lonely, DatasetError, "class '9' has 1 image, 5 folds need 2 or more")
    few = X.copy()
    few[:, :2] = 5
    outcome = search_arrays([FeatureBlock("tiny", "avg", few)], codes, space)
    assert "2 of 12 columns are the same in all images" in outcome.notes[0]


def test_few_images_take_fewer_folds_and_say_so(tmp_path, draw_clusters):
    X, codes = draw_clusters(n=9)
    features = featx.import_features("few", X, y=codes, cache=tmp_path)
    result = featx.search(features, heads="nearest-mean", score="none")
    assert "3 folds in place of 5" in result.notes[0]
    two = featx.import_features("two", X[:6], y=codes[:6], cache=tmp_path)
    result = featx.search(two, heads="nearest-mean")
    assert "the winner was not scored on unseen images" in result.notes[0]
    assert result.score.value is None


def test_groups_that_tie_a_class_together_are_said(tmp_path, draw_clusters):
    X, codes = draw_clusters()
    groups = ["all" if code == 0 else "" for code in codes]
    features = featx.import_features("a", X, y=codes, groups=groups, cache=tmp_path)
    with pytest.raises(
        DatasetError,
        match="class '0' has .* images that are equal or of one group, 5 folds need 2 that are not",
    ):
        featx.search(features, heads="ridge:alpha=1")
