"""Worker processes: the same results, and whatever ends one costs a single image."""

import itertools
import logging
import os
import signal
import site
import subprocess
import sys
import threading
import time
import venv
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featx.exceptions import CacheError, DatasetError
from featx.images import loader
from featx.images.dataset import ImageDataset
from featx.images.decode import Target
from featx.images.loader import ProcessWorker, WorkerProcess, load_images
from featx.spec import ImagePolicy, ViewPolicy

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and /proc")

TARGETS = [
    ((16, 12), ImagePolicy()),
    Target((8, 8), ImagePolicy(resize="crop", draft=True), ViewPolicy()),
]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(40):
        noise = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
        noise.resize((40 + 13 * (i % 5), 30 + i)).save(folder / f"{i:02d}.jpg")
    return folder


@pytest.fixture
def start_up_file(tmp_path, monkeypatch):
    """A function that has Python run code at the start of every process from now on.

    The code lies in an environment of its own, as what a folder or a variable offers is ignored.
    """

    def write(code):
        venv.create(tmp_path / "start", with_pip=False)
        (packages,) = (tmp_path / "start").glob("lib/python*/site-packages")
        installed = [*site.getsitepackages(), str(Path(np.__file__).parents[1])]
        (packages / "here.pth").write_text("\n".join(installed))
        (packages / "sitecustomize.py").write_text(code)
        monkeypatch.setattr(sys, "executable", str(tmp_path / "start/bin/python"))

    return write


def children(parent=None):
    """Processes that this one has, dead ones among them."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == (parent or os.getpid()):
            found.append(int(stat.parent.name))
    return found


def shared_blocks():
    """Blocks of memory that this process shares, by what it has open."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            found.append(os.readlink(f"/proc/self/fd/{name}"))
    return [name for name in found if "featx-images" in name]


@pytest.fixture(autouse=True)
def nothing_is_left():
    before = set(children()), shared_blocks(), len(os.listdir("/proc/self/fd"))
    yield
    assert set(children()) <= before[0]
    assert shared_blocks() == before[1]
    assert len(os.listdir("/proc/self/fd")) <= before[2]
    assert not [t for t in threading.enumerate() if t.name.startswith("featx-images")]


def facts(row):
    return row.index, row.key, row.status, row.reason, [p.tobytes() for p in row.pixels]


def test_processes_and_threads_give_the_same(folder):
    (folder / "02.jpg").write_bytes(b"<html>")
    (folder / "04.jpg").write_bytes((folder / "04.jpg").read_bytes()[:300])
    (folder / "06.jpg").write_bytes(b"")
    (folder / "08.jpg").unlink()
    (folder / "08.jpg").mkdir()
    odd = os.fsdecode(b"caf\xe9 \xff.jpg")
    (folder / "10.jpg").rename(folder / odd)
    names = [f"{i:02d}.jpg" for i in range(40) if i != 10]
    paths = [*(folder / name for name in [*names, odd]), "nul\0.jpg", "gone.jpg"]
    data = ImageDataset.from_paths(paths)
    indices = [*np.random.default_rng(1).permutation(len(data)), 3, 3, 99]
    expected = list(load_images(data, indices, TARGETS, isolate=False))
    for workers in (1, 3):
        got = list(load_images(data, indices, TARGETS, workers=workers, isolate=True))
        assert [facts(row) for row in got] == [facts(row) for row in expected]
        assert all(row.decode_s > 0 for row in got if row.status == "decoded")
        assert all(row.read_s > 0 for row in got if row.key is not None)
        assert all(p.flags.writeable and p.flags.owndata for row in got for p in row.pixels)


def test_keys_are_asked_for_here_and_once(folder):
    data = ImageDataset.from_folder(folder, labels="none")
    asked = []

    def known(key):
        asked.append(key)
        return len(asked) % 3 == 0

    got = list(load_images(data, range(40), TARGETS, known=known, workers=2, isolate=True))
    assert sorted(asked) == sorted(row.key for row in got)
    assert sum(row.status == "known" for row in got) == 13
    assert all((row.pixels == []) == (row.status == "known") for row in got)

    def broken(key):
        raise CacheError("the cache is gone")

    with pytest.raises(CacheError, match="the cache is gone"):
        list(load_images(data, range(40), TARGETS, known=broken, isolate=True))


def test_a_few_files_and_arrays_are_left_to_threads(folder, monkeypatch):
    started = []
    start = WorkerProcess.__init__

    def noted(self, *args):
        started.append(self)
        start(self, *args)

    monkeypatch.setattr(WorkerProcess, "__init__", noted)
    data = ImageDataset.from_folder(folder, labels="none")
    arrays = ImageDataset.from_arrays(np.zeros((4, 8, 8, 1), np.uint8))
    assert len(list(load_images(data, range(40), TARGETS))) == 40
    assert len(list(load_images(arrays, [0, 1], TARGETS, isolate=True))) == 2
    assert not started
    monkeypatch.setattr(loader, "_ENOUGH_FOR_PROCESSES", 40)
    assert len(list(load_images(data, iter(range(40)), TARGETS))) == 40
    assert len(list(load_images(data, range(39), TARGETS))) == 39
    assert not started
    assert len(list(load_images(data, range(40), TARGETS, workers=2))) == 40
    assert len(started) in (1, 2)


def test_a_process_that_is_killed_costs_the_image_it_was_on(folder, monkeypatch):
    # A second of decoding: 36 million pixels of noise.
    noise = np.random.default_rng(0).integers(0, 256, (6000, 6000), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "17.png", compress_level=1)
    (folder / "17.jpg").unlink()
    data = ImageDataset.from_folder(folder, labels="none")
    large = [Path(path).name for path in data.paths].index("17.png")
    expected = {row.index: row for row in load_images(data, range(40), TARGETS, isolate=False)}
    killed = []
    start = ProcessWorker.__init__

    def watched(self, *args):
        start(self, *args)
        threading.Thread(target=kill, args=(self,), daemon=True).start()

    def kill(worker):
        while not killed:
            time.sleep(0.005)
            item = worker._items.get(large)
            memory = item and item.key and worker._process._memory
            if memory and memory[:8] == large.to_bytes(8, "little"):
                killed.append(large)
                worker.kill()

    monkeypatch.setattr(ProcessWorker, "__init__", watched)
    got = list(load_images(data, range(40), TARGETS, workers=2, isolate=True))
    assert killed == [large]
    assert sorted(row.index for row in got) == list(range(40))
    by_index = {row.index: row for row in got}
    failed = by_index.pop(large)
    assert (failed.status, failed.pixels, failed.key) == ("failed", [], expected[large].key)
    assert failed.reason == ("the decoder ended its process (signal 9, often for lack of memory)")
    assert all(facts(row) == facts(expected[i]) for i, row in by_index.items())


CRASHING_PLUGIN = """
import faulthandler, os
import PIL.BmpImagePlugin
def load(self):
    {how}
PIL.BmpImagePlugin.BmpImageFile.load = load
"""


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("faulthandler._sigsegv()", "signal 11"),
        ("os.abort()", "signal 6"),
        ("os._exit(3)", "exit status 3"),
    ],
)
def test_every_decoder_that_crashes_costs_its_own_image(folder, start_up_file, how, reason):
    for i in (0, 1, 20, 39):
        Image.open(folder / f"{i:02d}.jpg").save(folder / f"{i:02d}.bmp")
        (folder / f"{i:02d}.jpg").unlink()
    data = ImageDataset.from_folder(folder, labels="none")
    expected = list(load_images(data, range(40), TARGETS, isolate=False))
    asked = []

    def known(key):
        # As the runner does: what was asked for once is as good as known.
        asked.append(key)
        return asked.count(key) > 1

    start_up_file(CRASHING_PLUGIN.format(how=how))
    got = list(load_images(data, range(40), TARGETS, known=known, workers=2, isolate=True))
    assert sorted(row.index for row in got) == list(range(40))
    for row in got:
        if data.paths[row.index].endswith(".bmp"):
            assert (row.status, row.pixels) == ("failed", [])
            assert row.reason == f"the decoder ended its process ({reason})"
            assert row.key == expected[row.index].key
        else:
            assert facts(row) == facts(expected[row.index])


def wait_until_asleep(process):
    looks_asleep = 0
    while looks_asleep < 20:
        status = Path(f"/proc/{process}/stat").read_text("utf-8")
        looks_asleep = looks_asleep + 1 if status.rsplit(")", 1)[1].split()[0] == "S" else 0
        time.sleep(0.01)


def test_a_process_that_dies_between_images_is_replaced(folder):
    data = ImageDataset.from_folder(folder, labels="none")
    expected = list(load_images(data, range(40), TARGETS, isolate=False))
    asked = []

    def known(key):
        # It has read what it was given, waits for the answer, and is on no image.
        asked.append(key)
        if len(asked) == 1:
            for child in children():
                wait_until_asleep(child)
                os.kill(child, signal.SIGKILL)
        return False

    got = list(load_images(data, range(40), TARGETS, known=known, workers=1, isolate=True))
    assert [facts(row) for row in got] == [facts(row) for row in expected]


def test_a_start_up_file_that_prints_does_no_harm(folder, start_up_file):
    data = ImageDataset.from_folder(folder, labels="none")
    start_up_file("print('welcome')\nimport os\nos.write(1, b'and again\\n')\n")
    got = list(load_images(data, range(40), TARGETS, workers=1, isolate=True))
    assert {row.status for row in got} == {"decoded"}


TRAPS = ("json", "struct", "numpy", "PIL", "featx", "pillow_heif", "defusedxml", "ntpath")


@pytest.mark.parametrize("search", ["", ".", "photos", ":", None])
def test_nothing_in_a_folder_of_images_is_run(folder, monkeypatch, search):
    """Neither modules named like those of Python and featx, nor start-up files."""
    for name in (*TRAPS, "sitecustomize", "usercustomize"):
        (folder / f"{name}.py").write_text("open('/proc/self/cwd/ran-' + __name__, 'w')\n")
    (folder / "trap.pth").write_text("import json, struct\n")
    (folder / "broken.avif").write_bytes(b"\0\0\0\x14ftypheic\0\0\0\0heic" + bytes(64))
    monkeypatch.chdir(folder)
    if search is not None:
        monkeypatch.setenv("PYTHONPATH", search.replace("photos", str(folder)))
    for extra in ("", ".", str(folder)):
        monkeypatch.syspath_prepend(extra)
    data = ImageDataset.from_paths(sorted(folder.glob("*.[aj][vp]*")))
    got = list(load_images(data, range(len(data)), TARGETS, workers=1, isolate=True))
    assert [row.status for row in got].count("decoded") == 40
    assert sorted(folder.glob("ran-*")) == []


def test_processes_use_the_very_packages_of_this_one(folder, tmp_path):
    """Pillow of the user's own folder decodes there too, also where another one is installed."""
    own = tmp_path / "own"
    own.mkdir()
    (own / "PIL").symlink_to(Path(Image.__file__).parent)
    (own / "featx").symlink_to(ROOT / "featx")
    (folder / "script.py").write_text(
        "from featx.images.dataset import ImageDataset\n"
        "from featx.images.loader import load_images\n"
        "from featx.images import loader\n"
        "from featx.spec import ImagePolicy\n"
        "data = ImageDataset.from_folder('.', labels='none')\n"
        "rows = load_images(data, range(9), [((8, 8), ImagePolicy())], isolate=True)\n"
        "print({row.status for row in rows}, loader._package_folders()['PIL'])\n"
    )
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(own)},
        capture_output=True,
        text=True,
    )
    assert (done.stdout.strip(), done.stderr) == (f"{{'decoded'}} {own}", "")


def test_without_processes_threads_do_the_work(folder, monkeypatch, caplog):
    data = ImageDataset.from_folder(folder, labels="none")
    monkeypatch.setattr(loader, "_ENOUGH_FOR_PROCESSES", 1)
    for executable in ("/bin/false", "/no/such/python", ""):
        monkeypatch.setattr(sys, "executable", executable)
        caplog.clear()
        with caplog.at_level(logging.WARNING, "featx"):
            got = list(load_images(data, range(40), TARGETS, workers=2))
        assert {row.status for row in got} == {"decoded"}
        (record,) = caplog.records
        assert record.getMessage().startswith("images are decoded in this process, as no other")
        with pytest.raises(DatasetError, match="expected to start a process.* leave isolate=True"):
            list(load_images(data, range(40), TARGETS, isolate=True))


def test_the_users_own_limit_of_pixels_holds(folder, monkeypatch):
    data = ImageDataset.from_folder(folder, labels="none")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    (row,) = load_images(data, [0], TARGETS, isolate=True)
    assert row.reason == "too large: 40x30 pixels, the limit is 100 pixels: make it smaller"


def test_closing_ends_the_processes_promptly(folder):
    data = ImageDataset.from_folder(folder, labels="none")
    # Without an end, so that closing cannot wait for one.
    endless = itertools.cycle(range(40))
    before = set(children())
    stream = load_images(data, endless, TARGETS, workers=3, isolate=True)
    next(stream)
    assert set(children()) > before
    stream.close()
    assert set(children()) <= before


SCRIPT = """
import itertools, sys
from featx.images.dataset import ImageDataset
from featx.images.loader import load_images
from featx.spec import ImagePolicy
print("started", flush=True)
data = ImageDataset.from_folder({folder!r}, labels="none")
rows = load_images(data, {indices}, [((64, 64), ImagePolicy())], workers=2, isolate=True)
try:
    for n, row in enumerate(rows):
        assert row.status == "decoded", row.reason
        if n == 50:
            print("running", flush=True)
except KeyboardInterrupt:
    rows.close()
    print("interrupted", flush=True)
print("ended", flush=True)
"""


def environment():
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}


@pytest.mark.parametrize("way", ["file", "-c", "stdin"])
def test_scripts_need_no_guard(folder, tmp_path, way):
    code = SCRIPT.format(folder=str(folder), indices="list(range(40)) * 2")
    (tmp_path / "script.py").write_text(code)
    arguments = {"file": ["script.py"], "-c": ["-c", code], "stdin": ["-"]}[way]
    done = subprocess.run(
        [sys.executable, *arguments],
        input=code if way == "stdin" else "",
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert (done.stdout, done.stderr) == ("started\nrunning\nended\n", "")


@pytest.mark.parametrize("how", ["interrupt", "kill", "leave"])
def test_no_process_outlives_its_parent(folder, how):
    code = SCRIPT.format(folder=str(folder), indices="itertools.cycle(range(40))")
    if how == "leave":
        code = code.replace('print("running", flush=True)', 'sys.exit(print("running"))')
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
        start_new_session=True,
        text=True,
    ) as process:
        assert process.stdout.readline() == "started\n"
        if how != "leave":
            assert process.stdout.readline() == "running\n"
        workers = children(process.pid)
        if how == "interrupt":
            # As a terminal does: to the whole group.
            os.killpg(process.pid, signal.SIGINT)
        elif how == "kill":
            process.kill()
        out, err = process.communicate(timeout=900)
    expected = {"interrupt": "interrupted\nended\n", "kill": "", "leave": "running\n"}
    assert (out, err) == (expected[how], "")
    deadline = time.monotonic() + 600
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert how == "leave" or len(workers) == 2
