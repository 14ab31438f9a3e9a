from __future__ import annotations

import json
import zipfile

import numpy as np
import pytest

import featx
from featx.exceptions import ArtefactError, WeightsError
from featx.models.artefact import read_details

HEADS = ["logistic", "svm", "knn", "ridge", "lda", "forest", "dense:8"]


@pytest.fixture
def data():
    generator = np.random.default_rng(0)
    y = np.repeat(["ant", "bee", "蜂"], 12)
    X = generator.normal(size=(36, 6)).astype(np.float32)
    X += 2 * np.repeat(np.arange(3), 12)[:, None]
    return X, y


@pytest.fixture
def spec():
    return featx.FeatureSpec(
        backbone="mobilenet_v2",
        weights_sha256="1" * 64,
        input_size_px=(64, 64),
        preprocessing="tf",
    )


@pytest.fixture
def saved(data, spec, tmp_path):
    model = featx.ImageClassifier("mobilenet_v2", weights="random:0", input_size=64).fit(*data)
    model.save(tmp_path / "m.featx", spec=spec, metrics={"accuracy": 0.5})
    return tmp_path / "m.featx"


@pytest.mark.parametrize("head", HEADS)
def test_a_saved_model_gives_the_same_answers_in_another_process(
    head, data, spec, tmp_path, run_python
):
    X, y = data
    model = featx.ImageClassifier(head=head).fit(X, y)
    path = tmp_path / "m.featx"
    model.save(path, spec=spec)
    np.save(tmp_path / "X.npy", X)
    code = (
        "import featx, sys, numpy as np;"
        f"m = featx.load({str(path)!r}, trust={head == 'forest'});"
        f"X = np.load({str(tmp_path / 'X.npy')!r});"
        f"np.save({str(tmp_path / 'p.npy')!r}, m.predict_proba(X));"
        "print(m.predict(X)[-1], sorted({'tensorflow', 'keras'} & set(sys.modules)))"
    )
    printed = run_python(code, PYTHONIOENCODING="utf-8").stdout.strip()
    assert printed == f"{model.predict(X)[-1]} []"
    np.testing.assert_array_equal(np.load(tmp_path / "p.npy"), model.predict_proba(X))


def test_everything_that_a_prediction_needs_is_in_the_file(saved, spec):
    details = read_details(saved)
    assert details["classes"] == ["ant", "bee", "蜂"]
    assert details["metrics"] == {"accuracy": 0.5}
    assert featx.FeatureSpec.from_dict(details["spec"]) == spec
    model = featx.load(saved)
    assert model.backbone == "mobilenet_v2"
    assert model.input_size == (64, 64)


def test_other_weights_than_those_of_training_are_refused(saved, photos):
    with pytest.raises(WeightsError, match="trained with weights .* whose SHA-256 is 1111"):
        featx.load(saved).predict([str(next(photos.rglob("*.jpg")))])


def test_it_is_written_whole_or_not_at_all(data, spec, tmp_path):
    model = featx.ImageClassifier().fit(*data)
    with pytest.raises(ArtefactError, match="cannot write .*Name a file with -o"):
        model.save(tmp_path / "none" / "m.featx", spec=spec)
    model.save(tmp_path / "m.featx", spec=spec)
    model.save(tmp_path / "m.featx", spec=spec)
    assert [path.name for path in tmp_path.iterdir()] == ["m.featx"]


def test_a_file_that_is_not_ours_is_refused(tmp_path):
    path = tmp_path / "m.featx"
    with pytest.raises(ArtefactError, match="which is no file"):
        featx.load(path)
    path.write_bytes(b"PK no zip")
    with pytest.raises(ArtefactError, match="no model saved by featx"):
        featx.load(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights.bin", b"x")
    with pytest.raises(ArtefactError, match=r"it has no model\.json"):
        featx.load(path)


def test_a_cut_or_changed_file_is_refused_or_unchanged(saved, data):
    whole = saved.read_bytes()
    expected = featx.load(saved).predict_proba(data[0])
    for size in range(0, len(whole), 211):
        saved.write_bytes(whole[:size])
        with pytest.raises(ArtefactError, match=r"m\.featx"):
            featx.load(saved)
    refused = 0
    for position in range(0, len(whole), 41):
        changed = bytearray(whole)
        changed[position] ^= 0x10
        saved.write_bytes(changed)
        try:
            model = featx.load(saved)
        except ArtefactError:
            refused += 1
        else:
            np.testing.assert_array_equal(model.predict_proba(data[0]), expected)
    assert refused > 100


def rewrite(path, change, *, compression=zipfile.ZIP_STORED, extra=()):
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    details = json.loads(members["model.json"])
    change(details)
    members["model.json"] = json.dumps(details).encode()
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in [*members.items(), *extra]:
            archive.writestr(name, content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(version=2), "format version 2, this featx reads version 1: upgrade"),
        (lambda d: d.update(type="x"), "does not describe a featx model"),
        (lambda d: d.update(classes=["a", "b", "c"]), "states other classes than its head has"),
        (lambda d: d.update(n_features=7), "another number of features than its head takes"),
        (lambda d: d["spec"].update(version=5), "specification version 5"),
        (lambda d: d["spec"].update(secret=1), "parts that featx does not know"),
        (lambda d: d.pop("parameters"), r"model\.json lacks or distorts 'parameters'"),
        (lambda d: d["files"].update({"head.skops": "0" * 64}), "does not have the digest"),
        (lambda d: d.pop("files"), r"its members are not those that model\.json states"),
    ],
)
def test_a_description_that_lies_is_refused(saved, change, message):
    rewrite(saved, change)
    with pytest.raises(ArtefactError, match=message):
        featx.load(saved)


def test_a_compressed_file_and_foreign_members_are_refused(saved):
    rewrite(saved, lambda d: None, extra=[("../../etc/passwd", b"x")])
    with pytest.raises(ArtefactError, match="members that no featx model has"):
        featx.load(saved)
    with zipfile.ZipFile(saved, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.json", " " * (1 << 24))
    with pytest.raises(ArtefactError, match="is compressed"):
        featx.load(saved)
