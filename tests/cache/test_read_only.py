"""A cache in which nothing may be written, used by a process that has no privileges."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

# Root may write everywhere. Without these two capabilities the permissions of a folder hold for it
# as for anybody, and it can still read this very Python, wherever that is installed.
WITHOUT_PRIVILEGES = """
import ctypes, os, sys
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 24, 1, 2
if os.geteuid() == 0:
    for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
        ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
os.execv(sys.executable, [sys.executable, "-c", *sys.argv[1:]])
"""
FEATX = "from featx.cli.main import main; main()"
READ = """
import sys, numpy as np
from featx import Features
features = Features.open("photos", cache="cache")
assert np.isfinite(features.X).all()
print(len(features), len(list(features.batches(batch_size=5, shuffle=True))), features.classes)
"""


INDEX = """
import featx.cache.space as module
from featx.cache.layout import CacheLayout
module.INDEX_ROWS = 1
layout = CacheLayout.at("cache")
(folder,) = layout.spaces.iterdir()
space = module.open_space(layout, folder.name)
indexed = layout.index(folder.name).exists()
space.write_index()
print(indexed, space.rows)
"""


@pytest.fixture
def run(tmp_path):
    """Run Python code in a process that may not write where permissions forbid it."""

    def start(code, *args):
        return subprocess.run(
            [sys.executable, "-c", WITHOUT_PRIVILEGES, code, *map(str, args)],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            cwd=tmp_path,
            timeout=900,
        )

    probe = tmp_path / "probe"
    probe.mkdir(mode=0o555)
    if start("open('probe/file', 'w')").returncode == 0:
        pytest.skip("this user may write into folders without permission, and cannot forgo it")
    return start


@pytest.fixture
def lock():
    """Take the permission to write from every folder of a cache, and give it back in the end."""
    locked = []

    def take(root):
        locked.extend([root, *(path for path in root.rglob("*") if path.is_dir())])
        for folder in locked:
            folder.chmod(0o555)

    yield take
    for folder in locked:
        folder.chmod(0o755)


def state(root):
    return {path: path.stat().st_mtime_ns for path in [root, *root.rglob("*")]}


def assert_is_one_clear_error(result, path):
    assert result.returncode == 1, result.stdout + result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: cannot write {path}")
    assert "Permission denied" in line
    assert "change its permissions, or name another folder with --cache" in line


def test_extracting_into_it_is_one_clear_error(run, lock, tmp_path, photos, small_network):
    (tmp_path / "cache").mkdir()
    lock(tmp_path / "cache")
    result = run(FEATX, "extract", "photos", "-b", f"file:{small_network}")
    assert_is_one_clear_error(result, "cache/")
    assert list((tmp_path / "cache").iterdir()) == []


def test_what_is_in_it_can_be_used(run, lock, tmp_path, photos, small_network):
    # Of files that were changed just now, a second change could not be told: they are read again.
    long_ago = time.time() - 3600
    for path in photos.rglob("*.jpg"):
        os.utime(path, (long_ago, long_ago))
    extract = ("extract", "photos", "-b", f"file:{small_network}")
    assert run(FEATX, *extract).returncode == 0
    lock(tmp_path / "cache")
    before = state(tmp_path / "cache")

    info = run(FEATX, "cache", "info")
    assert (info.returncode, info.stderr) == (0, "")
    assert "file:small/avg" in info.stdout
    assert run(FEATX, "cache", "verify").returncode == 0
    assert run(READ).stdout == "12 3 ('blue', 'red')\n"
    again = run(FEATX, *extract)
    assert again.returncode == 0, again.stderr
    assert "12 cached, 0 extracted" in again.stdout

    index = run(INDEX)
    assert (index.stdout, index.stderr) == ("False {'avg': 12}\n", "")

    split = run(FEATX, "dataset", "split", "photos")
    assert_is_one_clear_error(split, "cache/datasets/photos.h5")
    more = run(FEATX, *extract, "--tap", "max")
    assert_is_one_clear_error(more, "cache/")
    assert state(tmp_path / "cache") == before


def test_its_index_of_keys_is_used(run, lock, tmp_path, photos, small_network):
    assert run(FEATX, "extract", "photos", "-b", f"file:{small_network}").returncode == 0
    assert run(INDEX).stdout == "False {'avg': 12}\n"
    lock(tmp_path / "cache")
    before = state(tmp_path / "cache")
    assert run(INDEX).stdout == "True {'avg': 12}\n"
    assert run(READ).stdout == "12 3 ('blue', 'red')\n"
    assert state(tmp_path / "cache") == before
