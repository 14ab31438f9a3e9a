from __future__ import annotations

import numpy as np
import pytest

from featx.exceptions import ArtefactError
from featx.heads.novelty import dump_novelty, fit_novelty, load_novelty


def known(n, classes=4, width=40, seed=0):
    generator = np.random.default_rng(seed)
    means = np.random.default_rng(9).normal(size=(classes, width))
    codes = np.arange(n) % classes
    return (means[codes] + 0.3 * generator.normal(size=(n, width))).astype(np.float32), codes


def strange(n, width=40):
    return np.random.default_rng(7).normal(size=(n, width)).astype(np.float32)


def test_strangers_are_marked_and_false_alarms_are_as_stated():
    X, codes = known(600)
    novelty = fit_novelty(X, codes)
    fresh, _ = known(4000, seed=1)
    alarms = float((novelty.distance(fresh) > 1).mean())
    low, high = novelty.interval
    assert novelty.false_alarm_rate == pytest.approx(0.05, abs=0.002)
    assert low < novelty.false_alarm_rate < high
    assert low - 0.02 < alarms < high + 0.02
    assert (novelty.distance(strange(500)) > 1).mean() > 0.95


def test_few_images_of_many_features_raise_no_more_alarms_than_stated():
    # Features as a network's: most of the variance is along some tens of directions.
    spread = np.geomspace(1, 0.02, 400)
    alarms = []
    for seed in range(12):
        generator = np.random.default_rng(seed)
        X = (5 + spread * generator.normal(size=(1160, 400))).astype(np.float32)
        novelty = fit_novelty(X[:160], np.arange(160) % 2)
        alarms.append((novelty.distance(X[160:]) > 1).mean())
    assert 0.02 < np.mean(alarms) < novelty.false_alarm_rate + 0.025


@pytest.mark.parametrize(
    ("n", "classes", "width"), [(24, 2, 300), (60, 30, 20), (400, 2, 5000), (30, 30, 8)]
)
def test_few_images_many_classes_and_wide_features_go_through(n, classes, width):
    X, codes = known(n, classes, width)
    novelty = fit_novelty(X, codes)
    assert np.isfinite(novelty.distance(strange(5, width))).all()
    assert len(novelty.columns) == min(width, 2048)
    assert len(dump_novelty(novelty)[1]) < 4 << 20


def test_equal_images_are_on_one_side():
    X, codes = known(60)
    twice, groups = np.repeat(X, 2, axis=0), np.repeat(np.arange(60), 2)
    apart = fit_novelty(twice, np.repeat(codes, 2), groups)
    together = fit_novelty(twice, np.repeat(codes, 2))
    assert apart.threshold > together.threshold
    four = fit_novelty(X, codes, np.arange(60) // 15)
    assert four.images == 60
    assert fit_novelty(X, codes, np.arange(60) // 30) is None


def test_nothing_is_learnt_from_too_little():
    X, codes = known(19)
    assert fit_novelty(X, codes) is None
    assert fit_novelty(np.ones((50, 4), np.float32), np.arange(50) % 2) is None


def test_it_is_the_same_after_saving():
    X, codes = known(90)
    novelty = fit_novelty(X, codes)
    said, arrays = dump_novelty(novelty)
    twin = load_novelty(said, arrays, 40)
    np.testing.assert_array_equal(twin.distance(X), novelty.distance(X))
    assert said["images"] == 90
    assert 0 < said["false_alarm_rate_95"][0] < said["false_alarm_rate"]


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [10**9, 10**9, 2]},
        {"shape": [40, 22, 3]},
        {"shape": None},
        {"threshold": -1.0},
        {"threshold": None},
        {"images": "many"},
    ],
)
def test_a_description_that_does_not_fit_is_refused(change):
    said, arrays = dump_novelty(fit_novelty(*known(90)))
    with pytest.raises(ArtefactError, match="unknown images is damaged"):
        load_novelty({**said, **change}, arrays, 40)
    with pytest.raises(ArtefactError, match="of other features"):
        load_novelty(said, arrays, 39)
    with pytest.raises(ArtefactError, match="damaged"):
        load_novelty(said, arrays[:-100], 40)
