"""Images with several labels, from a table of them to predictions."""

import json
import re
import shlex

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.metrics import average_precision_score, f1_score, multilabel_confusion_matrix

import featx
from featx.exceptions import DatasetError, HeadError
from featx.images.labels import read_label_sets
from featx.selection.metrics import bootstrap_label_sets, score_label_sets


@pytest.fixture
def table(tmp_path, draw_photo):
    """A CSV file of 24 photos that are red or blue, and dark or not."""
    lines = ["path,label"]
    for number in range(24):
        red, dark = number % 2 == 0, number % 3 == 0
        colour = np.array((200, 60, 60) if red else (60, 60, 200)) // (3 if dark else 1)
        draw_photo(tmp_path / "photos", f"{number}.jpg", seed=number, colour=tuple(colour))
        labels = ["red" if red else "", "dark" if dark else ""]
        lines.append(f"{number}.jpg,{'|'.join(label for label in labels if label) or '|'}")
    path = tmp_path / "photos" / "table.csv"
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def options(small_network, tmp_path):
    return {"backbone": f"file:{small_network}", "cache": tmp_path / "cache"}


@pytest.mark.parametrize("head", ["logistic:C=1", "knn:n_neighbors=3", "dense:8,max_epochs=30"])
def test_from_a_table_to_predictions_and_back(table, options, tmp_path, head):
    features = featx.extract(table, **options)
    named = {"backbone": options["backbone"], "multilabel": True}
    result = featx.train(features, head=head, cv=3, **named)
    metrics = result.metrics
    assert metrics["images"] == 24
    assert metrics["mean_average_precision"] > 0.85
    assert [one["label"] for one in metrics["labels"]] == ["dark", "red"]
    assert [one["images"] for one in metrics["labels"]] == [8, 12]
    result.model.save(tmp_path / "m.featx", metrics=metrics)
    model = featx.load(tmp_path / "m.featx", cache=options["cache"])
    assert model.multilabel
    assert model.classes_.tolist() == ["dark", "red"]
    X = features.X[:4]
    np.testing.assert_allclose(model.predict_proba(X), result.model.predict_proba(X), atol=1e-6)
    scores = featx.evaluate(model, features)
    assert scores["images"] == len(model.predict(features.X)) == 24
    if not head.startswith("dense"):  # which would need more epochs than a test has
        assert model.predict(X).tolist() == [[1, 1], [0, 0], [0, 1], [1, 0]]
        assert scores["exact_match"] > 0.9
    if not head.startswith("knn"):
        path = tmp_path / ("m.xml" if head.startswith("dense") else "m.keras")
        done = featx.export(tmp_path / "m.featx", path, verify=table, cache=options["cache"])
        assert done.verification["images"] == done.verification["labelled"] == 24
        assert done.verification["accuracy_of_export"] == pytest.approx(scores["exact_match"])
        assert done.verification["largest_difference"] < 1e-5
    (table.parent / "other.csv").write_text("path,label\n0.jpg,red|tiny\n")
    with pytest.raises(DatasetError, match="not known from training: tiny; known are dark, red"):
        featx.evaluate(model, featx.extract(table.parent / "other.csv", **options))


def test_the_commands(table, options, featx_command, tmp_path):
    common = ("-b", options["backbone"], "--cache", options["cache"])
    stopped = featx_command("train", table, *common, "-o", "m.featx")
    assert stopped.returncode == 1
    command = ["featx", "train", str(table), *map(str, common), "-o", "m.featx", "--multilabel"]
    assert stopped.stderr.splitlines()[-1] == f"next: {shlex.join(command)}"
    trained = featx_command(
        "train", table, *common, "--multilabel", "--head", "logistic:C=1", "-o", "m.featx"
    )
    assert trained.returncode == 0, trained.stderr
    assert "on 2 labels" in trained.stdout
    assert "scores    mean average precision" in trained.stdout
    rows = [f"{n}.jpg,{int(n % 3 == 0)},{int(n % 2 == 0)}" for n in range(24)]
    columns = table.parent / "columns.csv"
    columns.write_text("\n".join(["path,dark,red", *rows]))
    by_columns = featx_command("train", columns, *common, "--multilabel", "--head", "logistic:C=1")
    assert by_columns.returncode == 0, by_columns.stderr
    scores = [re.search("scores .*", run.stdout)[0] for run in (trained, by_columns)]
    assert scores[0] == scores[1]
    columns.write_text("\n".join(["path,dark,red", "0.jpg,1,0", "1.jpg,yes,0"]))
    wrong = featx_command("train", columns, *common, "--multilabel")
    assert wrong.returncode == 1
    assert "line 3, column 'dark': expected 0 or 1, received 'yes'" in wrong.stderr
    photos = [table.parent / f"{number}.jpg" for number in range(4)]
    lines = featx_command("predict", "m.featx", *photos, "--format", "jsonl").stdout.splitlines()
    found = [{one["label"] for one in json.loads(line)["top"]} for line in lines]
    assert found == [{"dark", "red"}, set(), {"red"}, {"dark"}]
    assert "no label" in featx_command("predict", "m.featx", photos[1]).stdout
    both = featx_command("predict", "m.featx", photos[1], "--top-k", "2", "--format", "jsonl")
    assert len(json.loads(both.stdout)["top"]) == 2
    asked = ("evaluate", "m.featx", table, "--cache", options["cache"], "--compare", "m.featx")
    shown = featx_command(*asked, "--confusion", "counts.csv").stdout
    for text in ("mean average precision", "95 % interval", "McNemar", ": every label right 1.0"):
        assert text in shown
    counts = (tmp_path / "counts.csv").read_text().splitlines()
    assert counts[0] == "label,true positives,false positives,false negatives,true negatives"
    assert counts[1:] == ["dark,8,0,0,16", "red,12,0,0,12"]
    bounded = ("--multilabel", "--max-ram", "1MiB", "-o", "n.featx")
    within = featx_command("train", table, *common, *bounded, "--head", "ridge")
    assert within.returncode == 0, within.stderr
    assert "scores    mean average precision" in within.stdout
    wrong = featx_command("train", table, *common, *bounded, "--head", "knn")
    assert wrong.returncode == 1
    assert "NearestNeighbours has to see all rows at once" in wrong.stderr


def test_a_held_out_split_is_measured_on(table, options):
    lines = table.read_text().splitlines()
    splits = ["split", *("test" if n % 4 == 0 else "train" for n in range(24))]
    table.write_text("\n".join(f"{line},{s}" for line, s in zip(lines, splits, strict=True)))
    result = featx.train(featx.extract(table, **options), head="ridge", multilabel=True)
    assert result.metrics["protocol"] == "held-out split of 6 images"
    bounded = featx.train(
        featx.extract(table, **options), head="ridge", multilabel=True, max_ram="1MiB"
    )
    assert bounded.metrics["protocol"] == "held-out split of 6 images"
    assert bounded.metrics["exact_match"] == result.metrics["exact_match"]


def test_the_estimator_takes_matrices_sets_and_text():
    generator = np.random.default_rng(0)
    X = generator.normal(size=(60, 5)).astype(np.float32)
    Y = (X[:, :3] > 0).astype(int)
    names = ["ant", "bee", "wasp"]
    sets = [{names[column] for column in np.flatnonzero(row)} for row in Y]
    model = featx.ImageClassifier(head="logistic:C=10", multilabel=True)
    by_matrix = clone(model).fit(X, Y)
    by_sets = clone(model).fit(X, sets)
    by_text = clone(model).fit(X, ["|".join(sorted(one)) or "|" for one in sets])
    assert by_matrix.classes_.tolist() == [0, 1, 2]
    assert by_sets.classes_.tolist() == by_text.classes_.tolist() == names
    for one in (by_sets, by_text):
        np.testing.assert_array_equal(one.predict(X), by_matrix.predict(X))
    assert by_matrix.predict(X).shape == by_matrix.predict_proba(X).shape == (60, 3)
    assert by_sets.score(X, sets) == by_matrix.score(X, Y) > 0.8
    with pytest.raises(HeadError, match="one class only: 'ant'"):
        clone(model).fit(X, [{"ant"}] * 60)
    with pytest.raises(DatasetError, match=r"expected a matrix of 0 and 1, .* received \[0, 2\]"):
        clone(model).fit(X, 2 * Y)
    assert read_label_sets([[0, 1], [1, 0]])[0].tolist() == [0, 1]
    assert read_label_sets([["b"], ["a", "b"]])[1].tolist() == [[0, 1], [1, 1]]
    with pytest.raises(DatasetError, match="expected a collection of labels"):
        read_label_sets([1, 2])


def test_two_images_a_label_and_balanced_weights(table, options):
    few = table.parent / "few.csv"
    few.write_text("path,label\n0.jpg,red|dark\n1.jpg,|\n2.jpg,red\n3.jpg,dark\n")
    features = featx.extract(few, **options)
    for head in ("logistic:class_weight=balanced", "ridge", "lda", "nearest-mean", "knn"):
        result = featx.train(features, head=head, multilabel=True, cv=2)
        assert result.model.predict(features.X).shape == (4, 2)


@pytest.mark.slow
def test_a_search_over_heads_of_several_labels(table, options, tmp_path):
    features = featx.extract(table, **options)
    what = {"heads": ["logistic:C=0.0001|1", "ridge"], "cv": 3, "n_jobs": 1, "multilabel": True}
    result = featx.search(features, score="holdout", transforms=["standard", "pca:4"], **what)
    assert result.scoring == "mean_average_precision"
    assert not any(row.failed for row in result.leaderboard)
    assert result.best.score > 0.85
    assert 0.4 < result.score.value <= 1
    assert result.metrics["mean_average_precision"] == result.score.value
    result.save(tmp_path / "m.featx")
    model = featx.load(tmp_path / "m.featx")
    assert model.predict(features.X).shape == (24, 2)
    assert model.classes_.tolist() == ["dark", "red"]
    with pytest.raises(HeadError, match="'accuracy' is no score of several labels an image: take"):
        featx.search(features, scoring="accuracy", **what)
    with pytest.raises(HeadError, match="'micro_f1' is no score of one class an image: take one"):
        featx.search(features, scoring="micro_f1", heads="ridge", label_kind="class")
    nested = featx.search(features, score="nested", **(what | {"heads": "ridge:alpha=1|10"}))
    assert nested.score.images == 24


def test_scores_are_those_of_scikit_learn():
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 2, (50, 4))
    truth[:, 3] = 0  # nobody has it
    proba = generator.random((50, 4))
    scores = score_label_sets(truth, proba, np.array(list("abcd")))
    given = (proba > 0.5).astype(int)
    kept = slice(3)
    expected = average_precision_score(truth[:, kept], proba[:, kept], average="macro")
    assert scores["mean_average_precision"] == pytest.approx(expected)
    assert scores["micro_f1"] == pytest.approx(f1_score(truth, given, average="micro"))
    macro = f1_score(truth[:, kept], given[:, kept], average="macro")
    assert scores["macro_f1"] == pytest.approx(macro)
    assert scores["exact_match"] == pytest.approx((truth == given).all(axis=1).mean())
    tables = multilabel_confusion_matrix(truth, given)
    assert [one["confusion"] for one in scores["labels"]] == tables.tolist()
    nobody = {"label": "d", "images": 0, "average_precision": None, "f1": None}
    assert scores["labels"][3] == nobody | {"confusion": tables[3].tolist()}


def test_intervals_are_percentiles_of_scores_of_images_drawn_again():
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 2, (60, 4))
    truth[:, 2] = np.arange(60) < 2  # in some samples nobody has it
    truth[:, 3] = 0
    proba = generator.random((60, 4)).round(1)  # many alike
    labels = np.array(list("abcd"))
    found = bootstrap_label_sets(truth, proba, labels, samples=200, seed=5)
    generator = np.random.default_rng(5)
    drawn = []
    for _ in range(200):
        rows = generator.integers(60, size=60)
        drawn.append(score_label_sets(truth[rows], proba[rows], labels))
    for name in ("mean_average_precision", "micro_f1", "macro_f1", "exact_match"):
        expected = np.percentile([score[name] for score in drawn], [2.5, 97.5])
        assert found[name] == pytest.approx(expected.tolist()), name
    for label in range(3):
        for name in ("average_precision", "f1"):
            values = [score["labels"][label][name] for score in drawn]
            expected = np.percentile([v for v in values if v is not None], [2.5, 97.5])
            assert found["labels"][label][name] == pytest.approx(expected.tolist()), name
    assert found["labels"][3] == {"label": "d", "average_precision": None, "f1": None}


def test_two_models_are_compared_by_every_label_right(table, options):
    features = featx.extract(table, **options)
    good = featx.train(features, head="logistic:C=1", multilabel=True, cv=0).model
    other = featx.train(features, head="logistic:C=0.000001", multilabel=True, cv=0).model
    truth = np.array([[n % 3 == 0, n % 2 == 0] for n in range(24)])
    right = [(model.predict(features.X) == truth).all(axis=1) for model in (other, good)]
    found = featx.compare_models(other, good, features)
    assert found["right"] == "every label"
    assert found["accuracy"] == [right[0].mean(), right[1].mean()]
    assert found["only_second_right"] == (right[1] & ~right[0]).sum() > 0
    assert found["interval"][0] <= found["difference"] <= found["interval"][1]
    one_label = featx.train(features, head="nearest-mean", label_kind="class", cv=0).model
    with pytest.raises(DatasetError, match="one that gives one label an image and one that gives"):
        featx.compare_models(good, one_label, features)
