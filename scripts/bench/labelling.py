"""How many labels `featx select` saves against choosing images at random.

    python scripts/bench/labelling.py photos/ cifar/ -b mobilenet_v2 --weights FILE --cache cache/

Of each folder, 30 % of the images are held out. Labels are added round by round, to a third more
each time: at random, by `choose_rows` without a model, and by it with the model of the round
before. After each round the head `logistic` is trained on them and scored on the held-out images.
A way needs as many labels as take it to 95 % of the accuracy with all labels, between rounds by a
straight line. Prints means over the seeds, ratios to random choice, and one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np

import featx
from featx.heads.making import make_head
from featx.selection.coverage import choose_rows

SHARE, GROWTH, HELD_OUT = 0.95, 4 / 3, 0.3

Way = Callable[[Any, Any, int, Any, Any], Any]


def at_random(X: Any, labelled: Any, count: int, doubt: Any, generator: Any) -> Any:
    """Draw rows without a label."""
    return generator.choice(np.setdiff1d(np.arange(len(X)), labelled), count, replace=False)


def by_coverage(X: Any, labelled: Any, count: int, doubt: Any, generator: Any) -> Any:
    """Choose rows without a model."""
    return choose_rows(X, count, labelled=labelled)


def by_model(X: Any, labelled: Any, count: int, doubt: Any, generator: Any) -> Any:
    """Choose rows by the model of the round before."""
    return choose_rows(X, count, labelled=labelled, doubt=doubt)


WAYS: dict[str, Way] = {"random": at_random, "coverage": by_coverage, "model": by_model}


def needed(way: Way, pool: Any, test: Any, goal: float, seed: int) -> float:
    """Return how many labels a way needs to reach an accuracy."""
    (X, y), generator = pool, np.random.default_rng(seed)
    labelled, doubt, before = np.empty(0, np.intp), None, (0, 0.0)
    count = max(4, 2 * len(np.unique(y)))
    while count < len(X):
        more = way(X, labelled, count - len(labelled), doubt, generator)
        labelled = np.concatenate([labelled, more])
        accuracy = 0.0
        if len(np.unique(y[labelled])) > 1:
            head = make_head("logistic").fit(X[labelled], y[labelled])
            accuracy = float((head.predict(test[0]) == test[1]).mean())
            best = np.sort(head.predict_proba(X), axis=1)[:, -2:]
            doubt = 1 - (best[:, 1] - best[:, 0])
        if accuracy >= goal:
            share = (goal - before[1]) / (accuracy - before[1])
            return before[0] + share * (count - before[0])
        before, count = (count, accuracy), int(np.ceil(count * GROWTH))
    return float(len(X))


def measure(X: Any, y: Any, seeds: int) -> dict[str, float]:
    """Return the accuracy with all labels, and the mean of the labels that each way needs."""
    full, counts = [], {name: [] for name in WAYS}  # type: ignore[var-annotated]
    for seed in range(seeds):
        order = np.random.default_rng(seed).permutation(len(X))
        held = int(HELD_OUT * len(X))
        test, pool = ((X[rows], y[rows]) for rows in (order[:held], order[held:]))
        head = make_head("logistic").fit(*pool)
        full.append(float((head.predict(test[0]) == test[1]).mean()))
        for name, way in WAYS.items():
            counts[name].append(needed(way, pool, test, SHARE * full[-1], seed))
    return {"full": statistics.mean(full)} | {n: statistics.mean(c) for n, c in counts.items()}


def main() -> None:
    """Measure every folder."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folders", nargs="+")
    parser.add_argument("-b", "--backbone", default="tiny")
    parser.add_argument("--weights")
    parser.add_argument("--cache", default="cache")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    results = {}
    for folder in arguments.folders:
        features = featx.extract(
            folder, backbone=arguments.backbone, weights=arguments.weights, cache=arguments.cache
        )
        result = measure(np.array(features.X), features.labels, arguments.seeds)
        results[folder] = {name: round(value, 3) for name, value in result.items()}
        ratios = {name: result[name] / result["random"] for name in ("coverage", "model")}
        print(
            f"{folder}: {result['full']:.3f} with all labels; {result['random']:.0f} labels at "
            + f"random, {result['coverage']:.0f} by coverage ({ratios['coverage']:.2f}), "
            + f"{result['model']:.0f} with the model ({ratios['model']:.2f})",
            flush=True,
        )
    for name in ("coverage", "model"):
        ratio = statistics.mean(r[name] / r["random"] for r in results.values())
        print(f"mean ratio of {name} to random: {ratio:.2f}")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
