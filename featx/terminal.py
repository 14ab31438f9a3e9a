r"""The one place that writes to the terminal; nothing that came from data can steer it.

Names of files, classes and types are anybody's. `say` writes lines in which every character that
would move the cursor, change colours, turn the direction of text or begin a new line is a visible
escape such as ``\x1b``. `guard_stderr` does the same for what libraries, warnings and tracebacks
write, and `drawing` for what is written beside a progress bar. Where nothing is written for a
while, `waiting_line` says what is being done.
"""

from __future__ import annotations

import codecs
import csv
import json
import logging
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TextIO, cast

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live
    from rich.progress import Progress

# Spaces of any width, and the joiners that emoji and Persian words are made with.
_HARMLESS = {"\u200c", "\u200d", "\u00a0", "\u1680", "\u202f", "\u205f", "\u3000"} | {
    chr(code) for code in range(0x2000, 0x200B)
}


def visible(value: Any) -> str:
    r"""Return text on one line, with an escape for each character that steers a terminal.

    Letters, signs and emoji of any script stay as they are.

    Examples
    --------
    >>> visible("caf\u00e9 \u87fb \U0001f41d")
    'café 蟻 🐝'
    >>> print(visible("two\nlines \x1b[2J \u202e"))
    two\nlines \x1b[2J \u202e
    """
    text = str(value)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in _HARMLESS else repr(c)[1:-1] for c in text)


def say(*lines: str, err: bool = False) -> None:
    """Write lines to standard output, or to standard error."""
    stream = sys.stderr if err else sys.stdout
    _clear()
    stream.write("".join(f"{visible(line)}\n" for line in lines))
    stream.flush()


def say_json(value: Any) -> None:
    """Write JSON on one line of standard output, from which a program gets `value` back."""
    # JSON may hold this one control character as it is, and `say` knows no escape of JSON.
    say(json.dumps(value, default=_as_json).replace("\x7f", "\\u007f"))


def _as_json(value: Any) -> Any:
    """Return the fields of a dataclass, or a path as text."""
    from dataclasses import asdict, is_dataclass  # `featx --help` needs neither

    is_record = is_dataclass(value) and not isinstance(value, type)
    return asdict(value) if is_record else os.fspath(value)


NAME_ERRORS = "featx-bytes"
"""How text files are opened (``errors=``) in which names of files are the bytes that they are."""


def row_writer() -> Callable[[Sequence[Any]], object]:
    """Return what writes a row of CSV to standard output: exact, but escaped on a terminal."""
    if sys.stdout.isatty():
        escaped = csv.writer(sys.stdout, lineterminator="\n")

        def write(row: Sequence[Any]) -> None:
            _clear()
            escaped.writerow([visible(cell) for cell in row])

        return write
    # Paths as the bytes that they are, so that a program finds the files again.
    sys.stdout.reconfigure(errors=NAME_ERRORS)  # type: ignore[union-attr]
    return csv.writer(sys.stdout, lineterminator="\n").writerow


def _as_bytes(error: UnicodeError) -> tuple[str | bytes, int]:
    """Write a name that is no valid text as its bytes, and what has none as an escape."""
    for handler in ("surrogateescape", "backslashreplace"):
        with suppress(UnicodeError):
            return codecs.lookup_error(handler)(error)
    raise error


codecs.register_error(NAME_ERRORS, _as_bytes)


class _Guarded:
    """A text stream that escapes all but line feeds."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        _clear()
        self.stream.write("\n".join(visible(line) for line in text.split("\n")))
        return len(text)

    def writelines(self, lines: Sequence[str]) -> None:
        self.write("".join(lines))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def _guarded(stream: TextIO) -> TextIO:
    return stream if isinstance(stream, _Guarded) else cast("TextIO", _Guarded(stream))


def unguarded(stream: TextIO) -> TextIO:
    """Return the stream itself, for progress that a library draws."""
    return stream.stream if isinstance(stream, _Guarded) else stream


def guard_stderr() -> None:
    """Escape what anything writes to standard error: logging, warnings, tracebacks of threads."""
    sys.stderr = _guarded(sys.stderr)


class _OneLine(logging.Formatter):
    """Messages on one line each; tracebacks after them keep theirs."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return visible(super().formatMessage(record))


def log_to_stderr(*, debug: bool) -> None:
    """Show warnings of featx and of libraries, or all their logging."""
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine("%(asctime)s %(name)s %(message)s" if debug else "%(message)s"))
    logging.basicConfig(level=logging.DEBUG if debug else logging.WARNING, handlers=[handler])
    # Which pixels a network gets is said even where there is no doubt.
    logging.getLogger("featx.preprocessing").setLevel(logging.INFO)


def console() -> Console:
    """Return rich's console on standard error, for which text in brackets is text."""
    from rich.console import Console

    return Console(file=unguarded(sys.stderr), markup=False, emoji=False, highlight=False)


@contextmanager
def drawing(display: Live | Progress) -> Iterator[None]:
    """Draw until the body is done; what is written meanwhile appears above, escaped."""
    with _hushed(), display:
        # rich puts streams of its own in their place, which take escapes for styles and links.
        before = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = map(_guarded, before)
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before


_QUIET_S, _TICK_S = 0.7, 0.1
_stages: list[tuple[str, float]] = []
_line: _WaitingLine | None = None


@contextmanager
def stage(doing: str) -> Iterator[None]:
    """Name what is done in the body, for the line or the bar that shows it."""
    entry = (doing, time.monotonic())
    _stages.append(entry)
    try:
        yield
    finally:
        _stages.remove(entry)


def current_stage() -> str:
    """Return what is being done, empty where nobody has said it."""
    return _stages[-1][0] if _stages else ""


class _WaitingLine:
    """One line at the end of a terminal: what is being done, and for how long."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.lock = threading.RLock()
        self.shown, self.hushed = "", 0
        self.quiet_since = time.monotonic()
        self.ended = threading.Event()

    def tick(self) -> None:
        """Draw where nothing was written for a while, until the end."""
        while not self.ended.wait(_TICK_S):
            with self.lock:
                quiet = time.monotonic() - self.quiet_since > _QUIET_S
                if quiet and not self.hushed and _stages:
                    self.draw()

    def draw(self) -> None:
        doing, since = _stages[-1]
        text = f"{visible(doing)} ({time.monotonic() - since:.0f} s)"
        text = text[: shutil.get_terminal_size().columns - 1]
        if text != self.shown:
            self.stream.write(f"\r{text}\x1b[K")
            self.stream.flush()
            self.shown = text

    def clear(self) -> None:
        with self.lock:
            if self.shown:
                self.stream.write("\r\x1b[K")
                self.stream.flush()
            self.shown, self.quiet_since = "", time.monotonic()


def _clear() -> None:
    if _line is not None:
        _line.clear()


@contextmanager
def _hushed() -> Iterator[None]:
    """Leave the terminal to something else that draws."""
    line = _line
    if line is not None:
        line.clear()
        line.hushed += 1
    try:
        yield
    finally:
        if line is not None:
            line.hushed -= 1
            line.clear()


@contextmanager
def waiting_line(doing: str) -> Iterator[None]:
    """Say on a terminal what is being done where nothing else is shown for most of a second."""
    global _line
    stream = sys.stderr
    if _line is not None or not stream.isatty() or os.environ.get("TERM") == "dumb":
        yield
        return
    line = _line = _WaitingLine(unguarded(stream))
    thread = threading.Thread(target=line.tick, daemon=True)
    thread.start()
    try:
        with stage(doing):
            yield
    finally:
        line.ended.set()
        thread.join()
        line.clear()
        _line = None
