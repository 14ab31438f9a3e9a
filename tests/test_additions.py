"""A head, a metric, an export format and kinds of input are a row each."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import featx

HEAD = """
    HeadSpec(
        "bayes",
        "naive Bayes",
        "sklearn.naive_bayes.GaussianNB",
        grid={"var_smoothing": (1e-9, 0.1)},
    ),
"""
METRIC = """
    Scorer("worst_recall", _worst_recall),
"""
METRIC_FUNCTION = """
def _worst_recall(truth: Codes, values: Values) -> float:
    right = values.argmax(axis=1) == truth
    return float(min(right[truth == code].mean() for code in np.unique(truth)))
"""
EXPORT = """
    Format("archive", "as .keras", ".archive", _write_archive, _run_archive, _KERAS_PYTHON),
"""
EXPORT_FUNCTIONS = """
def _write_archive(network: Any, path: Path, **_: Any) -> None:
    write_keras(network, path.with_suffix(".keras"))
    path.with_suffix(".keras").rename(path)


def _run_archive(path: Path) -> Opened:
    as_keras = path.with_suffix(".keras")
    as_keras.write_bytes(path.read_bytes())
    try:
        return run_keras(as_keras)
    finally:
        as_keras.unlink()
"""
IMAGES = """
    ".paths": lambda path: Listing(paths=path.read_text("utf-8").split("\\n")),
"""
FEATURES = """
    ".txt": lambda path: FeatureTable(rows_of_array(np.loadtxt(path, np.float32))),
"""
JOB = """
import sys
sys.path.insert(0, {folder!r})
import featx
assert featx.__file__.startswith({folder!r}), featx.__file__
from featx.cli.main import cli
for words in {commands!r}:
    cli.main(words, prog_name="featx", standalone_mode=False)
"""


def add_row(file: Path, row: str, functions: str = "", *, table: str = "_ROWS = (") -> None:
    """Write a row at the beginning of a table, and functions before the table."""
    source = file.read_text("utf-8")
    before, line, after = source.partition(f"\n{table}\n")
    assert line, (file.name, table)
    file.write_text(f"{before}\n{functions}\n\n{table}{row}{after}", "utf-8")


@pytest.fixture
def changed(tmp_path):
    """The folder of a copy of featx with the rows above."""
    folder = tmp_path / "copy"
    package = folder / "featx"
    shutil.copytree(
        Path(featx.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__")
    )
    add_row(package / "heads" / "table.py", HEAD)
    add_row(package / "selection" / "metrics.py", METRIC, METRIC_FUNCTION)
    add_row(package / "exporting" / "formats.py", EXPORT, EXPORT_FUNCTIONS)
    readers = "_FORMATS: Mapping[str, Callable[[Path], FeatureTable]] = {"
    add_row(package / "importing" / "feature_files.py", FEATURES, table=readers)
    readers = "READERS: Mapping[str, Callable[[Path], Listing]] = {"
    add_row(package / "images" / "sources.py", IMAGES, table=readers)
    return folder


def test_each_is_a_row_that_every_command_knows(
    changed, photos, small_network, run_python, tmp_path
):
    features = np.random.default_rng(0).normal(size=(40, 5)) + np.arange(40)[:, None] % 2
    np.savetxt(tmp_path / "vectors.txt", features)
    files = sorted(str(path) for path in photos.glob("*/*.jpg"))
    (tmp_path / "some.paths").write_text("\n".join(files[:5]), "utf-8")
    (tmp_path / "labels.csv").write_text("label\n" + "odd\neven\n" * 20, "utf-8")
    cache = ["--cache", str(tmp_path / "cache")]
    model, best, archive = (str(tmp_path / name) for name in ("m.featx", "b.featx", "m.archive"))
    source = ["-b", f"file:{small_network}", "--preprocessing", "none"]
    train = ["train", str(photos), *source, "--cv", "2", "-o", model, "--json", *cache]
    commands = [
        [*train, "--head", "ridge"],
        ["export", model, "-o", archive, "--verify", str(photos), "--json", *cache],
        [*train, "--head", "bayes:var_smoothing=0.01"],
        ["predict", model, str(photos), "--format", "jsonl", *cache],
        ["extract", str(tmp_path / "some.paths"), *source, "--json", *cache],
        ["import", "vectors", str(tmp_path / "vectors.txt"), "--labels",
         str(tmp_path / "labels.csv"), "--json", *cache],
        ["search", "vectors", "--head", "bayes", "--head", "ridge:alpha=1", "--scoring",
         "worst_recall", "--score", "none", "--cv", "2", "--json", "-o", best, *cache],
    ]  # fmt: skip
    done = run_python(JOB.format(folder=str(changed), commands=commands), check=False)
    assert done.returncode == 0, done.stderr
    _, exported, trained, *answers, extracted, imported, searched = map(
        json.loads, done.stdout.splitlines()
    )
    assert (exported["format"], exported["verification"]["top1_changed"]) == ("archive", 0)
    assert (trained["head"], trained["metrics"]["images"]) == ("bayes:var_smoothing=0.01", 12)
    assert {row["label"] for row in answers} == {"red", "blue"}
    assert (extracted["dataset"], extracted["images"], extracted["cached"]) == ("some", 5, 5)
    assert (imported["rows"], imported["classes"]) == (40, 2)
    assert (searched["scoring"], len(searched["leaderboard"])) == ("worst_recall", 3)
