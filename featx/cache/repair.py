"""Read every byte of a cache again, say what is wrong with which file, and remove what is bad.

Verification writes nothing. Repair removes damaged files, so that they are computed again, and
leaves all that may be somebody's only copy.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from featx.cache.hdf5 import attribute
from featx.cache.key_index import KeyIndex
from featx.cache.layout import CacheLayout, list_folder, list_shards, locked, reading, writing
from featx.cache.manifest import (
    MANIFEST_KIND,
    Manifest,
    extract_again,
    extract_command,
    read_heading,
    read_manifest,
)
from featx.cache.manifest_parts import PART_KIND, read_part
from featx.cache.shard import OtherSpecError, Shard, read_shard, stated_digest
from featx.cache.space import read_spec
from featx.cache.stored_index import read_index
from featx.exceptions import CacheError, CacheFormatError
from featx.files.claims import UnsafeFileError
from featx.files.identity import whole_keys
from featx.files.safe_json import read_json_with_checksum
from featx.spec import FeatureSpec

Progress = Callable[[int, int, int], None]
"""Called with the numbers of files done, in all, and with findings."""

# No writer needs that long for a file in tmp/.
_STALE_S = 3600.0
_SHARD_NAME = re.compile(r"[0-9a-f]{32}\.h5")
_EXAMPLES = 5
_ATTEMPTS = 3
_REMOVABLE = frozenset({"shard", "manifest", "part", "spec", "journal", "index", "leftover"})
_NEXT_STEPS = {
    **dict.fromkeys(_REMOVABLE, "`featx cache repair` removes it"),
    "foreign": "move it out of the cache",
    "later": "upgrade featx",
    "unreadable": "see to its permissions and its disk, then verify again",
    "misnamed": "give it its name back",
}
# A file that cannot be reached may be whole: another user, another moment or another disk reads it.
_OUT_OF_REACH = {
    *(errno.EACCES, errno.EAGAIN, errno.EBUSY, errno.EIO, errno.EMFILE, errno.ENFILE),
    *(errno.ENOMEM, errno.EPERM, errno.ESTALE, errno.ETIMEDOUT),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong with a file or folder, and what to do.

    A repair removes the kinds ``shard``, ``manifest``, ``part`` (rows of manifests), ``spec``,
    ``journal``, ``index`` (damaged) and ``leftover`` (an unfinished file in ``tmp/``). It leaves
    ``missing`` (a dataset's images without features), ``no_spec``, ``foreign``, ``misnamed``,
    ``later`` (of a later version of featx) and ``unreadable`` (out of reach, perhaps whole).
    """

    path: Path
    kind: str
    reason: str
    next_step: str
    rows: int | None = None  # that are affected; None where nobody can tell
    examples: tuple[str, ...] = ()  # paths of the first images that are affected


@dataclass(frozen=True, slots=True)
class Verification:
    """What a verification found: files first, then the datasets that suffer from them."""

    cache: Path
    files: int  # shards, manifests and specifications that were read
    rows: int  # in sound shards
    size_bytes: int  # of the shards and manifests that were read
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings


@dataclass(frozen=True, slots=True)
class Repair:
    """What a repair removed, or would remove in a dry run."""

    cache: Path
    dry_run: bool
    size_bytes: int  # of the files that go
    removed: tuple[Finding, ...]  # damaged files, and leftovers of killed writers
    left: tuple[Finding, ...]  # what a person has to decide about
    missing: tuple[Finding, ...]  # datasets with images to extract again


def error_kind(error: BaseException, damaged: str) -> str:
    """Return the kind of finding that an error of reading is; `damaged` if the content is bad."""
    if "upgrade featx" in str(error):
        return "later"
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _OUT_OF_REACH:
            return "unreadable"
        cause = cause.__cause__
    return damaged


def check_is_cache(layout: CacheLayout) -> None:
    """Refuse a folder that holds no cache: a mistyped name must not pass as a sound cache."""
    if not (layout.spaces.is_dir() or layout.datasets.is_dir()):
        raise CacheError(
            f"no cache at {layout.root}: expected a folder with spaces/ and datasets/ in it; name "
            "the one that `featx extract` filled"
        )


def spec_digits(folder: Path) -> str:
    """Return the digits of the specification's digest that end the name of a space."""
    return folder.name.rpartition("-")[2]


@dataclass(slots=True)
class _Space:
    """The files of a space; `digest` is what its shards state, or how that begins."""

    folder: Path
    shards: list[Path]
    digest: str
    spec: FeatureSpec | None = None
    kind: str = ""  # of what is wrong with its specification
    reason: str = ""
    sound: list[Shard] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)  # that fill it

    @property
    def rows(self) -> int:
        return sum(map(len, self.sound))


@dataclass(frozen=True, slots=True)
class _Checked:
    """What a file is, where it could be read, and what is wrong with it."""

    size_bytes: int = 0
    content: Shard | Manifest | None = None
    parts: tuple[str, ...] = ()  # names of the files that hold the rows of a manifest
    findings: tuple[Finding, ...] = ()
    gone: bool = False


def verify_cache(
    layout: CacheLayout, *, workers: int | None = None, progress: Progress | None = None
) -> Verification:
    """Return what is wrong with the files of a cache, each read again, in bounded memory."""
    check_is_cache(layout)
    threads = workers or min(8, os.cpu_count() or 1)
    for _ in range(_ATTEMPTS):
        report, gone = _verify(layout, threads, progress)
        if not gone:
            break  # else rows of a shard that went meanwhile are in a new one, not yet listed
    return report


def _verify(
    layout: CacheLayout, threads: int, progress: Progress | None
) -> tuple[Verification, bool]:
    """Return what was found, and whether a file went while this was at work."""
    spaces = {folder.name: _look_at(folder) for folder in layout.space_folders()}
    manifests = layout.manifests()
    total = sum(len(space.shards) for space in spaces.values()) + len(manifests)
    checked: list[_Checked] = []
    odd: list[Finding] = []
    bad = 0

    def watched(results: Iterable[_Checked]) -> Iterator[_Checked]:
        nonlocal bad
        for result in results:
            checked.append(result)
            bad += bool(result.findings)
            if progress:
                progress(len(checked), total, bad)
            yield result

    with ThreadPoolExecutor(threads) as pool:
        for space in spaces.values():
            for result in watched(pool.map(partial(_check_shard, space), space.shards)):
                if isinstance(result.content, Shard):
                    space.sound.append(result.content)
            odd += _take_out_misfits(space)
        for result in watched(pool.map(partial(_check_manifest, layout, spaces), manifests)):
            if isinstance(result.content, Manifest):
                for block in result.content.blocks:
                    if block.space in spaces:
                        command = extract_command(result.content.name, block)
                        spaces[block.space].commands.append(command)
        # Parts of the others were read with them.
        named = {name for result in checked for name in result.parts}
        parts = [path for path in list_folder(layout.parts) if path.name not in named]
        odd += filter(None, pool.map(_check_part, parts))
        journals = [path for path in list_folder(layout.searches) if path.suffix == ".jsonl"]
        odd += filter(None, pool.map(_check_journal, journals))
        odd += filter(None, pool.map(_check_index, layout.stored_indexes()))
    findings = [
        *(_spec_finding(space) for space in spaces.values() if space.kind),
        *_find_strays(layout),
        *odd,
        *(finding for result in checked for finding in result.findings),
    ]
    specs = sum((space.folder / "spec.json").exists() for space in spaces.values())
    report = Verification(
        cache=layout.root,
        files=specs + sum(not result.gone for result in checked),
        rows=sum(space.rows for space in spaces.values()),
        size_bytes=sum(result.size_bytes for result in checked),
        findings=tuple(sorted(findings, key=lambda finding: finding.kind == "missing")),
    )
    return report, any(result.gone for result in checked)


# Specifications


def _look_at(folder: Path) -> _Space:
    """Return a space with its specification and its shards listed."""
    space = _Space(folder, list_shards(folder), spec_digits(folder))
    try:
        space.spec = read_spec(folder)
        space.digest = space.spec.digest
    except FileNotFoundError:
        # Without shards nothing is wrong: a writer was stopped before its first shard.
        if space.shards:
            space.kind, space.reason = "no_spec", "the shards have no specification beside them"
    except CacheFormatError as error:
        space.reason, space.kind = str(error), "spec"
        if error_kind(error, "spec") == "unreadable":
            space.kind = "unreadable"
            return space
        with suppress(CacheFormatError, FileNotFoundError):
            _look_closer(space)
    return space


def _look_closer(space: _Space) -> None:
    """Tell a whole specification in the wrong folder, or of a later version, from a damaged one."""
    with reading(space.folder):
        data = json.loads((space.folder / "spec.json").read_text("utf-8"))
        text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    digest = hashlib.sha256(text.encode("ascii")).hexdigest()
    if digest.startswith(space.digest):
        space.kind, space.digest = "later", digest  # whole, as the folder's name proves
        return
    for path in space.shards:
        with suppress(CacheFormatError, FileNotFoundError):
            # Shards of a folder that was renamed agree with the specification.
            if stated_digest(path) == digest:
                space.kind, space.digest = "misnamed", digest
            return


def _spec_finding(space: _Space) -> Finding:
    again = "; ".join(dict.fromkeys(space.commands))
    step = f"{again} (with the options of before) writes it again, and computes nothing"
    if not again:
        step = "no dataset uses it, and `featx cache gc` removes its features"
    if space.kind == "spec":
        step = f"{_NEXT_STEPS['spec']}; {step}"
    path = space.folder if space.kind == "misnamed" else space.folder / "spec.json"
    step = step if space.kind == "spec" else _NEXT_STEPS.get(space.kind, step)
    return Finding(path, space.kind, space.reason, step, space.rows)


# Files of others


def _find_strays(layout: CacheLayout) -> Iterator[Finding]:
    """Find files that do not belong into a cache, and those that killed writers left in tmp/."""

    def is_hdf5(path: Path) -> bool:
        return path.suffix == ".h5"

    def belongs(path: Path) -> bool:
        return path.name in ("spec.json", "shards")

    folders = layout.space_folders()
    rules: list[tuple[str, Callable[[Path], bool], list[Path]]] = [
        ("datasets/ holds files NAME.h5", is_hdf5, [layout.datasets]),
        ("parts/ holds files DIGEST.h5", is_hdf5, [layout.parts]),
        ("indexes/ holds files SPACE.h5", is_hdf5, [layout.indexes]),
        ("spaces/ holds one folder a specification", Path.is_dir, [layout.spaces]),
        ("a space holds spec.json and shards/", belongs, folders),
        ("shards/ holds files ID.h5", is_hdf5, [folder / "shards" for folder in folders]),
    ]
    for rule, fits, of in rules:
        for path in (path for folder in of for path in list_folder(folder) if not fits(path)):
            yield Finding(path, "foreign", rule, _NEXT_STEPS["foreign"])
    for path in list_folder(layout.tmp):
        with suppress(FileNotFoundError):
            status = path.stat()
            age_s = time.time() - status.st_mtime
            if path.is_file() and age_s > _STALE_S:
                reason = (
                    f"an unfinished file of {status.st_size:,} bytes, {age_s / 3600:,.0f} h old"
                )
                yield Finding(path, "leftover", reason, _NEXT_STEPS["leftover"], 0)


# Shards


def _check_shard(space: _Space, path: Path) -> _Checked:
    size, rows = 0, None
    try:
        size = path.stat().st_size
        shard = read_shard(path, space.digest)
        rows = len(shard)
        if space.spec is not None:
            _check_dtypes(shard, space.spec.dtype)
        shard.check()
    except FileNotFoundError:
        return _Checked(gone=True)
    except OtherSpecError as error:
        digits = error.stated[:12]
        reason = f"holds features of the specification {digits}, not those of its folder"
        step = f"move it to the folder in spaces/ whose name ends in {digits}"
        return _Checked(size, findings=(Finding(path, "foreign", reason, step),))
    except CacheFormatError as error:
        kind = error_kind(error, "shard")
        if kind == "shard" and not _SHARD_NAME.fullmatch(path.name):
            kind = "foreign"  # no name that featx gives: somebody put it here
        return _Checked(size, findings=(Finding(path, kind, str(error), _NEXT_STEPS[kind], rows),))
    return _Checked(size, shard)


def _check_dtypes(shard: Shard, dtype: str) -> None:
    for tap, array in shard.taps.items():
        if array.dtype != np.dtype(dtype).newbyteorder("<"):
            raise CacheFormatError(f"{tap!r} is {array.dtype}, the specification says {dtype}")


def _take_out_misfits(space: _Space) -> list[Finding]:
    """Take shards whose rows are not as long as most of the space out of the sound ones."""
    rows = Counter[tuple[str, int]]()
    for shard in space.sound:
        for tap, array in shard.taps.items():
            rows[tap, array.shape[1]] += len(shard)
    usual = {tap: width for (tap, width), _ in reversed(rows.most_common())}
    agreeing, misfits = [], []
    for shard in space.sound:
        reasons = [
            f"{tap!r} has {array.shape[1]} values a row, in other shards {usual[tap]}"
            for tap, array in shard.taps.items()
            if array.shape[1] != usual[tap]
        ]
        if reasons:
            step = _NEXT_STEPS["shard"]
            misfits.append(Finding(shard.path, "shard", reasons[0], step, len(shard)))
        else:
            agreeing.append(shard)
    space.sound = agreeing
    return misfits


# Manifests


def _check_manifest(layout: CacheLayout, spaces: Mapping[str, _Space], path: Path) -> _Checked:
    size = 0
    try:
        size = path.stat().st_size
        manifest = read_manifest(path)
        parts = tuple({part.file_name for part in read_heading(path).parts})
        for name in parts:
            with suppress(FileNotFoundError):  # replaced and removed meanwhile
                size += (layout.parts / name).stat().st_size
        findings = list(_missing(path, manifest, spaces))
    except FileNotFoundError:
        return _Checked(gone=True)
    except CacheFormatError as error:
        kind = error_kind(error, "manifest")
        if kind == "manifest" and _made_by_others(path):
            kind = "foreign"
        step = _remake(path) if kind == "manifest" else _NEXT_STEPS[kind]
        return _Checked(size, findings=(Finding(path, kind, str(error), step),))
    right = layout.dataset(manifest.name).name
    if right != path.name:
        reason = f"describes the dataset {manifest.name!r}, but lies in {path.name}"
        findings.insert(0, Finding(path, "misnamed", reason, f"rename it to {right}"))
    return _Checked(size, manifest, parts, tuple(findings))


def _check_part(path: Path) -> Finding | None:
    """Return what is wrong with a part that no sound manifest names, None where nothing is."""
    if path.suffix != ".h5":
        return None
    try:
        read_part(path)
    except FileNotFoundError:
        return None
    except CacheFormatError as error:
        kind = error_kind(error, "part")
        if kind == "part" and "is not its name" in str(error):
            kind = "misnamed"
        elif kind == "part" and _made_by_others(path, PART_KIND):
            kind = "foreign"
        return Finding(path, kind, str(error), _NEXT_STEPS[kind])
    return None


def _made_by_others(path: Path, usual: str = MANIFEST_KIND) -> bool:
    """Return whether a file is sound HDF5 of another type: somebody's, not a damaged manifest."""
    import h5py

    try:
        # HDF5 keeps a checksum of the header that holds the type: damage does not look like this.
        with reading(path), h5py.File(path, "r", locking=False) as file:
            return "type" not in file.attrs or attribute(file, "type") != usual
    except FileNotFoundError:
        return False
    except CacheFormatError as error:
        # Refused by featx, not by HDF5: the file is sound, and featx does not write such types.
        origin: BaseException = error
        while origin.__cause__ is not None:
            origin = origin.__cause__
        return isinstance(origin, CacheFormatError | UnsafeFileError)


def _remake(path: Path) -> str:
    """Return how a damaged manifest is made again, from what can still be read of it."""
    data, backbones, step = path.stem, "", _NEXT_STEPS["manifest"]
    with suppress(CacheFormatError, FileNotFoundError):
        heading = read_heading(path)
        data, blocks = heading.root or data, heading.blocks
        imports = [block for block in blocks if block.backbone.startswith("import:")]
        if imports:
            return f"{step}; `{extract_command(data, imports[0])}` makes it anew"
        backbones = "".join(f" -b {name}" for name in dict.fromkeys(b.backbone for b in blocks))
    return f"{step}; the features stay, and `featx extract {data}{backbones}` makes it anew"


def _missing(path: Path, manifest: Manifest, spaces: Mapping[str, _Space]) -> Iterator[Finding]:
    """Find the images of a dataset that have no features in any sound shard."""
    rows = manifest.usable
    keys = manifest.key[rows]
    _, first, group = np.unique(whole_keys(keys), return_index=True, return_inverse=True)
    index = KeyIndex([keys[first]])
    for block in manifest.blocks:
        have = np.zeros(len(first), np.bool_)
        for shard in spaces[block.space].sound if block.space in spaces else ():
            if block.tap in shard.taps and not have.all():
                at = index.find(shard.keys.map())[1]
                have[at[at >= 0]] = True
        lacking = rows[~have[group.ravel()]]
        if not len(lacking):
            continue
        what = "rows" if block.backbone.startswith("import:") else "images"
        yield Finding(
            path,
            "missing",
            f"{len(lacking):,} of {len(rows):,} {what} have no features of {block.backbone} "
            f"{block.tap} in {block.space}",
            extract_again(manifest, block),
            len(lacking),
            tuple(manifest.path[row] for row in lacking[:_EXAMPLES]),
        )


# Journals of searches


def _check_journal(path: Path) -> Finding | None:
    """Return what is wrong with the journal of a search, None where nothing is."""
    try:
        _read_journal(path)
    except FileNotFoundError:
        return None
    except CacheFormatError as error:
        kind = error_kind(error, "journal")
        step = _NEXT_STEPS[kind]
        if kind == "journal":
            step += "; the same search measures these trials again"
        return Finding(path, kind, str(error), step)
    return None


def _read_journal(path: Path) -> None:
    """Refuse a journal with lines that do not have the checksum stated with them."""
    # The last one may be cut short by a kill, and a journal of featx 0.1 has no checksums at all.
    sound = damaged = without = 0
    with reading(path):
        lines = path.read_bytes().split(b"\n")[:-1]
    for line in filter(None, lines):
        try:
            read_json_with_checksum(line)
            sound += 1
        except ValueError as error:
            without += "no checksum" in str(error)
            damaged += 1
    if damaged and (sound or damaged > without):
        raise CacheFormatError(f"{damaged} lines are damaged")


# Indexes of keys


def _check_index(path: Path) -> Finding | None:
    """Return what is wrong with the index of a space, None where nothing is."""
    try:
        read_index(path).array.check()
    except FileNotFoundError:
        return None
    except CacheFormatError as error:
        kind = error_kind(error, "index")
        return Finding(path, kind, str(error), _NEXT_STEPS[kind])
    return None


# Repair


def repair_cache(
    layout: CacheLayout,
    *,
    dry_run: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Repair:
    """Verify a cache and remove what is bad in it; stopped at any instant, it can be run again."""
    report = verify_cache(layout, workers=workers, progress=progress)
    removed, size = [], 0
    for finding in report.findings:
        if finding.kind not in _REMOVABLE:
            continue
        # Nobody writes a dataset between the last look and the removal.
        exclusive = finding.kind in ("manifest", "part") and not dry_run
        with locked(layout.datasets) if exclusive else nullcontext(), writing(finding.path):
            if not _still_bad(finding):
                continue
            try:
                size_bytes = finding.path.stat().st_size
                if not dry_run:
                    finding.path.unlink()
            except FileNotFoundError:
                continue  # another repair was faster
        removed.append(finding)
        size += size_bytes
    return Repair(
        cache=layout.root,
        dry_run=dry_run,
        size_bytes=size,
        removed=tuple(removed),
        left=tuple(f for f in report.findings if f.kind not in {*_REMOVABLE, "missing"}),
        missing=tuple(f for f in report.findings if f.kind == "missing"),
    )


def _still_bad(finding: Finding) -> bool:
    """Look again at what an extraction may have replaced since it was verified."""
    read: dict[str, Callable[[Path], object]] = {
        "manifest": read_manifest,
        "part": read_part,
        "spec": lambda path: read_spec(path.parent),
        "journal": _read_journal,
        "index": lambda path: read_index(path).array.check(),
        "leftover": lambda path: time.time() - path.stat().st_mtime > _STALE_S,
        "shard": lambda _: True,  # it never changes
    }
    try:
        return read[finding.kind](finding.path) is True
    except CacheFormatError:
        return True
    except FileNotFoundError:
        return False
