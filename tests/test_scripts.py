"""The scripts stop with a clear line where they cannot work."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the scripts are for a POSIX shell")


def run(script, tmp_path, **environment):
    return subprocess.run(
        [REPOSITORY / "scripts" / script],
        capture_output=True,
        text=True,
        env={**os.environ, "FEATX_VENV": str(tmp_path / "venv"), **environment},
        timeout=900,
    )


def fake_command(folder, name, output):
    folder.mkdir(exist_ok=True)
    command = folder / name
    command.write_text(f"#!/bin/sh\ncat <<'END'\n{output}\nEND\nexit 1\n")
    command.chmod(0o755)
    return folder


@pytest.mark.parametrize("script", ["setup", "demo", "test"])
def test_a_python_that_is_too_old_is_named(script, tmp_path):
    old = fake_command(tmp_path / "bin", "python3.9", "Python 3.9.18") / "python3.9"
    result = run(script, tmp_path, PYTHON=str(old))
    assert result.returncode == 1
    assert "featx needs Python 3.11, 3.12 or 3.13" in result.stderr
    assert "found Python 3.9.18" in result.stderr
    assert not (tmp_path / "venv").exists()


def test_a_full_disk_is_named(tmp_path):
    listing = "Filesystem 1M-blocks Used Available Capacity Mounted\n/dev/x 100 60 40 60% /"
    fakes = fake_command(tmp_path / "bin", "df", listing)
    (fakes / "df").write_text((fakes / "df").read_text().replace("exit 1", "exit 0"))
    result = run("demo", tmp_path, PATH=f"{fakes}:{os.environ['PATH']}")
    assert result.returncode == 1
    assert "the disk is full: installing needs 4000 MB" in result.stderr
    assert "40 MB are free" in result.stderr


def test_the_lock_pins_every_dependency_and_nothing_else():
    lines = (REPOSITORY / "requirements.lock").read_text().splitlines()
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line) for line in lines)
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in lines}
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    needed = project["dependencies"] + project["optional-dependencies"]["dev"]
    names = {re.match(r"[A-Za-z0-9-]+", text).group().lower() for text in needed}
    assert names <= pinned


def test_ci_runs_what_a_developer_runs():
    assert "exec ./scripts/test" in (REPOSITORY / ".ci" / "run").read_text()
