"""Make the bundled backbone `tiny`: a pretrained MobileNetV2, narrowed and then distilled.

1. Narrow. The teacher (MobileNetV2, alpha 1.0) is cut to the student's width (narrow_mobilenet.py).
2. Distil. On every step the student regresses the standardised pooled features that the teacher
   gives for the same random crop at a higher resolution (Beyer et al. 2022), and classifies
   photographs and drawn characters. The characters (draw_glyphs.py) teach it coarse strokes, which
   photographs do not show.

BatchNorm statistics stay fixed (mean 0, variance 1) and its scale and offset are trained: the
student begins as a working network, and on CPUs this trains 2.5 times as fast as batch statistics.

    python scripts/pretrain_tiny.py --images tiny_imagenet_40k.zip \
        --teacher mobilenet_v2_1.0_224_notop.weights.h5 --out build/tiny

The result is `tiny.weights.h5` in float16, with `log.jsonl` and a checkpoint beside it.
KERAS_BACKEND picks the backend. On TensorFlow without a GPU the teacher runs on OpenVINO where that
is installed. The number of epochs sets the learning rate's schedule: keep it when resuming.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.metadata
import io
import json
import math
import os
import platform
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import h5py
import keras
import numpy as np
from draw_glyphs import CHARACTERS, draw_glyphs
from keras import ops
from narrow_mobilenet import narrow
from PIL import Image

Array = np.ndarray[Any, Any]
TEACHER_FEATURES = 1280
GLYPHS = 20_000
NARROWED = "narrowed.weights.h5"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--images", type=Path, required=True, help="zip of <set>/<class>/<file> photographs, 64x64")
    add("--teacher", type=Path, required=True, help="weights of MobileNetV2 1.0 without its top")
    add("--out", type=Path, required=True, help="folder for weights, checkpoints and log")
    add("--alpha", type=float, default=0.75, help="width of the student (default: %(default)s)")
    add("--input-size", type=int, default=64, help="student's input, px (default: %(default)s)")
    add("--teacher-size", type=int, default=128, help="teacher's input, px (default: %(default)s)")
    add("--epochs", type=int, default=6, help="passes over the images (default: %(default)s)")
    add("--batch-size", type=int, default=128, help="images a step (default: %(default)s)")
    add("--glyph-share", type=float, default=0.19, help="glyphs in a batch (default: %(default)s)")
    add("--learning-rate", type=float, default=5e-4, help="its peak (default: %(default)s)")
    add("--warmup-steps", type=int, default=200, help="linear warm-up (default: %(default)s)")
    add("--weight-decay", type=float, default=0.02, help="decoupled decay (default: %(default)s)")
    add(
        "--label-weight", type=float, default=0.1, help="of the labels' loss (default: %(default)s)"
    )
    add("--narrow-images", type=int, default=512, help="images to narrow on (default: %(default)s)")
    add("--seed", type=int, default=0, help="seed of every random draw (default: %(default)s)")
    add("--checkpoint-steps", type=int, default=100, help="(default: %(default)s)")
    add("--resume", action="store_true", help="go on from the checkpoint in --out")
    add("--smoke", action="store_true", help="a few steps on few images, under a minute on 2 cores")
    args = parser.parse_args()
    if args.smoke:
        args.narrow_images, args.checkpoint_steps, args.batch_size, args.epochs = 32, 2, 32, 1
        args.warmup_steps = 2
    return args


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_photographs(path: Path, limit: int | None) -> tuple[Array, Array]:
    """Read the zip: images (n, 64, 64, 3) uint8 and their class indices (n,)."""
    with zipfile.ZipFile(path) as archive:
        names = sorted(n for n in archive.namelist() if n.endswith(".JPEG"))
        _, labels = np.unique([n.split("/")[-2] for n in names], return_inverse=True)
        if limit:
            chosen = np.random.default_rng(0).permutation(len(names))[:limit]
            names, labels = [names[i] for i in chosen], labels[chosen]
        images = [np.asarray(Image.open(io.BytesIO(archive.read(n))).convert("RGB")) for n in names]
    return np.stack(images), labels


class Batches(keras.utils.PyDataset):
    """Seeded batches: crops of photographs with the teacher's features for them, and glyphs.

    Batch i depends on the seed and on i alone, so that a resumed run goes on as if never stopped.
    """

    def __init__(
        self,
        photographs: tuple[Array, Array],
        glyphs: tuple[Array, Array],
        teach: Callable[[Array], Array],
        args: argparse.Namespace,
    ) -> None:
        super().__init__(workers=1, use_multiprocessing=False, max_queue_size=4)
        self.photographs, self.glyphs, self.teach = photographs, glyphs, teach
        self.sizes = (args.input_size, args.teacher_size)
        self.n_glyphs = round(args.glyph_share * args.batch_size)
        self.n_photos = args.batch_size - self.n_glyphs
        self.seed = args.seed
        self.first, self.count = 0, 1

    def __len__(self) -> int:
        return self.count

    def crop(self, image: Array, rng: np.random.Generator) -> tuple[Array, Array]:
        """Return one random resized crop of the image at both sizes."""
        side = image.shape[0]
        area, ratio = rng.uniform(0.35, 1), math.exp(rng.uniform(-0.29, 0.29))
        width, height = (min(side, side * math.sqrt(area * r)) for r in (ratio, 1 / ratio))
        left, top = rng.uniform(0, side - width), rng.uniform(0, side - height)
        picture, box = Image.fromarray(image), (left, top, left + width, top + height)
        if rng.random() < 0.5:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        small, large = (
            np.asarray(picture.resize((s, s), Image.Resampling.BILINEAR, box=box))
            for s in self.sizes
        )
        return small, large

    def __getitem__(self, index: int) -> tuple[Array, dict[str, Array]]:
        images, labels = self.photographs
        glyphs, glyph_labels = self.glyphs
        index += self.first
        start = index * self.n_photos
        picks = np.empty(self.n_photos, np.int64)
        for epoch in {start // len(images), (start + self.n_photos - 1) // len(images)}:
            order = np.random.default_rng((self.seed, 1, epoch)).permutation(len(images))
            position = start + np.arange(self.n_photos)
            here = position // len(images) == epoch
            picks[here] = order[position[here] % len(images)]
        rng = np.random.default_rng((self.seed, 2, index))
        crops = [self.crop(images[i], rng) for i in picks]
        gain = rng.uniform(0.75, 1.25, (self.n_photos, 1, 1, 1)) * rng.uniform(
            0.92, 1.08, (self.n_photos, 1, 1, 3)
        )
        shift = rng.uniform(-0.15, 0.15, (self.n_photos, 1, 1, 1))
        small, large = (
            np.clip((np.stack(c) / np.float32(127.5) - 1) * gain + shift, -1, 1).astype("float32")
            for c in zip(*crops, strict=True)
        )
        drawn = rng.integers(0, len(glyphs), self.n_glyphs)
        target = np.zeros((self.n_photos + self.n_glyphs, TEACHER_FEATURES), "float32")
        target[: self.n_photos] = self.teach(large)
        return np.concatenate([small, glyphs[drawn] / np.float32(127.5) - 1]), {
            "target": target,
            "photo": (np.arange(len(target)) < self.n_photos).astype("float32"),
            "label": np.concatenate([labels[picks], labels.max() + 1 + glyph_labels[drawn]]),
        }


def mobilenet(alpha: float, size: int, weights: Path | None = None) -> keras.Model:
    shape = (size, size, 3)
    model = keras.applications.MobileNetV2(
        input_shape=shape, alpha=alpha, include_top=False, weights=None
    )
    if weights:
        model.load_weights(weights)
    return model


def teacher_function(weights: Path, size: int) -> tuple[Callable[[Array], Array], str]:
    """Return the teacher as a function from images to pooled features, and what runs it."""
    model = mobilenet(1.0, size, weights)
    model = keras.Model(model.input, keras.layers.GlobalAveragePooling2D()(model.output))
    if keras.backend.backend() == "tensorflow":
        try:
            import openvino as ov
        except ModuleNotFoundError:
            pass
        else:
            import tensorflow as tf

            if not tf.config.list_physical_devices("GPU"):
                signature = tf.TensorSpec((None, size, size, 3), tf.float32)
                graph = tf.function(lambda x: model(x, training=False))
                core = ov.Core()
                can_bf16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
                hint = "bf16" if can_bf16 else "f32"
                compiled = core.compile_model(
                    ov.convert_model(graph.get_concrete_function(signature)),
                    "CPU",
                    {"INFERENCE_PRECISION_HINT": hint},
                )
                return lambda x: compiled({0: x})[0], f"openvino {hint}"
    return lambda x: np.asarray(model.predict_on_batch(x)), f"keras {keras.backend.backend()}"


class Distiller(keras.Model):
    """The student with its classifier, trained against the teacher's features and the labels."""

    def __init__(
        self, student: keras.Model, classes: int, mean: Array, deviation: Array, label_weight: float
    ) -> None:
        super().__init__()
        self.student = student
        self.pool = keras.layers.GlobalAveragePooling2D()
        self.classifier = keras.layers.Dense(classes, kernel_initializer="zeros")
        self.classifier.build((None, TEACHER_FEATURES))
        self.mean, self.deviation = mean, deviation
        self.label_weight = label_weight
        self.feature_loss = keras.metrics.Mean("feature_loss")
        self.label_loss = keras.metrics.Mean("label_loss")
        self.built = True

    def call(self, images: Any) -> dict[str, Any]:
        """Return the standardised pooled features and the class scores."""
        # training=False keeps the BatchNorm statistics; scale and offset are trained all the same.
        pooled = self.pool(self.student(images, training=False))
        features = self.standardise(pooled)
        return {"features": features, "logits": self.classifier(features)}

    def standardise(self, features: Any) -> Any:
        """Return the features in units of the teacher's deviation from its mean."""
        return (features - ops.convert_to_tensor(self.mean)) / ops.convert_to_tensor(self.deviation)

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, *_: Any, **__: Any
    ) -> Any:
        """Return the error in the teacher's features plus the weighted cross-entropy."""
        target = self.standardise(y["target"])
        error = ops.mean((y_pred["features"] - target) ** 2, axis=1)
        feature_loss = ops.sum(error * y["photo"]) / ops.sum(y["photo"])
        label_loss = ops.mean(
            keras.losses.sparse_categorical_crossentropy(
                y["label"], y_pred["logits"], from_logits=True
            )
        )
        self.feature_loss.update_state(feature_loss)
        self.label_loss.update_state(label_loss)
        return feature_loss + self.label_weight * label_loss


def optimizer(args: argparse.Namespace, steps: int) -> keras.optimizers.Optimizer:
    schedule = keras.optimizers.schedules.CosineDecay(
        args.learning_rate / 100,
        steps - args.warmup_steps,
        alpha=0.0,
        warmup_target=args.learning_rate,
        warmup_steps=args.warmup_steps,
    )
    result = keras.optimizers.AdamW(schedule, weight_decay=args.weight_decay)
    result.exclude_from_weight_decay(var_names=["bias", "beta", "gamma"])
    return result


def save_half(student: keras.Model, path: Path) -> None:
    """Write the student's weights with every float dataset as float16, whole or not at all."""
    full, half = path.with_name("full.weights.h5"), path.with_name("half.weights.h5")
    student.save_weights(full)
    with h5py.File(full) as source, h5py.File(half, "w") as result:

        def convert(name: str, item: h5py.Group | h5py.Dataset) -> None:
            if isinstance(item, h5py.Dataset):
                kind = "float16" if item.dtype.kind == "f" else item.dtype
                copy = result.create_dataset(name, data=item[()].astype(kind))
            else:
                copy = result.require_group(name)
            copy.attrs.update(item.attrs)

        source.visititems(convert)
        result.attrs.update(source.attrs)
    full.unlink()
    half.replace(path)


def append(path: Path, record: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")


def describe(args: argparse.Namespace, engine: str, photographs: int) -> dict[str, Any]:
    packages = ("keras", "tensorflow", "torch", "jax", "openvino", "numpy", "pillow", "h5py")
    versions = {"python": platform.python_version()}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    settings = {k: v for k, v in vars(args).items() if not isinstance(v, Path)}
    return {
        "event": "start",
        "settings": settings,
        "images": {"file": args.images.name, "sha256": sha256(args.images), "count": photographs},
        "teacher": {"file": args.teacher.name, "sha256": sha256(args.teacher), "engine": engine},
        "backend": keras.backend.backend(),
        "versions": versions,
        "machine": {"processor": platform.machine(), "cores": os.cpu_count()},
    }


def main() -> None:
    args = parse_arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    log = args.out / "log.jsonl"
    keras.utils.set_random_seed(args.seed)
    started = time.perf_counter()

    photographs = read_photographs(args.images, 256 if args.smoke else None)
    images, labels = photographs
    rng = np.random.default_rng((args.seed, 0))
    glyphs = draw_glyphs(256 if args.smoke else GLYPHS, args.input_size, rng)
    teach, engine = teacher_function(args.teacher, args.teacher_size)
    append(log, describe(args, engine, len(images)))

    some = images[rng.permutation(len(images))[: args.narrow_images]]
    large = ops.image.resize(some.astype("float32") / 127.5 - 1, (args.teacher_size,) * 2)
    large = ops.convert_to_numpy(large)
    known = np.concatenate([teach(large[i : i + 64]) for i in range(0, len(large), 64)])
    deviation = known.std(0)
    # A channel that hardly ever fires would otherwise outweigh all others.
    deviation = np.maximum(deviation, 0.2 * np.median(deviation)).astype("float32")

    batches = Batches(photographs, glyphs, teach, args)
    steps = args.epochs * len(images) // batches.n_photos
    student = mobilenet(args.alpha, args.input_size)
    classes = int(labels.max()) + 1 + len(CHARACTERS)
    distiller = Distiller(
        student, classes, known.mean(0).astype("float32"), deviation, args.label_weight
    )
    # XLA is several times slower than TensorFlow's own kernels on CPUs, and "auto" would choose it.
    on_openvino = engine.startswith("openvino")
    distiller.compile(optimizer(args, steps), jit_compile=False if on_openvino else "auto")
    distiller.optimizer.build(distiller.trainable_variables)

    checkpoints = sorted(args.out.glob("checkpoint-*.weights.h5"))
    done = 0
    if args.resume and checkpoints:
        distiller.load_weights(checkpoints[-1])
        done = int(distiller.optimizer.iterations)
        append(log, {"event": "resume", "step": done})
    elif args.resume and (args.out / NARROWED).exists():
        student.load_weights(args.out / NARROWED)
        append(log, {"event": "resume", "step": 0})
    else:
        small = ops.image.resize(some.astype("float32") / 127.5 - 1, (args.input_size,) * 2)
        teacher = mobilenet(1.0, args.input_size, args.teacher)
        narrow(teacher, student, ops.convert_to_numpy(small), args.seed)
        save_half(student, args.out / NARROWED)
        append(log, {"event": "narrowed", "seconds": round(time.perf_counter() - started, 1)})

    while done < steps:
        begun = time.perf_counter()
        batches.first, batches.count = done, min(args.checkpoint_steps, steps - done)
        losses = distiller.fit(batches, shuffle=False, verbose=0).history
        done += batches.count
        temporary = args.out / "new.weights.h5"
        distiller.save_weights(temporary)
        temporary.replace(args.out / f"checkpoint-{done:06d}.weights.h5")
        for old in set(args.out.glob("checkpoint-*.weights.h5")):
            if old.name != f"checkpoint-{done:06d}.weights.h5":
                old.unlink()
        save_half(student, args.out / "tiny.weights.h5")
        seconds = time.perf_counter() - begun
        record = {
            "event": "steps",
            "step": done,
            "of": steps,
            **{k: round(v[-1], 4) for k, v in losses.items()},
            "images_per_s": round(batches.count * args.batch_size / seconds, 1),
            "wall_s": round(time.perf_counter() - started, 1),
        }
        append(log, record)
        print(json.dumps(record), flush=True)

    result = args.out / "tiny.weights.h5"
    record = {
        "event": "done",
        "parameters": student.count_params(),
        "bytes": result.stat().st_size,
        "sha256": sha256(result),
        "wall_s": round(time.perf_counter() - started, 1),
    }
    append(log, record)
    print(json.dumps(record))


if __name__ == "__main__":
    main()
