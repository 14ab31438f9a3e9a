"""Fine-tuning of models that predict numbers."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

import featx
from featx.exceptions import FineTuningError
from featx.finetuning.objectives import ValueObjective
from featx.finetuning.start import FineTuneOptions, prepare_material, prepare_start
from featx.finetuning.trainer import Training
from featx.finetuning.tuning import finetune, rehearse

OPTIONS = {"unfreeze": "second", "epochs": 6, "batch_size": 8, "learning_rate": 3e-3, "views": 0}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A CSV of 48 noisy pictures with how bright and how red they are."""
    folder = tmp_path_factory.mktemp("numbers")
    rng = np.random.default_rng(0)
    lines = ["path,bright,red,split"]
    for number in range(48):
        bright, red = rng.uniform(40, 200), rng.uniform(-30, 30)
        pixels = rng.normal(0, 50, (40, 40, 3)) + bright + np.array([red, 0, -red])
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / f"{number}.png")
        split = "test" if number >= 40 else "train"
        lines.append(f"{number}.png,{bright + 1000:.3f},{red:.3f},{split}")
    path = folder / "pictures.csv"
    path.write_text("\n".join(lines), "utf-8")
    return path


@pytest.fixture(scope="module")
def model(table, small_network, cache, tmp_path_factory):
    """A function that gives the path of a model of one number, or of both."""
    folder = tmp_path_factory.mktemp("models")

    def train(head="ridge:alpha=30", columns=("bright",), taps=("avg",)):
        path = folder / f"{head.replace(':', '_')}-{len(columns)}-{len(taps)}.featx"
        if not path.exists():
            source = {"backbone": f"file:{small_network}", "cache": cache}
            features = featx.extract(table, taps=list(taps), target_columns=columns, **source)
            made = {"head": head, "tap": list(taps), "regression": True}
            featx.train(features, **made, **source).model.save(path)
        return path

    return train


@pytest.fixture
def tune(model, table, cache, tmp_path):
    def run(output="tuned.featx", *, start=None, **options):
        source = start or model()
        return finetune(source, table, tmp_path / output, cache=cache, **{**OPTIONS, **options})

    return run


@pytest.fixture(scope="module")
def tuned(model, table, cache, tmp_path_factory):
    """One fine-tuning of both numbers that is better than its head."""
    output = tmp_path_factory.mktemp("tuned") / "tuned.featx"
    start = model(columns=("bright", "red"))
    return finetune(start, table, output, cache=cache, **OPTIONS)


def test_it_learns_and_says_on_what(tuned):
    said = tuned.metrics["finetuning"]
    assert (tuned.kept, set(said["head"])) == ("finetuned", {"r2", "rmse"})
    assert said["finetuned"]["r2"] > said["head"]["r2"]
    assert said["finetuned"]["rmse"] < said["head"]["rmse"]
    assert "temperature" not in said
    losses = [entry["val_loss"] for entry in tuned.history]
    assert said["best_epoch"] == int(np.argmin(losses)) > 0
    assert tuned.history[said["best_epoch"]]["val_r2"] == pytest.approx(said["finetuned"]["r2"])
    assert not {"val_accuracy"} & set(tuned.history[0])
    # The split test is scored, and chose nothing.
    assert tuned.metrics["protocol"] == "split test: 8 images, which did not choose the epoch"
    assert (tuned.metrics["images"], said["hold_out"]) == (8, "hold-out of 8 images")
    assert tuned.metrics["r2"] == pytest.approx(said["test"]["finetuned"])
    assert tuned.metrics["rmse"] == pytest.approx(said["test"]["finetuned_rmse"])
    assert [row["value"] for row in tuned.metrics["values"]] == ["bright", "red"]


def test_the_saved_model_predicts_with_intervals(tuned, table, cache):
    model = featx.load(tuned.path, cache=cache)
    assert isinstance(model, featx.ImageRegressor)
    assert model.value_names_ == ("bright", "red")
    paths = [str(table.parent / f"{number}.png") for number in range(40, 48)]
    predicted = model.predict(paths)
    order = [tuned.scored.features.paths[row] for row in tuned.scored.rows]
    expected = dict(zip(order, tuned.scored.values[1], strict=True))
    for path, numbers in zip(paths, predicted, strict=True):
        np.testing.assert_allclose(numbers, expected[path.rsplit("/", 1)[1]], rtol=1e-4, atol=1e-3)
    assert model.residuals_.shape == (8, 2)
    low, high = model.predict_interval(paths, coverage=0.8)
    assert (low < predicted).all()
    assert (predicted < high).all()
    data = featx.ImageDataset.from_any(table, target_columns=["bright", "red"])
    scores = featx.evaluate(model, data, bootstrap=0)
    assert scores["r2"] == pytest.approx(tuned.metrics["r2"], abs=1e-4)


def test_it_can_be_tuned_further(tuned, tune):
    more = tune("more.featx", start=tuned.path, epochs=1)
    before = tuned.metrics["finetuning"]["finetuned"]
    assert more.history[0]["val_r2"] == pytest.approx(before["r2"], abs=1e-4)


def test_the_page_and_the_notebook_show_it(tuned, tmp_path):
    assert "hold-out R²" in tuned._repr_html_()
    pytest.importorskip("jinja2", reason="reports need the extra report")
    tuned.report(tmp_path / "page.html", bootstrap=0)
    page = (tmp_path / "page.html").read_text("utf-8")
    assert "which did not choose the epoch" in page
    assert "R² on the hold-out" in page


@pytest.mark.parametrize("head", ["ridge:alpha=30", "svm", "dense:8,max_epochs=5"])
def test_the_start_gives_the_numbers_of_the_head(head, model, table, cache):
    path = model(head, columns=("bright", "red"))
    start = prepare_start(path, table, FineTuneOptions(**OPTIONS), cache=cache)
    network, inputs = prepare_material(start)
    rows = start.held_out
    (batch,) = inputs.batches(rows, len(rows))
    numbers = start.objective.answers(network.logits(batch))
    np.testing.assert_allclose(numbers, start.head_answers(rows), rtol=1e-4, atol=1e-3)
    X = start.features.matrix(**start.head_block)[rows]
    np.testing.assert_array_equal(start.head.predict(X), start.head_answers(rows))


@pytest.mark.parametrize(("asked", "views"), [(None, 0), (2, 2)])
def test_views_of_numbers_are_drawn_only_where_asked_for(asked, views, model, table, cache):
    options = FineTuneOptions(**{**OPTIONS, "views": asked})
    start = prepare_start(model(), table, options, cache=cache)
    assert start.views == start.options.views == views


def test_targets_are_scaled_by_the_rows_that_are_trained_on(model, table, cache):
    start = prepare_start(model(), table, FineTuneOptions(**OPTIONS), cache=cache)
    targets = start.objective.targets(start.rows)
    np.testing.assert_allclose([targets.mean(), targets.std()], [0, 1], atol=1e-4)
    held_out = start.objective.targets(start.held_out)
    assert abs(held_out.mean()) + abs(held_out.std() - 1) > 1e-3


@pytest.mark.parametrize("changes", [{"loss": "huber"}, {"mixing": "mixup"}, {"mixing": "cutmix"}])
def test_what_may_be_asked_for_changes_the_course(changes, model, table, cache, tmp_path):
    losses = []
    for name, more in (("plain", {}), ("changed", changes), ("again", changes)):
        options = FineTuneOptions(**{**OPTIONS, "epochs": 2, **more})
        start = prepare_start(model(), table, options, cache=cache)
        training = Training(start, *prepare_material(start), tmp_path / name, "job")
        training.run()
        losses.append(training.losses)
    assert losses[1] == losses[2]
    assert not np.allclose(losses[0], losses[1], rtol=1e-3)


def test_the_loss_of_huber_is_that_of_small_errors_and_linear_beyond():
    objective = ValueObjective(("value",), np.zeros((2, 1)))
    truth = np.zeros((1, 1), np.float32)
    assert float(objective.loss("huber", 0.0)(truth, truth + 0.5)) == pytest.approx(0.125)
    assert float(objective.loss("huber", 0.0)(truth, truth + 3)) == pytest.approx(2.5)
    assert float(objective.loss(None, 0.0)(truth, truth + 3)) == pytest.approx(9)


def test_the_model_is_kept_where_no_epoch_beats_it(tune, model, table):
    result = tune(learning_rate=1e4, warmup=0.0)
    assert (result.kept, "diverged" in result.stopped) == ("head", True)
    before, path = featx.load(model()), str(table.parent / "1.png")
    np.testing.assert_array_equal(result.model.predict([path]), before.predict([path]))
    np.testing.assert_array_equal(result.model.residuals_, before.residuals_)


def test_a_model_of_another_tap_starts_from_a_head_on_the_last(tune, model, cache):
    result = tune(start=model("knn", taps=("avg", "first:max")), epochs=1)
    assert result.metrics["finetuning"]["started_from"] == "a new head (ridge) on the tap avg"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_smoothing": 0.1}, "label_smoothing=.* is about classes, and the model predicts"),
        ({"class_weight": "balanced"}, "--balanced .* is about classes, and the model predicts"),
        ({"loss": "absolute"}, "loss must be one of squared, huber, received 'absolute'"),
    ],
)
def test_what_is_about_classes_is_refused(options, message, tune):
    with pytest.raises(FineTuningError, match=message):
        tune(**options)


def test_a_loss_of_numbers_is_refused_for_classes(trained, pictures, cache, tmp_path):
    with pytest.raises(FineTuningError, match="--loss .* is for models that predict numbers"):
        finetune(trained(), pictures, tmp_path / "t.featx", cache=cache, loss="huber")


def test_a_head_of_another_kind_is_refused(model, tune):
    with pytest.raises(FineTuningError, match="ridge, svm, dense, or a linear regressor"):
        tune(start=model("knn"))


def test_a_rehearsal_is_of_the_same_images(model, table, cache):
    planned = rehearse(model(), table, cache=cache, **OPTIONS)
    assert (planned.images, planned.held_out, planned.cut) == (32, 8, ["first"])
    assert json.dumps(planned.to_dict())
