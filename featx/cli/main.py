"""The entry point. Commands are imported when they are called; ``--help`` imports click alone."""

from __future__ import annotations

import atexit
import errno
import io
import os
import shlex
import signal
import sys
from importlib import import_module
from typing import Any

import click

from featx import __version__
from featx.terminal import guard_stderr, say, waiting_line

# One line of help a command, repeated here so that `featx --help` need not import them.
COMMANDS: dict[str, str] = {
    "demo": "The whole job on embedded data, offline, in a minute.",
    "extract": "Fill the cache with features of images.",
    "train": "Train a head on features and save the model.",
    "search": "Find the best backbone, head and parameters.",
    "finetune": "Train the top of a model's backbone too.",
    "evaluate": "Score a model on labelled images.",
    "audit": "Say what is doubtful in a dataset.",
    "predict": "Predict images with a model.",
    "similar": "Find the images most like others.",
    "select": "Choose which images to label next.",
    "report": "Show a model and its errors on one page.",
    "export": "Write a model as a file that other programs run.",
    "backbones": "List the backbones, or describe one.",
    "import": "Bring in features that were made elsewhere.",
    "dataset": "Look at datasets, split and edit them.",
    "cache": "Look after the cache.",
    "doctor": "Say what works on this machine and what does not.",
}


class LazyGroup(click.Group):
    """A group whose commands are modules of `featx.cli` that are imported when asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, in the order of a job."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        if cmd_name not in COMMANDS:
            return None
        module = "import_" if cmd_name == "import" else cmd_name  # a keyword names no module
        command = getattr(import_module(f"featx.cli.{module}"), "command", None)
        return command if isinstance(command, click.Command) else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a command, with "did you mean" for a mistyped one."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, n=1, cutoff=0.5)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            ctx.fail(f"No such command {args[0]!r}.{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="featx")
def cli() -> None:
    """Turn a folder of images into a classifier.

    A frozen pretrained network looks at every image once; its features are kept in a cache, and
    everything after that takes seconds.

    \b
    featx demo                                   see the whole job on embedded data
    featx train photos/ -o photos.featx          a folder with one sub-folder a class
    featx predict photos.featx new/*.jpg
    """


def main(args: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 a featx error, 2 usage, 130 interrupted."""
    sys.exit(_run(sys.argv[1:] if args is None else args))


def run() -> None:
    """Run the command line as a program of its own.

    All is written and closed by then, and Python would take half a second to clear up.
    """
    status = _run(sys.argv[1:])
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:  # the reader of our output has gone
        status = status or 1
    os._exit(status)


def _run(args: list[str]) -> int:
    signal.signal(signal.SIGTERM, _interrupt)
    for stream in (sys.stdout, sys.stderr):
        # Names of files need not be valid text; printing one must not fail.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    guard_stderr()
    try:
        with waiting_line(f"featx {args[0]}" if args else "featx"):
            result = cli.main(args, prog_name="featx", standalone_mode=False)
    except (click.Abort, KeyboardInterrupt) as error:
        # click replaces the one that says what is kept.
        kept = str(error.__cause__ or error) or "everything finished so far is kept"
        say(f"interrupted: {kept}; the same command goes on from there", err=True)
        return 130
    except click.ClickException as error:
        _show_usage(error)
        return error.exit_code
    except OSError as error:
        if error.errno != errno.EPIPE:
            raise
        # The reader of our output has gone, as `| head` does.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        return _report(error, args)
    return int(result) if isinstance(result, int) else 0


def _show_usage(error: click.ClickException) -> None:
    """Print what click says of wrong usage, with the message on one line."""
    shown = io.StringIO()
    error.show(shown)
    message = f"Error: {error.format_message()}"
    before, matched, _ = shown.getvalue().rstrip("\n").rpartition(message)
    usage = before if matched else shown.getvalue()
    say(*usage.splitlines(), *([message] if matched else []), err=True)


def _report(error: Exception, args: list[str]) -> int:
    from featx.exceptions import FeatxError, OutputError

    if not isinstance(error, FeatxError) or os.environ.get("FEATX_DEBUG"):
        raise error
    say(f"error: {error}", err=True)
    if error.options:
        say(f"next: {shlex.join(['featx', *args, *error.options])}", err=True)
    return 2 if isinstance(error, OutputError) else 1


def _interrupt(_: int, __: Any) -> None:
    raise KeyboardInterrupt
