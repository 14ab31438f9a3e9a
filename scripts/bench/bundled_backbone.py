"""How good the bundled backbone `tiny` is: linear probes, and images per second.

    python scripts/bench/bundled_backbone.py --cifar cifar10_10k.zip --photos ants_bees/ \
        --teacher mobilenet_v2_1.0_224_notop.weights.h5

One protocol for all: features are standardised, and a logistic regression's C is chosen by 5 folds
on the training part; the mean of 3 seeds is given. CIFAR-10: 5,000 images for training and 5,000
for testing; photographs and digits: 5 folds, each held out in turn. All networks see images
enlarged to the input of `tiny`. Prints a table and one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import featx
from featx.backbones.catalog import find_backbone
from featx.cli.demo import write_digits

SEEDS = (0, 1, 2)
GRID = {"logisticregression__C": [1e-4, 1e-3, 1e-2, 1e-1]}


def probe(seed: int) -> GridSearchCV:
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, tol=1e-3))
    return GridSearchCV(model, GRID, cv=StratifiedKFold(5, shuffle=True, random_state=seed))


def split_accuracy(X: Any, y: Any, seed: int) -> float:
    train, test = train_test_split(
        np.arange(len(y)), train_size=5000, test_size=5000, stratify=y, random_state=seed
    )
    return float(probe(seed).fit(X[train], y[train]).score(X[test], y[test]))


def fold_accuracy(X: Any, y: Any, seed: int) -> float:
    folds = StratifiedKFold(5, shuffle=True, random_state=seed).split(X, y)
    return float(np.mean([probe(seed).fit(X[a], y[a]).score(X[b], y[b]) for a, b in folds]))


def raw_pixels(data: featx.ImageDataset, size_px: int) -> Any:
    from featx.images.decode import decode_image

    policy = featx.ImagePolicy(draft=False)
    rows = [decode_image(data.read(i), (size_px, size_px), policy) for i in range(len(data))]
    return np.stack(rows).reshape(len(data), -1).astype(np.float32) / 255


def speed(data: featx.ImageDataset, cache: Path, **options: Any) -> float:
    """Images per second from files to features, the network built beforehand."""
    rates = []
    for repeat in range(4):
        folder = cache / f"speed-{repeat}"
        started = time.perf_counter()
        featx.extract(data, cache=folder, **options)
        rates.append(len(data) / (time.perf_counter() - started))
        shutil.rmtree(folder)
    return float(np.median(rates[1:]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cifar", type=Path, required=True)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    size = find_backbone("tiny").input_size_px
    teacher = {"backbone": "mobilenet_v2", "weights": arguments.teacher}
    networks = {
        "tiny": {"backbone": "tiny"},
        "the same, random weights": {"backbone": "tiny", "weights": "random:0"},
        f"MobileNetV2 at {size} px": {**teacher, "input_size": size},
    }
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        zipfile.ZipFile(arguments.cifar).extractall(work / "zip")
        write_digits(work / "digits")
        sets = {
            "photographs": (featx.ImageDataset.from_folder(arguments.photos), fold_accuracy),
            "digits": (featx.ImageDataset.from_folder(work / "digits"), fold_accuracy),
            "CIFAR-10": (featx.ImageDataset.from_folder(work / "zip" / "cifar10"), split_accuracy),
        }
        photos = sets["photographs"][0]
        results["tiny"] = {"images_per_s": speed(photos, work, backbone="tiny")}
        results["MobileNetV2 at 224 px"] = {"images_per_s": speed(photos, work, **teacher)}
        for name, (data, accuracy) in sets.items():
            columns = {
                label: featx.extract(data, cache=work / "cache", **options)
                for label, options in networks.items()
            }
            matrices = {label: (np.array(f.X), f.y) for label, f in columns.items()}
            if name == "CIFAR-10":
                matrices["raw pixels"] = (raw_pixels(data, 32), data.y)
            for label, (X, y) in matrices.items():
                scores = [accuracy(X, y, seed) for seed in SEEDS[: arguments.seeds]]
                results.setdefault(label, {})[name] = float(np.mean(scores))
                print(f"{name:12} {label:28} {np.mean(scores):.3f}", flush=True)
    ratio = results["tiny"]["images_per_s"] / results["MobileNetV2 at 224 px"]["images_per_s"]
    print(f"images/s     tiny / MobileNetV2 at 224 px   {ratio:.1f}")
    print(json.dumps({"results": results, "speed_ratio": ratio, "seeds": arguments.seeds}))


if __name__ == "__main__":
    main()
