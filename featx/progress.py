"""A progress bar with rate and time left, where somebody can see it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["terminal_progress"]

Progress = Callable[[int, int, int], None]


@contextmanager
def terminal_progress(choice: bool | Progress, title: str) -> Iterator[Progress | None]:
    """Yield what is called with the numbers of images done, in all, and failed.

    Parameters
    ----------
    choice : bool or callable
        A callable is passed on. True draws a bar on standard error, if that is a terminal.
    title : str
        Stands before the bar.
    """
    if callable(choice):
        yield choice
        return
    if not choice or not sys.stderr.isatty():
        yield None
        return
    from rich import progress as rich_progress
    from rich.console import Console

    columns = (
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TextColumn("{task.fields[rate]}"),
        rich_progress.TimeRemainingColumn(),
    )
    with rich_progress.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None, rate="")

        def show(done: int, total: int, failed: int) -> None:
            speed = bar.tasks[0].speed
            text = f"{speed:,.0f} images/s" if speed else ""
            if failed:
                text += f", {failed} failed"
            bar.update(task, completed=done, total=total, rate=text)

        yield show
