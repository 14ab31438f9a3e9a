"""Heads with one attribute changed: each is refused, or answers, and no process dies of it.

Run as a script, this file changes the models of a folder and loads them.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import random
import subprocess
import sys
import tarfile
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest

ARCHIVE = Path(__file__).parents[1] / "data" / "models-v1.tar.xz"
SCALARS = (
    *("null", "true", "false", "-1", "0", "1", "2", "7", "1e308", "-1e-308", "0.5", "NaN"),
    *("Infinity", str(10**12), str(2**63), str(10**40), '""', '"evil"', '"precomputed"', '"auto"'),
    *('"fit_transform"', '"/tmp/folder"', '"kd_tree"', '"deprecated"', '"haversine"', "[1]", "{}"),
)
ATTRIBUTES = ("memory", "func", "stack_method_", "_tree", "predict", "__class__", "__dict__", "n_")
TYPES = (
    ("sklearn.pipeline", "Pipeline"),
    ("sklearn.preprocessing._data", "StandardScaler"),
    ("sklearn.neighbors._classification", "KNeighborsClassifier"),
    ("sklearn.tree._classes", "DecisionTreeClassifier"),
    ("sklearn.linear_model._logistic", "LogisticRegression"),
    ("featx.heads.multilabel", "MultiLabelHead"),
    ("sklearn.ensemble._voting", "VotingClassifier"),
)


def nodes(value):
    """Every node of a schema with the container that it lies in, and its place there."""
    waiting = [(None, None, value)]
    while waiting:
        parent, place, node = waiting.pop()
        if isinstance(node, dict):
            if "__loader__" in node:
                yield parent, place, node
            waiting.extend((node, key, item) for key, item in node.items())
        elif isinstance(node, list):
            waiting.extend((node, key, item) for key, item in enumerate(node))


def changed_array(array, draw):
    """The array in another shape or type, or with another number in it."""
    flat = array.reshape(-1).copy()
    kind = draw.randrange(10)
    if kind == 0:
        return flat
    if kind == 1:
        return array[: len(array) // 2] if array.ndim else np.zeros(3)
    if kind == 2:
        return np.concatenate([array, array]) if array.ndim else array.reshape(1)
    if kind == 3:
        return array.T if array.ndim > 1 else array[None]
    if kind == 4:
        return array[:0] if array.ndim else np.zeros((0, 0))
    if kind == 5 and array.dtype.fields is None:
        return array.astype(array.dtype.newbyteorder(">"))
    if kind == 6 and array.dtype.fields is None and array.dtype.kind in "iuf":
        return array.astype(draw.choice(["f2", "f4", "f8", "i1", "i4", "i8", "u8", "?", "U5"]))
    if kind == 7:
        return np.asfortranarray(array)
    if not flat.size:
        return np.zeros(5)
    place = draw.randrange(flat.size)
    if array.dtype.fields is not None:
        name = draw.choice(list(array.dtype.fields))
        large = [-(2**40), -2, -1, 0, 1, 5, 10**6, 2**40]
        flat[name][place] = draw.choice([0, 1, 2, 200] if flat[name].itemsize < 8 else large)
    elif array.dtype.kind in "iu":
        changed = (
            draw.choice([-1, 0, 1, 3, 100])
            if array.dtype.itemsize < 8
            else draw.choice([-1, 3, 100, 10**10, -(2**62), 2**62])
        )
        flat[place] = np.int64(changed).astype(array.dtype)  # which wraps where there is no sign
    elif array.dtype.kind == "f":
        flat[place] = draw.choice([np.nan, np.inf, -np.inf, 1e30, -1.0, 0.0])
    elif array.dtype.kind in "US":
        flat[place] = draw.choice(["", "zz", "ant"])
    return flat.reshape(array.shape)


def mutate(schema, files, draw):
    """Change one thing of a skops file."""
    found = list(nodes(schema))
    parent, place, node = draw.choice(found)
    kind = draw.randrange(12)
    arrays = [n for _, _, n in found if n["__loader__"] == "NdArrayNode" and "file" in n]
    if kind < 5 and arrays:
        node = draw.choice(arrays)
        array = np.load(io.BytesIO(files[node["file"]]))
        out = io.BytesIO()
        np.save(out, changed_array(array, draw))
        name = f"{draw.randrange(10**9)}.npy"
        files[name], node["file"] = out.getvalue(), name
        return
    # Changes before this one may have taken all nodes of a kind away.
    scalars = [n for _, _, n in found if n["__loader__"] == "JsonNode"]
    objects = [n for _, _, n in found if n["__loader__"] == "ObjectNode" and has_state(n)]
    lists = [n for _, _, n in found if n["__loader__"] in ("ListNode", "TupleNode")]
    if kind < 8 and scalars:
        draw.choice(scalars)["content"] = draw.choice(SCALARS)
    elif kind == 8 and parent is not None:
        other = draw.choice(found)[2]
        parent[place] = copy.deepcopy(other) if len(json.dumps(other)) < 50_000 else None
    elif kind == 9 and objects:
        node = draw.choice(objects)
        state = node["content"]["content"]
        if draw.random() < 0.4:
            node["__module__"], node["__class__"] = draw.choice(TYPES)
        elif draw.random() < 0.5 and state:
            del state[draw.choice(list(state))]
        else:
            value = copy.deepcopy(draw.choice(found)[2])
            state[draw.choice([*ATTRIBUTES, *state])] = value
    elif kind == 10 and lists:
        content = draw.choice(lists)["content"]
        if content:
            content[:] = draw.choice([content[:-1], content + content[:1], content[::-1], []])
    elif "__id__" in node:
        node["__id__"] = draw.choice(found)[2].get("__id__")
    else:
        node["__loader__"] = draw.choice(["ListNode", "ObjectNode", "FunctionNode", "TypeNode"])


def leaves(value):
    """Every container of a JSON value with a key or an index in it."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in list(items):
        yield value, key
        if isinstance(item, dict | list):
            yield from leaves(item)


def mutate_steps(description, arrays, draw):
    """Change one thing of a head of steps."""
    if draw.random() < 0.5:
        name = draw.choice(sorted(arrays))
        arrays[name] = changed_array(arrays[name], draw)
        return
    parent, key = draw.choice(list(leaves(description)))
    other, place = draw.choice(list(leaves(description)))
    value = other[place] if draw.random() < 0.3 else json.loads(draw.choice(SCALARS))
    parent[key] = copy.deepcopy(value)


def zipped(members):
    """A zip of members."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


def changed_skops(data, draw):
    """A skops file, changed in one to three places."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    schema = json.loads(files.pop("schema.json"))
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        mutate(schema, files, draw)
    return zipped({"schema.json": json.dumps(schema), **files})


def changed_steps(description, data, draw):
    """The two files of a head of steps, changed in one to three places."""
    import h5py

    changed = json.loads(description)
    with h5py.File(io.BytesIO(data), "r") as h5:
        arrays = {name: h5[name][()] for name in h5}
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        mutate_steps(changed, arrays, draw)
    out = io.BytesIO()
    with h5py.File(out, "w") as h5:
        for name, array in arrays.items():
            # HDF5 knows no text of NumPy's.
            h5.create_dataset(name, data=array if array.dtype.kind != "U" else array.astype("S"))
    return json.dumps(changed).encode(), out.getvalue()


def has_state(node):
    """Whether a node still has attributes: changes before may have taken them away."""
    content = node.get("content")
    return isinstance(content, dict) and isinstance(content.get("content"), dict)


def mutants(path, count, seed):
    """Files of a model, each with another head."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    details = json.loads(members.pop("model.json"))
    draw = random.Random(seed)
    for _ in range(count):
        changed = dict(members)
        if "head.skops" in members:
            changed["head.skops"] = changed_skops(members["head.skops"], draw)
        else:
            both = changed_steps(members["head.json"], members["head.h5"], draw)
            changed["head.json"], changed["head.h5"] = both
        details["files"] = {n: hashlib.sha256(data).hexdigest() for n, data in changed.items()}
        yield zipped({"model.json": json.dumps(details), **changed})


def main(folder, count, seed):
    """Load every mutant of every model of the folder; the last lies in ``mutant.featx``."""
    import featx
    from featx.exceptions import FeatxError
    from featx.models.model_file import load_predictor

    warnings.simplefilter("ignore")
    X = np.load(folder / "expected.npz")["X"]
    X = np.concatenate([X, 1e3 * X, np.zeros_like(X[:1])])
    counts = {"refused": 0, "answered": 0}
    for path in sorted(folder.glob("*.featx")):
        steps = folder / "steps" / path.name
        steps.parent.mkdir(exist_ok=True)
        featx.load(path).save(steps)
        for source in (path, steps):
            for data in mutants(source, count, f"{seed} {path.stem}"):
                (folder / "mutant").write_bytes(data)
                for load in (featx.load, load_predictor):
                    try:
                        model = load(folder / "mutant")
                    except FeatxError as error:
                        assert len(str(error)) < 500, error
                        counts["refused"] += 1
                    else:
                        for rows in (X, X.astype(np.float64)):
                            assert len(model.head_.predict_proba(rows)) == len(rows)
                        counts["answered"] += 1
    print(json.dumps(counts))


def run(folder, count, seed):
    done = subprocess.run(
        [sys.executable, __file__, str(folder), str(count), str(seed)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"exit {done.returncode}: {done.stderr[-2000:]}"
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def models(tmp_path):
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def test_no_changed_attribute_ends_the_process(models):
    counts = run(models, 3, 0)
    assert min(counts.values()) > 50


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
def test_no_changed_attribute_of_thousands_ends_the_process(models, seed):
    counts = run(models, 400, seed)
    assert min(counts.values()) > 5000


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
