"""Exit codes, `--json` and files of every command, in one session on drawn pictures."""

from __future__ import annotations

import json
import os
import shutil
import time

import numpy as np
import pytest

from featx.cli.main import COMMANDS

NET = "-b file:small.keras"
OWN = f"{NET} --no-draft"  # as 0.1 decoded by default
SCORED = "--cv 3 --json"

# Command lines by name. Those with --json or --format jsonl are compared line by line.
STEPS = {
    "extract": f"extract pictures {OWN} --json",
    "extract again": f"extract pictures {OWN} --json",
    "extract views": f"extract pictures {OWN} --tap avg --tap first:max --views 1 --json",
    "extract plan": f"extract pictures {OWN} --plan --json",
    "extract a table": f"extract table.csv {OWN} --dtype float16 --name halves --json",
    "extract as text": f"extract pictures {OWN}",
    "train": f"train pictures {OWN} --tap avg -o m.featx {SCORED}",
    "train another head":
        f"train pictures {OWN} --tap avg --head ridge:alpha=10 -o r.featx {SCORED}",
    "train on a split": f"train table.csv {OWN} -o t.featx --json",
    "train labels": f"train sets.csv {OWN} --multilabel -o s.featx {SCORED}",
    "train views":
        f"train pictures {OWN} --tap avg --views 1 --average-views -o v.featx {SCORED}",
    "train within a bound": f"train pictures {OWN} --tap avg --max-ram 64MiB -o b.featx {SCORED}",
    "train by name": f"train pictures {OWN} --tap avg -o m2.featx --cv 0 --json",
    "train as text": f"train pictures {OWN} --tap avg -o m3.featx --cv 0",
    "search":
        f"search pictures {OWN} --tap avg --head ridge:alpha=1|100 --head "
        "lda:shrinkage=0.5 --scoring log_loss --cv 3 --score none -o best.featx --json --csv "
        "all.csv",
    "search again":
        f"search pictures {OWN} --tap avg --head ridge:alpha=1|100 --head "
        "lda:shrinkage=0.5 --scoring log_loss --cv 3 --score none -o best.featx --json",
    "search as text":
        f"search pictures {OWN} --tap avg --head lda:shrinkage=0.5 --cv 2 --score none -o "
        "best2.featx",
    "finetune plan": "finetune m.featx pictures --unfreeze second --dry-run --json",
    "finetune": "finetune m.featx pictures --unfreeze second --epochs 1 --batch-size 8 --json",
    "evaluate": "evaluate m.featx pictures --json --bootstrap 20 --confusion c.csv",
    "evaluate labels": "evaluate s.featx sets.csv --json --bootstrap 20 --confusion cs.csv",
    "evaluate a tuned one": "evaluate m-finetuned.featx pictures --json --bootstrap 0",
    "compare": "evaluate m.featx pictures --compare r.featx --bootstrap 20 --json",
    "predict": "predict m.featx pictures --format jsonl --unknown",
    "predict two": "predict m.featx pictures/striped --format jsonl --top-k 2",
    "predict labels": "predict s.featx more --format jsonl",
    "predict names": "predict m.featx - --format csv",
    "predict none": "predict m.featx missing.ppm --format jsonl",
    "predict as table": "predict m.featx pictures/red",
    "export": "export m.featx --format openvino --verify pictures --json",
    "export again": "export m.featx --format openvino --json",
    "export by force": "export m.featx -o m.xml --force --json",
    "backbones": "backbones --json",
    "backbone": "backbones tiny --json",
    "backbones as text": "backbones",
    "import": "import numbers numbers.npz --json",
    "import again": "import numbers numbers.npz --labels labels.csv --json",
    "dataset list": "dataset list --json",
    "dataset show": "dataset show pictures --json",
    "dataset split": "dataset split halves --test 0.25 --val 0.25 --method stratified --json",
    "dataset relabel": "dataset relabel halves a=first --json",
    "dataset add": "dataset add pictures halves --as both --json",
    "dataset remove": "dataset remove both more/0* --status failed --json",
    "dataset rename": "dataset rename both all",
    "dataset delete": "dataset delete all",
    "cache info": "cache info --json",
    "cache verify": "cache verify --json",
    "cache repair": "cache repair --dry-run --json",
    "cache gc": "cache gc --json",
    "cache gc now": "cache gc --yes --older-than 0s --json",
    "cache merge": "cache merge cache --cache other --json",
    "cache pack": "cache pack numbers -o numbers.h5 --json",
    "cache pack numpy": "cache pack pictures -b file:small --tap avg -o pictures.npz --json",
    # Commands that 0.1 did not have: they change what the cache holds, so they come last.
    "audit": f"audit pictures {OWN} --csv audit.csv",
    "report": "report m.featx pictures -o page.html",
    "similar": "similar pictures pictures/red/1.ppm -b file:small --tap avg",
    "select": "select pictures -n 2 -b file:small --tap avg",
    "doctor": "doctor --json",
    "version": "--version",
    "help": "--help",
}  # fmt: skip

WRONG = [
    "", "nonsense", "extract", "extract pictures --nonsense", "extract nowhere",
    "extract no/where", "extract pictures -b resnet51", f"extract pictures {NET} --tap nowhere",
    "extract pictures --workers 0", "extract pictures -b file:missing.keras",
    "extract pictures -b vgg16 --weights missing.h5", f"extract empty {NET}",
    f"extract broken {NET}", f"extract pictures {NET} --on-error raise --cache fresh",
    f"extract pictures {NET} --max-failures 0 --cache fresh2",
    f"extract pictures {NET} --cache c.csv", f"train pictures {NET} --tap avg --head logistik",
    f"train one {NET}", f"train pictures {NET} --tap avg --head ridge:alfa=1",
    f"train pictures {NET} -o no/such.featx", f"train pictures {NET} --tap avg -o table.csv",
    "train pictures --cv x", f"train sets.csv {NET}",
    f"search pictures {NET} --tap avg --head nonsense", f"search pictures {NET} --budget soon",
    f"search pictures {NET} --tap avg --strategy nonsense", f"search pictures {NET} --cv 1",
    "finetune missing.featx pictures", "finetune m.featx pictures --unfreeze nowhere",
    "finetune m.featx pictures --epochs 0", "finetune m.featx pictures --holdout 2",
    "evaluate damaged.featx pictures", "evaluate missing.featx pictures",
    "evaluate m.featx nowhere", "evaluate m.featx sets.csv", "predict", "predict m.featx",
    "predict damaged.featx pictures", "predict c.csv pictures", "predict m.featx nowhere/*.ppm",
    "predict m.featx empty", "predict m.featx broken", "predict m.featx pictures --format xml",
    "predict s.featx more --unknown", "export m.featx", "export m.featx --format nonsense",
    "export m.featx -o m.pdf", "export missing.featx --format keras",
    "export m.featx -o m8.keras --int8", "backbones resnet51", "import numbers missing.npz",
    "import numbers table.csv", "import a/b numbers.npz", "dataset", "dataset nonsense",
    "dataset show nowhere", "dataset split nowhere", "dataset split pictures --test 2",
    "dataset relabel pictures nowhere=a", "dataset remove pictures nowhere",
    "dataset rename pictures sets", "dataset delete nowhere", "dataset add pictures nowhere",
    "cache", "cache nonsense", "cache gc --older-than soon", "cache merge nowhere",
    "cache pack nowhere", "cache pack pictures", "cache pack numbers -o n.pdf",
    "doctor --cache c.csv/x",
]  # fmt: skip


@pytest.fixture(scope="module")
def session(archived, drawn, tmp_path_factory, run):
    """Every step with its exit code and its output, in one folder."""
    folder = tmp_path_factory.mktemp("session")
    shutil.copytree(drawn, folder, dirs_exist_ok=True)
    shutil.copy(archived / "small.keras", folder)
    shutil.copy(archived / "models" / "damaged.featx", folder)
    (folder / "empty").mkdir()
    for name in ("broken/a/1.ppm", "broken/b/2.ppm"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(b"no picture")
    shutil.copytree(folder / "pictures" / "red", folder / "one" / "red")
    X = np.arange(40, dtype=np.float64).reshape(10, 4) % 7
    np.savez(folder / "numbers.npz", X=X, y=["x", "y"] * 5)
    (folder / "labels.csv").write_text("label\n" + "a\nb\n" * 5)
    # Files that changed less than two seconds before they were looked at are read again.
    time.sleep(2.5)
    before = os.getcwd()
    os.chdir(folder)
    try:
        names = "pictures/red/1.ppm\npictures/red/broken.ppm\nmissing.ppm\n"
        found = {name: run(*words.split(), stdin=names) for name, words in STEPS.items()}
        wrong = {words: run(*words.split()) for words in WRONG}
    finally:
        os.chdir(before)
    return folder, found, wrong


def test_every_command_has_a_step():
    words = {line.split()[0] for line in STEPS.values()}
    # The demonstration takes half a minute.
    assert set(COMMANDS) - words == {"demo"}


def test_exit_codes_and_streams(session, frozen):
    _, found, wrong = session
    frozen("exit-codes", {
        name: {"code": code, "prints": bool(out), "warns": bool(err)}
        for name, (code, out, err) in {**found, **wrong}.items()
    })  # fmt: skip
    for words, (_, _, err) in wrong.items():
        assert "Traceback" not in err, words


@pytest.mark.parametrize("name", [name for name, words in STEPS.items() if "json" in words])
def test_json(name, session, frozen):
    folder, found, _ = session
    value = [json.loads(line) for line in found[name][1].splitlines()]
    if name == "doctor":
        value = [{check["what"]: {} for check in value[0]["checks"]}]
    elif name == "backbones":
        value = [{row["name"]: row for row in value[0]["backbones"]}]
    frozen(f"json/{name.replace(' ', '-')}", value, folder=folder, tolerance=2e-3)


def test_tables_and_files(session, frozen):
    folder, found, _ = session
    names = ["c.csv", "cs.csv"]
    files = {name: (folder / name).read_text("utf-8").splitlines() for name in names}
    files["all.csv"] = (folder / "all.csv").read_text("utf-8").splitlines()[0]
    files["predict names"] = [line.split(",")[0] for line in found["predict names"][1].splitlines()]
    files["predict header"] = found["predict names"][1].splitlines()[0]
    files["predict as table"] = [line.split()[0] for line in
                                 found["predict as table"][1].splitlines()]  # fmt: skip
    with np.load(folder / "pictures.npz") as packed:
        files["pictures.npz"] = {
            name: [packed[name].dtype.kind, list(packed[name].shape)] for name in packed.files
        }
    made = {path.name: True for path in folder.iterdir()}
    inside = {path.name: True for path in folder.glob("m-finetuned.featx.training/*")}
    frozen("files", {**files, "made": made, "training": inside}, folder=folder)
