"""Files and objects that appear whole or not at all, and what may be written over."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias

from featx.exceptions import OutputError, StoreError
from featx.files.stores import Store, address_name, as_address, is_bucket, shown

Target: TypeAlias = Path | str
"""Where a file goes: a path, or text for the address of an object."""

_FOLDERS_OPEN = os.name != "nt"  # Windows gives no handle of a folder
# What file systems say that flush no folder: some networks, FUSE, folders shared with a host.
_NO_FLUSH = {errno.EINVAL, errno.EBADF, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
# A folder may let files be written into it and not be listed.
_NOT_LISTED = {errno.EACCES, errno.EPERM, errno.EISDIR}
# So many characters of a name leave room for the rest, whatever script they are of.
_KEPT = 60


def as_target(path: str | os.PathLike[str]) -> Target:
    """Return where a file goes that is named by a path or an address."""
    return as_address(path) or Path(path)


def size_of(target: Target) -> int:
    """Return how many bytes were written there."""
    if isinstance(target, Path):
        return target.stat().st_size
    store, name = Store.of_object(target)
    entry = store.entry(name)
    return 0 if entry is None else entry.size


@contextmanager
def written_whole(
    target: Target,
    *,
    temporary: Path | None = None,
    move: Callable[[Path, Path], None] | None = None,
) -> Iterator[Path]:
    """Yield a path to write a file at, which is flushed and takes the place of `target` at the end.

    At any instant `target` is absent, the old file, or the new one. It is written beside `target`,
    or at `temporary` on the same file system; `move` is another way to bring it to its name. An
    object is written into its store at the end.
    """
    if isinstance(target, str):
        with TemporaryDirectory(prefix="featx-") as folder:
            unfinished = Path(folder, address_name(target))
            yield unfinished
            _send(unfinished, target)
        return
    unfinished = beside(target) if temporary is None else temporary
    try:
        yield unfinished
        flush(unfinished)
        if move is None:
            unfinished.replace(target)
        else:
            move(unfinished, target)
    except BaseException:
        with suppress(OSError):
            unfinished.unlink()
        raise
    flush_names(target.parent)


def _send(file: Path, address: str) -> None:
    """Write a file into a store; keep it in the working folder where that fails."""
    store, name = Store.of_object(address)
    try:
        store.write(name, file)
    except StoreError as error:
        kept = Path(file.name)
        if kept.exists():
            kept = kept.with_name(f"{kept.stem}-{secrets.token_hex(4)}{kept.suffix}")
        shutil.move(file, kept)
        raise OutputError(f"{error}. What was made is kept in {str(kept)!r}: copy it") from error


def beside(target: Path) -> Path:
    """Return a hidden name in the folder of `target` that nothing has."""
    return target.with_name(f".{target.name[:_KEPT]}.{secrets.token_hex(4)}.tmp")


def flush(path: Path) -> None:
    """Wait until a file, or a folder with all that is in it, is on the disk."""
    if path.is_dir():
        for inner in path.iterdir():
            flush(inner)
        flush_names(path)
        return
    _flush(path, os.O_RDWR)  # Windows flushes only what is open for writing


def flush_names(folder: Path) -> None:
    """Wait until the names in a folder are on the disk, where its file system has a way to."""
    if not _FOLDERS_OPEN:
        return
    try:
        _flush(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    except OSError as error:
        if error.errno not in _NO_FLUSH | _NOT_LISTED:
            raise


def _flush(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


Recognise = Callable[[Path], bool]
_SHOWN_BYTES = 4096
_PACK = "featx-pack"
# How a backbone of one's own is named: `file:PATH` and the like.
_KIND = re.compile("^(?:file|savedmodel|hub):")


def check_output(
    target: Target,
    recognise: Recognise,
    what: str,
    *,
    inputs: Iterable[str | os.PathLike[str] | None] = (),
    images: Callable[[], Iterable[Path]] = tuple,
    force: bool = False,
) -> None:
    """Refuse to write a file that cannot be written, or would replace what is needed.

    `inputs`, as the user named them, and `images` are never replaced; a file that `recognise` knows
    as `what` may be, any other with `force`.
    """
    if isinstance(target, str):
        if any(name is not None and as_address(name) == target for name in inputs):
            raise OutputError(f"{shown(target)!r} is read by this command: name another object")
        refuse_replacing(target, recognise, what, force=force)
        return
    if not target.parent.is_dir():
        raise OutputError(
            f"the folder of {str(target)!r} does not exist: make it, or name another file"
        )
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise OutputError(f"the folder of {str(target)!r} cannot be written: name another file")
    if not os.path.lexists(target):
        return
    named = [path for name in inputs if name is not None for path in _paths(os.fspath(name))]
    if any(path.is_file() and _same(path, target) for path in named):
        raise OutputError(f"{str(target)!r} is read by this command: name another file")
    refuse_replacing(target, recognise, what, force=force)
    if recognise(target):
        return
    below = [file for folder in named if folder.is_dir() for file in _files(folder)]
    for path in [*below, *images()]:
        if _same(path, target):
            raise OutputError(f"{str(target)!r} is read by this command: name another file")


def refuse_replacing(target: Target, recognise: Recognise, what: str, *, force: bool) -> None:
    """Refuse to replace what featx did not make."""
    if isinstance(target, str):
        _refuse_replacing_object(target, recognise, what, force=force)
        return
    if not os.path.lexists(target):
        return
    if target.exists() and not target.is_file():
        kind = "a folder" if target.is_dir() else "no regular file"
        raise OutputError(f"{str(target)!r} is {kind}: name a file")
    if not force and not recognise(target):
        raise OutputError(
            f"{str(target)!r} exists and is no {what} made by featx: name another file, or replace "
            "it with --force (overwrite=True)"
        )


def _refuse_replacing_object(address: str, recognise: Recognise, what: str, *, force: bool) -> None:
    store, name = Store.of_object(address)
    if not is_bucket(address) or not name:
        raise OutputError(
            "expected a file, or an object of a bucket such as s3://bucket/name, received "
            f"{shown(address)!r}: name one of these"
        )
    if force or store.entry(name) is None:
        return
    with TemporaryDirectory(prefix="featx-") as folder:
        copy = Path(folder, "copy")
        store.fetch(name, copy)
        if not recognise(copy):
            raise OutputError(
                f"{shown(address)!r} exists and is no {what} made by featx: name another object, "
                "or replace it with --force (overwrite=True)"
            )


def _paths(name: str) -> Iterator[Path]:
    for text in (name, name.partition("=")[2]):
        if text:
            yield Path(_KIND.sub("", text)).expanduser()


def _files(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):
        yield from (Path(parent, name) for name in names)


def _same(path: Path, target: Path) -> bool:
    try:
        return path.samefile(target)
    except OSError:
        return False


def is_model(path: Path) -> bool:
    """Tell whether a file is a model that featx saved."""
    return b'"featx-model"' in _member(path, "model.json")


def is_pack(path: Path) -> bool:
    """Tell whether a file is packed features."""
    if _PACK.encode("utf-32-le") in _member(path, "type.npy"):
        return True
    try:
        with path.open("rb") as file:
            start = file.read(_SHOWN_BYTES)
            if start.startswith(b"PAR1"):
                # The description is the end of such a file, before its length in four bytes.
                file.seek(-8, os.SEEK_END)
                length = min(int.from_bytes(file.read(4), "little"), 64 << 20)
                file.seek(-8 - length, os.SEEK_END)
                return _PACK.encode() in file.read(length)
        if not start.startswith(b"\x89HDF\r\n\x1a\n"):
            return f'"type": "{_PACK}"'.encode() in start
        import h5py

        with h5py.File(path, "r") as packed:
            kind = packed.attrs.get("type", "")
        return (kind.decode("utf-8", "replace") if isinstance(kind, bytes) else kind) == _PACK
    except OSError:
        return False


def begins_with(*starts: str) -> Recognise:
    """Return what tells whether a file begins with one of several texts."""

    def recognise(path: Path) -> bool:
        try:
            with path.open("rb") as file:
                return file.read(_SHOWN_BYTES).startswith(tuple(s.encode() for s in starts))
        except OSError:
            return False

    return recognise


def _member(path: Path, name: str) -> bytes:
    """Return the first bytes of a member of a zip, none where there is no such thing."""
    import zipfile

    try:
        with zipfile.ZipFile(path) as archive, archive.open(name) as member:
            return member.read(_SHOWN_BYTES)
    # `zipfile` has no base of its errors; whatever is wrong, the file is not recognised.
    except Exception:
        return b""
