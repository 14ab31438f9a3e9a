"""A training that is killed at any instant goes on to the same weights."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
KILLS = 10


def command(model, pictures, cache, output):
    options = ("--unfreeze", "second", "--epochs", "60", "--patience", "60", "--batch-size", "4")
    code = "from featx.cli.main import main; main()"
    arguments = ("finetune", model, pictures, "--cache", cache, "-o", output, "--views", "1")
    return [sys.executable, "-c", code, *map(str, arguments), *options]


def weights_of(path):
    import featx
    from featx.backbones.build import build_network

    model = featx.load(path)
    layers = [step for step in model.head_.steps_ if type(step).__name__ == "Linear"]
    (source,) = model.sources()
    return build_network(source).get_weights(), [(s.kernel, s.bias) for s in layers]


@pytest.mark.slow
def test_ten_kills_do_not_change_the_weights(trained, pictures, cache, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    whole = tmp_path / "whole.featx"
    subprocess.run(
        command(trained(), pictures, cache, whole), check=True, env=environment, timeout=900
    )
    killed = tmp_path / "killed.featx"
    checkpoint = tmp_path / "killed.featx.training" / "checkpoint.npz"
    rng = np.random.default_rng(0)
    kills = 0
    for _ in range(4 * KILLS):
        if kills == KILLS:
            break
        with subprocess.Popen(
            command(trained(), pictures, cache, killed),
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            # The line of the start, or of the first epoch that it does.
            assert process.stdout.readline().startswith(("start", "epoch"))
            time.sleep(rng.uniform(0, 0.25))
            process.send_signal(signal.SIGKILL)
        kills += process.returncode == -signal.SIGKILL
    subprocess.run(
        command(trained(), pictures, cache, killed), check=True, env=environment, timeout=900
    )
    assert kills == KILLS
    assert not checkpoint.exists()
    (network, head), (expected_network, expected_head) = weights_of(killed), weights_of(whole)
    for a, b in zip(network, expected_network, strict=True):
        np.testing.assert_array_equal(a, b)
    for (kernel, bias), (other, offset) in zip(head, expected_head, strict=True):
        np.testing.assert_array_equal(kernel, other)
        np.testing.assert_array_equal(bias, offset)
