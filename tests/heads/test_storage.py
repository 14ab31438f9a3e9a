import io
import json
import pickle
import zipfile

import h5py
import numpy as np
import pytest
import skops.io
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, Normalizer, StandardScaler
from sklearn.svm import SVC

from featx.exceptions import ArtefactError, HeadError
from featx.heads.dense import DenseClassifier
from featx.heads.making import make_head
from featx.heads.storage import dump_head, load_head
from featx.heads.table import head_names

QUICK = {
    "dense": {"hidden": (8, 4), "max_epochs": 3},
    "forest": {"n_estimators": 5},
    "extra-trees": {"n_estimators": 5},
}
RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 6)).astype(np.float32)
LABELS = np.array(["ants", "bees", "гриб"])[np.arange(60) % 3]


def fitted(name, y=LABELS, **params):
    return make_head(name, **{**QUICK.get(name, {}), **params}).fit(X, y)


@pytest.fixture(scope="module")
def dense_files():
    return dump_head(fitted("dense"))


@pytest.mark.parametrize("name", head_names())
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_round_trip_gives_the_same_answers(name, dtype):
    head = fitted(name)
    files = dump_head(head)
    assert set(files) == {"head.json", "head.h5"}
    twin = load_head(files)
    fresh = RNG.normal(size=(30, 6)).astype(dtype)
    np.testing.assert_allclose(twin.predict_proba(fresh), head.predict_proba(fresh), atol=2e-6)
    again = load_head(dump_head(twin))
    np.testing.assert_array_equal(again.predict_proba(fresh), twin.predict_proba(fresh))
    np.testing.assert_array_equal(twin.predict(fresh), head.predict(fresh))
    np.testing.assert_array_equal(twin.classes_, head.classes_)
    assert twin.classes_.dtype == head.classes_.dtype


@pytest.mark.parametrize(
    "labels",
    [
        np.arange(60) % 3,
        np.array([10, 20, 30], dtype=np.uint8)[np.arange(60) % 3],
        np.array([1.0, 2.0])[np.arange(60) % 2],
        np.arange(60) % 2 == 0,
        np.array(["a", "b"], dtype=object)[np.arange(60) % 2],
    ],
)
def test_labels_of_a_dense_head_keep_their_type(labels):
    head = fitted("dense", labels)
    twin = load_head(dump_head(head))
    assert twin.classes_.dtype == head.classes_.dtype
    assert twin.classes_.tolist() == head.classes_.tolist()


@pytest.mark.parametrize("name", head_names())
def test_several_labels_an_image_are_kept(name):
    labels = np.column_stack([LABELS == "ants", LABELS != "bees", LABELS == "none"]).astype(int)
    head = make_head(name, multilabel=True, **QUICK.get(name, {})).fit(X, labels)
    files = dump_head(head)
    assert set(files) == {"head.json", "head.h5"}
    twin = load_head(files)
    fresh = RNG.normal(size=(30, 6)).astype(np.float32)
    np.testing.assert_allclose(twin.predict_proba(fresh), head.predict_proba(fresh), atol=1e-5)
    assert (twin.predict(fresh) == head.predict(fresh)).all()
    if name != "dense":
        assert (twin.predict_proba(fresh)[:, 2] == 0).all()


@pytest.mark.parametrize(
    "head",
    [
        make_pipeline(StandardScaler(), PCA(3), DenseClassifier((4,), max_epochs=2)),
        make_pipeline(Normalizer(), LogisticRegression()),
        make_pipeline(PCA(3, whiten=True), LogisticRegression()),
        GaussianNB(),
        KNeighborsClassifier(3, metric="manhattan"),
        RandomForestClassifier(4, random_state=0),
    ],
)
def test_estimators_of_ones_own_that_are_arithmetic_need_no_trust(head):
    twin = load_head(dump_head(head.fit(X, LABELS)))
    np.testing.assert_allclose(twin.predict_proba(X), head.predict_proba(X), atol=2e-6)


def test_margins_stay_margins():
    head = RidgeClassifier().fit(X, LABELS)
    twin = load_head(dump_head(head))
    assert not hasattr(twin, "predict_proba")
    np.testing.assert_allclose(twin.decision_function(X), head.decision_function(X), atol=2e-6)
    assert twin.predict(X).tolist() == head.predict(X).tolist()


def test_other_forms_of_probabilities_are_left_to_scikit_learn():
    head = LogisticRegression(solver="liblinear").fit(X, LABELS == "ants")
    assert set(dump_head(head)) == {"head.json", "head.h5"}
    head = make_pipeline(StandardScaler(), SVC()).fit(X, LABELS)
    files = dump_head(head)
    assert set(files) == {"head.skops"}
    with pytest.raises(ArtefactError, match="holds .*SVC, .* give --trust"):
        load_head(files)
    assert load_head(files, trust=True).predict(X).tolist() == head.predict(X).tolist()


class Foreign(ClassifierMixin, BaseEstimator):
    def fit(self, X, y):
        self.classes_ = np.unique(y)
        return self

    def predict(self, X):
        return np.repeat(self.classes_[:1], len(X))


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (LogisticRegression(), "not trained: call fit before saving"),
        (DenseClassifier(), "not trained: call fit before saving"),
        (Foreign().fit(X, LABELS), "holds .*Foreign"),
    ],
)
def test_what_could_not_be_loaded_is_not_saved(head, message):
    with pytest.raises(HeadError, match=message):
        dump_head(head)


def skops_naming(obj):
    return {"head.skops": skops.io.dumps(obj)}


def edited(data, edit):
    """The skops file with its schema changed by ``edit(schema)``."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        for item in old.infolist():
            content = old.read(item)
            if item.filename == "schema.json":
                schema = json.loads(content)
                edit(schema)
                content = json.dumps(schema).encode()
            new.writestr(item.filename, content)
    return {"head.skops": out.getvalue()}


class Payload:
    ran = False

    def __reduce__(self):
        return (setattr, (Payload, "ran", True))


@pytest.mark.parametrize("trust", [False, True])
def test_a_pickle_in_its_place_is_not_run(trust):
    with pytest.raises(ArtefactError, match=r"head\.skops is damaged or no skops file"):
        load_head({"head.skops": pickle.dumps(Payload())}, trust=trust)
    assert not Payload.ran


def function(module, name):
    return {"__class__": name, "__module__": module, "__loader__": "FunctionNode", "__id__": 1}


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("posix", "system"),
        ("builtins", "eval"),
        ("subprocess", "Popen"),
        ("numpy", "load"),
        ("numpy", "memmap"),
        ("numpy.f2py.__main__", "main"),
        ("sklearn.datasets", "load_files"),
        ("sklearn.__main__", "os"),
        ("sklearn.utils", "os"),
        ("sklearn.conftest", "pytest"),
        ("sklearn.no_such", "Thing"),
        ("featx.cli.main", "main"),
    ],
)
def test_a_file_that_names_anything_else_is_refused_and_names_it(module, name, trust):
    data = skops.io.dumps(FunctionTransformer(np.sqrt).fit(X))

    def edit(schema):
        schema["content"]["content"]["func"] = function(module, name)

    with pytest.raises(ArtefactError, match=f"{module}.{name}, which featx never loads"):
        load_head(edited(data, edit), trust=trust)


@pytest.mark.parametrize("trust", [False, True])
def test_an_estimator_of_another_package_is_refused(trust):
    with pytest.raises(ArtefactError, match="Foreign, which featx never loads"):
        load_head(skops_naming(Foreign().fit(X, LABELS)), trust=trust)


def test_a_skops_file_without_a_trained_classifier_is_refused():
    for other in ({"a": 1}, LogisticRegression(), StandardScaler().fit(X)):
        with pytest.raises(ArtefactError, match="expected a trained"):
            load_head(skops_naming(other))


def test_a_compressed_skops_file_is_refused():
    data = skops.io.dumps(fitted("logistic"), compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(ArtefactError, match="it is compressed, which featx never writes"):
        load_head({"head.skops": data})


@pytest.mark.parametrize("name", ["logistic", "svm", "knn", "forest"])
@pytest.mark.parametrize("trust", [False, True])
def test_a_skops_file_cut_anywhere_is_an_artefact_error(name, trust):
    data = skops.io.dumps(fitted(name))
    for part in np.linspace(0, len(data) - 1, 12).astype(int):
        with pytest.raises(ArtefactError, match="damaged"):
            load_head({"head.skops": data[:part]}, trust=trust)


def test_flipped_bytes_never_give_another_exception():
    data = skops.io.dumps(fitted("svm"))
    rng = np.random.default_rng(1)
    for place in rng.integers(0, len(data), 60):
        broken = bytearray(data)
        broken[place] ^= 0xFF
        try:
            load_head({"head.skops": bytes(broken)})
        except ArtefactError:
            continue


def test_deep_nesting_is_an_artefact_error():
    depth = 100_000
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        file.writestr("schema.json", "[" * depth + "]" * depth)
    with pytest.raises(ArtefactError, match="damaged"):
        load_head({"head.skops": out.getvalue()})
    with pytest.raises(ArtefactError, match="damaged"):
        load_head({"head.json": b"[" * depth, "head.h5": b""})


def test_missing_files_are_named():
    with pytest.raises(ArtefactError, match=r"expected head\.skops, or .* received head\.json"):
        load_head({"head.json": b"{}"})
    with pytest.raises(ArtefactError, match="received no files"):
        load_head({})


@pytest.mark.parametrize("file", ["head.json", "head.h5"])
def test_dense_files_cut_anywhere_are_an_artefact_error(dense_files, file):
    data = dense_files[file]
    for part in np.linspace(0, len(data) - 1, 25).astype(int):
        with pytest.raises(ArtefactError, match="damaged"):
            load_head({**dense_files, file: data[:part]})


@pytest.mark.parametrize("file", ["head.json", "head.h5"])
def test_flipped_bytes_of_dense_files_never_give_another_exception(dense_files, file):
    rng = np.random.default_rng(1)
    for place in rng.integers(0, len(dense_files[file]), 100):
        broken = bytearray(dense_files[file])
        broken[place] ^= 0xFF
        try:
            load_head({**dense_files, file: bytes(broken)})
        except ArtefactError:
            continue


def described(files, **changes):
    return {
        **files,
        "head.json": json.dumps({**json.loads(files["head.json"]), **changes}).encode(),
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 99}, "version 99, expected 1"),
        ({"type": "other"}, "of type 'other'"),
        ({"features": 7}, "Scale has a center of shape"),
        ({"features": True}, "no number"),
        ({"steps": []}, "damaged"),
        ({"steps": [{"step": "Softmax"}]}, "6 columns for 3 labels"),
        ({"steps": [{"step": "Pickle"}]}, "'Pickle' is no step"),
        ({"steps": None}, "damaged"),
        ({"classes": {"dtype": "<U4", "values": ["a", "b"]}}, "3 columns for 2 labels"),
        ({"classes": {"dtype": "<U4", "values": ["b", "a", "c"]}}, "not sorted"),
        ({"classes": {"dtype": "<U4", "values": ["a", 1, "c"]}}, "the classes are not"),
        ({"classes": {"dtype": "<V4", "values": ["a", "b", "c"]}}, "damaged"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(dense_files, changes, message):
    with pytest.raises(ArtefactError, match=message):
        load_head(described(dense_files, **changes))


def with_arrays(files, change):
    file = io.BytesIO(files["head.h5"])
    with h5py.File(file, "r+") as h5:
        change(h5)
    return {**files, "head.h5": file.getvalue()}


def replaced(h5, put):
    old = h5["1.kernel"][()]
    del h5["1.kernel"]
    put(h5, old)


def secret(tmp_path):
    path = tmp_path / "secret.h5"
    with h5py.File(path, "w") as h5:
        h5["1.kernel"] = np.zeros((6, 8), np.float32)
    (tmp_path / "secret.bin").write_bytes(bytes(6 * 8 * 4))
    return path


def virtual(h5, old, path):
    layout = h5py.VirtualLayout(old.shape, "<f4")
    layout[:] = h5py.VirtualSource(str(path), "1.kernel", old.shape)
    h5.create_virtual_dataset("1.kernel", layout)


HOSTILE = {
    "external link": (
        lambda h5, old, p: h5.__setitem__("1.kernel", h5py.ExternalLink(str(p), "/1.kernel")),
        r"'1\.kernel' is a link",
    ),
    "soft link": (
        lambda h5, old, p: h5.__setitem__("1.kernel", h5py.SoftLink("/3.kernel")),
        r"'1\.kernel' is a link",
    ),
    "virtual": (virtual, "keeps its data in other files"),
    "external storage": (
        lambda h5, old, p: h5.create_dataset(
            "1.kernel", old.shape, "<f4", external=[(str(p.with_suffix(".bin")), 0, 192)]
        ),
        "keeps its data in other files",
    ),
    "group": (lambda h5, old, p: h5.create_group("1.kernel"), r"'1\.kernel' is a group"),
    "compressed": (
        lambda h5, old, p: h5.create_dataset("1.kernel", data=old, compression="gzip"),
        "not stored contiguously",
    ),
    "double": (
        lambda h5, old, p: h5.create_dataset("1.kernel", data=old.astype("f8")),
        "is float64",
    ),
    "shape": (lambda h5, old, p: h5.create_dataset("1.kernel", data=old.T), r"\(8, 6\), expected"),
    "nan": (lambda h5, old, p: h5.create_dataset("1.kernel", data=old * np.nan), "NaN or infinity"),
    "missing": (lambda h5, old, p: None, "damaged"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_arrays_that_are_not_plainly_in_the_file_are_refused(dense_files, tmp_path, kind):
    put, message = HOSTILE[kind]
    path = secret(tmp_path)
    files = with_arrays(dense_files, lambda h5: replaced(h5, lambda h, old: put(h, old, path)))
    with pytest.raises(ArtefactError, match=message):
        load_head(files)


def test_nothing_is_left_on_disk(dense_files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    load_head(dense_files)
    dump_head(fitted("knn"))
    assert list(tmp_path.iterdir()) == []
