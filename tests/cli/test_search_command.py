"""``featx search`` as a user types it."""

from __future__ import annotations

import csv
import json

import pytest
from click.testing import CliRunner

import featx
from featx.cli.search import command
from featx.exceptions import HeadError, OutputError, UnknownNameError


@pytest.fixture
def search(tmp_path, monkeypatch, photos, small_network):
    """Run the command on drawn photos in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*args):
        arguments = [photos, "-b", f"file:{small_network}", "--cache", tmp_path / "cache", *args]
        result = CliRunner().invoke(command, [*map(str, arguments)])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return call


def test_a_search_ends_with_a_table_a_score_and_a_model(search, tmp_path):
    result = search(
        *("--tap", "avg", "--tap", "max", "--head", "ridge:alpha=1|10", "--head", "lda"),
        *("--transform", "standard", "--transform", "l2", "--cv", "3"),
        *("--no-joins", "--no-ensemble", "-o", "best.featx", "--csv", "all.csv"),
    )
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    (header,) = (line.split() for line in lines if line.startswith("rank"))
    assert header == ["rank", "backbone", "tap", "transform", "head", "accuracy", "±", "ms", "MB"]
    assert "optimistic, since it is the best of 48" in result.stdout
    assert "score     accuracy" in result.stdout
    assert any(line.startswith("next: featx predict ") for line in lines)
    table = list(csv.DictReader((tmp_path / "all.csv").read_text("utf-8").splitlines()))
    assert len(table) == 48
    assert sum(row["chosen"] == "True" for row in table) == 1
    assert all(float(row["ms"]) > 0 for row in table)
    model = featx.load(tmp_path / "best.featx")
    photo = tmp_path / "photos" / "red" / "0.jpg"
    assert model.predict([photo]).tolist() == ["red"]


def test_json_is_one_object_and_a_second_run_resumes(search):
    arguments = ("--head", "svm:C=0.001|0.1", "--json", "--score", "none", "-o", "m.featx")
    first = json.loads(search(*arguments).stdout)
    assert first["resumed"] == 0
    assert len(first["leaderboard"]) == 2
    assert first["best"]["backbone_mb"] > 0
    again = json.loads(search(*arguments).stdout)
    assert again["resumed"] == 2
    assert again["best"]["scores"] == first["best"]["scores"]
    assert json.loads(search(*arguments, "--fresh").stdout)["resumed"] == 0


def test_a_space_from_a_file(search, tmp_path):
    (tmp_path / "space.json").write_text(json.dumps({"heads": ["ridge:alpha=1|2"]}))
    result = search("--space", "space.json", "--json", "--score", "none")
    assert len(json.loads(result.stdout)["leaderboard"]) == 2
    with pytest.raises(HeadError, match="a space and heads were given"):
        search("--space", "space.json", "--head", "knn")


def test_a_mistyped_name_is_known_before_anything_is_extracted(search, tmp_path):
    with pytest.raises(UnknownNameError, match="did you mean 'logistic'"):
        search("--head", "logistc")
    with pytest.raises(HeadError, match="did you mean 'alpha'"):
        search("--head", "ridge:alfa=1|2")
    assert not (tmp_path / "cache").exists()
    assert search("--budget", "soon").exit_code == 2
    with pytest.raises(OutputError, match="does not exist"):
        search("-o", "nowhere/m.featx")
