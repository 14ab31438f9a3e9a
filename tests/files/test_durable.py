"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import os

import pytest

from featx.files import outputs as durable
from featx.files.outputs import flush, flush_names, written_whole


def failing(number):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    return fail


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with written_whole(target) as path:
        path.write_text("new")
        assert target.read_text() == "old"
        assert path.parent == tmp_path
    assert target.read_text() == "new"

    def stopped():
        with written_whole(target) as path:
            path.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert target.read_text() == "new"
    assert [one.name for one in tmp_path.iterdir()] == ["a.txt"]


def test_a_name_as_long_as_a_name_may_be(tmp_path):
    for name in ("a" * 255, "蟻" * 85):
        with written_whole(tmp_path / name) as path:
            path.write_text("new")
        assert (tmp_path / name).read_text() == "new"


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="asks Linux what was flushed")
def test_everything_is_flushed_before_it_is_renamed_and_the_name_after(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(os, "fsync", lambda d: seen.append(os.readlink(f"/proc/self/fd/{d}")))
    target = tmp_path / "a.txt"
    with written_whole(target) as path:
        path.write_text("new")
    assert seen == [str(path), str(tmp_path)]
    seen.clear()
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "b.txt").touch()
    flush(tmp_path / "deep")
    assert seen == [str(tmp_path / name) for name in ("deep/er/b.txt", "deep/er", "deep")]


def test_a_disk_that_fails_is_an_error_and_a_folder_that_cannot_be_flushed_none(
    tmp_path, monkeypatch
):
    target = tmp_path / "a.txt"
    monkeypatch.setattr(os, "fsync", failing(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"), written_whole(target) as path:
        path.touch()
    assert not list(tmp_path.iterdir())
    with pytest.raises(OSError, match="Input/output error"):
        flush_names(tmp_path)
    monkeypatch.setattr(os, "fsync", failing(errno.EINVAL))  # as some network file systems do
    flush_names(tmp_path)
    target.touch()
    with pytest.raises(OSError, match="Invalid argument"):
        flush(target)
    monkeypatch.setattr(durable, "_FOLDERS_OPEN", False)  # as on Windows
    monkeypatch.setattr(os, "open", failing(errno.EACCES))
    flush_names(tmp_path)
