"""Reduced precision: what ``fast`` stands for, what it is compared with, and what models do."""

from __future__ import annotations

import importlib.util
import logging
from dataclasses import replace

import numpy as np
import pytest

import featx
from featx.engines import choice, openvino
from featx.engines.choice import make_engine, settle_precision
from featx.exceptions import EngineError
from featx.extraction.agreement import compare
from featx.extraction.job import Request
from featx.models.evaluation import extract_for


@pytest.fixture
def processor(monkeypatch):
    """A function that sets which half precision the processor has."""
    return lambda half: monkeypatch.setattr(openvino, "half_precision", lambda: half)


@pytest.fixture
def source(small_network):
    return featx.backbones.source.resolve_backbone(f"file:{small_network}")


@pytest.mark.parametrize("half", ["bf16", "f16"])
def test_fast_is_the_half_precision_of_the_processor(processor, photos, tmp_path, half):
    processor(half)
    (spec, network), *_ = Request(precision="fast", cache=tmp_path).settle(photos).parts
    assert spec.precision == network.precision == half
    plain = Request(cache=tmp_path).settle(photos).parts[0][0]
    assert spec.name != plain.name
    assert featx.FeatureSpec.from_dict(spec.to_dict()) == spec


def test_fast_is_f32_and_says_so_where_the_processor_has_no_other(
    processor, photos, extract, caplog
):
    processor(None)
    fast = extract(photos, precision="fast")
    assert fast.spec().precision == "f32"
    assert "neither bf16 nor f16: --precision fast is f32 here" in caplog.text
    assert "agreement" not in fast.report
    assert extract(photos).report["extracted"] == 0


def test_fast_is_mixed_where_keras_runs_the_network(source, monkeypatch):
    assert settle_precision("fast", "keras", source) == "mixed"
    monkeypatch.setattr(choice, "may_have_gpu", lambda: True)
    monkeypatch.setattr(choice, "gpus", lambda: ["gpu:0"])
    assert settle_precision("fast", "auto", source) == "mixed"
    assert settle_precision("f32", "auto", source) == "f32"


@pytest.mark.parametrize(("engine", "precision"), [("keras", "bf16"), ("openvino", "mixed")])
def test_an_engine_names_what_it_computes_in(source, engine, precision):
    with pytest.raises(EngineError, match=f"'{engine}' computes in f32 or .*'{precision}'"):
        make_engine(engine, source, ("avg",), precision=precision)


def test_a_precision_that_the_processor_lacks_is_refused_or_computed(source, tmp_path):
    native = openvino.half_precision()
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    exact = make_engine("openvino", source, ("avg",), folder=tmp_path).run(images)["avg"]
    for half in ("bf16", "f16"):
        if half != native:
            with pytest.raises(
                EngineError, match=f"compute in {half}.*take --precision f32.*no {half}"
            ):
                make_engine("auto", source, ("avg",), precision=half, folder=tmp_path)
            continue
        engine = make_engine("auto", source, ("avg",), precision=half, folder=tmp_path)
        assert engine.provenance()["precision"] == half
        np.testing.assert_allclose(engine.run(images)["avg"], exact, rtol=0.05, atol=0.02)


def test_an_extraction_says_how_far_it_is_from_f32(photos, extract, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "featx"):
        mixed = extract(photos, engine="keras", precision="mixed")
    (agreement,) = mixed.report["agreement"]
    assert agreement["precision"] == "mixed"
    assert agreement["images"] == 12
    assert 0.99 < agreement["least_cosine"] <= agreement["cosine"] <= 1
    assert agreement["neighbours"] > 0.5
    assert agreement["accuracy"] == pytest.approx(agreement["accuracy_f32"], abs=0.2)
    assert "in mixed against f32 on 12 of the images: cosine " in caplog.text
    (kept,) = (tmp_path / "cache" / "spaces").iterdir()
    assert kept.name == mixed.spec().name, "features in f32 are not kept"
    exact = extract(photos, engine="keras").X
    first = compare(exact, mixed.X, mixed.manifest.label)
    assert first["least_cosine"] == pytest.approx(agreement["least_cosine"], abs=1e-4)


def test_images_of_a_table_and_of_splits_are_compared_too(photos, extract, tmp_path):
    rows = [f"{path.relative_to(photos)},{path.parent.name}" for path in photos.rglob("*.jpg")]
    (tmp_path / "table.csv").write_text("\n".join(["path,label", *rows]))
    mixed = {"engine": "keras", "precision": "mixed"}
    table = extract(tmp_path / "table.csv", root=photos, **mixed)
    assert table.report["agreement"][0]["images"] == 12
    photos.rename(tmp_path / "pilot")
    (tmp_path / "split").mkdir()
    (tmp_path / "pilot").rename(tmp_path / "split" / "pilot")
    split = extract(tmp_path / "split", splits={"pilot": "train"}, taps="max", **mixed)
    assert split.report["agreement"][0]["tap"] == "max"


def test_a_few_new_images_are_not_compared_again(photos, extract, draw_photo):
    extract(photos, engine="keras", precision="mixed")
    draw_photo(photos, "red/new.jpg", seed=77, colour=(190, 70, 70))
    assert "agreement" not in extract(photos, engine="keras", precision="mixed").report


def test_a_comparison_sees_what_was_changed():
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1], 30)
    X = (generator.normal(size=(60, 8)) + 3 * labels[:, None]).astype(np.float32)
    same = compare(X, X, labels)
    assert (same["cosine"], same["neighbours"]) == (1, 1)
    assert same["accuracy"] == same["accuracy_f32"] > 0.9
    other = compare(X, generator.permutation(X), labels)
    assert other["neighbours"] < 0.5
    assert other["accuracy"] < 0.8
    for unlabelled in (np.full(60, -1), np.zeros(60, int), np.arange(60)):
        assert "accuracy" not in compare(X, X, unlabelled)


def test_a_model_predicts_in_its_precision_where_the_processor_has_it(
    processor, photos, extract, tmp_path
):
    model = featx.train(extract(photos), head="nearest-mean").model
    expected = model.predict_proba(photos)
    model.specs_ = (replace(model.spec_, precision="bf16"),)
    path = tmp_path / "model.featx"
    model.save(path)
    model = featx.load(path)
    assert model.spec_.precision == "bf16"
    images = featx.ImageDataset.from_folder(photos)
    processor("f16")
    assert model.job(images).parts[0][0].precision == "f32"
    np.testing.assert_allclose(model.predict_proba(photos), expected, atol=1e-6)
    processor("bf16")
    spec, network = model.job(images).parts[0]
    assert spec.precision == network.precision == "bf16"


def test_int8_is_calibrated_on_images_of_the_dataset(
    photos, extract, tmp_path, monkeypatch, caplog
):
    pytest.importorskip("nncf", reason="nncf is not installed")
    monkeypatch.setenv("FEATX_ENGINES", str(tmp_path / "engines"))
    exact = extract(photos)
    with caplog.at_level(logging.WARNING, "featx"):
        quantised = extract(photos, precision="int8")
    precision = quantised.spec().precision
    assert precision.startswith("int8:")
    (agreement,) = quantised.report["agreement"]
    assert (agreement["precision"], agreement["images"]) == ("int8", 12)
    assert agreement["cosine"] > 0.95
    assert "in int8 against f32 on 12 of the images" in caplog.text
    assert not np.array_equal(quantised.X, exact.X)
    # The same network serves new images, and other processes.
    again = extract(photos, precision="int8")
    assert (again.spec().precision, again.report["extracted"]) == (precision, 0)
    result = featx.train(quantised, head="nearest-mean")
    path = tmp_path / "model.featx"
    result.model.save(path)
    model = featx.load(path)
    images = featx.ImageDataset.from_folder(photos)
    assert model.job(images).parts[0][0].precision == precision
    scores = featx.evaluate(model, images)["accuracy"], featx.evaluate(model, quantised)["accuracy"]
    assert scores[0] == scores[1]
    features = extract_for(model, photos, cache=tmp_path / "cache")
    assert (features.spec(), features.report["extracted"]) == (quantised.spec(), 0)
    done = featx.export(path, tmp_path / "model.xml", verify=images)
    assert done.verification["passed"]
    assert "the export computes in f32" in caplog.text
    # Without the network, predictions are in f32, and nothing more can be extracted.
    monkeypatch.setenv("FEATX_ENGINES", str(tmp_path / "others"))
    assert model.job(images).parts[0][0].precision == "f32"
    assert model.predict(photos).tolist() == featx.load(path).predict(photos).tolist()
    other = extract(photos, precision="int8", name="others")
    assert other.spec().precision.startswith("int8:")


@pytest.mark.parametrize("damage", [b"", b"<net/>"])
def test_a_changed_int8_network_is_not_used(photos, extract, tmp_path, monkeypatch, damage):
    pytest.importorskip("nncf", reason="nncf is not installed")
    folder = tmp_path / "engines"
    monkeypatch.setenv("FEATX_ENGINES", str(folder))
    precision = extract(photos, precision="int8").spec().precision
    (file,) = folder.glob("*-int8-*/model.xml")
    file.write_bytes(damage)
    choice._built.cache_clear()  # as another process would begin
    with pytest.raises(EngineError, match=r"int8 network .* is not in .*: extract with"):
        extract(photos, precision=precision, cache=tmp_path / "fresh")
    assert extract(photos, precision="int8", cache=tmp_path / "new").report["extracted"] == 12


def test_int8_needs_images_and_nncf(photos, extract, tmp_path, monkeypatch):
    import sys

    pictures = sorted(photos.rglob("*.jpg"))[:3]
    if "nncf" in sys.modules or importlib.util.find_spec("nncf"):
        with pytest.raises(EngineError, match="expected 10 that can be read, received 3"):
            extract(pictures, precision="int8")
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(ImportError, match=r"--precision int8 needs nncf.*featx\[int8\]"):
        extract(photos, precision="int8")
