"""What may be written where: an input is never replaced, and a file only if featx made it."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from featx.exceptions import OutputError

Recognise = Callable[[Path], bool]
_SHOWN_BYTES = 4096
_PACK = "featx-pack"
# How a backbone of one's own is named: `file:PATH` and the like.
_KIND = re.compile("^(?:file|savedmodel|hub):")


def check_output(
    target: Path,
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


def refuse_replacing(target: Path, recognise: Recognise, what: str, *, force: bool) -> None:
    """Refuse to replace what featx did not make."""
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
    try:
        with zipfile.ZipFile(path) as archive, archive.open(name) as member:
            return member.read(_SHOWN_BYTES)
    # `zipfile` has no base of its errors; whatever is wrong, the file is not recognised.
    except Exception:
        return b""
