"""Training within a bound of memory is training in memory."""

import numpy as np
import pytest

import featx
from featx.exceptions import HeadError
from featx.memory import as_bytes, shown_bytes

KIB = 1024


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """Features of 600 rows of 64, in a cache, some of them equal, with a test split or without."""
    generator = np.random.default_rng(0)
    codes = generator.integers(0, 3, 600)
    X = (generator.normal(size=(3, 64))[codes] * 0.4 + generator.normal(size=(600, 64))).astype(
        "f4"
    )
    X[10:20] = X[:10]
    y = np.array(["ants", "bees", "wasps"])[codes]
    cache = tmp_path_factory.mktemp("cache")
    splits = np.where(generator.random(600) < 0.3, "test", "train")
    features = {
        "whole": featx.import_features("whole", X, y=y, cache=cache),
        "split": featx.import_features("split", X, y=y, splits=splits.tolist(), cache=cache),
    }
    return features, cache


@pytest.mark.parametrize("head", ["ridge", "nearest-mean", "lda", "logistic:tol=1e-7"])
@pytest.mark.parametrize("name", ["whole", "split"])
def test_scores_and_model_are_those_of_memory(imported, head, name):
    features = imported[0][name]
    whole = featx.train(features, head=head, cv=3)
    streamed = featx.train(features, head=head, cv=3, max_ram=300 * KIB)
    assert streamed.metrics["protocol"] == whole.metrics["protocol"]
    assert streamed.metrics["images"] == whole.metrics["images"]
    assert streamed.metrics["accuracy"] == pytest.approx(whole.metrics["accuracy"], abs=0.004)
    assert streamed.metrics["macro_f1"] == pytest.approx(whole.metrics["macro_f1"], abs=0.005)
    # Which are right is a matter of rounding for an image on the edge.
    trained = [{**r.training, "scored": None} for r in (streamed, whole)]
    assert trained[0] == trained[1]
    assert abs(len(streamed.suspects) - len(whole.suspects)) <= 2
    X = features.X[:100]
    assert (streamed.model.predict(X) == whole.model.predict(X)).mean() >= 0.99
    assert streamed.model.spec_ == whole.model.spec_


def test_no_more_than_the_bound_is_held(imported):
    import tracemalloc

    features = featx.Features.open("split", cache=imported[1])
    bound = 64 * KIB
    featx.train(features, head="nearest-mean", max_ram=bound)
    tracemalloc.start()
    try:
        featx.train(features, head="nearest-mean", max_ram=bound)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < bound + 600 * 350  # the features are 150 KiB


def test_views_are_trained_on_and_averaged_over(photos, small_network, tmp_path):
    features = featx.extract(
        photos, backbone=f"file:{small_network}", views=2, cache=tmp_path / "cache"
    )
    whole = featx.train(features, head="ridge", cv=2, average_views=True)
    streamed = featx.train(features, head="ridge", cv=2, average_views=True, max_ram="1MiB")
    assert streamed.metrics["accuracy_by_fold"] == whole.metrics["accuracy_by_fold"]
    assert "mean over 3 views" in streamed.metrics["protocol"]
    assert streamed.model.head_["scale"].n_samples_seen_ == 36


def test_dense_heads_train_within_a_bound(imported):
    head = "dense:8,learning_rate=0.02,max_epochs=10"
    result = featx.train(imported[0]["split"], head=head, max_ram="256KiB")
    assert result.metrics["accuracy"] > 0.6


def test_heads_that_need_all_rows_are_refused(imported):
    with pytest.raises(HeadError, match="NearestNeighbours has to see all rows at once"):
        featx.train(imported[0]["whole"], head="knn", max_ram="1GiB")
    with pytest.raises(HeadError, match="max_ram must be a size such as 512MiB or 2GiB, received"):
        featx.train(imported[0]["whole"], head="ridge", max_ram="plenty")


def test_more_than_half_of_the_machines_memory_is_not_taken(imported, monkeypatch, caplog):
    monkeypatch.setattr("featx.models.fitting.machine_bytes", lambda: 200 * KIB)
    result = featx.train(imported[0]["split"], head="nearest-mean")
    assert "training on batches, within 50 KiB" in caplog.text
    assert result.metrics["accuracy"] > 0.6
    featx.train(imported[0]["split"], head="knn")
    assert "the machine has 200 KiB of memory: NearestNeighbours has to see" in caplog.text


def test_sizes_are_read_and_written():
    assert [as_bytes(size) for size in ("1KiB", "2k", "1.5GB", " 3 mib ", "7", 8)] == [
        *(1024, 2048, 1_500_000_000, 3 << 20, 7, 8)
    ]
    for wrong in ("", "1XB", "-1GiB", 0, True, 1.5):
        with pytest.raises(HeadError, match="must be a size such as 512MiB"):
            as_bytes(wrong)
    assert shown_bytes(5 << 40) == "5 TiB"


def test_a_search_looks_at_what_fits_and_trains_on_all(imported):
    features = imported[0]["split"]
    result = featx.search(features, max_ram="300KiB", cv=3, n_jobs=1)
    assert {row.head.partition(":")[0] for row in result.leaderboard} == {"ridge", "logistic"}
    (note,) = (note for note in result.notes if "as many as --max-ram allows" in note)
    training = int((features.splits == "train").sum())
    assert training - 20 < result.training["images"] <= training
    assert f"trained on all {result.training['images']}" in note
    assert result.score.images < 100
    assert result.model.predict(features.X[:5]).shape == (5,)
    # Where everything fits, nothing is left out.
    whole = featx.search(features, heads="ridge:alpha=1|10", cv=3, max_ram="1GiB", n_jobs=1)
    assert not any("max-ram" in note for note in whole.notes)
    with pytest.raises(HeadError, match="'pca:4' has to see all rows at once"):
        featx.search(features, heads="ridge", transforms="pca:4", max_ram="1GiB")
    with pytest.raises(HeadError, match="has to see all rows at once"):
        featx.search(features, heads=["ridge", "knn"], max_ram="1GiB")
    with pytest.raises(HeadError, match="a search on 100 images of 'split' needs 125 KiB"):
        featx.search(features, heads="ridge", max_ram="10KiB")


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """Features of 600 rows of 64 with four labels, one of them of seven rows."""
    generator = np.random.default_rng(0)
    X = generator.normal(size=(600, 64)).astype("f4")
    margins = X @ generator.normal(size=(64, 4)) / 8 + 0.3 * generator.normal(size=(600, 4))
    has = margins > [0, 0.5, 1, np.sort(margins[:, 3])[-8]]
    y = ["|".join(np.array(list("abcd"))[row]) or "|" for row in has]
    splits = np.where(generator.random(600) < 0.3, "test", "train").tolist()
    cache = tmp_path_factory.mktemp("cache")
    return {
        "whole": featx.import_features("whole", X, y=y, cache=cache),
        "split": featx.import_features("split", X, y=y, splits=splits, cache=cache),
    }


@pytest.mark.parametrize(
    ("head", "name"),
    [
        *(("ridge", name) for name in ("whole", "split")),
        *(("logistic:tol=1e-7", name) for name in ("whole", "split")),
        ("nearest-mean", "whole"),
        ("lda", "split"),
    ],
)
def test_several_labels_have_the_scores_and_the_model_of_memory(several, head, name):
    features = several[name]
    whole = featx.train(features, head=head, cv=3, multilabel=True)
    streamed = featx.train(features, head=head, cv=3, multilabel=True, max_ram=300 * KIB)
    assert streamed.metrics["protocol"] == whole.metrics["protocol"]
    assert streamed.metrics["images"] == whole.metrics["images"]
    for score in ("mean_average_precision", "micro_f1", "exact_match"):
        assert streamed.metrics[score] == pytest.approx(whole.metrics[score], abs=0.02), score
    assert [one["images"] for one in streamed.metrics["labels"]] == [
        one["images"] for one in whole.metrics["labels"]
    ]
    X = features.X[:200]
    assert streamed.model.classes_.tolist() == list("abcd")
    assert (streamed.model.predict(X) == whole.model.predict(X)).mean() >= 0.99
    # Which are right is a matter of rounding for an image on the edge.
    trained = [{**r.training, "scored": None} for r in (streamed, whole)]
    assert trained[0] == trained[1]


def test_a_search_over_several_labels_looks_at_what_fits_and_trains_on_all(several, tmp_path):
    features = several["split"]
    result = featx.search(
        features, heads=["ridge", "nearest-mean"], max_ram="300KiB", cv=3, multilabel=True
    )
    (note,) = (note for note in result.notes if "as many as --max-ram allows" in note)
    assert f"trained on all {result.training['images']}" in note
    assert not any(row.failed for row in result.leaderboard)
    result.save(tmp_path / "m.featx")
    model = featx.load(tmp_path / "m.featx")
    assert model.classes_.tolist() == list("abcd")
    np.testing.assert_array_equal(model.predict(features.X), result.model.predict(features.X))
    assert result.score.value > 0.5
