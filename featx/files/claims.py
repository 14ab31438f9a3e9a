"""What a file claims, against what it holds; and how a file that cannot be read is named."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from featx.exceptions import DatasetError, FeatxError, reason

_HARMLESS_BYTES = 64 << 20
_MOST_SHOWN = 80


class UnsafeFileError(ValueError):
    """A file claims more than it holds, leads out of itself, or is no plain file of its format."""


def most_unpacked(size: int, ratio: int) -> int:
    """Return how many bytes a file of this size may become; a ratio of 1 is no compression."""
    return size if ratio == 1 else _HARMLESS_BYTES + ratio * size


def shortened(value: object) -> str:
    """Return a name out of a file, cut where it is longer than an error can show."""
    text = str(value)
    return text if len(text) <= _MOST_SHOWN else text[: _MOST_SHOWN - 1] + "…"


@contextmanager
def reading_data(path: Path, kind: str) -> Iterator[None]:
    """Turn whatever reading a user's file of a kind raises into a `DatasetError` that names it."""
    try:
        yield
    except FeatxError:
        raise
    except UnsafeFileError as error:
        raise DatasetError(f"{str(path)!r}: {error}") from error
    except FileNotFoundError as error:
        raise missing_path_error(path, f"no such file: {str(path)!r}") from error
    except MemoryError as error:
        raise DatasetError(f"{str(path)!r} does not fit into memory: use HDF5") from error
    # `zipfile` and `pyarrow` have no base of their errors.
    except Exception as error:
        raise DatasetError(f"cannot read {str(path)!r} as {kind}: {reason(error)}") from error


def missing_path_error(path: Path, what: str) -> DatasetError:
    """Return the error for a path that does not exist, with the nearest names beside it."""
    import difflib

    parent = path.absolute().parent
    while not parent.exists() and parent != parent.parent:
        path, parent = parent, parent.parent
    near = difflib.get_close_matches(path.name, names_in(parent), n=3, cutoff=0.6)
    hint = " or ".join(repr(str(parent / name)) for name in near)
    advice = f"did you mean {hint}?" if near else f"{str(parent)!r} has no such entry"
    return DatasetError(f"{what}: {advice}")


def names_in(folder: Path) -> list[str]:
    """Return the names in a folder, sorted; none where it cannot be read."""
    try:
        return sorted(entry.name for entry in folder.iterdir())
    except OSError:
        return []
