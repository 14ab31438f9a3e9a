"""What decision rules bring, and how many labels the sets with a stated coverage hold.

    python scripts/bench/rules.py --cifar cifar10_10k.zip

Features of CIFAR-10 by `tiny`, with rare classes: the share of each falls from class to class by
one quarter. For each of 20 random splits a model is trained on 1,000 images and scored on 1,500
others, copies on one side. Prints the score that `--optimise` is for without the rule, with it, and
as training reports it; then the share of new images that the sets hold, in the mean and at worst
over classes, their mean size and the share of images that are unsure. Ends with a line of JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

import featx
from featx.selection.rules import measure_rule

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
    """Return the means over the splits."""
    copies = np.unique(features.keys, axis=0, return_inverse=True)[1].ravel()
    names = np.unique(features.y)
    figures: list[dict[str, float]] = []
    for seed in range(SPLITS):
        train, test = split(features.y, copies, seed)
        result = featx.train(features[np.sort(train)], head=head, seed=seed, **setting)
        model = result.model
        proba = model.predict_proba(np.array(features.X[np.sort(test)]))
        truth = np.searchsorted(names, features.y[np.sort(test)])
        new, reported = measure_rule(model.rule, truth, proba, names), result.metrics
        held = model.rule.covered(truth, proba)
        figure = {
            "coverage": new["coverage"]["measured"],
            "worst class": min(held[truth == c].mean() for c in range(len(names))),
            "set size": new["coverage"]["set_size"],
            "unsure": new["coverage"]["unsure"],
            "sure and right": float(
                (model.rule.decide(proba) == truth)[~model.rule.unsure(proba)].mean()
            ),
            "accuracy": float((model.rule.decide(proba) == truth).mean()),
        }
        if "optimise" in setting:
            kept = new.get("decision", reported["decision"])
            figure |= {"before": kept["before"], "after": kept["after"]}
            figure["reported"] = reported["decision"]["after"]
        figures.append(figure)
    return {name: float(np.mean([figure[name] for figure in figures])) for name in figures[0]}


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
