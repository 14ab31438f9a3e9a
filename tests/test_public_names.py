from __future__ import annotations

import importlib
import pkgutil

import pytest

import featx


def test_public_names_are_sorted_importable_and_complete():
    assert featx.__all__ == sorted(featx.__all__)
    for name in featx.__all__:
        assert getattr(featx, name).__module__.startswith("featx"), name
    errors = importlib.import_module("featx.exceptions")
    classes = {name for name in errors.__all__ if name.endswith("Error")}
    assert classes <= set(featx.__all__)


def test_no_module_bears_the_name_of_a_public_function():
    functions = {name for name in featx.__all__ if name[0].islower()}
    top = {found.name for found in pkgutil.iter_modules(featx.__path__)}
    assert not functions & top


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'extrakt'"):
        _ = featx.extrakt


def test_importing_featx_imports_nothing_heavy(run_python):
    code = (
        "import sys, featx; dir(featx);"
        "heavy = {'tensorflow', 'keras', 'sklearn', 'numpy', 'h5py', 'PIL', 'rich', 'openvino'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert run_python(code).stdout.strip() == "[]"
