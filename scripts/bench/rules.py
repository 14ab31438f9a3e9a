"""What decision rules bring, and how many labels the sets with a stated coverage hold.

    python scripts/bench/rules.py --cifar cifar10_10k.zip

Features of CIFAR-10 by `tiny`, with rare classes: the share of each falls from class to class by
one quarter. For each of 20 random splits a model is trained on 1,000 images and scored on 1,500
others, copies on one side. Prints the share of new images that the sets hold, also of the class
that is covered least, the mean size of the sets, the share of images that are unsure, the accuracy
of all images and of the sure ones; then the score that `--optimise` is for without the rule, with
it, and as training reports it. Ends with a line of JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import balanced_accuracy_score, f1_score

import featx

SPLITS, TRAINED, TESTED, FALL = 20, 1000, 1500, 0.75
SETTINGS: tuple[dict[str, Any], ...] = (
    {"coverage": 0.9},
    {"coverage": 0.95},
    {"optimise": "f1", "coverage": 0.95},
    {"optimise": "balanced_accuracy", "coverage": 0.95},
    {"coverage": 0.9, "coverage_by": "class"},
)


def split(y: Any, copies: Any, seed: int) -> tuple[Any, Any]:
    """Return rows to train on and others to score on, with rare classes and no copy on both."""
    generator = np.random.default_rng(seed)
    names, codes = np.unique(y, return_inverse=True)
    shares = FALL ** np.arange(len(names))
    weights = shares[codes] / np.bincount(codes)[codes]
    size = TRAINED + TESTED
    drawn = generator.choice(len(y), size, replace=False, p=weights / weights.sum())
    drawn = generator.permutation(drawn)  # what is drawn first is of more common classes
    train, test = drawn[:TRAINED], drawn[TRAINED:]
    return train, test[~np.isin(copies[test], copies[train])]


def measure(features: Any, head: str, setting: dict[str, Any]) -> dict[str, float]:
    """Return the means over the splits; of the coverage by class, the least."""
    copies = np.unique(features.keys, axis=0, return_inverse=True)[1].ravel()
    names = np.unique(features.y)
    figures: list[dict[str, float]] = []
    classes: list[list[float]] = []
    score = {"f1": partial(f1_score, average="macro")}.get(
        setting.get("optimise", ""), balanced_accuracy_score
    )
    for seed in range(SPLITS):
        train, test = (np.sort(rows) for rows in split(features.y, copies, seed))
        result = featx.train(features[train], head=head, seed=seed, **setting)
        rule, truth = result.model.rule, np.searchsorted(names, features.y[test])
        proba = result.model.predict_proba(np.array(features.X[test]))
        answers, sure = rule.decide(proba), ~rule.unsure(proba)
        covered = rule.covered(truth, proba)
        classes.append([float(covered[truth == c].mean()) for c in range(len(names))])
        figure = {
            "coverage": float(covered.mean()),
            "set size": float(rule.label_sets(proba).sum(axis=1).mean()),
            "unsure": float(1 - sure.mean()),
            "accuracy": float((answers == truth).mean()),
            "accuracy of the sure": float((answers == truth)[sure].mean()),
        }
        if "optimise" in setting:
            decision = result.metrics["decision"]
            figure |= {"without": score(truth, proba.argmax(axis=1)), "with": score(truth, answers)}
            figure |= {"reported": decision["after"] if decision["kept"] else decision["before"]}
            figure |= {"kept": float(decision["kept"])}
        figures.append(figure)
    means = {name: float(np.mean([figure[name] for figure in figures])) for name in figures[0]}
    return {**means, "coverage of the least covered class": float(np.mean(classes, axis=0).min())}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cifar", type=Path, required=True)
    parser.add_argument("--head", default="logistic:C=0.01")
    arguments = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(arguments.cifar) as file:
            file.extractall(Path(folder) / "cifar")
        root = next(path.parent for path in Path(folder, "cifar").rglob("airplane"))
        features = featx.extract(root, cache=Path(folder) / "cache")
        for setting in SETTINGS:
            figures = measure(features, arguments.head, setting)
            results.append({**setting, **figures})
            shown = ", ".join(f"{name} {value:.3f}" for name, value in figures.items())
            print(f"{setting}: {shown}", flush=True)
    print(json.dumps({"head": arguments.head, "splits": SPLITS, "results": results}))


if __name__ == "__main__":
    main()
