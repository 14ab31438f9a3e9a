"""What decision rules bring, and how many labels the sets with a stated coverage hold.

    python scripts/bench/rules.py
    python scripts/bench/rules.py --cifar cifar10_10k.zip

For each of 20 random splits a model is trained and scored on other images. Without --cifar they are
rows of made data: four classes of 50, 30, 15 and 5 %, 300 or 1,000 rows to train on, 4,000 others,
by five heads. With it, features of CIFAR-10 by `tiny`, the share of each class three quarters of
that of the last one, 1,000 images to train on and 1,500 others, copies on one side.

Prints the share of new images that the sets hold, also of the class that is covered least, and as
training reports it; the mean size of the sets, the share of images that are unsure, the accuracy of
all images and of the sure ones; then the score that `--optimise` is for without the rule, with it,
and as training reports it. Ends with a line of JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import balanced_accuracy_score, f1_score

import featx

SPLITS, TRAINED, TESTED, FALL = 20, 1000, 1500, 0.75
MADE, MADE_TESTED = (0.5, 0.3, 0.15, 0.05), 4000
HEADS = ("logistic", "ridge", "knn", "nearest-mean", "lda")
SETTINGS: tuple[dict[str, Any], ...] = (
    {"coverage": 0.9},
    {"coverage": 0.95},
    {"optimise": "f1", "coverage": 0.95},
    {"optimise": "balanced_accuracy", "coverage": 0.95},
    {"coverage": 0.9, "coverage_by": "class"},
)

Draw = Callable[[int], tuple[Any, Any, Any]]
"""Of a seed: features to train on, and new rows with their labels."""


def of_cifar(features: Any) -> Draw:
    """Draw images with rare classes, and no copy on both sides."""
    copies = np.unique(features.keys, axis=0, return_inverse=True)[1].ravel()
    names, codes = np.unique(features.y, return_inverse=True)
    weights = (FALL ** np.arange(len(names)))[codes] / np.bincount(codes)[codes]

    def draw(seed: int) -> tuple[Any, Any, Any]:
        generator = np.random.default_rng(seed)
        size, chances = TRAINED + TESTED, weights / weights.sum()
        drawn = generator.choice(len(codes), size, replace=False, p=chances)
        drawn = generator.permutation(drawn)  # what is drawn first is of more common classes
        train, test = np.sort(drawn[:TRAINED]), np.sort(drawn[TRAINED:])
        test = test[~np.isin(copies[test], copies[train])]
        return features[train], np.array(features.X[test]), features.y[test]

    return draw


def of_made_rows(cache: Path, rows: int) -> Draw:
    """Draw rows of four overlapping classes."""
    centres = np.random.default_rng(7).normal(size=(len(MADE), 16))
    names = np.array(["a", "b", "c", "d"])

    def some(count: int, seed: int) -> tuple[Any, Any]:
        generator = np.random.default_rng(seed)
        codes = generator.choice(len(MADE), count, p=MADE)
        X = centres[codes] + 2 * generator.normal(size=(count, 16))
        return X.astype(np.float32), names[codes]

    def draw(seed: int) -> tuple[Any, Any, Any]:
        X, y = some(rows, seed)
        features = featx.import_features(f"made {rows} {seed}", X, y=y, cache=cache)
        return features, *some(MADE_TESTED, 1000 + seed)

    return draw


def measure(draw: Draw, head: str, setting: dict[str, Any]) -> dict[str, float]:
    """Return the means over the splits; of the coverage by class, the least."""
    figures: list[dict[str, float]] = []
    classes: list[list[float]] = []
    optimised = setting.get("optimise")
    score = partial(f1_score, average="macro") if optimised == "f1" else balanced_accuracy_score
    for seed in range(SPLITS):
        features, X, y = draw(seed)
        result = featx.train(features, head=head, seed=seed, **setting)
        model, report = result.model, result.metrics
        names = model.classes_
        rule, truth = model.rule, np.searchsorted(names, y)
        proba = model.predict_proba(X)
        answers, sure = rule.decide(proba), ~rule.unsure(proba)
        covered = rule.covered(truth, proba)
        classes.append([float(covered[truth == c].mean()) for c in range(len(names))])
        figure = {
            "coverage": float(covered.mean()),
            "reported coverage": report["coverage"]["measured"],
            "set size": float(rule.label_sets(proba).sum(axis=1).mean()),
            "unsure": float(1 - sure.mean()),
            "accuracy": float((answers == truth).mean()),
        }
        if sure.any():
            figure["accuracy of the sure"] = float((answers == truth)[sure].mean())
        if optimised:
            decision = report["decision"]
            figure["without"] = float(score(truth, proba.argmax(axis=1)))
            figure["with"] = float(score(truth, answers))
            figure["reported"] = decision["after"] if decision["kept"] else decision["before"]
            figure["kept"] = float(decision["kept"])
        figures.append(figure)
    means = {
        name: float(np.mean([figure[name] for figure in figures if name in figure]))
        for name in figures[0]
    }
    return {**means, "coverage of the least covered class": float(np.mean(classes, axis=0).min())}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cifar", type=Path)
    archive = parser.parse_args().cifar
    results = []
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "cache"
        draws: list[tuple[str, str, Draw]] = []
        if archive is None:
            made = {rows: of_made_rows(cache, rows) for rows in (300, 1000)}
            draws = [(f"{rows} rows", head, made[rows]) for rows in made for head in HEADS]
        else:
            with zipfile.ZipFile(archive) as file:
                file.extractall(Path(folder) / "cifar")
            root = next(path.parent for path in Path(folder, "cifar").rglob("airplane"))
            features = featx.extract(root, cache=cache)
            draws = [("CIFAR-10", "logistic:C=0.01", of_cifar(features))]
        for name, head, draw in draws:
            for setting in SETTINGS:
                if setting.get("coverage_by") and name == "300 rows":
                    continue  # some splits have too few images of the rarest class
                figures = measure(draw, head, setting)
                results.append({"data": name, "head": head, **setting, **figures})
                shown = ", ".join(f"{what} {value:.3f}" for what, value in figures.items())
                print(f"{name}, {head}, {setting}: {shown}", flush=True)
    print(json.dumps({"splits": SPLITS, "results": results}))


if __name__ == "__main__":
    main()
