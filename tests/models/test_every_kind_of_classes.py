"""Names in any script, two classes, a thousand, several labels: the whole way to an export."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import featx
from featx.cli.main import cli
from featx.models.model_file import load_predictor

SCRIPTS = ["سيارة", "🐜 ant", "line\nbreak", 'comma, "quote"', "caf\udce9", "蜂"]
CASES = {
    "scripts": ("logistic", [SCRIPTS[n % 6] for n in range(24)]),
    "binary": ("ridge", ["no", "yes"] * 12),
    "thousand": ("nearest-mean", [f"class {n % 1000:04d}" for n in range(2000)]),
    "several": ("dense:8,max_epochs=3", [["ant|蜂", "蜂", "|", "ant"][n % 4] for n in range(24)]),
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    pixels = np.random.default_rng(0).integers(0, 256, (4, 40, 40, 3), np.uint8)
    for number, picture in enumerate(pixels):
        Image.fromarray(picture).save(folder / f"{number}.png")
    return sorted(str(path) for path in folder.glob("*.png"))


@pytest.mark.parametrize("case", CASES)
def test_the_whole_way(case, small_network, pictures, tmp_path):
    head, y = CASES[case]
    options = {"multilabel": case == "several", "cache": tmp_path / "cache"}
    model = featx.ImageClassifier(f"file:{small_network}", head, **options)
    X = np.random.default_rng(1).random((len(y), 16), np.float32)
    names = sorted({name for one in y for name in one.split("|")} - {""})
    model.fit(X, y).save(tmp_path / "m.featx")
    expected = model.predict_proba(pictures)
    assert model.classes_.tolist() == names
    for loaded in (featx.load(tmp_path / "m.featx"), load_predictor(tmp_path / "m.featx")):
        assert loaded.classes_.tolist() == names
        rows = list(featx.predict(loaded, pictures, top_k=2))
        for row, proba in zip(rows, expected, strict=True):
            assert dict(row.top) == pytest.approx(
                {names[c]: proba[c] for c in np.argsort(-proba, kind="stable")[:2]}, abs=1e-6
            )
    done = featx.export(model, tmp_path / "m.tflite", verify=pictures)
    assert done.verification["largest_difference"] < 1e-5
    beside = json.loads((tmp_path / "m.tflite.json").read_text("utf-8"))
    assert beside["classes"] == names


def test_names_of_any_script_are_printed(small_network, pictures, tmp_path):
    _, y = CASES["scripts"]
    model = featx.ImageClassifier(f"file:{small_network}", "logistic")
    X = np.random.default_rng(1).random((len(y), 16), np.float32)
    model.fit(X, y).save(tmp_path / "m.featx")
    said = {}
    for style in ("csv", "jsonl", "table"):
        asked = ["predict", str(tmp_path / "m.featx"), pictures[0], "--top-k", "6"]
        found = CliRunner().invoke(cli, [*asked, "--format", style])
        assert found.exit_code == 0, found.output
        said[style] = found.stdout_bytes
    lines = said["csv"].decode("utf-8", "surrogateescape").splitlines(keepends=True)
    rows = list(csv.DictReader(lines))
    top = json.loads(said["jsonl"])["top"]
    assert [row["label"] for row in rows] == [one["label"] for one in top]
    assert sorted(row["label"] for row in rows) == sorted(SCRIPTS)
    assert "line\\nbreak" in said["table"].decode()
    assert len(said["table"].decode().splitlines()) == 7
    found = CliRunner().invoke(
        cli, ["export", str(tmp_path / "m.featx"), "-o", str(tmp_path / "m.xml"), "--json"]
    )
    assert json.loads(found.stdout)["classes"] == sorted(SCRIPTS)
