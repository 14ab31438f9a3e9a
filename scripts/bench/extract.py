"""How fast features come from image files: Keras as people run it, featx, and the limits of both.

    python scripts/bench/extract.py PHOTOS
    python scripts/bench/extract.py PHOTOS -b mobilenet_v2=WEIGHTS -b resnet50=random:0 --rounds 5

PHOTOS is a folder with one sub-folder a class; without it, photographs of 500 x 375 pixels are
drawn. All sides run in one process, in turns, on the same files, after a first call that is not
counted; figures are medians over the rounds.

- `predict`: ``model.predict`` over ``image_dataset_from_directory``.
- `loop`: a careful hand-written Keras loop: parallel decoding with tf.data, prefetching, a traced
  forward pass.
- `featx keras`, `featx openvino`: `featx.extract` into an empty cache, files to features on disk.
- `forward`, `decode`: the model on pixels in memory, and the decoding of the files, each alone with
  the whole machine; limit = 1 / (1 / forward + 1 / decode), as both need the same cores.

With `--engine` only featx is measured, against its own limits, in under three minutes. This needs
no TensorFlow: ``KERAS_BACKEND=jax`` or ``torch`` runs it on whatever that backend sees.

    python scripts/bench/extract.py --engine auto -b resnet50=random:0
    python scripts/bench/extract.py --engine auto --precision fast -b mobilenet_v2=WEIGHTS

It prints images/s in f32 and in the precision asked for, what binds, and the share of the limit: of
min(forward, decode) on a GPU, which leaves the processor to the decoders.

Prints a table and one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import featx
import featx.extraction.run
from featx.backbones.source import BackboneSource, resolve_backbone
from featx.engines.choice import gpus, make_engine, may_have_gpu
from featx.engines.engine import Engine
from featx.extraction.job import engines_folder
from featx.images.loader import load_images
from featx.quiet import quiet_import
from featx.spec import Precision

DEFAULT = ["mobilenet_v2=random:0", "efficientnet_b0=random:0", "resnet50=random:0"]
SEVERAL_TAPS = ("avg", "max", "gem", "grid:2")


def draw_photographs(folder: Path, count: int) -> None:
    """Write JPEG files of 500 x 375 pixels with smooth areas, edges and noise."""
    from PIL import Image

    generator = np.random.default_rng(0)
    for number in range(count):
        coarse = generator.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC))
        noise = generator.normal(0, 12, smooth.shape)
        path = folder / f"class{number % 2}" / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.clip(smooth + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(path, quality=90)


class Bench:
    """The sides of one backbone, each a function that handles all files once."""

    def __init__(
        self, photos: Path, source: BackboneSource, asked: dict[str, Any], folder: Path
    ) -> None:
        self.photos = photos
        self.source = source
        self.asked = asked
        self.folder = folder
        self.data = featx.ImageDataset.from_folder(photos)
        self.size = source.input_size_px
        self.spec = source.spec()
        self.report: dict[str, Any] = {}

    def keras_sides(self) -> dict[str, Callable[[], None]]:
        """Keras as people run it: uint8 files in, pooled vectors out."""
        with quiet_import():
            import keras
            import tensorflow as tf
        from featx.backbones.build import build_network, preprocess

        network = build_network(self.source)
        inputs = keras.Input((*self.size, 3))
        pooled = keras.layers.GlobalAveragePooling2D()(
            network(preprocess(inputs, self.source.preprocessing), training=False)
        )
        model = keras.Model(inputs, pooled)

        def predict() -> None:
            files = keras.utils.image_dataset_from_directory(
                self.photos, image_size=self.size, batch_size=32, shuffle=False, verbose=False
            )
            model.predict(files.map(lambda pixels, _: pixels), verbose=0)

        traced = tf.function(lambda pixels: model(pixels, training=False))
        paths = [str(self.data.file(row)) for row in range(len(self.data))]

        def decode(path: Any) -> Any:
            image = tf.io.decode_image(tf.io.read_file(path), 3, expand_animations=False)
            return tf.image.resize(image, self.size)

        def loop() -> None:
            batches = (
                tf.data.Dataset.from_tensor_slices(paths)
                .map(decode, num_parallel_calls=tf.data.AUTOTUNE)
                .batch(32)
                .prefetch(tf.data.AUTOTUNE)
            )
            np.concatenate([traced(batch).numpy() for batch in batches])

        return {"predict": predict, "loop": loop}

    def featx_side(self, engine: str, precision: Precision = "f32") -> Callable[[], None]:
        """Files to features in an empty cache."""

        def extract() -> None:
            cache = self.folder / "cache"
            shutil.rmtree(cache / "spaces", ignore_errors=True)
            shutil.rmtree(cache / "datasets", ignore_errors=True)
            features = featx.extract(
                self.photos, cache=cache, engine=engine, precision=precision, **self.asked
            )
            assert features.report["cached"] == features.report["duplicates"], features.report
            self.report = features.report

        return extract

    def engine(
        self, name: str, taps: tuple[str, ...] = ("avg",), precision: Precision = "f32"
    ) -> Engine:
        """Return the very engine that the extraction uses."""
        folder = engines_folder()
        return make_engine(name, self.source, taps, precision=precision, folder=folder)

    def forward(self, engine: Engine) -> Callable[[], None]:
        """Run the model alone, on as many images as there are files."""
        generator = np.random.default_rng(1)
        count = len(self.data)
        shape = (engine.batch_size, *self.size, 3)
        pixels = generator.integers(0, 256, shape, dtype=np.uint8)

        def run() -> None:
            under_way = []
            for start in range(0, count, len(pixels)):
                if len(under_way) >= engine.in_flight:
                    under_way.pop(0).result()
                under_way.append(engine.submit(pixels[: count - start]))
            for pending in under_way:
                pending.result()

        return run

    def decode(self) -> None:
        """Decode alone."""
        rows = range(len(self.data))
        for loaded in load_images(self.data, rows, [(self.size, self.spec.image)]):
            assert loaded.pixels or loaded.status == "failed", loaded.reason


def in_turns(
    sides: dict[str, Callable[[], None]], rounds: int, images: int
) -> dict[str, list[float]]:
    """Return images a second of each side in each round; the first call is not counted."""
    for side in sides.values():
        side()
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            started = time.perf_counter()
            side()
            rates[name].append(images / (time.perf_counter() - started))
    return rates


def bench_backbone(
    photos: Path, asked: dict[str, Any], rounds: int, folder: Path
) -> dict[str, Any]:
    """Measure one backbone."""
    source = resolve_backbone(asked["backbone"], weights=asked["weights"])
    bench = Bench(photos, source, asked, folder)
    images = len(bench.data)
    sides = {
        **bench.keras_sides(),
        "featx_keras": bench.featx_side("keras"),
        "featx_openvino": bench.featx_side("openvino"),
        "forward_keras": bench.forward(bench.engine("keras")),
        "forward_openvino": bench.forward(bench.engine("openvino")),
        "decode": bench.decode,
    }
    rates = in_turns(sides, rounds, images)
    found: dict[str, Any] = {name: statistics.median(values) for name, values in rates.items()}
    found["times_predict"] = _ratio(rates["featx_openvino"], rates["predict"])
    limits = [
        1 / (1 / forward + 1 / decode)
        for forward, decode in zip(rates["forward_openvino"], rates["decode"], strict=True)
    ]
    found["limit"] = statistics.median(limits)
    found["of_limit"] = _ratio(rates["featx_openvino"], limits)
    return {"backbone": asked["backbone"], "images": images, **found}


def bench_engine(
    photos: Path, asked: dict[str, Any], args: argparse.Namespace, folder: Path
) -> dict[str, Any]:
    """Measure one engine alone, in f32 and in another precision."""
    source = resolve_backbone(asked["backbone"], weights=asked["weights"])
    # What it comes to on this machine; for int8 the network is calibrated here.
    options = {**asked, "engine": args.engine, "precision": args.precision}
    chosen = featx.extract(photos, cache=folder / "chosen", **options).spec().precision
    on_gpu = bool(may_have_gpu() and gpus()) and args.engine != "openvino"
    bench = Bench(photos, source, asked, folder)
    # The comparison with f32 is made once a dataset, and is no part of the rate.
    featx.extraction.run.agreements = lambda *_: []
    sides, binds = {"decode": bench.decode}, {}
    for precision in dict.fromkeys(("f32", chosen)):
        sides[precision] = bench.featx_side(args.engine, precision)
        sides[f"forward {precision}"] = bench.forward(
            bench.engine(args.engine, precision=precision)
        )
        sides[precision]()
        binds[precision] = bench.report["binds"]
    rates = in_turns(sides, args.rounds, len(bench.data))
    found: dict[str, Any] = {name: statistics.median(values) for name, values in rates.items()}
    for precision, what in binds.items():
        limits = [
            min(forward, decode) if on_gpu else 1 / (1 / forward + 1 / decode)
            for forward, decode in zip(rates[f"forward {precision}"], rates["decode"], strict=True)
        ]
        print(
            f"{source.name} {args.engine} {precision.partition(':')[0]}: "
            f"{found[precision]:.1f} images/s, forward "
            f"{found[f'forward {precision}']:.1f}, decode {found['decode']:.1f}, "
            f"{_ratio(rates[precision], limits):.2f} of the limit, {what} binds",
            flush=True,
        )
    if chosen != "f32":
        found["times_f32"] = _ratio(rates[chosen], rates["f32"])
        print(f"{args.precision} is {found['times_f32']:.2f} times as fast as f32")
    return {"backbone": source.name, "engine": args.engine, "binds": binds, **found}


def _ratio(over: list[float], under: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def bench_together(
    photos: Path, pair: list[dict[str, Any]], rounds: int, folder: Path
) -> dict[str, Any]:
    """One pass for two backbones and four taps, against the two forwards and one decoding."""
    names = [asked["backbone"] for asked in pair]
    sources = [resolve_backbone(asked["backbone"], weights=asked["weights"]) for asked in pair]
    asked = {
        "backbone": names,
        "weights": {asked["backbone"]: asked["weights"] for asked in pair},
        "taps": SEVERAL_TAPS,
    }
    benches = [Bench(photos, source, asked, folder) for source in sources]
    sides = {
        "together": benches[0].featx_side("openvino"),
        "first": benches[0].forward(benches[0].engine("openvino", SEVERAL_TAPS)),
        "second": benches[1].forward(benches[1].engine("openvino", SEVERAL_TAPS)),
        "decode": benches[0].decode,
    }
    rates = in_turns(sides, rounds, len(benches[0].data))
    costs = [
        (1 / whole) / (1 / first + 1 / second + 1 / decode)
        for whole, first, second, decode in zip(*rates.values(), strict=True)
    ]
    return {
        "backbones": names,
        "taps": SEVERAL_TAPS,
        "together": statistics.median(rates["together"]),
        "cost_over_parts": statistics.median(costs),
    }


FIRST_FEATURES = """
import sys, featx
data = featx.ImageDataset.from_folder(sys.argv[1]).subset(range(32))
features = featx.extract(data, backbone=sys.argv[2], weights=sys.argv[3], cache=sys.argv[4],
                         engine=sys.argv[5])
assert len(features) >= 31
"""


def bench_start(photos: Path, asked: dict[str, Any], rounds: int, folder: Path) -> dict[str, float]:
    """Seconds from the start of the process to the first 32 features, with a warm engine."""
    found = {}
    for engine in ("openvino", "keras"):
        seconds = []
        for _ in range(rounds + 1):
            cache = folder / "cache"
            shutil.rmtree(cache / "spaces", ignore_errors=True)
            shutil.rmtree(cache / "datasets", ignore_errors=True)
            started = time.perf_counter()
            arguments = [photos, asked["backbone"], asked["weights"], cache, engine]
            command = [sys.executable, "-c", FIRST_FEATURES, *map(str, arguments)]
            subprocess.run(command, check=True)
            seconds.append(time.perf_counter() - started)
        found[engine] = statistics.median(seconds[1:])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", type=Path, nargs="?")
    parser.add_argument(
        "-b", action="append", metavar="NAME=WEIGHTS", help=f"default: {' '.join(DEFAULT)}"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--draw", type=int, default=256, help="photographs to draw without PHOTOS")
    parser.add_argument("--engine", help="measure this one only: auto, keras or openvino")
    parser.add_argument("--precision", default="f32", help="with --engine, beside f32")
    parser.add_argument("--no-start", action="store_true", help="leave out the process starts")
    args = parser.parse_args()
    backbones = [
        dict(zip(("backbone", "weights"), item.split("=", 1), strict=True))
        for item in args.b or DEFAULT
    ]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        photos = args.photos or folder / "photos"
        if args.photos is None:
            draw_photographs(photos, args.draw)
        if args.engine:
            rows = [bench_engine(photos, asked, args, folder) for asked in backbones]
            print(json.dumps({"rows": rows}))
            return
        print(
            "| images/s | predict | loop | featx keras | featx openvino | forward keras | "
            "forward openvino | decode | times predict | of the limit |"
        )
        print("| --- " * 10 + "|")
        rows = []
        for asked in backbones:
            row = bench_backbone(photos, asked, args.rounds, folder)
            rows.append(row)
            rates = [
                row[name]
                for name in (
                    "predict",
                    "loop",
                    "featx_keras",
                    "featx_openvino",
                    "forward_keras",
                    "forward_openvino",
                    "decode",
                )
            ]
            print(
                f"| {row['backbone']} | {' | '.join(f'{rate:.1f}' for rate in rates)} | "
                f"{row['times_predict']:.2f} | {row['of_limit']:.3f} |",
                flush=True,
            )
        result: dict[str, Any] = {"rows": rows}
        if len(backbones) > 1:
            pair = [backbones[0], backbones[-1]]
            together = bench_together(photos, pair, args.rounds, folder)
            result["together"] = together
            print(
                f"\n{' and '.join(together['backbones'])}, {len(SEVERAL_TAPS)} taps each, in one "
                f"pass: {together['together']:.1f} images/s, "
                f"{together['cost_over_parts']:.3f} of the two forwards and one decoding"
            )
        if not args.no_start:
            result["first_32_s"] = bench_start(photos, backbones[0], args.rounds, folder)
            print(
                "process start to the first 32 features: "
                + ", ".join(f"{name} {value:.2f} s" for name, value in result["first_32_s"].items())
            )
        print(json.dumps(result))


if __name__ == "__main__":
    main()
