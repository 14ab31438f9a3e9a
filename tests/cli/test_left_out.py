"""What could not be read and what is not used: listed by every command, with an exit code."""

from __future__ import annotations

import json

import pytest

FAILED = {"path": "red/broken.jpg", "reason": "not an image (starts with b'no image')"}
NOTES = {"path": "notes.txt", "reason": "no image extension"}


@pytest.fixture
def data(photos):
    (photos / "red/broken.jpg").write_bytes(b"no image")
    (photos / "notes.txt").write_text("x")
    return photos


@pytest.fixture
def model(data, featx_command, small_network):
    done = featx_command("train", data, "-b", f"file:{small_network}", "-o", "m.featx")
    assert done.returncode == 0, done.stderr
    return "m.featx"


COMMANDS = {
    "extract": ("extract", "DATA"),
    "train": ("train", "DATA", "-o", "new.featx"),
    "search": ("search", "DATA", "--head", "logistic", "--no-ensemble", "-o", "new.featx"),
    "evaluate": ("evaluate", "m.featx", "DATA"),
    "finetune": ("finetune", "m.featx", "DATA", "-o", "new.featx", "--epochs", "1"),
    "audit": ("audit", "DATA", "--no-pictures", "--csv", "new.csv"),
    "similar": ("similar", "DATA", "DATA"),
    "predict": ("predict", "m.featx", "DATA"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_what_failed_and_was_left_out_is_listed(
    name, model, data, featx_command, small_network, tmp_path
):
    words = [str(data) if word == "DATA" else word for word in COMMANDS[name]]
    if name in ("extract", "train", "search", "audit"):
        words += ["-b", f"file:{small_network}"]
    if name == "finetune":
        words += ["--unfreeze", "second", "--views", "0"]
    done = featx_command(*words, "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    base = f"{data}/" if name in ("similar", "predict") else ""
    assert said["failed"] == 1
    assert said["failures"] == [{**FAILED, "path": base + FAILED["path"]}]
    assert said["left_out"] == [{**NOTES, "path": base + NOTES["path"]}]
    for file in ("new.featx", "new.csv"):
        (tmp_path / file).unlink(missing_ok=True)
    strict = featx_command(*words, "--fail-on-failed")
    assert strict.returncode == 1
    assert strict.stdout
    for file in ("new.featx", "new.csv"):
        assert (tmp_path / file).exists() == (file in words)


def test_nothing_failed_is_no_error(photos, featx_command, small_network):
    done = featx_command("extract", photos, "-b", f"file:{small_network}", "--fail-on-failed")
    assert done.returncode == 0, done.stderr


def test_predict_says_what_it_left_out(model, data, featx_command):
    done = featx_command("predict", model, f"{data}/*")
    assert "1 files were left out, such as" in done.stderr
    assert "notes.txt: no image extension" in done.stderr


def test_columns_are_named_in_every_command(photos, featx_command, small_network, tmp_path):
    rows = [
        f"{path},{path.parent.name},{'pilot' if number % 3 == 0 else 'train'}"
        for number, path in enumerate(sorted(photos.rglob("*.jpg")))
    ]
    (tmp_path / "birds.csv").write_text("\n".join(["Image ID,species,fold", *rows]))
    unnamed = featx_command("train", "birds.csv", "-b", f"file:{small_network}")
    assert "did you mean 'Image ID'? Name it with --path-column 'Image ID'" in unnamed.stderr
    columns = ("--path-column", "Image ID", "--label-column", "species", "--split-column", "fold")
    columns += ("--splits", "pilot=test")
    network = ("-b", f"file:{small_network}")
    trained = featx_command("train", "birds.csv", *network, "-o", "m.featx", *columns)
    assert "splits: train = train (8 images), pilot = test (4 images)" in trained.stdout
    for words in (
        ("extract", "birds.csv", *network),
        ("search", "birds.csv", *network, "--head", "logistic", "-o", "s.featx"),
        ("evaluate", "m.featx", "birds.csv"),
        ("audit", "birds.csv", *network, "--no-pictures"),
        ("finetune", "m.featx", "birds.csv", "--unfreeze", "second", "--epochs", "1"),
    ):
        done = featx_command(*words, *columns)
        assert done.returncode == 0, done.stderr
    next_one = done.stdout.splitlines()[-1]
    assert "--splits pilot=test" in next_one
    assert "--path-column 'Image ID'" in next_one
    predicted = featx_command("predict", "m.featx", "birds.csv", *columns, "--json")
    assert len(json.loads(predicted.stdout)["predictions"]) == 12


def test_what_is_doubtful_is_said_before_training(photos, featx_command, small_network, draw_photo):
    for number in range(6):
        draw_photo(photos, f"Red/{number}.jpg", seed=50 + number, colour=(200, 60, 60))
    done = featx_command("train", photos, "-b", f"file:{small_network}", "-o", "m.featx")
    lines = done.stdout.splitlines()
    alike = next(n for n, line in enumerate(lines) if "'Red' and 'red'" in line)
    assert alike < next(n for n, line in enumerate(lines) if line.startswith("head"))
