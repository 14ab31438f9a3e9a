"""Names of images from what a user types: files, folders, patterns, and lists that never end."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from featx.exceptions import DatasetError
from featx.images.files import is_image_name
from featx.images.scan import scan_folder


class FileName(str):
    """A name that is taken as it is: what looks like a pattern in it is part of the name."""


def image_names(items: Iterable[str | os.PathLike[str]], *, strict: bool = False) -> Iterator[str]:
    """Name the images that files, folders and patterns stand for, in their order.

    Parameters
    ----------
    items : iterable of str or path
        A file, whether it exists or not; a folder, for all images below it, sorted; a pattern
        (``photos/*.jpg``, ``photos/**/*.png``), for the images that it matches, sorted. What
        exists under its own name, or matches nothing, is no pattern, nor is a `FileName`. Taken
        one at a time, so that it may be a pipe.
    strict : bool, default False
        Whether a pattern has to match and a folder has to hold images. Otherwise they are named
        themselves, for the ledger to say that they cannot be read.

    Yields
    ------
    name : str

    Raises
    ------
    DatasetError
        An item is no path; with `strict`, a folder holds no image, or a pattern matches none.

    Examples
    --------
    >>> list(image_names(["one.jpg", "two.jpg", "IMG[1].jpg"]))
    ['one.jpg', 'two.jpg', 'IMG[1].jpg']
    """
    for item in items:
        try:
            name = os.fsdecode(item)
        except TypeError as error:
            raise DatasetError(
                f"expected a path or pattern, received {type(item).__name__}: {str(item)[:80]!r}"
            ) from error
        # None of these raises, whatever the name: NUL, too long, or in a folder that is closed.
        if os.path.isdir(name):
            expanded = _below(name)
        elif isinstance(item, FileName) or not glob.has_magic(name) or os.path.lexists(name):
            yield name
            continue
        else:
            expanded = _matching(name)
        try:
            yield from expanded
        except DatasetError:
            if strict:
                raise
            yield name


def _below(folder: str) -> Iterator[str]:
    for path in scan_folder(Path(folder), labels=False).paths:
        yield f"{folder.rstrip('/')}/{path}"


def _matching(pattern: str) -> Iterator[str]:
    found = sorted(glob.glob(pattern, recursive=True))
    if not found:
        raise DatasetError(
            f"nothing matches {pattern!r} in {str(Path.cwd())!r}: expected files, for example "
            "'photos/*.jpg'; ** stands for folders at any depth"
        )
    images = False
    for name in found:
        if Path(name).is_dir():
            # A pattern as photos/* names folders among the images; ** has what is in them too.
            if "**" not in pattern:
                with suppress(DatasetError):
                    yield from _below(name)
                    images = True
        elif is_image_name(name):
            images = True
            yield name
    if not images:
        raise DatasetError(
            f"{pattern!r} matches {len(found)} names, none with an image extension: expected "
            "images (.jpg, .png, ...)"
        )
