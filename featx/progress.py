"""A progress bar with rate and time left, where somebody can see it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from featx.meter import Meter
from featx.terminal import console, drawing, visible

Progress = Callable[[int, int, int], None]
# Images after which what binds is more than the start.
_MEASURED = 256


@contextmanager
def terminal_progress(
    choice: bool | Progress, title: str, meter: Meter | None = None
) -> Iterator[Progress | None]:
    """Yield what is called with the numbers of images done, in all, and failed.

    Parameters
    ----------
    choice : bool or callable
        A callable is passed on. True draws a bar on standard error, if that is a terminal.
    title : str
        Stands before the bar.
    meter : Meter, optional
        Says what binds.
    """
    if callable(choice):
        yield choice
        return
    if not choice or not sys.stderr.isatty():
        yield None
        return
    from rich import progress as rich_progress

    columns = (
        rich_progress.TextColumn("{task.description}", markup=False),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TextColumn("{task.fields[rate]}"),
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
            speed = bar.tasks[0].speed
            text = f"{speed:,.0f} images/s" if speed else "starting"
            if meter is not None and meter.binds and done - before > _MEASURED:
                text += f", {meter.binds} binds"
            if failed:
                text += f", {failed} failed"
            bar.update(task, completed=done, total=total, rate=text)

        yield show
