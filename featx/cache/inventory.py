"""What lies in the folders of a cache: specifications, shards, strays and leftovers."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from featx.cache.findings import Finding, error_kind, list_folder, next_step
from featx.cache.integrity import stated_digest
from featx.cache.layout import CacheLayout, reading
from featx.cache.space import read_spec
from featx.exceptions import CacheFormatError
from featx.spec import FeatureSpec

STALE_S = 3600.0
"""Age from which a file in ``tmp/`` is taken for a leftover: no writer needs that long for one."""


@dataclass(frozen=True, slots=True)
class SpaceFiles:
    """The files of a space.

    Parameters
    ----------
    folder : Path
        The space.
    spec : FeatureSpec or None
        Its specification; None where it is not in order.
    digest : str or None
        What its shards have to state; None when only its first digits are known, from the folder.
    trouble : tuple (kind, reason) or None
        What is wrong with ``spec.json``.
    shards : tuple of Path
        The files in ``shards/``.
    """

    folder: Path
    spec: FeatureSpec | None
    digest: str | None
    trouble: tuple[str, str] | None
    shards: tuple[Path, ...]

    def holds(self, digest: str) -> bool:
        """Return whether features of a specification belong here."""
        return digest == self.digest if self.digest else digest.startswith(spec_digits(self.folder))


def spec_digits(folder: Path) -> str:
    """Return the digits of the specification's digest that end the name of a space."""
    return folder.name.rpartition("-")[2]


def list_shards(folder: Path) -> list[Path]:
    """Return the shards of a space, in the order in which readers take them."""
    return [path for path in list_folder(folder / "shards") if path.suffix == ".h5"]


def list_spaces(layout: CacheLayout) -> list[SpaceFiles]:
    """Read the specification of every space, and list its shards."""
    return [_look_at(folder) for folder in list_folder(layout.spaces) if folder.is_dir()]


def _look_at(folder: Path) -> SpaceFiles:
    shards = tuple(list_shards(folder))
    try:
        spec = read_spec(folder)
    except FileNotFoundError:
        # Without shards, a writer was stopped before it wrote anything, which is in order.
        trouble = ("no_spec", "the shards have no specification beside them") if shards else None
        return SpaceFiles(folder, None, None, trouble, shards)
    except CacheFormatError as error:
        kind, digest = _spec_trouble(folder, error, shards)
        return SpaceFiles(folder, None, digest, (kind, str(error)), shards)
    return SpaceFiles(folder, spec, spec.digest, None, shards)


def _spec_trouble(
    folder: Path, error: CacheFormatError, shards: Sequence[Path]
) -> tuple[str, str | None]:
    """Return the kind of trouble, and the digest where it can be trusted all the same."""
    if error_kind(error, "spec") == "unreadable":
        return "unreadable", None
    try:
        with reading(folder):
            data = json.loads((folder / "spec.json").read_text("utf-8"))
            text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    except (CacheFormatError, FileNotFoundError):
        return "spec", None
    digest = hashlib.sha256(text.encode("ascii")).hexdigest()
    if digest.startswith(spec_digits(folder)):
        return "later", digest  # whole, as the folder's name proves, but not for this featx
    for path in shards:
        try:
            # Shards of a folder that was renamed agree with the specification.
            return ("misnamed", digest) if stated_digest(path) == digest else ("spec", None)
        except (CacheFormatError, FileNotFoundError):
            continue
    return "spec", None


def find_strays(layout: CacheLayout) -> Iterator[Finding]:
    """Find files that do not belong into a cache, and those that killed writers left in tmp/."""
    for path in list_folder(layout.datasets):
        if path.suffix != ".h5":
            yield _foreign(path, "datasets/ holds files NAME.h5")
    for folder in list_folder(layout.spaces):
        if not folder.is_dir():
            yield _foreign(folder, "spaces/ holds one folder a specification")
            continue
        for path in list_folder(folder):
            if path.name not in ("spec.json", "shards"):
                yield _foreign(path, "a space holds spec.json and shards/")
        for path in list_folder(folder / "shards"):
            if path.suffix != ".h5":
                yield _foreign(path, "shards/ holds files ID.h5")
    for path in list_folder(layout.tmp):
        try:
            found = path.stat()
        except FileNotFoundError:
            continue
        age_s = time.time() - found.st_mtime
        if path.is_file() and age_s > STALE_S:
            reason = f"an unfinished file of {found.st_size:,} bytes, {age_s / 3600:,.0f} h old"
            yield Finding(path, "leftover", reason, next_step("leftover"), 0)


def _foreign(path: Path, reason: str) -> Finding:
    return Finding(path, "foreign", reason, next_step("foreign"))
