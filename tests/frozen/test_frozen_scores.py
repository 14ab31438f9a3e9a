"""Scores of training and searching on drawn numbers, fine-tuning, and what exports write."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

import featx

HEADS = {
    "nearest-mean": "nearest-mean", "logistic": "logistic", "svm": "svm", "rbf": "rbf",
    "knn": "knn", "ridge": "ridge", "lda": "lda", "forest": "forest:n_estimators=20",
    "extra-trees": "extra-trees:n_estimators=20", "dense": "dense:8,max_epochs=4",
}  # fmt: skip
STREAMED = ("nearest-mean", "logistic", "ridge", "lda", "dense")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("scores")


@pytest.fixture(scope="module")
def numbers():
    """Features of shape (150, 8) of three classes, of which the last two overlap a little."""
    rng = np.random.default_rng(7)
    codes = np.arange(150) % 3
    centres = np.array([[4.0] * 4 + [0.0] * 4, [0.0] * 8, [0.0] * 5 + [2.4] * 3])
    return (centres[codes] + rng.normal(size=(150, 8))).astype(np.float32), codes


@pytest.fixture(scope="module")
def features(numbers, cache):
    X, codes = numbers
    y = np.array(["ant", "bee", "蜂"])[codes]
    groups = [f"g{number // 2}" for number in range(150)]
    return featx.import_features("plain", X, y=y, groups=groups, cache=cache)


@pytest.fixture(scope="module")
def split(numbers, cache):
    X, codes = numbers
    y = np.array(["ant", "bee", "蜂"])[codes]
    splits = ["test" if number % 5 == 4 else "train" for number in range(150)]
    return featx.import_features("split", X, y=y, splits=splits, cache=cache)


@pytest.fixture(scope="module")
def sets(numbers, cache):
    X, codes = numbers
    sign = np.random.default_rng(8).normal(size=150) > 0
    X = X + 3 * sign[:, None] * np.eye(8, dtype=np.float32)[4]
    y = ["|".join(["abc"[code], *(["big"] if big else [])]) for code, big in
         zip(codes, sign, strict=True)]  # fmt: skip
    return featx.import_features("sets", X.astype(np.float32), y=y, cache=cache)


def scores(result, X=None):
    found = dict(result.metrics)
    if X is not None:
        found["proba"] = np.round(result.model.head_.predict_proba(X), 5).astype(float).tolist()
    return found


@pytest.mark.parametrize("head", HEADS)
def test_a_head_scores_as_before(head, features, split, sets, numbers, frozen):
    X = numbers[0][:8]
    name, dense = HEADS[head], head == "dense"
    folds = featx.train(features, head=name, cv=2 if dense else 3)
    found = {"folds": scores(folds, X)}
    if not dense:
        found["split"] = scores(featx.train(split, head=name))
    if head not in ("dense", "rbf", "extra-trees"):
        found["sets"] = scores(featx.train(sets, head=name, cv=2, multilabel=True), X)
    if head in STREAMED:
        bound = {"head": name, "max_ram": "1MiB"}
        found["max_ram"] = scores(featx.train(features, cv=0 if dense else 3, **bound), X)
        if not dense:
            found["sets, max_ram"] = scores(featx.train(sets, cv=2, multilabel=True, **bound), X)
    found["training"] = folds.training
    found["suspects"] = sorted(suspect.path for suspect in folds.suspects[:3])
    # Two kinds of BLAS may end the training of layers apart.
    frozen(f"scores-{head}", found, tolerance=0.01 if head == "dense" else 2e-3)


def test_weights_of_rows_count_as_before(numbers, frozen):
    X, codes = numbers
    weights = np.where(codes == 1, 5.0, 1.0)
    found = {}
    for head in ("nearest-mean", "logistic", "ridge", "svm", "forest:n_estimators=20"):
        model = featx.ImageClassifier(head=head, weights="random:0")
        try:
            model.fit_head(X, codes, sample_weight=weights)
        except featx.FeatxError as error:
            found[head] = type(error).__name__
            continue
        found[head] = model.head_.predict_proba(X[:8]).astype(float).tolist()
    frozen("weighted", found, tolerance=2e-3)


def board(result):
    rows = [
        {
            part: row.to_dict()[part]
            for part in ("head", "transform", "tap", "score", "scores", "share")
        }
        for row in result.leaderboard
    ]
    score = result.score.to_dict()
    return {"best": result.head, "scoring": result.scoring, "rows": rows, "score": score}


@pytest.mark.parametrize("case", ["classes", "sets", "split", "max_ram", "random", "halving"])
def test_a_leaderboard_is_as_before(case, features, split, sets, frozen):
    some = ["nearest-mean", "ridge:alpha=1|100", "logistic:C=0.01|1", "lda:shrinkage=0.1|0.9"]
    options = {"heads": some, "cv": 3, "scoring": "log_loss", "score": "none", "seed": 3}
    data = features
    if case == "classes":
        more = ["knn:n_neighbors=3|10", "svm:C=0.001|0.1", "rbf:C=1",
                "forest:n_estimators=20", "extra-trees:n_estimators=20"]  # fmt: skip
        options["heads"] = None
        options["space"] = [
            {"heads": some[1:3], "transforms": ["none", "l2", "pca:4", "whiten:3"]},
            {"heads": [*some, *more]},
        ]
    elif case == "sets":
        options |= {"multilabel": True, "scoring": "mean_average_precision"}
        options["heads"] = ["nearest-mean", "ridge:alpha=1|100", "logistic:C=0.01"]
        data = sets
    elif case == "split":
        data, options["score"] = split, "test"
    elif case == "max_ram":
        options |= {"max_ram": "1MiB"}
    else:
        options |= {"strategy": case, "n_trials": 5, "repeats": 2}
        options["heads"] = ["ridge:alpha=1..1000", "logistic:C=0.001..10"]
    found = board(featx.search(data, n_jobs=1, **options))
    # The best is first; equal scores may change places.
    values = [row["score"] * (1 if case == "sets" else -1) for row in found["rows"]]
    full = [value for value, row in zip(values, found["rows"], strict=True) if row["share"] == 1]
    assert full == sorted(full, reverse=True) or np.diff(full).max() < 2e-3
    found["rows"] = {f"{row['head']} {row['tap']}/{row['transform']}": row["scores"]
                     for row in found["rows"]}  # fmt: skip
    frozen(f"search-{case}", found, tolerance=3e-3)


def test_finetuning_decides_as_before(archived, drawn, cache, frozen, tmp_path):
    found = {}
    for name, options in {
        "plain": {},
        "pixels": {"cut": "pixels", "unfreeze": "all", "mixing": "mixup", "learning_rate": 1e-9},
    }.items():
        options = {"unfreeze": "second", "learning_rate": 0.01, **options}
        tuned = featx.finetune(
            archived / "models" / "plain.featx", drawn / "pictures", tmp_path / "t.featx",
            weights=archived / "small.keras", cache=cache, epochs=2, batch_size=10, **options,
        )  # fmt: skip
        found[name] = {
            "kept": tuned.kept, "cut": list(tuned.cut), "stopped": tuned.stopped,
            "history": tuned.history, "metrics": tuned.metrics,
        }  # fmt: skip
        shutil.rmtree(tmp_path / "t.featx.training")
    frozen("finetuning", found, tolerance=1e-2)


@pytest.mark.parametrize("kind", ["keras", "savedmodel", "tflite", "openvino"])
def test_an_export_leaves_the_same_files_and_description(
    kind, archived, drawn, cache, frozen, tmp_path
):
    path = tmp_path / {"keras": "m.keras", "savedmodel": "m", "tflite": "m.tflite",
                       "openvino": "m.xml"}[kind]  # fmt: skip
    name = "plain" if kind != "keras" else "sets"
    model = featx.load(
        archived / "models" / f"{name}.featx", weights=archived / "small.keras", cache=cache
    )
    data = drawn / "pictures"
    if name == "sets":
        data = featx.ImageDataset.from_csv(drawn / "sets.csv", multilabel=True)
    done = featx.export(model, path, format=kind, verify=data, cache=cache)
    found = {
        "files": sorted(file.relative_to(tmp_path).as_posix() for file in tmp_path.glob("*")),
        "description": json.loads((tmp_path / f"{path.name}.json").read_text("utf-8")),
        "verification": {**done.verification},
        "languages": sorted(done.serving),
    }
    frozen(f"export-{kind}", found, folder=tmp_path)
