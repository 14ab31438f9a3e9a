"""The leaderboard of a search as it grows, where somebody can see it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from featx.selection.measuring import Watch
from featx.selection.ranking import ranked
from featx.selection.trials import Trial
from featx.terminal import console, drawing, visible

_SHOWN = 8


@contextmanager
def live_leaderboard(choice: bool | Watch, title: str) -> Iterator[Watch | None]:
    """Yield what is called with the trials that are finished and how many are planned."""
    if callable(choice):
        yield choice
        return
    if not choice or not sys.stderr.isatty():
        yield None
        return
    from rich.live import Live
    from rich.table import Table

    live = Live(
        console=console(),
        transient=True,
        refresh_per_second=4,
        redirect_stdout=sys.stdout.isatty(),
    )
    with drawing(live):

        def show(trials: list[Trial], planned: int) -> None:
            table = Table(
                title=f"{visible(title)}: {len(trials):,} of {max(planned, len(trials)):,}"
            )
            for name in ("backbone", "tap", "transform", "head"):
                table.add_column(name)
            table.add_column("score", justify="right")
            for trial in ranked(trials)[:_SHOWN]:
                one = trial.candidate
                score = trial.measured.failed or f"{trial.score:.4f} ± {trial.std:.4f}"
                row = (one.backbone, one.tap, one.transform, one.text, score)
                table.add_row(*map(visible, row))
            live.update(table)

        yield show
