"""Images in tar and zip archives, also sharded ones of WebDataset, read where they lie.

An archive is listed once, and its images are then read by their position in it, from any thread.
Nothing is unpacked to a disk. Members are names and bytes here, never paths: those that would lead
out of a folder are left out, and so are links.
"""

from __future__ import annotations

import bz2
import copy
import glob
import gzip
import json
import lzma
import posixpath
import re
import tarfile
import threading
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import DatasetError, ImageError, reason
from featx.files.claims import (
    UnsafeFileError,
    missing_path_error,
    most_unpacked,
    reading_data,
    shortened,
)
from featx.files.identity import file_stamps
from featx.files.safe_zip import count_members
from featx.images.files import (
    ARCHIVES,
    MAX_FILE_BYTES,
    Listing,
    PackedImages,
    archive_ending,
    is_image_name,
)
from featx.images.labels import SplitNames, split_of
from featx.images.members import ENCRYPTED, TAR, MemberReader, Place, reading_archive
from featx.images.scan import (
    HEAD_BYTES,
    NO_EXTENSION,
    Tree,
    begins_an_image,
    is_ignored,
    list_tree,
    why_no_image_name,
)

_UNPACKED: dict[str, Any] = {"gz": gzip.open, "bz2": bz2.open, "xz": lzma.open}
_MOST_MEMBERS = 5_000_000
_INT64 = (1 << 63) - 1
_MOST_HEADER_BYTES = 16 << 20
# Images hardly shrink; uncompressed ones of one colour, and bombs, do.
_MOST_RATIO = 200
# Beside an image of WebDataset, by the name up to its first dot.
_LABEL_FILES = ("cls", "json")
_LABEL_KEYS = ("label", "labels", "class", "class_name", "cls", "target", "category")
_MOST_LABEL_BYTES = 1 << 20
# Members that were passed in a compressed tar and may be asked for next.
_MOST_PASSED, _MOST_PASSED_BYTES = 512, 32 << 20


def archive_name(path: Path) -> str:
    """Return what the images of an archive, or of all its shards, are called."""
    stem = path.name[: len(path.name) - len(archive_ending(path.name))]
    plain = re.sub(r"[-_. ]*\{.*?\}", "", stem).replace("*", "").strip("-_. ")
    return plain or path.absolute().parent.name or "dataset"


def expand_braces(pattern: str) -> list[str]:
    """Return the names that ``{000..099}`` and ``{a,b}`` in a pattern stand for.

    >>> expand_braces("{train,val}-{08..10}.tar")[:4]
    ['train-08.tar', 'train-09.tar', 'train-10.tar', 'val-08.tar']
    """
    parts: list[list[str]] = []
    for text in re.split(r"(\{[^{}]*\})", pattern):
        numbers = re.fullmatch(r"\{(\d+)\.\.(\d+)\}", text)
        if numbers:
            first, last = int(numbers[1]), int(numbers[2])
            if last - first >= _MOST_MEMBERS:
                raise DatasetError(f"{pattern!r} stands for too many files: {last - first + 1:,}")
            parts.append([f"{n:0{len(numbers[1])}}" for n in range(first, last + 1)])
        elif text.startswith("{") and "," in text:
            parts.append(text[1:-1].split(","))
        else:
            parts.append([text])
    return ["".join(chosen) for chosen in product(*parts)]


def archive_paths(pattern: str) -> list[str]:
    """Return the archives that a path or a pattern stands for, sorted; each has to exist."""
    if Path(pattern).exists():
        return [pattern]
    names = [name for text in expand_braces(pattern) for name in _matching(text)]
    missing = [name for name in names if not Path(name).is_file()]
    if missing or not names:
        name = missing[0] if missing else pattern
        raise missing_path_error(Path(name), f"no such archive: {name!r}")
    return names


def _matching(text: str) -> list[str]:
    return sorted(glob.glob(text)) if glob.has_magic(text) else [text]


class _Member(NamedTuple):
    """A file in an archive: where it begins, and how many bytes it takes there."""

    name: str
    offset: int
    size: int
    method: int = TAR
    crc: int = 0  # of a zip


@dataclass
class _Contents:
    """What an archive holds."""

    files: list[_Member] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    strays: list[tuple[str, str]] = field(default_factory=list)

    def add(self, member: _Member, kind: Literal["file", "folder", "link", "other"]) -> None:
        """Take one entry, or note why it is left out."""
        name = member.name.removeprefix("./").rstrip("/")
        parts = name.split("/")
        if not name or any(is_ignored(part) for part in parts if part not in ("..", ".")):
            return
        if name.startswith("/") or {"..", ".", ""} & set(parts):
            self.strays.append((name, "a path that leads out of the archive"))
        elif kind == "folder":
            self.folders.append(name)
        elif kind == "file":
            self.files.append(member._replace(name=name))
        else:
            what = "a link" if kind == "link" else "neither a file nor a folder"
            self.strays.append((name, what))


# Tar


class _Tape:
    """An unpacked tar, within bounds. The block that was read last is kept: zeros mark the end."""

    def __init__(self, file: IO[bytes], most_bytes: int) -> None:
        self._file, self._most_bytes = file, most_bytes
        self.last = b""

    def read(self, size: int) -> bytes:
        if size > _MOST_HEADER_BYTES:
            raise UnsafeFileError(f"it has a header of {size:,} bytes")
        self.last = self._file.read(size)
        return self.last

    def seek(self, position: int) -> int:
        if position > self._most_bytes:
            raise UnsafeFileError(f"it claims to unpack to more than {self._most_bytes:,} bytes")
        return self._file.seek(position)

    def tell(self) -> int:
        return self._file.tell()


def _open_tar(path: Path) -> IO[bytes]:
    compression = ARCHIVES[archive_ending(path.name)]
    opened: IO[bytes] = _UNPACKED.get(compression, open)(path, "rb")
    return opened


def _tar_contents(path: Path) -> _Contents:
    contents = _Contents()
    regular: dict[str, _Member] = {}
    count = 0
    with _open_tar(path) as file:
        tape: Any = _Tape(file, most_unpacked(path.stat().st_size, _MOST_RATIO))
        try:
            with tarfile.open(fileobj=tape, mode="r:", errorlevel=2) as tar:
                while (info := tar.next()) is not None:
                    # Its members are forgotten one by one: each takes a kilobyte.
                    tar.members = []  # type: ignore[attr-defined]
                    count += 1
                    if count > _MOST_MEMBERS:
                        raise UnsafeFileError(f"it has more than {_MOST_MEMBERS:,} entries")
                    _add_tar_entry(contents, info, regular)
            whole = len(tape.last) == tarfile.BLOCKSIZE and not tape.last.strip(b"\0")
        except (tarfile.ReadError, EOFError) as error:
            if not count:
                raise UnsafeFileError(f"it is no tar: {reason(error)}") from error
            whole = False
    if not whole:
        raise UnsafeFileError(
            f"it is damaged or ends in the middle, after {count:,} entries: copy or make it again"
        )
    return contents


def _add_tar_entry(contents: _Contents, info: tarfile.TarInfo, regular: dict[str, _Member]) -> None:
    """Take one entry of a tar; `regular` keeps the files, which links may name."""
    member = _Member(info.name, info.offset_data, info.size)
    target = regular.get(info.linkname) if info.islnk() else None
    if target is not None:  # the same content under another name
        contents.add(target._replace(name=info.name), "file")
    elif info.isreg() and not info.issparse():
        regular[info.name] = member
        contents.add(member, "file")
    elif info.isdir():
        contents.add(member, "folder")
    else:
        contents.add(member, "link" if info.issym() or info.islnk() else "other")


# Zip


def _zip_contents(path: Path) -> _Contents:
    contents = _Contents()
    with path.open("rb") as file:
        if (members := count_members(file)) > _MOST_MEMBERS:
            raise UnsafeFileError(f"it has {members:,} entries, more than {_MOST_MEMBERS:,}")
        with zipfile.ZipFile(file) as archive:
            infos = archive.infolist()
    # Windows wrote backslashes once.
    turned = not any("/" in info.filename for info in infos)
    for info in infos:
        name = info.filename.replace("\\", "/") if turned else info.filename
        method = ENCRYPTED if info.flag_bits & 1 else info.compress_type
        # A damaged list may claim numbers of any size; what is not there fails when it is read.
        offset, size = (min(n, _INT64) for n in (info.header_offset, info.compress_size))
        member = _Member(name, offset, size, method, info.CRC)
        kind = info.external_attr >> 28
        if name.endswith("/"):
            contents.add(member, "folder")
        else:
            contents.add(member, "link" if kind == 0o12 else "file" if kind in (0, 8) else "other")
    return contents


# Listing


def read_archives(paths: Sequence[Path], name: str, names: SplitNames = None) -> Listing:
    """Return the images of one archive, or of the shards of a set.

    Folders in it are classes and splits as in a folder on a disk; a single one around all others
    is passed over. Beside images of WebDataset lie their labels.
    """
    shards: list[_Contents] = []
    for path in paths:
        with reading_data(path, "an archive"):
            is_zip = archive_ending(path.name) == ".zip"
            shards.append(_zip_contents(path) if is_zip else _tar_contents(path))
    tree = Tree()
    rows: dict[str, list[tuple[int, _Member]]] = {}
    beside: dict[tuple[int, str, str], _Member] = {}
    unknown: list[tuple[int, _Member]] = []
    for number, (path, shard) in enumerate(zip(paths, shards, strict=True)):
        last: dict[str, _Member] = {}
        for member in shard.files:
            if member.name in last:
                reason = "a later entry of the archive has the same name"
                tree.strays.append((_told(member.name, path, paths), reason))
            last[member.name] = member
        for member in last.values():
            key, ending = _sample(member.name)
            if is_image_name(member.name):
                rows.setdefault(member.name, []).append((number, member))
            elif ending in _LABEL_FILES:
                beside[number, key, ending] = member
            elif reason := why_no_image_name(member.name):
                tree.strays.append((_told(member.name, path, paths), reason))
            else:
                unknown.append((number, member))
        tree.folders += shard.folders
        tree.strays += [(_told(n, path, paths), reason) for n, reason in shard.strays]
    for (number, member), is_image in zip(unknown, _begin_images(paths, unknown), strict=True):
        if is_image:
            rows.setdefault(member.name, []).append((number, member))
            tree.by_content.append(member.name)
        else:
            tree.strays.append((_told(member.name, paths[number], paths), NO_EXTENSION))
    if not rows:
        raise DatasetError(
            f"no image in {name!r}: {sum(len(shard.files) for shard in shards):,} files, none with "
            "an image extension: expected images (.jpg, .png, ...) in it"
        )
    tree.images = list(rows)
    _name_folders(tree)
    around = _wrapper(tree.images)
    _enter(tree, around)
    labelled = _webdataset_labels(paths, rows, beside)
    for (number, _, _), member in beside.items():
        if labelled is None:
            tree.strays.append((_told(member.name, paths[number], paths), NO_EXTENSION))
    listing = list_tree(tree, name, labels=labelled is None, names=names)
    return _expanded(listing, paths, rows, around, labelled, names)


def _begin_images(paths: Sequence[Path], members: Sequence[tuple[int, _Member]]) -> list[bool]:
    """Return which members of a name that says nothing are images by their first bytes."""
    heads = [
        member._replace(size=min(member.size, HEAD_BYTES)) if member.method == TAR else member
        for _, member in members
    ]
    reader = ArchiveImages(paths, [number for number, _ in members], heads)
    found = []
    for row in range(len(heads)):
        try:
            found.append(begins_an_image(reader.read(row)[:HEAD_BYTES]))
        except ImageError:
            found.append(False)
    return found


def _told(member: str, path: Path, paths: Sequence[Path]) -> str:
    return member if len(paths) == 1 else f"{path.name}/{member}"


def _sample(member: str) -> tuple[str, str]:
    """Return the key of a WebDataset sample, and what this member of it is."""
    folder, slash, name = member.rpartition("/")
    stem, _, ending = name.partition(".")
    return folder + slash + stem, ending.lower()


def _name_folders(tree: Tree) -> None:
    """Add the folders that only the names of files tell of."""
    known = dict.fromkeys(tree.folders)
    for path in tree.images:
        folder = path.rpartition("/")[0]
        while folder and folder not in known:
            known[folder] = None
            folder = folder.rpartition("/")[0]
    tree.folders = list(known)


def _wrapper(images: Sequence[str]) -> str:
    """Return the folder, with its ``/``, that holds all images and only folders; "" for none."""
    around = posixpath.commonpath({path.rpartition("/")[0] for path in images})
    return around and around + "/"


def _enter(tree: Tree, around: str) -> None:
    """Take a folder in a tree for its top."""
    if around:
        cut = len(around)
        tree.images = [path[cut:] for path in tree.images]
        tree.folders = [f[cut:] for f in tree.folders if f.startswith(around) and f != around]


def _webdataset_labels(
    paths: Sequence[Path],
    rows: dict[str, list[tuple[int, _Member]]],
    beside: dict[tuple[int, str, str], _Member],
) -> dict[tuple[int, str], object] | None:
    """Return the label of each sample by shard and key, None where no image has one."""
    keys = {(number, _sample(name)[0]) for name, at in rows.items() for number, _ in at}
    wanted = {key: m for key, m in beside.items() if key[:2] in keys}
    # A description of everything, such as classes.json, is no label.
    if not wanted:
        return None
    reader = ArchiveImages(paths, [key[0] for key in wanted], wanted.values())
    labels: dict[tuple[int, str], object] = {}
    for row, (number, key, ending) in enumerate(wanted):
        if ending == "json" and (number, key, "cls") in wanted:
            continue
        try:
            data = reader.read(row, most_bytes=_MOST_LABEL_BYTES)
            labels[number, key] = _json_label(data) if ending == "json" else _text_label(data)
        except (ImageError, ValueError) as error:
            where = f"{paths[number].name}/{key}.{ending}"
            raise DatasetError(f"cannot read the label {shortened(where)!r}: {error}") from error
    return labels if any(label is not None for label in labels.values()) else None


def _text_label(data: bytes) -> object:
    text = data.decode("utf-8").strip()
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text) else text


def _json_label(data: bytes) -> object:
    described = json.loads(data)
    if not isinstance(described, dict):
        return described if isinstance(described, str | int) else None
    label = next((described[key] for key in _LABEL_KEYS if key in described), None)
    if isinstance(label, list):
        return "|".join(map(str, label))
    return label if isinstance(label, str | int | float) else None


def _expanded(
    listing: Listing,
    paths: Sequence[Path],
    rows: dict[str, list[tuple[int, _Member]]],
    around: str,
    labelled: dict[tuple[int, str], object] | None,
    names: SplitNames,
) -> Listing:
    """Return a listing with a row for each image, also where shards have the same names."""
    order = [
        (row, number, member)
        for row, path in enumerate(listing.paths)
        for number, member in rows[around + path]
    ]
    if any(ARCHIVES[archive_ending(path.name)] in _UNPACKED for path in paths):
        # To go back in a compressed tar is to read it again.
        order.sort(key=lambda entry: (entry[1], entry[2].offset))
    images = ArchiveImages(paths, [n for _, n, _ in order], [member for _, _, member in order])
    chosen = [row for row, _, _ in order]
    told = [
        listing.paths[row] if len(rows[member.name]) == 1 else f"{paths[n].name}/{member.name}"
        for row, n, member in order
    ]
    labels, splits, split_names = listing.labels, listing.splits, listing.split_names
    if labelled is not None:
        labels = [labelled.get((n, _sample(member.name)[0])) for _, n, member in order]
    elif labels is not None:
        known = list(labels)
        labels = [known[row] for row in chosen]
    if splits is not None:
        splits = [splits[row] for row in chosen]
    elif names != "none":
        splits, split_names = shard_splits(paths, [n for _, n, _ in order])
    return Listing(
        paths=told,
        labels=labels,
        as_written=labelled is None,
        splits=splits,
        split_names=split_names,
        strays=listing.strays,
        empty_classes=listing.empty_classes,
        notes=listing.notes,
        arrays=images,
    )


def shard_splits(
    paths: Sequence[Path], shards: Sequence[int]
) -> tuple[list[str] | None, list[tuple[str, str]]]:
    """Return splits that shards are named by, as ``train-000.tar`` beside ``val-000.tar``."""
    meant = [split_of(re.sub(r"[\d-]+$", "", archive_name(path))) for path in paths]
    if "" in meant or len(set(meant)) < 2:
        return None, []
    told = {re.sub(r"\d+", "*", path.name): split for path, split in zip(paths, meant, strict=True)}
    return [meant[shard] for shard in shards], sorted(told.items())


# Reading


class ArchiveImages(PackedImages):
    """Images in archives, by where they lie.

    Parameters
    ----------
    paths : sequence of Path
        The archives.
    shards : sequence of int
        Of each image, which of them it is in.
    members : iterable
        Of each image, where it lies in it.
    """

    def __init__(
        self, paths: Sequence[Path], shards: Sequence[int], members: Iterable[_Member]
    ) -> None:
        self._paths = [path.absolute() for path in paths]
        self._shard = np.array(shards, np.int32)
        # 28 bytes an image, where objects would take 200.
        rows = [member[1:] for member in members]
        self._members = np.array(rows, "i8,i8,i4,u4")
        self._stamps = file_stamps(self._paths)
        kinds = [ARCHIVES[archive_ending(path.name)] for path in paths]
        self._in_streams = [kind in _UNPACKED for kind in kinds]
        self._open()

    def _open(self) -> None:
        self._reader = MemberReader()
        self._streams: dict[int, Forward] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        opened = ("_reader", "_streams", "_lock")
        return {name: value for name, value in vars(self).items() if name not in opened}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open()

    def __len__(self) -> int:
        return len(self._shard)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} images of {len(self._paths)} archives)"

    def __getitem__(self, index: int) -> bytes:
        return self.read(index)

    def stamps(self) -> NDArray[np.int64]:
        """Return the stamp of the archive of each image, as it was when it was listed."""
        return self._stamps[self._shard]

    def taken(self, rows: NDArray[np.int64]) -> PackedImages:
        """Return some of the images, with their places only."""
        if (rows < 0).any():
            return super().taken(rows)
        some = copy.copy(self)
        some._shard, some._members = self._shard[rows], self._members[rows]
        some._open()
        return some

    def place(self, index: int) -> Place | None:
        """Return where an image lies, None where it is compressed together with others."""
        shard = int(self._shard[index])
        if self._in_streams[shard]:
            return None
        size, mtime_ns = self._stamps[shard, :2].tolist()
        return Place(str(self._paths[shard]), size, mtime_ns, *self._members[index].tolist())

    def read(self, index: int, *, most_bytes: int = MAX_FILE_BYTES) -> bytes:
        """Return the bytes of one image file."""
        place = self.place(index)
        if place is not None:
            return self._reader.read(place, most_bytes=most_bytes)
        shard = int(self._shard[index])
        offset, size, _, _ = self._members[index].tolist()
        if size > most_bytes:
            raise ImageError(f"too large: {size:,} bytes, the limit is {most_bytes:,}")
        with reading_archive(self._paths[shard].name):
            data = self._stream(shard).read(offset)
        if len(data) < size:
            name = self._paths[shard].name
            raise ImageError(f"truncated: {name} ends after {len(data):,} of {size:,} bytes")
        return data

    def _stream(self, shard: int) -> Forward:
        with self._lock:
            if shard not in self._streams:
                members = sorted({(m[0], m[1]) for m in self._members[self._shard == shard]})
                begin = partial(_unpacked, self._paths[shard], members)
                self._streams[shard] = Forward(begin)
            return self._streams[shard]


class Forward:
    """Images that can only be read one after another; what was passed is kept for a while.

    Parameters
    ----------
    begin : callable
        Yields, from the first on, the position of each image and what reads it.
    """

    def __init__(self, begin: Callable[[], Iterator[tuple[int, Callable[[], bytes]]]]) -> None:
        self._begin = begin
        self._lock = threading.Lock()
        self._passed: OrderedDict[int, bytes | ImageError] = OrderedDict()
        self._passed_bytes = 0
        self._images: Iterator[tuple[int, Callable[[], bytes]]] | None = None
        self._reached = -1
        self._broken: ImageError | None = None

    def read(self, wanted: int) -> bytes:
        """Return the image at a position; to go far back is to begin anew."""
        with self._lock:
            if wanted not in self._passed:
                self._forward(wanted)
            data = self._passed.pop(wanted)
            if isinstance(data, ImageError):
                raise ImageError(str(data))
            self._passed_bytes -= len(data)
            return data

    def _forward(self, wanted: int) -> None:
        """Go on to an image. What lies between may be asked for by another thread."""
        if self._images is None or wanted <= self._reached:
            self._images, self._reached, self._broken = self._begin(), -1, None
            self._passed.clear()
            self._passed_bytes = 0
        while self._reached != wanted:
            try:
                self._reached, read = next(self._images)
            except StopIteration:
                self._broken = self._broken or ImageError("the file has changed meanwhile")
                self._passed[wanted] = self._broken
                return
            except ImageError as error:  # nor can what lies behind be read
                self._broken = error
                continue
            self._keep(self._reached, read)

    def _keep(self, position: int, read: Callable[[], bytes]) -> None:
        try:
            data = read()
        except ImageError as error:
            self._passed[position] = error
            return
        self._passed[position] = data
        self._passed_bytes += len(data)
        while len(self._passed) > _MOST_PASSED or self._passed_bytes > _MOST_PASSED_BYTES:
            oldest, passed = next(iter(self._passed.items()))
            if oldest == position:
                return
            del self._passed[oldest]
            self._passed_bytes -= 0 if isinstance(passed, ImageError) else len(passed)


def _unpacked(
    path: Path, members: Sequence[tuple[int, int]]
) -> Iterator[tuple[int, Callable[[], bytes]]]:
    """Yield the members of a compressed tar, of which positions and sizes are known."""
    with _open_tar(path) as file:

        def read(offset: int, size: int) -> bytes:
            file.seek(offset)
            return file.read(size)

        for offset, size in members:
            yield offset, partial(read, offset, size)
