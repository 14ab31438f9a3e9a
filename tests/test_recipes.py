"""Every command of docs/recipes.md, run as it stands there but on small pictures and networks."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from onnx_files import write_tokens

import featx
from featx.cli.main import main

PAGE = Path(__file__).resolve().parents[1] / "docs" / "recipes.md"
COMMANDS = re.findall(r"^    (featx train .+)$", PAGE.read_text("utf-8"), re.MULTILINE)
TUNING = re.findall(r"^    (featx finetune .+)$", PAGE.read_text("utf-8"), re.MULTILINE)
CLASSES = {"photos/": 2, "flowers/": 3, "objects/": 10}
SMALL = ("--weights", "random:0", "--input-size", "32", "--cv", "0")
# By backbone and head: what makes it small, and what the model has to say of itself: features,
# preprocessing, hidden layers.
EXPECTED = {
    ("vgg16", "dense:1024"): (SMALL, 512, "caffe", [1024]),
    ("mobilenet_v2", "dense:1024,1024"): (SMALL, 1280, "tf", [1024, 1024]),
    ("mobilenet_v2", "dense:128"): (SMALL, 1280, "tf", [128]),
    ("resnet50", "dense:1024"): (SMALL, 2048, "caffe", [1024]),
    ("inception_v3", "dense:1024"): ((*SMALL[:3], "75", *SMALL[4:]), 2048, "tf", [1024]),
    ("savedmodel:models/feature_vector/2", "logistic"): (("--cv", "0"), 6, "unit", []),
    ("onnx:models/dinov2.onnx", "logistic"): (("--cv", "0"), 5, "torch", []),
    ("hub:models/resnet_preset", "logistic"): (("--cv", "0"), 4, "torch", []),
}
QUICK = ("savedmodel:", "hub:", "onnx:")


def option(words, *names, default=None):
    return next((words[words.index(name) + 1] for name in names if name in words), default)


def parametrised():
    for command in COMMANDS:
        quick = any(text in command for text in QUICK)
        yield pytest.param(command, id=command, marks=[] if quick else pytest.mark.slow)


@pytest.fixture
def workplace(tmp_path, monkeypatch, draw_photo, hub_module):
    """A folder with the data and the models that the page speaks of, as the current one."""
    for name, count in CLASSES.items():
        for number in range(count):
            for image in range(2):
                colour = (25 * number, 250 - 25 * number, 90 * (number % 3))
                path = f"class {number}/{image}.jpg"
                draw_photo(tmp_path / name, path, seed=10 * number + image, colour=colour)
    shutil.copytree(hub_module, tmp_path / "models" / "feature_vector" / "2")
    write_tokens(tmp_path / "models" / "dinov2.onnx")
    preset = tmp_path / "models" / "resnet_preset"
    preset.mkdir()
    stated = {
        "scale": [0.0171248, 0.017507, 0.0174292],
        "offset": [-2.117904, -2.035714, -1.804444],
    }
    described = {
        "registered_name": "keras_hub>ResNetBackbone",
        "config": {"image_shape": [16, 16, 3]},
    }
    (preset / "config.json").write_text(json.dumps(described))
    (preset / "image_converter.json").write_text(json.dumps({"config": stated}))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_page_has_the_recipes_that_are_checked():
    words = [shlex.split(command) for command in COMMANDS]
    asked = {(option(w, "-b"), option(w, "--head", default="logistic")) for w in words}
    assert asked == set(EXPECTED)
    assert len(COMMANDS) == len(asked)


@pytest.mark.parametrize("command", list(parametrised()))
def test_a_recipe_trains_what_it_says(command, workplace, keras_hub, capsys):
    words = shlex.split(command)[1:]
    name, data = option(words, "-b"), words[1]
    small, width, preprocessing, hidden = EXPECTED[
        name, option(words, "--head", default="logistic")
    ]
    with pytest.raises(SystemExit) as ended:
        main([*words, *small])
    assert ended.value.code == 0, capsys.readouterr()
    model = featx.load(option(words, "-o"), cache="cache", trust="--trust" in words)
    assert len(model.classes_) == CLASSES[data]
    assert (model.n_features_in_, model.spec_.preprocessing) == (width, preprocessing)
    assert model.views == int(option(words, "--views", default=0))
    layers = [step for step in model.head_.steps_ if type(step).__name__ == "Linear"]
    assert [layer.kernel.shape[1] for layer in layers][:-1] == hidden
    images = [str(workplace / data / f"class {number}" / "0.jpg") for number in range(2)]
    assert set(model.predict(images)) <= set(model.classes_)


@pytest.mark.slow
def test_the_recipe_that_trains_the_network_goes_on_from_the_one_before(workplace, capsys):
    (tuning,) = TUNING
    words = shlex.split(tuning)[1:]
    before = next(command for command in COMMANDS if option(shlex.split(command), "-o") == words[1])
    for command in ([*shlex.split(before)[1:], *SMALL], [*words, "--epochs", "1"]):
        with pytest.raises(SystemExit) as ended:
            main(command)
        assert ended.value.code == 0, capsys.readouterr()
    model = featx.load(option(words, "-o"), cache="cache")
    assert len(model.classes_) == CLASSES[words[2]]
