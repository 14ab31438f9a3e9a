"""The bundled backbone comes converted: no TensorFlow, and Keras's features."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from featx.backbones.source import resolve_backbone
from featx.engines import openvino as engine_module
from featx.engines.openvino import OpenVinoEngine, StoredConversion, convert, disagreement

TAPS = ("avg", "max", "gem", "flatten", "grid:2")


@pytest.fixture(scope="module")
def tiny():
    return resolve_backbone("tiny")


def test_it_gives_what_keras_gives_at_every_pooling(tiny):
    conversion = convert(tiny, TAPS)
    engine = OpenVinoEngine(tiny, TAPS)
    assert not engine.converts
    conversion.check(engine.run)
    pixels = np.random.default_rng(1).integers(0, 256, (8, 64, 64, 3), dtype=np.uint8)
    alone = [engine.run(pixels[row : row + 1])["avg"][0] for row in range(8)]
    assert disagreement(np.array(alone), engine.run(pixels)["avg"]) < 1e-5


@pytest.mark.parametrize(
    ("name", "options", "taps"),
    [
        ("tiny", {"input_size": 96}, ("avg",)),
        ("tiny", {}, ("avg", "block_3:max")),
        ("tiny", {"weights": "random:0"}, ("avg",)),
        ("mobilenet_v2", {"weights": "random:0"}, ("avg",)),
    ],
)
def test_what_is_not_it_is_converted(name, options, taps):
    assert StoredConversion.shipped(resolve_backbone(name, **options), taps) is None


@pytest.mark.parametrize("damage", ["bit", "gone", "other weights"])
def test_a_damaged_one_is_named_and_not_used(tiny, monkeypatch, tmp_path, damage, caplog):
    folder = engine_module.bundled_folder()
    monkeypatch.setattr(engine_module, "bundled_folder", lambda: tmp_path)
    if damage != "gone":
        shutil.copytree(folder / "tiny.openvino", tmp_path / "tiny.openvino")
    if damage == "bit":
        file = tmp_path / "tiny.openvino" / "model.bin"
        data = bytearray(file.read_bytes())
        data[1000] ^= 1
        file.write_bytes(data)
    if damage == "other weights":
        said = tmp_path / "tiny.openvino" / "conversion.json"
        said.write_text(said.read_text().replace(tiny.weights.sha256, "0" * 64))
    monkeypatch.setattr(engine_module, "convert", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        OpenVinoEngine(tiny, ("avg",))
    assert ("is damaged" in caplog.text) == (damage != "gone")


def test_training_from_nothing_imports_no_tensorflow(photos, tmp_path, run_python):
    code = f"""
import sys
from featx.cli.main import main
try:
    main(["train", {str(photos)!r}, "-o", "{tmp_path}/m.featx", "--cache", "{tmp_path}/c"])
except SystemExit as end:
    assert end.code in (0, None), end.code
print(sorted({{"tensorflow", "keras"}} & set(sys.modules)))
"""
    done = run_python(code, FEATX_ENGINES=str(tmp_path / "none"))
    assert done.stdout.splitlines()[-1] == "[]"
    assert not (tmp_path / "none").exists()
