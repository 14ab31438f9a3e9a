"""`verify_cache`: read every byte of a cache again, and say what is wrong with which file."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from featx.cache.findings import (
    Finding,
    check_is_cache,
    error_kind,
    extract_again,
    extract_command,
    list_folder,
    made_by_others,
    next_step,
)
from featx.cache.hdf5 import open_checked, read_strings
from featx.cache.integrity import check_shard, count_damaged_lines, stated_digest
from featx.cache.inventory import SpaceFiles, find_strays, list_spaces
from featx.cache.key_index import KeyIndex
from featx.cache.layout import CacheLayout
from featx.cache.manifest import DUPLICATE, OK, Block, Manifest, read_manifest
from featx.cache.shard import Shard, read_shard
from featx.exceptions import CacheFormatError

Progress = Callable[[int, int, int], None]
_SHARD_NAME = re.compile(r"[0-9a-f]{32}\.h5")
_EXAMPLES = 5
_ATTEMPTS = 3


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
        Size of the shards and manifests that were read.
    findings : tuple of Finding
        What is wrong: files first, then the datasets that suffer from them.
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
    """A file that was read: the shard where it is a sound one, the commands that fill a space."""

    size_bytes: int = 0
    shard: Shard | None = None
    findings: tuple[Finding, ...] = ()
    commands: tuple[tuple[str, str], ...] = ()
    gone: bool = False


@dataclass(slots=True)
class _Tally:
    """Keeps what was checked, and tells how far it is."""

    total: int
    progress: Progress | None
    checked: list[_Checked] = field(default_factory=list)
    bad: int = 0

    def take(self, results: Iterable[_Checked]) -> list[_Checked]:
        start = len(self.checked)
        for result in results:
            self.checked.append(result)
            self.bad += bool(result.findings)
            if self.progress:
                self.progress(len(self.checked), self.total, self.bad)
        return self.checked[start:]


def verify_cache(
    layout: CacheLayout, *, workers: int | None = None, progress: Progress | None = None
) -> Verification:
    """Read every file of a cache again and compare it with its digests.

    Nothing is written. Memory is bounded: a thread holds 256 KiB of features, or one manifest.

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
    spaces = list_spaces(layout)
    manifests = [path for path in list_folder(layout.datasets) if path.suffix == ".h5"]
    tally = _Tally(sum(len(space.shards) for space in spaces) + len(manifests), progress)
    sound: dict[str, list[Shard]] = {}
    odd: list[Finding] = []
    with ThreadPoolExecutor(threads) as pool:
        for space in spaces:
            results = tally.take(pool.map(_check_shard, space.shards, [space] * len(space.shards)))
            shards = [result.shard for result in results if result.shard is not None]
            sound[space.folder.name], misfits = _agreeing(shards)
            odd += misfits
        tally.take(pool.map(lambda path: _check_manifest(layout, path, sound), manifests))
        searches = [path for path in list_folder(layout.searches) if path.suffix == ".jsonl"]
        odd += [finding for finding in pool.map(check_journal, searches) if finding is not None]
    commands: dict[str, list[str]] = {}
    for result in tally.checked:
        for space_name, command in result.commands:
            commands.setdefault(space_name, []).append(command)
    rows = {name: sum(len(shard) for shard in shards) for name, shards in sound.items()}
    findings = [
        *(finding for space in spaces for finding in _spec_finding(space, rows, commands)),
        *find_strays(layout),
        *odd,
        *(finding for result in tally.checked for finding in result.findings),
    ]
    report = Verification(
        cache=layout.root,
        files=sum(not result.gone for result in tally.checked)
        + sum((space.folder / "spec.json").exists() for space in spaces),
        rows=sum(rows.values()),
        size_bytes=sum(result.size_bytes for result in tally.checked),
        findings=tuple(sorted(findings, key=lambda finding: finding.kind == "missing")),
    )
    return report, any(result.gone for result in tally.checked)


def _check_shard(path: Path, space: SpaceFiles) -> _Checked:
    size, rows = 0, None
    try:
        size = path.stat().st_size
        digest = stated_digest(path)
        if not space.holds(digest):
            reason = f"holds features of the specification {digest[:12]}, not those of its folder"
            step = f"move it to the folder in spaces/ whose name ends in {digest[:12]}"
            return _Checked(size, findings=(Finding(path, "foreign", reason, step),))
        shard = read_shard(path, digest)
        rows = len(shard)
        if space.spec is not None:
            _check_dtypes(shard, space.spec.dtype)
        check_shard(shard)
    except FileNotFoundError:
        return _Checked(gone=True)
    except CacheFormatError as error:
        kind = error_kind(error, "shard")
        if kind == "shard" and not _SHARD_NAME.fullmatch(path.name):
            kind = "foreign"  # no name that featx gives: somebody put it here
        return _Checked(size, findings=(Finding(path, kind, str(error), next_step(kind), rows),))
    return _Checked(size, shard)


def _check_dtypes(shard: Shard, dtype: str) -> None:
    for tap, array in shard.taps.items():
        if array.dtype != np.dtype(dtype).newbyteorder("<"):
            raise CacheFormatError(f"{tap!r} is {array.dtype}, the specification says {dtype}")


def _agreeing(shards: Sequence[Shard]) -> tuple[list[Shard], list[Finding]]:
    """Part shards whose rows are as long as most of the space from those that are not."""
    rows: dict[str, dict[int, int]] = {}
    for shard in shards:
        for tap, array in shard.taps.items():
            widths = rows.setdefault(tap, {})
            widths[array.shape[1]] = widths.get(array.shape[1], 0) + len(shard)
    usual = {tap: max(widths, key=lambda width: widths[width]) for tap, widths in rows.items()}
    agreeing, odd = [], []
    for shard in shards:
        reasons = [
            f"{tap!r} has {array.shape[1]} values a row, in other shards {usual[tap]}"
            for tap, array in shard.taps.items()
            if array.shape[1] != usual[tap]
        ]
        if reasons:
            step = next_step("shard")
            odd.append(Finding(shard.path, "shard", reasons[0], step, len(shard)))
        else:
            agreeing.append(shard)
    return agreeing, odd


def _check_manifest(
    layout: CacheLayout, path: Path, sound: Mapping[str, Sequence[Shard]]
) -> _Checked:
    size = 0
    try:
        size = path.stat().st_size
        manifest = read_manifest(path)
        findings = list(_missing(path, manifest, sound))
    except FileNotFoundError:
        return _Checked(gone=True)
    except CacheFormatError as error:
        kind = error_kind(error, "manifest")
        if kind == "manifest" and made_by_others(path, "featx-manifest"):
            kind = "foreign"
        step = _remake(path) if kind == "manifest" else next_step(kind)
        return _Checked(size, findings=(Finding(path, kind, str(error), step),))
    right = layout.dataset(manifest.name).name
    if right != path.name:
        reason = f"describes the dataset {manifest.name!r}, but lies in {path.name}"
        findings.insert(0, Finding(path, "misnamed", reason, f"rename it to {right}"))
    commands = [(block.space, extract_command(manifest.name, block)) for block in manifest.blocks]
    return _Checked(size, findings=tuple(findings), commands=tuple(commands))


def check_journal(path: Path) -> Finding | None:
    """Return what is wrong with the journal of a search, None where nothing is."""
    try:
        damaged = count_damaged_lines(path)
    except FileNotFoundError:
        return None
    except CacheFormatError as error:
        kind = error_kind(error, "journal")
        return Finding(path, kind, str(error), next_step(kind))
    if not damaged:
        return None
    step = f"{next_step('journal')}; the same search measures these trials again"
    return Finding(path, "journal", f"{damaged} lines are damaged", step)


def _remake(path: Path) -> str:
    """Return how a damaged manifest is made again, from what can still be read of it."""
    data, backbones = path.stem, ""
    try:
        with open_checked(path, "featx-manifest") as file:
            header = json.loads(read_strings(file, "header")[0])
            data = header["root"] or data
            blocks = [Block(*block) for block in header["blocks"]]
            imports = [b for b in blocks if b.backbone.startswith("import:")]
            if imports:
                command = extract_command(data, imports[0])
                return f"{next_step('manifest')}; `{command}` makes it anew"
            backbones = "".join(f" -b {name}" for name in dict.fromkeys(b.backbone for b in blocks))
    except (CacheFormatError, FileNotFoundError):
        pass
    return (
        f"{next_step('manifest')}; the features stay, and `featx extract {data}{backbones}` makes "
        "it anew"
    )


def _missing(
    path: Path, manifest: Manifest, sound: Mapping[str, Sequence[Shard]]
) -> Iterator[Finding]:
    """Find the images of a dataset that have no features in any sound shard."""
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


def _spec_finding(
    space: SpaceFiles, rows: Mapping[str, int], commands: Mapping[str, Sequence[str]]
) -> Iterator[Finding]:
    if space.trouble is None:
        return
    kind, reason = space.trouble
    name = space.folder.name
    again = "; ".join(dict.fromkeys(commands.get(name, ())))
    rewrite = f"{again} (with the options of before) writes it again, and computes nothing"
    if not again:
        rewrite = "no dataset uses it, and `featx cache gc` removes its features"
    steps = {"spec": f"{next_step(kind)}; {rewrite}", "no_spec": rewrite}
    path = space.folder if kind == "misnamed" else space.folder / "spec.json"
    yield Finding(path, kind, reason, steps.get(kind, next_step(kind)), rows[name])
