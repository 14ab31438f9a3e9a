"""Commands that featx prints work as they are, and options are not silently overridden."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

import featx
from featx.cli.main import COMMANDS, cli
from featx.cli.options import Command


def every_command(group, context):
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from every_command(command, context)
        else:
            yield command


def test_no_option_of_one_value_is_taken_twice():
    context = click.Context(cli)
    for command in every_command(cli, context):
        assert isinstance(command, Command), command.name
        for param in command.params:
            single = isinstance(param, click.Option) and not (param.multiple or param.is_flag)
            if single and param.name != "max_ram":
                parser = command.make_parser(click.Context(command))
                option = param.opts[-1]
                with pytest.raises(click.UsageError, match=f"{option} takes one value and is gi"):
                    parser.parse_args([option, "1", option, "1"])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--head", "knn", "--head", "svm"], "--head takes one value .* 2 times.*`featx search`"),
        (["--cv", "2", "--cv=3", "--cv", "4"], "--cv takes one value and is given 3 times"),
        (["--draft", "--no-draft"], "--draft/--no-draft takes one value"),
    ],
)
def test_what_contradicts_itself_is_refused_before_any_work(args, message):
    result = CliRunner().invoke(cli, ["train", "photos", *args], standalone_mode=False)
    with pytest.raises(click.UsageError, match=message):
        raise result.exception


def test_several_where_several_mean_something_are_taken():
    args = ["extract", "nowhere", "--tap", "avg", "--tap", "max", "--json", "--json"]
    result = CliRunner().invoke(cli, args, standalone_mode=False)
    assert not isinstance(result.exception, click.UsageError)


@pytest.fixture
def pasted(tmp_path, monkeypatch):
    """Run a command, and then in a shell the command that it prints; return the first output."""
    wrapper = tmp_path / "bin" / "featx"
    wrapper.parent.mkdir()
    wrapper.write_text(
        f"#!{sys.executable}\nfrom featx.cli.main import main\nmain()\n", encoding="utf-8"
    )
    wrapper.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    path = f"{wrapper.parent}{os.pathsep}{os.environ['PATH']}"

    def run(*args):
        first = CliRunner().invoke(cli, [*map(str, args)])
        assert first.exit_code == 0, first.output
        (command,) = re.findall("^next: (.*)$", first.stdout, flags=re.M)
        second = subprocess.run(
            ["bash", "-c", command],
            capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PATH": path},
        )  # fmt: skip
        assert second.returncode == 0, f"{command}\n{second.stderr}"
        return command

    return run


def test_the_next_command_works_when_it_is_pasted(pasted, photos, small_network, tmp_path):
    folder = tmp_path / "my photos\x1b[31m"
    photos.rename(folder)
    options = ["--cache", "my cache"]
    # Converted here, where Keras is imported anyway, so that no process has to start it.
    featx.extract(folder, backbone=f"file:{small_network}", taps="max", cache=tmp_path / "other")
    command = pasted("extract", folder, "-b", f"file:{small_network}", "--tap", "max", *options)
    assert "--tap max --cache 'my cache'" in command
    for head, trust in (("forest", False), ("sklearn.svm.SVC:kernel=rbf", True)):
        train = ["train", folder, "-b", f"file:{small_network}", "--head", head, "--cv", "0"]
        command = pasted(*train, "-o", "my model.featx", *options)
        assert command.startswith("featx predict --cache 'my cache' ")
        if trust:
            assert " --trust " in command


def test_every_command_is_listed():
    assert set(COMMANDS) == set(cli.list_commands(None))
