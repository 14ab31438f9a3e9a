"""What an extraction tells: counts and seconds; of the data splits, failures, contradictions."""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from featx.cache.editing import label_conflicts
from featx.cache.features import Features
from featx.cache.manifest import DUPLICATE, FAILED, PENDING, Manifest
from featx.extraction.pipeline import Stage
from featx.extraction.progress import Meter
from featx.files.identity import related_rows
from featx.images.dataset import ImageDataset, inner_folder
from featx.images.files import is_image_name, nearest_path
from featx.images.labels import SEPARATOR

_NO_FILE = "no such file"
_SHOWN = 3


def run_report(
    features: Features,
    seconds: float,
    images: ImageDataset | None = None,
    stages: Sequence[Stage] = (),
    meter: Meter | None = None,
    notes: Sequence[str] = (),
) -> dict[str, object]:
    """Return what was counted and what is known of the data, with more notes, as JSON types."""
    status = features.manifest.status
    failed, pending = int((status == FAILED).sum()), int((status == PENDING).sum())
    extracted = max((stage.computed for stage in stages), default=0)
    plain = {block.space: block.backbone for block in features.blocks if block.view is None}
    report: dict[str, object] = {
        "dataset": features.name,
        "backbone": ",".join(plain.values()),
        "spec": ",".join(plain),
        "images": len(status),
        "cached": len(status) - failed - pending - extracted,
        "extracted": extracted,
        "failed": failed,
        "duplicates": int((status == DUPLICATE).sum()),
        "seconds": round(seconds, 3),
        "images_per_s": round(len(status) / seconds, 1),
    }
    if pending:  # of other shares
        report["pending"] = pending
    if meter is not None and extracted:
        report |= {
            "engine": engine_names(stages),
            "extracted_per_s": round(extracted / meter.span_s, 1),
            "binds": meter.binds,
            **meter.seconds,
        }
    return report | data_report(features.manifest, images, notes)


def engine_names(stages: Sequence[Stage]) -> str:
    """Return the names of the engines that computed, with commas."""
    here = [stage.engine.name for stage in stages if stage.engine]
    return ",".join(dict.fromkeys([*here, *(n for s in stages for n in sorted(s.computed_by))]))


def data_report(
    manifest: Manifest, images: ImageDataset | None = None, more_notes: Sequence[str] = ()
) -> dict[str, object]:
    """Return what is known of a dataset, and of its images as they were read, as JSON types."""
    rows = manifest.usable
    splits = Counter(manifest.split.take(rows)) if manifest.split.any() else Counter[str]()
    edited = any(edit["edit"] == "split" for edit in manifest.edits)
    names = {} if images is None or edited else dict(images.split_names)
    notes = [] if images is None else list(images.notes)
    if hint := inner_folder(manifest.root, manifest.path, manifest.classes):
        notes.append(hint)
    labelled = manifest.label[rows] >= 0
    return {
        "splits": {name: splits[name] for name in ("train", "val", "test", "") if splits[name]},
        "split_names": names,
        "unlabelled": 0 if manifest.classes is None else int((~labelled).sum()),
        "left_out": left_out(manifest, images),
        "empty_classes": [] if images is None else list(images.empty_classes),
        "contradictions": contradictions(manifest),
        "look_alike": look_alike(manifest),
        "conflicts": label_conflicts(manifest),
        "notes": [*notes, *more_notes],
    }


def doubts(report: Mapping[str, Any]) -> list[str]:
    """Return as sentences what a user is to know of the data before they are trained on."""
    counted = (
        (report["failed"], "could not be read"),
        (len(report["left_out"]), "beside the images were left out"),
        (report["unlabelled"], "have no label"),
        (sum(map(len, report["contradictions"])), "have the same content but different labels"),
    )
    alike = [" and ".join(map(repr, group)) for group in report["look_alike"]]
    return [
        *(f"{count:,} files {what}" for count, what in counted if count),
        *(f"no image of the class {name!r}" for name in report["empty_classes"]),
        *(f"classes that differ only in case, spaces or accents: {names}" for names in alike),
        *report["notes"],
    ]


def left_out(manifest: Manifest, images: ImageDataset | None = None) -> list[dict[str, str]]:
    """Return files that lie beside the images and are not used, each with its reason."""
    reasons = {
        path: "not used when it was extracted" if is_image_name(path) else "no image extension"
        for path in manifest.strays
    }
    if images is not None:
        reasons |= dict(zip(images.strays, images.stray_reasons, strict=False))
    return [{"path": path, "reason": reason} for path, reason in reasons.items()]


def contradictions(manifest: Manifest) -> list[list[dict[str, str]]]:
    """Return groups of images that are equal byte for byte and have different labels."""
    names = manifest.classes
    if names is None or not (manifest.status == DUPLICATE).any():
        return []
    rows = manifest.usable
    rows = rows[manifest.label[rows] >= 0]
    if not len(rows):
        return []
    group = related_rows(manifest.key[rows], None)
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    labels = manifest.label[rows][order]
    differ = np.minimum.reduceat(labels, starts) < np.maximum.reduceat(labels, starts)
    ends = np.append(starts[1:], len(rows))
    groups = []
    for start, end in zip(starts[differ], ends[differ], strict=True):
        members = [
            (manifest.path[row], names[manifest.label[row]]) for row in rows[order[start:end]]
        ]
        # Of several labels an image, ant|winged and winged|ant say the same.
        if len({frozenset(label.split(SEPARATOR)) for _, label in members}) > 1:
            groups.append([{"path": path, "label": label} for path, label in members])
    return sorted(groups, key=lambda group: group[0]["path"])


def look_alike(manifest: Manifest) -> list[list[str]]:
    """Return groups of classes that differ in case, spaces or the form of accents only."""
    used = set(np.unique(manifest.label[manifest.label >= 0]).tolist())
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for code, name in enumerate(manifest.classes or ()):
        if code in used:
            plain = " ".join(unicodedata.normalize("NFC", name).split())
            groups[unicodedata.normalize("NFC", plain.casefold())].append(name)
    return [group for group in groups.values() if len(group) > 1]


def missing_files(manifest: Manifest) -> str:
    """Return where missing files were looked for and what is there, "" where none is missing."""
    rows = np.flatnonzero(manifest.status == FAILED)
    row = next((row for row in rows if manifest.reason[row] == _NO_FILE), None)
    if row is None or manifest.source != "files":
        return ""
    path = manifest.path[row]
    if Path(path).is_absolute():
        near = nearest_path(Path("/"), path)
        return f"{near!r} exists" if near else ""
    base = Path(manifest.root) if manifest.root else Path.cwd()
    message = f"relative paths are taken from {str(base)!r}"
    if manifest.root:
        for other in (Path.cwd(), *list(base.parents)[:_SHOWN]):
            if other.resolve() != base.resolve() and (other / path).is_file():
                option = "." if other == Path.cwd() else str(other)
                return f"{message}; {str(other / path)!r} exists: use --root {option} (root=...)"
    near = nearest_path(base, path)
    return f"{message}; {near!r} exists" if near else message


def why_unreadable(manifest: Manifest) -> str:
    """Return for an error which images could not be read and why, "" where all could."""
    rows = np.flatnonzero(manifest.status == FAILED)
    if not len(rows):
        return ""
    shown = "; ".join(
        f"{manifest.path[row][-80:]}: {manifest.reason[row][:100]}" for row in rows[:1]
    )
    where = missing_files(manifest)
    return f"{len(rows):,} images could not be read, such as {shown}{f'; {where}' if where else ''}"
