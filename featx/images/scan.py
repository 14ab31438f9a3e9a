"""A folder of images, read once: classes, splits, images, and what else lay there."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from sys import intern

from featx.exceptions import DatasetError
from featx.images.files import is_image_name, missing_path_error

__all__ = ["SPLITS", "FolderScan", "scan_folder"]

SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
"""Names of splits, in lower case, and the name that stands for each."""

# Left behind by Windows, macOS and network drives; like hidden files they are nobody's data.
# fmt: off
_IGNORED = frozenset((
    "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "__macosx", "@eadir", "#recycle",
    "lost+found",
))
# fmt: on


@dataclass(frozen=True, kw_only=True)
class FolderScan:
    """What a folder holds.

    Parameters
    ----------
    paths : list of str
        Images relative to the folder, with ``/``, sorted by class, then by path.
    class_names : list of str or None
        Class of each image, ``""`` for none; None where the folder has no classes.
    splits : list of str or None
        ``train``, ``val`` or ``test`` for each image; None where the folder is not split.
    strays : list of (path, reason)
        Files that are not used, sorted.
    empty_classes : list of str
        Folders in the place of a class without any image, sorted.
    """

    paths: list[str]
    class_names: list[str] | None
    splits: list[str] | None
    strays: list[tuple[str, str]]
    empty_classes: list[str]


@dataclass
class _Found:
    images: list[str] = field(default_factory=list)
    strays: list[tuple[str, str]] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)


def scan_folder(root: Path, *, labels: bool) -> FolderScan:
    """Find the images in a folder.

    Parameters
    ----------
    root : Path
        The folder.
    labels : bool
        Whether sub-folders are classes.

    Returns
    -------
    FolderScan

    Raises
    ------
    DatasetError
        If there is no such folder, it cannot be read, or holds no image.
    """
    if not root.is_dir():
        if root.exists():
            raise DatasetError(
                f"expected a folder, received a file: {str(root)!r}; tables and array files are "
                "read by ImageDataset.from_any"
            )
        raise missing_path_error(root, f"no such folder: {str(root)!r}")
    found = _walk(root)
    if not found.images:
        raise DatasetError(_nothing_found(root, found))
    strays = sorted(found.strays)
    at_top = [path for path in found.images if "/" not in path]
    if not labels or len(at_top) == len(found.images):
        return FolderScan(
            paths=sorted(found.images),
            class_names=None,
            splits=None,
            strays=strays,
            empty_classes=sorted(f for f in found.folders if "/" not in f) if labels else [],
        )
    return _classify(found, strays, level=1 if _is_split(found) else 0)


def _classify(found: _Found, strays: list[tuple[str, str]], *, level: int) -> FolderScan:
    """Take the folder at `level` (0, or 1 below splits) as the class."""
    rows: list[tuple[str, str, str]] = []
    below = {path.split("/", 1)[0] for path in found.images if path.count("/") > level}
    for path in found.images:
        parts = path.split("/")
        split = SPLITS[parts[0].lower()] if level and len(parts) > 1 else ""
        if len(parts) > level + 1:
            rows.append((intern(parts[level]), path, split))
        elif split and parts[0] not in below:
            # A split without class folders holds images to be predicted.
            rows.append(("", path, split))
        else:
            strays.append((path, "an image beside the class folders"))
    rows.sort()
    full = {name for name, _, _ in rows}
    candidates = {f.split("/")[level] for f in found.folders if f.count("/") == level}
    return FolderScan(
        paths=[path for _, path, _ in rows],
        class_names=[name for name, _, _ in rows],
        splits=[split for _, _, split in rows] if level else None,
        strays=sorted(strays),
        empty_classes=sorted(candidates - full),
    )


def _is_split(found: _Found) -> bool:
    """Return whether the top folders are splits (two, or ``train`` alone) above class folders."""
    tops = {folder for folder in found.folders if "/" not in folder}
    kinds = {SPLITS.get(top.lower(), "") for top in tops}
    if "" in kinds or not (len(tops) > 1 or kinds == {"train"}):
        return False
    return any(path.count("/") > 1 for path in found.images)


def _walk(root: Path) -> _Found:
    found = _Found()
    top = root.stat()
    # Each folder with the identities of those above it: a link back to one of them is a loop.
    stack: list[tuple[str, frozenset[tuple[int, int]]]] = [
        ("", frozenset({(top.st_dev, top.st_ino)}))
    ]
    while stack:
        prefix, above = stack.pop()
        # One entry at a time: a list of them takes 300 bytes each.
        for entry in _entries(root, prefix, found):
            name = entry.name
            if name.startswith(".") or name.lower() in _IGNORED:
                continue
            path = prefix + name
            try:
                if entry.is_dir():
                    info = Path(entry.path).stat()
                    own = (info.st_dev, info.st_ino)
                    if own in above:
                        found.strays.append((path, "a link to a folder above it"))
                        continue
                    found.folders.append(path)
                    stack.append((path + "/", above | {own}))
                elif not is_image_name(name):
                    found.strays.append((path, "no image extension"))
                elif entry.is_file():
                    found.images.append(path)
                else:
                    broken = entry.is_symlink()
                    reason = "a link to nothing" if broken else "neither a file nor a folder"
                    found.strays.append((path, reason))
            except OSError as error:
                found.strays.append((path, f"cannot be read: {error.strerror}"))
    return found


def _entries(root: Path, prefix: str, found: _Found) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(f"{root}/{prefix}") as entries:
            yield from entries
    except OSError as error:
        if not prefix:
            raise DatasetError(f"cannot read {str(root)!r}: {error.strerror}") from error
        found.strays.append((prefix[:-1], f"a folder that cannot be read: {error.strerror}"))


def _nothing_found(root: Path, found: _Found) -> str:
    files = [path for path, reason in found.strays if reason == "no image extension"]
    if not files:
        if found.strays:
            path, reason = sorted(found.strays)[0]
            return f"no image in {str(root)!r}: {path!r} is {reason}"
        within = f" and {len(found.folders)} empty folders" if found.folders else ""
        return (
            f"no image in {str(root)!r}: expected a sub-folder of images for each class, found no "
            f"files{within}"
        )
    counts = Counter(PurePath(path).suffix.lower() or "none" for path in files)
    kinds = ", ".join(f"{ext} x {n}" for ext, n in sorted(counts.items(), key=lambda c: -c[1])[:6])
    return (
        f"no image in {str(root)!r}: {len(files)} files, none with an image extension: {kinds}; "
        "expected a sub-folder of images (.jpg, .png, ...) for each class"
    )
