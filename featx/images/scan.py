"""Images in a folder, with classes, splits and what else lay there; and in what a user types."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from sys import intern

from featx.exceptions import DatasetError
from featx.files.claims import missing_path_error
from featx.files.stores import as_address
from featx.images.containers import sniff
from featx.images.files import Listing, archive_ending, is_image_name
from featx.images.labels import (
    PLAIN_NAMES,
    SplitNames,
    around_split,
    check_names,
    check_used,
    split_of,
    unknown_error,
)

# Left behind by Windows, macOS and network drives; like hidden files they are nobody's data.
# fmt: off
_IGNORED = frozenset((
    "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "__macosx", "@eadir", "#recycle",
    "lost+found",
))
# fmt: on
# Formats that are known to be no images that featx decodes: these files are not opened.
# fmt: off
_OTHER_FORMATS = frozenset((
    ".7z", ".avi", ".bz2", ".cfg", ".css", ".csv", ".doc", ".docx", ".featx", ".gz", ".h5", ".hdf",
    ".hdf5", ".htm", ".html", ".ini", ".ipynb", ".js", ".json", ".jsonl", ".keras", ".log", ".md",
    ".mkv", ".mov", ".mp3", ".mp4", ".npy", ".npz", ".onnx", ".parquet", ".pdf", ".pt", ".pth",
    ".py", ".rar", ".rst", ".svg", ".tar", ".tgz", ".toml", ".tsv", ".txt", ".wav", ".xls", ".xlsx",
    ".xml", ".xmp", ".xz", ".yaml", ".yml", ".zip",
))
# TIFF by their first bytes, with a small preview where other files have the picture.
_RAW_PHOTOGRAPHS = frozenset((
    ".3fr", ".arw", ".cr2", ".cr3", ".dng", ".erf", ".kdc", ".mrw", ".nef", ".nrw", ".orf", ".pef",
    ".raf", ".rw2", ".sr2", ".srf", ".srw",
))
# fmt: on
HEAD_BYTES = 256
NO_EXTENSION = "no image extension"
_RAW = "a raw photograph of a camera, which featx does not decode: save it as JPEG or PNG"
_CACHE_FOLDERS = frozenset(("spaces", "datasets", "searches", "engines", "tmp"))


def is_ignored(name: str) -> bool:
    """Return whether a file or folder of this name is nobody's data."""
    return name.startswith(".") or name.lower() in _IGNORED


@dataclass
class Tree:
    """What lies below a folder, by its path from there with ``/``."""

    images: list[str] = field(default_factory=list)
    strays: list[tuple[str, str]] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    by_content: list[str] = field(default_factory=list)  # images without a known extension

    @property
    def notes(self) -> list[str]:
        """What was decided about the files that could have been decided otherwise."""
        count = len(self.by_content)
        if not count:
            return []
        files = "1 file without a known extension is an image by its"
        if count > 1:
            files = f"{count:,} files without a known extension are images by their"
        return [f"{files} content, such as {min(self.by_content)!r}"]


def scan_folder(root: Path, *, labels: bool, names: SplitNames = None) -> Listing:
    """Return the images in a folder, whose sub-folders may be classes (`labels`) and splits."""
    if not root.is_dir():
        if root.exists():
            raise DatasetError(
                f"expected a folder, received a file: {str(root)!r}; tables and array files are "
                "read by ImageDataset.from_any"
            )
        raise missing_path_error(root, f"no such folder: {str(root)!r}")
    check_names(names)
    tree = _walk(root)
    if not tree.images:
        raise DatasetError(nothing_found(root, tree))
    return list_tree(tree, root.name, labels=labels, names=names)


def list_tree(tree: Tree, name: str, *, labels: bool, names: SplitNames = None) -> Listing:
    """Return the images of a tree, whose folders may be classes (`labels`) and splits."""
    at_top = [path for path in tree.images if "/" not in path]
    if not labels or len(at_top) == len(tree.images):
        return Listing(
            paths=sorted(tree.images),
            strays=sorted(tree.strays),
            notes=tree.notes,
            empty_classes=sorted(f for f in tree.folders if "/" not in f) if labels else [],
        )
    tops = _tops(tree)
    layout = _Layout() if names == "none" else _layout(name, tops, dict(names or {}))
    return _classify(tree, layout)


@dataclass
class _Top:
    """A folder at the top: the folders in it that hold images, each with those in turn in it."""

    folders: dict[str, set[str]] = field(default_factory=dict)
    direct: bool = False
    wrapper: str = ""

    @property
    def classes(self) -> set[str]:
        """Folders in the place of classes, if this one is a split."""
        return self.folders[self.wrapper] - {""} if self.wrapper else set(self.folders)


@dataclass
class _Layout:
    """Which folders are splits: those at the top, if they have `levels`, or those in each class."""

    splits: dict[str, str] = field(default_factory=dict)
    levels: dict[str, int] = field(default_factory=dict)  # of the classes in each split
    flat: set[str] = field(default_factory=set)  # splits without classes
    classes: set[str] = field(default_factory=set)  # those that splits are in
    notes: list[str] = field(default_factory=list)


def _tops(tree: Tree) -> dict[str, _Top]:
    """Return the folders at the top that hold images."""
    tops: defaultdict[str, _Top] = defaultdict(_Top)
    for path in tree.images:
        parts = path.split("/", 3)
        if len(parts) == 2:
            tops[parts[0]].direct = True
        elif len(parts) > 2:
            inner = tops[parts[0]].folders.setdefault(parts[1], set())
            inner.add(parts[2] if len(parts) > 3 else "")
    return dict(tops)


def _layout(name: str, tops: dict[str, _Top], stated: dict[str, str]) -> _Layout:
    """Decide by names and by the classes that folders have in common which of them are splits."""
    inner = {folder for top in tops.values() for folder in top.folders}
    check_used(stated, [*tops, *sorted(inner)], repr(name))
    splits = {top: kind for top in tops if (kind := stated.get(top) or split_of(top))}
    if not splits:
        return _splits_below(name, tops, stated)
    _find_wrappers({top: tops[top] for top in splits}, splits)
    classes = {top: tops[top].classes for top in tops}
    deep = [top for top in splits if classes[top]]
    common = any(classes[a] & classes[b] for a in deep for b in deep if a < b)
    others = [top for top in tops if top not in splits]
    alike = [o for o in others if any(classes[o] & classes[top] - {""} for top in deep)]
    plain = all(top.lower() in PLAIN_NAMES for top in splits)
    sure = bool(stated) or common
    if alike and (sure or plain):
        raise unknown_error(
            sorted(alike),
            f"{name!r}, beside {', '.join(sorted(splits))},",
            "; if all of them are classes: --splits none (splits='none')",
        )
    kinds = set(splits.values())
    words = {tuple(around_split(top)) for top in splits if top not in stated}
    if not others:
        flat = len(deep) < len(splits) and "train" in {splits[top] for top in deep}
        sure |= bool(deep) and (len(splits) == 1 or plain or flat)
        sure &= len(splits) > 1 or bool(stated) or kinds == {"train"}
    elif len(words) < 2 and "train" in kinds and len(kinds) > 1:
        # Such as train and test, or seg_train and seg_test: whatever else lies beside them.
        sure |= bool(deep) and not any(tops[top].direct for top in deep)
    if not (sure and deep):
        several = len(splits) > 1
        note = (
            f"{', '.join(sorted(splits))}: taken as {'classes' if several else 'a class'}, not as "
            f"{'splits' if several else 'a split'}: no class folder below is in two of the folders"
        )
        return _Layout(notes=[note] if plain or len(kinds) > 1 else [])
    levels = {top: 2 if tops[top].wrapper else 1 for top in splits}
    return _Layout(splits, levels, {top for top in splits if not classes[top]})


def _find_wrappers(tops: dict[str, _Top], splits: dict[str, str]) -> None:
    """Note the one folder that holds the classes of a split, as in ``seg_train/seg_train``."""
    single = {n: next(iter(t.folders)) for n, t in tops.items() if len(t.folders) == 1}
    deep = [name for name, top in tops.items() if top.folders]
    same = len({single.get(name, "") for name in deep}) == 1
    for name, inner in single.items():
        below = tops[name].folders[inner]
        if split_of(inner) == splits[name] or (same and len(below - {""}) > 1 and "" not in below):
            tops[name].wrapper = "" if tops[name].direct else inner


def _splits_below(name: str, tops: dict[str, _Top], stated: dict[str, str]) -> _Layout:
    """Take ``ant/train``, ``ant/test``, ``bee/train`` ... as splits below the classes."""
    inner = {folder for top in tops.values() if not top.direct for folder in top.folders}
    splits = {folder: kind for folder in inner if (kind := stated.get(folder) or split_of(folder))}
    classes = {name for name, top in tops.items() if not top.direct and {*top.folders} & {*splits}}
    if len(classes) < 2 or len({*splits.values()}) < 2:
        return _Layout()
    unknown = {folder for top in classes for folder in tops[top].folders} - {*splits}
    if unknown:
        raise unknown_error(
            sorted(unknown),
            f"the classes of {name!r}, beside {', '.join(sorted(splits))},",
            "; if the folders in the classes are no splits: --splits none (splits='none')",
        )
    return _Layout(splits, classes=classes)


def _classify(tree: Tree, layout: _Layout) -> Listing:
    """Give each image its class and split."""
    rows: list[tuple[str, str, str]] = []
    strays = list(tree.strays)
    splits, levels = layout.splits, layout.levels
    for path in tree.images:
        *folders, _ = path.split("/")
        named = folders[:1] if levels else folders[1:2]
        split = splits.get(named[0], "") if named else ""
        classes = folders[levels.get(folders[0], 0) :] if folders else []
        if layout.classes and not split:
            strays.append((path, "an image beside the folders of the classes with splits"))
        elif levels and not split:
            strays.append((path, "an image beside the folders of the splits"))
        elif classes:
            rows.append((intern(classes[0]), path, split))
        elif levels and folders[0] in layout.flat:
            # A split without class folders holds images to be predicted.
            rows.append(("", path, split))
        else:
            strays.append((path, "an image beside the class folders"))
    rows.sort()
    full = {name for name, _, _ in rows}
    empty = set()
    for folder in tree.folders:
        parts = folder.split("/")
        level = levels.get(parts[0], -1) if levels else 0
        if len(parts) == level + 1:
            empty |= {parts[level]} - full
        elif levels and folder not in splits and len(parts) == 1 and split_of(folder):
            empty.add(folder)
    if layout.classes:
        empty -= {path.split("/")[0] for path, _ in strays}
    return Listing(
        paths=[path for _, path, _ in rows],
        labels=[name for name, _, _ in rows],
        as_written=True,
        splits=[split for _, _, split in rows] if splits else None,
        split_names=sorted(splits.items()),
        strays=sorted(strays),
        empty_classes=sorted(empty),
        notes=[*layout.notes, *tree.notes],
    )


def _walk(root: Path) -> Tree:
    tree = Tree()
    caches: set[str] = set()
    top = root.stat()
    # Each folder with the identities of those above it: a link back to one of them is a loop.
    stack: list[tuple[str, frozenset[tuple[int, int]]]] = [
        ("", frozenset({(top.st_dev, top.st_ino)}))
    ]
    while stack:
        prefix, above = stack.pop()
        # One entry at a time: a list of them takes 300 bytes each.
        for entry in _entries(root, prefix, tree):
            name = entry.name
            if is_ignored(name):
                continue
            path = prefix + name
            try:
                if entry.is_dir():
                    if name in _CACHE_FOLDERS and is_cache(f"{root}/{prefix}"):
                        caches.add(prefix)
                        continue
                    info = Path(entry.path).stat()
                    identity = (info.st_dev, info.st_ino)
                    if identity in above:
                        tree.strays.append((path, "a link to a folder above it"))
                        continue
                    tree.folders.append(path)
                    stack.append((path + "/", above | {identity}))
                elif not is_image_name(name):
                    if reason := _why_no_image(entry.path):
                        tree.strays.append((path, reason))
                    else:
                        tree.images.append(path)
                        tree.by_content.append(path)
                elif entry.is_file():
                    tree.images.append(path)
                else:
                    broken = entry.is_symlink()
                    reason = "a link to nothing" if broken else "neither a file nor a folder"
                    tree.strays.append((path, reason))
            except OSError as error:
                tree.strays.append((path, f"cannot be read: {error.strerror}"))
    for cache in caches - {""}:
        # What lies in a cache of featx beside its own folders may be images all the same.
        if not any(path.startswith(cache) for path in tree.images):
            tree.folders = [f for f in tree.folders if not f"{f}/".startswith(cache)]
            tree.strays = [stray for stray in tree.strays if not stray[0].startswith(cache)]
    return tree


def _why_no_image(path: str) -> str:
    """Return why a file without the extension of an image is none, "" where its bytes say it is."""
    reason = why_no_image_name(path)
    if reason or not os.path.isfile(path):
        return reason or NO_EXTENSION
    with open(path, "rb", buffering=0) as file:
        return "" if begins_an_image(file.read(HEAD_BYTES)) else NO_EXTENSION


def why_no_image_name(name: str) -> str:
    """Return why a name is of no image, "" where the bytes of the file have to say."""
    extension = os.path.splitext(name)[1].lower()
    if extension in _RAW_PHOTOGRAPHS:
        return _RAW
    return NO_EXTENSION if extension in _OTHER_FORMATS else ""


def begins_an_image(head: bytes) -> bool:
    """Return whether the first bytes of a file are those of an image, and of no text."""
    kind = sniff(head)
    if kind == "BMP":  # two letters are not enough: the size of its header is below 256
        return head[15:18] == b"\0\0\0"
    return bool(kind) and (kind != "PPM" or re.match(rb"P[1-6]\s+(#|\d+\s)", head) is not None)


def _why_left_out(path: str) -> str:
    try:
        return _why_no_image(path)
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def is_cache(folder: str) -> bool:
    """Return whether a folder holds a cache of featx, by what lies in it, not by its name."""
    path = Path(folder)
    if any(path.glob("spaces/*/spec.json")) or any(path.glob("datasets/*.h5")):
        return True
    names = {entry.name for entry in path.iterdir()} - {"README.md"}
    return names <= _CACHE_FOLDERS and not any(
        is_image_name(file.name) for file in path.glob("*/*")
    )


def _entries(root: Path, prefix: str, tree: Tree) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(f"{root}/{prefix}") as entries:
            yield from entries
    except OSError as error:
        if not prefix:
            raise DatasetError(f"cannot read {str(root)!r}: {error.strerror}") from error
        tree.strays.append((prefix[:-1], f"a folder that cannot be read: {error.strerror}"))


def nothing_found(root: Path | str, tree: Tree) -> str:
    """Return what an error says of a tree without images."""
    files = [path for path, reason in tree.strays if reason == NO_EXTENSION]
    if not files:
        if tree.strays:
            path, reason = sorted(tree.strays)[0]
            return f"no image in {str(root)!r}: {path!r} is {reason}"
        within = f" and {len(tree.folders)} empty folders" if tree.folders else ""
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


class FileName(str):
    """A name that is taken as it is: what looks like a pattern in it is part of the name."""


def image_names(
    items: Iterable[str | os.PathLike[str]],
    *,
    strict: bool = False,
    left_out: list[tuple[str, str]] | None = None,
) -> Iterator[str]:
    """Yield the images that files, folders and patterns stand for, in their order.

    A file need not exist. A folder stands for all images below it, a pattern (``photos/*.jpg``,
    ``photos/**/*.png``) for the images that it matches, both sorted. What exists under its own
    name, or matches nothing, is no pattern, nor is a `FileName`. With `strict` a pattern has to
    match and a folder has to hold images; otherwise the ledger says that they cannot be read. Other
    files of folders and patterns are added to `left_out`, with the reasons.
    """
    left_out = [] if left_out is None else left_out
    for item in items:
        try:
            name = os.fsdecode(item)
        except TypeError as error:
            raise DatasetError(
                f"expected a path or pattern, received {type(item).__name__}: {str(item)[:80]!r}"
            ) from error
        # None of these raises, whatever the name: NUL, too long, or in a folder that is closed.
        plain = not glob.has_magic(name) or as_address(name) is not None
        if os.path.isdir(name):
            expanded = images_below(name, left_out)
        elif isinstance(item, FileName) or plain or os.path.lexists(name):
            yield name
            continue
        else:
            expanded = _matching(name, left_out)
        try:
            yield from expanded
        except DatasetError:
            if strict:
                raise
            yield name


def images_below(folder: str, left_out: list[tuple[str, str]]) -> Iterator[str]:
    """Yield the images at any depth below a folder, sorted; add other files to `left_out`."""
    listing = scan_folder(Path(folder), labels=False)
    left_out += [(f"{folder.rstrip('/')}/{path}", reason) for path, reason in listing.strays]
    for path in listing.paths:
        yield f"{folder.rstrip('/')}/{path}"


def _matching(pattern: str, left_out: list[tuple[str, str]]) -> Iterator[str]:
    names = sorted(glob.glob(pattern, recursive=True))
    if not names:
        raise DatasetError(
            f"nothing matches {pattern!r} in {str(Path.cwd())!r}: expected files, for example "
            "'photos/*.jpg'; ** stands for folders at any depth"
        )
    images = False
    for name in names:
        if Path(name).is_dir():
            # A pattern as photos/* names folders among the images; ** has what is in them too.
            if "**" not in pattern:
                with suppress(DatasetError):
                    yield from images_below(name, left_out)
                    images = True
        elif is_image_name(name) or archive_ending(name) or not (reason := _why_left_out(name)):
            images = True
            yield name
        else:
            left_out.append((name, reason))
    if not images:
        raise DatasetError(
            f"{pattern!r} matches {len(names)} names, none with an image extension: expected "
            "images (.jpg, .png, ...)"
        )
