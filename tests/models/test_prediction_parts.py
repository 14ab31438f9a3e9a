"""Predictions as files of a folder: the same rows, written once, wherever they are computed."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from executors import Here
from PIL import Image

import featx
from featx.exceptions import ArtefactError, DatasetError, FeaturesError, OutputError
from featx.models import prediction, prediction_parts
from featx.models.prediction_parts import predict_to

ROOT = Path(featx.__file__).parents[1]
CHUNK = 5


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(prediction, "_CHUNK", CHUNK)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, small_network):
    """24 photographs in 2 classes, one of them broken, and two models that know them."""
    generator = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("parts")
    for name, colour in (("red", (200, 60, 60)), ("blue", (60, 60, 200))):
        (folder / "photos" / name).mkdir(parents=True)
        for number in range(12):
            noise = generator.normal(0, 30, (60, 80, 3)) + np.array(colour)
            picture = Image.fromarray(np.clip(noise, 0, 255).astype(np.uint8))
            picture.save(folder / "photos" / name / f"{number:02d}.jpg")
    options = {"backbone": f"file:{small_network}", "cache": folder / "cache"}
    features = featx.extract(folder / "photos", **options)
    for head in ("logistic", "nearest-mean"):
        trained = featx.train(features, head=head, **options)
        trained.model.save(folder / f"{head}.featx", training=trained.training)
    (folder / "photos" / "red" / "torn.jpg").write_text("no image")
    return folder


@pytest.fixture
def model(folder):
    return folder / "logistic.featx"


@pytest.fixture
def command(folder):
    def run(*args, stdin="", before=""):
        code = f"from featx.models import prediction; prediction._CHUNK = {CHUNK}\n{before}\n"
        code += "from featx.cli.main import main; main()"
        return subprocess.run(
            [sys.executable, "-c", code, "predict", *map(str, args)],
            capture_output=True,
            input=stdin,
            text=True,
            cwd=folder,
            timeout=900,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        )

    return run


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def without_headers(folder):
    lines = [(folder / name).read_text().splitlines() for name in files(folder)]
    assert len({part[0] for part in lines}) == 1
    return [lines[0][0], *(line for part in lines for line in part[1:])]


@pytest.mark.parametrize("options", [[], ["--top-k", "2", "--unknown"]])
def test_the_rows_are_those_of_the_csv(folder, command, tmp_path, options):
    plain = command("logistic.featx", "photos", "--format", "csv", *options)
    done = command("logistic.featx", "photos", "-o", tmp_path / "out", *options)
    assert done.returncode == 0, done.stderr
    assert without_headers(tmp_path / "out") == plain.stdout.splitlines()
    assert done.stdout == (
        f"{tmp_path}/out/: 5 parts, 5 written, 0 there already, 25 images, 1 could not be read\n"
    )


def test_a_second_run_loads_nothing(folder, model, tmp_path, monkeypatch):
    first = predict_to(model, folder / "photos", tmp_path)
    before = {name: (tmp_path / name).stat().st_mtime_ns for name in files(tmp_path)}
    prediction_parts._loaded.cache_clear()

    def fail(*args, **options):
        raise AssertionError("loaded")

    monkeypatch.setattr(prediction_parts, "load_predictor", fail)
    again = predict_to(model, folder / "photos", tmp_path)
    assert (first.written, first.present) == (5, 0)
    assert (again.written, again.present, again.parts, again.images) == (0, 5, 5, 25)
    assert before == {name: (tmp_path / name).stat().st_mtime_ns for name in files(tmp_path)}


def test_other_models_options_and_images_have_other_files(folder, model, tmp_path, caplog):
    predict_to(model, folder / "photos", tmp_path)
    first = files(tmp_path)
    for number, (path, images, options) in enumerate(
        [
            (folder / "nearest-mean.featx", folder / "photos", {}),
            (model, folder / "photos", {"top_k": 2}),
            (model, folder / "photos" / "red", {}),
        ]
    ):
        caplog.clear()
        done = predict_to(path, images, tmp_path, **options)
        assert done.present == 0
        assert done.others == 5 * (number + 1)
        assert len(caplog.records) == 1
        assert f"{done.others} files in {tmp_path}/ are of another model" in caplog.text
    assert set(first) < set(files(tmp_path))


KILLED = """
    import os, sys
    from featx.models import prediction, prediction_parts

    prediction._CHUNK = 5
    real, entered = prediction_parts.written_whole, []

    def killed(target):
        entered.append(target)
        if len(entered) == 3:
            os.kill(os.getpid(), 9)
        return real(target)

    prediction_parts.written_whole = killed
    prediction_parts.predict_to(*sys.argv[1:])
"""


def test_a_run_that_is_killed_goes_on(folder, model, tmp_path):
    whole = predict_to(model, folder / "photos", tmp_path / "whole")
    arguments = [str(model), str(folder / "photos"), str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    again = predict_to(*arguments)
    assert (again.written, again.present) == (3, 2)
    for name in files(tmp_path / "whole"):
        assert (tmp_path / "out" / name).read_text() == (tmp_path / "whole" / name).read_text()
    assert whole.unreadable == 1


def test_shards_make_a_whole(folder, model, tmp_path):
    whole = predict_to(model, folder / "photos", tmp_path / "whole")
    shares = [
        predict_to(model, folder / "photos", tmp_path / "out", shard=(number, 3))
        for number in (2, 3, 1)
    ]
    assert [share.written for share in shares] == [2, 1, 2]
    assert sum(share.images for share in shares) == whole.images
    assert not any(share.others for share in shares)
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    with pytest.raises(DatasetError, match="expected a share from 1"):
        predict_to(model, folder / "photos", tmp_path / "out", shard=(4, 3))


def test_a_part_that_fails_is_computed_later(folder, model, tmp_path):
    done = predict_to(model, folder / "photos", tmp_path, on=Here(failing={1, 3}))
    assert (done.parts, done.written) == (5, 3)
    assert [reason for _, reason in done.failed] == ["the machine is gone"] * 2
    assert done.failed[0][0].startswith("part-000001-")
    executor = Here()
    again = predict_to(model, folder / "photos", tmp_path, on=executor)
    assert (again.written, again.present, again.failed) == (2, 3, ())
    assert len(executor.sent) == 2
    assert len(files(tmp_path)) == 5


FAILING = """
from featx.models import prediction_parts
real = prediction_parts.predict_part

def failing(part):
    if "000001" in part.target.name:
        raise OSError("the disk is gone")
    return real(part)

prediction_parts.predict_part = failing
"""


def test_a_failed_part_is_exit_code_1(command, tmp_path):
    names = "\n".join(f"photos/red/{n:02d}.jpg" for n in range(12))
    done = command("logistic.featx", "-", "-o", tmp_path / "out", stdin=names, before=FAILING)
    assert done.returncode == 1
    assert "1 parts failed, such as part-000001-" in done.stderr
    assert "the disk is gone" in done.stderr
    again = command("logistic.featx", "-", "-o", tmp_path / "out", "--json", stdin=names)
    assert again.returncode == 0
    said = json.loads(again.stdout)
    assert (said["parts"], said["written"], said["present"], said["failed"]) == (3, 1, 2, [])


def test_processes_with_another_working_folder(folder, model, tmp_path, monkeypatch):
    import tarfile

    with tarfile.open(folder / "photos.tar", "w") as tar:
        tar.add(folder / "photos" / "blue", ".")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        pool.submit(os.getpid).result()
        monkeypatch.chdir(folder)
        for images in ("photos", "photos.tar"):
            done = predict_to("logistic.featx", images, tmp_path / "out", on=pool)
            assert done.failed == ()
            predict_to("logistic.featx", images, tmp_path / "here")
    assert without_headers(tmp_path / "out") == without_headers(tmp_path / "here")
    assert without_headers(tmp_path / "out")[1].startswith("photos")


def test_names_are_taken_as_they_are_needed(folder, model, tmp_path, monkeypatch):
    from featx.extraction import parts

    monkeypatch.setattr(parts, "_WINDOW", 2)
    name, taken = str(folder / "photos" / "red" / "00.jpg"), []

    def endless():
        while True:
            taken.append(1)
            yield name

    class Stopping(Here):
        def submit(self, function, part):
            if len(self.sent) == 4:
                raise KeyboardInterrupt
            return super().submit(function, part)

    with pytest.raises(KeyboardInterrupt):
        predict_to(model, endless(), tmp_path, on=Stopping())
    assert len(taken) == 5 * CHUNK
    assert len(files(tmp_path)) == 4


def test_hosts_that_see_something_else_say_so(folder, model, tmp_path, monkeypatch):
    from dataclasses import replace

    def reason(**changes):
        class Changed(Here):
            def submit(self, function, part):
                return super().submit(function, replace(part, **changes))

        done = predict_to(model, folder / "photos", tmp_path, on=Changed())
        assert done.written == 0
        return done.failed[0][1]

    assert "has featx" in reason(featx="0.0.9")
    assert "does not see the folder" in reason(mark=tmp_path / "gone")
    other = prediction_parts._model_file(model, cache=None, weights=None, trust=False)
    assert "has another model in" in reason(model=replace(other, sha256="0" * 64))
    images = featx.ImageDataset.from_paths([f"/nowhere/{n}.jpg" for n in range(CHUNK)])
    assert "sees none of the images" in reason(images=images)
    assert files(tmp_path) == []


def test_parquet_has_the_same_rows(folder, model, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    predict_to(model, folder / "photos", tmp_path / "csv", top_k=2, unknown=True)
    done = predict_to(
        model, folder / "photos", tmp_path / "parquet", format="parquet", top_k=2, unknown=True
    )
    assert done.written == 5
    table = parquet.read_table(tmp_path / "parquet").to_pylist()
    lines = list(csv.DictReader(without_headers(tmp_path / "csv")))
    assert [row["path"] for row in table] == [row["path"] for row in lines]
    assert [row["label"] or "" for row in table] == [row["label"] for row in lines]
    assert [row["rank"] for row in table][:2] == [1, 2]
    for row, line in zip(table, lines, strict=True):
        if row["status"] == "ok":
            assert row["probability"] == pytest.approx(float(line["probability"]), abs=1e-6)
            assert str(row["unknown"]).lower() == line["unknown"]


def test_what_is_refused(folder, model, tmp_path, command):
    with pytest.raises(DatasetError, match="images in memory have no names"):
        predict_to(model, np.zeros((4, 8, 8, 3), np.uint8), tmp_path)
    with pytest.raises(FeaturesError, match="sets with a stated coverage"):
        predict_to(model, folder / "photos", tmp_path, abstain=True)
    with pytest.raises(ArtefactError, match="which is no file"):
        predict_to(tmp_path / "none.featx", folder / "photos", tmp_path)
    with pytest.raises(OutputError, match="which is a file"):
        predict_to(model, folder / "photos", model)
    assert files(tmp_path) == []
    assert "add -o FOLDER" in command("logistic.featx", "photos", "--on", "ray").stderr
    assert (
        "received jsonl"
        in command("logistic.featx", "photos", "-o", tmp_path, "--format", "jsonl").stderr
    )
