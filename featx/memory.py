"""Sizes of memory: as people write them, and as the machine has it."""

from __future__ import annotations

import os
import re
import sys
from contextlib import suppress
from pathlib import Path

from featx.exceptions import HeadError

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)(b?)", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_CGROUPS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def as_bytes(size: str | int, *, name: str = "max_ram") -> int:
    """Read a size of memory.

    Parameters
    ----------
    size : str or int
        A number of bytes, or a text such as ``"512MiB"``, ``"1.5GB"`` or ``"2G"``: GB is
        10^9 bytes, GiB and G are 2^30.
    name : str, default "max_ram"
        What an error is to call it.

    Returns
    -------
    int
        Bytes, at least 1.

    Raises
    ------
    HeadError
        If it is none.

    Examples
    --------
    >>> as_bytes("1GiB"), as_bytes("1.5 GB"), as_bytes(4096)
    (1073741824, 1500000000, 4096)
    """
    count = 0
    if isinstance(size, int) and not isinstance(size, bool):
        count = size
    elif isinstance(size, str) and (match := _SIZE.fullmatch(size.strip())):
        number, prefix, binary, byte = match.groups()
        base = 1000 if prefix and byte and not binary else 1024
        count = int(float(number) * base ** _POWERS[prefix.lower()])
    if count < 1:
        raise HeadError(f"{name} must be a size such as 512MiB or 2GiB, received {size!r}")
    return count


def shown_bytes(count: int) -> str:
    """Write a size for people.

    Examples
    --------
    >>> shown_bytes(3 << 29), shown_bytes(100)
    ('1.5 GiB', '100 B')
    """
    value, units = float(count), iter(("B", "KiB", "MiB", "GiB", "TiB"))
    unit = next(units)
    while value >= 1024 and unit != "TiB":
        value, unit = value / 1024, next(units)
    return f"{value:.3g} {unit}"


def machine_bytes() -> int | None:
    """Return how much memory there is for this process, None where nobody can tell.

    That of the machine, or what a container was allowed.
    """
    found = []
    with suppress(AttributeError, ValueError, OSError):
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for file in _CGROUPS:
        with suppress(OSError, ValueError):
            found.append(int(file.read_text()))
    return min(found) if found else None


def peak_bytes() -> int | None:
    """Return the most memory that this process has held, None where nobody can tell (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
