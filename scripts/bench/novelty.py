"""How often `--unknown` marks strangers, and how often images like those of training.

    python scripts/bench/novelty.py --cifar cifar10_10k.zip --photos ants_bees/ \
        --weights mobilenet_v2_1.0_224_notop.weights.h5

For each of 10 splits the detector that `featx train` keeps is fitted on two thirds of the images
that are known; false alarms are counted on the last third, copies of an image on one side, and
strangers on all images of another kind. Prints a table of means over the splits, with the range of
the false alarms, and one line of JSON. Without --weights only `tiny` is measured.
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
from featx.cli.demo import write_digits
from featx.heads.novelty import fit_novelty

SPLITS = 10
IMAGES_A_CLASS = 200
CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
KNOWN = CIFAR[::2]


def sample_of_cifar(archive: Path, folder: Path) -> Path:
    """Unpack the first images of each class."""
    with zipfile.ZipFile(archive) as file:
        names = sorted(name for name in file.namelist() if not name.endswith("/"))
        for label in CIFAR:
            own = [name for name in names if Path(name).parent.name == label][:IMAGES_A_CLASS]
            (folder / label).mkdir(parents=True)
            for name in own:
                (folder / label / Path(name).name).write_bytes(file.read(name))
    return folder


def measure(known: Any, strangers: dict[str, Any]) -> dict[str, Any]:
    """Return shares that are marked: of held-out images, and of each kind of strangers.

    `known` is (features, labels, numbers that copies of an image share).
    """
    X, y, copies = known
    codes = np.unique(y, return_inverse=True)[1]
    alarms: list[float] = []
    marked: dict[str, list[float]] = {name: [] for name in strangers}
    for seed in range(SPLITS):
        order = np.random.default_rng(seed).permutation(copies.max() + 1)
        held_out = np.isin(copies, order[: len(order) // 3])
        novelty = fit_novelty(X[~held_out], codes[~held_out], copies[~held_out], seed=seed)
        alarms.append(float((novelty.distance(X[held_out]) > 1).mean()))
        for name, other in strangers.items():
            marked[name].append(float((novelty.distance(other) > 1).mean()))
    return {
        "images": len(X),
        "stated": novelty.false_alarm_rate,
        "false_alarms": float(np.mean(alarms)),
        "range": [min(alarms), max(alarms)],
        "marked": {name: float(np.mean(values)) for name, values in marked.items()},
    }


def arrays(features: Any, classes: tuple[str, ...] | None = None) -> Any:
    """Return features, labels and numbers of images, of all classes or of some."""
    copies = np.unique(features.keys, axis=0, return_inverse=True)[1].ravel()
    rows = np.arange(len(features)) if classes is None else np.isin(features.y, classes)
    chosen = np.unique(copies[rows], return_inverse=True)[1]
    return np.array(features.X)[rows], features.y[rows], chosen


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cifar", type=Path, required=True)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--weights", type=Path)
    arguments = parser.parse_args()
    networks: dict[str, dict[str, Any]] = {"tiny": {"backbone": "tiny"}}
    if arguments.weights is not None:
        networks["mobilenet_v2"] = {"backbone": "mobilenet_v2", "weights": arguments.weights}
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        write_digits(work / "digits")
        places = {
            "cifar": sample_of_cifar(arguments.cifar, work / "cifar"),
            "digits": work / "digits" / "test",
            "photos": arguments.photos,
        }
        for network, options in networks.items():
            features = {
                name: featx.extract(place, cache=work / "cache", **options)
                for name, place in places.items()
            }
            X, y = np.array(features["cifar"].X), features["cifar"].y
            photos, digits = np.array(features["photos"].X), np.array(features["digits"].X)
            results[network] = {
                "five classes of CIFAR-10": measure(
                    arrays(features["cifar"], KNOWN),
                    {
                        "digits": digits,
                        "ants and bees": photos,
                        "other five": X[~np.isin(y, KNOWN)],
                    },
                ),
                "ants and bees": measure(
                    arrays(features["photos"]), {"CIFAR-10": X, "digits": digits}
                ),
            }
            for name, one in results[network].items():
                low, high = one["range"]
                shares = ", ".join(f"{who} {share:.2f}" for who, share in one["marked"].items())
                print(
                    f"{network:13} {name:25} stated {one['stated']:.3f}, false alarms "
                    f"{one['false_alarms']:.3f} ({low:.3f} to {high:.3f}); marked: {shares}",
                    flush=True,
                )
    print(json.dumps({"results": results, "splits": SPLITS}))


if __name__ == "__main__":
    main()
