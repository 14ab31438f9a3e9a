"""The line that says what is done where a terminal would be blank, and the times at the end."""

from __future__ import annotations

import io
import re
import sys
import threading
import time

import pytest

import featx.terminal as terminal
from featx.cli.show import Laps, process_seconds
from featx.terminal import current_stage, say, stage, waiting_line


class Terminal(io.StringIO):
    def isatty(self):
        return True

    def wait_for(self, text):
        for _ in range(1000):
            if text in self.getvalue():
                return
            time.sleep(0.01)
        raise AssertionError(self.getvalue())


@pytest.fixture
def open_terminal(monkeypatch):
    """A function that puts a terminal in the place of standard error, once the test has begun."""

    def opened():
        stream = Terminal()
        monkeypatch.setattr(sys, "stderr", stream)
        return stream

    monkeypatch.setattr(terminal, "_QUIET_S", 0.02)
    monkeypatch.setattr(terminal, "_TICK_S", 0.005)
    monkeypatch.delenv("TERM", raising=False)
    return opened


def test_it_says_what_is_done_and_leaves_nothing_behind(open_terminal):
    stderr = open_terminal()
    with waiting_line("featx train"):
        stderr.wait_for("featx train (0 s)")
        with stage("training logistic on 245 images"):
            stderr.wait_for("\rtraining logistic on 245 images (0 s)\x1b[K")
    assert stderr.getvalue().endswith("\r\x1b[K")
    assert current_stage() == ""
    assert "tick" not in str(threading.enumerate())


def test_what_is_written_comes_on_a_clean_line(open_terminal):
    stderr = open_terminal()
    with waiting_line("featx train"):
        stderr.wait_for("(0 s)")
        say("warning", err=True)
        assert "\r\x1b[Kwarning\n" in stderr.getvalue()


def test_it_gives_way_to_what_else_draws(open_terminal):
    stderr = open_terminal()
    with waiting_line("featx train"):
        stderr.wait_for("(0 s)")
        with terminal._hushed():
            before = stderr.getvalue()
            time.sleep(0.2)
            assert stderr.getvalue() == before
        stderr.wait_for(before + "\rfeatx train (")


def test_names_do_not_steer_it_and_it_fits_the_line(open_terminal, monkeypatch):
    stderr = open_terminal()
    monkeypatch.setenv("COLUMNS", "30")
    with waiting_line("featx train"), stage("reading \x1b[2J and " + "a" * 100):
        stderr.wait_for(r"\rreading \x1b[2J and aaaaaaaaa".replace(r"\r", "\r"))
    shown = re.findall(r"\r([^\r\x1b]+)", stderr.getvalue())
    assert max(map(len, shown)) <= 29


@pytest.mark.parametrize("why", ["no terminal", "dumb"])
def test_without_a_terminal_nothing_is_drawn(open_terminal, monkeypatch, why):
    stderr = open_terminal()
    if why == "dumb":
        monkeypatch.setenv("TERM", "dumb")
    else:
        monkeypatch.setattr(Terminal, "isatty", lambda _: False)
    with waiting_line("featx train"), stage("training"):
        time.sleep(0.1)
    assert stderr.getvalue() == ""


def test_an_error_takes_the_line_away(open_terminal):
    stderr = open_terminal()

    def fail():
        with waiting_line("featx train"), stage("training"):
            stderr.wait_for("training (0 s)")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert stderr.getvalue().endswith("\r\x1b[K")
    assert terminal._line is None
    assert current_stage() == ""


def test_the_times_of_a_command_are_its_whole_time(capsys, monkeypatch):
    clock = iter([1.0, 3.5, 4.0])
    monkeypatch.setattr("featx.cli.show.process_seconds", lambda: next(clock))
    laps = Laps()
    laps.lap("features")
    laps.lap("saving")
    laps.say()
    assert capsys.readouterr().out == "time      4.0 s: start 1.0, features 2.5, saving 0.5\n"


def test_the_start_of_the_process_is_counted(run_python):
    code = (
        "import time; time.sleep(0.5); from featx.cli.show import process_seconds; "
        "print(process_seconds())"
    )
    before = time.perf_counter()
    seconds = float(run_python(code).stdout)
    assert 0.5 <= seconds <= time.perf_counter() - before + 0.1
    assert process_seconds() > 0
