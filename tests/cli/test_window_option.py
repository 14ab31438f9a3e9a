"""`--window` from the folder to the prediction."""

import csv
import io
import json

import numpy as np
import pytest
from PIL import Image

import featx


@pytest.fixture
def scans(tmp_path):
    """A folder of two classes of 16-bit PNG files with values of 12 bits."""
    rng = np.random.default_rng(4)
    for i in range(12):
        dark = i % 2
        values = rng.normal(900 if dark else 2600, 300, (40, 40))
        values[:, : 4 + i] += 900
        path = tmp_path / "scans" / ("dark" if dark else "light") / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.clip(values, 0, 4095).astype(np.uint16)).save(path)
    return tmp_path / "scans"


def test_a_window_from_the_note_to_the_prediction(featx_command, scans, tmp_path):
    plain = featx_command("extract", scans)
    assert plain.returncode == 0, plain.stderr
    assert "12 images of 16 bits use less than a quarter of their range" in plain.stdout
    assert "they look black; --window 0:4095 makes use of it" in plain.stdout

    trained = featx_command("train", scans, "--window", "0:4095", "-o", "scans.featx", "--json")
    assert trained.returncode == 0, trained.stderr
    report = json.loads(trained.stdout)["extraction"]
    assert (report["extracted"], report["notes"]) == (12, [])

    policies = [None, featx.ImagePolicy(window=(0, 4095))]
    rows = [featx.extract(scans, image=image, cache=tmp_path / "cache") for image in policies]
    assert [feats.report["extracted"] for feats in rows] == [0, 0]
    assert not np.allclose(rows[0].X, rows[1].X, rtol=0.1)

    # The model knows the window by itself.
    predicted = featx_command("predict", "scans.featx", scans, "--format", "csv")
    assert predicted.returncode == 0, predicted.stderr
    answers = list(csv.DictReader(io.StringIO(predicted.stdout)))
    model = featx.load(tmp_path / "scans.featx")
    assert model.spec_.image.window == (0.0, 4095.0)
    best = model.predict_proba(rows[1].X).max(axis=1)
    assert {answer["status"] for answer in answers} == {"ok"}
    got = sorted(float(answer["probability"]) for answer in answers)
    np.testing.assert_allclose(got, np.sort(best), atol=1e-3)
    assert not np.allclose(got, np.sort(model.predict_proba(rows[0].X).max(axis=1)), atol=1e-3)
    scores = featx_command("evaluate", "scans.featx", scans, "--json")
    assert scores.returncode == 0, scores.stderr


def test_the_next_command_and_a_negative_window(featx_command, scans):
    result = featx_command("extract", scans, "--window", "-100:4000")
    assert result.returncode == 0, result.stderr
    assert "next: featx train --window -100:4000 scans" in result.stdout


@pytest.mark.parametrize("window", ["4095", "a:b", "9:1", "0:1:2", "0:inf", ""])
def test_a_window_that_is_none_is_refused_before_anything_is_read(featx_command, window):
    result = featx_command("extract", "nowhere", "--window", window)
    assert result.returncode == 2
    assert "--window" in result.stderr
