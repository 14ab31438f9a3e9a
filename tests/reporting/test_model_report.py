"""What a report says, and for which data it can be made."""

from __future__ import annotations

import html
import json
import re
from dataclasses import replace

import numpy as np
import pytest

import featx
from featx.exceptions import DatasetError, OutputError
from featx.heads.decision import Decision
from featx.models.scored import Scored
from featx.reporting import feature_map, plots
from featx.selection.metrics import Judged

pytest.importorskip("jinja2", reason="reports need the extra report")
pytest.importorskip("bokeh", reason="reports need the extra report")


@pytest.fixture(autouse=True)
def plain_map(monkeypatch):
    """Principal components: UMAP takes seconds to start."""
    monkeypatch.setattr(feature_map, "_umap", lambda: None)


def data_of(path):
    """What the page holds for its scripts, and its pictures."""
    text = path.read_text("utf-8")
    blocks = re.findall(r'<script type="application/json" id="\w+">(.*?)</script>', text, re.S)
    return [json.loads(block) for block in blocks]


def text_of(path):
    """What the page says before any script runs."""
    text = path.read_text("utf-8")
    body = text[text.index("<body>") : text.index('<script type="application/json"')]
    return " ".join(re.sub("<[^>]+>", " ", body).split())


def test_the_head_says_what_was_scored_how_and_what_was_left_out(report_file, trained):
    text = text_of(report_file)
    metrics = trained.metrics
    assert f"{100 * metrics['accuracy']:.1f} %" in text
    assert "3-fold cross-validation, equal images on one side" in text
    assert "1 could not be read" in text
    assert "broken.jpg" in text
    assert "Warning" not in text
    wrong = int((~trained.scored.right).sum())
    assert f"{wrong} of 36 images are wrong" in text


def test_images_of_the_training_are_a_warning(trained, tmp_path):
    features = trained.scored.features
    featx.report(trained.model, features, tmp_path / "r.html", bootstrap=10)
    assert "Warning: 36 of 36 images were used in training" in text_of(tmp_path / "r.html")


def test_findings_of_an_audit_are_shown_with_their_images(trained, tmp_path):
    features = trained.scored.features
    audit = featx.audit(features)
    assert audit.findings
    trained.report(tmp_path / "r.html", audit=audit, bootstrap=0)
    text = text_of(tmp_path / "r.html")
    assert "Findings of the audit" in text
    assert audit.findings[0].evidence in html.unescape(text)
    with pytest.raises(DatasetError, match="audit the features that the report is of"):
        trained.report(tmp_path / "r.html", audit=featx.audit(features[:20]), bootstrap=0)


def test_missing_originals_are_tiles_with_their_names(trained, shapes, tmp_path, monkeypatch):
    hidden = shapes.with_name("hidden")
    shapes.rename(hidden)
    try:
        trained.report(tmp_path / "r.html", bootstrap=0)
    finally:
        hidden.rename(shapes)
    _, pictures = data_of(tmp_path / "r.html")
    assert pictures == {}


def test_the_size_of_a_page_is_kept_by_leaving_out_pictures(trained, report_file, tmp_path):
    whole = report_file.stat().st_size
    _, every = data_of(report_file)
    assert len(every) == 36
    trained.report(tmp_path / "r.html", bootstrap=0, most_bytes=whole - 20_000)
    assert (tmp_path / "r.html").stat().st_size <= whole - 20_000
    data, pictures = data_of(tmp_path / "r.html")
    assert 0 < len(pictures) < 36
    # The worst errors are shown first.
    assert set(map(str, data["worst"])) <= set(pictures)


def test_nothing_measured_is_an_error(trained, tmp_path):
    unmeasured = featx.train(trained.scored.features, cv=0)
    with pytest.raises(DatasetError, match="nothing was measured"):
        unmeasured.report(tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_a_file_of_the_user_stays(trained, tmp_path):
    (tmp_path / "notes.html").write_text("mine")
    with pytest.raises(OutputError, match="is no page made by featx"):
        trained.report(tmp_path / "notes.html")
    assert (tmp_path / "notes.html").read_text() == "mine"


@pytest.fixture
def numbers(tmp_path):
    """A function that makes features of numbers, of labels that it is given."""

    def numbers(labels, **options):
        generator = np.random.default_rng(0)
        codes = np.unique(labels, return_inverse=True)[1]
        X = generator.normal(size=(len(labels), 6)).astype(np.float32)
        X[:, 0] += 3 * (codes % 2)
        return featx.import_features("numbers", X, y=labels, cache=tmp_path / "cache", **options)

    return numbers


def test_several_labels_an_image(numbers, tmp_path):
    labels = ["ant|winged", "ant", "bee|winged", "bee"] * 10
    result = featx.train(numbers(labels), multilabel=True, cv=3)
    result.report(tmp_path / "r.html", bootstrap=20)
    text = text_of(tmp_path / "r.html")
    assert "Mean average precision" in text
    assert "Confusion matrix" not in text
    data, _ = data_of(tmp_path / "r.html")
    assert data["classes"]["name"] == ["ant", "bee", "winged"]
    assert data["classes"]["images"] == [20, 20, 20]


def test_one_class_is_scored(numbers, tmp_path):
    model = featx.train(numbers(["a", "b"] * 10), cv=0).model
    features = numbers(["a"] * 8)
    model.specs_ = features.specs()
    featx.report(model, features, tmp_path / "r.html", bootstrap=10)
    assert "8 images" in text_of(tmp_path / "r.html") or "of 8" in text_of(tmp_path / "r.html")


def test_of_many_classes_the_most_confused_are_shown(numbers, tmp_path):
    labels = [f"class {number:05d}" for number in range(10_000)] * 2
    features = numbers(labels)
    from featx.reporting.model_report import Subject, write_subject

    names = np.array(features.classes)
    judged = Judged(features.y, names)
    judged.predicted[:] = judged.truth
    judged.predicted[::100] = (judged.truth[::100] + 1) % 10_000
    judged.confidence[:] = 0.9
    scored = Scored(
        features=features,
        backbone="import:numbers",
        tap="imported",
        rows=np.arange(len(labels)),
        names=names,
        scores={"protocol": "made up", "accuracy": 0.99},
        judged=judged,
    )
    subject = Subject(title="Many", scored=scored, facts=[])
    write_subject(subject, tmp_path / "r.html")
    text = text_of(tmp_path / "r.html")
    assert "Most frequent of 100 kinds of error" in text
    assert "Of 10,000 classes these are the most confused" in text
    assert (tmp_path / "r.html").stat().st_size < 4_000_000


def test_a_search_shows_its_leaderboard(trained, tmp_path):
    result = featx.search(
        trained.scored.features, heads=["nearest-mean", "ridge"], cv=3, score="holdout", n_jobs=1
    )
    result.report(tmp_path / "r.html", bootstrap=10)
    text = text_of(tmp_path / "r.html")
    assert "nearest-mean" in text
    assert "Here and below: 5-fold cross-validation of the winner" in text
    assert "optimistic" in text
    assert result.score.protocol in text
    rows = [replace(result.leaderboard[0], ms=ms) for ms in (3.7, 98.0)]
    plot = json.dumps(plots.leaderboard(rows, "accuracy"))
    assert "[2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0]" in plot


def test_the_command_writes_a_page_and_says_where(
    trained, shapes, tmp_path, monkeypatch, featx_command
):
    cache = trained.model.cache
    trained.model.save(tmp_path / "m.featx")
    done = featx_command("report", "m.featx", shapes, "-o", "r.html", "--cache", cache)
    assert done.returncode == 0, done.stderr
    assert "36 images scored, 1 could not be read" in done.stdout
    assert "m.featx on shapes" in text_of(tmp_path / "r.html")
    wrong = featx_command("report", "m.featx", tmp_path / "nothing", "--cache", cache)
    assert wrong.returncode == 1
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("words", [["evaluate", "m.featx"], ["train"]])
def test_other_commands_write_pages_too(words, trained, shapes, tmp_path, featx_command):
    cache = trained.model.cache
    trained.model.save(tmp_path / "m.featx")
    done = featx_command(*words, shapes, "--report", "r.html", "--cache", cache)
    assert done.returncode == 0, done.stderr
    assert "report    r.html" in done.stdout
    assert "36" in text_of(tmp_path / "r.html")


def test_the_head_and_the_errors_are_those_of_the_rule(trained, tmp_path):
    features = trained.scored.features
    result = featx.train(features, cv=3, coverage=0.8, optimise="balanced_accuracy")
    rule = Decision(False, "factors", np.array([1.0, 1e6, 1.0]), "f1", result.model.decision_.sets)
    result.model.decision_ = rule
    featx.report(result.model, features, tmp_path / "r.html", bootstrap=0)
    text = text_of(tmp_path / "r.html")
    assert "Decides by a factor a class, for macro F1; sets with a coverage of 0.8" in text
    wrong = int((result.model.predict(features.X) != features.y).sum())
    assert wrong > 20
    assert f"{wrong} of 36 images are wrong" in text
    result.report(tmp_path / "t.html", bootstrap=0)
    wrong = int((~result.scored.right).sum())
    assert f"{wrong} of 36 images are wrong" in text_of(tmp_path / "t.html")
