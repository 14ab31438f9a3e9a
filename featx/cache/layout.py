"""Where things are in a cache folder, and how a file gets into it, or replaces the one read."""

from __future__ import annotations

import errno
import logging
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from featx.exceptions import CacheError, CacheFormatError, CacheWriteError, FeatxError, reason
from featx.files.outputs import written_whole
from featx.files.stores import as_address, shown
from featx.spec import FeatureSpec, folder_name

_LOG = logging.getLogger("featx")
# The lock is held for a comparison and a rename. A process that holds it for longer has a slow
# disk, or was stopped in the middle.
_PATIENCE_S = 30.0
_NOTICE_S = 5.0
_PAUSE_S = 0.002
# Errors of file systems that have no locks.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}
_HOLDER = re.compile(rb"([0-9]{1,10}) ([\w.-]{1,64})\n", re.ASCII)


@dataclass(frozen=True, slots=True)
class CacheLayout:
    """The folders of the cache at `root`, which is made when a file is first written into it."""

    root: Path

    @classmethod
    def at(cls, cache: str | os.PathLike[str] | None = None) -> CacheLayout:
        """Return the cache at a path, else at ``FEATX_CACHE``, else at ``cache``."""
        chosen = os.fspath(cache) if cache is not None else os.environ.get("FEATX_CACHE")
        if address := as_address(chosen):
            raise CacheError(
                f"expected a folder for the cache, received {shown(address)!r}: features are read "
                "from a disk; copy a cache to a store with `featx cache push`, and from there with "
                "`featx cache pull`"
            )
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
    def parts(self) -> Path:
        """Rows of manifests that are too many for one file."""
        return self.root / "parts"

    @property
    def checked(self) -> Path:
        """One file a space: which of its shards were compared with their digests."""
        return self.root / "checked"

    @property
    def indexes(self) -> Path:
        """One file a space of many rows: where each key lies."""
        return self.root / "indexes"

    def index(self, space: str) -> Path:
        """Index of the keys of a space, by the name of its folder."""
        return self.indexes / f"{space}.h5"

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

    def stored_indexes(self) -> list[Path]:
        """Return the indexes of all spaces."""
        return [path for path in list_folder(self.indexes) if path.suffix == ".h5"]


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
    write: Callable[[Path], object],
    *,
    move: Callable[[Path, Path], None] | None = None,
) -> None:
    """Write a file into ``tmp/`` and `move` it to `target`, so that no reader sees half of it."""
    temporary = layout.tmp / f"{secrets.token_hex(8)}-{target.name}"
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        layout.tmp.mkdir(parents=True, exist_ok=True)
        with written_whole(target, temporary=temporary, move=move):
            write(temporary)


def publish_bytes(layout: CacheLayout, target: Path, content: bytes) -> None:
    """Write a small file, see `publish`."""
    publish(layout, target, lambda path: path.write_bytes(content))


_NEXT_STEPS = {
    errno.ENOSPC: "free some space, or name another folder with --cache",
    errno.EDQUOT: "free some of your quota, or name another folder with --cache",
    errno.EROFS: "it is on a read-only file system: name another folder with --cache",
    **dict.fromkeys(
        (errno.EACCES, errno.EPERM), "change its permissions, or name another folder with --cache"
    ),
    **dict.fromkeys(
        (errno.ENOTDIR, errno.EEXIST), "a file is in the way: name another folder with --cache"
    ),
}


@contextmanager
def writing(path: Path, step: str = "") -> Iterator[None]:
    """Turn errors of the system into `CacheWriteError` naming the path and the next step."""
    try:
        yield
    except FeatxError:
        raise
    except (OSError, RuntimeError) as error:
        # h5py reports a failed write as OSError or RuntimeError, not always with a number.
        if not isinstance(error, OSError) and type(error) is not RuntimeError:
            raise
        number = getattr(error, "errno", None)
        cause = os.strerror(number) if number else reason(error)
        if not step:
            known = _NEXT_STEPS.get(number or 0, "see that the disk is whole and has space")
            step = f"What was finished before is kept; {known}"
        raise CacheWriteError(f"cannot write {path}: {cause}. {step}") from error


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


# Files that others may replace: no lock is held while working.


class Replaced(Exception):  # noqa: N818
    """The file was replaced since it was read: read it again."""


class FileVersion:
    """A file that is only ever replaced whole, as it is now; its absence is a version, too."""

    # While it is open its inode cannot become another file's, so that the inode tells whether it
    # was replaced. Opening makes a network file system ask its server what the name stands for.

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None
        self.identity: tuple[int, int] | None = None
        with suppress(OSError):
            self._descriptor = os.open(path, os.O_RDONLY)
        with suppress(FileNotFoundError, NotADirectoryError):
            status = path.stat() if self._descriptor is None else os.fstat(self._descriptor)
            self.identity = status.st_dev, status.st_ino

    def __enter__(self) -> FileVersion:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the version."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def is_current(self) -> bool:
        """Return whether the name still stands for this version."""
        with FileVersion(self.path) as now:
            return now.identity == self.identity

    def move(self, new: Path, target: Path, *, still: Callable[[], bool] = lambda: True) -> None:
        """Move a finished file here, else raise `Replaced`; `still` is asked under the lock."""
        with self.held():
            if not still():
                raise Replaced(target)
            new.replace(target)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let nobody else replace or remove this version; `Replaced` if somebody has."""
        with locked(self.path.parent):
            if not self.is_current():
                raise Replaced(self.path)
            yield


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder's files for a moment; `CacheWriteError` if it cannot be had.

    It is a lock of the system (``flock``) on the file ``.lock``, which a process that ends gives
    back. Where the file system has none, it is the file ``.lock-held``, made by whoever comes
    first and removed in the end; after a kill a person has to remove it.
    """
    path = folder / ".lock"
    with writing(path):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, release = _take(path)
        # Names the holder to those that wait; what remains of it afterwards means nothing.
        with suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()} {socket.gethostname()}\n".encode(), 0)
    try:
        yield
    finally:
        release()
        os.close(descriptor)


def _take(path: Path) -> tuple[int, Callable[[], None]]:
    """Wait for a lock; return its open file, and what gives the lock back."""
    start, told = time.monotonic(), False
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except PermissionError:
            descriptor = os.open(path, os.O_RDONLY)  # another user's can be locked all the same
        try:
            release = _try_lock(path, descriptor)
            if release:
                status = os.fstat(descriptor)
                with FileVersion(path) as now:
                    if now.identity == (status.st_dev, status.st_ino):
                        return descriptor, release
                release()  # the file was removed, and others lock another one under its name
            waited_s = time.monotonic() - start
            _check_patience(path, descriptor, waited_s)
            if waited_s > _NOTICE_S and not told:
                told = True
                _LOG.warning("waiting for %s, which changes %s", _holder(descriptor), path.parent)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        time.sleep(_PAUSE_S)


def _try_lock(path: Path, descriptor: int) -> Callable[[], None] | None:
    """Return what gives the lock back, or None when somebody else holds it."""
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return lambda: fcntl.flock(descriptor, fcntl.LOCK_UN)
    except BlockingIOError:
        return None
    except ImportError:
        pass
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    try:
        os.close(os.open(_by_name(path), os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return None
    return _by_name(path).unlink


def _by_name(path: Path) -> Path:
    return path.with_name(f"{path.name}-held")


def _holder(descriptor: int) -> str:
    """Return who holds a lock, as far as its file says."""
    with suppress(OSError):
        if match := _HOLDER.fullmatch(os.pread(descriptor, 100, 0)):
            return f"process {match[1].decode()} on {match[2].decode()}"
    return "another process"


def _check_patience(path: Path, descriptor: int, waited_s: float) -> None:
    """Refuse to wait any longer for a lock."""
    if waited_s <= _PATIENCE_S:
        return
    step = "wait until it has ended or end it, then run this again"
    if _by_name(path).exists():
        step = f"if it has ended, remove {_by_name(path)}, then run this again"
    raise CacheWriteError(
        f"{_holder(descriptor)} has held the lock {path} for {_PATIENCE_S:.0f} s. Nothing was "
        f"changed: {step}"
    )
