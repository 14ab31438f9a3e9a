"""A SavedModel as a backbone wherever one can be named: command line, cache, artefact, export."""

import json
import shutil

import numpy as np
import pytest

import featx
from featx.cli.main import main
from featx.exceptions import BackboneError, ExportError


def run(capsys, *args):
    with pytest.raises(SystemExit) as ended:
        main([*map(str, args)])
    said = capsys.readouterr()
    return ended.value.code, said.out, said.err


@pytest.fixture
def trained(hub_module, photos, tmp_path):
    """A model on vectors of a SavedModel, saved; and the arguments that made its features."""
    asked = {"backbone": f"savedmodel:{hub_module}", "cache": tmp_path / "cache"}
    features = featx.extract(photos, **asked, trust=True)
    result = featx.train(features, **asked, cv=0, trust=True)
    result.model.save(tmp_path / "m.featx")
    return tmp_path / "m.featx", result.model, features


def test_the_commands_take_it_and_ask_for_trust(hub_module, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(hub_module.parents[1])
    place = ("-b", "savedmodel:vector/2", "--cache", tmp_path / "cache")
    model = tmp_path / "photos.featx"
    code, _, error = run(capsys, "extract", photos, *place)
    assert code != 0
    assert "give --trust (trust=True) if you know who made it" in error
    code, out, _ = run(capsys, "extract", photos, *place, "--trust", "--json")
    assert (code, json.loads(out)["extracted"]) == (0, 12)
    code, _, _ = run(capsys, "train", photos, *place, "--trust", "--cv", "0", "-o", model)
    assert code == 0
    found = ("search", photos, *place, "--trust", "--head", "lda", "-o", tmp_path / "best.featx")
    code, out, _ = run(capsys, *found, "--json")
    assert (code, json.loads(out)["extraction"]["extracted"]) == (0, 0)
    # Where the command was given does not matter any more.
    monkeypatch.chdir(tmp_path)
    image = photos / "red" / "0.jpg"
    code, out, error = run(capsys, "predict", model, image, "--cache", tmp_path / "other")
    assert code != 0
    assert "--trust" in out + error
    code, out, _ = run(capsys, "predict", model, image, "--cache", tmp_path / "other", "--trust")
    assert code == 0
    assert "red" in out


def test_a_loaded_model_reads_images_with_trust_alone(trained, photos):
    file, model, features = trained
    assert features.spec().backbone == "savedmodel:vector-2"
    images = sorted((photos / "red").iterdir())
    for untrusting in (featx.load(file),):
        np.testing.assert_array_equal(untrusting.predict(features.X), model.predict(features.X))
        with pytest.raises(BackboneError, match=r"trust=True"):
            untrusting.predict(images)
    loaded = featx.load(file, trust=True)
    np.testing.assert_allclose(loaded.predict_proba(images), model.predict_proba(images), atol=1e-6)


def test_a_changed_folder_is_noticed_and_a_moved_one_can_be_named(
    trained, hub_module, photos, tmp_path
):
    file, model, _ = trained
    images = sorted((photos / "blue").iterdir())
    moved = shutil.copytree(hub_module, tmp_path / "moved")
    loaded = featx.load(file, weights=moved, trust=True)
    np.testing.assert_allclose(loaded.predict_proba(images), model.predict_proba(images), atol=1e-6)
    (moved / "added.txt").write_text("other")
    with pytest.raises(featx.WeightsError, match="whose SHA-256 is"):
        featx.load(file, weights=moved, trust=True).predict(images)


def test_keras_steps_in_where_openvino_does_not_convert_it(
    hub_module, photos, tmp_path, monkeypatch, caplog
):
    from featx.engines import openvino

    def refuse(*_):
        raise featx.EngineError("the conversion failed")

    monkeypatch.setattr(openvino, "convert", refuse)
    monkeypatch.setenv("FEATX_ENGINES", str(tmp_path / "engines"))
    model = featx.ImageClassifier(f"savedmodel:{hub_module}", batch_size=7, trust=True)
    model.fit(sorted(map(str, photos.rglob("*.jpg"))), ["blue"] * 6 + ["red"] * 6)
    assert "OpenVINO cannot run savedmodel:vector-2, Keras steps in" in caplog.text


def test_it_is_exported_with_its_graph_and_not_as_a_pointer(trained, photos, tmp_path):
    file, _, _ = trained
    with pytest.raises(ExportError, match=r"would only point to: take --format savedmodel"):
        featx.export(file, tmp_path / "m.keras", trust=True)
    done = featx.export(file, tmp_path / "m.xml", verify=photos, trust=True)
    assert done.verification["largest_difference"] < 1e-3
