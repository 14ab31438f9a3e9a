"""Compare an exported file, read from disk by its own runtime, with the model on images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import DatasetError, ExportError, FeatxError, reason
from featx.exporting.description import as_json, placed_whole, read_description, report_path
from featx.exporting.formats import Opened, choose_format
from featx.exporting.samples import decode_rows, find_images, short_key
from featx.heads.targets import LABEL_THRESHOLD
from featx.images.dataset import ImageDataset
from featx.images.labels import SEPARATOR, label_matrix, read_label_sets
from featx.models.classifier import ImageClassifier

_NAMED = 20


@dataclass(slots=True)
class Agreement:
    """What was counted so far, batch by batch.

    An answer is the most probable class, or, where an image has any number of labels, the set of
    those that are more probable than not.

    Parameters
    ----------
    names : ndarray of shape (k,) of str
        What the columns stand for.
    multilabel : bool
        Whether an image has any number of labels.

    Attributes
    ----------
    images, changes : int
        How many were compared, and of how many the answer is another one.
    changed : list of dict
        The first of these, with both answers.
    largest : float
        Largest difference of a probability; infinite where one is not finite.
    labelled, model_right, export_right : int
        Images whose labels are known, and on how many of them each answers right.
    """

    names: NDArray[np.str_]
    multilabel: bool = False
    images: int = 0
    changes: int = 0
    changed: list[dict[str, Any]] = field(default_factory=list)
    largest: float = 0.0
    labelled: int = 0
    model_right: int = 0
    export_right: int = 0

    def add(
        self,
        paths: Sequence[str],
        y: NDArray[Any] | None,
        expected: NDArray[Any],
        found: NDArray[np.float32],
    ) -> None:
        """Compare probabilities of the model and of the export."""
        self.images += len(paths)
        difference = np.abs(found - expected)
        # NaN is no difference that a comparison would notice.
        worst = float(difference.max()) if np.isfinite(difference).all() else float("inf")
        self.largest = max(self.largest, worst)
        model, export = self._answers(expected), self._answers(found)
        changed = np.flatnonzero((model != export).any(axis=1))
        self.changes += len(changed)
        for row in changed[: _NAMED - len(self.changed)]:
            self.changed.append(
                {
                    "path": paths[row],
                    "model": self._said(model[row], expected[row], export[row]),
                    "export": self._said(export[row], found[row], model[row]),
                }
            )
        if y is not None:
            rows, truth = self._truth(y)
            self.labelled += len(rows)
            self.model_right += int((model[rows] == truth).all(axis=1).sum())
            self.export_right += int((export[rows] == truth).all(axis=1).sum())

    def _answers(self, proba: NDArray[Any]) -> NDArray[np.bool_]:
        """Return which labels are given, shape (n, k)."""
        given: NDArray[np.bool_] = proba > LABEL_THRESHOLD
        if not self.multilabel:
            given = np.arange(proba.shape[1]) == proba.argmax(axis=1)[:, None]
        return given

    def _truth(self, y: NDArray[Any]) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """Return the rows whose labels are all known here, and these labels as in `_answers`."""
        if not self.multilabel:
            rows = np.flatnonzero(np.isin(y, self.names))
            return rows, y[rows][:, None] == self.names
        rows = np.flatnonzero(y != "")
        labels, matrix = read_label_sets(y[rows].tolist())
        kept = ~matrix[:, ~np.isin(labels, self.names)].any(axis=1)
        rows = rows[kept]
        return rows, label_matrix(y[rows].tolist(), self.names.tolist()) > 0

    def _said(
        self, own: NDArray[np.bool_], proba: NDArray[Any], other: NDArray[np.bool_]
    ) -> dict[str, Any]:
        """Return an answer, with the probability of what the two differ in."""
        column = int(np.flatnonzero(own != other)[0]) if self.multilabel else int(own.argmax())
        label = SEPARATOR.join(self.names[own]) or SEPARATOR
        return {"label": label, "probability": float(proba[column])}


TOLERANCE = 1e-3
"""Largest difference of a probability, at float32."""

LOST_ACCURACY = 0.02
"""Share of images by which an int8 export may be worse than the model."""

_CHUNK = 128
_BATCH = 32
_ALONE = 8


def verify_export(
    model: ImageClassifier,
    path: str | os.PathLike[str],
    data: Any,
    *,
    tolerance: float = TOLERANCE,
    cache: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
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
        Largest difference of a probability. An int8 export is judged by its accuracy instead, which
        may be 2 points lower; on images without labels it has to agree with the model on 98 %.
    cache : path, optional
        Where a name of an extracted dataset is looked up.

    Returns
    -------
    report : dict
        ``passed``, ``images``, ``failed``, ``left_out`` (images that int8 was calibrated on),
        ``top1_changed``, ``largest_difference`` (of a probability), ``batch_difference`` (between
        one image alone and in a batch of 32), ``runtime`` and more, as JSON types. Of a model that
        gives several labels, ``top1_changed`` counts images that get other labels, and the
        accuracy is the share of images with every label right.

    Raises
    ------
    ExportError
        If the export does not agree with the model, lacks its description, or does not open.
    DatasetError
        If there is no image that can be read.
    """
    target = Path(path)
    require_one_view(model)
    said = read_description(target)
    images = find_images(data, cache)
    opened = _open(said, target)
    columns = _columns(model, said, opened, target)
    spec = model.spec_ or model.source().spec(image=model.image)
    tally = Agreement(model.classes_.astype(str), model.multilabel)
    calibrated = set(said.get("calibration", {}).get("keys", ()))
    failed = left_out = 0
    batch = 0.0
    for start in range(0, len(images), _CHUNK):
        chunk = images.subset(list(range(start, min(start + _CHUNK, len(images)))))
        parts, ledger = model.transform_images(chunk, on_error="skip")
        readable = ledger.usable
        known = [short_key(ledger.key[row].tobytes()) in calibrated for row in readable]
        left_out += sum(known)
        pixels = decode_rows(chunk, readable[~np.array(known, bool)].tolist(), spec)
        failed += len(chunk) - sum(known) - len(pixels)
        if not pixels:
            continue
        kept = np.array([row in pixels for row in readable])
        rows = readable[kept]
        expected = model.average_proba(parts)[kept]
        given = np.stack([pixels[row] for row in rows])
        found = _run(opened, given, len(said["classes"]), target)
        if not tally.images:
            batch = _batch_difference(opened, given, found)
        y = None if chunk.y is None else chunk.y[rows]
        tally.add([chunk.paths[row] for row in rows], y, expected, found[:, columns])
    if not tally.images:
        raise DatasetError(
            f"none of the {len(images)} images of {images.name!r} could be read"
            f"{', but those that int8 was calibrated on' if left_out else ''}: an export is "
            "verified on images"
        )
    report = {
        **_report(tally, said, opened, images, target),
        "failed": failed,
        "left_out": left_out,
        "tolerance": tolerance,
        "batch_difference": batch,
    }
    report["passed"] = not (problems := _problems(tally, report))
    beside = report_path(target)
    with placed_whole([beside]) as folder:
        (folder / beside.name).write_text(f"{as_json(report)}\n", "utf-8")
    if problems:
        raise ExportError(
            f"{target} does not agree with the model on {images.name!r}: {'; '.join(problems)}. "
            f"{beside.name} has the details; do not serve this file"
        )
    return report


def require_one_view(model: ImageClassifier) -> None:
    """Raise `ExportError` for a model that averages over views, which no exported file does."""
    if model.views_averaged:
        raise ExportError(
            f"the model averages each prediction over the image and {model.views_averaged} views, "
            "an exported file sees the image alone: train without --average-views "
            "(average_views=False)"
        )


def _open(said: dict[str, Any], path: Path) -> Opened:
    row = choose_format(said["format"], path)
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


def _columns(model: ImageClassifier, said: dict[str, Any], opened: Opened, path: Path) -> list[int]:
    """Return where the model's classes are among those of the export."""
    names, expected = [str(name) for name in said["classes"]], model.classes_.astype(str).tolist()
    if opened.classes is not None and [str(name) for name in opened.classes] != names:
        raise ExportError(
            f"{path} names other classes inside than {path.name}.json does beside it: one of the "
            "two was changed; export the model again"
        )
    if sorted(names) != sorted(expected):
        strange = sorted(set(names) ^ set(expected))[:5]
        raise ExportError(
            f"{path} has other classes than the model: {', '.join(strange)} are in one of them "
            "only; verify it with the model that it was exported from"
        )
    places = {name: column for column, name in enumerate(names)}
    return [places[name] for name in expected]


def _run(
    opened: Opened, pixels: NDArray[np.uint8], classes: int, path: Path
) -> NDArray[np.float32]:
    try:
        parts = [opened.run(pixels[at : at + _BATCH]) for at in range(0, len(pixels), _BATCH)]
    except Exception as error:  # each runtime has errors of its own
        raise ExportError(f"{path} cannot be run: {reason(error)}") from error
    found = np.concatenate(parts)
    if found.shape != (len(pixels), classes):
        raise ExportError(
            f"{path} gives an output of shape {found.shape}, expected {(len(pixels), classes)}: "
            "it is not the export that its description is about"
        )
    return found


def _batch_difference(
    opened: Opened, pixels: NDArray[np.uint8], together: NDArray[np.float32]
) -> float:
    alone = np.concatenate(
        [opened.run(pixels[row : row + 1]) for row in range(len(pixels))[:_ALONE]]
    )
    return float(np.abs(alone - together[: len(alone)]).max())


def _report(
    tally: Agreement, said: dict[str, Any], opened: Opened, images: ImageDataset, path: Path
) -> dict[str, Any]:
    labelled = tally.labelled
    return {
        "type": "featx-verification",
        "version": 1,
        "export": path.name,
        "format": said["format"],
        "precision": said["precision"],
        "runtime": opened.runtime,
        "dataset": images.name,
        "images": tally.images,
        "top1_changed": tally.changes,
        "changed": tally.changed,
        "largest_difference": tally.largest,
        "labelled": labelled,
        "accuracy_of_model": tally.model_right / labelled if labelled else None,
        "accuracy_of_export": tally.export_right / labelled if labelled else None,
    }


def _problems(tally: Agreement, report: dict[str, Any]) -> list[str]:
    if not np.isfinite(tally.largest):
        return ["it gives probabilities that are not finite"]
    if report["precision"] == "int8":
        return _int8_problems(tally)
    problems, tolerance, batch = [], report["tolerance"], report["batch_difference"]
    if tally.changes:
        first = tally.changed[0]
        problems.append(
            f"{tally.changes} of {tally.images} images have {_another(tally)}, the first "
            f"{first['path']} ({first['model']['label']!r}, in the export "
            f"{first['export']['label']!r})"
        )
    if not tally.largest <= tolerance:
        problems.append(
            f"a probability is off by {tally.largest:.1e}, at most {tolerance:.0e} is allowed"
        )
    if not batch <= tolerance:
        problems.append(f"an image alone differs from it in a batch by {batch:.1e}")
    return problems


def _another(tally: Agreement) -> str:
    return "other labels" if tally.multilabel else "another top-1"


def _int8_problems(tally: Agreement) -> list[str]:
    if tally.labelled:
        lost = (tally.model_right - tally.export_right) / tally.labelled
        what = f"int8 loses {100 * lost:.1f} points of accuracy"
    else:
        lost = tally.changes / tally.images
        what = f"int8 has {_another(tally)} on {100 * lost:.1f} % of the images"
    if lost <= LOST_ACCURACY:
        return []
    allowed = 100 * LOST_ACCURACY
    return [f"{what}, at most {allowed:.0f} are allowed: calibrate on more typical images"]
