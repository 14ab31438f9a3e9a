"""What a user may want to know of the data: splits, what was left out, labels that contradict."""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from featx.cache.manifest import DUPLICATE, FAILED, OK, Manifest
from featx.images.columns import ImageColumns, inner_folder
from featx.images.files import nearest_path
from featx.images.label_sets import SEPARATOR

_NO_FILE = "no such file"
_SHOWN = 3


def data_report(manifest: Manifest, dataset: ImageColumns | None = None) -> dict[str, Any]:
    """Return what is known of a dataset beside its features, as JSON types.

    Parameters
    ----------
    manifest : Manifest
        The dataset.
    dataset : ImageColumns, optional
        The images as they were read, where they were; it knows why files were left out.

    Returns
    -------
    dict
        ``splits``: images by split; ``split_names``: what names were taken for; ``unlabelled``;
        ``left_out``: files with reasons; ``empty_classes``; ``contradictions``: groups of equal
        images with different labels; ``look_alike``: groups of classes; ``notes``.
    """
    kept = np.flatnonzero(np.isin(manifest.status, (OK, DUPLICATE)))
    splits = Counter(manifest.split[row] for row in kept) if any(manifest.split) else Counter()
    edited = any(edit["edit"] == "split" for edit in manifest.edits)
    names = {} if dataset is None or edited else dict(dataset.split_names)
    reasons = dict.fromkeys(manifest.strays, "")
    if dataset is not None:
        reasons |= dict(zip(dataset.strays, dataset.stray_reasons, strict=False))
    notes = [] if dataset is None else list(dataset.notes)
    if hint := inner_folder(manifest.root, manifest.path, manifest.classes):
        notes.append(hint)
    labelled = manifest.label[kept] >= 0
    return {
        "splits": {name: splits[name] for name in ("train", "val", "test", "") if splits[name]},
        "split_names": names,
        "unlabelled": 0 if manifest.classes is None else int((~labelled).sum()),
        "left_out": [{"path": path, "reason": reason} for path, reason in reasons.items()],
        "empty_classes": [] if dataset is None else list(dataset.empty_classes),
        "contradictions": contradictions(manifest),
        "look_alike": look_alike(manifest),
        "notes": notes,
    }


def contradictions(manifest: Manifest) -> list[list[dict[str, str]]]:
    """Return groups of images that are equal byte for byte and have different labels."""
    names = manifest.classes
    if names is None or not (manifest.status == DUPLICATE).any():
        return []
    rows = np.flatnonzero(np.isin(manifest.status, (OK, DUPLICATE)) & (manifest.label >= 0))
    whole = np.ascontiguousarray(manifest.key[rows]).view("V32").ravel()
    _, group = np.unique(whole, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(group[order]) > 0])
    if not len(rows):
        return []
    labels = manifest.label[rows][order]
    differ = np.minimum.reduceat(labels, starts) < np.maximum.reduceat(labels, starts)
    ends = np.r_[starts[1:], len(rows)]
    found = []
    for start, end in zip(starts[differ], ends[differ], strict=True):
        members = [
            (manifest.path[row], names[manifest.label[row]]) for row in rows[order[start:end]]
        ]
        # Of several labels an image, ant|winged and winged|ant say the same.
        if len({frozenset(label.split(SEPARATOR)) for _, label in members}) > 1:
            found.append([{"path": path, "label": label} for path, label in members])
    return sorted(found, key=lambda group: group[0]["path"])


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
    if "://" in path:
        return f"{path[:80]!r} is an address: download the file first"
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
