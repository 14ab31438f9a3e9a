"""`repair_cache`: remove what verification found to be bad, so that it is computed again."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from featx.cache.findings import REMOVABLE, Finding
from featx.cache.inventory import STALE_S
from featx.cache.layout import CacheLayout, writing
from featx.cache.manifest import read_manifest
from featx.cache.replacing import locked
from featx.cache.space import read_spec
from featx.cache.verification import Progress, check_journal, verify_cache
from featx.exceptions import CacheFormatError


@dataclass(frozen=True, slots=True)
class Repair:
    """What a repair did, or would do.

    Parameters
    ----------
    cache : Path
        The cache.
    dry_run : bool
        Whether nothing was removed.
    size_bytes : int
        Size of the files that go.
    removed : tuple of Finding
        Damaged shards, manifests, specifications and journals, and leftovers of killed writers.
    left : tuple of Finding
        What a person has to decide about.
    missing : tuple of Finding
        Datasets with images to extract again, how many and the first of them.
    """

    cache: Path
    dry_run: bool
    size_bytes: int
    removed: tuple[Finding, ...]
    left: tuple[Finding, ...]
    missing: tuple[Finding, ...]


def repair_cache(
    layout: CacheLayout,
    *,
    dry_run: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Repair:
    """Verify a cache and remove what is bad in it; nothing else is touched.

    Rows of a shard that was removed are missing from then on, and the next extraction computes
    them. Stopped at any instant, it can be run again.

    Parameters
    ----------
    layout : CacheLayout
        The cache.
    dry_run : bool, default False
        Only say what would be removed.
    workers, progress
        As in `featx.cache.verification.verify_cache`.

    Raises
    ------
    CacheWriteError
        If a file cannot be removed.
    """
    report = verify_cache(layout, workers=workers, progress=progress)
    removed, size = [], 0
    for finding in report.findings:
        if finding.kind not in REMOVABLE:
            continue
        # Nobody writes a dataset between the last look and the removal.
        lock = (
            locked(layout.datasets) if finding.kind == "manifest" and not dry_run else nullcontext()
        )
        with lock, writing(finding.path):
            if not _still_bad(finding):
                continue
            try:
                bytes_ = finding.path.stat().st_size
                if not dry_run:
                    finding.path.unlink()
            except FileNotFoundError:
                continue  # another repair was faster
        removed.append(finding)
        size += bytes_
    return Repair(
        cache=layout.root,
        dry_run=dry_run,
        size_bytes=size,
        removed=tuple(removed),
        left=tuple(f for f in report.findings if f.kind not in {*REMOVABLE, "missing"}),
        missing=tuple(f for f in report.findings if f.kind == "missing"),
    )


def _still_bad(finding: Finding) -> bool:
    """Look again at what an extraction may have replaced since it was verified."""
    try:
        if finding.kind == "manifest":
            read_manifest(finding.path)
        elif finding.kind == "spec":
            read_spec(finding.path.parent)
        elif finding.kind == "journal":
            return check_journal(finding.path) is not None
        elif finding.kind == "leftover":
            return time.time() - finding.path.stat().st_mtime > STALE_S
        else:
            return True  # a shard never changes
    except CacheFormatError:
        return True
    except FileNotFoundError:
        return False
    return False
