"""Where things are in a cache folder, and how a file gets into it."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from featx.exceptions import CacheFormatError, CacheWriteError, FeatxError, reason
from featx.files.durable import written_whole
from featx.spec import FeatureSpec, folder_name


@dataclass(frozen=True, slots=True)
class CacheLayout:
    """The folders of the cache at `root`, which is made when a file is first written into it."""

    root: Path

    @classmethod
    def at(cls, cache: str | os.PathLike[str] | None = None) -> CacheLayout:
        """Return the cache at a path, else at ``FEATX_CACHE``, else at ``cache``."""
        chosen = os.fspath(cache) if cache is not None else os.environ.get("FEATX_CACHE")
        return cls(Path(chosen or "cache").expanduser())

    @property
    def spaces(self) -> Path:
        """One folder a specification."""
        return self.root / "spaces"

    @property
    def datasets(self) -> Path:
        """One manifest a dataset."""
        return self.root / "datasets"

    @property
    def engines(self) -> Path:
        """Converted models."""
        return self.root / "engines"

    @property
    def checked(self) -> Path:
        """One file a space: which of its shards were compared with their digests."""
        return self.root / "checked"

    @property
    def searches(self) -> Path:
        """One journal of finished trials a search."""
        return self.root / "searches"

    @property
    def tmp(self) -> Path:
        """Where files are written before they are renamed."""
        return self.root / "tmp"

    def free_bytes(self) -> int:
        """Bytes that are free where the cache is, or would be."""
        root = self.root.resolve()
        existing = next(folder for folder in (root, *root.parents) if folder.exists())
        return shutil.disk_usage(existing).free

    def space(self, spec: FeatureSpec) -> Path:
        """Folder of the space of a specification."""
        return self.spaces / spec.name

    def dataset(self, name: str) -> Path:
        """Manifest of a dataset."""
        return self.datasets / f"{folder_name(name)}.h5"

    def space_folders(self) -> list[Path]:
        """Return the folders of all spaces."""
        return [folder for folder in list_folder(self.spaces) if folder.is_dir()]

    def manifests(self) -> list[Path]:
        """Return the manifests of all datasets."""
        return [path for path in list_folder(self.datasets) if path.suffix == ".h5"]


def list_shards(folder: Path) -> list[Path]:
    """Return the shards of a space, in the order in which readers take them."""
    return [path for path in list_folder(folder / "shards") if path.suffix == ".h5"]


def list_folder(folder: Path) -> list[Path]:
    """Return what is in a folder, sorted, without names that begin with a dot."""
    # Those belong to the system: .nfs... is a file that was removed while somebody has it open.
    try:
        with reading(folder):
            paths = folder.iterdir() if folder.is_dir() else ()
            return sorted(path for path in paths if not path.name.startswith("."))
    except FileNotFoundError:
        return []


def publish(
    layout: CacheLayout,
    target: Path,
    write: Callable[[Path], None],
    *,
    move: Callable[[Path, Path], None] | None = None,
) -> None:
    """Write a file into ``tmp/`` and rename it to `target`, so that no reader sees half of it.

    By default it replaces whatever is there; `move` is another way to rename, such as
    `FileVersion.move`. When anything fails, the unfinished file is removed.
    """
    temporary = layout.tmp / f"{secrets.token_hex(8)}-{target.name}"
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        layout.tmp.mkdir(parents=True, exist_ok=True)
        with written_whole(target, temporary=temporary, move=move):
            write(temporary)


def publish_bytes(layout: CacheLayout, target: Path, content: bytes) -> None:
    """Write a small file, see `publish`."""

    def write(path: Path) -> None:
        path.write_bytes(content)

    publish(layout, target, write)


_NEXT_STEPS = {
    errno.ENOSPC: "free some space, or name another folder with --cache",
    errno.EDQUOT: "free some of your quota, or name another folder with --cache",
    errno.EACCES: "change its permissions, or name another folder with --cache",
    errno.EPERM: "change its permissions, or name another folder with --cache",
    errno.EROFS: "it is on a read-only file system: name another folder with --cache",
    errno.ENOTDIR: "a file is in the way: name another folder with --cache",
    errno.EEXIST: "a file is in the way: name another folder with --cache",
}


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn errors of the system into `CacheWriteError` naming the path and the next step."""
    try:
        yield
    except FeatxError:
        raise
    except (OSError, RuntimeError) as error:
        # h5py reports a failed write as OSError or RuntimeError, not always with a number.
        number = getattr(error, "errno", None)
        cause = os.strerror(number) if number else reason(error)
        step = _NEXT_STEPS.get(number or 0, "see that the disk is whole and has space")
        raise CacheWriteError(
            f"cannot write {path}: {cause}. What was finished before is kept; {step}"
        ) from error


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn errors of reading a damaged or foreign file into `CacheFormatError` naming the path."""
    try:
        yield
    except FeatxError as error:
        if isinstance(error, CacheFormatError) and str(path) not in str(error):
            raise CacheFormatError(f"{path}: {error}") from error
        raise
    except FileNotFoundError:
        raise
    except PermissionError as error:
        raise CacheFormatError(f"{path} cannot be read: {error.strerror}") from error
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise CacheFormatError(
            f"{path} is damaged or was not written by featx: {reason(error)}"
        ) from error
