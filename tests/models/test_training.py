from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

import featx
from featx.exceptions import DatasetError, FeaturesError
from featx.files.identity import content_groups
from featx.heads.making import make_head
from featx.models.training_keys import answers_before, encode_answers
from featx.selection.splits import repeated_folds


@pytest.fixture
def options(small_network, tmp_path):
    return {"backbone": f"file:{small_network}", "cache": tmp_path / "cache"}


def test_cross_validation_agrees_with_scikit_learn(photos, options, draw_photo):
    from sklearn.model_selection import cross_val_score

    for number in range(8):  # a third of each class in the colour of the other
        colours = ((200, 60, 60), (60, 60, 200))
        draw_photo(photos, f"red/x{number}.jpg", seed=500 + number, colour=colours[number % 3 > 0])
        draw_photo(photos, f"blue/x{number}.jpg", seed=600 + number, colour=colours[number % 3 < 1])
    features = featx.extract(photos, **options)
    result = featx.train(features, head="logistic", seed=3)
    groups = content_groups(features.keys, None)
    folds = repeated_folds(features.y, folds=5, groups=groups, seed=3)
    expected = cross_val_score(make_head("logistic"), features.X, features.y, cv=folds)
    np.testing.assert_allclose(result.metrics["accuracy_by_fold"], expected)
    assert result.metrics["accuracy"] == pytest.approx(expected.mean())
    assert result.metrics["protocol"].startswith("5-fold cross-validation")
    assert 0 < len(result.suspects) < 20
    assert result.suspects[0].label != result.suspects[0].predicted


@pytest.mark.parametrize("head", ["knn:n_neighbors=3", "svm"])
def test_a_head_is_made_once_and_its_text_is_parsed_once(numbers, tmp_path, monkeypatch, head):
    from featx.heads import table
    from featx.models import training

    calls = []
    parse, make = table.parse_head, training.make_head
    monkeypatch.setattr(table, "parse_head", lambda text: (calls.append("parse"), parse(text))[1])
    monkeypatch.setattr(
        training,
        "make_head",
        lambda *args, **names: (calls.append("make"), make(*args, **names))[1],
    )
    features = featx.import_features("some", numbers[0], y=numbers[1], cache=tmp_path)
    featx.train(features, head=head, cv=3)
    assert sorted(calls) == ["make", "parse"]


@pytest.mark.parametrize(
    "head",
    [
        "logistic:C=0.1",
        "logistic:fit_intercept=False",  # which its sweep does not know
        "knn:n_neighbors=3",
        pytest.param("dense:8,learning_rate=0.03", marks=pytest.mark.slow),
        "nearest-mean:metric=euclidean",
        "ridge:alpha=10",
    ],
)
def test_a_head_has_one_score_whether_trained_or_searched(numbers, tmp_path, head):
    X, y = numbers
    X = (X + np.random.default_rng(1).normal(size=X.shape) * 2).astype(np.float32)
    X[1], X[20] = X[0], X[19]  # equal images, for which folds look at groups
    features = featx.import_features("some", X, y=y, cache=tmp_path)
    trained = featx.train(features, head=head, cv=4, seed=2).metrics
    (row,) = featx.search(features, heads=[head], cv=4, seed=2, score="none").leaderboard
    assert trained["accuracy_by_fold"] == pytest.approx(row.scores, abs=1e-12)
    assert 0.4 < trained["accuracy"] < 1


def test_views_are_averaged_where_folds_are_fitted_together(photos, options):
    features = featx.extract(photos, views=2, **options)
    whole = featx.train(features, head="knn:n_neighbors=2", cv=3, average_views=True)
    alone = featx.train(features, head=make_head("knn:n_neighbors=2"), cv=3, average_views=True)
    assert whole.metrics["log_loss"] == pytest.approx(alone.metrics["log_loss"], rel=1e-5)
    assert whole.metrics["confusion"] == alone.metrics["confusion"]
    assert "mean over 3 views" in whole.metrics["protocol"]


def test_folds_fewer_than_asked_for_are_said(photos, options):
    for number in range(3, 6):
        (photos / "red" / f"{number}.jpg").unlink()
    protocol = featx.train(featx.extract(photos, **options)).metrics["protocol"]
    assert protocol.startswith(
        "3-fold cross-validation (in place of 5: the smallest class has 3 distinct images or group"
    )


def test_splits_of_the_data_are_respected(photos, options):
    lines = ["path,label,split"]
    for number in range(6):
        split = "test" if number > 3 else "train"
        lines += [f"red/{number}.jpg,red,{split}", f"blue/{number}.jpg,blue,{split}"]
    table = photos / "table.csv"
    table.write_text("\n".join(lines))
    features = featx.extract(table, **options)
    result = featx.train(features)
    assert result.metrics["protocol"] == "held-out split of 4 images"
    assert result.training["images"] == 8
    assert featx.evaluate(result.model, features)["images"] == 4


def test_a_class_with_one_image_trains_and_says_that_it_was_not_measured(photos, options):
    for number in range(1, 6):
        (photos / "red" / f"{number}.jpg").unlink()
    result = featx.train(featx.extract(photos, **options))
    assert result.metrics == {
        "protocol": "not measured: class 'red' has 1 image, 5 folds need 2 or more of each class: "
        "add images of it, or leave the class out"
    }
    assert result.model.classes_.tolist() == ["blue", "red"]


def test_one_class_only_is_named(photos, options):
    shutil.rmtree(photos / "red")
    with pytest.raises(DatasetError, match=r"one class only: 'blue' \(6 images\)"):
        featx.train(featx.extract(photos, **options))


def test_unlabelled_images_cannot_train(photos, options):
    features = featx.extract(photos / "red", **options)
    with pytest.raises(DatasetError, match="has no labels: put the images into one folder a class"):
        featx.train(features)


def test_evaluation_refuses_strange_classes_and_features(photos, options):
    features = featx.extract(photos, **options)
    model = featx.train(features).model
    (photos / "red").rename(photos / "rot")
    with pytest.raises(DatasetError, match="classes that the model does not know: rot; it knows"):
        featx.evaluate(model, featx.extract(photos, name="renamed", **options))
    with pytest.raises(FeaturesError, match="trained on 16 features an image, received 64"):
        featx.evaluate(model, featx.extract(photos, taps="grid:2", **options))
    with pytest.raises(FeaturesError, match="the model was trained on file-small-"):
        featx.evaluate(model, featx.extract(photos, dtype="float16", **options))


def test_a_second_training_says_by_how_much_the_score_has_changed(photos, featx_command):
    args = ["train", "photos", "-o", "m.featx", "--head", "logistic"]
    wrong = photos / "blue" / "9.jpg"
    shutil.copy(photos / "red" / "0.jpg", wrong)
    wrong.write_bytes(wrong.read_bytes() + b"\0")  # not the same image, but as red
    first = featx_command(*args)
    assert "change" not in first.stdout
    unchanged = featx_command(*args)
    assert "change    +0.0000 (95 %: +0.000 to +0.000) since the model" in unchanged.stdout
    wrong.rename(photos / "red" / "9.jpg")
    better = json.loads(featx_command(*args, "--json").stdout)["change"]
    assert better["images"] == 13
    assert better["after"] > better["before"]
    low, high = better["interval"]
    assert low <= better["difference"] <= high


@pytest.mark.parametrize(
    "stated",
    [
        None,
        {},
        {"scored": 3},
        {"scored": {"keys": "!", "right": ""}},
        {"scored": {"keys": "AA=="}},
        {"scored": {"keys": "AAAAAAAAAAA=", "right": ""}},
    ],
)
def test_what_a_damaged_file_says_of_scores_is_left_alone(stated):
    assert answers_before(stated, np.zeros((3, 32), np.uint8)) is None


def test_answers_are_kept_by_image():
    keys = np.random.default_rng(0).integers(0, 256, (40, 32)).astype(np.uint8)
    right = np.arange(40) % 3 == 0
    kept = {"scored": encode_answers(keys, right)}
    rows, before = answers_before(kept, keys[10:])
    np.testing.assert_array_equal(before, right[10:][rows])
    assert sorted(rows.tolist()) == list(range(30))
