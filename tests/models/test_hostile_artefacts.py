"""Files that mean harm: each is refused before anything runs, within little memory."""

from __future__ import annotations

import io
import json
import os
import pickle
import stat
import struct
import tracemalloc
import zipfile

import h5py
import numpy as np
import pytest

import featx
from featx.exceptions import ArtefactError, BackboneError
from featx.heads.novelty import fit_novelty
from featx.models.model_file import load_predictor

LIMIT_BYTES = 64 << 20


class Payload:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def refuse(path, match, **options):
    __tracebackhide__ = True
    tracemalloc.start()
    try:
        with pytest.raises(ArtefactError, match=match):
            featx.load(path, **options)
        assert tracemalloc.get_traced_memory()[1] < LIMIT_BYTES
    finally:
        tracemalloc.stop()


def with_schema(data, edit, members=()):
    """A skops file whose description is edited, with members added or replaced."""
    out, members = io.BytesIO(), dict(members)
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        for item in old.infolist():
            content = members.pop(item.filename, old.read(item))
            if item.filename == "schema.json":
                schema = json.loads(content)
                content = json.dumps(edit(schema) or schema).encode()
            new.writestr(item.filename, content)
        for name, content in members.items():
            new.writestr(name, content)
    return out.getvalue()


def array_nodes(value):
    if isinstance(value, dict):
        if value.get("__loader__") == "NdArrayNode":
            yield value
        for item in value.values():
            yield from array_nodes(item)
    elif isinstance(value, list):
        for item in value:
            yield from array_nodes(item)


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("member", ["head.skops", "model.pkl", "head.h5"])
def test_a_pickle_is_not_run(released, rewrite, tmp_path, member, trust):
    payload = pickle.dumps(Payload(tmp_path / "ran"))
    if member == "head.skops":
        rewrite(released, members={member: payload})
    else:
        rewrite(released, extra=[(member, payload)])
    refuse(released, "damaged|has members that no|not those that", trust=trust)
    released.write_bytes(payload)
    refuse(released, "no model saved by featx", trust=trust)
    assert not (tmp_path / "ran").exists()


def test_a_pickled_array_in_a_skops_file_is_not_run(released, rewrite, tmp_path):
    pickled = io.BytesIO()
    objects = np.array([Payload(tmp_path / "ran")], dtype=object)
    np.save(pickled, objects, allow_pickle=True)

    def swap(data):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            name = next(name for name in archive.namelist() if name.endswith(".npy"))
        return with_schema(data, lambda schema: None, {name: pickled.getvalue()})

    rewrite(released, members={"head.skops": swap})
    refuse(released, "which need pickle", trust=True)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize(
    ("module", "name"), [("os", "system"), ("builtins", "eval"), ("featx.cli.main", "main")]
)
def test_a_type_that_nobody_trusts_is_named(released, rewrite, module, name, trust):
    def edit(schema):
        node = {"__class__": name, "__module__": module, "__loader__": "FunctionNode", "__id__": 1}
        schema["content"]["content"]["verbose"] = node

    rewrite(released, members={"head.skops": lambda data: with_schema(data, edit)})
    refuse(released, f"names {module}.{name}, which featx never loads", trust=trust)


def own_heads():
    from sklearn.ensemble import BaggingClassifier, StackingClassifier, VotingClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer, MinMaxScaler
    from sklearn.svm import SVC

    template, line = KNeighborsClassifier(1, algorithm="brute"), LogisticRegression()
    return {
        "BaggingClassifier": BaggingClassifier(template, n_estimators=2),
        "StackingClassifier": StackingClassifier([("a", line), ("b", template)], cv=2),
        "VotingClassifier": VotingClassifier([("a", line), ("b", template)], voting="soft"),
        "MinMaxScaler": make_pipeline(MinMaxScaler(), line),
        "numpy.tanh": make_pipeline(FunctionTransformer(np.tanh), line),
        "SVC": SVC(),
    }


@pytest.mark.parametrize("name", own_heads())
def test_a_head_that_is_not_in_the_table_asks_for_trust(
    name, numbers, fitted, spec, tmp_path, caplog, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    model = fitted(own_heads()[name])
    model.save(tmp_path / "m.featx", spec=spec)
    assert "will need --trust (trust=True)" in caplog.text
    assert name in caplog.text
    refuse(tmp_path / "m.featx", rf"holds .*{name}.*give --trust \(trust=True\) if you know")
    with pytest.raises(ArtefactError, match=name):
        load_predictor(tmp_path / "m.featx")
    loaded = featx.load(tmp_path / "m.featx", trust=True)
    assert loaded.predict(numbers[0]).tolist() == model.predict(numbers[0]).tolist()


def attribute_of(schema, name):
    """The first attribute of this name, or the first in another: ``tree_/max_depth``."""
    outer, _, name = name.rpartition("/")
    waiting = [attribute_of(schema, outer) if outer else schema]
    while waiting:
        value = waiting.pop(0)
        if isinstance(value, dict):
            if isinstance(value.get(name), dict) and "__loader__" in value[name]:
                return value[name]
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)
    raise LookupError(name)


def with_attribute(data, name, change):
    """The file with a text or an array that is another; `change` has the old array."""
    if isinstance(change, str):
        return with_schema(data, lambda s: attribute_of(s, name).update(content=change))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        member = attribute_of(json.loads(archive.read("schema.json")), name)["file"]
        array = np.load(io.BytesIO(archive.read(member)))
    out = io.BytesIO()
    np.save(out, change(array))
    return with_schema(data, lambda s: None, {member: out.getvalue()})


def put(place, value, field=None):
    """A function that changes one number of an array."""

    def change(array):
        (array if field is None else array[field])[place] = value
        return array

    return change


@pytest.mark.parametrize(
    ("head", "name", "change"),
    [
        ("logistic", "coef_", lambda a: a[:2]),
        ("logistic", "coef_", lambda a: a[:, :5]),
        ("logistic", "coef_", put((0, 0), np.inf)),
        ("logistic", "classes_", lambda a: a[::-1]),
        ("logistic", "classes_", lambda a: a[[0, 0, 1]]),
        ("logistic", "scale_", put(2, 0.0)),
        ("nearest-mean", "temperature_", "0"),
        ("nearest-mean", "temperature_", "-1.5"),
        ("svm", "n_features_in_", "7"),
        ("svm", "n_features_in_", str(10**12)),
        ("knn", "_y", put(0, 10**10)),
        ("knn", "_y", put(0, -1)),
        ("knn", "_y", lambda a: a[:-1]),
        ("knn", "_fit_X", lambda a: a[:5]),
        ("knn", "model_/metric", '"precomputed"'),
        ("knn", "model_/n_neighbors", str(10**9)),
        ("rbf", "whitening_", lambda a: a[:-1]),
        ("forest", "nodes", put(0, 10**6, "left_child")),
        ("forest", "nodes", put(0, 0, "right_child")),
        ("forest", "nodes", put(0, 10**6, "feature")),
        ("forest", "nodes", put(0, -1, "feature")),
        ("forest", "values", lambda a: a[:, :, :2]),
        ("extra-trees", "nodes", lambda a: a[:1]),
    ],
)
def test_an_attribute_that_training_never_leaves_is_refused(
    heads, release, tmp_path, rewrite, head, name, change
):
    path = release(heads[head], tmp_path / "m.featx")
    rewrite(path, members={"head.skops": lambda data: with_attribute(data, name, change)})
    with pytest.raises(ArtefactError, match=r"m\.featx|holds .* as featx does not take them"):
        load_predictor(path)
    with pytest.raises(ArtefactError, match=r"m\.featx|give --trust"):
        featx.load(path)


@pytest.mark.parametrize(
    ("head", "name", "change"),
    [
        ("logistic", "memory", '"folder"'),
        ("logistic", "solver", '"magic"'),
        ("logistic", "_sklearn_version", '"1.0\\u001b[31m"'),
        ("knn", "_fit_method", '"kd_tree"'),
        ("knn", "n_jobs", str(10**6)),
        ("forest", "tree_/max_depth", "0"),
        ("extra-trees", "node_count", "1"),
        ("extra-trees", "n_outputs_", "2"),
    ],
)
def test_an_attribute_that_no_prediction_needs_is_not_looked_at(
    heads, numbers, release, tmp_path, rewrite, monkeypatch, head, name, change
):
    monkeypatch.chdir(tmp_path)
    path = release(heads[head], tmp_path / "m.featx")
    rewrite(path, members={"head.skops": lambda data: with_attribute(data, name, change)})
    expected = heads[head].predict_proba(numbers[0])
    np.testing.assert_allclose(featx.load(path).predict_proba(numbers[0]), expected, atol=1e-4)
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.featx"]


def test_long_names_in_a_file_are_shortened(released, rewrite):
    def edit(schema):
        schema["content"]["content"]["verbose"] = {
            "__class__": "x" * 10_000, "__module__": "sklearn." + "y" * 10_000,
            "__loader__": "FunctionNode", "__id__": 1,
        }  # fmt: skip

    rewrite(released, members={"head.skops": lambda data: with_schema(data, edit)})
    with pytest.raises(ArtefactError, match=r"names sklearn\.yyy.*…, which featx never") as error:
        featx.load(released)
    assert len(str(error.value)) < 500
    rewrite(released, extra=[("z" * 150, b"")])
    with pytest.raises(ArtefactError, match="members that no featx model has") as error:
        featx.load(released)
    assert len(str(error.value)) < 500


def zip_of(path, entries, change=None):
    with zipfile.ZipFile(path, "w") as archive:
        for entry, content in entries:
            archive.writestr(entry, content)
    if change:
        path.write_bytes(change(path.read_bytes()))


def test_compressed_bombs_are_refused(saved, rewrite, tmp_path):
    rewrite(saved, compression=zipfile.ZIP_DEFLATED, extra=[("network.keras", bytes(80 << 20))])
    refuse(saved, "it is compressed, which featx never writes")
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("schema.json", " " * (80 << 20))
    heads = tmp_path / "nested.featx"
    zip_of(heads, [("model.json", "{}")])
    heads.write_bytes(saved.read_bytes())
    with zipfile.ZipFile(heads, "w") as archive:
        archive.writestr("head.skops", inner.getvalue())
    refuse(heads, r"has no model\.json")


def test_a_bomb_within_the_head_is_refused(released, rewrite):
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("schema.json", " " * (80 << 20))
    rewrite(released, members={"head.skops": inner.getvalue()})
    refuse(released, r"head\.skops is damaged .*compressed")


def test_sizes_that_are_not_there_are_refused(saved):
    whole = saved.read_bytes()
    end = whole.rindex(b"PK\x05\x06")
    (entry,) = struct.unpack_from("<I", whole, end + 16)
    forged = bytearray(whole)
    struct.pack_into("<II", forged, entry + 20, 0x7FFFFFFF, 0x7FFFFFFF)
    saved.write_bytes(forged)
    refuse(saved, "claim to be larger than the file")
    forged = bytearray(whole)
    struct.pack_into("<HHI", forged, end + 8, 0xFFFF, 0xFFFF, 0x7FFFFFFF)
    saved.write_bytes(forged)
    refuse(saved, "it has 65,535 members")


def test_many_members_are_refused_before_they_are_listed(saved, rewrite, tmp_path):
    zip_of(tmp_path / "many.featx", [(f"{n:x}", b"") for n in range(20_000)])
    refuse(tmp_path / "many.featx", "it has 20,000 members")
    comment = saved.read_bytes()[:-2] + struct.pack("<H", 5) + b"hello"
    saved.write_bytes(comment)
    refuse(saved, "zip without a comment")


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "C:\\x", "head.skops/../x", "x/"]
)
def test_names_that_lead_elsewhere_are_refused(saved, rewrite, tmp_path, name):
    before = sorted(tmp_path.rglob("*"))
    rewrite(saved, extra=[(name, b"")])
    refuse(saved, "members that no featx model has")
    assert sorted(tmp_path.rglob("*")) == before


def test_links_and_second_members_of_one_name_are_refused(saved, rewrite):
    link = zipfile.ZipInfo("network.keras")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    rewrite(saved, extra=[(link, b"/etc/passwd")])
    refuse(saved, "is a link")
    with pytest.warns(UserWarning, match="Duplicate name"):
        rewrite(saved, extra=[("model.json", b"{}")])
    # The first rewrite left its link.
    refuse(saved, "several members have one name")


KERAS = {
    "class_name": "Sequential",
    "config": {"layers": [{"class_name": "Lambda", "config": {"function": {"code": "4wEAAAA="}}}]},
}


def test_a_keras_model_is_no_head(heads, spec, tmp_path, rewrite):
    path = tmp_path / "m.featx"
    heads["dense"].save(path, spec=spec)
    rewrite(path, members={"head.json": json.dumps(KERAS).encode()})
    refuse(path, r"head\.json or head\.h5 is damaged", trust=True)
    heads["dense"].save(path, spec=spec)
    rewrite(path, extra=[("model.keras", b"PK"), ("config.json", json.dumps(KERAS))])
    refuse(path, "members that no featx model has", trust=True)


def test_a_network_with_a_lambda_layer_is_not_run(tmp_path, photos):
    from featx.quiet import quiet_import

    with quiet_import():
        import keras
    ran = tmp_path / "ran"
    lamb = keras.layers.Lambda(
        eval(f"lambda x: (__import__('os').mkdir({str(ran)!r}), x)[1]"), output_shape=(8, 8, 3)
    )
    model = keras.Sequential([keras.layers.Input((8, 8, 3)), lamb])
    if ran.exists():
        ran.rmdir()
    model.save(tmp_path / "lambda.keras")
    classifier = featx.ImageClassifier(f"file:{tmp_path / 'lambda.keras'}")
    X = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    classifier.fit(X, ["a", "b"] * 4)
    classifier.save(tmp_path / "m.featx")
    loaded = featx.load(tmp_path / "m.featx", trust=True)
    with pytest.raises(BackboneError, match=r"lambda\.keras"):
        loaded.predict([str(next(photos.rglob("*.jpg")))])
    assert not ran.exists()


def links_of(path, kind):
    def change(data):
        file = io.BytesIO(data)
        with h5py.File(file, "r+") as h5:
            old = h5["1.kernel"][()]
            del h5["1.kernel"]
            if kind == "external link":
                h5["1.kernel"] = h5py.ExternalLink(str(path), "/1.kernel")
            elif kind == "soft link":
                h5["1.kernel"] = h5py.SoftLink("/1.bias")
            elif kind == "external data":
                h5.create_dataset(
                    "1.kernel", old.shape, "<f4", external=[(str(path), 0, old.nbytes)]
                )
            elif kind == "virtual":
                layout = h5py.VirtualLayout(old.shape, "<f4")
                layout[:] = h5py.VirtualSource(str(path), "1.kernel", old.shape)
                h5.create_virtual_dataset("1.kernel", layout)
            else:
                h5.create_dataset("1.kernel", (10**9, 10**9), "<f4", chunks=(1, 1))
        return file.getvalue()

    return change


@pytest.mark.parametrize(
    "kind", ["external link", "soft link", "external data", "virtual", "absurd shape"]
)
def test_hdf5_that_leads_elsewhere_is_refused(heads, spec, tmp_path, rewrite, kind):
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as h5:
        h5["1.kernel"] = np.zeros((6, 8), np.float32)
    path = tmp_path / "m.featx"
    heads["dense"].save(path, spec=spec)
    rewrite(path, members={"head.h5": links_of(secret, kind)})
    refuse(path, r"1\.kernel'? (is a link|keeps|is not stored|is float32)")


def test_what_marks_unknown_images_is_read_as_strictly(fitted, numbers, spec, tmp_path, rewrite):
    X, y = numbers
    model = fitted("logistic")
    model.novelty_ = fit_novelty(X, np.unique(y, return_inverse=True)[1])
    path = tmp_path / "m.featx"
    model.save(path, spec=spec)
    np.testing.assert_array_equal(featx.load(path).novelty_.distance(X), model.novelty_.distance(X))

    def link(data):
        file = io.BytesIO(data)
        with h5py.File(file, "r+") as h5:
            del h5["centres"]
            h5["centres"] = h5py.ExternalLink(str(tmp_path / "secret.h5"), "/centres")
        return file.getvalue()

    rewrite(path, members={"novelty.h5": link})
    refuse(path, r"m\.featx: what the model knows .*'centres' is a link")
    model.save(path, spec=spec)
    rewrite(path, lambda details: details["novelty"].update(shape=[10**9] * 3))
    refuse(path, "larger than the file")
    model.save(path, spec=spec)
    rewrite(path, lambda details: details.pop("novelty") and None)
    refuse(path, r"does not describe its novelty\.h5")


def test_weights_that_do_not_fit_their_description_are_refused(heads, spec, tmp_path, rewrite):
    path = tmp_path / "m.featx"

    def kernel(shape):
        return lambda d: d["steps"][1]["arrays"].update(kernel=["<f4", shape])

    for change, message in (
        (kernel([10**9, 8]), r"claim .* bytes in"),
        (kernel([-6, -8]), "an array of type"),
        (kernel([8, 6]), r"1\.kernel is float32 \(6, 8\), expected"),
        (lambda d: d.update(features=10**9), "Scale has a center of shape"),
        (lambda d: d.update(steps=d["steps"][:-2]), "its steps give 8 columns for 3 labels"),
        (lambda d: d.update(steps=[{"step": "Lambda"}]), "'Lambda' is no step"),
        (lambda d: d["steps"][1].pop("arrays"), "Linear has the arrays"),
        (lambda d: d.update(classes={"dtype": "<U999999999", "values": ["a", "b"]}), "is damaged"),
        (lambda d: d.update(classes={"dtype": "|V8", "values": ["a", "b", "c"]}), "damaged"),
    ):
        heads["dense"].save(path, spec=spec)

        def edit(data, change=change):
            description = json.loads(data)
            change(description)
            return json.dumps(description).encode()

        rewrite(path, members={"head.json": edit})
        refuse(path, message)


def npy(shape, dtype, data=b""):
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}"
    header = header.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + data


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (npy((10**12,), "<f8"), "bytes cannot hold"),
        (npy((10**9,), "<U0"), "bytes cannot hold"),
        (npy((10**9, 0), "<f8"), "bytes cannot hold"),
        (npy((-1,), "<f8"), "damaged"),
        (npy((2,), "|O", b"x" * 16), "which need pickle"),
        (npy((3,), "<f8", np.full(3, np.nan).tobytes()), "as featx does not take them"),
        (npy((1,), "<f8", bytes(8)), "as featx does not take them|other classes"),
    ],
)
def test_arrays_that_lie_are_refused(released, rewrite, array, message):
    whole = released.read_bytes()
    with zipfile.ZipFile(released) as archive:
        head = archive.read("head.skops")
    with zipfile.ZipFile(io.BytesIO(head)) as archive:
        schema = json.loads(archive.read("schema.json"))
    steps = schema["content"]["content"]["steps"]["content"]
    state = steps[1]["content"][1]["content"]["content"]
    # An intercept of one number goes with any number of classes.
    names = ["coef_", "classes_", *(["intercept_"] if array != npy((1,), "<f8", bytes(8)) else [])]
    for name in names:
        released.write_bytes(whole)
        replaced = {state[name]["file"]: array}
        rewrite(
            released,
            members={"head.skops": lambda d, r=replaced: with_schema(d, lambda s: None, r)},
        )
        refuse(released, message)


def test_one_array_that_many_objects_share_is_refused(released, rewrite):
    def edit(schema):
        node = next(array_nodes(schema))
        copies = [{**node, "__id__": 10**6 + n} for n in range(3000)]
        schema["content"]["content"]["more"] = {
            "__class__": "list", "__module__": "builtins", "__loader__": "ListNode",
            "content": copies, "__id__": 7,
        }  # fmt: skip
        return schema

    big = npy((200_000,), "|u1", bytes(200_000))

    def change(data):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            name = next(array_nodes(json.loads(archive.read("schema.json"))))["file"]
        return with_schema(data, edit, {name: big})

    rewrite(released, members={"head.skops": change})
    refuse(released, "many objects share one array")


def test_a_billion_classes_are_refused(saved, rewrite):
    rewrite(saved, lambda d: json.dumps(d).replace('["ant", "bee"', f'[{"0," * 10**6} "ant"'))
    refuse(saved, "states other classes")
    rewrite(saved, lambda d: d.update(classes=10**9))
    refuse(saved, "lacks or distorts classes")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 10**6, "changed: .*recursion"),
        ('{"a":' * 10**5, "changed: .*recursion"),
        ('{"type": "featx-model", "version": NaN}', "NaN is not a finite number"),
        ('{"type": "featx-model", "version": 1, "x": -Infinity}', "not a finite number"),
        ('{"type": "featx-model", "version": 1, "x": 1e999}', "1e999 is not a finite number"),
        (f'{{"type": "featx-model", "version": {"9" * 10**6}}}', "changed: "),
        ('{"type": "featx-model", "version": 1, "version": 1}', "one name twice"),
        (b"\xff\xfe{", "changed: "),
        ('"featx-model"', "expected an object"),
        ('{"type": "featx-model", "version": 1, "files": {}, "x": "' + "y" * (65 << 20) + '"}',
         "absurdly large"),
    ],
    ids=["lists", "objects", "nan", "infinity", "1e999", "huge", "twice", "bytes", "text", "long"],
)  # fmt: skip
def test_json_that_is_none_is_refused(tmp_path, text, message):
    zip_of(tmp_path / "m.featx", [("model.json", text), ("head.skops", b"")])
    refuse(tmp_path / "m.featx", message)


def test_special_files_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.featx")
    refuse(tmp_path / "pipe.featx", "which is no file")
    refuse(tmp_path, "which is no file")
    with (tmp_path / "sparse.featx").open("wb") as file:
        file.truncate(5 << 30)
    refuse(tmp_path / "sparse.featx", "more than any model of featx")
