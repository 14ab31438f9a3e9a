"""Models of a regression in every format."""

import importlib.util
import json

import numpy as np
import pytest
from PIL import Image

import featx
from featx.exceptions import ExportError
from featx.exporting.formats import FORMATS

HAS_ONNX = importlib.util.find_spec("tf2onnx") is not None
needs_onnx = pytest.mark.skipif(not HAS_ONNX, reason="the extra onnx is not installed")
EVERY = [pytest.param(name, marks=needs_onnx if name == "onnx" else ()) for name in FORMATS]


@pytest.fixture(scope="module")
def grey(tmp_path_factory):
    """A table of 30 pictures with two numbers each, one of them large."""
    folder = tmp_path_factory.mktemp("grey")
    rng = np.random.default_rng(0)
    paths, numbers = [], []
    for number in range(30):
        bright, red = rng.uniform(40, 200), rng.uniform(-30, 30)
        pixels = rng.normal(0, 10, (40, 40, 3)) + bright + np.array([red, 0, -red])
        paths.append(str(folder / f"{number}.png"))
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(paths[-1])
        numbers.append((bright, 1000 * red + 1e6))
    return paths, np.array(numbers)


@pytest.fixture(scope="module")
def fit(small_network, grey):
    def fit(head="ridge:alpha=1", columns=2):
        model = featx.ImageRegressor(
            f"file:{small_network}", head, preprocessing="none", interval_folds=0
        )
        return model.fit(grey[0], grey[1][:, 0] if columns == 1 else grey[1])

    return fit


@pytest.fixture(scope="module")
def model(fit):
    return fit()


@pytest.mark.parametrize("name", EVERY)
def test_a_format_gives_the_numbers_of_the_model(name, model, grey, tmp_path, capsys):
    path = tmp_path / f"m{FORMATS[name].suffix or '_folder'}"
    done = featx.export(model, path, format=name, verify=featx.ImageDataset.from_paths(grey[0]))
    report = done.verification
    assert (report["passed"], report["images"]) == (True, 30)
    assert report["largest_difference"] < 1e-3
    assert done.description["values"] == ["0", "1"]
    assert done.description["output"]["name"] == "values"
    assert "classes" not in done.description
    opened = FORMATS[name].open(done.path)
    assert opened.classes in (None, ["0", "1"])
    code = done.serving["python"].replace("new.jpg", grey[0][0])
    if name == "tflite":
        pytest.importorskip("ai_edge_litert")
    exec(compile(code, "serving", "exec"), {})
    said = eval(capsys.readouterr().out.strip().splitlines()[-1])
    np.testing.assert_allclose(list(said.values()), model.predict(grey[0][:1])[0], rtol=1e-3)


def test_serving_in_a_browser_names_numbers(model, grey, tmp_path):
    code = featx.export(model, tmp_path / "m.tflite").serving["javascript"]
    assert "values: names" in code
    assert "probabilities" not in code
    assert "classes" not in code


@pytest.mark.parametrize("head", ["dense:8,max_epochs=2", "svm", "sklearn.linear_model.Lasso"])
def test_heads_that_are_layers_are_exported(head, fit, grey, tmp_path):
    done = featx.export(fit(head, columns=1), tmp_path / "m.keras", verify=grey[0])
    assert done.verification["largest_difference"] < 1e-3


@pytest.mark.parametrize("head", ["knn", "forest:n_estimators=5"])
def test_other_heads_are_refused_with_those_that_can_be(head, fit, tmp_path):
    with pytest.raises(ExportError, match="expected one of dense, ridge, svm, or a linear regress"):
        featx.export(fit(head), tmp_path / "m.keras")


def test_labels_give_r2_and_int8_is_judged_by_it(fit, grey, tmp_path):
    model = fit(columns=1)
    images = featx.ImageDataset.from_paths(grey[0], grey[1][:, 0].tolist())
    plain = featx.export(model, tmp_path / "m.keras", verify=images).verification
    assert plain["labelled"] == 30
    assert plain["r2_of_export"] == pytest.approx(plain["r2_of_model"], abs=1e-4)
    small = featx.export(model, tmp_path / "m8.tflite", int8=True, verify=images).verification
    assert small["precision"] == "int8"
    assert small["r2_of_model"] - small["r2_of_export"] <= 0.02


def test_an_export_of_another_model_is_refused(model, fit, grey, tmp_path):
    path = tmp_path / "m.keras"
    featx.export(model, path)
    with pytest.raises(ExportError, match="does not agree .* a number is off by"):
        featx.verify_export(fit("ridge:alpha=100000"), path, grey[0])
    described = json.loads((tmp_path / "m.keras.json").read_text("utf-8"))
    described["values"] = ["a", "b"]
    (tmp_path / "m.keras.json").write_text(json.dumps(described), "utf-8")
    with pytest.raises(ExportError, match="other numbers inside|other numbers than the model"):
        featx.verify_export(model, path, grey[0])


def test_the_command_says_numbers(model, grey, tmp_path, featx_command):
    model.save(tmp_path / "m.featx")
    (tmp_path / "images.csv").write_text("path\n" + "\n".join(grey[0]), "utf-8")
    done = featx_command("export", "m.featx", "--format", "openvino", "--verify", "images.csv")
    assert done.returncode == 0, done.stderr
    assert "2 numbers, named in m.xml.json" in done.stdout
    assert "largest difference of a number" in done.stdout
