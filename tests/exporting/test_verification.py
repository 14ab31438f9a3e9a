"""A verification that cannot fail proves nothing: each kind of damage is tried."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

import featx
from featx.exceptions import DatasetError, ExportError


@pytest.fixture
def exported(keras_export, tmp_path):
    """A copy of an export that may be spoilt."""
    for end in ("", ".json"):
        shutil.copy(f"{keras_export}{end}", tmp_path)
    return tmp_path / keras_export.name


def change(path, name, value):
    beside = path.with_name(f"{path.name}.json")
    said = json.loads(beside.read_text("utf-8"))
    beside.write_text(json.dumps({**said, name: value}), "utf-8")


def report_of(path):
    return json.loads(path.with_name(f"{path.name}.verification.json").read_text("utf-8"))


def change_weights(path, change):
    import keras

    network = keras.models.load_model(path, compile=False)
    layer = network.layers[-2]
    layer.set_weights(change(*layer.get_weights()))
    network.save(path)


def test_swapped_classes_fail(exported, model, pictures):
    change(exported, "classes", ["bee", "ant", "moth"])
    with pytest.raises(ExportError, match=r"10 of 15 images have another top-1.*do not serve"):
        featx.verify_export(model, exported, pictures)
    report = report_of(exported)
    assert (report["passed"], report["top1_changed"]) == (False, 10)
    assert report["changed"][0]["model"]["label"] == "ant"
    assert report["changed"][0]["export"]["label"] == "bee"


def test_changed_weights_fail_even_where_every_top_1_stays(exported, model, pictures):
    change_weights(exported, lambda kernel, bias: [kernel, bias + np.float32([0.02, 0, 0])])
    with pytest.raises(ExportError, match=r"a probability is off by .*at most 1e-03 is allowed"):
        featx.verify_export(model, exported, pictures)
    assert report_of(exported)["top1_changed"] == 0
    report = featx.verify_export(model, exported, pictures, tolerance=0.1)
    assert 1e-3 < report["largest_difference"] < 0.1


def test_numbers_that_are_not_finite_fail(exported, model, pictures):
    change_weights(exported, lambda kernel, bias: [kernel * np.float32(np.nan), bias])
    with pytest.raises(ExportError, match="probabilities that are not finite"):
        featx.verify_export(model, exported, pictures)


def test_int8_that_loses_accuracy_fails(exported, model, pictures, files):
    change(exported, "precision", "int8")
    assert featx.verify_export(model, exported, pictures)["passed"]
    change_weights(exported, lambda kernel, bias: [kernel, bias + np.float32([99, 0, 0])])
    with pytest.raises(ExportError, match=r"int8 loses 66\.7 points of accuracy, at most 2"):
        featx.verify_export(model, exported, pictures)
    with pytest.raises(ExportError, match=r"another top-1 on 66\.7 % of the images"):
        featx.verify_export(model, exported, files)


def test_another_model_fails(exported, fit, pictures):
    other = fit(names=("wasp", "bee", "moth"))
    with pytest.raises(ExportError, match="other classes than the model: ant, wasp"):
        featx.verify_export(other, exported, pictures)


def test_other_class_names_inside_than_beside_fail(model, files, tmp_path):
    path = featx.export(model, tmp_path / "m.xml").path
    change(path, "classes", ["bee", "ant", "moth"])
    with pytest.raises(ExportError, match="other classes inside than m.xml.json"):
        featx.verify_export(model, path, files)


def test_damage_is_named(exported, model, pictures, tmp_path):
    exported.write_bytes(exported.read_bytes()[:5000])
    with pytest.raises(ExportError, match=r"m\.keras does not open"):
        featx.verify_export(model, exported, pictures)
    exported.unlink()
    with pytest.raises(ExportError, match="which does not exist"):
        featx.verify_export(model, exported, pictures)
    change(exported, "version", 2)
    with pytest.raises(ExportError, match="version 2: expected 'featx-export', version 1"):
        featx.verify_export(model, exported, pictures)
    (tmp_path / "m.keras.json").unlink()
    with pytest.raises(ExportError, match=r"expected m\.keras\.json beside"):
        featx.verify_export(model, exported, pictures)


def test_images_that_cannot_be_read_verify_nothing(exported, model, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    with pytest.raises(DatasetError, match="none of the 1 images"):
        featx.verify_export(model, exported, [str(tmp_path / "bad.jpg")])


def test_a_failed_verification_fails_the_export(model, pictures, tmp_path, monkeypatch):
    from featx.exporting import exporter
    from featx.heads.steps import Linear

    build = exporter.build_graph

    def flipped(parts, steps, *more):
        linear, last = steps
        return build(parts, [Linear(linear.kernel[:, ::-1], linear.bias[::-1]), last])

    monkeypatch.setattr(exporter, "build_graph", flipped)
    with pytest.raises(ExportError, match="do not serve this file"):
        featx.export(model, tmp_path / "m.keras", verify=pictures)
    assert report_of(tmp_path / "m.keras")["passed"] is False
