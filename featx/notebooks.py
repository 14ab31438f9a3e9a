"""What a notebook shows: values as HTML and as tables of pandas, and outputs that change live.

This module knows no value: `featx.reporting.notebook_html` makes the HTML of each.
"""

from __future__ import annotations

import html
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeAlias

from featx.exceptions import MissingExtraError
from featx.terminal import visible

if TYPE_CHECKING:
    from pandas import DataFrame

_LOG = logging.getLogger("featx")
_PAGES = "featx.reporting.notebook_html"
_EVERY_S = 0.25

Draw: TypeAlias = Callable[[Callable[[], str]], None]
"""Called with a function that returns HTML, it replaces what is shown."""


class NotebookValue:
    """A value that a notebook shows as HTML."""

    __slots__ = ()

    def _repr_html_(self) -> str | None:
        """Return the value as HTML, or None where that fails: a notebook then shows the text."""
        # By name, as pages know images and models, of which nothing may know pages.
        try:
            page: str = import_module(_PAGES).as_html(self)
        except Exception:  # what cannot be drawn must not hide the value
            _LOG.debug("no HTML of %r", self, exc_info=True)
            return None
        return page


def escaped(value: object) -> str:
    r"""Return text for HTML, on one line, with an escape for each character that steers.

    >>> escaped("<b>\x1b[31m")
    '&lt;b&gt;\\x1b[31m'
    """
    return html.escape(visible(value))


def html_table(
    header: Sequence[object], rows: Iterable[Sequence[object]], *, numbers: int = 0
) -> str:
    """Return a table of text whose last columns, so many `numbers`, are aligned to the right."""

    def cells(tag: str, row: Sequence[object]) -> str:
        first = len(row) - numbers
        sides = ["left" if place < first else "right" for place in range(len(row))]
        return "".join(
            f'<{tag} style="text-align:{side};padding:2px 8px">{escaped(cell)}</{tag}>'
            for side, cell in zip(sides, row, strict=True)
        )

    lines = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f"<table><thead><tr>{cells('th', header)}</tr></thead><tbody>{lines}</tbody></table>"


def data_frame(data: object, columns: Sequence[str] | None = None) -> DataFrame:
    """Return columns by name, or a matrix with names of its columns, as a table of pandas."""
    try:
        from pandas import DataFrame
    except ImportError as error:
        raise MissingExtraError("pandas", extra="pandas", purpose="to_pandas()") from error
    try:
        return DataFrame(data, columns=columns)
    except UnicodeError:  # names that are no valid text, which Arrow does not hold
        table = DataFrame(data, columns=columns, dtype=object)
        for name in table.columns:
            with suppress(UnicodeError):
                table[name] = table[name].infer_objects()
        return table


def in_notebook() -> bool:
    """Return whether this runs in a kernel of Jupyter, whose front end shows HTML."""
    get_ipython = getattr(sys.modules.get("IPython"), "get_ipython", None)
    shell = None if get_ipython is None else get_ipython()
    return getattr(shell, "kernel", None) is not None


@contextmanager
def live_output() -> Iterator[Draw]:
    """Yield what draws HTML below the cell and replaces it, a few times a second and at the end."""
    # Not rich's own display: it needs ipywidgets, and a saved notebook does not keep it.
    display: Any = import_module("IPython.display").display

    def bundle(page: str) -> dict[str, str]:
        return {"text/html": page, "text/plain": ""}

    handle = display(bundle(""), raw=True, display_id=True)
    waiting: Callable[[], str] | None = None
    drawn_s = 0.0

    def draw(page: Callable[[], str]) -> None:
        nonlocal waiting, drawn_s
        waiting = page
        if time.monotonic() - drawn_s > _EVERY_S:
            handle.update(bundle(page()), raw=True)
            waiting, drawn_s = None, time.monotonic()

    try:
        yield draw
    finally:
        if waiting is not None:
            handle.update(bundle(waiting()), raw=True)
