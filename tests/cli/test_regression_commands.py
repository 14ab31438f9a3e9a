"""`featx train --regression` and what is done with its model, on files and by commands."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

import featx


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A CSV of 40 pictures with how bright and how red they are; one row has no number."""
    folder = tmp_path_factory.mktemp("regression")
    rng = np.random.default_rng(0)
    lines = ["path,bright,red,note"]
    for number in range(40):
        bright, red = rng.uniform(40, 200), rng.uniform(-30, 30)
        pixels = rng.normal(0, 10, (40, 40, 3)) + bright + np.array([red, 0, -red])
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / f"{number}.png")
        lines.append(f"{number}.png,{bright:.3f},{red:.3f},x")
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(folder / "none.png")
    lines.append("none.png,,,x")
    path = folder / "pictures.csv"
    path.write_text("\n".join(lines), "utf-8")
    return path


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache that the tests of this module share."""
    return ["--cache", str(tmp_path_factory.mktemp("cache"))]


@pytest.fixture
def run(featx_command, cache):
    def run(*words, fails=False):
        done = featx_command(*words, *cache)
        assert bool(done.returncode) is fails, done.stderr
        return done

    return run


@pytest.fixture
def train(run, table, small_network, tmp_path):
    """Train on one column or several, and return the model and what was printed."""

    def train(*words, columns=("bright",), data=table):
        model = tmp_path / "model.featx"
        named = [word for column in columns for word in ("--target-column", column)]
        source = ["-b", f"file:{small_network}", "--preprocessing", "none"]
        return model, run("train", data, *source, "--regression", *named, *words, "-o", model)

    return train


def test_train_predict_and_evaluate(train, run, table):
    model, done = train("--head", "ridge:alpha=1")
    assert "head      ridge:alpha=1 on 1 number in" in done.stdout
    assert "scores    bright: R² 0.9" in done.stdout
    assert "5-fold cross-validation, equal images on one side" in done.stdout
    assert "holds the true number of 90 % of images" in done.stdout
    shown = run("predict", model, table.parent / "0.png", table.parent / "gone.png").stdout
    header, row, failed = shown.splitlines()
    assert header.split() == ["path", "name", "value", "low", "high"]
    _, name, value, low, high = row.split()
    assert name == "bright"
    assert float(low) < float(value) < float(high)
    assert "failed: no such file" in failed
    lines = run("predict", model, table.parent / "0.png", "--format", "jsonl").stdout
    (number,) = json.loads(lines)["values"]
    assert number["value"] == pytest.approx(float(value), rel=1e-4)
    half = run("predict", model, table.parent / "0.png", "--coverage", "0.5", "--format", "jsonl")
    (narrow,) = json.loads(half.stdout)["values"]
    assert narrow["high"] - narrow["low"] < number["high"] - number["low"]
    rows = list(csv.DictReader(run(
        "predict", model, str(table.parent / "*.png"), "--unknown", "--format", "csv"
    ).stdout.splitlines()))  # fmt: skip
    assert len(rows) == 41
    assert {"path", "name", "value", "low", "high", "status", "unknown"} <= set(rows[0])
    scores = json.loads(run("evaluate", model, table, "--json", "--bootstrap", "200").stdout)
    assert scores["images"] == 40
    assert scores["values"][0]["value"] == "bright"
    assert scores["r2"] > 0.9
    assert scores["intervals"]["mae"][0] < scores["mae"] < scores["intervals"]["mae"][1]
    assert 0.8 < scores["covered"]["share"][0] <= 1
    assert "within the intervals, expected 90%" in run("evaluate", model, table).stdout


def test_several_columns_are_several_numbers(train, run, table):
    model, done = train("--head", "ridge:alpha=1", columns=("bright", "red"))
    assert "on 2 numbers in" in done.stdout
    assert done.stdout.count("scores    ") == 2
    shown = run("predict", model, table.parent / "0.png").stdout.splitlines()
    assert [line.split()[-4] for line in shown[1:]] == ["bright", "red"]
    assert run("evaluate", model, table).stdout.count("(") >= 6
    assert featx.load(model).value_names_ == ("bright", "red")
    compared = run("evaluate", model, table, "--compare", model, "--json").stdout
    assert json.loads(compared)["comparison"]["difference"] == 0


@pytest.mark.parametrize(
    "head",
    [
        "svm:C=0.1",
        "knn",
        "extra-trees:n_estimators=20",
        "forest",
        "sklearn.linear_model.BayesianRidge",
    ],
)
def test_every_head_trains(train, head):
    model, done = train("--head", head, "--cv", "2", "--json")
    metrics = json.loads(done.stdout)["metrics"]
    assert metrics["r2"] > 0.5
    assert len(metrics["r2_by_fold"]) == 2
    assert featx.load(model).regression


def test_folders_and_a_column_label_are_numbers_too(train, table, tmp_path):
    lines = table.read_text("utf-8").splitlines()[1:-1]
    rows = [line.split(",")[:2] for line in lines]
    plain = tmp_path / "plain.csv"
    text = "".join(f"{table.parent / path},{bright}\n" for path, bright in rows)
    plain.write_text("path,label\n" + text, "utf-8")
    _, done = train("--head", "ridge:alpha=1", columns=(), data=plain)
    assert "scores    value: R² 0.9" in done.stdout
    folder = tmp_path / "folders"
    for path, bright in rows:
        place = folder / str(round(float(bright) / 20) * 20)
        place.mkdir(parents=True, exist_ok=True)
        (place / path).write_bytes((table.parent / path).read_bytes())
    _, done = train("--head", "ridge:alpha=1", columns=(), data=folder)
    assert "scores    value: R² 0.9" in done.stdout


def test_a_split_test_gives_the_score_and_the_intervals(train, table, tmp_path):
    lines = table.read_text("utf-8").splitlines()[:-1]
    split = tmp_path / "split.csv"
    lines = [f"{line},{'split' if not n else 'test' if n % 4 == 0 else 'train'}"
             for n, line in enumerate(lines)]  # fmt: skip
    split.write_text("\n".join(lines), "utf-8")
    model, done = train("--head", "ridge:alpha=1", "--root", table.parent, "--json", data=split)
    metrics = json.loads(done.stdout)["metrics"]
    assert metrics["protocol"] == "held-out split of 10 images"
    assert len(featx.load(model).residuals_) == 10


def test_labels_that_look_like_numbers_point_to_regression(run, small_network, table, tmp_path):
    lines = table.read_text("utf-8").splitlines()[1:-1]
    plain = tmp_path / "plain.csv"
    text = "".join(f"{table.parent / a},{b}\n" for a, b, *_ in (row.split(",") for row in lines))
    plain.write_text("path,label\n" + text, "utf-8")
    source = ["-b", f"file:{small_network}", "--preprocessing", "none"]
    said = run("train", plain, *source, fails=True).stderr
    assert "look like measurements" in said
    assert "learn numbers with --regression" in said
    assert f"featx train {plain}" in said.replace("\n", " ") or "--regression" in said


@pytest.mark.parametrize(
    ("rows", "words", "message"),
    [
        ("a.png,red", [], "not all numbers, such as 'red'"),
        ("a.png,inf", [], "have to be finite numbers, received 'inf'"),
        ("a.png,4", ["--balanced"], "leave one of the two out"),
        ("a.png,4", ["--multilabel"], "leave one of the two out"),
        ("a.png,4", ["--head", "logistic"], "'logistic' learns classes"),
        ("a.png,4", ["--target-column", "nothing"], "expected one column 'nothing'"),
    ],
)
def test_bad_input_is_named(run, small_network, draw_photo, tmp_path, rows, words, message):
    lines = ["path,label"]
    for number in range(12):
        draw_photo(tmp_path, f"{number}.png", seed=number, colour=(number * 20, 0, 0))
        lines.append(f"{number}.png,{number}")
    draw_photo(tmp_path, "a.png", seed=99, colour=(9, 9, 9))
    (tmp_path / "t.csv").write_text("\n".join([*lines, rows]), "utf-8")
    source = ["-b", f"file:{small_network}", "--preprocessing", "none"]
    said = run("train", tmp_path / "t.csv", *source, "--regression", *words, fails=True).stderr
    assert message in " ".join(said.split())


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ([5] * 12, "all 12 rows have the number 5: there is nothing to learn"),
        ([1, 2, 3], "a regression needs 10 images with a number or more"),
    ],
)
def test_too_little_to_learn_is_named(run, small_network, draw_photo, tmp_path, numbers, message):
    lines = ["path,label"]
    for number, label in enumerate(numbers):
        draw_photo(tmp_path, f"{number}.png", seed=number, colour=(number * 20, 0, 0))
        lines.append(f"{number}.png,{label}")
    (tmp_path / "t.csv").write_text("\n".join(lines), "utf-8")
    source = ["-b", f"file:{small_network}", "--preprocessing", "none"]
    said = run("train", tmp_path / "t.csv", *source, "--regression", fails=True).stderr
    assert message in " ".join(said.split())


def test_options_of_classes_are_refused(train, run, table):
    model, _ = train("--cv", "0", "--head", "knn")
    assert "-" in run("predict", model, table.parent / "0.png").stdout.splitlines()[1]
    assert (
        "no top" in run("predict", model, table.parent / "0.png", "--top-k", "2", fails=True).stderr
    )
    assert (
        "is of classes"
        in run("evaluate", model, table, "--confusion", table.parent / "c.csv", fails=True).stderr
    )
    assert "add --regression" in run("train", table, "--target-column", "red", fails=True).stderr


@pytest.fixture
def search(run, table, small_network, tmp_path):
    def search(*words, data=table, columns=("bright",), fails=False):
        named = [word for column in columns for word in ("--target-column", column)]
        source = ["-b", f"file:{small_network}", "--preprocessing", "none"]
        best = tmp_path / "best.featx"
        words = ["search", data, *source, "--regression", *named, *words, "-o", best]
        return best, run(*words, fails=fails)

    return search


def test_a_search_finds_the_best_head_for_numbers(search, run, table):
    best, done = search()
    assert "selected  r2 0.9" in done.stdout
    assert "nested 5-fold cross-validation" in done.stdout
    said = json.loads(search("--json")[1].stdout)
    assert said["scoring"] == "r2"
    assert said["candidates"] == 19 + 40
    assert said["resumed"] == len(said["leaderboard"]) * 6
    assert said["score"]["value"] > 0.9
    assert featx.load(best).residuals_ is not None
    assert run("evaluate", best, table, "--json").returncode == 0


@pytest.mark.parametrize("scoring", ["mae", "rmse"])
def test_errors_are_the_less_the_better(search, scoring):
    _, done = search("--scoring", scoring, "--head", "ridge:alpha=1|1000000", "--json")
    said = json.loads(done.stdout)
    rows = said["leaderboard"]
    assert [row["head"] for row in rows] == ["ridge:alpha=1", "ridge:alpha=1000000"]
    assert 0 < rows[0]["score"] < rows[1]["score"]
    low, high = said["score"]["interval"]
    assert low < said["score"]["value"] < high


def test_heads_transforms_and_strategies_of_a_search(search):
    words = ["--head", "svm", "--head", "extra-trees:n_estimators=9", "--head",
             "sklearn.linear_model.BayesianRidge", "--head", "ridge", "--transform", "standard",
             "--transform", "pca:4", "--strategy", "halving", "--score", "holdout",
             "--cv", "2", "--json"]  # fmt: skip
    _, done = search(*words, columns=("bright", "red"))
    said = json.loads(done.stdout)
    assert not any(row["failed"] for row in said["leaderboard"])
    assert said["score"]["value"] > 0.7
    assert "set aside" in said["score"]["protocol"]


def test_a_search_and_a_training_give_a_head_one_score(search, train):
    _, trained = train("--head", "ridge:alpha=10", "--json")
    _, searched = search("--head", "ridge:alpha=10", "--json", "--score", "none")
    by_fold = json.loads(trained.stdout)["metrics"]["r2_by_fold"]
    assert json.loads(searched.stdout)["leaderboard"][0]["scores"] == pytest.approx(by_fold)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--scoring", "accuracy"], "no score of numbers of an image: take one of r2, mae, rmse"),
        (["--head", "lda"], "'lda' learns classes"),
        (["--multilabel"], "leave one of the two out"),
        (["--head", "ridge:alpah=1"], "did you mean 'alpha'"),
    ],
)
def test_a_search_of_what_classes_have_is_refused(search, words, message):
    assert message in " ".join(search(*words, fails=True)[1].stderr.split())


def test_within_a_bound_the_winner_is_trained_on_batches(run, table, small_network, tmp_path):
    features = featx.extract(
        table,
        backbone=f"file:{small_network}",
        preprocessing="none",
        target_columns=["bright"],
        cache=tmp_path / "cache",
    )
    whole = featx.train(features, regression=True, head="ridge:alpha=1")
    batches = featx.train(features, regression=True, head="ridge:alpha=1", max_ram="1MiB")
    assert batches.metrics["r2"] == pytest.approx(whole.metrics["r2"], abs=1e-3)
    result = featx.search(features, regression=True, heads="ridge", max_ram="1GiB")
    assert result.model.score(features.matrix(), features_numbers(features)) > 0.9
    several = np.stack([features_numbers(features), np.arange(len(features))], axis=1)
    given = featx.search(features, regression=True, heads="ridge", score="none", y=several)
    assert given.model.predict(features.matrix()).shape == several.shape


def features_numbers(features):
    return np.array([float(text.partition("=")[2] or 0) for text in features.y])


def test_what_is_of_classes_is_refused_with_a_model_of_numbers(train, run, table, small_network):
    model, _ = train("--head", "ridge", "--cv", "0")
    tuned = run("finetune", model, table, "--balanced", fails=True).stderr
    assert "--balanced (class_weight=...) is about classes, and the model predicts" in tuned
    features = featx.extract(
        table, backbone=f"file:{small_network}", preprocessing="none", target_columns=["bright"]
    )
    with pytest.raises(featx.DatasetError, match="how sure a model is of classes"):
        featx.select(features, 3, model=featx.load(model))


def test_a_model_is_finetuned(train, run, table, tmp_path):
    model, _ = train("--head", "ridge", "--cv", "0")
    options = ("--unfreeze", "second", "--epochs", "2", "--batch-size", "8", "--loss", "huber")
    planned = json.loads(run("finetune", model, table, *options, "--dry-run", "--json").stdout)
    assert (planned["images"], planned["held_out"]) == (32, 8)
    options = (*options, "--splits", "none", "-o", tmp_path / "tuned.featx")
    lines = run("finetune", model, table, *options).stdout.splitlines()
    assert lines[0].startswith("start     hold-out R² ")
    assert [line.split()[0] for line in lines[1:3]] == ["epoch", "epoch"]
    assert "RMSE" in lines[1]
    assert any("note      the hold-out chose the epoch: its scores are" in line for line in lines)
    told = json.loads(run("finetune", model, table, *options, "--json").stdout)
    assert told["metrics"]["finetuning"]["options"]["loss"] == "huber"
    assert set(told["metrics"]["finetuning"]["head"]) == {"r2", "rmse"}
    assert run("predict", tmp_path / "tuned.featx", table.parent / "0.png").returncode == 0


def test_several_taps_are_side_by_side(run, table, small_network, tmp_path):
    source = ["-b", f"file:{small_network}", "--preprocessing", "none", "--target-column", "bright"]
    taps = ["--tap", "avg", "--tap", "max"]
    model = tmp_path / "joined.featx"
    words = ["train", table, *source, *taps, "--regression", "--head", "ridge:alpha=1"]
    assert "scores    bright: R² 0.9" in run(*words, "-o", model).stdout
    assert featx.load(model).n_features_in_ == 32
    path = table.parent / "0.png"
    (value,) = next(featx.predict(featx.load(model), path)).values
    assert value.low < value.value < value.high
    run("export", model, "--format", "openvino", "-o", tmp_path / "m.xml", "--verify", path)
    words = ["search", table, *source, *taps, "--regression", "--head", "ridge:alpha=1|10"]
    assert "selected  r2 0.9" in run(*words, "-o", tmp_path / "best.featx").stdout


@pytest.mark.parametrize("words", [("--optimise", "f1"), ("--coverage", "0.9")])
def test_rules_of_classes_are_refused(train, search, run, table, words):
    for command in ("train", "search"):
        said = run(command, table, "--regression", *words, fails=True).stderr
        assert "leave one of the two out" in " ".join(said.split())


def test_abstaining_is_of_classes(train, run, table):
    model, _ = train("--head", "ridge")
    said = run("predict", model, table.parent / "0.png", "--abstain", fails=True).stderr
    assert "no sets with a stated coverage" in said or "intervals and no sets" in said
