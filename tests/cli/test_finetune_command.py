"""``featx finetune``."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def model(photos, featx_command, small_network):
    done = featx_command(
        "train", photos, "-b", f"file:{small_network}", "-o", "m.featx", "--cv", "0"
    )
    assert done.returncode == 0, done.stderr
    return "m.featx"


def test_from_a_rehearsal_to_a_prediction(model, photos, featx_command, tmp_path):
    options = ("--unfreeze", "second", "--epochs", "2", "--batch-size", "4")
    planned = featx_command("finetune", model, photos, *options, "--dry-run", "--json")
    found = json.loads(planned.stdout)
    assert (found["images"], found["held_out"]) == (9, 3)
    assert found["cut"] == ["first"]
    assert found["trained_parameters"] == 8 * 9 * 16 + 16
    assert found["activation_bytes"] == 5 * 12 * 15 * 15 * 8 * 4
    assert found["seconds"] > 0
    assert found["memory_bytes"] > 1e8
    assert not (tmp_path / "m-finetuned.featx").exists()

    done = featx_command("finetune", model, photos, *options)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("start     hold-out accuracy")
    assert [line.split()[0] for line in lines[1:3]] == ["epoch", "epoch"]
    assert "saved     m-finetuned.featx" in lines
    history = (tmp_path / "m-finetuned.featx.training" / "history.jsonl").read_text("utf-8")
    assert [json.loads(line)["epoch"] for line in history.splitlines()] == [0, 1, 2]
    scored = featx_command("evaluate", "m-finetuned.featx", photos)
    assert scored.returncode == 0, scored.stderr


def test_what_is_wrong_is_one_line(model, photos, featx_command):
    done = featx_command("finetune", model, photos, "--unfreeze", "secnd")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: unknown block or layer of file:small to unfreeze 'secnd'")
    assert featx_command("finetune", "none.featx", photos).returncode == 1


def test_curves_ask_for_tensorboard_where_it_is_not(model, photos, featx_command):
    pytest.importorskip("keras")
    try:
        import tensorboard  # noqa: F401
    except ImportError:
        done = featx_command("finetune", model, photos, "--tensorboard", "--epochs", "1")
        assert done.returncode == 1
        assert "pip install 'featx[tensorboard]'" in done.stderr
    else:
        done = featx_command(
            "finetune", model, photos, "--tensorboard", "--epochs", "1", "--unfreeze", "second"
        )
        assert done.returncode == 0, done.stderr


def test_ctrl_c_saves_the_best_so_far_and_says_where(model, photos, tmp_path):
    options = ("--unfreeze", "second", "--epochs", "5000", "--patience", "5000")
    code = "from featx.cli.main import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", code, "finetune", model, str(photos), *options, "-o", "t.featx"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        while not process.stdout.readline().startswith("epoch 2"):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=900)
    assert process.returncode == 130
    assert errors.strip().startswith("interrupted: ")
    assert "is in t.featx; the same command goes on from there" in errors
    assert (tmp_path / "t.featx").exists()
    assert (tmp_path / "t.featx.training" / "checkpoint.npz").exists()
