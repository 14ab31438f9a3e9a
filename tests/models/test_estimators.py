from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

import featx
from featx.exceptions import DatasetError, FeaturesError, HeadError, ImageError, UnknownNameError


# No check is skipped: both take (n, d) numbers for features that were extracted before. One
# compares weights with repeated rows to nine digits, which the solver has to be asked for.
@parametrize_with_checks(
    [featx.ImageClassifier(head="logistic:tol=1e-12"), featx.FeatureExtractor()]
)
def test_scikit_learn_checks(estimator, check):
    check(estimator)


@pytest.fixture
def classifier(small_network, tmp_path):
    return featx.ImageClassifier(f"file:{small_network}", cache=tmp_path / "cache")


@pytest.fixture
def files(photos):
    paths = sorted(str(path) for path in photos.rglob("*.jpg"))
    return paths, np.array(["blue" if "/blue/" in path else "red" for path in paths])


def test_paths_pixels_and_features_give_the_same_answer(classifier, files):
    from PIL import Image

    paths, y = files
    classifier.fit(paths, y)
    assert classifier.score(paths, y) == 1.0
    expected = classifier.predict_proba(paths)
    assert expected.shape == (12, 2)
    pixels = np.stack([np.asarray(Image.open(path)) for path in paths])
    np.testing.assert_allclose(classifier.predict_proba(pixels), expected, atol=1e-6)
    pictures = [Image.open(path) for path in paths]
    np.testing.assert_allclose(classifier.predict_proba(pictures), expected, atol=1e-6)
    (X,), _ = classifier.transform_images(featx.ImageDataset.from_paths(paths))
    np.testing.assert_allclose(classifier.predict_proba(X), expected, atol=1e-6)
    on_features = clone(classifier).fit(X, y)
    np.testing.assert_allclose(on_features.predict_proba(paths), expected, atol=1e-6)


def test_scans_are_read_alike_in_training_and_as_any_object(classifier, tmp_path):
    from PIL import Image

    generator = np.random.default_rng(4)
    paths, y = [], []
    for name, level in (("dim", 6_000), ("light", 52_000)):
        for number in range(6):
            values = generator.integers(level - 3_000, level + 3_000, (20, 30)).astype(np.uint16)
            paths.append(str(tmp_path / f"{name}{number}.png"))
            Image.fromarray(values).save(paths[-1])
            y.append(name)
    classifier.fit(paths, y)
    expected = classifier.predict_proba(paths)
    contents = [Path(path).read_bytes() for path in paths]
    loaded = [Image.open(path) for path in paths]
    for image in loaded:
        image.load()
    for images in (
        [Image.open(path) for path in paths],
        loaded,
        contents,
        [io.BytesIO(content) for content in contents],
        [np.asarray(image) for image in loaded],
    ):
        np.testing.assert_array_equal(classifier.predict_proba(images), expected)
        assert [row.top[0][0] for row in featx.predict(classifier, images)] == y
    for alone in (loaded[-1], contents[-1], io.BytesIO(contents[-1])):
        np.testing.assert_array_equal(classifier.predict_proba(alone), expected[-1:])
        assert next(featx.predict(classifier, alone)).top[0][0] == "light"


def test_an_extractor_takes_one_picture_and_refuses_to_guess(small_network, files):
    from PIL import Image

    extractor = featx.FeatureExtractor(f"file:{small_network}")
    path = files[0][0]
    expected = extractor.fit([path]).transform([path])
    pixels = np.asarray(Image.open(path))
    for image in (pixels, Image.open(path), Path(path).read_bytes()):
        np.testing.assert_allclose(extractor.transform(image), expected, atol=1e-6)
    with pytest.raises(DatasetError, match="4 grey pictures of 30x20 or one channels-first"):
        extractor.transform(np.zeros((4, 30, 20), np.uint8))


def test_fitting_twice_starts_afresh(classifier, files):
    paths, y = files
    classifier.fit(paths, y)
    classifier.fit(paths[:4] + paths[-4:], ["x"] * 4 + ["y"] * 4)
    assert classifier.classes_.tolist() == ["x", "y"]


def test_without_a_cache_nothing_is_written(small_network, files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    paths, y = files
    featx.ImageClassifier(f"file:{small_network}").fit(paths, y).predict(paths)
    assert sorted(tmp_path.rglob("*")) == before


def test_what_fit_computed_is_not_computed_again(classifier, files, tmp_path):
    paths, y = files
    classifier.fit(paths, y)
    assert len(list((tmp_path / "cache").rglob("shards/*.h5"))) == 1
    classifier.predict(paths)
    classifier.fit(paths, y)
    assert len(list((tmp_path / "cache").rglob("shards/*.h5"))) == 1


def test_an_unreadable_image_is_named_never_left_out(classifier, files, tmp_path):
    paths, y = files
    classifier.fit(paths, y)
    with pytest.raises(ImageError, match=r"gone\.jpg: no such file"):
        classifier.predict([*paths, str(tmp_path / "gone.jpg")])


def test_features_of_another_size_are_refused(classifier, files):
    paths, y = files
    X = np.random.default_rng(0).normal(size=(12, 7))
    classifier.fit(X, y)
    with pytest.raises(FeaturesError, match="trained on 7 features an image, received 16"):
        classifier.predict(paths)
    with pytest.raises(ValueError, match="X has 9 features, but ImageClassifier is expecting 7"):
        classifier.predict(np.zeros((2, 9)))


@pytest.mark.parametrize(
    ("labels", "head", "error", "message"),
    [
        (["red"] * 12, "logistic", HeadError, "one class only"),
        (["red"] * 11, "logistic", HeadError, "one label for each of 12 images"),
        (["r", "b"] * 6, "logistics", UnknownNameError, "did you mean 'logistic'"),
    ],
)
def test_bad_training_is_named(classifier, files, labels, head, error, message):
    classifier.set_params(head=head)
    with pytest.raises(error, match=message):
        classifier.fit(files[0], labels)


def test_the_extractor_feeds_any_scikit_learn_head(small_network, files):
    paths, y = files
    extractor = featx.FeatureExtractor(f"file:{small_network}", tap="max")
    assert extractor.fit_transform(paths).shape == (12, 16)
    model = make_pipeline(extractor, LogisticRegression(max_iter=1000))
    assert model.fit(paths, y).score(paths, y) == 1.0
    assert (
        make_pipeline(featx.FeatureExtractor(), LogisticRegression())
        .fit(extractor.transform(paths), y)
        .score(extractor.transform(paths), y)
    )


def test_data_frames_and_arrays_of_paths_are_taken(classifier, files):
    paths, y = files
    classifier.fit(np.array(paths), y)
    np.testing.assert_array_equal(
        classifier.predict(np.array(paths, object)), classifier.predict(tuple(paths))
    )


WEIGHTED = [
    "logistic:C=1,tol=1e-9",
    "ridge",
    "nearest-mean",
    "nearest-mean:metric=euclidean",
    "svm",
]


@pytest.fixture(scope="module")
def blobs():
    generator = np.random.default_rng(3)
    y = np.repeat(["ant", "bee", "wasp"], 30)
    X = generator.normal(size=(90, 6)) + np.repeat(np.eye(3, 6) * 2, 30, axis=0)
    return X, y, generator.integers(0, 4, 90)


@pytest.mark.parametrize("head", WEIGHTED)
def test_a_weight_of_two_is_a_row_twice_and_zero_none(head, blobs):
    X, y, weights = blobs
    weighted = featx.ImageClassifier(head=head).fit(X, y, sample_weight=weights)
    repeated = featx.ImageClassifier(head=head).fit(np.repeat(X, weights, 0), np.repeat(y, weights))
    grid = np.random.default_rng(4).normal(size=(200, 6))
    assert (weighted.predict(grid) == repeated.predict(grid)).mean() > 0.99
    if head not in ("ridge", "svm"):  # their temperature comes from folds, which differ
        expected = repeated.predict_proba(grid)
        np.testing.assert_allclose(weighted.predict_proba(grid), expected, atol=1e-5)


def test_weights_reach_logistic_regression_as_in_scikit_learn(blobs):
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    X, y, weights = blobs
    for class_weight in (None, "balanced"):
        head = LogisticRegression(C=0.5, tol=1e-8, max_iter=5000, class_weight=class_weight)
        scaled = StandardScaler().fit(X, sample_weight=weights).transform(X)
        expected = head.fit(scaled, y, sample_weight=weights).predict_proba(scaled)
        text = "logistic:C=0.5,tol=1e-8" + (",class_weight=balanced" if class_weight else "")
        model = featx.ImageClassifier(head=text).fit(X, y, sample_weight=weights)
        np.testing.assert_allclose(model.predict_proba(X), expected, atol=1e-4)


@pytest.mark.parametrize("head", ["knn", "lda", "rbf"])
def test_heads_without_weights_say_so_by_name(head, blobs):
    X, y, weights = blobs
    with pytest.raises(HeadError, match="takes no sample weights"):
        featx.ImageClassifier(head=head).fit(X, y, sample_weight=weights)


@pytest.mark.parametrize("weights", [[1.0], [-1.0] * 90, [np.nan] * 90, [0.0] * 90])
def test_weights_that_mean_nothing_are_refused(weights, blobs):
    X, y, _ = blobs
    with pytest.raises(HeadError, match="expected .*sample weight"):
        featx.ImageClassifier().fit(X, y, sample_weight=weights)


def test_weights_are_routed_and_boosted(blobs):
    import sklearn
    from sklearn.ensemble import AdaBoostClassifier
    from sklearn.model_selection import cross_validate

    X, y, weights = blobs
    boosted = AdaBoostClassifier(featx.ImageClassifier(), n_estimators=3).fit(X, y)
    assert boosted.score(X, y) > 0.6
    with sklearn.config_context(enable_metadata_routing=True):
        model = featx.ImageClassifier().set_fit_request(sample_weight=True)
        model.set_score_request(sample_weight=True)
        scores = cross_validate(model, X, y, params={"sample_weight": weights}, error_score="raise")
    assert len(scores["test_score"]) == 5


def test_weights_of_images_reach_their_views(files, small_network):
    model = featx.ImageClassifier(f"file:{small_network}", views=1)
    paths, labels = files
    model.fit(paths, labels, sample_weight=np.arange(len(paths)))
    assert set(model.classes_) == set(labels)


def test_an_extractor_names_its_features(files, small_network):
    from sklearn.compose import ColumnTransformer
    from sklearn.pipeline import make_union

    files, _ = files
    extractor = featx.FeatureExtractor(f"file:{small_network}").fit(files)
    names = extractor.get_feature_names_out()
    assert names[:2].tolist() == ["small_avg_0", "small_avg_1"]
    assert extractor.transform(files).shape == (len(files), len(names))
    table = np.array([[path, number] for number, path in enumerate(files)], dtype=object)
    parts = [("image", extractor, [0]), ("number", "passthrough", [1])]
    for columns in (parts, [("image", extractor, 0), parts[1]]):
        joined = ColumnTransformer(columns).fit(table)
        assert joined.transform(table).shape == (len(files), len(names) + 1)
        assert joined.get_feature_names_out()[0] == "image__small_avg_0"
    other = featx.FeatureExtractor(f"file:{small_network}", tap="first:max")
    union = make_union(extractor, other).fit(files)
    assert union.get_feature_names_out()[-1].endswith("__small_first_max_7")
    features = featx.FeatureExtractor().fit(np.eye(3))
    assert features.get_feature_names_out().tolist() == ["x0", "x1", "x2"]


def test_an_extractor_gives_named_columns_to_pandas(files, small_network):
    pandas = pytest.importorskip("pandas")
    files, _ = files
    extractor = featx.FeatureExtractor(f"file:{small_network}").set_output(transform="pandas")
    frame = extractor.fit_transform(
        pandas.DataFrame({"path": files}, index=range(5, 5 + len(files)))
    )
    assert frame.columns[0] == "small_avg_0"
    assert frame.index[0] == 5
