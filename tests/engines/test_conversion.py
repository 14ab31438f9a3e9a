"""Conversions that are kept: found again, and never used when anything about them is wrong."""

import json
import logging
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

from featx.backbones.source import resolve_backbone
from featx.engines import openvino as engine_module
from featx.engines.openvino import OpenVinoEngine, StoredConversion
from featx.exceptions import BackboneError, EngineError

TAPS = ("avg", "stem:max")
WARM = """
import sys, time
from pathlib import Path
import numpy as np
from featx.backbones.source import resolve_backbone
from featx.engines.openvino import OpenVinoEngine
source = resolve_backbone({name!r})
engine = OpenVinoEngine(source, ("avg",), folder=Path({folder!r}))
images = np.random.default_rng(0).integers(0, 256, (32, *source.input_size_px, 3), dtype=np.uint8)
np.save({out!r}, engine.run(images)["avg"])
print(*sorted({{"keras", "tensorflow"}} & set(sys.modules)))
"""
LIMITED = """
import logging, resource, sys
from pathlib import Path
import numpy as np
from featx.backbones.source import resolve_backbone
from featx.engines.openvino import OpenVinoEngine
logging.basicConfig(format="%(message)s")
source = resolve_backbone({name!r})
from featx.quiet import quiet_import
with quiet_import():
    import keras
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
engine = OpenVinoEngine(source, ("avg",), folder=Path({folder!r}))
print(engine.run(np.zeros((2, 24, 32, 3), np.uint8))["avg"].shape)
"""


@pytest.fixture(scope="module")
def converted(source, tmp_path_factory):
    """A folder with one conversion; to be copied, not changed."""
    folder = tmp_path_factory.mktemp("conversions")
    OpenVinoEngine(source, TAPS, folder=folder)
    return folder


@pytest.fixture
def folder(converted, tmp_path):
    return shutil.copytree(converted, tmp_path / "engines")


@pytest.fixture
def expected(source, converted, pixels):
    return OpenVinoEngine(source, TAPS, folder=converted).run(pixels(4))


@pytest.fixture
def conversions(monkeypatch):
    """Count the conversions that are made."""
    made = []
    usual = engine_module.convert

    def convert(*args):
        made.append(args)
        return usual(*args)

    monkeypatch.setattr(engine_module, "convert", convert)
    return made


def only(folder):
    (place,) = folder.iterdir()
    return place


def flip(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 4
    path.write_bytes(data)


def test_a_conversion_is_found_again(source, folder, expected, pixels, conversions, caplog):
    with caplog.at_level(logging.INFO, "featx"):
        out = OpenVinoEngine(source, TAPS, folder=folder).run(pixels(4))
    for tap, values in expected.items():
        np.testing.assert_array_equal(out[tap], values)
    assert (conversions, caplog.records) == ([], [])


def test_what_is_kept_says_what_it_is(source, folder, keras):
    place = only(folder)
    assert place.name.startswith("file-small-")
    assert {path.name for path in place.iterdir()} == {
        "conversion.json",
        "model.xml",
        "model.bin",
    }
    stated = json.loads((place / "conversion.json").read_text("utf-8"))
    assert (stated["type"], stated["version"]) == ("featx-openvino-conversion", 1)
    assert stated["weights_sha256"] == source.weights.sha256
    assert (stated["taps"], stated["keras"]) == (list(TAPS), keras.__version__)
    assert 'element_type="f16"' not in (place / "model.xml").read_text("utf-8")


def edit(path, old, new):
    path.write_text(path.read_text("utf-8").replace(old, new), "utf-8")


def a_folder_in_its_place(place):
    (place / "model.bin").unlink()
    (place / "model.bin").mkdir()


def empty(place):
    shutil.rmtree(place)
    place.mkdir()


DAMAGE = {
    "weights": lambda place: flip(place / "model.bin", 100),
    "graph": lambda place: edit(place / "model.xml", 'strides="2, 2"', 'strides="1, 1"'),
    "cut weights": lambda place: os.truncate(place / "model.bin", 100),
    "lost weights": lambda place: (place / "model.bin").unlink(),
    "lost description": lambda place: (place / "conversion.json").unlink(),
    "no json": lambda place: (place / "conversion.json").write_text("{" * 100_000, "utf-8"),
    "binary": lambda place: (place / "conversion.json").write_bytes(b"\xff\xfe\x00"),
    "of other taps": lambda place: edit(place / "conversion.json", "stem:max", "stem:avg"),
    "a folder in its place": a_folder_in_its_place,
    "empty": empty,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_conversion_is_made_again(
    damage, source, folder, expected, pixels, conversions, caplog
):
    DAMAGE[damage](only(folder))
    with caplog.at_level(logging.WARNING, "featx"):
        out = OpenVinoEngine(source, TAPS, folder=folder).run(pixels(4))
    for tap, values in expected.items():
        np.testing.assert_allclose(out[tap], values, rtol=1e-5, atol=1e-6)
    assert len(conversions) == 1
    (message,) = caplog.messages
    assert "is damaged" in message
    assert str(only(folder)) in message
    OpenVinoEngine(source, TAPS, folder=folder)
    assert len(conversions) == 1


def test_any_changed_bit_is_seen(source, folder):
    place = StoredConversion.of(folder, source, TAPS)
    assert place.is_whole()
    generator = np.random.default_rng(0)
    for name in ("conversion.json", "model.xml", "model.bin"):
        path = place.folder / name
        for position in generator.integers(0, path.stat().st_size, 20):
            flip(path, position)
            assert not place.is_whole(), (name, position)
            flip(path, position)
    assert place.is_whole()


def test_a_conversion_that_openvino_cannot_read_is_made_again(
    source, folder, conversions, monkeypatch, caplog
):
    usual = OpenVinoEngine._load
    asked = []

    def load(engine, model):
        asked.append(model)
        if len(asked) == 1:  # stands for a defect of the library's
            raise EngineError("reading the network with OpenVINO failed: no")
        usual(engine, model)

    monkeypatch.setattr(OpenVinoEngine, "_load", load)
    with caplog.at_level(logging.WARNING, "featx"):
        OpenVinoEngine(source, TAPS, folder=folder)
    assert len(conversions) == 1
    assert "converting again" in caplog.text


def test_everything_that_decides_the_graph_decides_the_place(source, monkeypatch, tmp_path):
    def name(source=source, taps=TAPS):
        return StoredConversion.of(tmp_path, source, taps).folder.name

    usual = resolve_backbone("mobilenet_v2", weights="random:0", input_size=96)
    names = {
        name(),
        name(taps=("avg",)),
        name(taps=TAPS[::-1]),
        name(resolve_backbone(f"file:{source.weights.path}")),
        name(usual),
        name(resolve_backbone("mobilenet_v2", weights="random:1", input_size=96)),
        name(resolve_backbone("mobilenet_v2", weights="random:0", input_size=(96, 128))),
        name(resolve_backbone("mobilenet", weights="random:0", input_size=96)),
    }
    for package in ("keras", "openvino"):
        versions = {"keras": "1", "openvino": "1", package: "2"}
        monkeypatch.setattr(engine_module, "version", versions.get)
        names.add(name())
    assert len(names) == 10
    assert name() == name()
    assert all(not set(part) & set(":/\\ ") for part in names)


def test_a_name_that_is_no_file_name_is_kept_all_the_same(source, tmp_path, pixels):
    path = tmp_path / "my net: größer?.keras"
    shutil.copy(source.weights.path, path)
    named = resolve_backbone(f"file:{path}", preprocessing="tf")
    OpenVinoEngine(named, ("avg",), folder=tmp_path / "engines")
    assert only(tmp_path / "engines").name.isascii()


def test_a_folder_that_cannot_be_written_is_named_once(source, expected, pixels, tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    folder = tmp_path / "file" / "engines"
    with caplog.at_level(logging.WARNING, "featx"):
        for _ in range(2):
            out = OpenVinoEngine(source, TAPS, folder=folder).run(pixels(4))
    for tap, values in expected.items():
        np.testing.assert_allclose(out[tap], values, rtol=1e-5, atol=1e-6)
    (message,) = caplog.messages
    assert f"cannot be kept in {folder}" in message


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="limits of a process are POSIX's")
def test_a_disk_that_is_full_costs_nothing_but_the_conversion(source, tmp_path, run_python):
    folder = tmp_path / "engines"
    name = f"file:{source.weights.path}"
    done = run_python(LIMITED.format(name=name, folder=str(folder)))
    assert done.stdout == "(2, 6)\n"
    assert f"cannot be kept in {folder}" in done.stderr
    assert "every start converts anew" in done.stderr
    assert not list(folder.iterdir())


def test_of_two_that_keep_the_same_at_once_one_stays(source, converted, tmp_path):
    place = StoredConversion.of(tmp_path, source, TAPS)
    whole = only(converted)
    with place.writing() as first, place.writing() as second:
        for model in (first, second):
            for name in ("model.xml", "model.bin"):
                shutil.copy(whole / name, model.parent / name)
    assert place.is_whole()
    assert only(tmp_path) == place.folder


def test_what_a_killed_process_left_is_removed_after_a_day(source, tmp_path):
    old, new = tmp_path / ".tmp-old", tmp_path / ".tmp-new"
    for left in (old, new):
        left.mkdir()
        (left / "model.bin").write_bytes(b"half")
    os.utime(old, (time.time() - 90_000,) * 2)
    OpenVinoEngine(source, TAPS, folder=tmp_path)
    assert not old.exists()
    assert new.exists()


def test_processes_that_convert_at_once_agree_and_a_warm_start_needs_no_tensorflow(
    source, tmp_path, request, run_python
):
    folder, outs = tmp_path / "engines", [tmp_path / f"{number}.npy" for number in range(3)]
    codes = [
        WARM.format(name=f"file:{source.weights.path}", folder=str(folder), out=str(out))
        for out in outs
    ]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=request.config.rootpath,
            stdout=subprocess.PIPE,
            text=True,
        )
        for code in codes[:2]
    ]
    cold = [process.communicate(timeout=900)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert "keras tensorflow\n" in cold
    only(folder)
    assert run_python(codes[2]).stdout == "\n"
    vectors = [np.load(out) for out in outs]
    for other in vectors[1:]:
        np.testing.assert_allclose(other, vectors[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (
            lambda keras, x: x - keras.ops.mean(x, axis=0, keepdims=True),
            BackboneError,
            r"odd gives an image other features at the tap avg when it is alone.*inference mode",
        ),
        (
            lambda keras, x: keras.ops.log(x - 300),
            EngineError,
            r"no finite numbers at the tap avg.*--engine keras",
        ),
    ],
)
def test_a_network_whose_features_are_none_is_refused(keras, tmp_path, make, error, match):
    images = keras.Input((16, 16, 3))
    keras.Model(images, make(keras, images)).save(tmp_path / "odd.keras")
    with pytest.raises(error, match=match):
        OpenVinoEngine(resolve_backbone(f"file:{tmp_path / 'odd.keras'}"), ("avg",))
