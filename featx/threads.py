"""How many processors this process may use, and how many of them are idle."""

from __future__ import annotations

import math
import os
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController

_CGROUPS = Path("/sys/fs/cgroup")
_LOAD = Path("/proc/loadavg")
_OWN_THREADS = Path("/proc/self/task")
_LOOKS = 5
_BETWEEN_S = 0.001
_FRESH_S = 0.25
# Numbers that one thread has done with before several have waited for each other.
_SMALL = 1 << 20


# The budgets that are set just now, by any thread.
_budgets: list[int] = []


@contextmanager
def limited_processors(count: int | None) -> Iterator[None]:
    """Use so many processors at most in this process; None for as many as there are.

    This is the budget of readers, engines and linear algebra alike. They ask when they start, so
    that what has started before keeps to what it was told. Of several budgets the least holds.
    """
    budgets = [] if count is None else [count]
    _budgets.extend(budgets)
    try:
        yield
    finally:
        for budget in budgets:
            _budgets.remove(budget)


def usable_processors() -> int:
    """Return how many processors this process may use.

    That is what affinity and container leave of the machine, within `limited_processors`.
    """
    several = hasattr(os, "sched_getaffinity")
    processors = len(os.sched_getaffinity(0)) if several else os.cpu_count() or 1
    with suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = _quota()
        if quota > 0:
            processors = min(processors, math.ceil(quota / period))
    return max(1, min([processors, *_budgets]))


def _quota() -> tuple[int, int]:
    """Return the microseconds of processor that a container may take, and in which time."""
    if (file := _CGROUPS / "cpu.max").is_file():
        words = file.read_text("ascii").split()
        return (0, 1) if words[0] == "max" else (int(words[0]), int(words[1]))
    names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
    quota, period = (int((_CGROUPS / "cpu" / name).read_text("ascii")) for name in names)
    return quota, period


def idle_processors() -> int:
    """Return how many of the usable processors others leave idle just now, at least 1."""
    usable, every = usable_processors(), os.cpu_count() or 1
    if usable == 1:
        return 1
    try:
        looks = []
        for look in range(_LOOKS):
            if look:
                time.sleep(_BETWEEN_S)
            looks.append(_running_elsewhere())
    except (OSError, ValueError, IndexError):  # another system than Linux
        return usable
    return max(1, min(usable, every - round(statistics.median(looks))))


def _running_elsewhere() -> int:
    """Return how many threads of other processes run, or wait for a processor."""
    running = int(_LOAD.read_text("ascii").split()[3].partition("/")[0])
    own = 0
    for task in _OWN_THREADS.iterdir():
        with suppress(OSError):  # a thread that has ended
            own += (task / "stat").read_text("ascii", "replace").rpartition(")")[2].split()[
                0
            ] == "R"
    return max(0, running - max(1, own))


class _Limits:
    """The one limit of linear algebra's threads, which are the process's."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users, self.idle = 0, 1
        self.looked_s = -math.inf
        self.limits: Any = None  # of threadpoolctl, which has no name for it
        self.controller: ThreadpoolController | None = None
        self.modules = 0

    def enter(self, entries: int) -> None:
        with self.lock:
            self.users += 1
            if self.users > 1:
                return
            controller = self._controller()
            most = max((pool["num_threads"] for pool in controller.info()), default=1)
            # What has been limited already is not given more.
            if most > 1 and (worth := 1 if entries < _SMALL else self._idle()) < most:
                self.limits = controller.limit(limits=worth)

    def _controller(self) -> ThreadpoolController:
        """Return what knows the libraries with threads; new ones come with new modules."""
        from threadpoolctl import ThreadpoolController

        modules = len(sys.modules)
        if self.controller is None or modules != self.modules:
            self.controller, self.modules = ThreadpoolController(), modules
        return self.controller

    def _idle(self) -> int:
        """Return what was found, or looked for again where it is old: many fits are short."""
        if time.monotonic() - self.looked_s > _FRESH_S:
            self.idle, self.looked_s = idle_processors(), time.monotonic()
        return self.idle

    def leave(self) -> None:
        with self.lock:
            self.users -= 1
            if not self.users and self.limits is not None:
                self.limits.restore_original_limits()
                self.limits = None

    def blas_now(self) -> int:
        with self.lock:
            pools = self._controller().info()
        return max((p["num_threads"] for p in pools if p["user_api"] == "blas"), default=1)

    def blas(self, count: int | None) -> Any:
        """Return a context in which linear algebra has so many threads, None for as it is."""
        with self.lock:
            controller = self._controller()
        return controller.limit(limits=count, user_api="blas")


_limits = _Limits()


def _after_fork() -> None:
    global _limits
    _limits = _Limits()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def blas_threads_now() -> int:
    """Return how many threads linear algebra may use, which is what a caller has limited."""
    return _limits.blas_now()


def blas_threads(count: int | None) -> Any:
    """Return a context in which linear algebra has so many threads, None for as it is.

    It is entered in a hundredth of the time that ``threadpoolctl.threadpool_limits`` takes, which
    looks for the libraries each time.
    """
    return _limits.blas(count)


@contextmanager
def worthwhile_threads(entries: int) -> Iterator[None]:
    """Keep linear algebra on so many numbers to the threads that are worth having.

    That is one for a small matrix, else as many as processors are idle. These threads wait for each
    other in loops. One that has to share a processor holds up the rest, and a fit takes ten times
    as long as with one thread.
    """
    limits = _limits
    limits.enter(entries)
    try:
        yield
    finally:
        limits.leave()
