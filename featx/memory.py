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
    """Return the bytes of a size such as 4096, ``"512MiB"``, ``"1.5GB"`` or ``"2G"``.

    GB is 10^9 bytes, GiB and G are 2^30. `name` is what a `HeadError` calls it.
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
    """Return a size as people write it, such as ``"1.5 GiB"``."""
    value, units = float(count), iter(("B", "KiB", "MiB", "GiB", "TiB"))
    unit = next(units)
    while value >= 1024 and unit != "TiB":
        value, unit = value / 1024, next(units)
    return f"{value:.3g} {unit}"


def machine_bytes() -> int | None:
    """Return the memory of the machine or of this container, None where nobody can tell."""
    limits = []
    with suppress(AttributeError, ValueError, OSError):
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for file in _CGROUPS:
        with suppress(OSError, ValueError):
            limits.append(int(file.read_text()))
    return min(limits, default=None)


def peak_bytes() -> int | None:
    """Return the most memory that this process has held, None where nobody can tell (Windows)."""
    # On Linux, what getrusage says can begin with the peak of the process that started this one.
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
