from __future__ import annotations

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

import featx
from featx.exceptions import FeaturesError, HeadError, ImageError, UnknownNameError


# No check is skipped: both take (n, d) numbers for features that were extracted before.
@parametrize_with_checks([featx.ImageClassifier(), featx.FeatureExtractor()])
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
