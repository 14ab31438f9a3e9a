"""``featx demo``."""

from __future__ import annotations

import time
from pathlib import Path

import click

from featx.cli import options
from featx.cli.show import show_scores, table
from featx.terminal import say

_HELD_OUT_OF = 5


@options.command(
    "demo",
    click.option(
        "--into",
        type=click.Path(file_okay=False, path_type=Path),
        default=Path("featx-demo"),
        show_default=True,
        help="Folder for its images, cache and model.",
    ),
)
def command(into: Path) -> None:
    """Run the whole job on embedded data: extract, train, evaluate, predict, and once more.

    The data are 1,797 scans of handwritten digits. Nothing is downloaded.

    \b
    featx demo
    """
    import featx
    from featx.models.prediction import predict

    images, cache, model_file = into / "digits", into / "cache", into / "digits.featx"
    clock = _Clock()
    training, held_out = write_digits(images)
    clock.step(1, f"wrote {training + held_out:,} scans of digits as PNG files to {images}/")

    features = featx.extract(images / "train", backbone="tiny", cache=cache, progress=True)
    report = features.report
    clock.step(
        2,
        f"extracted {report['extracted']:,} images with the backbone 'tiny' ({report['cached']:,} "
        f"were in the cache), {report['images_per_s']:,.0f} images/s, {features.X.shape[1]:,} "
        "features each",
    )
    result = featx.train(features, head="logistic", cache=cache)
    result.model.save(model_file, metrics=result.metrics, training=result.training)
    clock.step(
        3,
        f"trained a logistic regression: accuracy {result.metrics['accuracy']:.4f} "
        f"({result.metrics['protocol']})",
    )
    model = featx.load(model_file, cache=cache)
    test = featx.extract(images / "test", backbone="tiny", cache=cache, progress=True)
    metrics = featx.evaluate(model, test)
    clock.step(4, f"evaluated {metrics['images']} images that it has not seen:")
    show_scores(metrics)

    files = [images / "test" / path for path in test.paths[:: max(1, len(test) // 3)][:3]]
    rows = predict(model, files, top_k=2)
    clock.step(5, "predicted three of them:")
    lines = [[row.path, *(f"{name} {p:.3f}" for name, p in row.top)] for row in rows]
    say(*table(["path", "first", "second"], lines))

    again = featx.extract(images / "train", backbone="tiny", cache=cache).report
    clock.step(
        6,
        f"ran the extraction again: {again['extracted']} extracted, {again['cached']:,} from the "
        f"cache, {again['seconds']:.2f} s",
    )
    say(
        "",
        f"The model is {model_file}. For your own folder, with one sub-folder a class:",
        "",
        "  featx train photos/ -o photos.featx",
        "  featx evaluate photos.featx held-out-photos/",
        "  featx predict photos.featx new-photos/*.jpg",
        "",
    )


def write_digits(folder: Path) -> tuple[int, int]:
    """Write scikit-learn's 1,797 digits as PNG files, one folder a class, and return their numbers.

    Every fifth scan goes to ``test/``, the others to ``train/``. The scans are those of the UCI
    "Optical recognition of handwritten digits" test set, 8 x 8 pixels of 17 levels of grey.
    """
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    counts = {"train": 0, "test": 0}
    for number, (scan, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        split = "test" if number % _HELD_OUT_OF == 0 else "train"
        counts[split] += 1
        target = folder / split / str(digit) / f"{number:04d}.png"
        if target.is_file():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        grey = np.round(scan * (255 / 16)).astype(np.uint8)
        Image.fromarray(grey).save(target)
    return counts["train"], counts["test"]


class _Clock:
    def __init__(self) -> None:
        self._since = time.perf_counter()

    def step(self, number: int, text: str) -> None:
        now = time.perf_counter()
        say(f"{number}. {text} [{now - self._since:.1f} s]")
        self._since = now
