"""What training and predicting import, seen in a process of its own."""

import subprocess
import sys

import pytest

from featx.heads.storage import dump_head
from featx.heads.table import HEADS

HEAVY = "sorted(m for m in ('tensorflow', 'keras', 'torch', 'jax') if m in sys.modules)"


def run(code, *args):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *map(str, args)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_package_itself_imports_no_scikit_learn():
    code = """
import sys
import featx.heads
from featx.heads import head_names
head_names()
print(sorted(m for m in ("sklearn", "scipy", "h5py", "keras") if m in sys.modules))
"""
    assert run(code) == "[]"


def test_every_public_name_exists():
    code = """
import featx.heads as heads
print([n for n in heads.__all__ if not hasattr(heads, n)], set(heads.__all__) <= set(dir(heads)))
"""
    assert run(code) == "[] True"


def test_training_a_scikit_learn_head_imports_no_keras():
    code = f"""
import sys
import numpy as np
from featx.heads.making import make_head
from featx.heads.storage import dump_head, load_head
X, y = np.random.default_rng(0).normal(size=(40, 6)), np.arange(40) % 2
for name in sys.argv[1:]:
    head = load_head(dump_head(make_head(name).fit(X, y)))
    head.predict_proba(X)
    print(name, {HEAVY})
"""
    names = [name for name, row in HEADS.items() if not row.needs_keras]
    assert run(code, *names).splitlines() == [f"{name} []" for name in names]


def test_a_dense_head_predicts_without_keras(tmp_path):
    np = pytest.importorskip("numpy")
    from featx.heads.making import make_head

    X, y = np.random.default_rng(0).normal(size=(40, 6)), np.arange(40) % 2
    head = make_head("dense:8", max_epochs=2).fit(X, y)
    for name, data in dump_head(head).items():
        (tmp_path / name).write_bytes(data)
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "expected.npy", head.predict_proba(X))
    code = f"""
import sys
from pathlib import Path
import numpy as np
from featx.heads.storage import load_head
folder = Path(sys.argv[1])
head = load_head({{n: (folder / n).read_bytes() for n in ("head.json", "head.h5")}})
same = np.allclose(head.predict_proba(np.load(folder / "x.npy")), np.load(folder / "expected.npy"))
print(same, {HEAVY})
"""
    assert run(code, tmp_path) == "True []"
