"""Several processes edit one dataset at once: no edit is lost, and nothing is left behind."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from featx.cache import layout as replacing
from featx.cache.datasets import delete_dataset, edit_dataset, rename_dataset
from featx.cache.editing import assign_splits, relabel
from featx.cache.layout import FileVersion, Replaced
from featx.cache.manifest import find_manifest, manifest_names, same_manifest, write_manifest
from featx.exceptions import CacheWriteError, DatasetError

REPOSITORY = Path(__file__).resolve().parents[2]

EDITS = """
import sys, time
from pathlib import Path
from featx.cache.datasets import edit_dataset
from featx.cache.editing import relabel
from featx.cache.layout import CacheLayout
layout, first, count = CacheLayout(Path(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3])
(layout.root / f"ready-{first}").touch()
while len(list(layout.root.glob("ready-*"))) < 2:
    time.sleep(0.001)
for row in range(first, first + count):
    edit_dataset(layout, "photos", lambda m: relabel(m, paths={f"a/{row}.jpg": f"class {row}"}))
"""
NO_LOCKS = """
import fcntl, os
def flock(*_): raise OSError(37, os.strerror(37))
fcntl.flock = flock
"""


def start(code, *args):
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def edited(tmp_path, kit):
    """The dataset `photos` of 60 images, without features."""
    keys, values = kit.rows(60)
    cache = kit.fill(tmp_path / "cache", keys[:1], values[:1])
    write_manifest(cache.layout, kit.dataset("photos", keys))
    return cache


@pytest.mark.parametrize(("prelude", "count"), [("", 30), (NO_LOCKS, 10)])
def test_two_processes_that_edit_at_once_lose_no_edit(edited, prelude, count):
    processes = [start(prelude + EDITS, edited.root, first, count) for first in (0, 30)]
    errors = [process.communicate(timeout=900)[1] for process in processes]
    assert errors == ["", ""]
    manifest = find_manifest(edited.layout, "photos")
    rows = [*range(count), *range(30, 30 + count)]
    assert len(manifest.edits) == len(rows)
    assert [manifest.label_names[row] for row in rows] == [f"class {row}" for row in rows]
    assert list(edited.layout.tmp.iterdir()) == []
    assert sorted(path.name for path in edited.layout.datasets.iterdir()) == [".lock", "photos.h5"]


def test_an_edit_is_done_again_to_what_somebody_else_wrote_meanwhile(edited):
    tries = []

    def slow(manifest):
        if not tries:
            edit_dataset(edited.layout, "photos", lambda m: relabel(m, paths={"a/0.jpg": "first"}))
        tries.append(len(manifest.edits))
        return relabel(manifest, paths={"a/1.jpg": "second"})

    before, after = edit_dataset(edited.layout, "photos", slow)
    assert tries == [0, 1]
    assert (len(before.edits), len(after.edits)) == (1, 2)
    assert find_manifest(edited.layout, "photos").classes == ("a", "first", "second")


def test_an_edit_that_never_comes_through_says_so(edited, monkeypatch):
    monkeypatch.setattr("featx.cache.datasets._ATTEMPTS", 5)

    def overtaken(manifest):
        write_manifest(edited.layout, manifest)
        return relabel(manifest, paths={"a/1.jpg": "b"})

    with pytest.raises(DatasetError, match="'photos' was changed by others 5 times"):
        edit_dataset(edited.layout, "photos", overtaken)
    assert find_manifest(edited.layout, "photos").edits == ()


def test_of_two_results_under_one_new_name_the_first_stays(edited, kit):
    def beaten(manifest):
        write_manifest(edited.layout, kit.dataset("all", manifest.key[:3]))
        return replace(manifest, name="all")

    with pytest.raises(DatasetError, match="has a dataset 'all' already: delete it first"):
        edit_dataset(edited.layout, "photos", beaten)
    assert len(find_manifest(edited.layout, "all")) == 3


def test_a_dataset_that_was_edited_while_it_is_renamed_keeps_the_edit(edited, monkeypatch):
    real, calls = replacing.FileVersion.held, []

    def held(version):
        if not calls:
            calls.append(version)
            edit_dataset(edited.layout, "photos", lambda m: relabel(m, classes={"a": "b"}))
        return real(version)

    monkeypatch.setattr(replacing.FileVersion, "held", held)
    rename_dataset(edited.layout, "photos", "more")
    assert manifest_names(edited.layout) == ["more"]
    assert find_manifest(edited.layout, "more").classes == ("b",)


def test_a_dataset_that_was_deleted_meanwhile_does_not_come_back(edited):
    def late(manifest):
        delete_dataset(edited.layout, "photos")
        return relabel(manifest, classes={"a": "b"})

    with pytest.raises(DatasetError, match="no dataset 'photos' in the cache"):
        edit_dataset(edited.layout, "photos", late)
    assert manifest_names(edited.layout) == []


HOLD = """
import sys, time
from pathlib import Path
from featx.cache.layout import locked
with locked(Path(sys.argv[1])):
    Path(sys.argv[1], "held").touch()
    sys.stdin.readline()
"""


@pytest.fixture
def holder(edited):
    """Another process that holds the lock until it is told to let go."""
    command = [sys.executable, "-c", HOLD, str(edited.layout.datasets)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, text=True) as process:
        while not (edited.layout.datasets / "held").exists():
            assert process.poll() is None
            time.sleep(0.01)
        yield process
        process.kill()


def test_a_process_killed_with_the_lock_leaves_none(edited, holder):
    holder.kill()
    holder.communicate()
    edit_dataset(edited.layout, "photos", lambda m: relabel(m, classes={"a": "b"}))
    assert list(edited.layout.tmp.iterdir()) == []


EVERY_CHANGE = {
    "edit": lambda cache: edit_dataset(
        cache.layout, "photos", lambda m: relabel(m, classes={"a": "b"})
    ),
    "rename": lambda cache: rename_dataset(cache.layout, "photos", "more"),
    "delete": lambda cache: delete_dataset(cache.layout, "photos"),
    "write": lambda cache: write_manifest(
        cache.layout, replace(find_manifest(cache.layout, "photos"), root="/elsewhere")
    ),
    "gc": lambda cache: cache.gc(older_than_s=0, dry_run=False),
}


@pytest.mark.parametrize("change", EVERY_CHANGE)
def test_nothing_is_changed_without_the_lock(edited, kit, holder, monkeypatch, change):
    keys, values = kit.rows(80)
    kit.fill(edited.root, keys[70:], values[70:])  # in no dataset: gc would remove them
    before = find_manifest(edited.layout, "photos"), kit.shards(edited)
    monkeypatch.setattr(replacing, "_PATIENCE_S", 0.05)
    with pytest.raises(CacheWriteError, match=rf"process {holder.pid} on .* has held the lock"):
        EVERY_CHANGE[change](edited)
    assert manifest_names(edited.layout) == ["photos"]
    assert same_manifest(find_manifest(edited.layout, "photos"), before[0])
    assert set(before[1]) <= set(kit.shards(edited))
    assert list(edited.layout.tmp.iterdir()) == []


def test_who_has_to_wait_says_for_whom_and_does_it_then(edited, holder, monkeypatch, caplog):
    monkeypatch.setattr(replacing, "_NOTICE_S", 0.05)
    thread = threading.Thread(target=EVERY_CHANGE["edit"], args=[edited])
    thread.start()
    while "waiting for" not in caplog.text:
        time.sleep(0.01)
    assert f"waiting for process {holder.pid} on" in caplog.text
    holder.communicate("go on\n")
    thread.join()
    assert find_manifest(edited.layout, "photos").classes == ("b",)


def test_an_edit_that_stalls_before_its_rename_undoes_no_other(edited, monkeypatch):
    stalled, go_on, real = threading.Event(), threading.Event(), Path.replace

    def stall(path, target):
        if not stalled.is_set():
            stalled.set()
            go_on.wait()
        return real(path, target)

    monkeypatch.setattr(Path, "replace", stall)
    slow = threading.Thread(target=EVERY_CHANGE["edit"], args=[edited])
    slow.start()
    stalled.wait()
    other = threading.Thread(
        target=edit_dataset,
        args=[edited.layout, "photos", lambda m: assign_splits(m, {"train": 0.5, "test": 0.5})],
    )
    other.start()
    other.join(0.2)
    assert other.is_alive()  # it waits for the lock
    go_on.set()
    slow.join()
    other.join()
    edits = [edit["edit"] for edit in find_manifest(edited.layout, "photos").edits]
    assert edits == ["relabel", "split"]


def test_nobody_who_only_looks_at_a_manifest_stops_an_edit(edited):
    with edited.layout.dataset("photos").open("rb") as viewer:
        fcntl.flock(viewer, fcntl.LOCK_SH)
        EVERY_CHANGE["edit"](edited)
    assert find_manifest(edited.layout, "photos").classes == ("b",)


def test_a_lock_file_left_by_a_kill_is_named(edited, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(replacing, "_PATIENCE_S", 0.05)
    left = edited.layout.datasets / ".lock-held"
    left.touch()
    with pytest.raises(CacheWriteError, match=r"if it has ended, remove .*\.lock-held"):
        EVERY_CHANGE["edit"](edited)
    left.unlink()
    EVERY_CHANGE["edit"](edited)
    rename_dataset(edited.layout, "photos", "more")
    assert manifest_names(edited.layout) == ["more"]


def test_a_lock_that_cannot_be_had_for_an_error_is_not_gone_on_without(edited, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(CacheWriteError, match="Input/output error"):
        EVERY_CHANGE["edit"](edited)


def test_a_version_that_was_replaced_is_not_moved_over(edited):
    with FileVersion(edited.layout.dataset("none")) as nothing:
        rename_dataset(edited.layout, "photos", "none")
        new = edited.root / "new"
        new.touch()
        with pytest.raises(Replaced, match=r"none\.h5"):
            nothing.move(new, edited.layout.dataset("none"))
    assert len(find_manifest(edited.layout, "none")) == 60


def test_who_waits_for_the_lock_sees_what_came_before(edited):
    path = edited.layout.dataset("photos")
    done = []

    def edit():
        try:
            edit_dataset(edited.layout, "photos", lambda m: relabel(m, classes={"a": "b"}))
        except DatasetError as error:
            done.append(str(error))

    with FileVersion(path) as version, version.held():
        thread = threading.Thread(target=edit)
        thread.start()
        time.sleep(0.2)
        assert not done
        path.unlink()
    thread.join(timeout=600)
    assert "no dataset 'photos' in the cache" in done[0]


def test_a_folder_in_which_nothing_can_be_written_is_an_error_of_writing(edited, monkeypatch):
    def refuse(*_):
        raise OSError(30, os.strerror(30))

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(CacheWriteError, match="Read-only file system"):
        edit_dataset(edited.layout, "photos", lambda m: relabel(m, classes={"a": "b"}))
    assert json.dumps(find_manifest(edited.layout, "photos").edits) == "[]"
