from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import featx
from featx.exceptions import DatasetError, FeaturesError
from featx.models.model_file import Predictor, load_predictor

ROOT = Path(featx.__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """24 photographs in 2 classes, a broken one, and a model that knows them."""
    generator = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("prediction")
    for name, colour in (("red", (200, 60, 60)), ("blue", (60, 60, 200))):
        (folder / "photos" / name).mkdir(parents=True)
        for number in range(12):
            noise = generator.normal(0, 30, (60, 80, 3)) + np.array(colour)
            picture = Image.fromarray(np.clip(noise, 0, 255).astype(np.uint8))
            picture.save(folder / "photos" / name / f"{number:02d}.jpg")
    return folder


@pytest.fixture(scope="module")
def result(folder, small_network):
    features = featx.extract(
        folder / "photos", backbone=f"file:{small_network}", cache=folder / "cache"
    )
    found = featx.train(features, backbone=f"file:{small_network}", cache=folder / "cache")
    found.model.save(folder / "m.featx", metrics=found.metrics, training=found.training)
    return found


@pytest.fixture(scope="module")
def model(result):
    return result.model


@pytest.fixture
def predict_command(folder, result):
    def run(*args, stdin="", command=None):
        code = "from featx.cli.main import main; main()"
        return subprocess.run(
            [sys.executable, "-c", code, "predict", "m.featx", *map(str, args)],
            capture_output=True,
            input=stdin if isinstance(stdin, bytes) else stdin.encode(),
            cwd=folder,
            timeout=900,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"},
        )

    return run


def test_everything_that_can_hold_images_is_taken(model, folder, monkeypatch):
    monkeypatch.chdir(folder)
    files = sorted(str(path) for path in (folder / "photos" / "red").iterdir())
    expected = [("red", 0)] * 12
    for images in (
        folder / "photos" / "red",
        "photos/red/*.jpg",
        "photos/r*",
        ["photos/**/red/*.jpg"],
        files,
        (path for path in files),
        np.array(files),
        featx.ImageDataset.from_paths(files),
    ):
        rows = list(featx.predict(model, images))
        assert [(row.top[0][0], row.status != "ok") for row in rows] == expected
        assert [row.path.rsplit("/", 1)[1] for row in rows] == [f"{n:02d}.jpg" for n in range(12)]
    pictures = [Image.open(path) for path in files]
    from_files = [row.top for row in featx.predict(model, files, top_k=2)]
    for images in (pictures, np.stack([np.asarray(picture) for picture in pictures])):
        rows = list(featx.predict(model, images, top_k=2))
        for row, top in zip(rows, from_files, strict=True):
            assert dict(row.top) == pytest.approx(dict(top), abs=1e-5)
        assert rows[3].path == "array:000003"


def test_patterns_that_match_nothing_are_an_error(model, folder, monkeypatch):
    monkeypatch.chdir(folder)
    with pytest.raises(DatasetError, match=r"nothing matches 'photos/\*\.png'.*\*\* stands"):
        list(featx.predict(model, "photos/*.png"))
    with pytest.raises(DatasetError, match="none with an image extension"):
        list(featx.predict(model, "m.fe*x"))
    with pytest.raises(FeaturesError, match="expected images, received int"):
        list(featx.predict(model, 7))


def test_a_file_whose_name_looks_like_a_pattern_is_a_file(model, folder, tmp_path):
    odd = tmp_path / "a[1]*.jpg"
    odd.write_bytes((folder / "photos" / "red" / "00.jpg").read_bytes())
    (row,) = featx.predict(model, [odd])
    assert (row.path, row.top[0][0]) == (str(odd), "red")


def test_no_image_loses_its_row_or_its_place(model, folder, tmp_path):
    (tmp_path / "broken.jpg").write_text("no image")
    good = str(folder / "photos" / "blue" / "00.jpg")
    names = [good, tmp_path / "broken.jpg", good, tmp_path / "gone.jpg", "nul\0.jpg", good]
    rows = list(featx.predict(model, map(str, names), top_k=2))
    assert [row.path for row in rows] == [str(name) for name in names]
    assert [row.status for row in rows] == ["ok", "failed", "ok", "failed", "failed", "ok"]
    assert all(len(row.top) == 2 for row in rows if row.status == "ok")
    assert rows[3].reason == "no such file"
    assert all(row.reason for row in rows if row.status == "failed")
    (only,) = featx.predict(model, [str(tmp_path / "broken.jpg")])
    assert only.status == "failed"


def test_names_are_taken_as_they_are_needed(model, folder, monkeypatch):
    monkeypatch.setattr("featx.models.prediction._CHUNK", 4)
    path, taken = str(folder / "photos" / "red" / "00.jpg"), []

    def endless():
        while True:
            taken.append(1)
            yield path

    rows = featx.predict(model, endless())
    assert [next(rows).top[0][0] for _ in range(6)] == ["red"] * 6
    assert len(taken) == 8
    rows.close()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images(model, folder):
    path = str(folder / "photos" / "red" / "00.jpg")
    peaks = []
    for count in (10_000, 50_000):
        tracemalloc.start()
        assert sum(1 for _ in featx.predict(model, (path for _ in range(count)))) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


def test_strangers_are_marked_by_a_threshold_of_held_out_images(model, folder, tmp_path):
    known = list(featx.predict(model, folder / "photos", unknown=True))
    assert sum(row.unknown for row in known) <= 4
    assert all(row.unknown == (row.distance > 1) for row in known)
    Image.fromarray(np.zeros((60, 80, 3), np.uint8)).save(tmp_path / "black.png")
    (tmp_path / "broken.jpg").write_text("no image")
    names = [str(tmp_path / "black.png"), str(tmp_path / "broken.jpg")]
    stranger, broken = featx.predict(model, names, unknown=True)
    assert stranger.unknown
    assert broken.unknown is None
    loaded = load_predictor(folder / "m.featx", cache=folder / "cache")
    again = list(featx.predict(loaded, folder / "photos", unknown=True))
    np.testing.assert_allclose(
        [row.distance for row in again], [row.distance for row in known], rtol=1e-5
    )


def test_the_false_alarm_rate_is_in_the_file(result, folder):
    from featx.models.model_file import read_details

    said = read_details(folder / "m.featx")["novelty"]
    assert said["images"] == 24
    assert said["false_alarm_rate"] == pytest.approx(0.04)  # 1 of 25: no finer with 24 images
    assert said["false_alarm_rate_95"][0] < 0.04 < said["false_alarm_rate_95"][1]


def test_a_model_that_does_not_know_strangers_says_so(model, folder):
    paths = sorted(str(path) for path in (folder / "photos").rglob("*.jpg"))
    own = featx.ImageClassifier(model.backbone, cache=folder / "cache")
    own.fit(paths, ["blue"] * 12 + ["red"] * 12)
    with pytest.raises(FeaturesError, match="does not know what is unlike .* featx train"):
        featx.predict(own, paths, unknown=True)


def test_a_model_for_predicting_answers_as_the_whole_one(result, folder):
    quick = load_predictor(folder / "m.featx", cache=folder / "cache")
    assert isinstance(quick, Predictor)
    whole = featx.load(folder / "m.featx", cache=folder / "cache")
    for one, other in zip(
        featx.predict(quick, folder / "photos", top_k=2),
        featx.predict(whole, folder / "photos", top_k=2),
        strict=True,
    ):
        assert dict(one.top) == pytest.approx(dict(other.top), abs=1e-6)


def test_a_warm_prediction_imports_neither_tensorflow_nor_scikit_learn(result, folder, run_python):
    path = folder / "photos" / "red" / "00.jpg"
    code = (
        "import sys\nfrom featx.cli.main import main\n"
        f"try: main(['predict', {str(folder / 'm.featx')!r}, {str(path)!r},"
        f" '--cache', {str(folder / 'other')!r}])\n"
        "except SystemExit as e: assert not e.code\n"
        "print(sorted({'tensorflow', 'keras', 'sklearn', 'scipy', 'skops'} & set(sys.modules)))"
    )
    run_python(code)  # the conversion is made where there is none
    lines = run_python(code).stdout.splitlines()
    assert "red" in lines[1]
    assert lines[-1] == "[]"


def test_csv_names_files_by_their_bytes(predict_command, folder):
    odd = folder / 'caf\udce9, "x"\n.jpg'
    odd.write_bytes((folder / "photos" / "red" / "00.jpg").read_bytes())
    try:
        found = predict_command(odd, "--format", "csv", "--top-k", "2", "--unknown")
    finally:
        odd.unlink()
    assert found.returncode == 0, found.stderr
    text = found.stdout.decode("utf-8", "surrogateescape")
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [row["path"] for row in rows] == [str(odd)] * 2
    assert [row["rank"] for row in rows] == ["1", "2"]
    assert rows[0]["unknown"] in ("true", "false")
    assert float(rows[0]["distance"]) > 0


def test_standard_input_is_bytes_and_formats_say_the_same(predict_command, folder):
    names = ["photos/red/00.jpg", "gone\udce9.jpg", "photos/blue/00.jpg"]
    stdin = "\r\n".join(names).encode("utf-8", "surrogateescape")
    lines = predict_command("-", "--format", "jsonl", "--unknown", stdin=stdin)
    assert lines.returncode == 0
    rows = [json.loads(line) for line in lines.stdout.splitlines()]
    assert [row["path"] for row in rows] == names
    assert [row["label"] for row in rows] == ["red", None, "blue"]
    assert [row["unknown"] for row in rows][1] is None
    assert lines.stderr == b"1 of 3 could not be read\n"
    table = predict_command("-", "--unknown", stdin=stdin).stdout.decode().splitlines()
    assert [line.split()[:2] for line in table][1] == ["photos/red/00.jpg", "red"]
    assert "failed: no such file" in table[2]


def test_no_line_of_standard_input_ends_the_run(predict_command, folder):
    (folder / "nothing").mkdir(exist_ok=True)
    good = b"photos/red/00.jpg"
    bad = [
        b"IMG[1].jpg",
        b"photos/*.none",
        b"photos/red/0[01].jpg",
        b"nothing",
        b"a\0b.jpg",
        b"x" * 5000 + b".jpg",
        b'"photos/red/00.jpg"',
        b"-",
        b"~nobody/a.jpg",
        b"caf\xe9.jpg",
    ]
    lines = [good, b"", *bad, good]
    found = predict_command("-", "-", "--format", "jsonl", stdin=b"\r\n".join(lines))
    assert found.returncode == 0, found.stderr
    rows = [json.loads(line) for line in found.stdout.splitlines()]
    assert [row["status"] for row in rows] == ["ok", *["failed"] * len(bad), "ok"]
    assert all(row["reason"] for row in rows[1:-1])
    assert [row["path"].encode("utf-8", "surrogateescape") for row in rows[1:-1]] == bad
    assert b"10 of 12 could not be read" in found.stderr
    assert predict_command("-", stdin=b"IMG[1].jpg\n").returncode == 1
    assert predict_command("-", stdin=b"photos/red\n").stdout.count(b" red ") == 12


def test_a_name_in_a_list_that_matches_nothing_is_a_row(model, folder, monkeypatch):
    monkeypatch.chdir(folder)
    rows = list(featx.predict(model, ["IMG[1].jpg", "photos/red/0[01].jpg", "empty*"]))
    assert [(row.path, row.status) for row in rows] == [
        ("IMG[1].jpg", "failed"),
        ("photos/red/00.jpg", "ok"),
        ("photos/red/01.jpg", "ok"),
        ("empty*", "failed"),
    ]


def test_exit_codes_and_patterns_on_the_command_line(predict_command):
    assert predict_command("gone.jpg").returncode == 1
    assert predict_command("gone.jpg", "photos/red/00.jpg").returncode == 0
    assert len(predict_command("photos/*/0[01].jpg").stdout.splitlines()) == 5
    nothing = predict_command("photos/*.png")
    assert nothing.returncode == 1
    assert b"error: nothing matches 'photos/*.png'" in nothing.stderr


def test_a_reader_that_leaves_early_is_no_error(folder, result):
    code = "from featx.cli.main import main; main()"
    command = f"yes photos/red/00.jpg | {sys.executable} -c '{code}' predict m.featx - | head -2"
    found = subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=900,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert len(found.stdout.splitlines()) == 2
    assert "Traceback" not in found.stderr
    assert "Error" not in found.stderr
