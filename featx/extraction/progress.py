"""How fast a run goes, where its time goes and what binds it; the bar that shows it."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from featx.notebooks import escaped, in_notebook, live_output
from featx.terminal import console, current_stage, drawing, visible

Progress = Callable[[int, int, int], None]
"""Called with the numbers of images done, in all, and failed."""

# What the run waits for, by what the user can do something about.
_BINDS = {"images": "decode", "model": "model", "writer": "disk"}
# Images after which what binds is more than the start.
_MEASURED = 256


class Meter:
    """Adds up seconds, from any thread: of work, which may be many at once, and of waiting."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._work = dict.fromkeys(("read", "decode", "start", "forward", "write"), 0.0)
        self._waits = dict.fromkeys(_BINDS, 0.0)
        self._elsewhere_s = 0.0  # in which engines of other processes started
        self._under_way = 0
        self._since = 0.0
        self._first: float | None = None
        self._last: float | None = None

    def add(self, what: str, seconds: float) -> None:
        """Count seconds of work (read, decode, start, write), or of waiting (see `_BINDS`)."""
        with self._lock:
            (self._waits if what in self._waits else self._work)[what] += seconds

    @contextmanager
    def timing(self, what: str) -> Iterator[None]:
        """Count the time of the body as work or as waiting."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add(what, time.perf_counter() - started)

    def batch_started(self) -> None:
        """Count the clock as forward from now on, until as many batches have ended."""
        if not self._under_way:
            self._since = time.perf_counter()
        self._under_way += 1

    def batch_ended(self) -> None:
        """Count a batch as done."""
        self._under_way -= 1
        if not self._under_way:
            self._work["forward"] += time.perf_counter() - self._since

    def begin_images(self) -> None:
        """Start the clock of `span_s` once: what comes before the first image is start-up."""
        if self._first is None:
            self._first = time.perf_counter()

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of each kind of work, ``read_s`` to ``write_s``."""
        with self._lock:
            return {f"{work}_s": round(total, 3) for work, total in self._work.items()}

    @property
    def span_s(self) -> float:
        """Seconds since the first image, without those that the engine took to start."""
        if self._first is None:
            return 0.0
        end = time.perf_counter() if self._last is None else self._last
        return max(end - self._first - (self._work["start"] - self._elsewhere_s), 1e-9)

    def join(self, work: Mapping[str, float]) -> None:
        """Add the seconds of work of another process, whose starts hold nobody up here."""
        for what, seconds in work.items():
            self.add(what, seconds)
        self._elsewhere_s += work.get("start", 0.0)

    @property
    def work(self) -> dict[str, float]:
        """Seconds of each kind of work, by its name."""
        with self._lock:
            return dict(self._work)

    def stop(self) -> None:
        """Stop the clock of `span_s`."""
        self._last = time.perf_counter()

    @property
    def binds(self) -> str | None:
        """What the run waits for most: read, decode, model or disk; None before it waited."""
        longest = max(self._waits, key=self._waits.__getitem__)
        if not self._waits[longest]:
            return None
        if longest == "images" and self._work["read"] > self._work["decode"]:
            return "read"
        return _BINDS[longest]


@contextmanager
def terminal_progress(
    choice: bool | Progress, title: str, meter: Meter | None = None
) -> Iterator[Progress | None]:
    """Yield a callable choice, or for True a bar after a title: in a terminal or a notebook."""
    if callable(choice):
        yield choice
    elif choice and in_notebook():
        with _notebook_bar(title, meter) as show:
            yield show
    elif choice and sys.stderr.isatty():
        with _terminal_bar(title, meter) as show:
            yield show
    else:
        yield None


@contextmanager
def _terminal_bar(title: str, meter: Meter | None) -> Iterator[Progress]:
    from rich import progress as rich_progress

    columns = (
        rich_progress.TextColumn("{task.description}", markup=False),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        _rate_column(),
        rich_progress.TimeRemainingColumn(),
    )
    bar = rich_progress.Progress(
        *columns, console=console(), transient=True, redirect_stdout=sys.stdout.isatty()
    )
    with drawing(bar):
        task = bar.add_task(visible(title), total=None, rate="")
        before: int | None = None

        def show(done: int, total: int, failed: int) -> None:
            nonlocal before
            if before is None:
                # What the cache had came at once and says nothing of what is still to come.
                before = done
                bar.reset(task, total=total, completed=done)
            text = _state(bar.tasks[0].speed, done - before, failed, meter)
            bar.update(task, completed=done, total=total, rate=text)

        yield show


def _rate_column() -> Any:
    """Return the column of the rate; before there is one it shows what is done instead."""
    from rich.progress import ProgressColumn, Task
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(task.fields["rate"] or visible(current_stage()))

    return Rate()


@contextmanager
def _notebook_bar(title: str, meter: Meter | None) -> Iterator[Progress]:
    with live_output() as draw:
        before, started = 0, 0.0

        def show(done: int, total: int, failed: int) -> None:
            nonlocal before, started
            if not started:
                before, started = done, time.perf_counter()

            def page() -> str:
                new, seconds = done - before, time.perf_counter() - started
                text = f"{done:,} of {total:,}"
                if new or done < total:
                    text += f", {_state(new / seconds, new, failed, meter)}"
                bar = f'<progress value="{done}" max="{max(total, 1)}"></progress>'
                return f"<div>{escaped(title)} {bar} {escaped(text)}</div>"

            draw(page)

        yield show


def _state(speed: float | None, new: int, failed: int, meter: Meter | None) -> str:
    """Return how fast a run goes, what binds it, and how many images could not be read."""
    text = f"{speed:,.0f} images/s" if speed else current_stage() or "starting"
    if meter is not None and meter.binds and new > _MEASURED:
        text += f", {meter.binds} binds"
    return f"{text}, {failed:,} failed" if failed else text
