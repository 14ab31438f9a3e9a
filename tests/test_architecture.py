"""Imports follow the way of the data and never run against it."""

from __future__ import annotations

import ast
import graphlib
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
    "notebooks": {"exceptions", "terminal"},
    "files": {"exceptions"},
    "spec": {"exceptions"},
    "images": {"exceptions", "spec", "files", "memory", "threads"},
    "backbones": {"exceptions", "forks", "spec", "quiet", "terminal", "files"},
    "engines": {
        "exceptions",
        "forks",
        "spec",
        "quiet",
        "terminal",
        "threads",
        "files",
        "backbones",
    },
    "cache": {"exceptions", "spec", "files", "notebooks", "threads"},
    "importing": {"exceptions", "files", "spec", "images", "cache"},
    "extraction": {
        "exceptions",
        "spec",
        "files",
        "terminal",
        "notebooks",
        "images",
        "backbones",
        "engines",
        "cache",
        "threads",
    },
    "heads": {"exceptions", "forks", "quiet", "memory", "threads", "files"},
    "memory": {"exceptions"},
    "threads": set(),
    "selection": {"exceptions", "spec", "files", "heads"},
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
        "selection",
        "models",
    },
    "finetuning": {
        "exceptions",
        "spec",
        "quiet",
        "files",
        "notebooks",
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
    "auditing": {
        "exceptions",
        "spec",
        "files",
        "memory",
        "images",
        "backbones",
        "cache",
        "extraction",
        "heads",
        "selection",
        "models",
    },
    "reporting": {
        "exceptions",
        "terminal",
        "spec",
        "files",
        "notebooks",
        "memory",
        "images",
        "cache",
        "extraction",
        "heads",
        "selection",
        "models",
        "finetuning",
        "auditing",
    },
    "models": {
        "exceptions",
        "spec",
        "files",
        "memory",
        "threads",
        "terminal",
        "notebooks",
        "images",
        "backbones",
        "engines",
        "cache",
        "extraction",
        "heads",
        "selection",
    },
}


# Modules of heads: each may import those before it.
HEADS = (
    *("rows", "targets", "decision", "estimators", "steps", "table", "to_steps"),
    *("storage", "foreign", "moments", "sweep", "logistic_solver"),
    *("logistic_path", "learning", "head_pipeline", "ridge", "calibrated"),
    *("multilabel", "nearest_mean", "discriminant", "neighbours", "rbf", "trees", "dense_model"),
    *("regression", "dense_training", "dense", "logistic", "ensemble", "novelty", "making"),
)


def module_name(path):
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def imported_modules(path):
    """Modules of featx that a module imports anywhere, for types and inside functions too."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else node.module for name in names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def imports():
    """Each module with the others of featx that it imports."""
    return {
        name: {other for other in imported_modules(path) if other in MODULES and other != name}
        for name, path in MODULES.items()
    }


def part_of(name):
    return [*name.split("."), ""][1]


def test_no_import_runs_against_the_way_of_the_data():
    wrong = [
        f"{name} imports {other}"
        for name, others in imports().items()
        for other in others
        if (part := part_of(name)) in MAY_IMPORT
        and part_of(other) != part
        and part_of(other) not in MAY_IMPORT[part]
    ]
    assert not wrong
    parts = {part_of(name) for name in MODULES} - {""}
    assert parts == {*MAY_IMPORT, "cli"}


def test_heads_import_what_comes_before_them():
    inside = {name.removeprefix("featx.heads.") for name in MODULES if "featx.heads." in name}
    assert inside == set(HEADS)
    wrong = [
        f"{name} imports {other}"
        for name, others in imports().items()
        for other in others
        if "featx.heads." in name and "featx.heads." in other
        if HEADS.index(other.removeprefix("featx.heads."))
        > HEADS.index(name.removeprefix("featx.heads."))
    ]
    assert not wrong


def test_no_import_runs_in_a_circle():
    list(graphlib.TopologicalSorter(imports()).static_order())


def test_no_two_modules_have_one_name():
    modules = [path.stem for name, path in MODULES.items() if part_of(name) != "cli"]
    names = [name for name in modules if name != "__init__"]
    assert sorted(names) == sorted(set(names))


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
    assert sorted(speaking) == ["engines/backends.py", "exporting/formats.py"]


# Public functions whose arguments are documented options, and estimators, whose are parameters.
MANY_ARGUMENTS = {"extract", "train", "search", "finetune", "export", "report", "predict_to"}


def is_method(function):
    return bool(function.args.args) and function.args.args[0].arg in ("self", "cls")


def test_no_function_takes_more_than_ten_arguments():
    many = [
        f"{path.name}: {function.name}"
        for path in MODULES.values()
        for function in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(function, ast.FunctionDef)
        and function.name not in MANY_ARGUMENTS
        and not (
            function.name == "__init__"
            and path.name in ("classifier.py", "regressor.py", "dense.py")
        )
        and len({*function.args.args, *function.args.kwonlyargs}) > 10 + is_method(function)
    ]
    assert many == []
