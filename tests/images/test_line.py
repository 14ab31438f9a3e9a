"""The line: in order, bounded, and not held up by one slow image."""

import itertools
import threading
import time

import pytest

from featx.images import line as line_module
from featx.images.dataset import ImageDataset
from featx.images.line import Line, Loaded
from featx.images.loader import load_images
from featx.spec import ImagePolicy

TARGETS = [((8, 8), ImagePolicy())]


@pytest.fixture
def images(tmp_path, draw_photo):
    for i in range(12):
        draw_photo(tmp_path, f"{i:02d}.jpg", seed=i, colour=(90, 120, 60))
    return ImageDataset.from_folder(tmp_path, labels="none")


def loaded(index):
    return Loaded(index=index, key=None, status="failed")


def serve(line, held_up=(), gate=None):
    """Do what the line asks for; wait at some images for the gate."""

    def work():
        while tasks := line.take():
            for place, image in tasks:
                if image in held_up:
                    gate.wait(120)
                line.give([(place, loaded(image))])

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
        thread.join(120)
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
        thread.join(120)


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
        thread.join(120)


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
        thread.join(120)


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
        thread.join(120)


def test_an_error_ends_the_line():
    line = Line(iter(range(8)), ahead=8, chunk=1)
    line.fail(RuntimeError("gone"))
    line.fail(RuntimeError("later"))
    with pytest.raises(RuntimeError, match="gone"):
        list(line)
    line.close()
    assert line.take() is None


def test_one_slow_file_does_not_stall_the_others(images, monkeypatch):
    # As a file on a network drive that does not answer.
    gate, read = threading.Event(), ImageDataset.read

    def slow(self, index):
        if index == 1:
            gate.wait(120)
        return read(self, index)

    monkeypatch.setattr(ImageDataset, "read", slow)
    order = [*range(12), *[2, 3, 4, 5, 6] * 6]
    stream = load_images(images, order, TARGETS, workers=2, ahead=8)
    got = [next(stream).index for _ in range(len(order) - 2)]
    assert 1 not in got
    gate.set()
    got += [row.index for row in stream]
    assert sorted(got) == sorted(order)
