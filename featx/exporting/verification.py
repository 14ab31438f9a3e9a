"""Compare an exported file, read from disk by its own runtime, with the model on images.

The images that it is compared on are found here, and those that ranges of int8 come from.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featx.cache.layout import CacheLayout
from featx.cache.manifest import find_manifest
from featx.exceptions import CacheFormatError, DatasetError, ExportError, FeatxError, reason
from featx.exporting.description import (
    answer_names,
    as_json,
    placed_whole,
    read_description,
    report_path,
)
from featx.exporting.formats import Opened, Pixels, Probabilities, choose_format
from featx.exporting.value_agreement import ValueAgreement
from featx.extraction.job import find_named, images_of
from featx.files.safe_json import Json
from featx.heads.decision import Decision
from featx.heads.rows import Floats
from featx.images.dataset import ImageDataset
from featx.images.decode import Target
from featx.images.labels import SEPARATOR, label_matrix, read_label_sets
from featx.images.loader import load_images
from featx.models.classifier import ImageClassifier
from featx.models.regressor import ImageRegressor
from featx.spec import FeatureSpec

TOLERANCE = 1e-3
"""Largest difference of a probability, at float32."""

LOST_ACCURACY = 0.02
"""Share of images by which an int8 export may be worse than the model."""

_NAMED = 20
_CHUNK = 128
_BATCH = 32
_ALONE = 8
_CALIBRATED = 100
_TRIED = 50
# Where nearly all are measured on, the few others are not looked for among millions.
_MOST_TRIED = 2000


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """Images that ranges of int8 are taken from."""

    name: str  # of the dataset
    pixels: Pixels
    keys: tuple[bytes, ...]  # of the images, 32 bytes each

    def describe(self) -> Json:
        """Return what lies beside the export, so that a measurement leaves these images out."""
        keys = sorted(short_key(key) for key in self.keys)
        return {"dataset": self.name, "images": len(self.pixels), "keys": keys}


def short_key(key: bytes) -> str:
    """Return the first 16 hexadecimal digits of an image's key."""
    return key[:8].hex()


def find_images(data: object, cache: str | os.PathLike[str] | None) -> ImageDataset:
    """Return the images that `data` stands for: anything that `featx.extract` takes."""
    if isinstance(data, ImageDataset):
        images = data
    else:
        named = find_named(CacheLayout.at(cache), data)
        images = ImageDataset.from_any(data) if named is None else images_of(named)
    if not len(images):
        raise DatasetError(f"expected images in {data!r}, received none: name a folder with some")
    return images


def training_images(training: Json, cache: str | os.PathLike[str] | None) -> ImageDataset | None:
    """Return the images that a model was trained on, where the cache still knows their paths."""
    name = training.get("dataset")
    if not isinstance(name, str) or cache is None:
        return None
    layout = CacheLayout.at(cache)
    if not layout.dataset(name).is_file():
        return None
    try:
        return images_of(find_manifest(layout, name))
    except (DatasetError, CacheFormatError):
        return None


def decode_rows(images: ImageDataset, rows: Sequence[int], spec: FeatureSpec) -> dict[int, Pixels]:
    """Decode images from disk under a specification's own rules."""
    target = Target(spec.input_size_px, spec.image)
    loaded = load_images(images, list(rows), [target])
    return {image.index: image.pixels[0] for image in loaded if image.status == "decoded"}


def calibration_images(
    images: ImageDataset, spec: FeatureSpec, measured: ImageDataset | None = None
) -> Calibration:
    """Return up to 100 images drawn with a fixed seed, as many of each class as there are."""
    order = np.random.default_rng(0).permutation(len(images))
    if images.y is not None:
        order = _alternating(order, images.y)
    keys: set[bytes] = set()
    if measured is not None:
        every = range(len(measured))
        read = load_images(measured, every, [], known=lambda _: True, isolate=False)
        keys = {image.key for image in read if image.key is not None}
    target = Target(spec.input_size_px, spec.image)
    chosen: dict[bytes, Pixels] = {}
    shared: dict[bytes, int] = {}
    for start in range(0, min(len(order), _MOST_TRIED), _TRIED):
        rows = order[start : start + _TRIED].tolist()
        loaded = list(load_images(images, rows, [target], known=keys.__contains__))
        for image in sorted(loaded, key=lambda image: rows.index(image.index)):
            if image.key is not None and image.status == "decoded":
                chosen.setdefault(image.key, image.pixels[0])
            elif image.key is not None and image.status == "known":
                shared.setdefault(image.key, image.index)
        if len(chosen) >= _CALIBRATED:
            break
    spare = min(_CALIBRATED - len(chosen), len(keys) // 2)
    for key, row in shared.items():
        if spare <= 0:
            break
        for pixels in decode_rows(images, [row], spec).values():
            chosen[key] = pixels
            spare -= 1
    if not chosen:
        only = " other than the one to measure on" if shared else ""
        raise DatasetError(
            f"none of the {len(images)} images of {images.name!r}{only} could be read: int8 needs "
            "images to take its ranges from, name some with --calibrate DATA (calibrate=...)"
        )
    first = dict(list(chosen.items())[:_CALIBRATED])
    return Calibration(images.name, np.stack(list(first.values())), tuple(first))


def _alternating(order: NDArray[np.intp], y: NDArray[np.generic]) -> NDArray[np.intp]:
    """Take one of each class in turn, so that the first few hundred have them all."""
    codes = np.unique(y[order], return_inverse=True)[1]
    turn = np.empty(len(order), np.intp)
    for code in range(int(codes.max()) + 1):
        members = np.flatnonzero(codes == code)
        turn[members] = np.arange(len(members))
    return order[np.argsort(turn, kind="stable")]


@dataclass(slots=True)
class _Agreement:
    """What was counted so far, batch by batch.

    An answer is the class that the rule of the model decides on, by default the most probable one,
    or, where an image has any number of labels, the set of those that it gives.
    """

    names: NDArray[np.str_]  # what the columns stand for
    rule: Decision
    images: int = 0
    changes: int = 0  # images that get another answer, of which the first are named
    changed: list[Json] = field(default_factory=list)
    largest: float = 0.0  # difference of a probability; infinite where one is not finite
    labelled: int = 0  # images whose labels are known, and on how many of them each is right
    model_right: int = 0
    export_right: int = 0

    @property
    def multilabel(self) -> bool:
        """Whether an image has any number of labels."""
        return self.rule.multilabel

    def relative(self, difference: Floats) -> float:
        """Return the largest of some differences."""
        return float(np.abs(difference).max())

    def add(
        self, paths: Sequence[str], y: NDArray[np.str_] | None, expected: Floats, received: Floats
    ) -> None:
        """Compare probabilities of the model and of the export."""
        self.images += len(paths)
        difference = np.abs(received - expected)
        # NaN is no difference that a comparison would notice.
        worst = float(difference.max()) if np.isfinite(difference).all() else float("inf")
        self.largest = max(self.largest, worst)
        model, export = self._answers(expected), self._answers(received)
        changed = np.flatnonzero((model != export).any(axis=1))
        self.changes += len(changed)
        for row in changed[: _NAMED - len(self.changed)]:
            self.changed.append(
                {
                    "path": paths[row],
                    "model": self._shown(model[row], expected[row], export[row]),
                    "export": self._shown(export[row], received[row], model[row]),
                }
            )
        if y is not None:
            rows, truth = self._truth(y)
            self.labelled += len(rows)
            self.model_right += int((model[rows] == truth).all(axis=1).sum())
            self.export_right += int((export[rows] == truth).all(axis=1).sum())

    def _answers(self, proba: Floats) -> NDArray[np.bool_]:
        """Return which labels are given, shape (n, k)."""
        answers = self.rule.decide(proba)
        if not self.multilabel:
            return np.asarray(np.arange(proba.shape[1]) == answers[:, None])
        return answers > 0

    def _truth(self, y: NDArray[np.str_]) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """Return the rows whose labels are all known here, and these labels as in `_answers`."""
        if not self.multilabel:
            rows = np.flatnonzero(np.isin(y, self.names))
            return rows, y[rows][:, None] == self.names
        rows = np.flatnonzero(y != "")
        labels, matrix = read_label_sets(y[rows].tolist())
        rows = rows[~matrix[:, ~np.isin(labels, self.names)].any(axis=1)]
        return rows, label_matrix(y[rows].tolist(), self.names.tolist()) > 0

    def _shown(self, answer: NDArray[np.bool_], proba: Floats, other: NDArray[np.bool_]) -> Json:
        """Return an answer, with the probability of what the two differ in."""
        differing = np.flatnonzero(answer != other)
        column = int(differing[0]) if self.multilabel else int(answer.argmax())
        label = SEPARATOR.join(self.names[answer]) or SEPARATOR
        return {"label": label, "probability": float(proba[column])}

    def report(self) -> Json:
        """Return the figures as JSON types."""
        labelled = self.labelled
        return {
            "images": self.images,
            "top1_changed": self.changes,
            "changed": self.changed,
            "largest_difference": self.largest,
            "labelled": labelled,
            "accuracy_of_model": self.model_right / labelled if labelled else None,
            "accuracy_of_export": self.export_right / labelled if labelled else None,
        }

    def problems(self, precision: str, tolerance: float, batch: float) -> list[str]:
        """Return why the export does not do; ``batch`` is how far images alone are from a batch."""
        another = "other labels" if self.multilabel else "another top-1"
        if not np.isfinite(self.largest):
            return ["it gives probabilities that are not finite"]
        if precision == "int8":
            lost = self.changes / self.images
            what = f"int8 has {another} on {100 * lost:.1f} % of the images"
            if self.labelled:
                lost = (self.model_right - self.export_right) / self.labelled
                what = f"int8 loses {100 * lost:.1f} points of accuracy"
            if lost <= LOST_ACCURACY:
                return []
            allowed = f"at most {100 * LOST_ACCURACY:.0f} are allowed"
            return [f"{what}, {allowed}: calibrate on more typical images"]
        problems = []
        if self.changes:
            first = self.changed[0]
            problems.append(
                f"{self.changes} of {self.images} images have {another}, the first "
                f"{first['path']} ({first['model']['label']!r}, in the export "
                f"{first['export']['label']!r})"
            )
        if not self.largest <= tolerance:
            problems.append(
                f"a probability is off by {self.largest:.1e}, at most {tolerance:.0e} is allowed"
            )
        if not batch <= tolerance:
            problems.append(f"an image alone differs from it in a batch by {batch:.1e}")
        return problems


def verify_export(
    model: ImageClassifier | ImageRegressor,
    path: str | os.PathLike[str],
    data: object,
    *,
    tolerance: float = TOLERANCE,
    cache: str | os.PathLike[str] | None = None,
) -> Json:
    """Check that an exported file says what the model says.

    Every image is read from disk and decoded under the model's own rules; the exported file gets
    its pixels and is run as it lies there, the model gets the file. The result is written beside
    the export as ``PATH.verification.json``, whether it is good or bad. Images that the ranges of
    int8 were taken from are left out: `featx.export` keeps their keys in ``PATH.json``.

    Parameters
    ----------
    model : ImageClassifier
        Fitted: the model that was exported.
    path : path
        What `featx.export` wrote.
    data : ImageDataset, path, list of paths, or str
        Images, as for `featx.extract`; labels are used where there are any.
    tolerance : float, default 1e-3
        Largest difference of a probability, or of a number in deviations of training. An int8
        export is judged by its accuracy instead, which may be 2 points lower; on images without
        labels it has to agree with the model on 98 %. Of a regression R² may be 0.02 lower, or, on
        images without numbers, the mean difference 0.1 deviations.
    cache : path, optional
        Where a name of an extracted dataset is looked up.

    Returns
    -------
    report : dict
        ``passed``, ``images``, ``failed``, ``left_out`` (images that int8 was calibrated on),
        ``top1_changed``, ``largest_difference`` (of a probability), ``batch_difference`` (between
        one image alone and in a batch of 32), ``runtime`` and more, as JSON types. Of a model that
        gives several labels, ``top1_changed`` counts images that get other labels, and the
        accuracy is the share of images with every label right. Of a regression, differences are in
        deviations of training, with ``mean_difference``, ``r2_of_model`` and ``r2_of_export``.

    Raises
    ------
    ExportError
        If the export does not agree with the model, lacks its description, or does not open.
    DatasetError
        If there is no image that can be read.
    """
    target = Path(path)
    require_one_view(model)
    description = read_description(target)
    images = find_images(data, cache)
    opened = _open(description, target)
    columns = _columns(model, description, opened, target)
    spec = model.plain_specs()[0]
    tally: _Agreement | ValueAgreement
    if model.regression:
        tally = ValueAgreement(model.value_names_, model.spread_)
    else:
        _require_rule(model, description, target)
        tally = _Agreement(model.classes_.astype(str), model.rule)
    calibrated = set(description.get("calibration", {}).get("keys", ()))
    failed = left_out = 0
    batch = 0.0
    for start in range(0, len(images), _CHUNK):
        chunk = images.subset(list(range(start, min(start + _CHUNK, len(images)))))
        parts, ledger = model.transform_images(chunk, on_error="skip", precision="f32")
        readable = ledger.usable
        known = [short_key(ledger.key[row].tobytes()) in calibrated for row in readable]
        left_out += sum(known)
        pixels = decode_rows(chunk, readable[~np.array(known, bool)].tolist(), spec)
        failed += len(chunk) - sum(known) - len(pixels)
        if not pixels:
            continue
        compared = np.array([row in pixels for row in readable])
        rows = readable[compared]
        stacked = np.stack([pixels[row] for row in rows])
        received = _run(opened, stacked, len(columns), target)
        if not tally.images:
            alone = [opened.run(stacked[row : row + 1]) for row in range(len(stacked))[:_ALONE]]
            batch = tally.relative((np.concatenate(alone) - received[: len(alone)])[:, columns])
        y = None if chunk.y is None else chunk.y[rows]
        said = model.average_values(parts) if model.regression else model.average_proba(parts)
        expected = said[compared]
        tally.add([chunk.paths[row] for row in rows], y, expected, received[:, columns])
    if not tally.images:
        raise DatasetError(
            f"none of the {len(images)} images of {images.name!r} could be read"
            f"{', but those that int8 was calibrated on' if left_out else ''}: an export is "
            "verified on images"
        )
    problems = tally.problems(description["precision"], tolerance, batch)
    report: Json = {
        "type": "featx-verification",
        "version": 1,
        "export": target.name,
        "format": description["format"],
        "precision": description["precision"],
        "runtime": opened.runtime,
        "dataset": images.name,
        **tally.report(),
        "failed": failed,
        "left_out": left_out,
        "tolerance": tolerance,
        "batch_difference": batch,
        "passed": not problems,
    }
    file = report_path(target)
    with placed_whole([file]) as folder:
        (folder / file.name).write_text(as_json(report), "utf-8")
    if problems:
        raise ExportError(
            f"{target} does not agree with the model on {images.name!r}: {'; '.join(problems)}. "
            f"{file.name} has the details; do not serve this file"
        )
    return report


def require_one_view(model: ImageClassifier | ImageRegressor) -> None:
    """Raise `ExportError` for a model that averages over views, which no exported file does."""
    if model.views_averaged:
        raise ExportError(
            f"the model averages each prediction over the image and {model.views_averaged} views, "
            "an exported file sees the image alone: train without --average-views "
            "(average_views=False)"
        )


def _require_rule(model: ImageClassifier, description: Json, path: Path) -> None:
    """Raise `ExportError` where a description states another decision rule than the model has."""
    if description.get("decision") != (model.decision_ and model.decision_.to_dict()):
        raise ExportError(
            f"{path.name}.json states another decision rule than the model has: verify the export "
            "with the model that it was exported from, or export the model again"
        )


def _open(description: Json, path: Path) -> Opened:
    row = choose_format(description["format"], path)
    for file in row.files(path):
        if not file.exists():
            raise ExportError(f"expected an export at {file}, which does not exist")
    try:
        return row.open(path)
    except FeatxError:
        raise
    except Exception as error:  # each runtime has errors of its own
        raise ExportError(
            f"{path} does not open ({reason(error)}): it is damaged, or no file of the format "
            f"{row.name}; export the model again"
        ) from error


def _columns(
    model: ImageClassifier | ImageRegressor, description: Json, opened: Opened, path: Path
) -> list[int]:
    """Return where the model's classes are among those of the export."""
    learnt = model.value_names_ if model.regression else model.classes_.astype(str).tolist()
    what = "numbers" if model.regression else "classes"
    names, expected = [str(name) for name in answer_names(description)], list(learnt)
    if opened.classes is not None and [str(name) for name in opened.classes] != names:
        raise ExportError(
            f"{path} names other {what} inside than {path.name}.json does beside it: one of the "
            "two was changed; export the model again"
        )
    if sorted(names) != sorted(expected):
        strange = sorted(set(names) ^ set(expected))[:5]
        raise ExportError(
            f"{path} has other {what} than the model: {', '.join(strange)} are in one of them "
            "only; verify it with the model that it was exported from"
        )
    places = {name: column for column, name in enumerate(names)}
    return [places[name] for name in expected]


def _run(opened: Opened, pixels: Pixels, classes: int, path: Path) -> Probabilities:
    try:
        parts = [opened.run(pixels[at : at + _BATCH]) for at in range(0, len(pixels), _BATCH)]
    except Exception as error:  # each runtime has errors of its own
        raise ExportError(f"{path} cannot be run: {reason(error)}") from error
    probabilities = np.concatenate(parts)
    expected = (len(pixels), classes)
    if probabilities.shape != expected:
        raise ExportError(
            f"{path} gives an output of shape {probabilities.shape}, expected {expected}: it is "
            "not the export that its description is about"
        )
    return probabilities
