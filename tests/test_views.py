"""Augmented views from extraction to prediction."""

from __future__ import annotations

import numpy as np
import pytest

import featx
from featx.exceptions import DatasetError, FeaturesError, UnknownNameError


@pytest.fixture
def options(tmp_path, small_network):
    return {"backbone": f"file:{small_network}", "cache": tmp_path / "cache"}


def test_views_are_features_of_their_own_beside_the_plain_ones(photos, options):
    plain = featx.extract(photos, **options)
    features = featx.extract(photos, **options, views=2)
    np.testing.assert_array_equal(features.X, plain.X)
    assert features.views() == [0, 1]
    first, second = (features.matrix(view=view) for view in (0, 1))
    assert first.shape == second.shape == features.X.shape
    assert np.abs(first - second).max() > 1e-3
    assert np.abs(first - features.X).max() > 1e-3
    assert features.report["extracted"] == 12


def test_the_number_of_views_grows_without_computing_the_first_again(photos, options):
    few = featx.extract(photos, **options, views=1)
    again = featx.extract(photos, **options, views=1)
    assert again.report["extracted"] == 0
    more = featx.extract(photos, **options, views=3)
    np.testing.assert_array_equal(more.matrix(view=0), few.matrix(view=0))
    assert more.views() == [0, 1, 2]
    assert featx.Features.open("photos", cache=options["cache"]).views() == [0, 1, 2]


def test_a_view_depends_on_the_image_and_the_seed_alone(photos, options, tmp_path):
    policy = featx.ViewPolicy(policy="flip-crop-1", seed=5)
    features = featx.extract(photos, **options, views=1, view_policy=policy)
    alone = featx.extract(
        [photos / features.paths[3]],
        **{**options, "cache": tmp_path / "elsewhere"},
        views=1,
        view_policy=policy,
    )
    np.testing.assert_allclose(alone.matrix(view=0)[0], features.matrix(view=0)[3], rtol=1e-5)
    other = featx.extract(
        photos, **options, views=1, view_policy=featx.ViewPolicy(policy="flip-crop-1", seed=6)
    )
    assert np.abs(other.matrix(view=0) - features.matrix(view=0)).max() > 1e-3


def test_augmented_rows_know_their_image(photos, options):
    features = featx.extract(photos, **options, views=2)
    X, rows = features.augmented()
    assert X.shape == (36, 16)
    np.testing.assert_array_equal(X[:12], features.X)
    np.testing.assert_array_equal(X[rows == 5][1:], [features.matrix(view=v)[5] for v in (0, 1)])


def test_a_head_trained_on_views_averages_them_where_asked(photos, options, tmp_path):
    features = featx.extract(photos, **options, views=2)
    once = featx.train(features, cv=3, **options)
    mean = featx.train(features, cv=3, average_views=True, **options)
    assert "mean over 3 views" in mean.metrics["protocol"]
    assert "mean" not in once.metrics["protocol"]
    files = [photos / path for path in features.paths]
    parts = [features.X, features.matrix(view=0), features.matrix(view=1)]
    expected = np.mean([mean.model.head_.predict_proba(part) for part in parts], axis=0)
    np.testing.assert_allclose(mean.model.predict_proba(files), expected, atol=1e-6)
    np.testing.assert_allclose(
        once.model.predict_proba(files), once.model.head_.predict_proba(features.X), atol=1e-6
    )

    mean.model.save(tmp_path / "mean.featx")
    loaded = featx.load(tmp_path / "mean.featx", cache=options["cache"])
    np.testing.assert_allclose(loaded.predict_proba(files), expected, atol=1e-6)
    assert featx.evaluate(loaded, features)["accuracy"] == pytest.approx(
        (mean.model.classes_[expected.argmax(axis=1)] == features.y).mean()
    )


def test_a_classifier_trains_on_views_of_files(photos, options):
    features = featx.extract(photos, **options, views=2)
    files = [photos / path for path in features.paths]
    classifier = featx.ImageClassifier(**options, views=2, average_views=True)
    classifier.fit(files, features.y)
    trained = featx.train(features, cv=0, average_views=True, **options).model
    np.testing.assert_allclose(
        classifier.predict_proba(files), trained.predict_proba(files), atol=1e-6
    )
    assert (classifier.predict(files) == features.y).all()


def test_what_does_not_fit_is_named(photos, options):
    features = featx.extract(photos, **options)
    with pytest.raises(FeaturesError, match="has no views to average: extract it with --views"):
        featx.train(features, average_views=True)
    with pytest.raises(DatasetError, match="views must be 0 or more, received -1"):
        featx.extract(photos, **options, views=-1)
    with pytest.raises(UnknownNameError, match="unknown view policy 'flip': did you mean"):
        featx.extract(photos, **options, views=1, view_policy="flip")
    model = featx.train(
        featx.extract(photos, **options, views=2), cv=0, average_views=True, **options
    ).model
    with pytest.raises(FeaturesError, match="averages over 2 views that 'photos' does not have"):
        featx.evaluate(model, features)


def test_the_commands_take_views(photos, small_network, featx_command):
    network = f"file:{small_network}"
    done = featx_command("extract", photos, "-b", network, "--views", "2")
    assert done.returncode == 0, done.stderr
    assert "and 2 views of each" in done.stdout
    done = featx_command(
        "train", photos, "-b", network, "--views", "2", "--average-views", "-o", "m.featx"
    )
    assert done.returncode == 0, done.stderr
    assert "12 cached" in done.stdout
    assert "mean over 3 views" in done.stdout
    done = featx_command("predict", "m.featx", photos / "red" / "0.jpg", "--format", "csv")
    assert done.returncode == 0, done.stderr
    done = featx_command("train", photos, "-b", network, "--average-views")
    assert done.returncode == 2
    assert "--average-views needs --views K" in done.stderr


def test_a_mirror_image_is_one_view_only(photos, options):
    assert featx.extract(photos, **options, views=1, view_policy="flip-1").views() == [0]
    with pytest.raises(DatasetError, match=r"flip-1 has one view .* views=2: ask for one"):
        featx.extract(photos, **options, views=2, view_policy="flip-1")
