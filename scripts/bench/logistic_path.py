"""The path solver of logistic regression against scikit-learn, both sides in one process run.

    python scripts/bench/logistic_path.py --features FILE.npz
    python scripts/bench/logistic_path.py --quick

FILE.npz holds X (n, d) and y (n,); without it features are synthetic: class means and noise whose
spectrum decays like that of CNN features. All features are standardised. Jobs (``--jobs``):

    grid      13 C x 5 folds (``--folds``) and the refit at 5,000 rows, against
              GridSearchCV(n_jobs=-1), at equal tolerance; the refitted objective against
              scikit-learn's at tol=1e-8, and both sides' scores against those of solutions
              converged to 1e-6
    large     the same at 50,000 rows; rows beyond those given are given rows with noise
    holdout   45 C and one hold-out, against 15 warm-started fits from coarse to fine
    classes   13 C x 3 folds of 200 synthetic classes at 10,000 rows, at a tolerance of 1e-6: an
              entry of the gradient is small from the start where classes are many, and at 1e-4
              scikit-learn's scores are still 0.3 away from those of the solution

Each job is run ``--repeats`` times with the sides taking turns; seconds are medians, and the ratio
is the median of the turns' ratios, which a busy machine disturbs less. Prints a table and one line
of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.preprocessing import StandardScaler

from featx.heads.logistic import LogisticPathCV
from featx.heads.logistic_path import PathOptions, fit_logistic_path
from featx.heads.targets import Targets

JOBS = ("grid", "large", "holdout", "classes")


def synthetic(n: int, d: int, classes: int, apart: float = 0.35, seed: int = 0) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    scale = np.arange(1, d + 1) ** -0.5
    rotation = np.linalg.qr(rng.normal(size=(d, d)))[0].astype(np.float32)
    means = rng.normal(size=(classes, d)) * scale * apart
    y = rng.permutation(np.arange(n) % classes)
    X = (means[y] + rng.normal(size=(n, d)) * scale).astype(np.float32)
    return X @ rotation, y


def rows_of(given: Any, n: int, seed: int = 0) -> tuple[Any, Any]:
    """Take n rows, making more from those there are by noise of 0.3 standard deviations."""
    X, y = given
    rng = np.random.default_rng(seed)
    if n <= len(X):
        return X[:n], y[:n]
    more = rng.integers(0, len(X), n - len(X))
    noise = rng.standard_normal((len(more), X.shape[1]), dtype=np.float32)
    noise *= 0.3 * X.std(axis=0, dtype=np.float32)
    return np.concatenate([X, X[more] + noise]), np.concatenate([y, y[more]])


def standardised(X: Any) -> Any:
    return StandardScaler().fit_transform(X).astype(np.float32)


def folds_of(X: Any, y: Any, number: int) -> list[Any]:
    return list(StratifiedKFold(number, shuffle=True, random_state=0).split(X, y))


def objective(X: Any, y: Any, C: float, coef: Any, intercept: Any) -> float:
    Z = X.astype(np.float64) @ coef.T.astype(np.float64) + intercept
    top = Z.max(axis=1, keepdims=True)
    losses = np.log(np.exp(Z - top).sum(axis=1)) + top[:, 0] - Z[np.arange(len(y)), y]
    return float(C * losses.sum() + (coef.astype(np.float64) ** 2).sum() / 2)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def turns(repeats: int, **sides: Callable[[], Any]) -> tuple[dict[str, list[float]], Any]:
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    results: dict[str, Any] = {}
    for _ in range(repeats):
        for name, work in sides.items():
            spent, results[name] = timed(work)
            seconds[name].append(spent)
    return seconds, results


def ratio(seconds: dict[str, list[float]], side: str) -> float:
    pairs = zip(seconds["sklearn"], seconds[side], strict=True)
    return round(float(np.median([theirs / ours for theirs, ours in pairs])), 2)


def medians(seconds: dict[str, list[float]]) -> dict[str, float]:
    return {f"{name}_s": round(float(np.median(s)), 2) for name, s in seconds.items()}


def grid(
    X: Any, y: Any, Cs: Any, number: int, args: Any, *, exact: bool, tol: float | None = None
) -> dict[str, Any]:
    cv = folds_of(X, y, number)
    tol = tol or args.tol
    model = LogisticRegression(max_iter=5000, tol=tol)
    seconds, found = turns(
        args.repeats,
        sklearn=lambda: GridSearchCV(model, {"C": Cs}, cv=cv, n_jobs=-1).fit(X, y),
        path=lambda: LogisticPathCV(Cs=Cs, cv=cv, tol=tol, racing=False).fit(X, y),
        racing=lambda: LogisticPathCV(Cs=Cs, cv=cv, tol=tol).fit(X, y),
    )
    theirs, ours, raced = found["sklearn"], found["path"], found["racing"]
    scores = np.stack([theirs.cv_results_[f"split{i}_test_score"] for i in range(number)])
    places = [int(np.searchsorted(Cs, C * 0.999)) for C in (ours.C_, raced.C_)]
    best = int(np.searchsorted(Cs, theirs.best_params_["C"] * 0.999))
    row = {
        **medians(seconds),
        "speedup": ratio(seconds, "path"),
        "speedup_racing": ratio(seconds, "racing"),
        "max_mean_score_difference": round(
            float(np.abs(ours.scores_.mean(axis=0) - scores.mean(axis=0)).max()), 5
        ),
        "max_fold_score_difference": round(float(np.abs(ours.scores_ - scores).max()), 5),
        "best_C": [float(f"{Cs[place]:.3g}") for place in (best, *places)],
        "steps_apart": [abs(place - best) for place in places],
        "stopped": int(raced.stopped_.sum()),
        "converged": ours.converged_ and raced.converged_,
    }
    if exact:
        targets = Targets.of_classes(y)
        goal = fit_logistic_path(X, targets, cv, Cs, PathOptions(tol=1e-6)).scores.mean(axis=0)
        for name, side in (("path", ours.scores_), ("sklearn", scores)):
            distance = float(np.abs(side.mean(axis=0) - goal).max())
            row[f"{name}_from_converged_scores"] = round(distance, 5)
        C = ours.C_
        best_model = LogisticRegression(C=C, max_iter=50_000, tol=1e-8).fit(X.astype(float), y)
        least = objective(X, y, C, best_model.coef_, best_model.intercept_)
        row["objective_excess"] = objective(X, y, C, ours.coef_, ours.intercept_) / least - 1
    return row


def coarse_to_fine(X: Any, y: Any, split: Any, Cs: Any, tol: float) -> tuple[float, float]:
    """Fit every sixth value, then halve the steps around the best: 15 fits at most, all warm."""
    train, test = split
    model = LogisticRegression(max_iter=5000, tol=tol, warm_start=True)
    scores: dict[int, float] = {}

    def visit(places: Any) -> None:
        for place in places:
            if place not in scores and 0 <= place < len(Cs) and len(scores) < 14:
                scores[place] = (
                    model.set_params(C=Cs[place]).fit(X[train], y[train]).score(X[test], y[test])
                )

    visit(range(0, len(Cs), 6))
    for step in (3, 2, 1):
        best = max(scores, key=lambda place: (scores[place], -place))
        visit((best - step, best + step))
    best = max(scores, key=lambda place: (scores[place], -place))
    model.set_params(C=Cs[best]).fit(X, y)
    return float(Cs[best]), scores[best]


def holdout(X: Any, y: Any, Cs: Any, args: Any) -> dict[str, Any]:
    split = folds_of(X, y, 5)[0]
    seconds, found = turns(
        args.repeats,
        sklearn=lambda: coarse_to_fine(X, y, split, Cs, args.tol),
        path=lambda: LogisticPathCV(Cs=Cs, cv=[split], tol=args.tol, racing=False).fit(X, y),
        racing=lambda: LogisticPathCV(Cs=Cs, cv=[split], tol=args.tol).fit(X, y),
    )
    C, score = found["sklearn"]
    return {
        **medians(seconds),
        "speedup": ratio(seconds, "path"),
        "speedup_racing": ratio(seconds, "racing"),
        "best_C": [float(f"{value:.3g}") for value in (C, found["path"].C_, found["racing"].C_)],
        "best_score": [score, *(float(np.nanmax(found[s].scores_)) for s in ("path", "racing"))],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--features", type=Path, help="FILE.npz with X and y")
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--low", type=float, default=-5.0, help="log10 of the smallest C")
    parser.add_argument("--high", type=float, default=1.0, help="log10 of the largest C")
    parser.add_argument("--tol", type=float, default=1e-4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folds", type=int, default=5, help="of grid and large; default 5")
    parser.add_argument("--quick", action="store_true", help="a tenth of the rows, once")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    shrink = 10 if args.quick else 1
    args.repeats = 1 if args.quick else args.repeats
    d = 1280 // shrink
    if args.features is not None:
        with np.load(args.features) as file:
            given = file["X"].astype(np.float32), np.unique(file["y"], return_inverse=True)[1]
    else:
        given = synthetic(10_000 // shrink, d, 10)
    Cs = np.logspace(args.low, args.high, 13)
    results: dict[str, Any] = {}
    # Starts joblib's processes, whose imports are no part of any comparison.
    GridSearchCV(LogisticRegression(), {"C": [1.0, 2.0]}, n_jobs=-1).fit(*synthetic(100, 8, 2))
    for job in args.jobs:
        if job == "classes":
            X, y = synthetic(10_000 // shrink, d, 200 // shrink, apart=0.2)
            X = standardised(X)
            results[job] = grid(X, y, Cs, 3, args, exact=False, tol=min(args.tol, 1e-6))
        elif job == "holdout":
            X, y = rows_of(given, 5000 // shrink)
            X, fine = standardised(X), np.logspace(args.low, args.high, 45)
            results[job] = holdout(X, y, fine, args)
        else:
            X, y = rows_of(given, (5000 if job == "grid" else 50_000) // shrink)
            results[job] = grid(standardised(X), y, Cs, args.folds, args, exact=job == "grid")
        print(f"{job}: {len(X)} x {X.shape[1]} x {len(np.unique(y))}", flush=True)
        for name, value in results[job].items():
            print(f"    {name:28} {value}", flush=True)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    print(json.dumps({"machine": machine, "tol": args.tol, **results}, default=float))


if __name__ == "__main__":
    main()
