"""Every format and every head on real photographs, with real weights and the bundled ones."""

from __future__ import annotations

import importlib.util
import json

import pytest

import featx
from featx.exporting.formats import FORMATS
from featx.exporting.graph import EXPORTABLE_HEADS

pytestmark = [pytest.mark.realdata, pytest.mark.slow]

needs_onnx = pytest.mark.skipif(
    importlib.util.find_spec("tf2onnx") is None, reason="the extra onnx is not installed"
)
EVERY = [pytest.param(name, marks=needs_onnx if name == "onnx" else ()) for name in FORMATS]
# `tiny` with logistic or svm loses more on images that it was trained on: docs/export.md.
INT8 = [
    *((head, "mobilenet_v2") for head in EXPORTABLE_HEADS),
    *((head, "tiny") for head in ("dense", "lda", "nearest-mean", "ridge")),
]


@pytest.fixture(scope="module")
def ants_bees(shared):
    return shared / "data" / "ants_bees"


@pytest.fixture(scope="module")
def train(ants_bees, mobilenet_weights, tmp_path_factory):
    cache = tmp_path_factory.mktemp("exports") / "cache"
    weights = {"mobilenet_v2": mobilenet_weights, "tiny": "bundled"}

    def trained(backbone, head):
        options = {"backbone": backbone, "weights": weights[backbone], "cache": cache}
        features = featx.extract(ants_bees, **options)
        return featx.train(features, head=head, cv=0, **options).model

    return trained


@pytest.mark.parametrize("backbone", ["tiny", "mobilenet_v2"])
@pytest.mark.parametrize("head", EXPORTABLE_HEADS)
@pytest.mark.parametrize("name", EVERY)
def test_every_format_with_every_head(name, head, backbone, train, ants_bees, tmp_path):
    model = train(backbone, head)
    path = tmp_path / f"m{FORMATS[name].suffix}"
    report = featx.export(model, path, format=name, verify=ants_bees).verification
    print(json.dumps({**report, "head": head, "backbone": backbone}))
    assert report["top1_changed"] == 0
    assert report["largest_difference"] < 1e-3
    assert report["batch_difference"] < 1e-5


@pytest.mark.parametrize(("head", "backbone"), INT8)
def test_int8_keeps_the_accuracy(head, backbone, train, ants_bees, tmp_path):
    model = train(backbone, head)
    done = featx.export(model, tmp_path / "m.tflite", int8=True, verify=ants_bees)
    print(json.dumps({**done.verification, "head": head, "backbone": backbone}))
    assert done.verification["passed"]
    assert (done.verification["images"], done.verification["left_out"]) == (145, 100)
