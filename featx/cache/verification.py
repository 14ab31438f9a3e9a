"""`verify_cache`: read every byte of a cache again, and say what is wrong with which file."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from featx.cache.findings import (
    Finding,
    check_is_cache,
    error_kind,
    extract_command,
    list_folder,
    made_by_others,
)
from featx.cache.integrity import check_shard, stated_digest
from featx.cache.key_index import KeyIndex
from featx.cache.layout import CacheLayout, reading
from featx.cache.manifest import DUPLICATE, OK, Manifest, read_manifest
from featx.cache.shard import Shard, read_shard
from featx.cache.space import read_spec
from featx.exceptions import CacheFormatError
from featx.spec import FeatureSpec

__all__ = ["STALE_S", "Verification", "verify_cache"]

STALE_S = 3600.0
"""Age from which a file in ``tmp/`` is taken for a leftover: no writer needs that long for one."""

Progress = Callable[[int, int, int], None]
_SHARD_NAME = re.compile(r"[0-9a-f]{32}\.h5")
_EXAMPLES = 5
_REPAIR = "`featx cache repair` removes it"


@dataclass(frozen=True, slots=True)
class Verification:
    """What a verification found.

    Parameters
    ----------
    cache : Path
        The cache.
    files : int
        Number of shards, manifests and specifications that were read.
    rows : int
        Number of rows in sound shards.
    size_bytes : int
        Bytes of the files that were read.
    findings : tuple of Finding
        What is wrong, files before the datasets that suffer from them.
    """

    cache: Path
    files: int
    rows: int
    size_bytes: int
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings


@dataclass(frozen=True, slots=True)
class _Checked:
    """One file that was read; `shard` only where it is sound, `commands` by space."""

    size_bytes: int = 0
    shard: Shard | None = None
    findings: tuple[Finding, ...] = ()
    commands: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class _SpaceFiles:
    """A space: its specification where it can be read, and the files in shards/."""

    folder: Path
    spec: FeatureSpec | None
    digest: str | None
    finding: Finding | None
    shards: tuple[Path, ...]


def verify_cache(
    layout: CacheLayout, *, workers: int | None = None, progress: Progress | None = None
) -> Verification:
    """Read every file of a cache again and compare it with its digests.

    Nothing is written. Memory is bounded: 1 MiB a thread, and the keys of one dataset a thread.

    Parameters
    ----------
    layout : CacheLayout
        The cache.
    workers : int, optional
        Number of threads, by default one a core, 8 at most.
    progress : callable, optional
        Called with the numbers of files done, in all, and with findings.

    Raises
    ------
    CacheError
        If there is no cache, or one of its folders cannot be listed.
    """
    check_is_cache(layout)
    spaces = [_look_at(folder) for folder in list_folder(layout.spaces) if folder.is_dir()]
    manifests = [path for path in list_folder(layout.datasets) if path.suffix == ".h5"]
    total = sum(len(space.shards) for space in spaces) + len(manifests)
    done = bad = 0
    checked: list[_Checked] = []

    def take(results: Iterator[_Checked | None]) -> Iterator[_Checked]:
        nonlocal done, bad
        for result in results:
            done += 1
            bad += bool(result and result.findings)
            if progress:
                progress(done, total, bad)
            if result is not None:
                checked.append(result)
                yield result

    with ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as pool:
        tasks = [(path, space) for space in spaces for path in space.shards]
        sound: dict[str, list[Shard]] = {space.folder.name: [] for space in spaces}
        for result in take(pool.map(lambda task: _check_shard(*task), tasks)):
            if result.shard is not None:
                sound[result.shard.path.parent.parent.name].append(result.shard)
        odd = [finding for space in spaces for finding in _odd_widths(sound[space.folder.name])]
        for result in take(pool.map(lambda path: _check_manifest(layout, path, sound), manifests)):
            pass
    commands: dict[str, list[str]] = {}
    for result in checked:
        for space_name, command in result.commands:
            commands.setdefault(space_name, []).append(command)
    rows = {name: sum(len(shard) for shard in shards) for name, shards in sound.items()}
    found = [
        *(f for space in spaces for f in _spec_findings(space, rows, commands)),
        *_foreign(layout),
        *_leftovers(layout),
        *odd,
        *(finding for result in checked for finding in result.findings),
    ]
    return Verification(
        cache=layout.root,
        files=len(checked) + sum(space.spec is not None for space in spaces),
        rows=sum(rows.values()),
        size_bytes=sum(result.size_bytes for result in checked),
        findings=tuple(sorted(found, key=lambda finding: finding.kind == "missing")),
    )


def _look_at(folder: Path) -> _SpaceFiles:
    """Read the specification of a space and list its shards."""
    shards = tuple(path for path in list_folder(folder / "shards") if path.suffix == ".h5")
    path = folder / "spec.json"
    try:
        spec = read_spec(folder)
    except FileNotFoundError:
        finding = Finding(path, "no_spec", "the shards have no specification beside them", "")
        return _SpaceFiles(folder, None, None, finding if shards else None, shards)
    except CacheFormatError as error:
        kind, digest = _spec_kind(folder, error, shards)
        return _SpaceFiles(folder, None, digest, Finding(path, kind, str(error), ""), shards)
    return _SpaceFiles(folder, spec, spec.digest, None, shards)


def _spec_kind(folder: Path, error: Exception, shards: Sequence[Path]) -> tuple[str, str | None]:
    """Return what is wrong with a specification, and its digest where it can be trusted."""
    if error_kind(error, "spec") == "unreadable":
        return "unreadable", None
    try:
        with reading(folder):
            data = json.loads((folder / "spec.json").read_text("utf-8"))
            text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    except (CacheFormatError, FileNotFoundError):
        return "spec", None
    digest = hashlib.sha256(text.encode("ascii")).hexdigest()
    if digest.startswith(_digits(folder)):
        return "later", digest  # whole, as its folder's name says, but this featx cannot read it
    for path in shards:
        try:
            # Of a folder that was renamed, the shards agree with the specification.
            return ("misnamed", digest) if stated_digest(path) == digest else ("spec", None)
        except (CacheFormatError, FileNotFoundError):
            continue
    return "spec", None


def _digits(folder: Path) -> str:
    return folder.name.rpartition("-")[2]


def _check_shard(path: Path, space: _SpaceFiles) -> _Checked | None:
    """Read a shard; None when it has gone meanwhile."""
    rows: int | None = None
    try:
        size = path.stat().st_size
        digest = stated_digest(path)
        fits = digest == space.digest if space.digest else digest.startswith(_digits(space.folder))
        if not fits:
            reason = f"holds features of the specification {digest[:12]}, not those of its folder"
            step = f"move it into the folder of spaces/ whose name ends in {digest[:12]}"
            return _Checked(size, findings=(Finding(path, "foreign", reason, step),))
        shard = read_shard(path, digest)
        rows = len(shard)
        if space.spec is not None:
            for tap, array in shard.taps.items():
                if array.dtype != np.dtype(space.spec.dtype).newbyteorder("<"):
                    raise CacheFormatError(
                        f"{tap!r} is of {array.dtype}, the specification of {space.spec.dtype}"
                    )
        check_shard(shard)
    except FileNotFoundError:
        return None
    except CacheFormatError as error:
        kind = error_kind(error, "shard")
        if kind == "shard" and not _SHARD_NAME.fullmatch(path.name):
            kind = "foreign"
        return _Checked(size, findings=(_file_finding(path, kind, str(error), rows),))
    return _Checked(size, shard)


def _file_finding(path: Path, kind: str, reason: str, rows: int | None = None) -> Finding:
    steps = {
        "foreign": "move it out of the cache",
        "later": "upgrade featx",
        "unreadable": "see to its permissions and its disk, then verify again",
    }
    return Finding(path, kind, reason, steps.get(kind, _REPAIR), rows)


def _odd_widths(shards: list[Shard]) -> Iterator[Finding]:
    """Find shards whose vectors are not as long as most of the space; take them from the list."""
    rows: dict[str, dict[int, int]] = {}
    for shard in shards:
        for tap, array in shard.taps.items():
            by_width = rows.setdefault(tap, {})
            by_width[array.shape[1]] = by_width.get(array.shape[1], 0) + len(shard)
    usual = {tap: max(by_width, key=lambda width: by_width[width]) for tap, by_width in rows.items()}
    for shard in list(shards):
        for tap, array in shard.taps.items():
            if array.shape[1] != usual[tap]:
                shards.remove(shard)
                reason = f"{tap!r} has {array.shape[1]} values a row, others have {usual[tap]}"
                yield _file_finding(shard.path, "shard", reason, len(shard))
                break


def _check_manifest(
    layout: CacheLayout, path: Path, sound: dict[str, list[Shard]]
) -> _Checked | None:
    """Read a manifest and look for its features; None when it has gone meanwhile."""
    try:
        size = path.stat().st_size
        manifest = read_manifest(path)
    except FileNotFoundError:
        return None
    except CacheFormatError as error:
        kind = error_kind(error, "manifest")
        if kind == "manifest" and made_by_others(path, "featx-manifest"):
            kind = "foreign"
        finding = _file_finding(path, kind, str(error))
        if kind == "manifest":
            finding = replace(finding, next_step=_remake(path))
        return _Checked(size, findings=(finding,))
    findings = []
    if layout.dataset(manifest.name) != path:
        reason = f"describes the dataset {manifest.name!r}, but lies in {path.name}"
        step = f"rename it to {layout.dataset(manifest.name).name}"
        findings.append(Finding(path, "misnamed", reason, step))
    findings += _missing(path, manifest, sound)
    commands = [(block.space, extract_command(manifest.name, block)) for block in manifest.blocks]
    return _Checked(size, findings=tuple(findings), commands=tuple(commands))


def _remake(path: Path) -> str:
    """Return how a damaged manifest is made again, with what can still be read of it."""
    from featx.cache.hdf5 import open_checked, read_strings

    step = f"{_REPAIR}; the features stay, and extracting "
    try:
        with open_checked(path, "featx-manifest") as file:
            header = json.loads(read_strings(file, "header")[0])
            root, blocks = header["root"], header["blocks"]
    except (CacheFormatError, FileNotFoundError):
        return f"{step}{path.stem} again makes it anew"
    backbones = " ".join(f"-b {name}" for name in dict.fromkeys(block[0] for block in blocks))
    return f"{step}again makes it anew: featx extract {root or path.stem} {backbones}".rstrip()


def _missing(path: Path, manifest: Manifest, sound: dict[str, list[Shard]]) -> Iterator[Finding]:
    """Find the rows of a dataset that have no features in any sound shard."""
    rows = np.flatnonzero(np.isin(manifest.status, (OK, DUPLICATE)))
    whole = np.ascontiguousarray(manifest.key[rows]).view("V32").ravel()
    _, first, group = np.unique(whole, return_index=True, return_inverse=True)
    index = KeyIndex([manifest.key[rows][first]])
    for block in manifest.blocks:
        have = np.zeros(len(first), np.bool_)
        for shard in sound.get(block.space, ()):
            if block.tap in shard.taps and not have.all():
                place = index.find(shard.keys.map())[1]
                have[place[place >= 0]] = True
        lacking = rows[~have[group.ravel()]]
        if not len(lacking):
            continue
        step = extract_command(manifest.name, block)
        if manifest.source == "arrays":
            step = f"extract the same arrays again under the name {manifest.name!r}"
        yield Finding(
            path,
            "missing",
            f"{len(lacking):,} of {len(rows):,} images have no features of {block.backbone} "
            f"{block.tap} in {block.space}",
            f"{step} (with the options of before)",
            len(lacking),
            tuple(manifest.path[row] for row in lacking[:_EXAMPLES]),
        )


def _spec_findings(
    space: _SpaceFiles, rows: dict[str, int], commands: dict[str, list[str]]
) -> Iterator[Finding]:
    if space.finding is None:
        return
    name = space.folder.name
    again = "; ".join(dict.fromkeys(commands.get(name, ()))) or "none of the datasets uses it"
    rewrite = f"the next extraction with the same options writes it again: {again}"
    step = {
        "spec": f"{_REPAIR}; {rewrite}",
        "no_spec": rewrite,
        "misnamed": "give the folder its name back",
    }.get(space.finding.kind) or _file_finding(space.folder, space.finding.kind, "").next_step
    yield replace(space.finding, next_step=step, rows=rows[name])


def _foreign(layout: CacheLayout) -> Iterator[Finding]:
    """Find what does not belong into the folders of spaces and datasets."""
    for path in list_folder(layout.datasets):
        if path.suffix != ".h5":
            yield _file_finding(path, "foreign", "datasets/ holds files NAME.h5")
    for folder in list_folder(layout.spaces):
        if not folder.is_dir():
            yield _file_finding(folder, "foreign", "spaces/ holds one folder a specification")
            continue
        for path in list_folder(folder):
            if path.name not in ("spec.json", "shards"):
                yield _file_finding(path, "foreign", "a space holds spec.json and shards/")
        for path in list_folder(folder / "shards"):
            if path.suffix != ".h5":
                yield _file_finding(path, "foreign", "shards/ holds files ID.h5")


def _leftovers(layout: CacheLayout) -> Iterator[Finding]:
    """Find files that a writer left behind when it was killed."""
    for path in list_folder(layout.tmp):
        try:
            found = path.stat()
        except FileNotFoundError:
            continue
        age_s = time.time() - found.st_mtime
        if path.is_file() and age_s > STALE_S:
            reason = f"an unfinished file of {found.st_size:,} bytes, {age_s / 3600:,.0f} h old"
            yield Finding(path, "leftover", reason, _REPAIR, 0)
