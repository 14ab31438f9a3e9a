r"""How much better a default search answers than a grid search by hand, and what both take.

    python scripts/bench/answers.py ants_bees=PHOTOS cifar10=FOLDER:96 tin20=FOLDER:64 \
        -b mobilenet_v2=WEIGHTS -b onnx:lite0.onnx --preprocessing mean=127/std=128

Each set is a folder with one sub-folder a class, with the size in pixels that backbones of the
catalogue read its images at (a network in a file has its own). For each number of training images
(50, 500 and 5,000 by default; of small sets half) and each of five seeds, images are drawn in equal
shares of the classes; up to 3,000 others are the test, which no selection sees.

The grid is scikit-learn's own: GridSearchCV over the C of logistic regression behind a
StandardScaler, 5 folds and 9 values from 1e-4 to 1 (with ``--wide`` 13 from 1e-5 to 10), on ``avg``
of one backbone. Both sides run in one process, on features that are in the cache, with all
processors: the search on ``avg`` and ``inner`` (blocks inside the network) of the first backbone,
and on all backbones together, with its honest score. Prints the accuracy on the test, the gain over
the grid in points with its 95 % interval over seeds, and the time as a share of the grid's.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import featx

Rows: TypeAlias = NDArray[np.intp]
Labels: TypeAlias = NDArray[np.str_]
Run: TypeAlias = dict[str, Any]

CS, WIDE = np.logspace(-4, 0, 9), np.logspace(-5, 1, 13)
MOST_TESTED = 3_000


def drawn(y: Labels, images: int, seed: int) -> tuple[Rows, Rows]:
    """Return training rows, as many of each class, and rows for testing."""
    generator = np.random.default_rng(seed)
    names, codes = np.unique(y, return_inverse=True)
    each = max(2, round(images / len(names)))
    parts = [generator.permutation(np.flatnonzero(codes == code)) for code in range(len(names))]
    train = np.concatenate([part[:each] for part in parts])
    rest = np.setdiff1d(np.arange(len(y)), train)
    return train, np.sort(generator.permutation(rest)[:MOST_TESTED])


def by_hand(
    X: NDArray[np.floating],
    y: Labels,
    train: Rows,
    test: Rows,
    seed: int,
    values: NDArray[np.floating],
) -> tuple[float, float]:
    """Return the accuracy of a grid search, and its seconds."""
    started = time.perf_counter()
    folds = min(5, int(np.unique(y[train], return_counts=True)[1].min()))
    grid = GridSearchCV(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=5_000)),
        {"logisticregression__C": values},
        cv=StratifiedKFold(folds, shuffle=True, random_state=seed),
        n_jobs=-1,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        grid.fit(X[train], y[train])
    seconds = time.perf_counter() - started
    return float((grid.predict(X[test]) == y[test]).mean()), seconds


def by_search(
    features: featx.Features, train: Rows, test: Rows, seed: int, **options: Any
) -> tuple[float, float, str]:
    """Return the accuracy of a search, its seconds, and what won."""
    started = time.perf_counter()
    result = featx.search(features[train], seed=seed, **options)
    seconds = time.perf_counter() - started
    tested = features[test]
    X = tested.matrix(**result.model.block)
    right = result.model.predict(X) == tested.y
    return float(right.mean()), seconds, f"{result.best.tap} {result.best.head}"


def blocks_of(
    text: str,
    weights: dict[str, str],
    preprocessing: str | None,
    size: int,
    folder: str,
    cache: str,
) -> featx.Features:
    """Return features of a set, of every backbone."""
    sizes = {name: size for name in weights if ":" not in name and size}
    taps = {name: ["avg"] if ":" in name else ["avg", "inner"] for name in weights}
    chosen = {name: file for name, file in weights.items() if file}
    return featx.extract(
        folder,
        backbone=list(weights),
        weights=chosen or None,
        input_size=sizes or None,
        taps=taps,
        preprocessing={name: preprocessing for name in weights if ":" in name} or None,
        name=text,
        cache=cache,
    )


def interval(values: list[float]) -> tuple[float, float]:
    """Return the mean, and half of its 95 % interval."""
    half = 1.96 * np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return float(np.mean(values)), float(half)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("sets", nargs="+", metavar="NAME=FOLDER[:PIXELS]")
    parser.add_argument("-b", "--backbone", action="append", default=[])
    parser.add_argument("--preprocessing")
    parser.add_argument("--images", type=int, nargs="+", default=[50, 500, 5_000])
    parser.add_argument("--wide", action="store_true", help="a grid of 13 values from 1e-5 to 10")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--cache", default="cache")
    parser.add_argument("--json", type=Path, help="write every run there")
    parser.add_argument("--options", default="{}", help="arguments of featx.search, as JSON")
    arguments = parser.parse_args()
    weights = {}
    for text in arguments.backbone or ["tiny"]:
        name, _, file = text.partition("=")
        weights[name] = file
    first, options = next(iter(weights)), json.loads(arguments.options)
    runs = []
    for text in arguments.sets:
        name, _, place = text.partition("=")
        folder, _, size = place.partition(":")
        features = blocks_of(
            name, weights, arguments.preprocessing, int(size or 0), folder, arguments.cache
        )
        y = features.y
        plain = [block for block in features.blocks if block.tap == "avg"]
        matrices = {b.backbone: features.matrix(backbone=b.backbone, tap="avg") for b in plain}
        most = len(y) // 2
        for images in sorted({min(images, most) for images in arguments.images}):
            for seed in range(arguments.seeds):
                train, test = drawn(y, images, seed)
                run = {"set": name, "images": len(train), "seed": seed}
                for backbone, X in matrices.items():
                    run[f"grid {backbone}"], run[f"grid {backbone} s"] = by_hand(
                        X, y, train, test, seed, WIDE if arguments.wide else CS
                    )
                said = by_search(features, train, test, seed, backbones=first, **options)
                run["search"], run["search s"], run["won"] = said
                if len(weights) > 1:
                    said = by_search(
                        features, train, test, seed, backbones=list(weights), **options
                    )
                    run["all"], run["all s"], run["all won"] = said
                runs.append(run)
                print(json.dumps(run), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(runs, indent=1), "utf-8")
    show(runs, f"grid {matrix_name(runs)}")


def matrix_name(runs: list[Run]) -> str:
    """Return the backbone of the first grid."""
    return next(key for key in runs[0] if key.startswith("grid ")).removeprefix("grid ")


def show(runs: list[Run], base: str) -> None:
    """Print gains over the grid, by set and number of images, and over all."""
    grids = [key for key in runs[0] if key.startswith("grid ") and not key.endswith(" s")]
    cells = sorted({(run["set"], run["images"]) for run in runs})
    for what, against in (("search", [base]), ("all", grids)):
        if what not in runs[0]:
            continue
        print(f"{what}: accuracy of the grid, gain in points, share of its time")
        rows = []
        for cell in cells:
            chosen = [run for run in runs if cell == (run["set"], run["images"])]
            # The better backbone is the better one over these runs.
            better = max(against, key=lambda key: np.mean([run[key] for run in chosen]))
            gains = [100 * (run[what] - run[better]) for run in chosen]
            taken = sum(run[f"{what} s"] for run in chosen)
            grids_s = sum(run[f"{key} s"] for key in against for run in chosen)
            rows.append((np.mean([run[better] for run in chosen]), gains, taken, grids_s))
            show_row(f"{cell[0]} {cell[1]:,}", *rows[-1])
        grid, gains, taken, grids_s = zip(*rows, strict=True)
        every = [float(np.mean(one)) for one in gains]
        show_row("mean of these", np.mean(grid), every, sum(taken), sum(grids_s))


def show_row(title: str, grid: float, gains: list[float], taken: float, grids_s: float) -> None:
    """Print one line of the table."""
    gain, half = interval(gains)
    print(f"  {title:20} {grid:.3f}  {gain:+.2f} ± {half:.2f}  {taken / grids_s:.2f}")


if __name__ == "__main__":
    main()
