from __future__ import annotations

import json
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

import featx
from featx.exceptions import ArtefactError, FeaturesError, WeightsError
from featx.heads.table import HEADS
from featx.models.model_file import load_predictor, read_details


def test_every_head_gives_the_same_answers_in_another_process(
    heads, numbers, spec, tmp_path, run_python
):
    X = np.concatenate([numbers[0], np.random.default_rng(5).normal(size=(50, 6)).astype("f4")])
    np.save(tmp_path / "X.npy", X)
    for name, model in heads.items():
        model.save(tmp_path / f"{name}.featx", spec=spec)
    code = (
        "import featx, sys, numpy as np, pathlib\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "X = np.load(folder / 'X.npy')\n"
        "for path in sorted(folder.glob('*.featx')):\n"
        "    model = featx.load(path, cache=folder / 'fresh')\n"
        "    np.save(path.with_suffix('.proba.npy'), model.predict_proba(X))\n"
        "    np.save(path.with_suffix('.labels.npy'), model.predict(X))\n"
        "print(sorted({'tensorflow', 'keras'} & set(sys.modules)))"
    )
    assert run_python(code).stdout.strip() == "[]"
    for name, model in heads.items():
        proba = np.load(tmp_path / f"{name}.proba.npy")
        np.testing.assert_allclose(proba, model.predict_proba(X), atol=1e-5)
        assert np.load(tmp_path / f"{name}.labels.npy").tolist() == model.predict(X).tolist()


def test_models_of_the_first_version_give_the_same_answers_without_trust(tmp_path):
    """Made by featx 0.1: every head, for classes, two classes and several labels."""
    with tarfile.open(Path(__file__).parents[1] / "data" / "models-v1.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    expected = np.load(tmp_path / "expected.npz")
    paths = sorted(tmp_path.glob("*.featx"))
    assert {path.stem for path in paths} == set(expected) - {"X"}
    for path in paths:
        for load in (featx.load, load_predictor):
            proba = load(path).head_.predict_proba(expected["X"])
            # Of nearest neighbours, the distance of an image to itself is rounding.
            allowed = 1e-5 if "knn" in path.stem else 1e-6
            np.testing.assert_allclose(proba, expected[path.stem], atol=allowed, err_msg=path.stem)


def test_everything_that_a_prediction_needs_is_in_the_file(heads, spec, tmp_path):
    path = tmp_path / "m.featx"
    heads["logistic"].save(
        path,
        spec=spec,
        metrics={"accuracy": np.float64(0.5), "log_loss": float("inf"), "protocol": "none"},
        training={"sha256": "ab"},
        command="featx train photos/",
    )
    details = read_details(path)
    assert details["classes"] == ["ant", "bee", "蜂"]
    assert details["metrics"] == {"accuracy": 0.5, "log_loss": None, "protocol": "none"}
    assert details["training"] == {"sha256": "ab"}
    assert details["command"] == "featx train photos/"
    assert details["parameters"]["random_state"] == 0
    assert {"featx", "scikit-learn", "python"} <= set(details["versions"])
    assert featx.FeatureSpec.from_dict(details["spec"]) == spec
    with zipfile.ZipFile(path) as archive:
        assert {member.compress_type for member in archive.infolist()} == {zipfile.ZIP_STORED}
    model = featx.load(path)
    assert model.backbone == "mobilenet_v2"
    assert model.input_size == (64, 64)


def test_other_weights_than_those_of_training_are_refused(saved, photos):
    with pytest.raises(WeightsError, match="trained with weights .* whose SHA-256 is 1111"):
        featx.load(saved).predict([str(next(photos.rglob("*.jpg")))])


@pytest.mark.parametrize(
    ("change", "part"),
    [({"preprocessing": "torch"}, "preprocessing"), ({"image": "crop"}, "image")],
)
def test_images_that_would_be_read_otherwise_are_refused(
    change, part, small_network, photos, tmp_path, rewrite
):
    paths = sorted(str(path) for path in photos.rglob("*.jpg"))
    model = featx.ImageClassifier(f"file:{small_network}")
    model.fit(paths, ["blue"] * 6 + ["red"] * 6).save(tmp_path / "m.featx")
    expected = model.predict_proba(paths)
    loaded = featx.load(tmp_path / "m.featx")
    np.testing.assert_allclose(loaded.predict_proba(paths), expected, atol=1e-6)
    if part == "image":
        loaded.image = featx.ImagePolicy(resize="crop")
    else:
        loaded.preprocessing = change["preprocessing"]
    with pytest.raises(FeaturesError, match=f"the model was trained with {part} .* train again"):
        loaded.predict(paths)


def test_it_is_written_whole_or_not_at_all(heads, spec, tmp_path):
    model = heads["logistic"]
    with pytest.raises(ArtefactError, match=r"cannot write .*Name a file with -o"):
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


def damaged(whole, generator):
    """The file cut, or with one bit changed."""
    if generator.random() < 0.2:
        return whole[: generator.integers(len(whole))]
    changed = bytearray(whole)
    changed[generator.integers(len(whole))] ^= 1 << generator.integers(8)
    return bytes(changed)


def check_damage(path, X, count, seed):
    whole = path.read_bytes()
    expected = featx.load(path).predict_proba(X)
    generator = np.random.default_rng(seed)
    refused = 0
    for _ in range(count):
        path.write_bytes(damaged(whole, generator))
        try:
            model = featx.load(path)
        except ArtefactError as error:
            assert str(path) in str(error)
            refused += 1
        else:  # a bit that nothing depends on, as the time that a zip gives its members
            np.testing.assert_array_equal(model.predict_proba(X), expected)
    assert refused > 0.9 * count


@pytest.mark.parametrize("head", ["logistic", "dense"])
def test_no_damage_gives_a_wrong_answer(head, heads, numbers, spec, tmp_path):
    heads[head].save(tmp_path / "m.featx", spec=spec)
    check_damage(tmp_path / "m.featx", numbers[0], 500, 0)


@pytest.mark.slow
@pytest.mark.parametrize("head", sorted(HEADS))
def test_no_damage_of_any_head_gives_a_wrong_answer(head, heads, numbers, spec, tmp_path):
    heads[head].save(tmp_path / "m.featx", spec=spec)
    check_damage(tmp_path / "m.featx", numbers[0], 1000, 1)


def test_a_bit_in_a_member_is_found_by_its_digest_too(saved):
    """A CRC-32 is no protection against intent: the digest is of SHA-256."""
    whole = saved.read_bytes()
    with zipfile.ZipFile(saved) as archive:
        member = archive.getinfo("head.h5")
        data = bytearray(archive.read(member))
    place = whole.index(bytes(data))
    data[len(data) // 2] ^= 1
    crc = struct.pack("<I", zlib.crc32(data))
    forged = whole[:place] + bytes(data) + whole[place + len(data) :]
    saved.write_bytes(forged.replace(struct.pack("<I", member.CRC), crc))
    with pytest.raises(ArtefactError, match=r"head\.h5 does not have the digest"):
        featx.load(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(version=6), "format version 6, this featx reads version 5: upgrade"),
        (lambda d: d.update(version=True), "states no format version, received True"),
        (lambda d: d.update(type="x"), "does not describe a featx model"),
        (lambda d: d.update(classes=["a", "b", "c"]), "states other classes than its head has"),
        (lambda d: d.update(n_features=7), "another number of features than its head takes"),
        (lambda d: d.update(n_features=10**12), "n_features is 1000000000000, expected 1 to"),
        (lambda d: d["spec"].update(version=5), "specification version 5"),
        (lambda d: d["spec"].update(secret=1), "parts that featx does not know"),
        (lambda d: d["spec"].update(input_size_px=[10**9] * 2), "input_size_px is 1000000000"),
        (lambda d: d["spec"].update(backbone="resnet50"), "its parameters are of mobilenet_v2"),
        (lambda d: d["parameters"].update(backbone="resnet5"), "unknown backbone 'resnet5'"),
        (lambda d: d.update(tap=7), "lacks or distorts tap"),
        (
            lambda d: d.update(views={"count": 10**9, "average": True, "policy": {}}),
            "number of views is 1000000000",
        ),
        (lambda d: d.pop("parameters"), r"model\.json lacks or distorts 'parameters'"),
        (lambda d: d["files"].update({"head.h5": "0" * 64}), "does not have the digest"),
        (lambda d: d.pop("files"), r"its members are not those that model\.json states"),
    ],
)
def test_a_description_that_lies_is_refused(saved, rewrite, change, message):
    rewrite(saved, lambda details: (change(details), None)[1])
    with pytest.raises(ArtefactError, match=message):
        featx.load(saved)


def test_a_later_version_is_named_whatever_its_members_are(saved, rewrite):
    rewrite(saved, lambda d: d.update(version=9), extra=[("backbone.h5", b"x")])
    with pytest.raises(ArtefactError, match="format version 9, .*: upgrade featx"):
        read_details(saved)


def test_a_confusion_matrix_of_many_classes_is_left_out(heads, spec, tmp_path):
    metrics = {"accuracy": 0.1, "confusion": np.zeros((300, 300), int).tolist()}
    heads["logistic"].save(tmp_path / "m.featx", spec=spec, metrics=metrics)
    assert read_details(tmp_path / "m.featx")["metrics"] == {"accuracy": 0.1}


NAMES = ["سيارة", "🐜 ant", "line\nbreak", 'comma, "quote"', "caf\udce9", "蜂", "0", "_ _"]


MANY = [f"class {n:04d}" for n in range(1000)]


@pytest.mark.parametrize(
    ("head", "names"),
    [
        *((head, NAMES) for head in ("logistic", "dense", "knn", "ridge")),
        *((head, ["no", "yes"]) for head in ("logistic", "dense", "lda", "svm")),
        ("knn", MANY),
        ("ridge", MANY),
    ],
    ids=lambda value: value if isinstance(value, str) else str(len(value)),
)
def test_class_names_of_any_script_and_number_go_through(head, names, fitted, spec, tmp_path):
    generator = np.random.default_rng(1)
    codes = np.repeat(np.arange(len(names)), 2)
    means = generator.normal(size=(len(names), 6))
    X = (means[codes] + generator.normal(0, 0.05, (len(codes), 6))).astype(np.float32)
    model = fitted(head, X, np.array(names)[codes])
    model.save(tmp_path / "m.featx", spec=spec)
    loaded = featx.load(tmp_path / "m.featx")
    assert loaded.classes_.tolist() == sorted(names)
    np.testing.assert_allclose(loaded.predict_proba(X), model.predict_proba(X), atol=1e-4)
    assert loaded.predict(X).tolist() == model.predict(X).tolist()
    assert json.loads(json.dumps(read_details(tmp_path / "m.featx")))["classes"] == sorted(names)
