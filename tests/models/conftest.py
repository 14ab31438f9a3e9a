"""Saved models of every head, made from a few numbers."""

from __future__ import annotations

import json
import zipfile

import numpy as np
import pytest

import featx
from featx.heads.making import make_head
from featx.heads.table import HEADS

QUICK = {
    "dense": {"hidden": (8,), "max_epochs": 3},
    "forest": {"n_estimators": 3},
    "extra-trees": {"n_estimators": 3},
}


@pytest.fixture(scope="session")
def numbers():
    """Features of shape (36, 6), and labels of 3 classes in several scripts."""
    generator = np.random.default_rng(0)
    y = np.repeat(["ant", "bee", "蜂"], 12)
    X = generator.normal(size=(36, 6)).astype(np.float32)
    X += 2 * np.repeat(np.arange(3), 12)[:, None]
    return X, y


@pytest.fixture(scope="session")
def spec():
    return featx.FeatureSpec(
        backbone="mobilenet_v2", weights_sha256="1" * 64, input_size_px=(64, 64), preprocessing="tf"
    )


@pytest.fixture(scope="session")
def fitted(numbers, spec):
    """A function that fits a head and gives the classifier around it."""

    def fit(head, X=None, y=None):
        name = head if isinstance(head, str) else ""
        made = make_head(head, **QUICK.get(name, {}))
        model = featx.ImageClassifier("mobilenet_v2", made, weights="random:0", input_size=64)
        return model.fit(*(numbers if X is None else (X, y)))

    return fit


@pytest.fixture(scope="session")
def heads(fitted):
    """A fitted model of every head of the registry."""
    return {name: fitted(name) for name in HEADS}


@pytest.fixture
def saved(heads, spec, tmp_path):
    heads["logistic"].save(tmp_path / "m.featx", spec=spec, metrics={"accuracy": 0.5})
    return tmp_path / "m.featx"


@pytest.fixture
def release(spec, rewrite):
    """A function that saves a model as featx 0.1 did: its head by skops, or as dense layers."""
    import skops.io

    def save(model, path):
        model.save(path, spec=spec)
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
        gone = {name: None for name in ("head.json", "head.h5") if name in members}
        # ZIP_STORED: skops compresses nothing unless it is told.
        head = skops.io.dumps(model.head_)
        rewrite(path, lambda d: d.update(version=1), members={**gone, "head.skops": head})
        return path

    return save


@pytest.fixture
def released(heads, release, tmp_path):
    return release(heads["logistic"], tmp_path / "m.featx")


@pytest.fixture
def rewrite():
    """A function that changes members of a saved model and their digests with them."""

    def change(path, details=None, members=None, *, compression=zipfile.ZIP_STORED, extra=()):
        import hashlib

        with zipfile.ZipFile(path) as archive:
            files = {name: archive.read(name) for name in archive.namelist()}
        said = json.loads(files.pop("model.json"))
        for name, new in (members or {}).items():
            if new is None:
                del files[name], said["files"][name]
            else:
                files[name] = new(files.get(name)) if callable(new) else new
                said["files"][name] = hashlib.sha256(files[name]).hexdigest()
        text = details(said) if details else None
        text = json.dumps(said) if text is None else text
        with zipfile.ZipFile(path, "w", compression) as archive:
            archive.writestr("model.json", text)
            for name, content in [*files.items(), *extra]:
                archive.writestr(name, content)

    return change
