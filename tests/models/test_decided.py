"""Models with a decision rule: trained, saved, searched for, predicted and evaluated with."""

import csv
import io
import json
import logging

import numpy as np
import pytest
from PIL import Image

import featx
from featx.exceptions import ArtefactError, DatasetError, FeaturesError, HeadError, UnknownNameError
from featx.heads.decision import Decision, LabelSets
from featx.heads.table import HEADS
from featx.models.evaluation import compare_models, evaluate
from featx.models.model_file import load_predictor, read_details

QUICK = {"forest": "forest:n_estimators=4"}
NAMES = np.array(["ant", "bee", "fly"])


def rows(n=240, shares=(0.7, 0.2, 0.1), seed=0):
    """Features of rare and common classes that overlap, and their codes."""
    generator = np.random.default_rng(seed)
    codes = generator.choice(len(shares), n, p=shares)
    centres = np.random.default_rng(9).normal(size=(len(shares), 6)) * 0.8
    return (centres[codes] + generator.normal(size=(n, 6))).astype(np.float32), codes


def import_rows(name, cache, **more):
    X, codes = rows()
    return featx.import_features(name, X, y=NAMES[codes], cache=cache, **more)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def features(cache):
    return import_rows("insects", cache)


@pytest.fixture(scope="module")
def label_sets(cache):
    generator = np.random.default_rng(1)
    Y = generator.random((240, 3)) < [0.4, 0.15, 0.5]
    X = Y @ generator.normal(size=(3, 6)) + generator.normal(size=(240, 6)) * 0.8
    y = ["|".join(NAMES[row]) or "|" for row in Y]
    return featx.import_features("sets", X.astype(np.float32), y=y, cache=cache)


@pytest.fixture
def costs(tmp_path):
    file = tmp_path / "costs.csv"
    file.write_text("true,ant,bee,fly\nant,0,1,1\nbee,3,0,1\nfly,30,5,0\n")
    return f"cost:{file}"


@pytest.mark.parametrize("head", [name for name in HEADS if name not in ("dense", "extra-trees")])
def test_a_model_decides_by_its_rule_for_every_head(head, features):
    result = featx.train(features, head=QUICK.get(head, head), optimise="balanced_accuracy", cv=2)
    model, X, y = result.model, features.X, features.y
    if not result.metrics["decision"]["kept"]:
        model.decision_ = Decision(
            kind="factors", values=np.array([1.0, 2.0, 4.0]), optimised="balanced_accuracy"
        )
    answers = model.predict(X)
    weighed = model.predict_proba(X) * model.decision_.values
    assert answers.tolist() == model.classes_[weighed.argmax(axis=1)].tolist()
    scores = evaluate(model, features, bootstrap=0)
    assert scores["accuracy"] == model.score(X, y) == np.mean(answers == y)
    assert compare_models(model, model, features, bootstrap=0)["accuracy"][0] == scores["accuracy"]


def test_training_tunes_a_rule_and_says_what_it_is_worth(features):
    plain = featx.train(features)
    result = featx.train(features, optimise="f1")
    decision = result.metrics["decision"]
    assert decision["before"] == pytest.approx(plain.metrics["macro_f1"])
    assert decision["after"] == pytest.approx(result.metrics["macro_f1"])
    assert decision["after"] > decision["before"] + 0.03
    assert decision["kept"]
    assert "5 folds, each decided by a rule that was tuned on the others" in decision["protocol"]
    assert result.metrics["log_loss"] == plain.metrics["log_loss"]
    table = result.scored.table()
    assert np.mean(table["right"]) == pytest.approx(result.scored.scores["accuracy"], abs=0.01)
    assert {suspect.path for suspect in result.suspects} == {
        path for path, right in zip(table["path"], table["right"], strict=True) if not right
    }
    proba = result.model.predict_proba(features.X)
    np.testing.assert_array_equal(proba, plain.model.predict_proba(features.X))
    assert plain.model.decision_ is None


def test_two_classes_get_a_threshold(cache):
    X, codes = rows(shares=(0.85, 0.15))
    features = featx.import_features("two", X, y=NAMES[codes], cache=cache)
    model = featx.train(features, optimise="f1").model
    (limit,) = model.decision_.values
    assert 0 < limit < 0.5
    proba = model.predict_proba(X)
    assert model.predict(X).tolist() == NAMES[(proba[:, 1] > limit).astype(int)].tolist()
    assert model.predict(X).tolist() != NAMES[proba.argmax(axis=1)].tolist()


def test_several_labels_have_a_threshold_each(label_sets):
    result = featx.train(label_sets, multilabel=True, optimise="f1", coverage=0.8)
    model, X = result.model, label_sets.X
    proba = model.predict_proba(X)
    given = proba > model.decision_.values
    assert model.predict(X).tolist() == given.astype(int).tolist()
    assert result.metrics["macro_f1"] == pytest.approx(result.metrics["decision"]["after"])
    assert result.metrics["decision"]["after"] > result.metrics["decision"]["before"]
    assert 0 < model.decision_.unsure(proba).sum() < 240
    scores = evaluate(model, label_sets, bootstrap=20)
    truth = np.array([[name in text.split("|") for name in NAMES] for text in label_sets.y])
    assert scores["exact_match"] == (given == truth).all(axis=1).mean() == model.score(X, truth)
    assert scores["decision"]["after"] == pytest.approx(scores["macro_f1"])
    low, high = scores["intervals"]["macro_f1"]
    assert low < scores["macro_f1"] < high
    assert scores["coverage"]["measured"] == pytest.approx(0.8, abs=0.07)
    by_label = featx.train(label_sets, multilabel=True, coverage=0.8, coverage_by="class")
    shares = by_label.metrics["coverage"]["by_class"]
    assert list(shares) == NAMES.tolist()
    assert min(shares.values()) > 0.75


def test_costs_decide(features, costs):
    result = featx.train(features, optimise=costs, coverage=0.9)
    report = result.metrics["decision"]
    assert report["after"] < report["before"]
    model = result.model
    expected = (model.predict_proba(features.X) @ model.decision_.values).argmin(axis=1)
    assert model.predict(features.X).tolist() == NAMES[expected].tolist()
    scores = evaluate(model, features, bootstrap=0)["decision"]
    assert scores["optimised"] == "cost"
    assert scores["after"] < scores["before"]
    found = featx.search(features, heads="ridge", optimise=costs, score="none")
    assert found.model.decision_.kind == "costs"


def test_a_held_out_split_measures_the_rule(cache):
    X, codes = rows(400)
    splits = np.where(np.arange(400) % 4 == 3, "test", "train")
    features = featx.import_features("parts", X, y=NAMES[codes], splits=splits, cache=cache)
    result = featx.train(features, optimise="f1", coverage=0.9)
    tested = splits == "test"
    model = result.model
    assert "held-out split of 100 images" in result.metrics["protocol"]
    assert result.suspects == []
    assert result.metrics["accuracy"] == np.mean(model.predict(X[tested]) == NAMES[codes[tested]])
    assert result.metrics["coverage"]["images"] == 100
    scores = evaluate(model, features, bootstrap=0)
    for name in ("decision", "coverage"):
        assert scores[name] == result.metrics[name]
    found = featx.search(features, heads="logistic:C=1", optimise="f1", coverage=0.9)
    assert found.decided["coverage"]["images"] == 100
    assert found.scored.scores["accuracy"] == np.mean(
        found.model.predict(X[tested]) == NAMES[codes[tested]]
    )


def test_a_search_gives_its_winner_a_rule(features, tmp_path):
    options = {"heads": ["logistic:C=0.1|1", "ridge"], "score": "holdout"}
    plain = featx.search(features, **options)
    found = featx.search(features, **options, optimise="f1", coverage=0.9)
    assert found.score == plain.score
    assert found.best.head == plain.best.head
    assert plain.decided == {}
    assert any("go by the most probable class" in note for note in found.notes)
    assert found.decided["decision"]["after"] > found.decided["decision"]["before"]
    assert found.to_dict()["coverage"] == found.metrics["coverage"] == found.decided["coverage"]
    assert found.scored.scores["macro_f1"] == pytest.approx(found.decided["decision"]["after"])
    found.save(tmp_path / "m.featx")
    assert read_details(tmp_path / "m.featx")["metrics"]["decision"]["kept"] is True
    again = featx.load(tmp_path / "m.featx")
    assert again.predict(features.X).tolist() == found.model.predict(features.X).tolist()


@pytest.mark.slow
@pytest.mark.parametrize("rule", [None, "f1"])
@pytest.mark.parametrize("head", ["lda", "logistic:C=0.1", "knn"])
def test_new_rows_are_covered_as_stated(head, rule, cache):
    shares = []
    for seed in range(20):
        X, codes = rows(400, seed=seed)
        name = f"covered {seed}"
        features = featx.import_features(name, X, y=NAMES[codes], cache=cache / "covered")
        model = featx.train(features, head=head, seed=seed, optimise=rule, coverage=0.9).model
        new, truth = rows(4000, seed=1000 + seed)
        shares.append(model.rule.covered(truth, model.predict_proba(new)).mean())
    assert np.mean(shares) == pytest.approx(0.9, abs=0.01)


def test_training_in_batches_learns_the_same_rule(features):
    whole = featx.train(features, head="ridge", optimise="f1", coverage=0.9).model.decision_
    parts = featx.train(features, head="ridge", optimise="f1", coverage=0.9, max_ram="4MiB")
    np.testing.assert_allclose(parts.model.decision_.values, whole.values, rtol=0.2)
    np.testing.assert_allclose(parts.model.decision_.sets.least, whole.sets.least, rtol=0.2)


def test_what_cannot_be_learnt_is_refused(features, label_sets, tmp_path, costs):
    with pytest.raises(HeadError, match=r"take out-of-fold probabilities, received cv=0: .*--cv 5"):
        featx.train(features, optimise="f1", cv=0)
    with pytest.raises(UnknownNameError, match="score to optimise 'accuracy'"):
        featx.train(features, optimise="accuracy")
    with pytest.raises(UnknownNameError, match="score to optimise 'accuracy'"):
        featx.search(features, optimise="accuracy")
    with pytest.raises(HeadError, match="several labels an image do not: optimise f1"):
        featx.train(label_sets, multilabel=True, optimise=costs)
    few = features[:40]
    for train in (featx.train, featx.search):
        with pytest.raises(DatasetError, match=r"a coverage of 0\.99 needs 99 images"):
            train(few, coverage=0.99)
    (tmp_path / "other.csv").write_text("true,ant,wasp\nant,0,1\nwasp,1,0\n")
    for train in (featx.train, featx.search):
        with pytest.raises(DatasetError, match="not those of the images: bee, fly, wasp"):
            train(features, optimise=f"cost:{tmp_path / 'other.csv'}")
    lonely = features[np.r_[:30, np.flatnonzero(features.y == "fly")[:1]]]
    lonely = lonely[(lonely.y != "fly") | (np.arange(len(lonely)) == 30)]
    with pytest.raises(DatasetError, match="class 'fly' has 1 image"):
        featx.train(lonely, optimise="f1")
    assert featx.train(lonely).metrics["protocol"].startswith("not measured")


def test_training_again_forgets_the_rule(features):
    model = featx.train(features, optimise="f1").model
    assert model.decision_ is not None
    model.fit(features.X, features.y)
    assert model.decision_ is None


def test_a_model_file_carries_the_rule(features, tmp_path, rewrite):
    plain = featx.train(features)
    plain.model.save(tmp_path / "plain.featx")
    stated = read_details(tmp_path / "plain.featx")
    assert stated["version"] == 3
    assert "decision" not in stated
    assert featx.load(tmp_path / "plain.featx").decision_ is None
    path = tmp_path / "m.featx"
    model = featx.train(features, optimise="f1", coverage=0.9).model
    model.save(path)
    assert read_details(path)["version"] == 4
    for loaded in (featx.load(path), load_predictor(path)):
        proba = loaded.average_proba([features.X])
        assert loaded.decide(proba).tolist() == model.predict(features.X).tolist()
        assert loaded.rule.unsure(proba).tolist() == model.rule.unsure(proba).tolist()
    rewrite(path, lambda details: details["decision"].update(values=[1.0]))
    wanted = r"m\.featx: the decision rule of the model is damaged \(expected a list of 3 numbers"
    with pytest.raises(ArtefactError, match=wanted):
        featx.load(path)
    rewrite(path, lambda details: details.update(decision=None))
    with pytest.raises(ArtefactError, match="decision rule of the model is damaged"):
        featx.load(path)
    rewrite(path, lambda details: details.update(version=6))
    with pytest.raises(ArtefactError, match="format version 6, this featx reads version 5"):
        featx.load(path)


def test_unsure_needs_a_coverage(features):
    model = featx.train(features, optimise="f1").model
    with pytest.raises(FeaturesError, match=r"no sets with a stated coverage.*--coverage 0\.95"):
        featx.predict(model, ["a.jpg"], abstain=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, small_network):
    """Pictures of three colours that overlap, and a model that is unsure of some."""
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    colours = {"ant": (120, 60, 100), "bee": (100, 60, 120), "fly": (100, 80, 100)}
    for number in range(60):
        name = ("ant", "ant", "ant", "bee", "fly")[number % 5]
        colour = colours[name] + generator.normal(0, 9, 3)
        pixels = np.clip(colour + generator.normal(0, 9, (20, 24, 3)), 0, 255)
        (folder / "data" / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "data" / name / f"{number:02d}.png")
    features = featx.extract(
        folder / "data", backbone=f"file:{small_network}", cache=folder / "cache"
    )
    model = featx.train(
        features,
        backbone=f"file:{small_network}",
        optimise="balanced_accuracy",
        coverage=0.8,
        cache=folder / "cache",
    ).model
    assert model.decision_.kind == "factors"
    model.save(folder / "m.featx")
    return folder


@pytest.fixture(scope="module")
def paths(folder):
    return sorted(str(path) for path in folder.glob("data/*/*.png"))


def test_the_decided_label_comes_first_and_then_the_most_probable(folder, paths):
    model = featx.load(folder / "m.featx")
    proba = model.predict_proba(paths)
    found = list(featx.predict(model, paths, top_k=3, abstain=True))
    assert [row.top[0][0] for row in found] == model.predict(paths).tolist()
    others = [[p for _, p in row.top[1:]] for row in found]
    assert all(first >= second for first, second in others)
    assert any(row.top[0][1] < row.top[1][1] for row in found)
    sets = model.decision_.label_sets(proba)
    assert [len(row.label_set) for row in found] == sets.sum(axis=1).tolist()
    assert [row.unsure for row in found] == model.decision_.unsure(proba).tolist()
    assert 0 < sum(row.unsure for row in found) < len(paths)
    for row in found:
        assert row.unsure == (row.label_set != (row.top[0][0],))
    (plain,) = featx.predict(model, paths[:1])
    assert (plain.unsure, plain.label_set) == (None, None)


def test_several_labels_of_images_are_those_above_their_threshold(folder, paths, small_network):
    y = [f"{path.split('/')[-2]}|{'even' if int(path[-6:-4]) % 2 else 'ant'}" for path in paths]
    data = featx.ImageDataset.from_paths(paths, y)
    backbone = f"file:{small_network}"
    features = featx.extract(data, backbone=backbone, multilabel=True, cache=folder / "cache")
    model = featx.train(features, backbone=backbone, multilabel=True, optimise="f1", coverage=0.7)
    model = model.model
    answers = model.predict(paths)
    found = list(featx.predict(model, paths, abstain=True))
    assert [{name for name, _ in row.top} for row in found] == [
        set(model.classes_[row > 0].tolist()) for row in answers
    ]
    unsure = model.rule.unsure(model.predict_proba(paths))
    assert [row.unsure for row in found] == unsure.tolist()
    likeliest = [row.top[0][0] for row in featx.predict(model, paths, top_k=1)]
    given = zip(likeliest, answers, strict=True)
    assert all(name in model.classes_[row > 0] for name, row in given if row.any())


def test_select_names_what_the_rule_decides(folder, paths, small_network):
    half = [path.split("/")[-2] if row % 2 else "" for row, path in enumerate(paths)]
    data = featx.ImageDataset.from_paths(paths, half)
    features = featx.extract(data, backbone=f"file:{small_network}", cache=folder / "cache")
    model = featx.load(folder / "m.featx")
    chosen = featx.select(features, 20, model=model)
    files = [paths[image.row] for image in chosen]
    assert [image.predicted for image in chosen] == model.predict(files).tolist()
    columns = [model.classes_.tolist().index(image.predicted) for image in chosen]
    shown = model.predict_proba(files)[np.arange(len(files)), columns]
    np.testing.assert_allclose([image.probability for image in chosen], shown, atol=1e-6)


def test_shell_python_and_evaluate_agree(folder, paths, featx_command):
    model = featx.load(folder / "m.featx")
    answers, proba = model.predict(paths), model.predict_proba(paths)
    assert answers.tolist() != model.classes_[proba.argmax(axis=1)].tolist()
    shown = featx_command("predict", folder / "m.featx", *paths, "--abstain", "--format", "csv")
    lines = list(csv.DictReader(io.StringIO(shown.stdout)))
    assert [line["label"] for line in lines] == answers.tolist()
    assert [line["unsure"] for line in lines] == [str(u).lower() for u in model.rule.unsure(proba)]
    sets = [model.classes_[row].tolist() for row in model.rule.label_sets(proba)]
    assert [set(filter(None, line["set"].split("|"))) for line in lines] == list(map(set, sets))
    rows = [row.top[0][0] for row in featx.predict(model, paths)]
    assert rows == answers.tolist()
    run = ("evaluate", folder / "m.featx", folder / "data", "--json", "--bootstrap", "0")
    scores = json.loads(featx_command(*run).stdout)
    truth = np.array([path.split("/")[-2] for path in paths])
    assert scores["accuracy"] == np.mean(answers == truth)
    assert scores["coverage"]["unsure"] == pytest.approx(model.rule.unsure(proba).mean())


def test_predict_marks_images_for_a_person(folder, paths, featx_command):
    (folder / "broken.png").write_bytes(b"no picture")
    named = [*paths, folder / "broken.png"]
    shown = featx_command("predict", folder / "m.featx", *named, "--abstain", "--unknown")
    header, *lines = shown.stdout.splitlines()
    assert header.split() == ["path", "label", "probability", "distance", "set"]
    rule = load_predictor(folder / "m.featx").rule
    unsure = rule.unsure(featx.load(folder / "m.featx").predict_proba(paths))
    assert [" unsure" in line for line in lines[:-1]] == unsure.tolist()
    assert "failed: " in lines[-1]
    assert 0 < unsure.sum() < len(paths)
    shown = featx_command("predict", folder / "m.featx", *named, "--abstain", "--format", "jsonl")
    rows = [json.loads(line) for line in shown.stdout.splitlines()]
    assert [row["unsure"] for row in rows] == [*unsure.tolist(), None]
    assert rows[-1]["set"] is None
    assert all(row["unsure"] == (row["set"] != [row["label"]]) for row in rows[:-1])
    shown = featx_command("predict", folder / "m.featx", paths[0], "--format", "jsonl").stdout
    assert not {"unsure", "set"} & set(json.loads(shown))
    shown = featx_command("predict", folder / "m.featx", folder / "broken.png", "--abstain",
                          "--format", "csv").stdout  # fmt: skip
    assert shown.splitlines()[1].endswith(",,,")


def test_abstaining_without_a_coverage_says_what_to_do(folder, small_network, featx_command):
    data, plain = folder / "data", folder / "plain.featx"
    run = ("train", data, "-b", f"file:{small_network}", "--cache", folder / "cache")
    assert featx_command(*run, "-o", plain).returncode == 0
    shown = featx_command("predict", plain, data, "--abstain")
    assert shown.returncode == 1
    assert shown.stdout == ""
    assert "train it again with featx train or featx search and --coverage 0.95" in " ".join(
        shown.stderr.split()
    )


def test_the_shell_trains_searches_and_evaluates_with_a_rule(
    folder, small_network, featx_command, tmp_path
):
    common = (folder / "data", "-b", f"file:{small_network}", "--cache", folder / "cache")
    rule = ("--optimise", "f1", "--coverage", "0.8", "--coverage-by", "class")
    shown = featx_command("train", *common, *rule, "-o", tmp_path / "t.featx")
    assert shown.returncode == 0, shown.stderr
    assert "decision  macro F1 0." in shown.stdout
    assert "(0.8 stated)" in shown.stdout
    assert "5 folds, limits from the others" in shown.stdout
    shown = featx_command(
        "search", *common, *rule, "--head", "ridge", "--score", "none", "-o", tmp_path / "s.featx"
    )
    assert shown.returncode == 0, shown.stderr
    assert "coverage  " in shown.stdout
    assert "note      the scores of the search go by the most probable class" in shown.stdout
    shown = featx_command(
        "evaluate", tmp_path / "t.featx", folder / "data", "--cache", folder / "cache"
    )
    assert "labels in a set" in shown.stdout
    (tmp_path / "costs.csv").write_text("true,ant,bee,fly\nant,0,1,1\nbee,9,0,1\nfly,9,1,0\n")
    asked = ("train", *common, "--optimise", "cost:costs.csv", "--json", "-o", tmp_path / "c.featx")
    decision = json.loads(featx_command(*asked).stdout)["metrics"]["decision"]
    assert decision["optimised"] == "cost"
    for command in ("train", "search"):
        shown = featx_command(command, tmp_path, "--optimise", "f2", "-o", tmp_path / "x.featx")
        assert shown.returncode == 1
        assert "did you mean 'f1'?" in shown.stderr


def test_reports_name_the_rule(folder, features):
    from featx.reporting.model_report import _model_facts

    facts = dict(_model_facts(featx.load(folder / "m.featx")))
    assert facts["Decides by"] == (
        "a factor a class, for balanced accuracy; sets with a coverage of 0.8"
    )
    assert "Decides by" not in dict(_model_facts(featx.train(features, cv=0).model))


def test_fine_tuning_drops_the_rule_and_says_so(folder, caplog, tmp_path):
    with caplog.at_level(logging.WARNING, "featx"):
        done = featx.finetune(
            folder / "m.featx",
            folder / "data",
            tmp_path / "t.featx",
            cache=folder / "cache",
            unfreeze="second",
            epochs=1,
        )
    kept = done.kept == "head"
    assert (done.model.decision_ is not None) == kept
    assert ("decides by the most probable class" in caplog.text) != kept


def test_views_are_averaged_before_the_rule(features):
    model = featx.train(features, coverage=0.9).model
    model.decision_ = Decision(sets=LabelSets(0.9, "all", np.full(3, 0.5), 10))
    halves = [features.X, features.X[::-1].copy()]
    proba = model.average_proba(halves)
    assert model.decide(proba).tolist() == NAMES[proba.argmax(axis=1)].tolist()
