"""An audit of real files tells what is wrong with them, and nothing is changed by it."""

from __future__ import annotations

import csv
import json
import re
import shutil
import sys
from unittest.mock import MagicMock

import numpy as np
import pytest
from onnx_files import write_net
from PIL import Image, ImageFilter, ImageOps
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import featx
from featx.auditing import label_errors, near_duplicates
from featx.auditing.audit import audit
from featx.auditing.label_errors import doubt_labels, held_out_probabilities
from featx.auditing.near_duplicates import near_pairs
from featx.exceptions import FeaturesError
from featx.files.identity import content_groups
from featx.selection.splits import dealt_folds

IMPORTED = {"backbone": "import:n", "tap": "imported"}


def draw(seed, *, colour=(0, 0, 0), side=160):
    """A picture of overlapping boxes of random colours: no two are alike."""
    generator = np.random.default_rng(seed)
    pixels = np.full((side, side, 3), colour, np.float64)
    for _ in range(25):
        x, y = generator.integers(0, side - 20, 2)
        w, h = generator.integers(10, 70, 2)
        pixels[y : y + h, x : x + w] = generator.integers(0, 256, 3) * 0.6 + np.array(colour) * 0.4
    noise = generator.normal(0, 4, pixels.shape)
    return Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes in two splits, 15 pictures each, with one doubtful image of every kind."""
    root = tmp_path_factory.mktemp("data") / "boxes"

    def save(image, path, **options):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        image.save(root / path, **options)

    for split in ("train", "test"):
        for number in range(15):
            seed = number + 100 * (split == "test")
            save(draw(seed, colour=(230, 0, 0)), f"{split}/red/{number}.png")
            save(draw(500 + seed, colour=(0, 0, 230)), f"{split}/blue/{number}.png")
    original = Image.open(root / "train" / "red" / "0.png")
    save(ImageOps.mirror(original), "test/red/mirror.png")
    save(original, "test/red/encoded.jpg", quality=40)
    save(Image.open(root / "train/blue/1.png").crop((10, 20, 150, 155)), "test/blue/crop.png")
    save(draw(900, colour=(230, 0, 0)), "train/blue/wrong.png")
    (root / "train/blue/copy.png").write_bytes((root / "train/red/2.png").read_bytes())
    (root / "test/red/leak.png").write_bytes((root / "train/red/3.png").read_bytes())
    save(Image.new("RGB", (160, 160), (250, 0, 0)), "train/red/blank.png")
    save(draw(901, colour=(0, 0, 230)).point(lambda v: v // 8), "train/blue/dark.png")
    save(draw(902).filter(ImageFilter.GaussianBlur(12)), "train/red/blurred.png")
    save(draw(903, side=30), "train/red/small.png")
    save(draw(904).resize((700, 40)), "train/blue/wide.png")
    (root / "train/red/bad.png").write_bytes(b"no picture")
    return root


@pytest.fixture(scope="module")
def features(folder):
    return featx.extract(folder, backbone="tiny", cache=folder.parent / "cache")


@pytest.fixture(scope="module")
def result(features):
    return audit(features)


def paths(result, kind):
    return [{image.path for image in finding.images} for finding in result.of(kind)]


def test_copies_are_found_within_and_across_splits(result):
    assert {"train/red/2.png", "train/blue/copy.png"} in paths(result, "contradiction")
    assert paths(result, "leak") == [{"train/red/3.png", "test/red/leak.png"}]
    near = paths(result, "near-leak")
    for name in ("mirror.png", "encoded.jpg"):
        assert {"train/red/0.png", f"test/red/{name}"} in near
    assert {"train/blue/1.png", "test/blue/crop.png"} in near
    kept = {"train/red/0.png", "test/red/mirror.png", "test/red/encoded.jpg"}
    for pair in near + paths(result, "near-duplicate"):
        assert pair <= kept or pair == {"train/blue/1.png", "test/blue/crop.png"}
    for finding in result.of("near-leak"):
        removed = [image.path for image in finding.images if image.action == "remove"]
        assert [path.split("/")[0] for path in removed] == ["train"]


def test_a_wrong_label_is_named_with_the_right_one(result):
    images = {image.path: image for finding in result.of("label") for image in finding.images}
    assert images["train/blue/wrong.png"].new_label == "red"
    assert len(images) < 8


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("blank", "train/red/blank.png"),
        ("dark", "train/blue/dark.png"),
        ("tiny", "train/red/small.png"),
        ("aspect", "train/blue/wide.png"),
        ("blurred", "train/red/blurred.png"),
        ("unreadable", "train/red/bad.png"),
    ],
)
def test_bad_pictures_are_named(result, kind, name):
    assert {name} in paths(result, kind)
    assert len(result.of(kind)) <= 3


def test_rows_are_those_of_the_features_and_the_table_holds_every_image(result, features, tmp_path):
    for finding in result.findings:
        for image in finding.images:
            assert image.row < 0 or features.paths[image.row] == image.path
    result.write_csv(tmp_path / "audit.csv")
    with (tmp_path / "audit.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [i.path for f in result.findings for i in f.images]
    assert json.loads(json.dumps(result.to_dict()))["counts"] == result.counts()


def test_small_held_out_parts_are_said_to_be_so(result):
    assert any("the split test has 3" in finding.evidence for finding in result.of("few"))


def test_missing_originals_leave_out_what_needs_them(features, tmp_path, folder):
    moved = folder.rename(folder.with_name("elsewhere"))
    try:
        result = audit(features)
    finally:
        moved.rename(folder)
    assert any("no original is where it was" in text for text in result.left_out)
    assert result.of("leak")
    assert not result.of("dark")


def test_features_without_images_names_and_labels_are_audited(tmp_path):
    generator = np.random.default_rng(0)
    X = generator.normal(size=(400, 4)).astype(np.float32)
    X[200:] += 9
    names = ["Käse"] * 100 + ["kase "] * 100 + ["x\x1b[2J<b>"] * 200
    named = featx.import_features("n", X, y=names, cache=tmp_path)
    result = audit(named)
    assert result.of("class-names")[0].classes == ("Käse", "kase ")
    assert "'kase =Käse'" in result.of("class-names")[0].command
    assert [finding.kind for finding in result.of("class-features")] == ["class-features"]
    bare = audit(featx.import_features("b", X, cache=tmp_path))
    assert "labels: there are none" in bare.left_out
    single = audit(featx.import_features("s", X, y=["a"] * 400, cache=tmp_path))
    assert any("one class only" in text for text in single.left_out)
    many = audit(featx.import_features("m", X, y=[f"c{n}" for n in range(400)], cache=tmp_path))
    assert len(many.of("few")) == 1
    assert len(many.of("near-contradiction")) < 40
    with pytest.raises(FeaturesError, match="no block for backbone='tiny'"):
        audit(named, backbone="tiny")


def test_an_index_names_the_pairs_that_all_comparisons_name(tmp_path, monkeypatch):
    pytest.importorskip("faiss", reason="faiss is not installed: extra audit")
    generator = np.random.default_rng(0)
    X = np.abs(generator.normal(size=(3000, 32))).astype(np.float32)
    X[1500:1600] = X[:100] + 0.05 * generator.normal(size=(100, 32))
    features = featx.import_features("n", X, cache=tmp_path)
    exact = near_pairs(features, IMPORTED, np.arange(3000))
    monkeypatch.setattr(near_duplicates, "EXACT_ROWS", 100)
    near = near_pairs(features, IMPORTED, np.arange(3000), max_ram_bytes=1 << 20)
    pairs = dict(zip(map(tuple, near.pairs.tolist()), near.cosine, strict=True))
    assert sum((row, 1500 + row) in pairs for row in range(100)) >= 98
    known = dict(zip(map(tuple, exact.pairs.tolist()), exact.cosine, strict=True))
    both = [pair for pair in known if pair in pairs]
    assert len(both) > 0.8 * len(known)
    np.testing.assert_allclose([pairs[p] for p in both], [known[p] for p in both], atol=1e-6)


class NamesFew(MagicMock):
    """Stands for faiss: its index names each row itself, and of the first two each other."""

    def search(self, queries, k):
        numbers = np.full((len(queries), k), -1)
        numbers[:, 0] = np.arange(len(queries))
        numbers[:2, 1] = [1, 0]
        return None, numbers


def test_where_an_index_names_no_other_row_nothing_is_said_of_how_near_they_are(
    tmp_path, monkeypatch
):
    faiss = MagicMock(IndexIVFScalarQuantizer=MagicMock(return_value=NamesFew()))
    monkeypatch.setitem(sys.modules, "faiss", faiss)
    monkeypatch.setattr(near_duplicates, "EXACT_ROWS", 10)
    X = np.random.default_rng(0).normal(size=(12, 8)).astype(np.float32)
    X[1] = X[0] + 0.1 * X[1]
    near = near_pairs(featx.import_features("n", X, cache=tmp_path), IMPORTED, np.arange(12))
    cosine = float(X[0] @ X[1] / np.linalg.norm(X[0]) / np.linalg.norm(X[1]))
    np.testing.assert_allclose(near.nearness, [cosine] * 2 + [np.nan] * 10, rtol=1e-5)
    assert near.pairs.tolist() == [[0, 1]]
    assert np.isfinite(near.relative_distance).all()


def test_label_doubts_are_those_of_cleanlab():
    filters = pytest.importorskip("cleanlab.filter", reason="cleanlab is not installed")
    rank = pytest.importorskip("cleanlab.rank")
    generator = np.random.default_rng(0)
    codes = generator.integers(0, 4, 2000)
    proba = generator.dirichlet(np.ones(4), 2000) + 0.8 * np.eye(4)[codes]
    proba /= proba.sum(axis=1, keepdims=True)
    codes[:200] = generator.integers(0, 4, 200)
    doubts = doubt_labels(codes, lambda: iter([(proba, np.arange(2000))]))
    expected = filters.find_label_issues(codes, proba, filter_by="confident_learning", n_jobs=1)
    np.testing.assert_array_equal(doubts.wrong, expected)
    np.testing.assert_allclose(doubts.quality, rank.get_label_quality_scores(codes, proba))


def test_the_command_prints_findings_and_writes_a_table_once(folder, featx_command, tmp_path):
    arguments = ("audit", folder, "--cache", folder.parent / "cache")
    first = featx_command(*arguments, "--csv", "audit.csv")
    assert first.returncode == 0, first.stderr
    assert "error: groups of equal images with different labels: 1" in first.stdout
    assert "next: featx dataset relabel boxes --from audit.csv --cache " in first.stdout
    (tmp_path / "mine.csv").write_text("mine\n")
    refused = featx_command(*arguments, "--csv", "mine.csv")
    assert (refused.returncode, "no table of an audit" in refused.stderr) == (2, True)
    report = json.loads(featx_command("audit", "boxes", *arguments[2:], "--json").stdout)
    assert report["counts"]["leak"] == 1
    assert featx_command(*arguments, "--csv", "audit.csv").returncode == 0


def test_a_folder_is_judged_by_the_features_that_it_has(photos, featx_command, tmp_path):
    folder, path = shutil.copytree(photos, tmp_path / "shots"), write_net(tmp_path / "net.onnx")
    own = ("-b", f"onnx:{path}", "--preprocessing", "unit")

    def audited():
        told = featx_command("audit", folder, "--json")
        assert told.returncode == 0, told.stderr
        return json.loads(told.stdout)

    featx_command("extract", folder, "--tap", "max")
    shutil.copy(folder / "red" / "0.jpg", folder / "red" / "new.jpg")
    report = audited()
    assert "by tiny max" in report["checked"][-1]
    assert report["images"] == 13  # with the one that came since
    featx_command("extract", folder, *own)
    report = audited()
    assert "by onnx:net avg, tiny max" in report["checked"][-1]
    assert len(featx.Features.open("shots", cache=tmp_path / "cache").blocks) == 2


@pytest.mark.parametrize("cut", [100, 500])
def test_a_class_that_was_cut_in_two_is_joined_again(tmp_path, cut):
    generator = np.random.default_rng(0)
    y = np.repeat(np.arange(4), 1000)
    X = generator.normal(size=(4000, 16)) + 2 * generator.normal(size=(4, 16))[y]
    names = np.array(["ant", "bee", "car", "dog"])[y]
    names[1000 : 1000 + cut] = "hum"
    features = featx.import_features("n", X.astype(np.float32), y=names.tolist(), cache=tmp_path)
    (finding,) = audit(features).of("class-features")
    assert set(finding.classes) == {"bee", "hum"}
    assert "hum=bee" in finding.command or cut == 500


def test_several_labels_an_image_are_not_judged(tmp_path):
    X = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)
    features = featx.import_features("n", X, y=["a|b", "a", "b"] * 20, cache=tmp_path)
    assert any("several labels an image" in text for text in audit(features).left_out)


def test_many_labels_are_judged_by_discriminants_as_by_scikit_learn(tmp_path, monkeypatch):
    monkeypatch.setattr(label_errors, "_MOST_CELLS", 0)
    monkeypatch.setattr(label_errors, "_SHRINKAGES", np.array([0.2]))
    monkeypatch.setattr(label_errors, "_BATCH_ROWS", 70)
    generator = np.random.default_rng(1)
    y = generator.integers(0, 3, 300)
    X = (generator.normal(size=(300, 6)) * 3 + 5 + y[:, None] * [4, 0, 1, 0, 0, 12]).astype("f4")
    labels = y.copy()
    labels[:15] = (y[:15] + 1) % 3
    features = featx.import_features("n", X, y=[f"c{code}" for code in labels], cache=tmp_path)
    passes = held_out_probabilities(features, IMPORTED, np.arange(300), seed=0)
    proba = np.concatenate([part for part, _ in passes()])
    model = make_pipeline(
        StandardScaler(), LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.2)
    )
    expected = np.zeros((300, 3))
    groups = content_groups(features.keys, None)
    fold_of = dealt_folds(labels, groups, 5, 0, exact=True)
    for train, test in ((fold_of != fold, fold_of == fold) for fold in range(5)):
        assert np.ptp(np.bincount(labels[test])[:3] - np.bincount(labels)[:3] / 5) < 2
        expected[test] = model.fit(X[train], labels[train]).predict_log_proba(X[test])
    np.testing.assert_array_equal(proba.argmax(axis=1), expected.argmax(axis=1))
    # One temperature divides all.
    ratio = (np.log(proba[:, :1]) - np.log(proba)) / (expected[:, :1] - expected + 1e-9)
    np.testing.assert_allclose(ratio[:, 1:], np.median(ratio[:, 1:]), rtol=1e-2)
    assert doubt_labels(labels, passes).wrong[:15].sum() >= 12


def test_sums_that_do_not_fit_leave_labels_out(tmp_path, monkeypatch):
    monkeypatch.setattr(label_errors, "_MOST_CELLS", 0)
    X = np.random.default_rng(0).normal(size=(60, 50)).astype(np.float32)
    features = featx.import_features("n", X, y=["a", "b"] * 30, cache=tmp_path)
    (reason,) = audit(features, max_ram="300KB").left_out[1:]
    assert re.search(r"labels: sums of products of 50 features .* half of --max-ram", reason)


def test_more_images_than_are_compared_exactly_need_an_index(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    monkeypatch.setattr(near_duplicates, "EXACT_ROWS", 30)
    X = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)
    result = audit(featx.import_features("n", X, y=["a", "b"] * 30, cache=tmp_path))
    assert any("pip install 'featx[audit]'" in text for text in result.left_out)
    assert any(text.startswith("labels of 60 images") for text in result.checked)
    assert not result.of("outlier")
