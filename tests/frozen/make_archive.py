"""Make `tests/data/frozen`, from the code of featx 0.1.0 at commit e2c99fb.

`python make_archive.py FOLDER` leaves `archive.tar.xz` (two small networks, models and a cache made
with them from pictures that `conftest.py` draws, and picture files of many kinds as Pillow 13 wrote
them), and then runs the tests of this folder with `FEATX_FREEZE`, so that each writes what it
found. What lies in `tests/data/frozen` did not come out of one such run. The answers of models,
their evaluations, and the fine-tuning were recorded with an earlier archive, made by the same code
with the same seeds; those of caches, exports, commands and leaderboards were recorded again, with
`FEATX_FREEZE`. In the JSON of commands, digests of tuned networks and `weights_here` were replaced
by placeholders by hand. To freeze something new, write its test, run it with the oldest version
that has it, in a folder that has a copy of `archive.tar.xz`, and copy the new JSON file alone.
"""

from __future__ import annotations

import importlib.util
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
_ENGINES = tempfile.TemporaryDirectory()
os.environ |= {"FEATX_OFFLINE": "1", "FEATX_ENGINES": _ENGINES.name}


def load_conftest():
    spec = importlib.util.spec_from_file_location("frozen_conftest", HERE / "conftest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_networks(folder):
    """`small.keras` has two convolutions; the output of `pixels.keras` is its input."""
    import keras

    keras.utils.set_random_seed(0)
    layers = keras.layers
    keras.Sequential(
        [
            layers.Input((32, 32, 3)),
            layers.Rescaling(1 / 127.5, -1.0),
            layers.Conv2D(8, 3, strides=2, activation="relu", name="first"),
            layers.Conv2D(16, 3, strides=2, activation="relu", name="second"),
        ]
    ).save(folder / "small.keras")
    keras.Sequential([layers.Input((20, 24, 3)), layers.Rescaling(1.0, name="same")]).save(
        folder / "pixels.keras"
    )


def make_models(folder, drawn):
    import featx

    backbone, cache = f"file:{folder / 'small.keras'}", drawn / "cache"
    options = {"backbone": backbone, "cache": cache}
    models = folder / "models"
    models.mkdir()
    features = featx.extract(drawn / "pictures", **options)
    plain = featx.train(features, cv=3, **options)
    plain.model.save(models / "plain.featx", metrics=plain.metrics, training=plain.training)
    featx.finetune(
        models / "plain.featx", drawn / "pictures", models / "tuned.featx", cache=cache,
        unfreeze="second", epochs=2, batch_size=8, learning_rate=0.01,
    )  # fmt: skip
    features = featx.extract(drawn / "pictures", views=2, taps="first:max", **options)
    views = featx.train(features, head="lda", cv=3, average_views=True, **options)
    views.model.save(models / "views.featx", metrics=views.metrics, training=views.training)
    labels = featx.ImageDataset.from_csv(drawn / "sets.csv", multilabel=True)
    features = featx.extract(labels, taps="grid:2", **options)
    sets = featx.train(features, multilabel=True, cv=3, **options)
    sets.model.save(models / "sets.featx", metrics=sets.metrics, training=sets.training)
    crop = featx.ImageClassifier(
        backbone, "svm", image=featx.ImagePolicy(resize="crop"), tap="max", cache=cache
    )
    table = featx.ImageDataset.from_csv(drawn / "table.csv")
    crop.fit([str(drawn / path) for path in table.paths], ["a", "b"] * 12)
    crop.save(models / "crop.featx")
    (models / "damaged.featx").write_bytes((models / "plain.featx").read_bytes()[:2000])


def make_cache(folder, drawn):
    """A cache of several backbones, taps, views, types and datasets, of which some were edited."""
    import numpy as np

    import featx
    from featx.cli.main import cli

    cache = folder / "cache"
    backbone = f"file:{folder / 'small.keras'}"
    options = {"backbone": backbone, "cache": cache}
    featx.extract(drawn / "pictures", taps=["avg", "max", "first:grid:2"], views=2, **options)
    featx.extract(drawn / "table.csv", dtype="float16", **options)
    featx.extract(drawn / "sets.csv", multilabel=True, **options)
    numbers = np.random.default_rng(1).normal(size=(12, 3)).astype(np.float32)
    numbers[11] = numbers[0]
    featx.import_features(
        "numbers", numbers, y=["ü", "b", "ü", None] * 3, groups=["g"] * 4 + [""] * 8,
        splits=["train"] * 8 + ["test"] * 4, paths=[f"{n}/蟻" for n in range(12)], cache=cache,
    )  # fmt: skip
    for edit in (
        ("add", "numbers", "numbers", "--as", "twice"),
        ("relabel", "twice", "ü=u"),
        ("remove", "twice", "3/*", "--status", "duplicate"),
        ("split", "pictures", "--test", "0.3", "--method", "stratified"),
        ("add", "pictures", "table", "--as", "both"),
    ):
        try:
            cli.main(["dataset", *edit, "--cache", str(cache)], standalone_mode=False)
        except featx.FeatxError as error:
            print("refused:", *edit, error, sep="  ")


def picture_files():
    """Name and content of picture files of every kind that featx reads."""
    import numpy as np
    from PIL import Image, ImageOps

    rng = np.random.default_rng(3)
    photo = Image.fromarray(rng.integers(0, 256, (9, 13, 3), dtype=np.uint8)).resize((52, 36), 2)
    grey = photo.convert("L")
    deep = np.asarray(grey).astype(np.uint16) * 257 + 100
    clear = Image.fromarray(rng.integers(0, 256, (36, 52), dtype=np.uint8))
    second = {"save_all": True, "append_images": [ImageOps.mirror(photo)]}

    def encode(image, kind, **options):
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        return buffer.getvalue()

    def turned(orientation):
        block = Image.Exif()
        block[0x0112] = orientation
        return block

    def with_alpha(mode):
        image = photo.convert(mode)
        image.putalpha(clear)
        return image

    files = {
        "photo.jpg": encode(photo, "JPEG", quality=95),
        "progressive.jpg": encode(photo, "JPEG", progressive=True),
        "sampled.jpg": encode(photo, "JPEG", subsampling=2, quality=60),
        "grey.jpg": encode(grey, "JPEG"),
        "cmyk.jpg": encode(photo.convert("CMYK"), "JPEG"),
        "large.jpg": encode(photo.resize((520, 360), 2), "JPEG", quality=90),
        "photo.png": encode(photo, "PNG"),
        "lines.png": encode(photo.convert("1"), "PNG"),
        "grey.png": encode(grey, "PNG"),
        "deep.png": encode(Image.fromarray(deep), "PNG"),
        "alpha.png": encode(with_alpha("RGB"), "PNG"),
        "grey-alpha.png": encode(with_alpha("L"), "PNG"),
        "palette.png": encode(photo.quantize(8), "PNG"),
        "palette-alpha.png": encode(photo.quantize(8), "PNG", transparency=bytes([0, 90, 200])),
        "clear-colour.png": encode(photo, "PNG", transparency=photo.getpixel((0, 0))),
        "clear-grey.png": encode(grey, "PNG", transparency=grey.getpixel((5, 5))),
        "palette.gif": encode(photo.quantize(8), "GIF", transparency=2),
        "animation.gif": encode(photo, "GIF", **second),
        "photo.bmp": encode(photo, "BMP"),
        "grey.bmp": encode(grey, "BMP"),
        "photo.tiff": encode(photo, "TIFF"),
        "lzw.tiff": encode(photo, "TIFF", compression="tiff_lzw"),
        "pages.tiff": encode(photo, "TIFF", **second),
        "deep.tiff": encode(Image.fromarray(deep), "TIFF"),
        "cmyk.tiff": encode(photo.convert("CMYK"), "TIFF"),
        "alpha.tiff": encode(with_alpha("RGB"), "TIFF"),
        "big.tiff": encode(photo, "TIFF", big_tiff=True),
        "photo.webp": encode(photo, "WEBP"),
        "lossless.webp": encode(photo, "WEBP", lossless=True),
        "alpha.webp": encode(with_alpha("RGB"), "WEBP", lossless=True),
        "animation.webp": encode(photo, "WEBP", lossless=True, **second),
        "photo.jp2": encode(photo, "JPEG2000"),
        "photo.ppm": encode(photo, "PPM"),
        "lines.pbm": encode(photo.convert("1"), "PPM"),
        "text.ppm": b"P3\n2 1\n255\n10 20 30 40 50 60\n",
    }
    for orientation in range(2, 9):
        kind, end = (("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp"), ("TIFF", "tiff"))[
            orientation % 4
        ]
        options = {"lossless": True} if kind == "WEBP" else {}
        files[f"turned-{orientation}.{end}"] = encode(
            photo, kind, exif=turned(orientation), **options
        )
    return files


def main():
    import featx

    target = Path(sys.argv[1]).resolve()
    target.mkdir(parents=True)
    print(f"featx {featx.__version__} of {featx.__file__} writes {target}")
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work, "archive")
        (folder / "files").mkdir(parents=True)
        drawn = load_conftest().draw_dataset(Path(work))
        make_networks(folder)
        make_models(folder, drawn)
        make_cache(folder, drawn)
        for name, content in picture_files().items():
            (folder / "files" / name).write_bytes(content)
        for path in folder.glob("models/*.training"):
            shutil.rmtree(path)
        with tarfile.open(target / "archive.tar.xz", "w:xz") as archive:
            for path in sorted(folder.iterdir()):
                archive.add(path, path.name)
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", str(HERE), "-p", "no:cacheprovider"],
        env={**os.environ, "FEATX_FREEZE": str(target)},
        check=True,
    )


if __name__ == "__main__":
    main()
