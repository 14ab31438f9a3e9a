"""What a notebook shows, in this process and in a real kernel."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import featx
from featx.exceptions import MissingExtraError
from featx.finetuning.tuning import FineTuned
from featx.models.evaluation import Evaluation

HOSTILE = "<img src=x onerror=alert(1)>\x1b[31m\u202e'\""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, draw_photo):
    """A folder of photographs of two classes, one of them mislabelled, and the features."""
    folder = tmp_path_factory.mktemp("notebook")
    for number in range(10):
        draw_photo(folder, f"photos/red/{number}.jpg", seed=number, colour=(200, 60, 60))
        draw_photo(folder, f"photos/<b>blue/{number}.jpg", seed=99 - number, colour=(60, 60, 200))
    draw_photo(folder, "photos/<b>blue/odd.jpg", seed=7, colour=(200, 60, 60))
    os.rename(folder / "photos/red/3.jpg", folder / "photos/red" / f"{HOSTILE}.jpg")
    return folder, featx.extract(folder / "photos", cache=folder / "cache")


def text_of(html):
    return re.sub(r"<[^>]*>", " ", html)


def pictures(html):
    return html.count("<img ")


def test_features_show_what_they_are_with_a_few_pictures(dataset):
    _, feats = dataset
    html = feats._repr_html_()
    assert len(html) < 60_000
    assert pictures(html) == html.count('src="data:image/webp;base64,') == 8
    for words in ("photos", "21 images", "&lt;b&gt;blue (11), red (10)", "1,280"):
        assert words in text_of(html)
    part = feats[feats.y == "red"]._repr_html_()
    assert "10 of 21 images" in text_of(part)
    assert "1 class: red (10)" in text_of(part)
    assert "no such" not in feats[[]]._repr_html_()


def test_names_are_text_and_steer_nothing(dataset):
    _, feats = dataset
    number = next(row for row, path in enumerate(feats.paths) if "onerror" in path)
    html = feats[[number]]._repr_html_()
    assert pictures(html) == 1
    assert r"&lt;img src=x onerror=alert(1)&gt;\x1b[31m\u202e&#x27;&quot;" in html
    assert html.isascii()


def test_images_that_are_gone_are_grey_tiles_with_their_names(dataset, tmp_path):
    folder, _ = dataset
    shutil.copytree(folder / "photos", tmp_path / "moved")
    feats = featx.extract(tmp_path / "moved", cache=tmp_path / "cache")
    shutil.rmtree(tmp_path / "moved")
    html = feats._repr_html_()
    assert pictures(html) == 0
    assert ">0.jpg</div>" in html
    shutil.rmtree(tmp_path / "cache")  # of the features, all is gone too
    opened = feats._repr_html_()
    assert "21 images" in text_of(opened)


def test_imported_features_show_no_pictures_and_no_labels_are_said(tmp_path):
    feats = featx.import_features("numbers", np.ones((3, 4), np.float32), cache=tmp_path)
    html = feats._repr_html_()
    assert "3 images" in text_of(html)
    assert "no labels" in text_of(html)
    assert "<img" not in html


def test_an_image_that_cannot_be_drawn_leaves_the_rest(dataset, monkeypatch):
    _, feats = dataset

    def fail(*_, **__):
        raise RuntimeError("no decoder")

    monkeypatch.setattr("featx.reporting.notebook_html.thumbnails", fail)
    assert "21 images" in text_of(feats._repr_html_())
    monkeypatch.setattr("featx.reporting.notebook_html.html_table", fail)
    assert feats._repr_html_() is None  # and a notebook shows the text


def test_a_search_shows_its_first_lines(dataset):
    _, feats = dataset
    result = featx.search(feats, heads=["knn", "nearest-mean"], cv=2, score="none")
    html = result._repr_html_()
    assert f"the best of {len(result.leaderboard)} of" in text_of(html)
    assert html.count("<tr>") == 1 + min(8, len(result.leaderboard))
    assert "chosen" in html
    assert "its errors" not in html
    assert pictures(html) == int((~result.scored.right).sum()) > 0
    assert 'alt="&lt;b&gt;blue/odd.jpg, &lt;b&gt;blue, → red, ' in html
    assert "on the images that it was chosen by" in text_of(html)


def test_a_search_shows_no_errors_where_that_takes_long_or_features_are_gone(dataset, tmp_path):
    folder, _ = dataset
    feats = featx.extract(folder / "photos", cache=tmp_path)
    slow, gone = (featx.search(feats, heads="ridge", cv=2, score="none") for _ in range(2))
    slow._winner = replace(slow._winner, fit_s=60.0)
    html = slow._repr_html_()
    assert "see .scored, which takes about 300 s, and show this again" in html
    assert pictures(html) == 0
    assert slow.scored is not None
    assert pictures(slow._repr_html_()) > 0
    shutil.rmtree(tmp_path)
    assert "the best of" in text_of(gone._repr_html_())


def test_a_training_shows_its_errors_as_pictures(dataset):
    _, feats = dataset
    result = featx.train(feats, cv=3)
    html = result._repr_html_()
    (suspect,) = result.suspects
    assert suspect.path == "<b>blue/odd.jpg"
    assert pictures(html) == 1
    assert 'alt="&lt;b&gt;blue/odd.jpg, &lt;b&gt;blue, → red, 0.' in html
    assert "→ red</div>" in html
    for words in ("logistic", "2 classes", "21 images of photos", "1 of 21 wrong", "accuracy 0.95"):
        assert words in text_of(html)
    assert pickle.loads(pickle.dumps(result))._repr_html_() == html
    unmeasured = featx.train(feats, cv=0)._repr_html_()
    assert "not measured" in text_of(unmeasured)
    assert pictures(unmeasured) == 0


def test_an_evaluation_is_a_dict_that_shows_itself(dataset):
    _, feats = dataset
    model = featx.train(feats, head="nearest-mean", cv=0).model
    scores = featx.evaluate(model, feats, bootstrap=50)
    assert json.loads(json.dumps(scores)) == dict(scores)
    html = text_of(scores._repr_html_())
    assert re.search(r"accuracy 0.95\d\d \(95 %: 0\.\d+ to 1.000\), 21 images", html)
    assert "21 of them were used in training" in html
    columns = scores.by_class()
    assert columns["label"] == ["<b>blue", "red"]
    assert columns["images"] == [11, 10]
    assert columns["precision"] == [1.0, 10 / 11]
    assert columns["recall"] == [10 / 11, 1.0]
    never = Evaluation(confusion=[[0, 0], [2, 0]], classes=["a", "b"])
    assert never.by_class()["precision"] == [0.0, None]
    assert never.by_class()["recall"] == [None, 0.0]


def test_a_fine_tuning_shows_its_epochs(dataset):
    result = featx.train(dataset[1], cv=3)
    epochs = [(0, None, 0.7, 0.5), (1, 0.9, 0.6, 0.6), (2, 0.8, 0.61, 0.55)]
    names = ("epoch", "loss", "val_loss", "val_accuracy")
    history = [dict(zip(names, epoch, strict=True)) for epoch in epochs]
    metrics = {"protocol": "split test", "accuracy": 0.75, "finetuning": {"best_epoch": 1}}
    assert result.scored is not None
    tuned = FineTuned(
        result.model, Path("m"), "finetuned", metrics, history, "", False, (), result.scored
    )
    assert pictures(tuned._repr_html_()) == 1
    html = text_of(tuned._repr_html_())
    assert "kept: fine-tuned" in html
    assert "accuracy 0.7500, split test" in html
    assert "1, the best" in html


def test_tables_of_pandas_have_a_row_an_image_and_a_row_a_trial(dataset, tmp_path):
    pandas = pytest.importorskip("pandas", reason="needs the extra pandas")
    _, feats = dataset
    table = feats.to_pandas()
    assert list(table) == ["path", "label", "split", "group", "key"]
    assert table["path"].tolist() == feats.paths
    assert table["label"].tolist() == feats.y.tolist()
    assert table["split"].isna().all()
    assert [bytes.fromhex(key) for key in table["key"]] == [key.tobytes() for key in feats.keys]
    reds = feats[table.query("label == 'red'").index]
    assert set(reds.y) == {"red"}
    wide = feats[:3].to_pandas(features=True)
    np.testing.assert_array_equal(wide.iloc[:, 5:].to_numpy(), feats[:3].X)
    assert wide.columns[-1] == "feature_1279"
    result = featx.search(feats, heads="knn", cv=2, score="none")
    leaders = result.to_pandas()
    assert leaders["head"].tolist() == [row.head for row in result.leaderboard]
    assert leaders["score_fold_1"].tolist() == [row.scores[1] for row in result.leaderboard]
    answers = featx.train(feats, cv=3).to_pandas()
    assert len(answers) == 21
    assert answers["right"].tolist() == [False] + [True] * 20
    assert feats[answers["row"]].paths == answers["path"].tolist()
    assert answers.loc[0, ["label", "predicted"]].tolist() == ["<b>blue", "red"]
    assert not len(featx.train(feats, cv=0).to_pandas())
    odd = featx.import_features("odd", feats.X[:2], paths=["a\udcff", "b"], cache=tmp_path)
    assert odd.to_pandas()["path"].tolist() == ["a\udcff", "b"]
    assert isinstance(table, pandas.DataFrame)


def test_without_pandas_the_extra_is_named(dataset, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtraError, match=r"to_pandas\(\) needs pandas.*featx\[pandas\]"):
        dataset[1].to_pandas()


CELLS = [
    "import featx\nfeats = featx.extract('photos', cache='new', progress=True)",
    "feats",
    "result = featx.search(feats, heads='knn', cv=2, score='none', progress=True)",
    "feats[:2]._repr_html_",
]


def test_a_kernel_shows_values_and_draws_progress(dataset):
    """The outputs of a notebook, as its front end has them after each change."""
    pytest.importorskip("ipykernel", reason="needs ipykernel, for a notebook's kernel")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        client = pytest.importorskip("nbclient", reason="needs nbclient, to run a notebook")
        from nbformat.v4 import new_code_cell, new_notebook

        notebook = new_notebook(cells=[new_code_cell(cell) for cell in CELLS])
        drawn = []

        class Client(client.NotebookClient):
            def output(self, outs, msg, display_id, cell_index):
                drawn.append((cell_index, msg["msg_type"], msg["content"].get("data", {})))
                return super().output(outs, msg, display_id, cell_index)

            def process_message(self, msg, cell, cell_index):
                if msg["msg_type"] == "update_display_data":
                    drawn.append((cell_index, msg["msg_type"], msg["content"]["data"]))
                return super().process_message(msg, cell, cell_index)

        os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"
        runner = Client(notebook, timeout=600, resources={"metadata": {"path": str(dataset[0])}})
        runner.execute()
    updates = [
        text_of(data["text/html"])
        for cell, kind, data in drawn
        if kind == "update_display_data" and cell == 0
    ]
    assert any("photos" in text and "of 21" in text for text in updates)
    extracted, value, searched, _ = [cell["outputs"] for cell in notebook.cells]
    assert [output["output_type"] for output in extracted] == ["display_data"]
    assert "21 of 21" in text_of(extracted[0]["data"]["text/html"])
    assert "<progress" in extracted[0]["data"]["text/html"]
    assert pictures(value[0]["data"]["text/html"]) == 8
    assert value[0]["data"]["text/plain"].startswith("<Features 'photos': 21 images")
    assert "search photos" in text_of(searched[0]["data"]["text/html"])
    assert "knn" in searched[0]["data"]["text/html"]
