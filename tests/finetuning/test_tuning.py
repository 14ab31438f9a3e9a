"""`finetune` from end to end: what is saved, what it says, what it refuses."""

from __future__ import annotations

import csv
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from scipy.special import logsumexp

import featx
from featx.backbones.weights import NETWORK, OWN_NETWORK, read_tuned, unpacked
from featx.exceptions import (
    ArtefactError,
    DatasetError,
    FineTuningError,
    UnknownNameError,
    WeightsError,
)
from featx.finetuning.objectives import best_temperature, hold_out_scores
from featx.finetuning.tuning import finetune, rehearse


@pytest.fixture(scope="module")
def tuned(trained, pictures, cache, tmp_path_factory):
    """One fine-tuning that is better than its head."""
    output = tmp_path_factory.mktemp("tuned") / "tuned.featx"
    options = {"unfreeze": "all", "epochs": 8, "batch_size": 8, "learning_rate": 1e-2, "views": 0}
    return finetune(trained(), pictures, output, cache=cache, **options)


@pytest.fixture(scope="module")
def catalogued(pictures, cache, tmp_path_factory):
    """A fine-tuned network of the catalogue, with its result."""
    folder = tmp_path_factory.mktemp("catalogued")
    features = featx.extract(pictures, backbone="tiny", cache=cache)
    # Hardly trained, so that the network is better.
    model = featx.train(features, backbone="tiny", head="logistic:C=1e-5", cv=0, cache=cache).model
    options = {"unfreeze": "10%", "epochs": 4, "learning_rate": 1e-3, "views": 0}
    return finetune(model, pictures, folder / "small.featx", cache=cache, **options)


def test_the_result_is_better_and_says_on_what(tuned):
    said = tuned.metrics["finetuning"]
    assert tuned.kept == said["kept"] == "finetuned"
    assert said["finetuned"]["accuracy"] >= said["head"]["accuracy"]
    assert said["finetuned"]["log_loss"] < said["head"]["log_loss"]
    chose = "hold-out of 10 images, which chose the epoch (best of 8) and the temperature"
    assert f"{chose}: optimistic" in tuned.metrics["protocol"]
    best = tuned.history[said["best_epoch"]]
    assert best["val_accuracy"] == said["finetuned"]["accuracy"] == tuned.metrics["accuracy"]
    assert not (tuned.path.parent / "tuned.featx.training" / "checkpoint.npz").exists()


def test_the_temperature_is_in_the_model(tuned):
    said, scored = tuned.metrics["finetuning"], tuned.scored
    files = [scored.features.paths[row] for row in scored.rows]
    root = Path(scored.features.manifest.root)
    proba = tuned.model.predict_proba([root / file for file in files])
    codes = np.searchsorted(tuned.model.classes_, scored.features.y[scored.rows])
    accuracy, loss = hold_out_scores(proba, codes)
    assert accuracy == said["finetuned"]["accuracy"]
    assert loss == pytest.approx(said["finetuned"]["log_loss"], rel=1e-3)
    # Without it the network is what the best epoch left.
    warm = np.log(proba) * said["temperature"]
    warm = np.exp(warm) / np.exp(warm).sum(axis=1, keepdims=True)
    before = tuned.history[said["best_epoch"]]["val_loss"]
    assert hold_out_scores(warm, codes)[1] == pytest.approx(before, rel=1e-2, abs=1e-3)
    # Ten images that are all right do not show that the network may be as sure as it is.
    assert (accuracy, said["temperature"] > 1) == (1, True)


def test_the_best_temperature_has_the_least_log_loss():
    generator = np.random.default_rng(0)
    codes = generator.integers(0, 3, 400)
    logits = generator.normal(size=(400, 3)) + 1.5 * np.eye(3)[codes]
    sure = best_temperature(20 * logits, codes)
    assert sure == pytest.approx(20 * best_temperature(logits, codes), rel=1e-3)
    for other in (0.8, 1.25):
        least, more = (logsumexp(20 * logits / t, axis=1) - (20 * logits / t)[range(400), codes]
                       for t in (sure, sure * other))  # fmt: skip
        assert least.mean() < more.mean()
    # Images that are all right make a network as sure as their number allows, and no surer.
    for images in (4, 40, 400):
        codes = np.arange(images) % 3
        logits = 10 * np.eye(3)[codes]
        sureness = np.exp(-logsumexp(logits / best_temperature(logits, codes), axis=1))
        sureness = np.exp(logits.max() / best_temperature(logits, codes)) * sureness[0]
        assert 1 - sureness == pytest.approx(0.5 / (images + 0.5), rel=0.4)


@pytest.mark.parametrize("which", ["tuned", pytest.param("catalogued", marks=pytest.mark.slow)])
def test_it_predicts_the_same_in_a_fresh_process_with_a_fresh_cache(
    which, request, pictures, run_python, tmp_path
):
    result = request.getfixturevalue(which)
    assert result.kept == "finetuned"
    files = sorted(str(path) for path in pictures.glob("*/[0-3].png"))
    expected = result.model.predict_proba(files)
    moved = tmp_path / "elsewhere.featx"
    moved.write_bytes(result.path.read_bytes())
    code = (
        "import featx, json\n"
        f"model = featx.load({str(moved)!r}, cache={str(tmp_path / 'fresh')!r})\n"
        f"print(json.dumps(model.predict_proba({files!r}).tolist()))"
    )
    found = json.loads(run_python(code).stdout.splitlines()[-1])
    np.testing.assert_allclose(found, expected, atol=1e-6)
    table = list(featx.predict(featx.load(moved), files))
    assert [row.top[0][0] for row in table] == result.model.predict(files).tolist()


@pytest.mark.parametrize(
    ("which", "name"),
    [("tuned", "m.keras"), pytest.param("catalogued", "m.tflite", marks=pytest.mark.slow)],
)
def test_it_exports_and_verifies(which, name, request, pictures, cache, tmp_path):
    path = request.getfixturevalue(which).path
    done = featx.export(path, tmp_path / name, verify=pictures, cache=cache)
    assert done.verification["top1_changed"] == 0


@pytest.mark.slow
def test_it_is_a_backbone_and_weights(catalogued, pictures, cache, tmp_path):
    own = {"backbone": f"file:{catalogued.path}", "cache": cache}
    features = featx.extract(pictures, **own)
    other = featx.extract(pictures, backbone="tiny", weights=catalogued.path, cache=cache)
    np.testing.assert_array_equal(features.X, other.X)
    head = featx.train(features, head="lda", cv=0, **own).model
    head.save(tmp_path / "lda.featx")
    with zipfile.ZipFile(tmp_path / "lda.featx") as archive:
        assert NETWORK in archive.namelist()
    again = featx.load(tmp_path / "lda.featx", cache=tmp_path / "fresh")
    files = sorted(str(path) for path in pictures.glob("*/0.png"))
    np.testing.assert_allclose(again.predict_proba(files), head.predict_proba(files), atol=1e-6)


def test_it_can_be_tuned_further(tuned, pictures, cache, tmp_path):
    options = {"unfreeze": "second", "epochs": 1, "views": 0}
    more = finetune(tuned.path, pictures, tmp_path / "more.featx", cache=cache, **options)
    with zipfile.ZipFile(more.path) as archive:
        assert OWN_NETWORK in archive.namelist()
    # The same hold-out, and so the head of before: it goes on from where it was.
    before = tuned.metrics["finetuning"]["finetuned"]
    assert more.history[0]["val_accuracy"] == before["accuracy"]
    assert more.history[0]["val_loss"] == pytest.approx(before["log_loss"], abs=1e-5)


def test_the_head_is_kept_where_no_epoch_beats_it(tune, trained, pictures):
    before = featx.load(trained())
    result = tune(learning_rate=1e4, warmup=0.0)
    assert result.kept == "head"
    assert "diverged" in result.stopped
    assert result.metrics["finetuning"]["finetuned"] is None
    files = sorted(str(path) for path in pictures.glob("*/0.png"))
    np.testing.assert_array_equal(result.model.predict_proba(files), before.predict_proba(files))
    assert featx.load(result.path).backbone == before.backbone
    assert "which chose between the head and" in result.metrics["finetuning"]["protocol"]


@pytest.fixture
def split(trained, pictures, cache, tmp_path):
    """A fine-tuning on a dataset with splits named train, val and test."""
    table = tmp_path / "split.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split"])
        for path in sorted(pictures.glob("*/*.png")):
            number = int(path.stem)
            name = "test" if number >= 13 else "val" if number >= 10 else "train"
            writer.writerow([path, path.parent.name, name])
    options = {"unfreeze": "second", "epochs": 2, "views": 0}
    return finetune(trained(), table, tmp_path / "t.featx", cache=cache, **options)


def test_splits_of_the_dataset_are_kept_to(split):
    said, kept = split.metrics["finetuning"], split.kept
    assert said["hold_out"] == "split val of 9 images"
    assert said["test"]["images"] == split.metrics["images"] == 9
    assert said["test"][kept] == split.metrics["accuracy"]
    assert said["test"][f"{kept}_log_loss"] == pytest.approx(split.metrics["log_loss"], rel=1e-5)
    assert "chose neither the epoch nor the temperature" in split.metrics["protocol"]
    assert said["protocol"] == split.metrics["protocol"]


def test_the_page_says_that_the_images_chose_nothing(split, tmp_path):
    pytest.importorskip("jinja2", reason="reports need the extra report")
    split.report(tmp_path / "page.html", bootstrap=0)
    page = (tmp_path / "page.html").read_text("utf-8")
    assert "9 images, which chose neither the epoch nor the temperature" in page


@pytest.mark.slow
def test_class_weights_change_the_course(tune):
    plain, balanced = tune("a.featx"), tune("b.featx", class_weight={"ant": 5.0})
    assert plain.history[1]["loss"] != balanced.history[1]["loss"]


def test_without_room_for_activations_it_trains_from_pixels(
    tune, trained, pictures, cache, monkeypatch, caplog
):
    import featx.finetuning.start as material

    options = {"unfreeze": "second", "batch_size": 8, "epochs": 1, "views": 0}
    assert rehearse(trained(), pictures, cache=cache, **options).cut == ["first"]
    monkeypatch.setattr(material, "_SHARE_OF_DISK", 1e-12)
    foreseen = rehearse(trained(), pictures, cache=cache, **options)
    assert (foreseen.cut, foreseen.activation_bytes, foreseen.extraction_s) == ([], 0, 0)
    assert tune(**options).cut == ()
    assert caplog.text.count("the frozen part is run in every step instead") == 2


def test_a_rehearsal_refuses_what_a_training_does(trained, pictures, cache):
    with pytest.raises(UnknownNameError, match="option of finetune 'epoch': did you mean 'epochs'"):
        rehearse(trained(), pictures, cache=cache, epoch=3)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"unfreeze": "secnd"}, UnknownNameError, "did you mean 'second'"),
        ({"epoch": 3}, UnknownNameError, "did you mean 'epochs'"),
        ({"epochs": 0}, FineTuningError, "epochs must be 1 or more, received 0"),
        ({"learning_rate": -1.0}, FineTuningError, "learning_rate must be a number above 0"),
        ({"learning_rate": float("nan")}, FineTuningError, "learning_rate must be"),
        ({"mixing": "mixdown"}, FineTuningError, "mixing must be one of none, mixup, cutmix"),
        ({"class_weight": "even"}, FineTuningError, "class_weight must be 'balanced'"),
        ({"class_weight": {"wasp": 2.0}}, UnknownNameError, "class in class_weight 'wasp'"),
        ({"output": "nowhere/t.featx"}, FineTuningError, "does not exist: make it"),
    ],
)
def test_what_cannot_be_asked_for(options, error, message, tune):
    with pytest.raises(error, match=message):
        tune(**options)


def test_a_hold_out_without_every_class(trained, pictures, cache, tmp_path):
    table = tmp_path / "bad.csv"
    held_out = [f"{name}/{number}.png" for name in ("ant", "bee") for number in (1, 2)]
    rows = [
        f"{path},{path.parent.name},{'val' if str(path).endswith(tuple(held_out)) else 'train'}"
        for path in sorted(pictures.glob("*/*.png"))
    ]
    table.write_text("path,label,split\n" + "\n".join(rows))
    with pytest.raises(DatasetError, match=r"hold-out \(4 images\) have no image of class 'moth'"):
        finetune(trained(), table, tmp_path / "t.featx", cache=cache, unfreeze="second")


def test_classes_that_the_model_does_not_know(tune, tmp_path, draw_photo):
    for number in range(4):
        draw_photo(tmp_path / "more", f"wasp/{number}.jpg", seed=number, colour=(9, 9, 9))
        draw_photo(tmp_path / "more", f"ant/{number}.jpg", seed=9 + number, colour=(99, 9, 9))
    with pytest.raises(FineTuningError, match="classes that the model does not know: wasp"):
        tune(data=tmp_path / "more")


@pytest.mark.parametrize(
    ("tap", "head", "begins"),
    [
        (["avg", "first:max"], "lda", "a new head (lda) on the tap avg"),
        (["first", "second:max"], "knn", "a new head (logistic) on the tap avg"),
    ],
)
def test_a_model_of_several_taps_starts_from_a_head_on_the_last(
    tap, head, begins, pictures, cache, small_network, tmp_path, caplog
):
    backbone = f"file:{small_network}"
    features = featx.extract(pictures, backbone=backbone, taps=tap, cache=cache)
    made = featx.train(features, backbone=backbone, tap=tap, head=head, cv=0, cache=cache)
    made.model.save(tmp_path / "m.featx", training=made.training)
    options = {"unfreeze": "second", "epochs": 6, "batch_size": 8, "learning_rate": 1e-2}
    result = finetune(
        tmp_path / "m.featx", pictures, tmp_path / "t.featx", cache=cache, views=0, **options
    )
    assert f"starts from {begins}, and compares its result with the model's own" in caplog.text
    said = result.metrics["finetuning"]
    assert said["started_from"] == begins
    # The comparison is with the model's own head, fitted without the hold-out.
    scored = result.scored
    names = features.y
    chosen = np.isin(features.paths, [scored.features.paths[row] for row in scored.rows])
    own = featx.train(features[~chosen], backbone=backbone, tap=tap, head=head, cv=0).model
    proba = own.head_.predict_proba(features[chosen].matrix(**own.block))
    codes = np.searchsorted(own.classes_, names[chosen])
    assert said["head"]["accuracy"] == hold_out_scores(proba, codes)[0]
    sides = [(s["accuracy"], -s["log_loss"]) for s in (said["finetuned"], said["head"])]
    better = sides[0] > sides[1]
    assert result.kept == ("finetuned" if better else "head")
    assert result.model.block["tap"] == ("avg" if better else ",".join(tap))
    assert len(result.model.predict([str(path) for path in pictures.glob("*/0.png")])) == 3


def test_a_model_of_several_labels(pictures, cache, small_network, tmp_path):
    backbone = f"file:{small_network}"
    files = sorted(str(path) for path in pictures.glob("*/0.png"))
    model = featx.ImageClassifier(backbone, multilabel=True, cache=cache)
    model.fit(files, [["a"], ["b"], ["a", "b"]])
    with pytest.raises(FineTuningError, match="without --multilabel"):
        finetune(model, pictures, tmp_path / "t.featx", cache=cache)


def _rewritten(path: Path, target: Path, change) -> Path:
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(target, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return target


def test_a_changed_network_is_refused(catalogued, tmp_path):
    def flip(members):
        data = bytearray(members[NETWORK])
        data[len(data) // 2] ^= 1
        members[NETWORK] = bytes(data)

    path = _rewritten(catalogued.path, tmp_path / "flipped.featx", flip)
    with pytest.raises(ArtefactError, match="does not have the digest stated with it"):
        featx.load(path)
    with pytest.raises(WeightsError, match="does not have the digest"), unpacked(path):
        pass


def test_a_network_of_another_specification_is_refused(catalogued, tmp_path):
    def lie(members):
        said = json.loads(members["model.json"])
        said["spec"]["weights_sha256"] = "0" * 64
        members["model.json"] = json.dumps(said).encode()

    path = _rewritten(catalogued.path, tmp_path / "lie.featx", lie)
    with pytest.raises(WeightsError, match="another digest of its network"):
        read_tuned(path)
    with pytest.raises(ArtefactError, match="not the one that its specification is of"):
        featx.load(path)


def test_a_network_that_links_out_of_its_file_is_refused(catalogued, tmp_path):
    import hashlib
    import io

    import h5py

    def link(members):
        file = io.BytesIO(members[NETWORK])
        with h5py.File(file, "a") as opened:
            opened["evil"] = h5py.ExternalLink("/etc/passwd", "x")
        members[NETWORK] = file.getvalue()
        said = json.loads(members["model.json"])
        digest = hashlib.sha256(members[NETWORK]).hexdigest()
        said["files"][NETWORK] = said["spec"]["weights_sha256"] = digest
        members["model.json"] = json.dumps(said).encode()

    path = _rewritten(catalogued.path, tmp_path / "link.featx", link)
    with pytest.raises(WeightsError, match="is refused: 'evil' is a link"), unpacked(path):
        pass


def test_a_model_without_a_network_of_its_own_is_no_backbone(trained, catalogued, pictures):
    with pytest.raises(WeightsError, match="holds a head and no network"):
        featx.extract(pictures, backbone=f"file:{trained()}")
    with pytest.raises(WeightsError, match="has a tiny in it, not resnet50"):
        featx.extract(pictures, backbone="resnet50", weights=catalogued.path)
