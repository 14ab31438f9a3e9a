"""Imports follow the way of the data and never run against it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import featx

ROOT = Path(featx.__file__).parent
# What each part may import of the others; a part may always import itself.
MAY_IMPORT = {
    "exceptions": set(),
    "quiet": set(),
    "forks": {"exceptions"},
    "terminal": set(),
    "files": {"exceptions"},
    "spec": {"exceptions"},
    "images": {"exceptions", "spec", "files"},
    "backbones": {"exceptions", "forks", "spec", "quiet", "terminal", "files"},
    "engines": {"exceptions", "forks", "spec", "quiet", "files", "backbones"},
    "cache": {"exceptions", "spec", "files"},
    "importing": {"exceptions", "files", "spec", "images", "cache"},
    "extraction": {
        "exceptions",
        "spec",
        "files",
        "terminal",
        "images",
        "backbones",
        "engines",
        "cache",
    },
    "heads": {"exceptions", "forks", "quiet", "memory", "files"},
    "memory": {"exceptions"},
    "selection": {"exceptions", "files", "heads"},
    "exporting": {
        "exceptions",
        "spec",
        "quiet",
        "files",
        "images",
        "backbones",
        "engines",
        "cache",
        "extraction",
        "heads",
        "models",
    },
    "finetuning": {
        "exceptions",
        "spec",
        "quiet",
        "files",
        "memory",
        "images",
        "backbones",
        "engines",
        "cache",
        "extraction",
        "heads",
        "selection",
        "models",
        "exporting",
    },
    "demonstration": set(),
}


def part_of(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported_parts(path):
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            if name.startswith("featx."):
                yield name.split(".")[1]


def test_no_import_runs_against_the_way_of_the_data():
    wrong = [
        f"{path.relative_to(ROOT)} imports featx.{part}"
        for path in sorted(ROOT.rglob("*.py"))
        if part_of(path) in MAY_IMPORT
        for part in imported_parts(path)
        if part != part_of(path) and part not in MAY_IMPORT[part_of(path)]
    ]
    assert not wrong


def writes_to_a_terminal(node):
    """Whether a piece of code prints, or takes hold of what prints."""
    if isinstance(node, ast.Call):
        name = getattr(node.func, "id", None) or getattr(node.func, "attr", "")
        return name in {
            *("print", "pprint", "echo", "secho", "echo_via_pager", "input", "print_exc"),
            *("Console", "StreamHandler", "basicConfig", "get_console"),
        }
    streams = {"stdout", "stderr", "__stdout__", "__stderr__"}
    if isinstance(node, ast.Attribute) and node.attr in {"write", "writelines", "buffer"}:
        return getattr(node.value, "attr", "") in streams
    return isinstance(node, ast.ImportFrom) and (
        node.module == "sys" and bool(streams & {alias.name for alias in node.names})
    )


def test_one_module_writes_to_the_terminal():
    writing = {
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in ROOT.rglob("*.py")
        if path != ROOT / "terminal.py"
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if writes_to_a_terminal(node)
    }
    assert not writing


def test_a_backend_of_keras_is_spoken_to_in_its_adapter_and_in_exports_only():
    spoken = re.compile(r"\btf\.|\b(?:import|from) (?:tensorflow|jax|torch)\b")
    speaking = [
        path.relative_to(ROOT).as_posix()
        for path in ROOT.rglob("*.py")
        if spoken.search(path.read_text("utf-8"))
    ]
    assert sorted(speaking) == [
        "engines/backends.py",
        "exporting/formats.py",
        "exporting/serving.py",
    ]
