"""Everything that names a label names the likeliest one, whatever rule the head's own has."""

import csv
import io
import json

import numpy as np
import pytest
from PIL import Image
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import SVC, NuSVC

import featx
from featx.heads.making import make_head
from featx.heads.table import HEADS
from featx.models.evaluation import compare_models, evaluate
from featx.selection.measuring import predicted_values
from featx.selection.metrics import SCORERS

pytestmark = pytest.mark.filterwarnings("ignore:The `probability` parameter:FutureWarning")

ESTIMATORS = [
    SVC(probability=True, random_state=0),
    NuSVC(nu=0.2, probability=True, random_state=0),
    KNeighborsClassifier(4, weights="distance"),
    GaussianNB(),
]
BY_PATH = ["sklearn.svm.SVC:probability=True", "sklearn.svm.SVC", "sklearn.svm.NuSVC:nu=0.2"]


def noise(rows=84, classes=12):
    """Features that say nothing of their labels, so that probabilities are near each other."""
    generator = np.random.default_rng(5)
    return generator.normal(size=(rows, 6)).astype(np.float32), np.arange(rows) % classes


@pytest.fixture(scope="module")
def drawings(tmp_path_factory):
    """Paths of small pictures, numbers from 0 to 11 as labels, and a table of both."""
    folder = tmp_path_factory.mktemp("drawings")
    generator = np.random.default_rng(3)
    X, y = [], generator.permutation(np.arange(36) % 12)
    for number in range(36):
        X.append(str(folder / f"{number:02d}.png"))
        Image.fromarray(generator.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(X[-1])
    table = folder / "table.csv"
    lines = [f"{path},{label}" for path, label in zip(X, y, strict=True)]
    table.write_text("\n".join(["path,label", *lines]))
    return X, y, table


@pytest.mark.parametrize("name", [*HEADS, *BY_PATH])
def test_heads_answer_with_their_likeliest_class(name):
    X, y = noise()
    quick = {"dense": {"hidden": (8,), "max_epochs": 3}, "forest": {"n_estimators": 4}}
    head = make_head(name, **quick.get(name, {})).fit(X, y)
    likeliest = head.predict_proba(X).argmax(axis=1)
    assert head.predict(X).tolist() == head.classes_[likeliest].tolist()
    shown = predicted_values(head, X, SCORERS["accuracy"], 12)
    assert shown.argmax(axis=1).tolist() == likeliest.tolist()


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda e: type(e).__name__)
def test_models_answer_with_their_likeliest_class(estimator):
    X, y = noise()
    model = featx.ImageClassifier(head=estimator).fit(X, y)
    likeliest = model.predict_proba(X).argmax(axis=1)
    assert model.predict(X).tolist() == likeliest.tolist()
    assert model.score(X, y) == (likeliest == y).mean()


def test_several_labels_are_those_above_one_half():
    X, y = noise()
    sets = np.stack([y < 3, y % 2 == 0, y > 7], axis=1).astype(int)
    for head in ("dense:8,max_epochs=2", "sklearn.svm.SVC:probability=True", "ridge", "knn"):
        model = featx.ImageClassifier(head=head, multilabel=True).fit(X, sets)
        assert model.predict(X).tolist() == (model.predict_proba(X) > 0.5).astype(int).tolist()


@pytest.mark.parametrize("head", [SVC(probability=True, random_state=0), KNeighborsClassifier(4)])
def test_shell_and_python_agree(head, drawings, small_network, tmp_path, featx_command):
    """Of numbers as labels, whose order is another as text, and with ties among neighbours."""
    paths, y, table = drawings
    model = featx.ImageClassifier(f"file:{small_network}", head).fit(paths, y)
    model.save(tmp_path / "m.featx")
    answers = model.predict(paths)
    shown = featx_command(
        "predict", tmp_path / "m.featx", *paths, "--format", "csv", "--trust"
    ).stdout
    rows = list(csv.DictReader(io.StringIO(shown)))
    first = next(name for name in rows[0] if name not in ("path", "status"))
    assert [row[first] for row in rows] == answers.astype(str).tolist()
    assert [row.top[0][0] for row in featx.predict(model, paths)] == answers.tolist()
    asked = ("evaluate", tmp_path / "m.featx", table, "--trust", "--json", "--bootstrap", "0")
    scores = json.loads(featx_command(*asked).stdout)
    assert scores["accuracy"] == model.score(paths, y)
    data = featx.ImageDataset.from_csv(table)
    assert evaluate(model, data, bootstrap=0)["accuracy"] == model.score(paths, y)
    assert compare_models(model, model, data, bootstrap=0)["accuracy"][0] == model.score(paths, y)
    confusion = np.array(scores["confusion"])
    assert confusion.trace() == (answers == y).sum()
    assert scores["classes"] == [str(label) for label in range(12)]
