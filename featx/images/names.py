"""Names of images from what a user types: files, folders, patterns, and lists that never end."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from featx.exceptions import DatasetError
from featx.images.files import is_image_name
from featx.images.scan import scan_folder

__all__ = ["image_names"]


def image_names(items: Iterable[str | os.PathLike[str]]) -> Iterator[str]:
    """Name the images that files, folders and patterns stand for, in their order.

    Parameters
    ----------
    items : iterable of str or path
        A file, whether it exists or not; a folder, for all images below it, sorted; a pattern
        (``photos/*.jpg``, ``photos/**/*.png``), for the images that it matches, sorted. What
        exists under its own name is no pattern. Taken one at a time, so that it may be a pipe.

    Yields
    ------
    name : str

    Raises
    ------
    DatasetError
        A folder holds no image, a pattern matches none, or an item is no path.

    Examples
    --------
    >>> list(image_names(["one.jpg", "two.jpg"]))
    ['one.jpg', 'two.jpg']
    """
    for item in items:
        try:
            name = os.fsdecode(item)
        except TypeError as error:
            raise DatasetError(
                f"expected a path or pattern, received {type(item).__name__}: {str(item)[:80]!r}"
            ) from error
        if "\0" in name:
            yield name  # no file has it; the ledger says so
        elif Path(name).is_dir():
            yield from _below(name)
        elif glob.has_magic(name) and not os.path.lexists(name):
            yield from _matching(name)
        else:
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
                images = True
                yield from _below(name)
        elif is_image_name(name):
            images = True
            yield name
    if not images:
        raise DatasetError(
            f"{pattern!r} matches {len(found)} names, none with an image extension: expected "
            "images (.jpg, .png, ...)"
        )
