"""What the search costs, in one run: the path solver, the sweeps, the stacked heads, the command.

    python scripts/bench/search.py --photos cifar10/ --weights WEIGHTS
    python scripts/bench/search.py --features features.npz

PHOTOS, a folder with one sub-folder a class, are extracted first (MobileNetV2, 96 px) and shuffled;
FEATURES is an .npz with X (n, d) and y (n,), shuffled already. Then each bench beside this file
runs on them, one after the other, in a process of its own: `logistic_path.py`, `sweeps.py`,
`dense_heads.py`. Their own tables pass through; at the end stands one table of what was asked and
what was found, and one line of JSON with everything.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import featx

HERE = Path(__file__).parent
BENCHES = ("logistic_path", "sweeps", "dense_heads")

Claim = tuple[str, float, str, bool]


def extracted(photos: Path, weights: Path, folder: Path) -> Path:
    """Extract images, and keep features and labels in a random order."""
    features = featx.extract(
        photos,
        backbone="mobilenet_v2",
        weights=weights,
        input_size=96,
        cache=folder / "cache",
        progress=True,
    )
    order = np.random.default_rng(0).permutation(len(features))
    assert features.y is not None
    target = folder / "features.npz"
    np.savez(target, X=features.X[order], y=features.y[order])
    return target


def run(name: str, features: Path, more: list[str]) -> dict[str, Any]:
    """Run one bench, show what it prints, and return its JSON."""
    print(f"\n## {name}\n", flush=True)
    command = [sys.executable, str(HERE / f"{name}.py"), "--features", str(features), *more]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    last = ""
    for line in process.stdout:
        last = line
        if not line.startswith("{"):
            print(line, end="", flush=True)
    if process.wait():
        raise SystemExit(f"{name} ended with {process.returncode}")
    found: dict[str, Any] = json.loads(last)
    return found


def at_least(name: str, value: float, bar: float) -> Claim:
    return name, value, f">= {bar:g}", value >= bar


def at_most(name: str, value: float, bar: float) -> Claim:
    return name, value, f"<= {bar:g}", value <= bar


def claims_of_path(found: dict[str, Any]) -> Iterator[Claim]:
    for job, bar in (("grid", 8.0), ("large", 8.0), ("classes", 4.0)):
        if row := found.get(job):
            yield at_least(f"path, {job}: times GridSearchCV", row["speedup"], bar)
            name = f"path, {job}: mean scores apart"
            yield at_most(name, row["max_mean_score_difference"], 0.002)
            if job != "classes":
                yield at_least(f"racing, {job}: times GridSearchCV", row["speedup_racing"], 20.0)
            yield at_most(f"racing, {job}: steps from the best C", row["steps_apart"][1], 1)
            if "objective_excess" in row:
                yield at_most("path: objective above the least", row["objective_excess"], 1e-5)
    if row := found.get("holdout"):
        yield at_least("path, hold-out: times coarse to fine", row["speedup"], 5.0)
        yield at_least("racing, hold-out: times coarse to fine", row["speedup_racing"], 5.0)


def claims_of_sweeps(found: dict[str, Any]) -> Iterator[Claim]:
    for row in found["results"]:
        name = f"{row['case']}, {row['folds']} fold{'s' * (row['folds'] > 1)}"
        yield at_most(f"{name}: fits and predictions", row["ratio"], 1.5)


def claims_of_dense(found: dict[str, Any]) -> Iterator[Claim]:
    yield at_most("32 dense heads: Keras fits of one", found["ratio"], 4.0)
    yield at_most(
        "32 dense heads: Keras fits of one, equal epochs", found["ratio_of_equal_epochs"], 4.0
    )
    apart = max(abs(r["accuracy_alone"] - r["accuracy_stacked"]) for r in found["alone"])
    yield at_most("32 dense heads: accuracy from alone", apart, max(2 * found["noise"], 1e-9))


CLAIMS = {
    "logistic_path": claims_of_path,
    "sweeps": claims_of_sweeps,
    "dense_heads": claims_of_dense,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--photos", type=Path, help="labelled images, with --weights")
    source.add_argument("--features", type=Path, help=".npz with X and y")
    parser.add_argument("--weights", type=Path, help="of MobileNetV2")
    parser.add_argument("--only", nargs="+", choices=BENCHES, default=list(BENCHES))
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    if options.photos and not options.weights:
        parser.error("--photos needs --weights FILE")
    more = {
        "logistic_path": ["--repeats", str(options.repeats)],
        "sweeps": ["--repeats", str(options.repeats), "--rows", "5000"],
        "dense_heads": ["--rounds", str(options.repeats)],
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        features = options.features or extracted(options.photos, options.weights, folder)
        found = {bench: run(bench, features, more[bench]) for bench in options.only}
    claims = [claim for bench in options.only for claim in CLAIMS[bench](found[bench])]
    print(f"\n{'':52}{'found':>10}  asked")
    for title, value, bar, held in claims:
        print(f"{title:52}{value:10.3g}  {bar:8} {'' if held else 'missed'}")
    rows = [{"claim": t, "found": v, "asked": b, "held": h} for t, v, b, h in claims]
    print(json.dumps({"claims": rows, **found}))


if __name__ == "__main__":
    main()
