"""`ImageRegressor`: numbers learnt from images, with intervals, kept in a file."""

import json
import zipfile

import numpy as np
import pytest
from PIL import Image
from sklearn.base import clone
from sklearn.model_selection import cross_val_score
from sklearn.utils.estimator_checks import parametrize_with_checks

import featx
from featx.exceptions import ArtefactError, DatasetError, FeaturesError, HeadError


@parametrize_with_checks([featx.ImageRegressor(head="ridge:alpha=1.0", interval_folds=2)])
def test_scikit_learn_checks(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def grey(tmp_path_factory):
    """40 pictures with how bright and how red they are, and their paths."""
    folder = tmp_path_factory.mktemp("grey")
    rng = np.random.default_rng(0)
    paths, numbers = [], []
    for number in range(40):
        bright, red = rng.uniform(40, 200), rng.uniform(-30, 30)
        pixels = rng.normal(0, 10, (40, 40, 3)) + bright + np.array([red, 0, -red])
        paths.append(str(folder / f"{number}.png"))
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(paths[-1])
        numbers.append((bright, red))
    return paths, np.array(numbers)


@pytest.fixture
def regressor(small_network, tmp_path):
    return featx.ImageRegressor(
        f"file:{small_network}", "ridge:alpha=1", preprocessing="none", cache=tmp_path / "cache"
    )


def test_numbers_are_learnt_from_files_and_from_features(regressor, grey):
    paths, numbers = grey
    regressor.fit(paths, numbers[:, 0])
    assert regressor.predict(paths).shape == (40,)
    assert regressor.score(paths, numbers[:, 0]) > 0.95
    (X,), _ = regressor.transform_images(featx.ImageDataset.from_paths(paths))
    on_features = clone(regressor).fit(X, numbers[:, 0])
    np.testing.assert_allclose(on_features.predict(X), regressor.predict(paths), atol=1e-3)
    scores = cross_val_score(clone(regressor), X, numbers[:, 0], cv=4)
    assert scores.mean() > 0.9


def test_several_numbers_and_their_intervals(regressor, grey):
    paths, numbers = grey
    regressor.fit(paths, numbers)
    assert regressor.predict(paths).shape == (40, 2)
    low, high = regressor.predict_interval(paths)
    assert low.shape == (40, 2)
    assert ((low < numbers) & (numbers < high)).mean() > 0.8
    wide_low, wide_high = regressor.predict_interval(paths, 0.97)
    assert ((wide_high - wide_low) > (high - low)).all()
    with pytest.raises(HeadError, match="coverage between 0 and 1"):
        regressor.predict_interval(paths, 90)


def test_copies_of_an_image_are_on_one_side_of_the_folds(small_network, grey, tmp_path):
    paths, _ = grey
    twice, y = paths[:12] * 4, np.tile(np.random.default_rng(0).normal(size=12), 4)
    reg = featx.ImageRegressor(f"file:{small_network}", "knn:n_neighbors=1", preprocessing="none")
    reg.fit(twice, y)
    # The nearest neighbour of a copy would be right: errors are of images that were not seen.
    assert np.median(reg.residuals_) > 0.3


def test_without_folds_there_are_no_intervals(regressor, grey):
    paths, numbers = grey
    regressor.set_params(interval_folds=0).fit(paths, numbers[:, 0])
    with pytest.raises(FeaturesError, match="train it with interval_folds=5"):
        regressor.predict_interval(paths)


def test_views_are_averaged(small_network, grey):
    paths, numbers = grey
    reg = featx.ImageRegressor(
        f"file:{small_network}", "ridge:alpha=1", preprocessing="none", views=2, average_views=True
    )
    reg.fit(paths, numbers[:, 0])
    assert reg.score(paths, numbers[:, 0]) > 0.9
    assert len(reg.residuals_) == 40


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("head", ["ridge:alpha=1", "knn", "forest:n_estimators=9", "svm:C=1"])
def test_a_saved_model_gives_the_same_numbers(regressor, grey, tmp_path, head, several):
    paths, numbers = grey
    y = numbers if several else numbers[:, 0]
    regressor.set_params(head=head, interval_folds=2).fit(paths, y)
    regressor.save(tmp_path / "model.featx")
    loaded = featx.load(tmp_path / "model.featx", cache=tmp_path / "cache")
    assert isinstance(loaded, featx.ImageRegressor)
    np.testing.assert_allclose(loaded.predict(paths), regressor.predict(paths), atol=2e-3)
    for mine, theirs in zip(
        loaded.predict_interval(paths), regressor.predict_interval(paths), strict=True
    ):
        np.testing.assert_allclose(mine, theirs, atol=2e-3)
    details = json.loads(zipfile.ZipFile(tmp_path / "model.featx").read("model.json"))
    assert details["version"] == 5
    assert details["values"] == (["0", "1"] if several else ["value"])
    assert "classes" not in details


def test_predict_gives_value_low_and_high(regressor, grey, tmp_path):
    paths, numbers = grey
    regressor.fit(paths, numbers[:, 0])
    rows = list(featx.predict(regressor, [*paths[:3], tmp_path / "gone.jpg"]))
    assert [row.status for row in rows] == ["ok"] * 3 + ["failed"]
    low, high = regressor.predict_interval(paths[:3])
    for number, row in enumerate(rows[:3]):
        (value,) = row.values
        assert (value.name, row.top) == ("value", ())
        assert value.value == pytest.approx(float(regressor.predict(paths[:3])[number]))
        assert (value.low, value.high) == pytest.approx((low[number], high[number]))
    assert rows[3].values == ()
    (narrow,) = next(featx.predict(regressor, paths[:1], coverage=0.5)).values
    assert narrow.high - narrow.low < high[0] - low[0]


def changed(path, edit):
    """Rewrite what model.json says."""
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    details = json.loads(files["model.json"])
    edit(details)
    files["model.json"] = json.dumps(details).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda d: d.update(values=["a", "b"]),
            "does not give the numbers that it names|residuals",
        ),
        (lambda d: d.update(values=[3]), "does not name the numbers"),
        (lambda d: d.update(values=[]), "does not name the numbers"),
        (lambda d: d.update(spread=[-1.0]), "no positive numbers"),
        (lambda d: d.update(residuals=[[2.0], [1.0]]), "do not ascend"),
        (lambda d: d.update(residuals=[["x"]]), "does not work"),
        (lambda d: d.pop("spread"), "does not work"),
        (lambda d: d.update(n_features=7), "another number of features"),
        (lambda d: d.pop("values"), "is damaged"),
    ],
)
def test_a_file_that_was_changed_is_refused(regressor, grey, tmp_path, edit, message):
    paths, numbers = grey
    regressor.set_params(interval_folds=2).fit(paths, numbers[:, 0])
    regressor.save(tmp_path / "model.featx")
    changed(tmp_path / "model.featx", edit)
    with pytest.raises(ArtefactError, match=message):
        featx.load(tmp_path / "model.featx")


@pytest.mark.parametrize(
    ("numbers", "error", "message"),
    [
        (["red"] * 40, HeadError, "learns numbers, received 'red'"),
        ([np.nan] + [1.0] * 39, HeadError, "NaN or inf in 1 of 40 rows"),
        ([2.5] * 40, HeadError, "all 40 rows have the number 2.5"),
        (list(range(39)), HeadError, "each of 40 images"),
    ],
)
def test_what_cannot_be_learnt_is_named(regressor, grey, numbers, error, message):
    with pytest.raises(error, match=message):
        regressor.fit(grey[0], numbers)
    with pytest.raises(DatasetError, match="no such|expected|not exist"):
        list(featx.predict(regressor, "nothing/*.jpg"))
