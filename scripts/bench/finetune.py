r"""Fine-tuning from cached activations against training the whole graph, and what it gains.

    python scripts/bench/finetune.py PHOTOS --weights WEIGHTS
    python scripts/bench/finetune.py PHOTOS --weights WEIGHTS --input-size 96 --jobs gain \
        --unfreeze block_13 --settings "" views=0 views=4,label_smoothing=0.1

PHOTOS is a folder with one sub-folder a class; the weights are those of MobileNetV2. Two jobs
(``--jobs``):

    speed   an epoch with the last block unfrozen, from the cut and from pixels with the same frozen
            part in the graph, in turns, after an epoch that is not counted; and how far the losses
            of 50 steps are apart. The other side is at its best: its frozen layers have no
            gradient, and decoding overlaps with training.
    gain    head and fine-tuned networks on images that none has seen, ``--train`` and ``--test``
            of them drawn by class with ``--seed``: accuracy, log loss and calibration error, with
            the seconds of each whole fine-tuning. ``--settings`` are option sets that are compared
            on the same images; an empty one is the default

Prints figures and one line of JSON.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import featx
from featx.finetuning.start import FineTuneOptions, prepare_material, prepare_start
from featx.finetuning.trainer import Training

STEPS = 50
SCORES = ("accuracy", "log_loss", "calibration_error")


def extracted(data: Any, args: argparse.Namespace, cache: Path) -> featx.Features:
    asked = {"backbone": "mobilenet_v2", "weights": args.weights}
    return featx.extract(data, **asked, input_size=args.input_size, cache=cache)


def model_on(data: Any, args: argparse.Namespace, cache: Path) -> Any:
    features = extracted(data, args, cache)
    return featx.train(features, head="logistic:C=0.01", cv=0, cache=cache).model


def speed(args: argparse.Namespace, folder: Path) -> dict[str, float]:
    cache = folder / "cache"
    model = model_on(args.photos, args, cache)
    sides = {}
    for cut in ("cached", "pixels"):
        # So many epochs that no side ends while it is timed.
        options = FineTuneOptions(unfreeze=args.unfreeze, epochs=1000, patience=1000, cut=cut)
        start = prepare_start(model, args.photos, options, cache=cache)
        network, inputs = prepare_material(start)
        training = Training(start, network, inputs, folder / cut, "bench")
        training.prepare()
        sides[cut] = training
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(args.rounds + 1):
        for name, training in sides.items():
            started = time.perf_counter()
            training.steps_of_epoch(turn + 1)
            if turn:
                seconds[name].append(time.perf_counter() - started)
    few = min(STEPS, *(len(training.losses) for training in sides.values()))
    losses = {name: np.array(training.losses[:few]) for name, training in sides.items()}
    apart = np.abs(losses["cached"] - losses["pixels"]) / np.maximum(1e-2, losses["pixels"])
    ratios = [p / c for c, p in zip(seconds["cached"], seconds["pixels"], strict=True)]
    return {
        "images": len(start.rows),
        "epoch_cached_s": statistics.median(seconds["cached"]),
        "epoch_pixels_s": statistics.median(seconds["pixels"]),
        "times_faster": statistics.median(ratios),
        "steps_compared": few,
        "largest_relative_difference_of_loss": float(apart.max()),
    }


def drawn(args: argparse.Namespace, table: Path) -> Path:
    """Write a table of images drawn by class, with splits named train and test."""
    rng = np.random.default_rng(args.seed)
    classes = sorted(path for path in args.photos.iterdir() if path.is_dir())
    train, test = args.train // len(classes), args.test // len(classes)
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split"])
        for name in classes:
            files = rng.permutation(sorted(str(path) for path in name.iterdir()))
            for number, path in enumerate(files[: train + test]):
                writer.writerow([path, name.name, "train" if number < train else "test"])
    return table


def read_settings(text: str) -> dict[str, Any]:
    """Return options of `featx.finetune` written as ``views=4,mixing=mixup``."""
    pairs = (part.split("=", 1) for part in text.split(",") if part)
    kinds = {name: type(value) for name, value in FineTuneOptions().to_dict().items()}
    kinds |= {"learning_rate": float, "views": int}
    return {name: kinds[name](value) for name, value in pairs}


def gain(args: argparse.Namespace, folder: Path) -> dict[str, float]:
    table, cache = drawn(args, folder / "table.csv"), folder / "cache"
    model = model_on(table, args, cache)
    features = extracted(table, args, cache)
    of_head = featx.evaluate(model, features[features.splits == "test"], bootstrap=0)
    results = {f"head: {name}": of_head[name] for name in SCORES}
    for number, text in enumerate(args.settings):
        options = {"unfreeze": args.unfreeze, "epochs": args.epochs, "seed": args.seed}
        options |= read_settings(text)
        started = time.perf_counter()
        done = featx.finetune(model, table, folder / f"{number}.featx", cache=cache, **options)
        seconds = time.perf_counter() - started
        scores = done.scored.scores if done.kept == "finetuned" else of_head
        comparison = done.metrics["finetuning"]
        figures = {name: scores[name] for name in SCORES}
        figures |= {name: comparison[name] for name in ("best_epoch", "temperature")}
        figures |= {"kept": float(done.kept == "finetuned"), "seconds": seconds}
        results |= {f"{text or 'default'}: {name}": value for name, value in figures.items()}
    return results


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", type=Path)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--input-size", type=int)
    parser.add_argument("--jobs", nargs="+", choices=["speed", "gain"], default=["speed"])
    parser.add_argument("--unfreeze", default="block_16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--train", type=int, default=2000)
    parser.add_argument("--test", type=int, default=5000)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--settings", nargs="+", default=["", "views=0"])
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    results: dict[str, Any] = {}
    for job in args.jobs:
        with tempfile.TemporaryDirectory() as scratch:
            results[job] = {"speed": speed, "gain": gain}[job](args, Path(scratch))
        for name, value in results[job].items():
            print(f"{job}: {name:50} {value:.5g}", flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
