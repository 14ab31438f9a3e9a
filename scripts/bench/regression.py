"""Ridge for numbers: one fit of scikit-learn against all penalties, and a sweep against fits.

Run: python scripts/bench/regression.py

Features are standard normal, float32, as wide as those of MobileNetV2. "all" is featx's one
decomposition for 19 penalties from 1 to 1,000,000; "one" is one fit of scikit-learn's ``Ridge``.
Each figure is the least of several runs, which take turns, and both have the same threads.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np
from sklearn.linear_model import Ridge

from featx.heads.ridge import solve_ridge, sweep_ridge_values
from featx.heads.rows import Rows
from featx.heads.table import VALUE_HEADS
from featx.heads.targets import Targets
from featx.selection.splits import repeated_folds

SIZES = (
    *((5_000, 1280, 1), (20_000, 1280, 1), (50_000, 1280, 1), (50_000, 1280, 5)),
    *((50_000, 512, 1), (1_000, 1280, 1)),
)
RUNS = 7


def seconds(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def drawn(rows: int, width: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((rows, width), np.float32)
    return X, X[:, :20] @ rng.normal(size=(20, columns)) + rng.normal(size=(rows, columns))


def main() -> None:
    alphas = list(VALUE_HEADS["ridge"].grid["alpha"])
    print("    rows  width values   all, s   one, s  all/one    worst")
    for rows, width, columns in SIZES:
        X, y = drawn(rows, width, columns)
        every = partial(solve_ridge, Rows.of(X), Targets.of_values(y), alphas, True)
        one = partial(Ridge(1000.0).fit, X, y)
        times = [(seconds(every), seconds(one)) for _ in range(RUNS)]
        ours, theirs = (min(column) for column in zip(*times, strict=True))
        coef, constant = every()
        number = alphas.index(1000.0)
        answer = X[:500] @ coef[number] + constant[number]
        worst = np.abs(answer - one().predict(X[:500]).reshape(answer.shape)).max()
        print(
            f"{rows:8,} {width:6,} {columns:6} {ours:8.3f} {theirs:8.3f} {ours / theirs:8.2f} "
            f"{worst:8.0e}"
        )
    X, y = drawn(5_000, 1280, 1)
    folds = repeated_folds(y, folds=5)
    candidates = [{"alpha": alpha} for alpha in alphas]
    sweep = seconds(lambda: list(sweep_ridge_values(X, y, folds, candidates)))
    fits = seconds(
        lambda: [
            Ridge(alpha).fit(X[train], y[train]).predict(X[test])
            for train, test in folds
            for alpha in alphas
        ]
    )
    print(
        f"5,000 x 1,280, {len(alphas)} penalties x 5 folds: sweep {sweep:.2f} s, scikit-learn "
        f"{fits:.2f} s: {fits / sweep:.1f} times"
    )


if __name__ == "__main__":
    main()
