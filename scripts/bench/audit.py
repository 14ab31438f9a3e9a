"""What `featx audit` finds of what was planted, and what it takes for large data.

    python scripts/bench/audit.py planted --photos ants_bees/ --weights mobilenet_v2.weights.h5
    python scripts/bench/audit.py planted --cifar cifar10_10k.zip
    python scripts/bench/audit.py labels --photos ants_bees/ --weights mobilenet_v2.weights.h5
    python scripts/bench/audit.py labels --cifar cifar10_10k.zip
    python scripts/bench/audit.py scale --rows 100000

`planted` makes crops (60 to 90 % of the area), mirror images, re-encodings (quality 30 to 70) and
smaller copies (half to four fifths of the sides) of some images, in another split, and counts how
many are found, and how many of the pairs that are named are of different images. Pairs of the
data's own are listed with --list, for a person to look at. `labels` gives 5 % of the images another
label, and prints the average precision of featx's ranking and of cleanlab's on the same
probabilities, and both choices. `scale` measures seconds and peaks of memory on made-up features
with planted pairs: anonymous memory, and all that is resident, of which pages of mapped shards are
the kernel's to drop. Features are cached in --cache, so that a second run is quick.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import subprocess
import sys
import time
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

import featx

KINDS = ("crop", "flip", "reencode", "resize")
FLIPPED = 0.05
WIDTH = 1280


def images_of(options: argparse.Namespace) -> list[tuple[str, str, bytes]]:
    """Return class, name and bytes of every image."""
    if options.cifar:
        with zipfile.ZipFile(options.cifar) as archive:
            names = [name for name in sorted(archive.namelist()) if not name.endswith("/")]
            return [(Path(n).parent.name, Path(n).name, archive.read(n)) for n in names]
    files = sorted(path for path in options.photos.rglob("*") if path.is_file())
    return [(path.parent.name, path.name, path.read_bytes()) for path in files]


def change(data: bytes, kind: str, generator: np.random.Generator) -> bytes:
    """Return an image as a JPEG, changed in one way."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    width, height = image.size
    quality = 90
    if kind == "flip":
        image = ImageOps.mirror(image)
    elif kind == "reencode":
        quality = int(generator.integers(30, 71))
    elif kind == "resize":
        share = generator.uniform(0.5, 0.8)
        image = image.resize((round(width * share), round(height * share)), 3)
    else:
        share = generator.uniform(0.6, 0.9) ** 0.5
        w, h = round(width * share), round(height * share)
        x, y = generator.integers(0, width - w + 1), generator.integers(0, height - h + 1)
        image = image.crop((x, y, x + w, y + h))
    target = io.BytesIO()
    image.save(target, "jpeg", quality=quality)
    return target.getvalue()


def extract(options: argparse.Namespace, folder: Path) -> featx.Features:
    """Return the features of a folder."""
    backbone = "mobilenet_v2" if options.weights else "tiny"
    return featx.extract(
        folder, backbone=backbone, weights=options.weights, cache=options.cache, progress=True
    )


def planted(options: argparse.Namespace) -> dict[str, Any]:
    """Return shares of planted copies that were found, and of pairs that are false."""
    name = "cifar" if options.cifar else "photos"
    folder = options.cache / f"planted-{name}"
    if not folder.is_dir():
        generator = np.random.default_rng(0)
        images = images_of(options)
        chosen = generator.choice(
            len(images), min(options.planted, len(images) // 2), replace=False
        )
        for label, file, data in images:
            path = folder / "train" / label / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        for number, at in enumerate(chosen.tolist()):
            label, file, data = images[at]
            kind = KINDS[number % len(KINDS)]
            path = folder / "test" / label / f"{Path(file).stem}~{kind}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(change(data, kind, generator))
    features = extract(options, folder)
    started = time.perf_counter()
    audit = featx.audit(features)
    seconds = time.perf_counter() - started
    pairs = [f for f in audit.findings if f.kind.startswith(("near-", "leak"))]
    stems = [[Path(i.path).stem.partition("~") for i in f.images] for f in pairs]
    hits = {(s[0], s[2]) for pair in stems for s in pair if s[2] and len({p[0] for p in pair}) == 1}
    there = Counter(Path(p).stem.partition("~")[2] for p in features.paths) - Counter({"": 10**9})
    found = Counter(kind for _, kind in hits)
    others = [f for f, pair in zip(pairs, stems, strict=True) if len({p[0] for p in pair}) > 1]
    if options.list:
        for finding in others:
            print(
                *(str(folder / image.path) for image in finding.images), finding.evidence, sep="\t"
            )
    return {
        "images": len(features),
        "planted": dict(there),
        "found": {kind: found[kind] / there[kind] for kind in KINDS},
        "found in all": sum(found.values()) / sum(there.values()),
        "pairs named": len(pairs),
        "pairs of other images": len(others),
        "seconds": round(seconds, 1),
    }


def relabelled(features: featx.Features, codes: np.ndarray) -> Any:
    """Return what is known of a dataset, with other labels of its rows."""
    label = features.manifest.label.copy()
    label[features.rows] = codes
    return replace(features.manifest, label=label)


def labels(options: argparse.Namespace) -> dict[str, Any]:
    """Return how well flipped labels are ranked, by featx and by cleanlab."""
    from sklearn.metrics import average_precision_score

    from featx.auditing.label_errors import doubt_labels, held_out_probabilities

    name = "cifar" if options.cifar else "photos"
    folder = options.cache / f"labels-{name}"
    if not folder.is_dir():
        for label, file, data in images_of(options):
            path = folder / label / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    features = extract(options, folder)
    true = features.labels.copy()
    rows, results = np.arange(len(true)), []
    block = features.blocks[0]
    for seed in range(options.seeds):
        generator = np.random.default_rng(seed)
        flipped = np.zeros(len(true), bool)
        flipped[generator.choice(len(true), round(FLIPPED * len(true)), replace=False)] = True
        codes = true.copy()
        step = generator.integers(1, true.max() + 1, len(true))
        codes[flipped] = (true + step)[flipped] % (true.max() + 1)
        features.manifest = relabelled(features, codes)
        which = {"backbone": block.backbone, "tap": block.tap}
        passes = held_out_probabilities(features, which, rows, seed=seed)
        doubts = doubt_labels(codes, passes)
        row = {
            "featx AP": average_precision_score(flipped, 1 - doubts.quality),
            "featx precision": flipped[doubts.wrong].mean(),
            "featx recall": doubts.wrong[flipped].mean(),
        }
        try:
            from cleanlab.filter import find_label_issues
            from cleanlab.rank import get_label_quality_scores
        except ImportError:
            print("cleanlab is not installed", file=sys.stderr)
        else:
            doubles = np.concatenate([proba for proba, _ in passes()]).astype(np.float64)
            doubles /= doubles.sum(axis=1, keepdims=True)
            wrong = find_label_issues(codes, doubles, filter_by="confident_learning", n_jobs=1)
            quality = get_label_quality_scores(codes, doubles)
            row |= {
                "cleanlab AP": average_precision_score(flipped, 1 - quality),
                "choices that differ": int((wrong != doubts.wrong).sum()),
            }
        results.append(row)
    means = {key: float(np.mean([row[key] for row in results])) for key in results[0]}
    return {"images": len(true), "seeds": options.seeds, **means}


def scale(options: argparse.Namespace) -> dict[str, Any]:
    """Return seconds and peak memory of an audit, in a process of its own."""
    name = f"made-up-{options.rows}"
    if not (options.cache / "datasets" / f"{name}.h5").is_file():
        generator = np.random.default_rng(0)
        centres = generator.standard_normal((options.classes, WIDTH), np.float32)
        y = generator.integers(0, options.classes, options.rows)
        X = generator.standard_normal((options.rows, WIDTH), np.float32)
        for start in range(0, options.rows, 10_000):
            part = slice(start, start + 10_000)
            np.abs(X[part] + centres[y[part]], out=X[part])
        pairs = options.rows // 100
        X[-pairs:] = X[:pairs] + 0.1 * generator.standard_normal((pairs, WIDTH), np.float32)
        y[-pairs:] = y[:pairs]
        featx.import_features(name, X, y=[f"c{code}" for code in y], cache=options.cache)
        del X
    code = (
        "import json, threading, time, featx\n"
        "peaks = {'RssAnon': 0, 'VmRSS': 0}\n"
        "def watch():\n"
        "    while True:\n"
        "        for line in open('/proc/self/status'):\n"
        "            name, _, rest = line.partition(':')\n"
        "            if name in peaks:\n"
        "                peaks[name] = max(peaks[name], int(rest.split()[0]) / 2**20)\n"
        "        time.sleep(0.05)\n"
        "threading.Thread(target=watch, daemon=True).start()\n"
        f"features = featx.Features.open({name!r}, cache={str(options.cache)!r})\n"
        "started = time.perf_counter()\n"
        "audit = featx.audit(features)\n"
        "pairs = {f.rows for k in ('near-duplicate', 'near-contradiction') for f in audit.of(k)}\n"
        f"n, p = {options.rows}, {options.rows // 100}\n"
        "found = sum((row, n - p + row) in pairs for row in range(p)) / p\n"
        "print(json.dumps({'rows': n, 'seconds': round(time.perf_counter() - started, 1),\n"
        "    'anonymous GiB': round(peaks['RssAnon'], 2),\n"
        "    'resident GiB': round(peaks['VmRSS'], 2),\n"
        "    'left out': audit.left_out, 'processor s': round(time.process_time(), 1),\n"
        "    'planted pairs found': found, **audit.counts()}))\n"
    )
    output = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE)
    return json.loads(output.stdout)


def main() -> None:
    """Measure one thing, and print it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=["planted", "labels", "scale"])
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--cifar", type=Path)
    parser.add_argument("--weights")
    parser.add_argument("--planted", type=int, default=600)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--cache", type=Path, default=Path("audit-bench"))
    options = parser.parse_args()
    options.cache.mkdir(exist_ok=True)
    result = {"planted": planted, "labels": labels, "scale": scale}[options.what](options)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"what": options.what, **result, "peak of the script in GiB": round(peak, 2)}))


if __name__ == "__main__":
    main()
