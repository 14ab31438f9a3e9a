"""What decoding JPEG files at a reduced size brings on photographs of a camera, and what it costs.

    python scripts/bench/camera.py PHOTOS -b mobilenet_v2=WEIGHTS
    python scripts/bench/camera.py PHOTOS --images 500 --noise 8

PHOTOS is a folder with one sub-folder a class. Its images are enlarged to 4000 x 3000 pixels (with
`--noise`, the grain of a sensor is added, so that there is detail for a decoder to lose) and
written as JPEG. Both sides, ``ImagePolicy(draft=True)`` and ``draft=False``, run in one process, in
turns, from files to features in an empty cache; the start of the network is not counted.

Prints the images/s of both, the mean difference of their pixels, the cosine of their features, and
the cross-validated accuracy of a logistic regression on both, over 20 times the same five folds,
with the standard error of the difference over the images. PNG and WebP cannot be decoded at a
reduced size: their rate is compared with Pillow's own.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import statistics
import tempfile
import time
import zlib
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import featx
from featx.images.decode import decode_sizes

SIZE = (4000, 3000)
REPEATS = 20


def enlarge(paths: tuple[Path, Path], noise: float) -> None:
    """Write an image at the size of a camera's."""
    source, target = paths
    with Image.open(source) as image:
        large = image.convert("RGB").resize(SIZE, Image.Resampling.BICUBIC)
    if noise:
        generator = np.random.default_rng(zlib.crc32(source.name.encode()))
        grain = generator.normal(0, noise, (SIZE[1], SIZE[0], 1)).astype(np.float32)
        large = Image.fromarray(np.clip(np.asarray(large) + grain, 0, 255).astype(np.uint8))
    target.parent.mkdir(parents=True, exist_ok=True)
    large.save(target, quality=90)


def enlarged(photos: Path, folder: Path, images: int, noise: float) -> featx.ImageDataset:
    """Write so many images of a folder, spread over its classes, at the size of a camera's."""
    data = featx.ImageDataset.from_folder(photos)
    rows = np.random.default_rng(0).permutation(len(data))[: images or len(data)]
    pairs = []
    for row in rows:
        file = data.file(int(row))
        pairs.append((Path(file), folder / Path(file).parent.name / f"{Path(file).stem}.jpg"))
    with ProcessPoolExecutor() as pool:
        list(pool.map(partial(enlarge, noise=noise), pairs, chunksize=4))
    return featx.ImageDataset.from_folder(folder)


def share_of_decoder(file: Path, rounds: int = 5) -> dict[str, float]:
    """Return how fast featx makes pixels of a large image, relative to Pillow alone, by format."""
    with Image.open(file) as image:
        picture = image.convert("RGB")
    policy = featx.ImagePolicy(draft=False)
    shares = {}
    for name, options in (("PNG", {"compress_level": 1}), ("WEBP", {"quality": 90})):
        buffer = io.BytesIO()
        picture.save(buffer, name, **options)
        data = buffer.getvalue()
        sides: dict[str, list[float]] = {"pillow": [], "featx": []}
        for _ in range(rounds):
            start = time.perf_counter()
            with Image.open(io.BytesIO(data)) as image:
                image.convert("RGB").resize((224, 224), Image.Resampling.BILINEAR)
            middle = time.perf_counter()
            decode_sizes(data, [((224, 224), policy)])
            sides["pillow"].append(middle - start)
            sides["featx"].append(time.perf_counter() - middle)
        pairs = zip(sides["pillow"], sides["featx"], strict=True)
        shares[name] = statistics.median(pillow / ours for pillow, ours in pairs)
    return shares


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", type=Path)
    parser.add_argument("-b", metavar="NAME=WEIGHTS", default="mobilenet_v2=random:0")
    parser.add_argument("--images", type=int, default=0, help="default: all")
    parser.add_argument("--noise", type=float, default=0.0, help="standard deviation, of 255")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    backbone, weights = args.b.split("=", 1)
    with tempfile.TemporaryDirectory() as scratch:
        photos, cache = Path(scratch, "photos"), Path(scratch, "cache")
        data = enlarged(args.photos, photos, args.images, args.noise)
        policies = {draft: featx.ImagePolicy(draft=draft) for draft in (False, True)}
        rates: dict[bool, list[float]] = {False: [], True: []}
        features = {}
        for turn in range(args.rounds + 1):
            for draft, policy in policies.items():
                shutil.rmtree(cache, ignore_errors=True)
                block = featx.extract(
                    photos, backbone=backbone, weights=weights, image=policy, cache=cache
                )
                if turn:  # the first converts the network
                    rates[draft].append(block.report["extracted_per_s"])
                features[draft], labels = np.array(block.X), np.array(block.y)
        shares = share_of_decoder(Path(data.file(0)))
        sample = [Path(data.file(row)).read_bytes() for row in range(0, len(data), 10)]
        pixels = [
            np.stack([decode_sizes(file, [((224, 224), policy)])[0] for file in sample])
            for policy in policies.values()
        ]
    head = make_pipeline(StandardScaler(), LogisticRegression(C=1e-3, max_iter=2000))
    right = {
        draft: np.mean(
            [
                cross_val_predict(
                    head, X, labels, cv=StratifiedKFold(5, shuffle=True, random_state=n)
                )
                == labels
                for n in range(REPEATS)
            ],
            axis=0,
        )
        for draft, X in features.items()
    }
    gain = right[True] - right[False]
    norms = [np.linalg.norm(X, axis=1) for X in features.values()]
    cosine = (features[False] * features[True]).sum(axis=1) / np.maximum(norms[0] * norms[1], 1e-9)
    result = {
        "images": len(labels),
        "images_per_s": {
            name: statistics.median(rates[draft])
            for name, draft in (("full", False), ("draft", True))
        },
        "times": statistics.median(b / a for a, b in zip(rates[False], rates[True], strict=True)),
        "share_of_decoder": shares,
        "mean_pixel_difference": float(np.abs(pixels[0].astype(int) - pixels[1]).mean()),
        "cosine_mean": float(cosine.mean()),
        "cosine_least": float(cosine.min()),
        "accuracy": {"full": float(right[False].mean()), "draft": float(right[True].mean())},
        "gain": float(gain.mean()),
        "standard_error": float(gain.std() / np.sqrt(len(gain))),
    }
    print(
        f"{result['images']} images of {SIZE[0]} x {SIZE[1]}: "
        f"{result['images_per_s']['full']:.1f} images/s in full, "
        f"{result['images_per_s']['draft']:.1f} drafted, {result['times']:.2f} times"
    )
    print(
        f"accuracy {result['accuracy']['full']:.4f} in full, {result['accuracy']['draft']:.4f} "
        f"drafted: {result['gain']:+.4f}, standard error {result['standard_error']:.4f}"
    )
    told = ", ".join(f"{name} {share:.2f}" for name, share in shares.items())
    print(f"of Pillow's own rate for a file of this size: {told}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
