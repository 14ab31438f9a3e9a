"""The page of a regression: what it says, and for which results it is made."""

import json
import re

import numpy as np
import pytest
from PIL import Image

import featx
from featx.exceptions import DatasetError

pytest.importorskip("jinja2", reason="reports need the extra report")
pytest.importorskip("bokeh", reason="reports need the extra report")


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    """Features of 36 pictures of two numbers, one without, one broken."""
    folder = tmp_path_factory.mktemp("numbers")
    rng = np.random.default_rng(0)
    lines = ["path,bright,<b>red</b>"]
    for number in range(36):
        bright, red = rng.uniform(40, 200), rng.uniform(-30, 30)
        pixels = rng.normal(0, 10, (40, 40, 3)) + bright + np.array([red, 0, -red])
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / f"{number}.png")
        lines.append(f"{number}.png,{bright},{red}")
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(folder / "none.png")
    (folder / "broken.png").write_bytes(b"no picture")
    lines += ["none.png,,", "broken.png,3,4"]
    (folder / "t.csv").write_text("\n".join(lines), "utf-8")
    columns = ["bright", "<b>red</b>"]
    return featx.extract(folder / "t.csv", target_columns=columns, cache=folder / "cache")


@pytest.fixture(scope="module")
def trained(features):
    return featx.train(features, head="ridge:alpha=1", regression=True)


def text_of(path):
    text = path.read_text("utf-8")
    body = text[text.index("<body>") : text.index('<script type="application/json"')]
    return " ".join(re.sub("<[^>]+>", " ", body).split())


def test_a_page_says_scores_intervals_and_what_was_left_out(trained, tmp_path):
    trained.report(tmp_path / "r.html", bootstrap=50)
    page, text = (tmp_path / "r.html").read_text("utf-8"), text_of(tmp_path / "r.html")
    assert "5-fold cross-validation, equal images on one side" in text
    assert "1 could not be read" in text
    assert "1 without a label" in text
    assert "<b>red</b>" not in page
    assert "&lt;b&gt;red&lt;/b&gt;" in page
    assert "% of these images lie within it" in text
    assert "mean absolute error" in text
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    plots = json.loads(data)["plots"]
    assert set(plots) == {"truth0", "errors0", "truth1", "errors1"}
    assert set(re.findall(r'data-plot="(\w+)"', page)) == set(plots)
    assert page.count("data:image/webp") == 36


def test_a_page_of_a_model_a_search_and_a_command(features, trained, tmp_path, featx_command):
    featx.report(trained.model, features, tmp_path / "model.html", bootstrap=20)
    assert "36 of 36 images were used in training" in text_of(tmp_path / "model.html")
    result = featx.search(features, regression=True, heads="ridge:alpha=1|10", score="holdout")
    result.report(tmp_path / "search.html", bootstrap=20)
    text = text_of(tmp_path / "search.html")
    assert "a fifth of the images, set aside" in text
    assert "The best of 2 candidates by r2" in text
    trained.model.save(tmp_path / "m.featx")
    table = features.manifest.root
    done = featx_command("evaluate", "m.featx", f"{table}/t.csv", "--report", "e.html",
                         "--bootstrap", "20", "--cache", tmp_path / "cache")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Worst errors" in text_of(tmp_path / "e.html")


def test_a_page_stays_within_its_size(trained, tmp_path):
    trained.report(tmp_path / "r.html", bootstrap=20, most_bytes=1)
    assert "data:image/webp" not in (tmp_path / "r.html").read_text("utf-8")


def test_an_audit_is_of_classes(features, trained, tmp_path):
    audit = featx.audit(features)
    with pytest.raises(DatasetError, match="an audit is about classes"):
        trained.report(tmp_path / "r.html", audit=audit)


def test_a_notebook_shows_a_regression(features, trained):
    from featx.reporting.notebook_html import as_html

    shown = as_html(trained)
    assert "R² 0.9" in shown
    assert "the greatest errors of 36 images" in shown
    assert "<td" in as_html(featx.evaluate(trained.model, features, bootstrap=20))
    table = trained.scored.table(3)
    assert list(table)[:5] == ["row", "path", "bright", "bright predicted", "bright error"]
