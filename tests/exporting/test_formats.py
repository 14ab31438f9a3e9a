"""Each format holds what the model says; the same graph serves them all."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import featx
from featx.exceptions import DatasetError, ExportError, MissingExtraError, UnknownNameError
from featx.exporting.formats import FORMATS
from featx.exporting.verification import calibration_images, decode_rows
from featx.images.decode import decode_image
from featx.images.files import image_key

HAS_ONNX = importlib.util.find_spec("tf2onnx") is not None
needs_onnx = pytest.mark.skipif(not HAS_ONNX, reason="the extra onnx is not installed")
EVERY = [pytest.param(name, marks=needs_onnx if name == "onnx" else ()) for name in FORMATS]
HEADS = ["logistic", "svm", "ridge", "lda", "nearest-mean", "dense:8,max_epochs=2"]
TAPS = ["gem", "grid:2", "first:max"]


def pixels_of(model, files):
    found = decode_rows(featx.ImageDataset.from_paths(files), range(len(files)), model.spec_)
    return np.stack([found[row] for row in range(len(files))])


def path_of(folder, name):
    return folder / f"m{FORMATS[name].suffix or '_folder'}"


@pytest.mark.parametrize("name", EVERY)
def test_a_format_says_what_the_model_says(name, model, files, pictures, tmp_path):
    done = featx.export(model, path_of(tmp_path, name), format=name, verify=pictures)
    report = done.verification
    assert (report["passed"], report["images"], report["failed"]) == (True, 15, 1)
    assert report["largest_difference"] < 1e-5
    assert report["batch_difference"] < 1e-5
    assert report["accuracy_of_export"] == report["accuracy_of_model"]
    opened = FORMATS[name].open(done.path)
    pixels = np.concatenate([pixels_of(model, files)] * 3)[:32]
    together = opened.run(pixels)
    alone = np.concatenate([opened.run(one[None]) for one in pixels[:15]])
    expected = model.predict_proba(files)
    np.testing.assert_allclose(together[:15], expected, atol=1e-5)
    np.testing.assert_allclose(alone, expected, atol=1e-5)
    assert json.loads((tmp_path / f"{done.path.name}.json").read_text("utf-8"))["classes"] == [
        "ant", "bee", "moth",
    ]  # fmt: skip
    written = json.loads((tmp_path / f"{done.path.name}.verification.json").read_text("utf-8"))
    assert written == report
    beside = {done.path.with_suffix(".bin").name} if name == "openvino" else set()
    names = {f"{done.path.name}{end}" for end in ("", ".json", ".verification.json")}
    assert {path.name for path in tmp_path.iterdir()} == names | beside


@pytest.mark.parametrize(
    "options", [*({"head": head} for head in HEADS), *({"tap": tap} for tap in TAPS)], ids=str
)
def test_every_head_and_pooling_in_one_graph(options, fit, files, tmp_path):
    done = featx.export(fit(**options), tmp_path / "m.keras", verify=files)
    assert done.verification["largest_difference"] < 1e-5


def test_int8_is_smaller_and_judged_by_accuracy(model, files, pictures, tmp_path):
    plain = featx.export(model, tmp_path / "m.tflite")
    small = featx.export(model, tmp_path / "m8.tflite", int8=True, verify=pictures)
    assert small.size_bytes < plain.size_bytes
    assert small.calibrated_on == pictures.name
    assert small.verification["precision"] == "int8"
    assert small.verification["largest_difference"] > 1e-5
    assert (
        small.verification["accuracy_of_export"] >= small.verification["accuracy_of_model"] - 0.02
    )
    kept = small.description["calibration"]
    assert (kept["dataset"], kept["images"], len(set(kept["keys"]))) == (pictures.name, 8, 8)
    assert (small.verification["images"], small.verification["left_out"]) == (7, 8)
    measured_before = {
        path for path in files if image_key(Path(path).read_bytes())[:8].hex() in kept["keys"]
    }
    assert len(measured_before) == 8
    with pytest.raises(DatasetError, match="but those that int8 was calibrated on"):
        featx.verify_export(model, small.path, sorted(measured_before))
    shutil.copy(sorted(measured_before)[0], tmp_path / "copy.jpg")  # by content, not by name
    again = featx.verify_export(model, small.path, [*files, str(tmp_path / "copy.jpg")])
    assert (again["images"], again["left_out"]) == (7, 9)


def test_int8_is_calibrated_on_other_images_than_it_is_measured_on(model, files):
    every = featx.ImageDataset.from_paths(files)
    first, last = every.subset(list(range(9))), every.subset(list(range(6, 15)))
    keys = [image_key(Path(path).read_bytes()) for path in files]
    alone = calibration_images(every, model.spec_)
    assert set(alone.keys) == set(keys)
    assert alone.pixels.shape == (15, *model.spec_.input_size_px, 3)
    apart = set(calibration_images(first, model.spec_, last).keys)
    # Three are in both: of the nine that are measured on, up to four may be taken.
    assert apart == set(keys[:9])
    same = calibration_images(every, model.spec_, every)
    assert len(set(same.keys)) == 7
    with pytest.raises(DatasetError, match="other than the one to measure on .*--calibrate DATA"):
        calibration_images(every.subset([0]), model.spec_, every.subset([0]))


def test_names_in_any_script_go_through(fit, files, tmp_path):
    names = ("蟻 ants", "πεταλούδα\n2", 'نحلة, "bees"')
    model = fit(names=names)
    for name in ("keras", "openvino"):
        done = featx.export(model, path_of(tmp_path, name), format=name, verify=files)
        assert done.description["classes"] == sorted(names)


def test_a_thousand_classes_and_numbers_as_labels(small_network, files, tmp_path):
    X = np.random.default_rng(0).random((2000, 16), np.float32)
    model = featx.ImageClassifier(f"file:{small_network}", "nearest-mean")
    model.fit(X, np.arange(2000) % 1000)
    done = featx.export(model, tmp_path / "m.keras", verify=files)
    assert done.description["classes"] == list(range(1000))
    assert done.verification["largest_difference"] < 1e-5


@pytest.mark.slow
def test_the_keras_file_needs_keras_alone(keras_export, model, files, run_python, tmp_path):
    np.save(tmp_path / "pixels.npy", pixels_of(model, files[:2]))
    code = (
        "import sys; sys.modules['featx'] = None\n"
        "import keras, numpy as np\n"
        f"net = keras.models.load_model({str(keras_export)!r}, compile=False, safe_mode=True)\n"
        f"pixels = np.load({str(tmp_path / 'pixels.npy')!r})\n"
        "assert np.allclose(net(pixels), net.predict_on_batch(pixels), atol=1e-6)\n"
        "print(net.predict_on_batch(pixels).tolist())"
    )
    found = json.loads(run_python(code).stdout.splitlines()[-1])
    np.testing.assert_allclose(found, model.predict_proba(files[:2]), atol=1e-5)


@pytest.mark.parametrize("name", EVERY)
def test_the_printed_python_runs(name, keras_export, model, files, tmp_path, monkeypatch, capsys):
    done = featx.export(model, path_of(tmp_path, name), format=name)
    monkeypatch.chdir(tmp_path)
    shutil.copy(files[0], "new.jpg")
    if name == "tflite" and importlib.util.find_spec("ai_edge_litert") is None:
        import tensorflow as tf

        stand_in = types.ModuleType("ai_edge_litert.interpreter")
        stand_in.Interpreter = tf.lite.Interpreter
        monkeypatch.setitem(sys.modules, "ai_edge_litert", types.ModuleType("ai_edge_litert"))
        monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", stand_in)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        variables = {}
        exec(done.serving["python"], variables)
    (expected,) = model.predict_proba(files[:1])
    np.testing.assert_allclose(variables["probabilities"], expected, atol=1e-5)
    assert capsys.readouterr().out.startswith(model.classes_[expected.argmax()])
    grey = Image.fromarray(np.linspace(0, 65535, 40 * 30).reshape(30, 40).astype(np.uint16))
    clear = Image.new("RGBA", (40, 30), (200, 10, 10, 90))
    for picture in (grey, clear):
        picture.save("new.png")
        trained = decode_image(
            Path("new.png").read_bytes(), model.spec_.input_size_px, model.spec_.image
        )
        np.testing.assert_array_equal(variables["pixels"]("new.png")[0], trained)


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("keras", "dense:8,max_epochs=3"),
        ("tflite", "logistic"),
        ("openvino", "ridge"),
        pytest.param("onnx", "lda", marks=needs_onnx),
    ],
)
def test_several_labels_go_through(name, head, label_sets, small_network, files, tmp_path, capsys):
    model = featx.ImageClassifier(f"file:{small_network}", head, multilabel=True)
    model.fit(files[:-1], label_sets.y[:-1].tolist())
    done = featx.export(model, path_of(tmp_path, name), format=name, verify=label_sets)
    assert done.description["output"]["multilabel"]
    assert done.description["classes"] == ["all", "bee", "ключ"]
    report = done.verification
    assert (report["top1_changed"], report["labelled"]) == (0, 14)
    assert report["largest_difference"] < 1e-5
    right = model.score(files[:-1], label_sets.y[:-1].tolist())
    assert report["accuracy_of_export"] == report["accuracy_of_model"] == pytest.approx(right)
    if name == "keras":
        Path(tmp_path / "run.py").write_text(done.serving["python"].replace("new.jpg", files[5]))
        exec(compile((tmp_path / "run.py").read_text(), "run.py", "exec"), {})
        (given,) = model.predict(files[5:6])
        assert capsys.readouterr().out.strip() == str(model.classes_[given > 0].tolist())


def test_javascript_is_printed_for_browsers(model, tmp_path):
    done = featx.export(model, tmp_path / "m.tflite")
    assert 'loadTFLiteModel("m.tflite")' in done.serving["javascript"]
    assert "m.tflite.json" in done.serving["javascript"]


def test_what_is_there_stays_unless_told_otherwise(keras_export, model, fit):
    with pytest.raises(ExportError, match=r"m\.keras exists already: .*--force"):
        featx.export(model, keras_export)
    with pytest.raises(ExportError, match=r"in a folder that exists, received .*nowhere"):
        featx.export(model, keras_export.parent / "nowhere" / "m.keras")


def test_a_folder_is_replaced_whole(model, tmp_path):
    path = tmp_path / "served"
    path.mkdir()
    (path / "old.txt").write_text("old")
    with pytest.raises(ExportError, match="exists already"):
        featx.export(model, path, format="savedmodel")
    assert featx.export(model, path, format="savedmodel", overwrite=True).size_bytes > 1000
    assert not (path / "old.txt").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["served", "served.json"]


def test_a_conversion_that_fails_leaves_nothing(model, tmp_path, monkeypatch):
    import tensorflow as tf

    def fails(self):
        raise RuntimeError("no such operation\nmore")

    monkeypatch.setattr(tf.lite.TFLiteConverter, "convert", fails)
    with pytest.raises(ExportError, match="cannot be converted to LiteRT: no such operation"):
        featx.export(model, tmp_path / "m.tflite")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_exported_is_said_before_any_work(fit, model, files, tmp_path):
    path = tmp_path / "m.keras"
    with pytest.raises(ExportError, match="averages each prediction over the image and 1 views"):
        featx.export(fit(views=1, view_policy="flip-1", average_views=True), path)
    with pytest.raises(ExportError, match=r"NearestNeighbours\) cannot be exported: .*logistic"):
        featx.export(fit("knn"), path)
    with pytest.raises(UnknownNameError, match="did you mean 'tflite'"):
        featx.export(model, path, format="tfl")
    with pytest.raises(ExportError, match=r"ends in \.onnx for the format onnx"):
        featx.export(model, path, format="onnx")
    with pytest.raises(ExportError, match="expected a format, one of keras, savedmodel"):
        featx.export(model, tmp_path / "m")
    with pytest.raises(ExportError, match="the format keras has no int8"):
        featx.export(model, path, int8=True)
    with pytest.raises(ExportError, match="int8 takes its ranges from real images"):
        featx.export(model, tmp_path / "m.tflite", int8=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="empty"):
        featx.export(model, path, verify=tmp_path / "empty")
    assert [p.name for p in tmp_path.iterdir()] == ["empty"]


def test_a_missing_extra_is_named_with_what_installs_it(model, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if "onnx" in n else find(n))
    with pytest.raises(MissingExtraError, match=r"pip install 'featx\[onnx\]'"):
        featx.export(model, tmp_path / "m.onnx")
