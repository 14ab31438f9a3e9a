"""Run an exported file in its own runtime on files from disk, and compare it with the model."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.cache.manifest import DUPLICATE, OK
from featx.exceptions import DatasetError, ExportError, FeatxError
from featx.exporting.conversion import Opened
from featx.exporting.description import read_description, report_path
from featx.exporting.formats import choose_format
from featx.exporting.placing import placed_whole
from featx.exporting.samples import decode_rows, find_images
from featx.images.dataset import ImageDataset
from featx.models.classifier import ImageClassifier

__all__ = ["LOST_ACCURACY", "TOLERANCE", "require_one_view", "verify_export"]

TOLERANCE = 1e-3
"""Largest difference of a probability, at float32."""

LOST_ACCURACY = 0.02
"""Share of images by which an int8 export may be worse than the model."""

_CHUNK = 128
_BATCH = 32
_ALONE = 8
_NAMED = 20


@dataclass(slots=True)
class _Tally:
    """What was counted so far."""

    images: int = 0
    failed: int = 0
    changed: list[dict[str, Any]] = field(default_factory=list)
    changes: int = 0
    largest: float = 0.0
    batch: float = 0.0
    labelled: int = 0
    model_right: int = 0
    export_right: int = 0


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
    the export as ``PATH.verification.json``, whether it is good or bad.

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
        ``passed``, ``images``, ``failed``, ``top1_changed``, ``largest_difference`` (of a
        probability), ``batch_difference`` (between one image alone and in a batch of 32),
        ``runtime`` and more, as JSON types.

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
    tally = _Tally()
    for start in range(0, len(images), _CHUNK):
        rows = range(start, min(start + _CHUNK, len(images)))
        chunk = images.subset(list(rows))
        parts, ledger = model.transform_images(chunk, on_error="skip")
        readable = np.flatnonzero(np.isin(ledger.status, (OK, DUPLICATE)))
        pixels = decode_rows(chunk, readable.tolist(), spec)
        tally.failed += len(chunk) - len(pixels)
        if not pixels:
            continue
        kept = np.array([row in pixels for row in readable])
        expected = model.average_proba(parts)[kept]
        given = np.stack([pixels[row] for row in readable[kept]])
        found = _run(opened, given, len(said["classes"]), target)
        if not tally.images:
            tally.batch = _batch_difference(opened, given, found)
        _count(tally, chunk, readable[kept], expected, found[:, columns], model.classes_)
    if not tally.images:
        raise DatasetError(
            f"none of the {len(images)} images of {images.name!r} could be read: an export is "
            "verified on images"
        )
    report = _report(tally, said, opened, images, target, tolerance)
    report["passed"] = not (problems := _problems(tally, report, tolerance))
    beside = report_path(target)
    with placed_whole([beside]) as folder:
        text = json.dumps(report, indent=2, ensure_ascii=False)
        (folder / beside.name).write_text(text + "\n", "utf-8")
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
            f"{path} does not open ({_first_line(error)}): it is damaged, or no file of the format "
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
        raise ExportError(f"{path} cannot be run: {_first_line(error)}") from error
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


def _count(
    tally: _Tally,
    chunk: ImageDataset,
    rows: NDArray[np.intp],
    expected: NDArray[Any],
    found: NDArray[np.float32],
    classes: NDArray[Any],
) -> None:
    names = classes.astype(str)
    model_top, export_top = expected.argmax(axis=1), found.argmax(axis=1)
    tally.images += len(rows)
    difference = np.abs(found - expected)
    # NaN is no difference that a comparison would notice.
    worst = float(difference.max()) if np.isfinite(difference).all() else float("inf")
    tally.largest = max(tally.largest, worst)
    changed = np.flatnonzero(model_top != export_top)
    tally.changes += len(changed)
    for row in changed[: _NAMED - len(tally.changed)]:
        tally.changed.append(
            {
                "path": chunk.paths[rows[row]],
                "model": {
                    "label": names[model_top[row]],
                    "probability": float(expected[row, model_top[row]]),
                },
                "export": {
                    "label": names[export_top[row]],
                    "probability": float(found[row, export_top[row]]),
                },
            }
        )
    if chunk.y is not None:
        y = chunk.y[rows]
        known = np.isin(y, names)
        tally.labelled += int(known.sum())
        tally.model_right += int((names[model_top] == y)[known].sum())
        tally.export_right += int((names[export_top] == y)[known].sum())


def _report(
    tally: _Tally,
    said: dict[str, Any],
    opened: Opened,
    images: ImageDataset,
    path: Path,
    tolerance: float,
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
        "failed": tally.failed,
        "top1_changed": tally.changes,
        "changed": tally.changed,
        "largest_difference": tally.largest,
        "tolerance": tolerance,
        "batch_difference": tally.batch,
        "labelled": labelled,
        "accuracy_of_model": tally.model_right / labelled if labelled else None,
        "accuracy_of_export": tally.export_right / labelled if labelled else None,
    }


def _problems(tally: _Tally, report: dict[str, Any], tolerance: float) -> list[str]:
    if not np.isfinite(tally.largest):
        return ["it gives probabilities that are not finite"]
    if report["precision"] == "int8":
        return _int8_problems(tally)
    problems = []
    if tally.changes:
        first = tally.changed[0]
        problems.append(
            f"{tally.changes} of {tally.images} images have another top-1, the first "
            f"{first['path']} ({first['model']['label']!r}, in the export "
            f"{first['export']['label']!r})"
        )
    if not tally.largest <= tolerance:
        problems.append(
            f"a probability is off by {tally.largest:.1e}, at most {tolerance:.0e} is allowed"
        )
    if not tally.batch <= tolerance:
        problems.append(f"an image alone differs from it in a batch by {tally.batch:.1e}")
    return problems


def _int8_problems(tally: _Tally) -> list[str]:
    if tally.labelled:
        lost = (tally.model_right - tally.export_right) / tally.labelled
        what = f"int8 loses {100 * lost:.1f} points of accuracy"
    else:
        lost = tally.changes / tally.images
        what = f"int8 has another top-1 on {100 * lost:.1f} % of the images"
    if lost <= LOST_ACCURACY:
        return []
    allowed = 100 * LOST_ACCURACY
    return [f"{what}, at most {allowed:.0f} are allowed: calibrate on more typical images"]


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else repr(error)
