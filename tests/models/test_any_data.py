"""Every function takes what `extract` takes, with the same reading options."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import featx
from featx.exceptions import DatasetError

COLUMNS = {
    "path_column": "file",
    "label_column": "kind",
    "split_column": "part",
    "splits": {"pilot": "test"},
}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch, photos):
    monkeypatch.chdir(tmp_path)
    rows = [
        f"{path.relative_to(photos)},{path.parent.name},{'train' if number % 3 else 'pilot'}"
        for number, path in enumerate(sorted(photos.rglob("*.jpg")))
    ]
    Path("photos.csv").write_text("\n".join(["file,kind,part", *rows]))


@pytest.fixture
def network(small_network):
    return f"file:{small_network}"


@pytest.fixture
def reading(photos):
    return {**COLUMNS, "root": photos}


def test_training_on_a_folder_a_table_and_a_name(network, photos, reading):
    folder = featx.train("photos/", backbone=network)
    assert folder.model.classes_.tolist() == ["blue", "red"]
    assert featx.train("photos", backbone=network).metrics == folder.metrics
    table = featx.train("photos.csv", backbone=network, **reading)
    assert table.metrics["protocol"] == "held-out split of 4 images"
    found = featx.search(
        "photos.csv", backbones=network, heads="logistic", ensemble=False, **reading
    )
    assert found.score.protocol.startswith("the test split: 4 images")


def test_asking_a_model_about_any_data(network, photos, reading):
    model = featx.train("photos/", backbone=network, cv=0).model
    pixels = np.stack([np.asarray(Image.open(p)) for p in sorted(photos.rglob("*.jpg"))])
    np.savez("photos.npz", x=pixels, y=np.repeat(["blue", "red"], 6))
    for data, images in (("photos/", 12), (photos, 12), ("photos.npz", 12)):
        assert featx.evaluate(model, data, bootstrap=0)["images"] == images
    assert featx.evaluate(model, "photos.csv", bootstrap=0, **reading)["images"] == 4
    compared = featx.compare_models(model, model, "photos.csv", bootstrap=0, **reading)
    assert compared["images"] == 4
    model.save("m.featx")
    tuned = featx.finetune(
        "m.featx", "photos.csv", "t.featx", unfreeze="second", epochs=1, views=0, **reading
    )
    assert tuned.scored.scores["images"] == 4
    for images in ("photos.npz", "photos/"):
        assert len(list(featx.predict(model, images))) == 12
    rows = list(featx.predict(model, "photos.csv", path_column="file", root=photos))
    assert [row.status for row in rows] == ["ok"] * 12
    named = featx.load("m.featx", cache="cache")
    assert len(list(featx.predict(named, "photos"))) == 12


def test_looking_at_any_data(network, photos, reading):
    files = sorted(map(str, photos.rglob("*.jpg")))
    assert featx.similar("photos/", files[0], k=1, backbone=network)[0].row == 0
    assert len(featx.select(files, 3, backbone=network)) == 3
    audit = featx.audit("photos.csv", backbone=network, pictures=False, **reading)
    assert audit.images == 12
    assert featx.audit("photos", pictures=False).images == 12


def test_what_is_doubtful_is_logged_before_training(network, photos, draw_photo, caplog):
    draw_photo(photos, "Red/1.jpg", seed=70, colour=(200, 60, 60))
    draw_photo(photos, "Red/2.jpg", seed=71, colour=(200, 60, 60))
    (photos / "wasp").mkdir()
    with caplog.at_level(logging.WARNING, "featx"):
        featx.train(photos, backbone=network, cv=0)
    assert "no image of the class 'wasp'" in caplog.text
    assert "differ only in case, spaces or accents: 'Red' and 'red'" in caplog.text


def test_options_that_mean_nothing_are_refused(network, photos):
    features = featx.extract(photos, backbone=network)
    for call in (featx.train, featx.search, featx.audit, featx.select):
        with pytest.raises(DatasetError, match="received features: leave it out"):
            call(features, label_column="kind")
    with pytest.raises(DatasetError, match="received 'photos': leave it out"):
        featx.extract("photos", backbone=network, path_column="file", cache="cache")
    with pytest.raises(TypeError, match="'hed'"):
        featx.train(features, hed="logistic")


FORMS = {
    "list of bytes": lambda paths: [path.encode() for path in paths],
    "paths": lambda paths: list(map(Path, paths)),
    "(n, 1)": lambda paths: np.array(paths)[:, None],
    "bytes (n, 1)": lambda paths: np.array(paths, "S")[:, None],
    "StringDType": lambda paths: np.array(paths, np.dtypes.StringDType()),
}
FRAMES = {
    "Index": lambda pandas, paths: pandas.Index(paths),
    "Series": lambda pandas, paths: pandas.Series(paths),
    "string": lambda pandas, paths: pandas.Series(paths, dtype="string"),
    "category": lambda pandas, paths: pandas.Series(paths, dtype="category"),
    "frame": lambda pandas, paths: pandas.DataFrame({"path": paths}),
}


def test_forms_of_paths(network, photos):
    paths = sorted(map(str, photos.rglob("*.jpg")))
    y = np.repeat(["blue", "red"], 6)
    model = featx.ImageClassifier(network).fit(paths, y)
    forms = {name: make(paths) for name, make in FORMS.items()}
    for module, frames in (("pandas", FRAMES), ("polars", {k: FRAMES[k] for k in ("Series",)})):
        try:
            library = __import__(module)
        except ImportError:
            continue
        forms |= {f"{module} {name}": make(library, paths) for name, make in frames.items()}
    try:
        import pyarrow
    except ImportError:
        pass
    else:
        forms["pyarrow"] = pyarrow.array(paths)
    for name, X in forms.items():
        assert model.predict(X).tolist() == y.tolist(), name
        assert len(featx.ImageDataset.from_any(X)) == 12, name
        assert len(list(featx.predict(model, X))) == 12, name


def test_boosting_and_routed_weights(network, photos):
    import sklearn
    from sklearn.ensemble import AdaBoostClassifier
    from sklearn.model_selection import cross_validate

    paths = sorted(map(str, photos.rglob("*.jpg")))
    y, weights = np.repeat(["blue", "red"], 6), np.ones(12)
    model = featx.ImageClassifier(network, cache="cache")
    column = np.array(paths)[:, None]
    assert AdaBoostClassifier(model, n_estimators=2).fit(column, y).score(column, y) == 1.0
    with sklearn.config_context(enable_metadata_routing=True):
        routed = model.set_fit_request(sample_weight=True)
        scores = cross_validate(
            routed, paths, y, params={"sample_weight": weights}, cv=3, error_score="raise"
        )
    assert len(scores["test_score"]) == 3
