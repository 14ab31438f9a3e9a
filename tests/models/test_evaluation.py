from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from sklearn import metrics

import featx
from featx.exceptions import DatasetError
from featx.models import training_keys
from featx.models.model_file import read_details
from featx.models.training_keys import count_training_images, encode_keys, overlap_note
from featx.selection.metrics import bootstrap_difference, bootstrap_intervals, score_predictions


def drawn(n=400, k=7, seed=0):
    generator = np.random.default_rng(seed)
    classes = np.array([f"class {number}" for number in range(k)])
    truth = generator.integers(0, k - 1, n)  # the last class never occurs
    scores = generator.normal(size=(n, k))
    scores[np.arange(n), truth] += 1.5
    proba = np.exp(scores)
    return classes[truth], proba / proba.sum(axis=1, keepdims=True), classes


def test_scores_are_those_of_scikit_learn():
    y, proba, classes = drawn()
    predicted = classes[proba.argmax(axis=1)]
    scores = score_predictions(y, proba, classes)
    seen = classes[:-1]
    expected = {
        "accuracy": metrics.accuracy_score(y, predicted),
        "balanced_accuracy": metrics.recall_score(y, predicted, labels=seen, average="macro"),
        "macro_f1": metrics.f1_score(y, predicted, labels=seen, average="macro"),
        "log_loss": metrics.log_loss(y, proba, labels=classes),
        "top5_accuracy": metrics.top_k_accuracy_score(y, proba, k=5, labels=classes),
    }
    assert {name: scores[name] for name in expected} == pytest.approx(expected)
    matrix = metrics.confusion_matrix(y, predicted, labels=classes)
    assert scores["confusion"] == matrix.tolist()


def test_top_5_breaks_ties_as_predictions_do():
    proba = np.full((7, 7), 1 / 7)
    classes = np.array(list("abcdefg"))
    assert score_predictions(classes, proba, classes)["top5_accuracy"] == pytest.approx(5 / 7)
    assert score_predictions(classes[:2], proba[:2, :2], classes[:2])["top5_accuracy"] == 1.0


def test_the_calibration_error_is_the_mean_gap_of_15_bins():
    y, proba, classes = drawn()
    confidence, right = proba.max(axis=1), classes[proba.argmax(axis=1)] == y
    expected = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence >= low) & (confidence < low + 1 / 15)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    scores = score_predictions(y, proba, classes)
    assert scores["calibration_error"] == pytest.approx(expected)
    sure = np.eye(7)[np.searchsorted(classes, y)]
    assert score_predictions(y, sure, classes)["calibration_error"] == 0


def test_intervals_are_percentiles_of_scores_of_images_drawn_again():
    y, proba, classes = drawn(200, 4)
    found = bootstrap_intervals(y, proba, classes, samples=300, seed=5)
    generator = np.random.default_rng(5)
    drawn_scores = []
    for _ in range(300):
        rows = generator.integers(200, size=200)
        drawn_scores.append(score_predictions(y[rows], proba[rows], classes))
    for name in ("accuracy", "balanced_accuracy", "macro_f1", "log_loss", "calibration_error"):
        expected = np.percentile([score[name] for score in drawn_scores], [2.5, 97.5])
        assert found[name] == pytest.approx(expected.tolist()), name
    cells = np.percentile([score["confusion"] for score in drawn_scores], [2.5, 97.5], axis=0)
    np.testing.assert_allclose(found["confusion"], cells)


def test_copies_are_drawn_together():
    y, proba, classes = drawn(100)
    many = {"y": np.repeat(y, 9), "proba": np.repeat(proba, 9, axis=0), "classes": classes}
    apart = bootstrap_intervals(**many)["accuracy"]
    together = bootstrap_intervals(**many, groups=np.repeat(np.arange(100), 9))["accuracy"]
    alone = bootstrap_intervals(y, proba, classes)["accuracy"]
    assert together == pytest.approx(alone, abs=0.02)
    assert np.ptp(apart) < 0.6 * np.ptp(together)
    right = classes[proba.argmax(axis=1)] == y
    low, high = bootstrap_difference(right, ~right)
    assert low < 2 * right.mean() - 1 < high


def test_a_thousand_classes_are_scored():
    generator = np.random.default_rng(0)
    classes = np.array([f"{number:04d}" for number in range(1000)])
    y = classes[generator.integers(0, 1000, 500)]
    proba = generator.dirichlet(np.ones(1000), 500)
    found = bootstrap_intervals(y, proba, classes, samples=200)
    assert "confusion" not in found
    scores = score_predictions(y, proba, classes)
    assert found["log_loss"][0] < scores["log_loss"] < found["log_loss"][1]


@pytest.fixture
def options(small_network, tmp_path):
    return {"backbone": f"file:{small_network}", "cache": tmp_path / "cache"}


NAMES = ["أحمر", '🐝, "b"']


@pytest.fixture
def data(photos, draw_photo):
    """Two classes with names in other scripts, a third of each in the colour of the other."""
    for number in range(9):
        colours = ((200, 60, 60), (60, 60, 200))
        draw_photo(photos, f"red/x{number}.jpg", seed=500 + number, colour=colours[number % 3 > 0])
        draw_photo(photos, f"blue/x{number}.jpg", seed=600 + number, colour=colours[number % 3 < 1])
    for old, new in zip(("red", "blue"), NAMES, strict=True):
        (photos / old).rename(photos / new)
    return photos


def test_two_models_are_compared_by_mcnemar(data, options):
    from scipy.stats import binomtest

    features = featx.extract(data, **options)
    good = featx.train(features, head="knn:n_neighbors=1", backbone=options["backbone"]).model
    other = featx.train(features, head="logistic", backbone=options["backbone"]).model
    found = featx.compare_models(other, good, features)
    right = [model.predict(features.X) == features.y for model in (other, good)]
    only = [int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())]
    assert [found["only_first_right"], found["only_second_right"]] == only
    assert only[1] > 0
    assert found["p_value"] == pytest.approx(binomtest(only[0], sum(only)).pvalue)
    assert found["difference"] == pytest.approx(right[1].mean() - right[0].mean())
    assert found["interval"][0] <= found["difference"] <= found["interval"][1]
    assert sum(found[n] for n in ("both_right", "both_wrong")) + sum(only) == found["images"] == 30
    assert featx.compare_models(good, good, features)["p_value"] == 1.0
    files = featx.ImageDataset.from_folder(data)
    assert featx.compare_models(other, good, files, features, bootstrap=0) == {
        name: value for name, value in found.items() if name != "interval"
    }
    with pytest.raises(DatasetError, match="asked about different images"):
        featx.compare_models(good, other, features, files.subset(range(20)))


def test_the_command_prints_intervals_confusion_and_comparison(
    data, options, featx_command, tmp_path
):
    arguments = [data, "-b", options["backbone"], "--cache", options["cache"], "--cv", "0"]
    for head in ("logistic", "knn:n_neighbors=1"):
        path = f"{head[:3]}.featx"
        made = featx_command("train", *arguments, "--head", head, "-o", path)
        assert made.returncode == 0, made.stderr
    asked = ["log.featx", data, "--cache", options["cache"], "--compare", "knn.featx"]
    shown = featx_command("evaluate", *asked, "--confusion", "table.csv")
    assert shown.returncode == 0, shown.stderr
    for text in ("95 % interval", "calibration error", "top-5 accuracy", "McNemar's exact test"):
        assert text in shown.stdout
    found = json.loads(featx_command("evaluate", *asked, "--json").stdout)
    assert set(found["intervals"]) >= {"accuracy", "macro_f1", "log_loss", "calibration_error"}
    assert found["intervals_of"]["samples"] == 1000
    assert 0 < found["comparison"]["p_value"] <= 1
    with (tmp_path / "table.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0][1:] == sorted(NAMES) == found["classes"]
    assert [[int(cell) for cell in row[1:]] for row in rows[1:]] == found["confusion"]
    details = read_details(tmp_path / "log.featx")
    assert "train" in details["command"]


def features_of(folder, n=34, seed=0, splits=None):
    """Features that are of one specification for one `seed`, wherever they are imported."""
    generator = np.random.default_rng(seed)
    codes = np.arange(n) % 2
    X = (generator.normal(size=(n, 6)) + 3 * codes[:, None]).astype(np.float32)
    y = np.array(["a", "b"])[codes]
    return featx.import_features("numbers", X, y=y, splits=splits, cache=folder)


def saved(folder):
    features = features_of(folder / "trained-in")
    featx.train(features, head="ridge").model.save(folder / "m.featx")
    return folder / "m.featx", features


def test_training_images_are_named_by_a_model_and_nothing_else(tmp_path, caplog):
    path, _ = saved(tmp_path)
    model = featx.load(path)
    (tmp_path / "trained-in").rename(tmp_path / "gone")
    there = features_of(tmp_path / "elsewhere")
    overlap = featx.evaluate(model, there, bootstrap=0)["training_overlap"]
    assert overlap == {"images": 34, "compared": 34, "in_training": 34}
    assert "34 of 34 images were used in training: this is not a measure of accuracy" in caplog.text


def test_some_and_none_of_the_images(tmp_path, caplog):
    splits = ["train"] * 24 + ["test"] * 10
    features = features_of(tmp_path, splits=splits)
    model = featx.train(features, head="ridge").model
    overlap = featx.evaluate(model, features, bootstrap=0)["training_overlap"]
    assert overlap == {"images": 10, "compared": 10, "in_training": 0}
    assert "used in training" not in caplog.text
    every = features_of(tmp_path)
    overlap = featx.evaluate(model, every, bootstrap=0)["training_overlap"]
    assert overlap == {"images": 34, "compared": 34, "in_training": 24}
    assert "24 of 34 images were used in training" in caplog.text
    compared = featx.compare_models(model, model, every, bootstrap=0)
    assert compared["training_overlap"] == [overlap, overlap]


@pytest.mark.parametrize("keys", [None, "not base64!", "AAAA", 7])
def test_a_file_that_does_not_say_is_believed_to_say_nothing(tmp_path, rewrite, caplog, keys):
    path, features = saved(tmp_path)

    def change(said):
        del said["training"]["keys"]
        if keys is not None:
            said["training"]["keys"] = keys

    rewrite(path, change)
    found = featx.evaluate(featx.load(path), features, bootstrap=0)
    assert "training_overlap" not in found
    assert not caplog.text


def test_the_command_says_it_and_gives_it_as_json(tmp_path, featx_command):
    path, features = saved(tmp_path)
    options = ("--cache", tmp_path / "trained-in", "--bootstrap", "0")
    shown = featx_command("evaluate", path, features.name, *options)
    assert "34 of 34 images were used in training" in shown.stderr + shown.stdout
    told = featx_command("evaluate", path, features.name, *options, "--json")
    assert json.loads(told.stdout)["training_overlap"]["in_training"] == 34


def test_of_many_images_a_sample_is_kept_and_tells_of_the_share(monkeypatch):
    monkeypatch.setattr(training_keys, "MOST_KEYS", 1000)
    generator = np.random.default_rng(0)
    keys = generator.integers(0, 256, (20_000, 32), dtype=np.uint8)
    others = generator.integers(0, 256, (20_000, 32), dtype=np.uint8)
    stated = {"keys": encode_keys(keys)}
    assert len(stated["keys"]) < 1000 * 8 * 4 / 3 + 8
    seen = count_training_images(stated, np.concatenate([keys[:5000], others[:5000]]))
    assert seen["images"] == 10_000
    assert 400 < seen["compared"] < 600
    assert seen["in_training"] / seen["compared"] == pytest.approx(0.5, abs=0.1)
    assert "images were looked up" in overlap_note(seen)
    assert count_training_images(stated, others)["in_training"] == 0


def test_a_held_out_split_may_lack_a_class(tmp_path):
    X = np.repeat(10 * np.eye(3, dtype=np.float32), 10, axis=0)
    X += np.random.default_rng(0).normal(size=X.shape).astype(np.float32)
    y = np.repeat(["ant", "bee", "fly"], 10).tolist()
    splits = ["test" if row % 10 > 6 and row >= 10 else "train" for row in range(30)]
    features = featx.import_features("some", X, y=y, splits=splits, cache=tmp_path)
    result = featx.train(features, head="nearest-mean")
    assert result.metrics["images"] == 6
    assert result.metrics["accuracy"] == 1
    assert result.metrics["classes"] == ["ant", "bee", "fly"]
    assert result.scored.right.all()
