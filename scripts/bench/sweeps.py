"""What many settings of a head cost beside one: k-NN, ridge and LDA.

    python scripts/bench/sweeps.py
    python scripts/bench/sweeps.py --features features.npz --threads 1

One side measures 10 numbers of neighbours, 20 penalties or 10 shrinkages; the other fits one
scikit-learn estimator behind a StandardScaler and predicts. Once for a hold-out (4/5 for training,
1/5 for testing), and once for 5 folds, where the other side fits and predicts 5 times. The sides
take turns; medians and their ratio are given. For equal answers, each setting's
predictions are compared with those of the scikit-learn estimator of that setting. Without
`--features` (an .npz with X and y) the features are drawn: rectified, with a decaying spectrum.
Prints a table and one line of JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from featx.heads.discriminant import sweep_lda
from featx.heads.neighbours import sweep_knn
from featx.heads.ridge import sweep_ridge
from featx.heads.rows import Fold
from featx.heads.sweep import Sweep

BAR = 1.5
NEIGHBOURS = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50)
SHRINKAGES = (0.01, 0.03, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9, 1.0)
PENALTIES = tuple(float(a) for a in np.logspace(0, 6, 20))


def knn(metric: str) -> Callable[..., Any]:
    def make(n_neighbors: int = 10, **_: Any) -> Any:
        return KNeighborsClassifier(
            n_neighbors, metric=metric, weights="distance", algorithm="brute"
        )

    return make


def lda(solver: str) -> Callable[..., Any]:
    return lambda shrinkage=0.1: LinearDiscriminantAnalysis(solver=solver, shrinkage=shrinkage)


def ridge(alpha: float = 1000.0) -> Any:
    return RidgeClassifier(alpha=alpha)


CASES: dict[str, tuple[Sweep, list[dict[str, Any]], Callable[..., Any]]] = {
    "knn, cosine, 10 k": (
        sweep_knn,
        [{"n_neighbors": k, "metric": "cosine", "weights": "distance"} for k in NEIGHBOURS],
        knn("cosine"),
    ),
    "knn, Euclidean, 10 k": (
        sweep_knn,
        [{"n_neighbors": k, "metric": "euclidean", "weights": "distance"} for k in NEIGHBOURS],
        knn("euclidean"),
    ),
    "ridge, 20 penalties": (sweep_ridge, [{"alpha": a} for a in PENALTIES], ridge),
    "lda, 10 shrinkages, against lsqr": (
        sweep_lda,
        [{"shrinkage": s} for s in SHRINKAGES],
        lda("lsqr"),
    ),
    "lda, 10 shrinkages, against eigen": (
        sweep_lda,
        [{"shrinkage": s} for s in SHRINKAGES],
        lda("eigen"),
    ),
}


def drawn(rows: int, width: int, classes: int) -> tuple[Any, Any]:
    random = np.random.default_rng(0)
    spectrum = np.arange(1, width + 1) ** -0.7
    turned = np.linalg.qr(random.normal(size=(width, width)))[0]
    y = np.arange(rows) % classes
    random.shuffle(y)
    centres = 0.3 * random.normal(size=(classes, width))
    latent = (random.normal(size=(rows, width)) + centres[y]) * spectrum
    return np.maximum(5 * latent @ turned + 0.1, 0).astype(np.float32), y


def swept(sweep: Sweep, X: Any, y: Any, folds: list[Fold], settings: Any) -> dict[Any, Any]:
    return {
        (held.candidate, held.fold): held.values.argmax(axis=1)
        for held in sweep(X, y, folds, settings)
    }


def fitted(make: Callable[..., Any], X: Any, y: Any, fold: Fold, **params: Any) -> Any:
    train, test = fold
    scaler = StandardScaler()
    trained = scaler.fit_transform(X[train])
    return make(**params).fit(trained, y[train]).predict(scaler.transform(X[test]))


def seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def measured(name: str, X: Any, y: Any, folds: list[Fold], repeats: int) -> dict[str, Any]:
    sweep, settings, make = CASES[name]
    ours, theirs = [], []
    for _ in range(repeats):
        theirs.append(seconds(lambda: [fitted(make, X, y, fold) for fold in folds]))
        ours.append(seconds(lambda: swept(sweep, X, y, folds, settings)))
    took, one = statistics.median(ours), statistics.median(theirs)
    return {
        "case": name,
        "folds": len(folds),
        "settings": len(settings),
        "sweep_s": round(took, 3),
        "one_fit_s": round(one, 3),
        "ratio": round(took / one, 2),
        "within_bar": took <= BAR * one,
    }


def agreement(name: str, X: Any, y: Any, fold: Fold, every: int) -> dict[str, Any]:
    """Compare predictions setting by setting, on one fold."""
    sweep, settings, make = CASES[name]
    found = swept(sweep, X, y, [fold], settings)
    test = fold[1]
    same, apart = [], []
    for number in range(0, len(settings), every):
        theirs = fitted(make, X, y, fold, **settings[number])
        mine = found[number, 0]
        same.append(float((mine == theirs).mean()))
        apart.append(abs(float((mine == y[test]).mean() - (theirs == y[test]).mean())))
    return {"same_predictions": round(min(same), 4), "accuracy_apart": round(max(apart), 4)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--features", type=Path, help=".npz with X and y")
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, help="of the linear algebra, for both sides")
    parser.add_argument("--every", type=int, default=1, help="compare every n-th setting")
    options = parser.parse_args()
    if options.features:
        with np.load(options.features, allow_pickle=False) as file:
            X, y = file["X"].astype(np.float32), np.unique(file["y"], return_inverse=True)[1]
        X, y = X[: options.rows], y[: options.rows]
    else:
        X, y = drawn(options.rows, options.width, options.classes)
    folds = list(StratifiedKFold(5, shuffle=True, random_state=0).split(X, y))
    print(f"{len(X)} x {X.shape[1]} x {int(y.max()) + 1}, float32; bar: {BAR}")
    print(f"{'':34} folds  sweep_s  one_fit_s  ratio  same predictions  accuracy apart")
    limit = threadpool_limits(options.threads) if options.threads else contextlib.nullcontext()
    results = []
    with limit:
        for name in CASES:
            agreed = agreement(name, X, y, folds[0], options.every)
            for part in (folds[:1], folds):
                # Some solvers take minutes for 5 folds on a busy machine.
                repeats = options.repeats if len(part) == 1 else max(1, options.repeats // 2)
                row = {**measured(name, X, y, part, repeats), **agreed}
                results.append(row)
                print(
                    f"{name:34} {row['folds']:5} {row['sweep_s']:8.3f} {row['one_fit_s']:10.3f} "
                    f"{row['ratio']:6.2f} {row['same_predictions']:17.2%} "
                    f"{row['accuracy_apart']:15.4f}",
                    flush=True,
                )
    print(json.dumps({"rows": len(X), "width": X.shape[1], "results": results}))


if __name__ == "__main__":
    main()
