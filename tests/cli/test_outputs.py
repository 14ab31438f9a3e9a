"""No command replaces what it reads, nor a file that featx did not make."""

from __future__ import annotations

import os

import pytest
from click.testing import CliRunner

import featx
from featx.cache.pack import pack_dataset
from featx.cli.main import cli
from featx.exceptions import OutputError
from featx.files.outputs import begins_with, is_model, is_pack


@pytest.fixture
def folder(photos, small_network, tmp_path, monkeypatch):
    """An empty folder beside a table, its dataset `photos` and a model `m.featx`."""
    monkeypatch.chdir(tmp_path)
    features = featx.extract(photos, backbone=f"file:{small_network}", cache="cache")
    featx.train(features, cv=0).model.save("m.featx")
    rows = [f"{path},{label}" for path, label in zip(features.paths, features.y, strict=True)]
    (photos / "t.csv").write_text("path,label\n" + "\n".join(rows))
    (tmp_path / "notes.txt").write_text("mine")
    return tmp_path


def run(*args):
    return CliRunner().invoke(cli, [*map(str, args), "--cache", "cache"], standalone_mode=False)


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


COMMANDS = {
    "train": ["train", "photos", "-o"],
    "search": ["search", "photos", "-o"],
    "search --csv": ["search", "photos", "--csv"],
    "finetune": ["finetune", "m.featx", "photos", "-o"],
    "cache pack": ["cache", "pack", "photos", "-o"],
    "evaluate": ["evaluate", "m.featx", "photos", "--confusion"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_file_of_the_user_is_named_and_stays(name, folder):
    before = contents(folder)
    for target, message in (
        ("notes.txt", "'notes.txt' exists and is no .* made by featx: .* --force"),
        ("photos/red/0.jpg", "exists and is no .* made by featx"),
        ("no/such/folder.x", "the folder of .* does not exist"),
        ("photos", "is a directory"),
    ):
        result = run(*COMMANDS[name], target)
        assert result.exception is not None, target
        with pytest.raises(type(result.exception), match=message):
            raise result.exception
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("args", "target"),
    [
        (["train", "photos/t.csv"], "photos/t.csv"),
        (["train", "photos/t.csv"], "photos/red/0.jpg"),
        (["train", "photos"], "photos/red/0.jpg"),
        (["train", "photos"], "link.jpg"),
        (["train", "photos"], "hard.jpg"),
        (["search", "photos"], "cache/a"),
        (["finetune", "m.featx", "photos"], "m.featx"),
        (["finetune", "m.featx", "photos"], "hard.featx"),
        (["export", "m.featx", "--verify", "photos"], "hard.keras"),
        (["cache", "pack", "photos"], "photos/blue/1.jpg"),
    ],
)
def test_force_replaces_no_input(args, target, folder):
    (folder / "link.jpg").symlink_to("photos/red/0.jpg")
    os.link(folder / "photos/red/0.jpg", folder / "hard.jpg")
    os.link(folder / "m.featx", folder / "hard.featx")
    os.link(folder / "photos/red/0.jpg", folder / "hard.keras")
    (folder / "cache" / "a").write_text("of the cache")
    before = contents(folder)
    result = run(*args, "-o", target, "--force")
    assert isinstance(result.exception, OutputError)
    assert "is read by this command" in str(result.exception)
    assert contents(folder) == before


def test_an_export_replaces_nothing_without_force(folder):
    (folder / "m.keras").write_text("mine")
    result = run("export", "m.featx", "-o", "m.keras")
    assert isinstance(result.exception, OutputError)
    assert "--force" in str(result.exception)
    assert (folder / "m.keras").read_text() == "mine"


def test_what_featx_made_is_replaced_and_what_it_did_not_by_force(folder, small_network):
    train = ["train", "photos", "-b", f"file:{small_network}", "--cv", "0", "-o"]
    for args in ([*train, "m.featx"], [*train, "notes.txt", "--force"]):
        result = run(*args)
        assert result.exception is None, result.exception
    assert is_model(folder / "notes.txt")
    for suffix in ("h5", "npz", "safetensors"):
        for args in ([], []):
            assert run("cache", "pack", "photos", "-o", f"p.{suffix}", *args).exception is None
    evaluate = ["evaluate", "m.featx", "photos", "--bootstrap", "0", "--confusion", "c.csv"]
    assert run(*evaluate).exception is None
    assert run(*evaluate).exception is None


def test_models_and_packs_are_recognised_by_what_is_in_them(folder, tmp_path):
    features = featx.Features.open("photos", cache="cache")
    for suffix in ("h5", "npz", "safetensors"):
        path = pack_dataset(features, tmp_path / f"p.{suffix}").path
        assert is_pack(path)
        assert not is_model(path)
    assert is_model(folder / "m.featx")
    assert not is_pack(folder / "m.featx")
    assert not is_pack(folder / "nowhere")
    shard = next((folder / "cache").rglob("*.h5"))
    assert not is_pack(shard)
    (folder / "c.csv").write_text("rank,backbone\n")
    assert begins_with("rank,")(folder / "c.csv")
    assert not begins_with("label,")(folder / "c.csv")


def test_save_replaces_models_only(folder):
    model = featx.load("m.featx")
    model.save("m.featx")
    with pytest.raises(OutputError, match="is no model made by featx"):
        model.save("notes.txt")
    with pytest.raises(OutputError, match="is a folder"):
        model.save("photos", overwrite=True)
    assert (folder / "notes.txt").read_text() == "mine"
    model.save("notes.txt", overwrite=True)
    assert is_model(folder / "notes.txt")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written_is_named_first(folder):
    (folder / "locked").mkdir(mode=0o500)
    result = run("train", "photos", "-o", "locked/m.featx")
    assert isinstance(result.exception, OutputError)
    assert "cannot be written" in str(result.exception)


def test_the_exit_status_is_2(featx_command, photos, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    result = featx_command("train", "photos", "-o", "notes.txt")
    assert result.returncode == 2
    assert "error: 'notes.txt' exists and is no model made by featx" in result.stderr
