"""What can be wrong with a file of a cache, and what is to be done about it."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from pathlib import Path

from featx.cache.hdf5 import attribute
from featx.cache.layout import CacheLayout, reading
from featx.cache.manifest import Block, Manifest
from featx.exceptions import CacheError, CacheFormatError
from featx.files.claims import UnsafeFileError

REMOVABLE = frozenset({"shard", "manifest", "spec", "journal", "leftover"})
"""Kinds that `repair` removes; it leaves all others, for they may be somebody's only copy."""

# A file that cannot be reached may be whole: another user, another moment or another disk reads it.
_OUT_OF_REACH = {
    errno.EACCES,
    errno.EAGAIN,
    errno.EBUSY,
    errno.EIO,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.EPERM,
    errno.ESTALE,
    errno.ETIMEDOUT,
}


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong.

    Parameters
    ----------
    path : Path
        The file or folder.
    kind : str
        ``shard``, ``manifest``, ``spec``, ``journal`` (damaged), ``leftover`` (an unfinished file
        in ``tmp/``): these `repair` removes. ``missing`` (a dataset's images without features),
        ``no_spec``, ``foreign``, ``misnamed``, ``later`` (of a later version of featx),
        ``unreadable`` (out of reach, perhaps whole): these stay as they are.
    reason : str
        What was expected and what was found.
    next_step : str
        What to do.
    rows : int or None, default None
        Number of rows that are affected; None where nobody can tell.
    examples : tuple of str, default ()
        Paths of the first images that are affected.
    """

    path: Path
    kind: str
    reason: str
    next_step: str
    rows: int | None = None
    examples: tuple[str, ...] = ()


_NEXT_STEPS = {
    "foreign": "move it out of the cache",
    "later": "upgrade featx",
    "unreadable": "see to its permissions and its disk, then verify again",
    "misnamed": "give it its name back",
}


def next_step(kind: str) -> str:
    """Return what to do about a finding of a kind of which there is no more to say."""
    return _NEXT_STEPS.get(kind, "`featx cache repair` removes it")


def error_kind(error: BaseException, damaged: str) -> str:
    """Return the kind of finding that an error of reading stands for.

    Parameters
    ----------
    error : BaseException
        What reading raised.
    damaged : str
        The kind when the content is to blame.
    """
    if "upgrade featx" in str(error):
        return "later"
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _OUT_OF_REACH:
            return "unreadable"
        cause = cause.__cause__
    return damaged


def made_by_others(path: Path, kind: str) -> bool:
    """Return whether a file is sound HDF5 of another type: somebody's, not a damaged one of ours.

    HDF5 keeps a checksum of the header that holds the type, so damage does not look like this.
    """
    import h5py

    try:
        with reading(path), h5py.File(path, "r", locking=False) as file:
            return "type" not in file.attrs or attribute(file, "type") != kind
    except FileNotFoundError:
        return False
    except CacheFormatError as error:
        # Refused by featx, not by HDF5: what it says can be read, and is nothing that featx writes.
        origin: BaseException = error
        while origin.__cause__ is not None:
            origin = origin.__cause__
        return isinstance(origin, CacheFormatError | UnsafeFileError)


def check_is_cache(layout: CacheLayout) -> None:
    """Refuse a folder that holds no cache, so that a mistyped name is not found to be in order.

    Raises
    ------
    CacheError
        If there is neither ``spaces/`` nor ``datasets/`` in it.
    """
    if not (layout.spaces.is_dir() or layout.datasets.is_dir()):
        raise CacheError(
            f"no cache at {layout.root}: expected a folder with spaces/ and datasets/ in it; name "
            "the one that `featx extract` filled"
        )


def list_folder(folder: Path) -> list[Path]:
    """Return what is in a folder, sorted, without names that begin with a dot.

    Those belong to the system: ``.nfs...`` is a file that was removed while somebody has it open.
    """
    try:
        with reading(folder):
            return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except FileNotFoundError:
        return []


_OWN = {
    "file": "file:PATH.keras",
    "savedmodel": "savedmodel:FOLDER --trust",
    "hub": "hub:FOLDER",
}


def extract_command(data: str, block: Block) -> str:
    """Return the command that computes a block of a dataset again, or brings it in again."""
    if block.backbone.startswith("import:"):
        # Under the name of the first import, which the space of a renamed dataset keeps.
        return f"featx import {_quoted(block.backbone.removeprefix('import:'))} FILE"
    tap = "" if block.tap == "avg" else f" --tap {block.tap}"
    backbone = _OWN.get(block.backbone.partition(":")[0], block.backbone)
    views = "" if block.view is None else f" --views {block.view + 1}"
    return f"featx extract {_quoted(data)} -b {backbone}{tap}{views}"


def extract_again(manifest: Manifest, block: Block) -> str:
    """Return what to do to compute features of a dataset again that were lost."""
    command = extract_command(manifest.name, block)
    if block.backbone.startswith("import:"):
        return f"import the same features again: {command}"
    if manifest.source == "arrays":
        return f"extract the same arrays again under the name {manifest.name!r}"
    return f"{command} (with the options of before)"


def _quoted(text: str) -> str:
    return f"'{text}'" if " " in text else text
