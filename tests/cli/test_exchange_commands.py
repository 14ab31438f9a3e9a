from __future__ import annotations

import json

import h5py
import numpy as np
import pytest
from click.testing import CliRunner

import featx
from featx.cache.manifest import Block
from featx.cli import dataset as dataset_command
from featx.cli import import_ as import_command
from featx.cli.cache import pack
from featx.exceptions import DatasetError, UnknownNameError
from featx.importing.importer import import_features


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a click command in an empty folder, with the cache beside it."""
    monkeypatch.chdir(tmp_path)

    def call(command, *args, fails=False):
        result = CliRunner().invoke(command, [*map(str, args)], catch_exceptions=True)
        if isinstance(result.exception, featx.FeatxError):
            raise result.exception
        assert (result.exit_code == 0) != fails, result.output
        return result

    return call


@pytest.fixture
def dataset(run):
    def call(*args, **options):
        return run(dataset_command.command, *args, **options)

    return call


@pytest.fixture
def texts(tmp_path):
    """An imported dataset of 100 rows in two classes."""
    X = np.random.default_rng(0).normal(size=(100, 4)).astype(np.float32)
    y = ["a", "b"] * 50
    import_features(
        "texts", X, y=y, paths=[f"{n % 4}/{n}.txt" for n in range(100)], cache=tmp_path / "cache"
    )
    return X


def test_every_command_explains_itself_with_examples():
    commands = {
        "cache pack": pack,
        "import": import_command.command,
        **{f"dataset {name}": c for name, c in dataset_command.command.commands.items()},
        "dataset": dataset_command.command,
    }
    for name, command in commands.items():
        assert f"\n    featx {name}" in command.help.replace("\x08", ""), name


def test_import_brings_features_in_and_pack_takes_them_out(run, tmp_path):
    X = np.random.default_rng(0).normal(size=(10, 3))
    np.savez(tmp_path / "f.npz", embeddings=X, labels=["x", "y"] * 5)
    first = run(import_command.command, "words", "f.npz")
    assert "words: 10 x 3 float32, 2 classes, 10 labelled, 10 rows new" in first.output
    assert "converted from float64 to float32" in first.output
    assert "next: featx train -b import:words words\n" in first.output
    report = json.loads(run(import_command.command, "words", "f.npz", "--json").output)
    assert (report["rows"], report["written"], report["converted_from"]) == (10, 0, "float64")

    result = run(pack, "words")
    assert result.output.startswith("words.h5: 10 x 3 of import:words imported")
    with h5py.File(tmp_path / "words.h5") as file:
        np.testing.assert_array_equal(file["X"][()], X.astype("f4"))
    packed = json.loads(run(pack, "words", "-o", "w.npz", "--json").output)
    assert packed["format"] == "npz"
    assert packed["size_bytes"] == (tmp_path / "w.npz").stat().st_size
    with pytest.raises(DatasetError, match="no dataset 'word' in the cache"):
        run(pack, "word")


def test_labels_of_another_length_end_the_import(run, tmp_path):
    np.save(tmp_path / "f.npy", np.zeros((3, 2)))
    (tmp_path / "l.csv").write_text("label\na\nb\n")
    with pytest.raises(DatasetError, match="expected 3 labels, one a row .* received 2 in 'l.csv'"):
        run(import_command.command, "words", "f.npy", "--labels", "l.csv")


def test_list_and_show_say_what_there_is(dataset, texts):
    assert "no datasets in" in dataset("list", "--cache", "elsewhere").output
    assert dataset("list").output.splitlines()[1].split() == [
        "texts", "100", "0", "2", "-", "import:texts/imported",
    ]  # fmt: skip
    found = json.loads(dataset("list", "--json").output)["datasets"]
    assert found == [json.loads(dataset("show", "texts", "--json").output)]
    assert found[0]["classes"] == {"a": 50, "b": 50}
    assert "texts: 100 rows, 0 failed" in dataset("show", "texts").output


def test_a_damaged_manifest_is_named_in_the_list(dataset, texts, tmp_path):
    (tmp_path / "cache" / "datasets" / "bad.h5").write_bytes(b"bad")
    assert "damaged: bad: " in dataset("list").output
    assert list(json.loads(dataset("list", "--json").output)["damaged"]) == ["bad"]


def test_split_is_used_by_training(dataset, texts, tmp_path):
    found = json.loads(dataset("split", "texts", "--test", "0.3", "--json").output)
    assert sum(found["splits"].values()) == 100
    assert 15 <= found["splits"]["test"] <= 45
    assert found["moved"] == 0
    features = featx.Features.open("texts", cache=tmp_path / "cache")
    result = featx.train(features)
    held_out = found["splits"]["test"]
    assert result.metrics["protocol"] == f"held-out split of {held_out} images"
    output = dataset("split", "texts", "--test", "0.3", "--seed", "1").output
    assert "moved" in output
    assert output.splitlines()[1].split() == ["class", "test", "train"]
    exact = dataset("split", "texts", "--val", "0.2", "--method", "stratified", "--json").output
    assert json.loads(exact)["splits"] == {"test": 20, "train": 60, "val": 20}
    assert "sum is above 0" in dataset("split", "texts", "--test", "0", fails=True).output


def test_relabel_remove_and_add(dataset, texts, tmp_path):
    assert "50 relabelled" in dataset("relabel", "texts", "a=c").output
    (tmp_path / "l.csv").write_text("path,label\n0/0.txt,d\n1/1.txt,\n")
    with pytest.raises(UnknownNameError, match="unknown class 'd'.* --new-class makes it"):
        dataset("relabel", "texts", "--labels", "l.csv")
    options = ("--labels", "l.csv", "--new-class", "--json")
    found = json.loads(dataset("relabel", "texts", *options).output)
    assert (found["relabelled"], found["classes"]) == (2, {"b": 49, "c": 49, "d": 1})
    for wrong in ((), ("a",), ("=x",)):
        assert "expected OLD=NEW" in dataset("relabel", "texts", *wrong, fails=True).output
    assert json.loads(dataset("remove", "texts", "3/*", "--json").output)["removed"] == 25
    assert "expected GLOB, --status or --from" in dataset("remove", "texts", fails=True).output
    assert featx.Features.open("texts", cache=tmp_path / "cache").X.shape == (75, 4)
    added = json.loads(dataset("add", "texts", "texts", "--as", "twice", "--json").output)
    assert (added["dataset"], added["added"], added["duplicates"]) == ("twice", 75, 75)


def test_rename_and_delete_leave_the_features(dataset, texts, tmp_path):
    assert dataset("rename", "texts", "words").output == "texts is now words\n"
    features = featx.Features.open("words", cache=tmp_path / "cache")
    np.testing.assert_array_equal(features.X, texts)
    assert features.blocks == (Block("import:texts", "imported", features.spec().name),)
    assert "gc` frees features" in dataset("delete", "words").output
    assert list((tmp_path / "cache").rglob("shards/*.h5"))
    with pytest.raises(DatasetError, match="no dataset 'words'"):
        dataset("show", "words")


def test_two_datasets_share_their_common_images(photos, small_network, tmp_path):
    options = {"backbone": f"file:{small_network}", "cache": tmp_path / "cache"}
    featx.extract(photos, **options)
    half = [photos / "red" / f"{n}.jpg" for n in range(6)]
    new = [tmp_path / "new" / f"{n}.jpg" for n in range(6)]
    from PIL import Image

    new[0].parent.mkdir()
    for number, path in enumerate(new):
        Image.new("RGB", (40, 40), (number * 40, 0, 0)).save(path)
    report = featx.extract([*half, *new], name="second", **options).report
    assert (report["cached"], report["extracted"]) == (6, 6)


def test_features_that_cannot_be_learned_from_have_their_messages(run, tmp_path):
    from featx.cli import train as train_command

    X = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    y = ["a", "b"] * 10
    cache = tmp_path / "cache"
    import_features("constant", np.ones_like(X), y=y, cache=cache)
    import_features("one", X, y=["a"] * 20, cache=cache)
    import_features("part", np.where(np.arange(4) < 2, X, 1), y=y, cache=cache)
    import_features("lone", X, y=["a", "b"] * 9 + ["a", "c"], cache=cache)
    with pytest.raises(DatasetError, match="NaN or infinity in 1 of 20 rows"):
        import_features("nan", np.where(X[3, 1] == X, np.nan, X), y=y, cache=cache)
    for more in ((), ("--max-ram", "1MiB")):
        with pytest.raises(featx.FeatxError, match="every column of the features is constant"):
            run(train_command.command, "constant", "--cv", "0", *more)
        with pytest.raises(DatasetError, match="one class only: 'a'"):
            run(train_command.command, "one", *more)
        assert "accuracy" in run(train_command.command, "part", *more).stdout
        told = run(train_command.command, "lone", *more).stdout
        assert "not measured: class 'c' has 1 image, 5 folds need 2" in told
        few = ("--head", "logistic:class_weight=balanced", *more)
        assert "saved" in run(train_command.command, "lone", *few).stdout
    assert run(train_command.command, "part", "--max-ram", "lots", fails=True).exit_code == 2
    with pytest.raises(featx.HeadError, match="has to see all rows at once"):
        run(train_command.command, "part", "--head", "knn", "--max-ram", "1MiB")


HEADS = ["logistic", "svm", "rbf", "knn", "ridge", "lda", "nearest-mean", "forest:n_estimators=5"]


@pytest.mark.parametrize("head", HEADS)
def test_two_rows_a_class_and_class_weights_train_and_predict(run, tmp_path, head):
    from featx.cli import search as search_command
    from featx.cli import train as train_command

    X = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
    import_features("few", X, y=list("aabbccc"), cache=tmp_path / "cache")
    weights = [] if head in ("knn", "nearest-mean") else ["class_weight=balanced"]
    weighted = head + "".join((":" if ":" not in head else ",") + one for one in weights)
    for text in {head, weighted}:
        told = run(train_command.command, "few", "--head", text, "-o", "few.featx").stdout
        assert "2-fold cross-validation" in told
        assert featx.load("few.featx", trust=True).predict(X).shape == (7,)
    if head in ("logistic", "svm"):
        told = run(search_command.command, "few", "--head", weighted, "-o", "few.featx").stdout
        assert "2 folds in place of 5" in told
