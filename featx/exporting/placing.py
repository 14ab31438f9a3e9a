"""Put files where they belong: all of them or none."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from featx.exceptions import ExportError
from featx.files.durable import beside, flush, flush_names


def refuse_existing(paths: Sequence[Path]) -> None:
    """Raise `ExportError` if something is there already, or the folder is not."""
    folder = paths[0].parent
    if not folder.is_dir():
        raise ExportError(f"expected -o PATH in a folder that exists, received {paths[0]}")
    for path in paths:
        if path.exists() or path.is_symlink():
            raise ExportError(
                f"{path} exists already: name another path with -o, or replace it with "
                "--force (overwrite=True)"
            )


@contextmanager
def placed_whole(paths: Sequence[Path]) -> Iterator[Path]:
    """Make a folder whose files go to their places together when the block ends without error."""
    parent = paths[0].parent
    folder = beside(paths[-1])
    try:
        folder.mkdir()
        try:
            yield folder
            for path in paths:
                _move(folder / path.name, path, folder)
            flush_names(parent)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise ExportError(
            f"cannot write {paths[-1]}: {error.strerror or error}. Name a path with -o, in a "
            "folder that can be written"
        ) from error


def _move(made: Path, target: Path, folder: Path) -> None:
    flush(made)
    # A folder cannot be renamed over another one; the old one goes with the temporary folder.
    if target.is_dir() and not target.is_symlink():
        target.rename(folder / f"{target.name}.old")
    made.replace(target)
