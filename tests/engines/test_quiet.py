"""`featx.quiet`, in processes of their own: only there is nothing imported yet."""

import json
import logging
import sys

import numpy as np
import pytest

from featx.backbones.source import resolve_backbone
from featx.engines.keras import KerasEngine
from featx.quiet import quiet_import

RUN = """
import json
import numpy as np
from featx.backbones.source import resolve_backbone
from featx.engines.keras import KerasEngine
source = resolve_backbone("mobilenet", weights="random:5", input_size=32)
images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
engine = KerasEngine(source, ("avg",))
print(json.dumps([engine.run(images)["avg"].tolist() for _ in range(2)][1]))
"""
WRITE = """
import os, sys
from featx.quiet import quiet_import
print("before", file=sys.stderr)
with quiet_import():
    os.write(2, b"from C++\\n")
    print("from Python", file=sys.stderr)
    {then}
print("after", file=sys.stderr)
"""


@pytest.fixture(scope="module")
def quiet_run(request):
    import os
    import subprocess

    environment = {k: v for k, v in os.environ.items() if not k.startswith(("TF_", "FEATX_DEBUG"))}
    root = request.config.rootpath
    return subprocess.run(
        [sys.executable, "-c", RUN],
        capture_output=True,
        text=True,
        env=environment,
        cwd=root,
        timeout=900,
        check=True,
    )


def test_nothing_of_tensorflows_reaches_the_user(quiet_run):
    assert quiet_run.stderr == ""


def test_random_weights_are_the_same_in_every_process(quiet_run, keras):
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    source = resolve_backbone("mobilenet", weights="random:5", input_size=32)
    here = KerasEngine(source, ("avg",)).run(images)["avg"]
    there = np.array(json.loads(quiet_run.stdout), np.float32)
    np.testing.assert_allclose(there, here, rtol=1e-4, atol=1e-5 * np.abs(here).max())
    source = resolve_backbone("mobilenet", weights="random:6", input_size=32)
    other = KerasEngine(source, ("avg",)).run(images)["avg"]
    assert np.abs(other - here).max() > 0.01 * np.abs(here).max()


@pytest.mark.slow
def test_tensorflow_speaks_when_debugging(run_python):
    code = "from featx.quiet import quiet_import\nwith quiet_import():\n    import tensorflow"
    assert run_python(code, FEATX_DEBUG="1").stderr


INNER = """with quiet_import():
        os.write(2, b"deeper")
    os.write(2, b"up")"""
HANDLED = """try:
        with quiet_import(): raise ValueError
    except ValueError: pass"""


@pytest.mark.parametrize("then", ["", INNER, HANDLED])
def test_what_is_written_inside_is_kept_away(then, run_python):
    assert run_python(WRITE.format(then=then)).stderr == "before\nafter\n"


def test_everything_is_shown_when_debugging(run_python):
    shown = run_python(WRITE.format(then=""), FEATX_DEBUG="1").stderr
    assert shown == "before\nfrom C++\nfrom Python\nafter\n"


def test_what_was_written_is_shown_when_the_body_fails(run_python):
    failed = run_python(WRITE.format(then="raise OSError('no such device')"), check=False)
    assert failed.returncode == 1
    assert failed.stderr.startswith("before\nfrom C++\nfrom Python\nTraceback")
    assert failed.stderr.endswith("OSError: no such device\n")


@pytest.mark.skipif(sys.platform == "win32", reason="file descriptors are POSIX's")
def test_a_process_without_standard_error_works(run_python):
    code = (
        "import os, sys; os.close(2); sys.stderr = None\n"
        "from featx.quiet import quiet_import\n"
        "with quiet_import():\n    import json\n"
        "print('done')"
    )
    assert run_python(code).stdout == "done\n"


def test_the_users_own_settings_are_kept(run_python):
    code = (
        "import os; from featx.quiet import quiet_import\n"
        "with quiet_import(): pass\n"
        "print(os.environ['TF_CPP_MIN_LOG_LEVEL'], os.environ['OPENVINO_TELEMETRY_OPT_OUT'])"
    )
    assert run_python(code, TF_CPP_MIN_LOG_LEVEL="1").stdout == "1 1\n"


def test_standard_output_is_not_touched(capfd):
    with quiet_import():
        print("result", flush=True)
    assert capfd.readouterr() == ("result\n", "")


@pytest.mark.parametrize("debug", [False, True])
def test_the_root_logger_is_left_as_it_was(debug, monkeypatch):
    if debug:
        monkeypatch.setenv("FEATX_DEBUG", "1")
    root = logging.getLogger()
    before = root.level, list(root.filters), list(root.handlers)

    @quiet_import()
    def convert():
        root.setLevel(logging.CRITICAL)
        root.addFilter(lambda _: False)
        root.addHandler(logging.NullHandler())
        raise RuntimeError("it does not convert")

    with pytest.raises(RuntimeError, match="does not convert"):
        convert()
    assert (root.level, root.filters, root.handlers) == before
