"""A search that is killed and resumed ends where one that was not killed ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import featx
from featx.cache.maintenance import FeatureCache
from featx.files.safe_json import json_with_checksum

SEARCH = """
import json, sys, featx
features = featx.Features.open("clusters", cache=sys.argv[1])
result = featx.search(
    features,
    heads=sys.argv[3:],
    transforms=["standard", "pca:4"],
    strategy=sys.argv[2],
    score="holdout",
    cache=sys.argv[1],
)
rows = [row.to_dict() for row in result.leaderboard]
for row in rows:
    for name in ("ms", "backbone_ms", "head_ms", "pareto"):
        del row[name]
print(json.dumps([rows, result.score.to_dict(), result.planned]))
"""


FEW = ["logistic:C=0.01|1.0", "ridge", "forest:n_estimators=10|12"]
MANY = [
    *("svm:C=0.001|0.1", "logistic:C=0.001|0.01|0.1|1.0|10.0", "knn", "ridge", "lda"),
    "forest:n_estimators=20|30,min_samples_leaf=1|2",
]


def start(cache, strategy, heads):
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", SEARCH, str(cache), strategy, *heads],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(featx.__file__).parents[1])},
    )


def lines_of(cache):
    return sum(file.read_bytes().count(b"\n") for file in (cache / "searches").glob("*.jsonl"))


def kill_after_more_trials(cache, *search):
    """Kill a search as soon as it has kept something new; return whether it was still running."""
    before = lines_of(cache)
    process = start(cache, *search)
    while process.poll() is None and lines_of(cache) <= before:
        time.sleep(0.002)
    killed = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return killed


def finish(cache, *search):
    process = start(cache, *search)
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0
    return json.loads(output)


@pytest.mark.parametrize(
    ("kills", "strategy", "heads"),
    [
        (1, "grid", FEW),
        pytest.param(20, "grid", MANY, marks=pytest.mark.slow),
        pytest.param(20, "halving", MANY, marks=pytest.mark.slow),
    ],
)
def test_killing_and_resuming_gives_the_uninterrupted_leaderboard(
    features, tmp_path, draw_clusters, kills, strategy, heads
):
    X, codes = draw_clusters(n=600)
    for name in ("killed", "whole"):
        featx.import_features("clusters", X, y=codes, cache=tmp_path / name)
    search = strategy, heads
    killed = sum(kill_after_more_trials(tmp_path / "killed", *search) for _ in range(kills))
    assert killed == kills
    resumed = finish(tmp_path / "killed", *search)
    whole = finish(tmp_path / "whole", *search)
    assert resumed == whole


def journal(cache):
    (file,) = (cache / "searches").glob("*.jsonl")
    return file


def write_journal(file, records):
    """Write trials with the checksums that belong to them."""
    for record in records:
        record.pop("sha256", None)
    file.write_text("".join(json_with_checksum(record) + "\n" for record in records))


def scores_of(result):
    return [row.scores for row in result.leaderboard]


def test_finished_trials_are_not_measured_again(features, tmp_path):
    arguments = {"heads": ["svm:C=0.001|0.1"], "score": "none", "cache": tmp_path}
    first = featx.search(features, **arguments)
    file = journal(tmp_path)
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(records) == 2
    for record in records:  # what is kept is believed: its mark shows that it was
        record["scores"] = [0.125] * 5
    write_journal(file, records)
    again = featx.search(features, **arguments)
    assert again.resumed == 2
    assert {row.score for row in again.leaderboard} == {0.125}
    fresh = featx.search(features, **arguments, resume=False)
    assert fresh.resumed == 0
    assert [row.scores for row in fresh.leaderboard] == [row.scores for row in first.leaderboard]


def test_a_line_that_was_cut_short_or_is_foreign_is_as_if_it_were_not_there(features, tmp_path):
    arguments = {"heads": ["svm:C=0.001|0.1|1.0"], "score": "none", "cache": tmp_path}
    first = featx.search(features, **arguments)
    file = journal(tmp_path)
    data = file.read_bytes()
    file.write_bytes(b'\xff\n[1]\n{"trial": 3}\n' + data[: len(data) - 40])
    again = featx.search(features, **arguments)
    assert again.resumed == 2
    assert [row.scores for row in again.leaderboard] == [row.scores for row in first.leaderboard]
    assert featx.search(features, **arguments).resumed == 3


def test_a_changed_bit_of_a_journal_is_found_and_its_trial_is_measured_again(
    features, tmp_path, caplog
):
    arguments = {"heads": ["svm:C=0.001|0.1|1.0"], "score": "none", "cache": tmp_path}
    first = featx.search(features, **arguments)
    file = journal(tmp_path)
    (tmp_path / "datasets").mkdir()
    whole = file.read_bytes()
    for position in range(3, len(whole) - 1, len(whole) // 7):
        caplog.clear()
        changed = bytes([whole[position] ^ 1 << position % 7])
        file.write_bytes(whole[:position] + changed + whole[position + 1 :])
        assert [f.kind for f in FeatureCache(tmp_path).verify().findings] == ["journal"]
        again = featx.search(features, **arguments)
        assert again.resumed < 3
        assert scores_of(again) == scores_of(first)
        assert "these trials are measured again" in caplog.text
        assert FeatureCache(tmp_path).verify().ok
        file.write_bytes(whole)


def test_a_journal_without_checksums_is_not_believed(features, tmp_path, caplog):
    arguments = {"heads": ["svm:C=0.001|0.1"], "score": "none", "cache": tmp_path}
    first = featx.search(features, **arguments)
    file = journal(tmp_path)
    records = [json.loads(line) for line in file.read_text().splitlines()]
    for record in records:
        del record["sha256"]
        record["scores"] = [1.0] * 5
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    again = featx.search(features, **arguments)
    assert again.resumed == 0
    assert scores_of(again) == scores_of(first)
    assert "2 lines of" in caplog.text
    assert "no checksum, as featx 0.1 wrote them" in caplog.text
    assert featx.search(features, **arguments).resumed == 2


@pytest.mark.parametrize(
    "change",
    [
        {"scores": [1.7, 0.5, 0.5, 0.5, 0.5]},
        {"scores": [-0.1, 0.5, 0.5, 0.5, 0.5]},
        {"scores": [1.0, 1.0]},
        {"scores": []},
        {"scores": [True] * 5},
        {"fit_s": [-1.0] * 5},
        {"score_s": [0.0]},
        {"bytes": -1},
        {"ms": "fast"},
        {"failed": None},
        {"stopped": 1},
    ],
)
def test_figures_that_cannot_be_are_not_believed_whatever_their_checksum(
    features, tmp_path, change
):
    arguments = {"heads": ["ridge:alpha=1", "lda"], "score": "none", "cache": tmp_path}
    first = featx.search(features, **arguments)
    file = journal(tmp_path)
    records = [json.loads(line) for line in file.read_text().splitlines()]
    write_journal(file, [{**records[0], **change}, *records[1:]])
    assert scores_of(featx.search(features, **arguments)) == scores_of(first)


def test_another_seed_label_or_space_is_another_search(features, tmp_path):
    arguments = {"heads": "ridge:alpha=1", "score": "none", "cache": tmp_path}
    featx.search(features, **arguments)
    assert featx.search(features, **arguments).resumed == 1
    assert featx.search(features, **arguments, n_jobs=2, budget_s=100).resumed == 1
    relabelled = features.y.copy()
    relabelled[0] = "bee"
    for changed in ({"seed": 1}, {"y": relabelled}, {"cv": 4}, {"transforms": "l2"}):
        assert featx.search(features, **{**arguments, **changed}).resumed == 0


def test_a_cache_that_cannot_be_written_costs_the_resuming_only(features, tmp_path, caplog):
    (tmp_path / "searches").write_text("a file where the folder would be")
    result = featx.search(features, heads="ridge:alpha=1", score="none", cache=tmp_path)
    assert len(result.leaderboard) == 1
    assert "the search goes on, but cannot be resumed" in caplog.text
