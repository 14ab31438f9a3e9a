from __future__ import annotations

import csv
import io
import json
import logging
import os
import pty
import re
import shutil
import subprocess
import sys

import pytest
from PIL import Image

import featx
from featx.terminal import visible

# A title, a cleared screen, a hyperlink, C1, right to left, a forged line, half a letter.
HOSTILE = "x\x1b]0;TITLE\x07\x1b[2J\x9b31m\u202egpj\u2066\u2028\x7f\nerror: forged"
NAME = os.fsdecode(HOSTILE.encode() + b"\xff")
# What rich would draw itself: colours, cursor, erased lines.
OF_RICH = re.compile(r"\x1b\[[0-9;?]*[mKAJlh]")
STEERS = re.compile(
    "[\x00-\x09\x0b\x0c\x0e-\x1f\x7f-\x9f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]"
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain (a) 100 %", "plain (a) 100 %"),
        ("café Ünïcode ß", "café Ünïcode ß"),
        ("蟻　はち 개미", "蟻　はち 개미"),
        ("نمل می‌خواهم", "نمل می‌خواهم"),
        ("🐝 👩‍🔬 ❤️", "🐝 👩‍🔬 ❤️"),
        ("[red]a[/red] [link=http://x]b[/link]", "[red]a[/red] [link=http://x]b[/link]"),
        ("\x1b[31m", r"\x1b[31m"),
        ("a\rb\nc\td\0", r"a\rb\nc\td\x00"),
        ("\x9b2J\x85", r"\x9b2J\x85"),
        ("\x7f\x08", r"\x7f\x08"),
        ("\u202etxt\u202c\u2066\u2069\u200f", r"\u202etxt\u202c\u2066\u2069\u200f"),
        ("\u2028\u2029\u200b\ufeff", r"\u2028\u2029\u200b\ufeff"),
        ("\udcff\ud800", r"\udcff\ud800"),
        ("\U000e0041", r"\U000e0041"),
    ],
)
def test_what_steers_a_terminal_is_an_escape_and_all_else_stays(text, shown):
    assert visible(text) == shown


def test_logging_warnings_tracebacks_and_usage_are_escaped(run_python):
    code = (
        "import logging, sys, warnings\n"
        "from featx.cli import main\n"
        "from featx.terminal import log_to_stderr\n"
        f"name = {HOSTILE!r}\n"
        "try: main.main(['predict', '--' + name])\n"
        "except SystemExit as e: assert e.code == 2\n"
        "try: main.main([name])\n"
        "except SystemExit as e: assert e.code == 2\n"
        "try: main.main(['extract', name])\n"
        "except SystemExit as e: assert e.code == 1\n"
        "logging.getLogger('featx').warning('of %s', name)\n"
        "warnings.warn(name)\n"
        "import threading\n"
        "thread = threading.Thread(target=lambda: {}[name])\n"
        "thread.start(); thread.join()\n"
        "raise ValueError(name)\n"
    )
    result = run_python(code, check=False)
    assert result.stderr.count(r"\x1b]0;TITLE") >= 6
    assert not STEERS.search(result.stderr)
    assert "\nerror: forged" not in result.stderr.partition("of x")[0]


def test_text_in_brackets_is_no_style_and_bars_stay_escaped(tmp_path):
    code = (
        "import sys\n"
        "from featx.extraction.progress import terminal_progress\n"
        "from featx.terminal import say\n"
        f"name = '[red][link=http://x]' + {HOSTILE!r}\n"
        "with terminal_progress(True, name) as show:\n"
        "    show(0, 3, 0); say('line ' + name); print('by a library', name, file=sys.stderr)\n"
        "    show(3, 3, 0)\n"
    )
    shown = on_a_terminal([sys.executable, "-c", code], tmp_path)
    assert not STEERS.search(OF_RICH.sub("", shown))
    assert r"line [red][link=http://x]x\x1b]0;TITLE\x07" in shown.replace("\r\n", "")
    assert "by a library [red]" in shown


def on_a_terminal(command, folder):
    """What a command writes where all its streams are a terminal."""
    leader, follower = pty.openpty()
    environment = {**os.environ, "COLUMNS": "400", "TERM": "xterm", "FEATX_CACHE": "c"}
    process = subprocess.Popen(
        [os.fsencode(word) for word in command],
        stdin=follower, stdout=follower, stderr=follower, cwd=folder, env=environment,
        start_new_session=True,
    )  # fmt: skip
    os.close(follower)
    received = b""
    try:
        while data := os.read(leader, 1 << 16):
            received += data
    except OSError:  # the other side is closed
        pass
    process.wait()
    os.close(leader)
    # A terminal is given line feeds as this pair.
    return received.decode("utf-8", "surrogateescape").replace("\r\n", "\n")


@pytest.fixture(scope="module")
def hostile_folder(tmp_path_factory):
    """A folder with a class, a file and a stray of hostile names, its dataset and a model of it."""
    folder = tmp_path_factory.mktemp("terminal")
    for number in range(8):
        path = folder / "photos" / (NAME if number % 2 else "blue") / f"{number}{NAME}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), (200 * (number % 2), 20 * number, 50)).save(path)
    (folder / "photos" / "blue" / f"bad{NAME}.jpg").write_bytes(b"no image")
    (folder / "photos" / "blue" / f"notes{NAME}.txt").write_bytes(b"no image")
    shutil.copytree(folder / "photos", folder / f"photos{NAME}")
    features = featx.extract(folder / "photos", backbone="tiny", cache=folder / "c")
    featx.train(features, cv=0).model.save(folder / f"m{NAME}.featx")
    return folder


COMMANDS = {
    "extract": ["extract", f"photos{NAME}"],
    "extract --plan": ["extract", f"photos{NAME}", "--plan"],
    "train": ["train", f"photos{NAME}", "-o", f"new{NAME}.featx"],
    "search": ["search", "photos", "--head", "ridge", "--cv", "2", "-o", f"found{NAME}.featx"],
    "audit": ["audit", f"photos{NAME}", "--csv", f"audit{NAME}.csv"],
    "evaluate": ["evaluate", f"m{NAME}.featx", "photos", "--bootstrap", "10"],
    "predict": ["predict", f"m{NAME}.featx", "photos"],
    "predict csv": ["predict", f"m{NAME}.featx", "photos", "--format", "csv"],
    "predict jsonl": ["predict", f"m{NAME}.featx", "photos", "--format", "jsonl", "--unknown"],
    "predict nothing": ["predict", f"none{NAME}.featx", "photos"],
    "finetune --dry-run": ["finetune", f"m{NAME}.featx", "photos", "--dry-run", "--unfreeze", NAME],
    "export": ["export", f"m{NAME}.featx", "--format", NAME],
    "backbones": ["backbones", NAME],
    "import": ["import", NAME, f"none{NAME}.npz"],
    "dataset list": ["dataset", "list"],
    "dataset show": ["dataset", "show", "photos"],
    "dataset relabel": ["dataset", "relabel", "photos", f"{NAME}2={NAME}"],
    "dataset delete": ["dataset", "delete", NAME],
    "cache info": ["cache", "info"],
    "cache info elsewhere": ["cache", "info", "--cache", NAME],
    "cache verify": ["cache", "verify"],
    "cache pack": ["cache", "pack", "photos", "-o", f"packed{NAME}.h5"],
    "cache merge": ["cache", "merge", NAME],
    "doctor": ["doctor", "--cache", f"new{NAME}"],
    "no such command": [NAME],
    "no such option": ["train", f"--{NAME}"],
    "no such choice": ["predict", "m.featx", "x", "--format", NAME],
    "--debug": ["cache", "info", "--cache", NAME, "--debug"],
}


@pytest.fixture(scope="module")
def shown_by_command(hostile_folder):
    """What each command writes on a terminal; one process runs them all."""
    code = (
        "from featx.cli.main import main\n"
        f"for case, args in {COMMANDS!r}.items():\n"
        "    print('<<<' + case, flush=True)\n"
        "    try: main(args)\n"
        "    except SystemExit: pass\n"
        "    except BaseException as error: import sys; sys.excepthook(*sys.exc_info())\n"
    )
    shown = on_a_terminal([sys.executable, "-c", code], hostile_folder)
    return dict(part.split("\n", 1) for part in shown.split("<<<")[1:])


@pytest.mark.parametrize("case", COMMANDS)
def test_no_command_lets_a_name_steer_the_terminal(case, shown_by_command):
    shown = shown_by_command[case]
    assert not STEERS.search(OF_RICH.sub("", shown.replace("\r", ""))), ascii(shown)
    assert not re.search("[\udc80-\udcff]", shown), ascii(shown)
    if case != "--debug":
        assert "Traceback" not in shown
        assert "\nerror: forged" not in shown


@pytest.mark.parametrize("args", [["dataset", "show", "photos"], ["evaluate", "m.featx", "photos"]])
def test_json_brings_names_back(args, hostile_folder):
    args = [f"m{NAME}.featx" if arg == "m.featx" else arg for arg in args]
    code = "from featx.cli.main import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", code, *map(os.fsencode, [*args, "--json", "--cache", "c"])],
        capture_output=True, cwd=hostile_folder,
    )  # fmt: skip
    assert not STEERS.search(result.stdout.decode("ascii"))
    assert any(name.startswith(HOSTILE) for name in json.loads(result.stdout)["classes"])


def test_predictions_in_a_pipe_are_exact(hostile_folder):
    code = "from featx.cli.main import main; main()"
    args = ["predict", f"m{NAME}.featx", "photos", "--cache", "c", "--format"]
    command = [sys.executable, "-c", code, *map(os.fsencode, args)]
    results = {
        style: subprocess.run([*command, style], capture_output=True, cwd=hostile_folder).stdout
        for style in ("csv", "jsonl", "table")
    }
    text = io.StringIO(os.fsdecode(results["csv"]), newline="")
    rows = list(csv.DictReader(text))
    objects = [json.loads(line) for line in results["jsonl"].splitlines()]
    assert [row["path"] for row in rows] == [each["path"] for each in objects]
    for row in rows:
        assert os.path.lexists(hostile_folder / row["path"])
    assert {row["label"] for row in rows if row["label"]} == {"blue", NAME}
    assert not STEERS.search(results["table"].decode())
    assert len(results["table"].splitlines()) == 1 + len(rows)


def test_log_messages_take_one_line_each(capsys):
    record = logging.LogRecord("featx", logging.WARNING, "f", 1, "of %s", ("a\nerror: b",), None)
    from featx.terminal import _OneLine

    assert _OneLine("%(message)s").format(record) == r"of a\nerror: b"
