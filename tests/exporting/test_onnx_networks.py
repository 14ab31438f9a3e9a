"""Models on ONNX networks: exported in one file, and kept whole in a ``.featx``."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
from onnx_files import FLOAT, FLOAT16, KERNEL, MAP, NET, UINT8, N, node, value, write_net

import featx
from featx.backbones.weights import Weights, bundled_folder
from featx.exceptions import ArtefactError, BackboneError, ExportError, WeightsError
from featx.models.model_file import _network_of

HAS_ONNX = importlib.util.find_spec("onnx") and importlib.util.find_spec("onnxruntime")
needs_onnx = pytest.mark.skipif(not HAS_ONNX, reason="the extra onnx is not installed")
FORMATS = [pytest.param("m.onnx", marks=needs_onnx), "m.xml"]
HEADS = ["logistic", "svm", "lda", "nearest-mean:metric=cosine", "dense:8,max_epochs=2"]
TAPS = ["max", "gem:2", "grid:2", "flatten", "conv:avg"]
LAST = value("image", FLOAT, N, 16, 24, 3)
TURNED = [
    node("Transpose", "image", "turned", perm=[0, 3, 1, 2]),
    node("Conv", "turned kernel", "conv"),
    NET[1],
]
CAST = [node("Cast", "image", "float", to=FLOAT), node("Conv", "float kernel", "conv"), NET[1]]
NETWORKS = {
    "channels last": {"image": LAST, "nodes": TURNED},
    "whole numbers": {"image": value("image", UINT8, N, 3, 16, 24), "nodes": CAST},
    "half precision": {"image": value("image", FLOAT16, N, 3, 16, 24), "nodes": CAST},
    "opset 18": {"opset": 18},
    "names of ours": {
        "image": value("pixels", FLOAT, N, 3, 16, 24),
        "nodes": [node("Conv", "pixels kernel", "constant_0"), node("Relu", "constant_0", "map")],
    },
}  # fmt: skip


def trained(path, files, head="logistic", **options):
    if "whole" not in str(path):
        options = {"preprocessing": "mean=120,110,100/std=60,50,40/bgr", **options}
    model = featx.ImageClassifier(f"onnx:{path}", head, **options)
    return model.fit(files, np.repeat(["ant", "bee", "moth"], 5))


def agrees(model, target, pictures):
    done = featx.export(model, target, verify=pictures)
    assert (done.verification["images"], done.verification["passed"]) == (15, True)
    assert done.verification["largest_difference"] < 1e-5
    assert done.verification["batch_difference"] < 1e-5


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    "options", [*({"head": head} for head in HEADS), *({"tap": tap} for tap in TAPS)], ids=str
)
def test_preprocessing_network_pooling_and_head_are_one_file(
    tmp_path, files, pictures, name, options
):
    path = write_net(tmp_path / "net.onnx")
    agrees(trained(path, files, **options), tmp_path / name, pictures)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("kind", NETWORKS)
def test_every_kind_of_input_is_exported(tmp_path, files, pictures, name, kind):
    path = write_net(tmp_path / f"{kind}.onnx", **NETWORKS[kind])
    agrees(trained(path, files), tmp_path / name, pictures)


@needs_onnx
def test_what_the_head_does_not_need_stays_out_and_the_batch_open(tmp_path, files):
    import onnx

    far = np.zeros((5, 100_000), np.float32)
    nodes = [*NET, node("ReduceMean", "map", "pooled", axes=[2, 3], keepdims=0),
             node("MatMul", "pooled far", "logits")]  # fmt: skip
    outputs = (MAP, value("logits", FLOAT, N, 100_000))
    path = write_net(tmp_path / "net.onnx", outputs=outputs, nodes=nodes, weights={"far": far})
    done = featx.export(trained(path, files, tap="map:avg"), tmp_path / "m.onnx")
    made = onnx.load(done.path)
    assert "network/far" not in {weight.name for weight in made.graph.initializer}
    assert done.size_bytes < 100_000
    (image,) = made.graph.input
    dims = image.type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in dims] == ["batch", 16, 24, 3]


def test_formats_of_keras_say_what_to_take(tmp_path, files):
    model = trained(write_net(tmp_path / "net.onnx"), files)
    for name in ("m.keras", "m.tflite"):
        with pytest.raises(ExportError, match="take --format onnx or openvino"):
            featx.export(model, tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.onnx"]


@pytest.mark.parametrize("name", FORMATS)
def test_a_model_with_its_network_needs_no_other_file(tmp_path, files, pictures, name):
    (tmp_path / "here").mkdir()
    path = write_net(tmp_path / "here" / "net.onnx")
    model = trained(path, files)
    model.save(tmp_path / "whole.featx", embed=True)
    model.save(tmp_path / "head.featx")
    expected = model.predict_proba(files)
    shutil.rmtree(tmp_path / "here")
    whole = featx.load(tmp_path / "whole.featx")
    np.testing.assert_allclose(whole.predict_proba(files), expected, atol=1e-6)
    with pytest.raises((BackboneError, WeightsError), match=r"net\.onnx"):
        featx.load(tmp_path / "head.featx").predict(files)
    agrees(whole, tmp_path / name, pictures)
    whole.save(tmp_path / "again.featx")  # stays whole
    (tmp_path / "whole.featx").unlink()
    again = featx.load(tmp_path / "again.featx")
    np.testing.assert_allclose(again.predict_proba(files), expected, atol=1e-6)
    features = featx.extract(
        pictures, backbone=f"onnx:{tmp_path / 'again.featx'}", cache=tmp_path / "c"
    )
    assert features.matrix().shape == (15, 5)
    with pytest.raises(BackboneError, match="name it as onnx:"):
        featx.extract(pictures, backbone=f"file:{tmp_path / 'again.featx'}", cache=tmp_path / "c")


def test_networks_of_keras_and_weights_are_kept_as_well(tmp_path, small_network, files):
    own, weights = tmp_path / "own.keras", tmp_path / "mine.weights.h5"
    shutil.copy(small_network, own)
    shutil.copy(bundled_folder() / "tiny.weights.h5", weights)
    for backbone, named, beside in ((f"file:{own}", None, own), ("tiny", weights, weights)):
        model = featx.ImageClassifier(backbone, weights=named)
        model.fit(files, np.repeat(["ant", "bee", "moth"], 5))
        model.save(tmp_path / "m.featx", embed=True)
        expected = model.predict_proba(files)
        beside.unlink()
        loaded = featx.load(tmp_path / "m.featx")
        np.testing.assert_allclose(loaded.predict_proba(files), expected, atol=1e-6)
    model = featx.ImageClassifier("tiny").fit(files, np.repeat(["ant", "bee", "moth"], 5))
    model.save(tmp_path / "t.featx", embed=True)  # every featx has it
    assert (tmp_path / "t.featx").stat().st_size < 200_000


@pytest.mark.parametrize(
    ("file", "member"),
    [
        ("a.weights.h5", "network.weights.h5"),
        ("aweights.h5", "network.h5"),
        ("a.hdf5", "network.h5"),
        ("a.keras", "network.keras"),
    ],
)
def test_a_file_keeps_the_end_of_its_name(tmp_path, small_network, file, member):
    with zipfile.ZipFile(small_network) as archive:
        weights = archive.read("model.weights.h5")
    path = tmp_path / file
    path.write_bytes(small_network.read_bytes() if file.endswith("keras") else weights)
    source = SimpleNamespace(kind="", weights=Weights(str(path), "", path))
    assert _network_of(source) == (member, path.read_bytes())


def test_what_is_more_than_one_file_is_refused_and_the_model_is_not_lost(tmp_path, files):
    path = write_net(tmp_path / "net.onnx", external="net.bin")
    model = trained(path, files)
    with pytest.raises(ArtefactError, match=r"more than one file.*Leave --embed"):
        model.save(tmp_path / "m.featx", embed=True)
    assert not (tmp_path / "m.featx").exists()
    model.save(tmp_path / "m.featx")
    assert featx.load(tmp_path / "m.featx").predict(files).shape == (15,)


def test_a_network_inside_may_not_point_out_of_the_model(tmp_path, files):
    trained(write_net(tmp_path / "net.onnx"), files).save(tmp_path / "m.featx", embed=True)
    pointing = write_net(tmp_path / "other.onnx", external="secret.bin").read_bytes()
    with zipfile.ZipFile(tmp_path / "m.featx") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    described = json.loads(members["model.json"])
    members["network.onnx"] = pointing
    digest = hashlib.sha256(pointing).hexdigest()
    described["files"]["network.onnx"] = described["spec"]["weights_sha256"] = digest
    members["model.json"] = json.dumps(described).encode()
    with zipfile.ZipFile(tmp_path / "m.featx", "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    assert (tmp_path / "secret.bin").read_bytes() == KERNEL.tobytes()
    with pytest.raises(BackboneError, match=r"weights in 'secret\.bin'"):
        featx.load(tmp_path / "m.featx").predict(files)


@pytest.mark.parametrize("name", FORMATS)
def test_a_regression_on_an_onnx_network_is_one_file(name, files, pictures, tmp_path):
    numbers = np.arange(15) * 2.5 + 1000
    options = {"preprocessing": "none", "interval_folds": 0}
    network = write_net(tmp_path / "net.onnx")
    model = featx.ImageRegressor(f"onnx:{network}", "ridge:alpha=1", **options)
    done = featx.export(model.fit(files, numbers), tmp_path / name, verify=pictures)
    assert (done.verification["images"], done.verification["passed"]) == (15, True)
    assert done.description["output"]["name"] == "values"


@pytest.mark.parametrize("name", FORMATS)
def test_networks_of_two_kinds_are_one_file(tmp_path, files, pictures, name):
    square = value("image", FLOAT, N, 3, 32, 32)
    first, second = (
        write_net(tmp_path / f"{stem}.onnx", image=square, opset=17) for stem in ("one", "two")
    )
    backbones = ["tiny", f"onnx:{first}", f"onnx:{second}"]
    model = featx.ImageClassifier(
        backbones,
        tap={"tiny": ["avg", "inner"], backbones[1]: ["max", "conv:avg"], backbones[2]: "avg"},
        preprocessing=dict.fromkeys(backbones[1:], "mean=120/std=60"),
        input_size={"tiny": 32},
    )
    model.fit(files, np.repeat(["ant", "bee", "moth"], 5))
    agrees(model, tmp_path / name, pictures)


@needs_onnx
def test_networks_of_two_opsets_are_told_apart(tmp_path, files):
    first, second = (write_net(tmp_path / f"{opset}.onnx", opset=opset) for opset in (17, 18))
    model = featx.ImageClassifier(
        [f"onnx:{first}", f"onnx:{second}"], preprocessing="mean=120/std=60"
    )
    model.fit(files, np.repeat(["ant", "bee", "moth"], 5))
    with pytest.raises(
        ExportError, match="the networks are of different ONNX opsets, .* of 17 and"
    ):
        featx.export(model, tmp_path / "m.onnx")


def test_a_format_that_cannot_hold_one_of_the_networks_says_so(tmp_path, files):
    path = write_net(tmp_path / "net.onnx", image=value("image", FLOAT, N, 3, 32, 32))
    model = featx.ImageClassifier(
        ["tiny", f"onnx:{path}"], preprocessing={f"onnx:{path}": "unit"}, input_size=32
    )
    model.fit(files, np.repeat(["ant", "bee", "moth"], 5))
    with pytest.raises(ExportError, match="which the format keras cannot have in it"):
        featx.export(model, tmp_path / "m.keras")
