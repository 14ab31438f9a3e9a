"""Solvers come to the same under every kernel that OpenBLAS chooses by the processor."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
CODE = """
import sys
import numpy
import scipy.linalg
import threadpoolctl
kinds = {{each.get("architecture") for each in threadpoolctl.threadpool_info()}}
if not kinds & {names}:
    print("not this kernel:", kinds)
    sys.exit(77)
numpy.ones((300, 300)) @ numpy.ones((300, 300))
print("ready", flush=True)
import pytest
# What does not fit into memory goes by way of a sample, and then through all rows.
sys.exit(pytest.main(["-q", "-x", "-p", "no:cacheprovider", "-k", "not all", *{tests}]))
"""
OF_DESCENTS = [
    "every_problem_comes_to_its_minimum",
    "a_label_without_a_row_in_the_sample_converges_all_the_same",
    "a_function_that_overflows_is_stepped_back_from",
    "a_function_that_rounding_makes_rough_ends",
]
TESTS = [
    *(f"test_logistic_fit.py::test_{name}" for name in OF_DESCENTS),
    "test_streaming.py::test_every_label_has_scikit_learns_minimum",
    "test_streaming.py::test_labels_share_the_passes",
    "test_streaming.py::test_the_sample_saves_passes",
]


@pytest.mark.parametrize("kernel", ["Haswell", "SkylakeX", "Zen", "Prescott"])
def test_solvers_converge_under_every_kernel(kernel):
    # OpenBLAS calls its oldest kernels by one name.
    names = {kernel, "Katmai"} if kernel == "Prescott" else {kernel}
    code = CODE.format(names=names, tests=[str(HERE / name) for name in TESTS])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "OPENBLAS_CORETYPE": kernel, "OPENBLAS_NUM_THREADS": "1"},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=900,
    )
    if done.returncode == 77 or not done.stdout.startswith("ready"):
        pytest.skip(f"this machine cannot run OpenBLAS's kernel {kernel}: {done.stdout.strip()}")
    assert done.returncode == 0, done.stdout[-3000:]
