"""The loader: order, the line, the facts of each image, and threads that end."""

import hashlib
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from featx.exceptions import CacheError, DatasetError, ImageError
from featx.images import decode as decode_module
from featx.images import files
from featx.images import line as line_module
from featx.images.dataset import ImageDataset
from featx.images.decode import decode_image
from featx.images.files import array_key, image_key
from featx.images.line import Line, Loaded
from featx.images.loader import load_images
from featx.spec import ImagePolicy

TARGETS = [((16, 12), ImagePolicy()), ((8, 8), ImagePolicy(resize="crop", draft=True))]


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(30):
        size = (40 + 13 * (i % 5), 30 + i)
        noise = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
        (tmp_path / "ab"[i % 2]).mkdir(exist_ok=True)
        noise.resize(size).save(tmp_path / "ab"[i % 2] / f"{i:02d}.jpg")
    return tmp_path


def image_threads():
    return [t for t in threading.enumerate() if t.name.startswith("featx-images")]


@pytest.mark.parametrize("workers", [1, 2, 8, None])
def test_one_result_for_each_index_in_order(folder, workers):
    data = ImageDataset.from_folder(folder)
    indices = [*np.random.default_rng(1).permutation(30), 3, 3]
    got = list(load_images(data, indices, TARGETS, workers=workers))
    assert [row.index for row in got] == [int(i) for i in indices]
    for row in got:
        content = data.read(row.index)
        assert (row.status, row.reason) == ("decoded", "")
        assert row.key == hashlib.sha256(content).digest() == image_key(content)
        assert row.read_s >= 0
        assert row.decode_s > 0
        for pixels, (size, policy) in zip(row.pixels, TARGETS, strict=True):
            assert np.array_equal(pixels, decode_image(content, size, policy))
    assert not image_threads()


def test_whatever_happens_to_a_file_is_a_row(folder, monkeypatch):
    (folder / "a/00.jpg").unlink()
    (folder / "a/02.jpg").write_bytes(b"<html>")
    (folder / "a/04.jpg").write_bytes((folder / "a/04.jpg").read_bytes()[:300])
    (folder / "a/06.jpg").write_bytes(b"")
    (folder / "a/08.jpg").unlink()
    (folder / "a/08.jpg").mkdir()
    (folder / "a/10.jpg").unlink()
    os.mkfifo(folder / "a/10.jpg")
    paths = [folder / "a" / f"{i:02d}.jpg" for i in range(0, 30, 2)]
    data = ImageDataset.from_paths([*paths, "nul\0.jpg"])
    denied = data.file(6)

    def guarded(file, *args, **kwargs):
        if Path(file) == denied:
            raise PermissionError(13, "Permission denied", str(file))
        return open(file, *args, **kwargs)

    monkeypatch.setattr(files, "open", guarded, raising=False)
    got = list(load_images(data, range(len(data)), TARGETS))
    assert [row.index for row in got] == list(range(16))
    reasons = [row.reason for row in got]
    assert reasons[0] == "no such file"
    assert reasons[1] == "not an image (starts with b'<html>')"
    assert reasons[2].startswith("truncated: ")
    assert reasons[3] == "empty file (0 bytes)"
    assert reasons[4] == "expected a file, found a folder"
    assert reasons[5] == "expected a file, found a device or pipe"
    assert reasons[6] == "permission denied"
    assert set(reasons[7:15]) == {""}
    assert reasons[15].startswith("not a path: ")
    assert [row.status for row in got] == ["failed"] * 7 + ["decoded"] * 8 + ["failed"]
    assert [row.key is None for row in got[:7]] == [True, False, False, False, True, True, True]
    assert all(row.pixels == [] for row in got if row.status == "failed")


def test_lack_of_memory_and_foreign_errors_are_rows(folder, monkeypatch):
    def fail(data, targets, key):
        raise next(errors)

    errors = iter([MemoryError(), RuntimeError("odd")])
    monkeypatch.setattr(decode_module, "_decode", fail)
    data = ImageDataset.from_folder(folder)
    got = list(load_images(data, [0, 1], TARGETS, workers=1))
    assert [row.reason for row in got] == ["not enough memory to decode it", "RuntimeError: odd"]


def test_known_keys_are_not_decoded(folder):
    data = ImageDataset.from_folder(folder)
    keys = {image_key(data.read(i)) for i in range(0, 30, 3)}
    got = list(load_images(data, range(30), TARGETS, known=keys.__contains__))
    assert [row.status == "known" for row in got] == [i % 3 == 0 for i in range(30)]
    assert all((row.pixels == []) == (row.status == "known") for row in got)
    assert all(row.key is not None for row in got)


def test_an_error_of_the_callers_is_raised_not_hidden(folder):
    def known(key):
        raise CacheError("the cache is gone")

    with pytest.raises(CacheError, match="the cache is gone"):
        list(load_images(ImageDataset.from_folder(folder), range(30), TARGETS, known=known))
    assert not image_threads()


def test_arrays_and_their_keys():
    images = np.random.default_rng(0).integers(0, 256, (9, 6, 7, 3), dtype=np.uint8)
    data = ImageDataset.from_arrays(images).subset([8, 1, 2])
    got = list(load_images(data, range(3), TARGETS))
    for row, source in zip(got, images[[8, 1, 2]], strict=True):
        assert row.key == array_key(source)
        for pixels, (size, policy) in zip(row.pixels, TARGETS, strict=True):
            assert np.array_equal(pixels, decode_image(source, size, policy))
    assert len({row.key for row in got}) == 3
    odd = ImageDataset.from_arrays([np.full((2, 2), 0.5), np.full((2, 2), 7.0)])
    first, second = load_images(odd, range(2), TARGETS)
    assert first.status == "decoded"
    assert (second.status, second.reason[:30]) == ("failed", "float pixels must lie in [0, 1")


def test_keys_of_arrays_tell_shape_and_type():
    a = np.zeros((4, 4), np.uint8)
    others = [a.reshape(2, 8), a.reshape(4, 4, 1), a.astype(bool), a.astype(np.uint16), a + 1]
    assert len({array_key(x) for x in [a, *others]}) == 6
    assert len(array_key(a)) == 32
    assert array_key(a[::2, ::2]) == array_key(np.zeros((2, 2), np.uint8))
    b = np.arange(6, dtype="<u2").reshape(2, 3)
    assert array_key(b) == array_key(b.astype(">u2")) == array_key(np.asfortranarray(b))


def test_look_ahead_is_bounded(folder):
    data = ImageDataset.from_folder(folder)
    asked = itertools.count()
    seen = []

    def endless():
        for n in asked:
            seen.append(n)
            yield n % 30

    stream = load_images(data, endless(), TARGETS, workers=2, ahead=16)
    for taken in range(1, 101):
        next(stream)
        assert len(seen) <= taken + 16 + 4
    stream.close()
    assert not image_threads()


def test_large_pixels_are_held_in_smaller_numbers(folder):
    data = ImageDataset.from_folder(folder)
    for side, most in ((64, 64), (2000, 44), (9000, 4)):
        seen = []
        indices = (seen.append(n) or n % 30 for n in itertools.count())
        stream = load_images(
            data, indices, [((side, side), ImagePolicy())], known=lambda key: True, workers=2
        )
        next(stream)
        assert most - 4 <= len(seen) <= most + 1
        stream.close()


def test_closing_stops_the_threads_promptly(folder):
    data = ImageDataset.from_folder(folder)
    slow = threading.Event()

    def known(key):
        slow.wait(0.05)
        return True

    stream = load_images(data, itertools.cycle(range(30)), TARGETS, known=known, ahead=256)
    next(stream)
    # The images have no end, so that closing cannot wait for one.
    stream.close()
    assert not image_threads()


def test_an_interrupt_passes_through_and_ends_the_process(folder):
    code = f"""
import itertools
from featx.images.dataset import ImageDataset
from featx.images.loader import load_images
from featx.spec import ImagePolicy
data = ImageDataset.from_folder({str(folder)!r})
rows = load_images(data, itertools.cycle(range(30)), [((64, 64), ImagePolicy())])
try:
    for i, _ in enumerate(rows):
        if i == 50:
            print("running", flush=True)
except KeyboardInterrupt:
    rows.close()
    print("interrupted", flush=True)
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=env) as process:
        assert process.stdout.readline() == b"running\n"
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=900)
    assert (process.returncode, out) == (0, b"interrupted\n")


def test_load_truncated_images_is_refused_once(folder, monkeypatch):
    data = ImageDataset.from_folder(folder)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(ImageError, match="LOAD_TRUNCATED_IMAGES is set in this process"):
        load_images(data, range(2), TARGETS)


def test_wrong_settings(folder):
    data = ImageDataset.from_folder(folder)
    for setting in ({"workers": 0}, {"ahead": 0}):
        with pytest.raises(DatasetError, match="workers and ahead must be at least 1"):
            load_images(data, [0], TARGETS, **setting)
    assert list(load_images(data, [], TARGETS)) == []
    (row,) = load_images(data, [99], TARGETS)
    assert (row.index, row.status) == (99, "failed")


def test_importing_loads_no_more_than_is_needed(run_python):
    code = "import sys, {}; print([m for m in {} if m in sys.modules])"
    libraries = ["PIL", "h5py", "tensorflow", "keras", "sklearn"]
    assert run_python(code.format("featx.images", libraries)).stdout == "[]\n"
    # What a process that decodes has no use for.
    others = [*libraries[1:], "scipy", "csv", "zipfile", "multiprocessing", "concurrent"]
    worker = code.format("featx.images.worker_main, PIL.Image", [*others, "featx.images.dataset"])
    assert run_python(worker).stdout == "[]\n"


SMALL = [((8, 8), ImagePolicy())]


@pytest.fixture
def images(tmp_path, draw_photo):
    for i in range(12):
        draw_photo(tmp_path, f"{i:02d}.jpg", seed=i, colour=(90, 120, 60))
    return ImageDataset.from_folder(tmp_path, labels="none")


def failed(index):
    return Loaded(index=index, key=None, status="failed")


def serve(line, held_up=(), gate=None):
    """Do what the line asks for; wait at some images for the gate."""

    def work():
        while tasks := line.take():
            for place, image in tasks:
                if image in held_up:
                    gate.wait(600)
                line.give([(place, failed(image))])

    thread = threading.Thread(target=work)
    thread.start()
    return thread


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(line_module, "_PATIENCE_S", 0.05)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize(("ahead", "chunk"), [(1, 4), (4, 4), (10, 4), (64, 1)])
def test_everything_comes_once_and_in_order(workers, ahead, chunk):
    line = Line(iter(range(200)), ahead=ahead, chunk=chunk)
    threads = [serve(line) for _ in range(workers)]
    assert [row.index for row in line] == list(range(200))
    line.close()
    for thread in threads:
        thread.join(600)
        assert not thread.is_alive()


def test_an_image_that_holds_up_the_rest_is_overtaken(impatient):
    gate = threading.Event()
    line = Line(iter(range(200)), ahead=16, chunk=4)
    threads = [serve(line, {5}, gate) for _ in range(2)]
    got = []
    for row in line:
        got.append(row.index)
        if len(got) == 150:
            gate.set()
    assert sorted(got) == list(range(200))
    late = [5, 6, 7]
    assert [i for i in got if i not in late] == [i for i in range(200) if i not in late]
    assert min(got.index(i) for i in late) >= 150
    line.close()
    for thread in threads:
        thread.join(600)


def test_the_window_stays_bounded_while_images_are_overtaken(impatient):
    gate = threading.Event()
    asked = itertools.count()
    seen = []

    def endless():
        for n in asked:
            seen.append(n)
            yield n

    line = Line(endless(), ahead=16, chunk=4)
    threads = [serve(line, {0, 9}, gate) for _ in range(3)]
    for taken, _ in enumerate(itertools.islice(line, 100), 1):
        assert len(seen) <= taken + 16
    gate.set()
    line.close()
    for thread in threads:
        thread.join(600)


def test_the_last_images_do_not_wait_for_a_slow_one_either(impatient):
    gate = threading.Event()
    line = Line(iter(range(8)), ahead=64, chunk=1)
    threads = [serve(line, {2}, gate) for _ in range(2)]
    stream = iter(line)
    assert [next(stream).index for _ in range(7)] == [0, 1, 3, 4, 5, 6, 7]
    gate.set()
    assert [row.index for row in stream] == [2]
    line.close()
    for thread in threads:
        thread.join(600)


def test_a_slow_consumer_gets_everything_in_order(impatient):
    line = Line(iter(range(40)), ahead=8, chunk=2)
    threads = [serve(line) for _ in range(3)]
    got = []
    for row in line:
        got.append(row.index)
        if row.index % 10 == 0:
            time.sleep(0.12)
    assert got == list(range(40))
    line.close()
    for thread in threads:
        thread.join(600)


def test_an_error_ends_the_line():
    line = Line(iter(range(8)), ahead=8, chunk=1)
    line.fail(RuntimeError("gone"))
    line.fail(RuntimeError("later"))
    with pytest.raises(RuntimeError, match="gone"):
        list(line)
    line.close()
    assert line.take() is None


def test_one_slow_file_does_not_stall_the_others(images, monkeypatch, impatient):
    # As a file on a network drive that does not answer.
    gate, read = threading.Event(), ImageDataset.read

    def slow(self, index):
        if index == 1:
            gate.wait(600)
        return read(self, index)

    monkeypatch.setattr(ImageDataset, "read", slow)
    order = [*range(12), *[2, 3, 4, 5, 6] * 6]
    stream = load_images(images, order, SMALL, workers=2, ahead=8)
    got = [next(stream).index for _ in range(len(order) - 2)]
    assert 1 not in got
    gate.set()
    got += [row.index for row in stream]
    assert sorted(got) == sorted(order)
