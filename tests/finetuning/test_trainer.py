"""The course of a training: equal however it is interrupted, computed or cut."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import numpy as np
import pytest

from featx.engines.backends import load_adapter
from featx.finetuning.start import FineTuneOptions, prepare_material, prepare_start
from featx.finetuning.trainer import Checkpoint, Training, read_checkpoint, write_checkpoint

OPTIONS = {
    "unfreeze": "second",
    "epochs": 3,
    "batch_size": 8,
    "learning_rate": 1e-3,
    "patience": 10,
    "views": 0,
}


@pytest.fixture
def start(trained, pictures, cache):
    return prepare_start(trained(), pictures, FineTuneOptions(**OPTIONS), cache=cache)


@pytest.fixture
def training(start, pictures, cache, tmp_path):
    """A function that sets up a training."""

    def make(folder="training", *, on_epoch=None, on_step=None, job="job", **changes):
        options = FineTuneOptions(**{**OPTIONS, **changes})
        changed = replace(start, options=options)
        network, inputs = prepare_material(changed)
        return Training(
            changed, network, inputs, tmp_path / folder, job, on_epoch=on_epoch, on_step=on_step
        )

    return make


def weights(one):
    return one._network.model.get_weights()


def assert_same_weights(one, other):
    for a, b in zip(weights(one), weights(other), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_cut_trains_as_the_whole_network_does(training):
    cached = training("cached", epochs=12)
    whole = training("whole", epochs=12, cut="pixels")
    cached.run(), whole.run()
    assert cached._network.cut.layers == ("first",)
    assert whole._network.from_pixels
    assert len(cached.losses) > 50
    np.testing.assert_allclose(cached.losses, whole.losses, rtol=1e-4, atol=1e-5)
    assert cached.losses[-1] < 0.7 * cached.losses[0]


@pytest.mark.slow
def test_views_are_taken_in_turn_at_the_cut_as_from_pixels(training):
    cached, whole = training("cached", views=2), training("whole", views=2, cut="pixels")
    cached.run(), whole.run()
    np.testing.assert_allclose(cached.losses, whole.losses, rtol=1e-4, atol=1e-5)
    plain = training("plain")
    plain.run()
    epoch = len(plain.losses) // 3
    np.testing.assert_allclose(cached.losses[:epoch], plain.losses[:epoch], rtol=1e-4)
    assert not np.allclose(cached.losses[epoch:], plain.losses[epoch:], rtol=1e-2)


class Killed(BaseException):
    """Stands in for a process that ends."""


@pytest.mark.parametrize(
    "changes",
    [
        {},
        pytest.param({"gradual": True, "unfreeze": "all", "views": 1}, marks=pytest.mark.slow),
    ],
)
def test_a_killed_training_goes_on_to_the_same_weights(training, changes):
    expected = training("whole", **changes)
    expected.run()
    for epoch, done in ((2, 16), (1, 8)):

        def kill(at, images, _, epoch=epoch, done=done):
            if (at, images) == (epoch, done):
                raise Killed

        with pytest.raises(Killed):
            training("killed", on_step=kill, **changes).run()
        resumed = training("killed", **changes)
        seen = read_checkpoint(resumed.checkpoint).epochs
        assert seen == epoch - 1
        found = resumed.run()
        assert [entry["epoch"] for entry in found.history] == [0, 1, 2, 3]
        assert_same_weights(resumed, expected)
        resumed.checkpoint.unlink()


def test_a_checkpoint_of_another_training_is_not_gone_on_from(training, caplog):
    training("same", job="other", epochs=1).run()
    with caplog.at_level(logging.WARNING, "featx"):
        found = training("same", epochs=1).run()
    assert "is of another training" in caplog.text
    assert len(found.history) == 2


def test_a_damaged_checkpoint_is_not_gone_on_from(training):
    one = training("damaged", epochs=1)
    one.run()
    one.checkpoint.write_bytes(one.checkpoint.read_bytes()[:-100])
    assert len(training("damaged", epochs=1).run().history) == 2


def test_ctrl_c_keeps_the_best_so_far(training):
    def interrupt(epoch, done, _):
        if epoch == 3 and done == 16:
            raise KeyboardInterrupt

    one = training(on_step=interrupt, learning_rate=3e-3)
    found = one.run()
    assert (found.interrupted, found.stopped, found.best_epoch) == (True, "interrupted", 2)
    kept = read_checkpoint(one.checkpoint)
    # Kernel and bias of the head, which come last, are divided by the temperature.
    assert found.temperature != 1
    for number, (a, b) in enumerate(zip(kept.best[::-1], weights(one)[::-1], strict=True)):
        scale = np.float32(found.temperature if number < 2 else 1)
        np.testing.assert_allclose(a, b * scale, rtol=1e-6)
    lines = (one.checkpoint.parent / "history.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [0, 1, 2]


def test_a_loss_that_diverges_stops_it_and_says_where(training):
    one = training(learning_rate=1e4, warmup=0.0, epochs=5)
    found = one.run()
    assert "the loss diverged" in found.stopped
    assert "at step" in found.stopped
    assert "at a learning rate of 1e+04: take a lower --learning-rate" in found.stopped
    assert found.best_epoch == 0
    for a, b in zip(one._start, weights(one), strict=True):
        np.testing.assert_array_equal(a, b)


def test_few_images_are_trained_on_at_a_lower_rate():
    default = FineTuneOptions()
    assert (default.views, default.patience, default.mixing) == (None, 10, "none")
    assert [default.rate_for(images) for images in (199, 200, 50_000)] == [1e-4, 1e-3, 1e-3]
    assert FineTuneOptions(learning_rate=0.5).rate_for(100) == 0.5


def test_patience_ends_it(training):
    found = training(learning_rate=1e-9, epochs=9, patience=2, weight_decay=0.0).run()
    assert found.stopped.startswith("no better hold-out score for 2 epochs")
    assert len(found.history) == found.best_epoch + 3


def test_memory_that_runs_out_halves_the_batch_and_keeps_the_step(training, monkeypatch, caplog):
    expected = training("plain")
    expected.run()
    one = training("halved")
    model = one._network.model
    step, largest, seen = model.train_on_batch, 2, 0

    def limited(inputs, *rest):
        nonlocal seen
        seen += 1
        # In the middle of the second epoch, and twice.
        if seen > 7 and len(inputs[0]) > largest:
            raise MemoryError
        return step(inputs, *rest)

    object.__setattr__(model, "train_on_batch", limited)
    with caplog.at_level(logging.WARNING, "featx"):
        one.run()
    assert caplog.messages == [
        f"memory ran out: going on with batches of {size} images, {parts} of them a step"
        for size, parts in ((4, 2), (2, 4))
    ]
    assert one._parts == 4
    np.testing.assert_allclose(one.losses[-10:], expected.losses[-10:], rtol=1e-3)


def test_another_error_is_not_taken_for_memory(training):
    one = training()
    assert not load_adapter().out_of_memory(ValueError("no"))

    def fail(*_):
        raise ValueError("no")

    object.__setattr__(one._network.model, "train_on_batch", fail)
    with pytest.raises(ValueError, match="no"):
        one.run()


@pytest.mark.parametrize(
    "changes",
    [
        {"mixing": "mixup"},
        pytest.param({"mixing": "cutmix", "cut": "pixels"}, marks=pytest.mark.slow),
        pytest.param({"label_smoothing": 0.1}, marks=pytest.mark.slow),
        pytest.param({"train_batchnorm": True}, marks=pytest.mark.slow),
        pytest.param({"mixed": True}, marks=pytest.mark.slow),
    ],
)
def test_what_may_be_asked_for_changes_the_course_and_is_repeatable(training, changes):
    plain, one, other = training("plain"), training("one", **changes), training("other", **changes)
    plain.run(), one.run(), other.run()
    assert one.losses == other.losses
    if "train_batchnorm" not in changes:  # the small network has none
        assert not np.allclose(one.losses, plain.losses, rtol=1e-3)


def test_the_head_is_trained_first_where_it_is_gradual(training):
    kept = {}

    def look(epoch):
        kept[epoch.epoch] = [np.array(w) for w in weights(one)]

    one = training(gradual=True, unfreeze="all", on_epoch=look)
    one.run()
    changed = [
        [not np.array_equal(a, b) for a, b in zip(kept[n], kept[n + 1], strict=True)]
        for n in range(3)
    ]
    # Kernel and bias of the layers first, second and head.
    assert changed[0] == [False] * 4 + [True] * 2
    assert changed[1] == [False] * 2 + [True] * 4
    assert changed[2] == [True] * 6


def test_a_changed_bit_of_a_checkpoint_is_found(tmp_path, caplog):
    path = tmp_path / "checkpoint.npz"
    kernel = np.ones((3, 4), np.float32)
    write_checkpoint(path, Checkpoint("job", 3, 1, [{"epoch": 1}], [kernel], [kernel], [kernel], 2))
    whole = path.read_bytes()
    for position in range(0, len(whole), 5):
        for bit in (0, 3, 5, 6):
            flipped = bytes([whole[position] ^ 1 << bit])
            path.write_bytes(whole[:position] + flipped + whole[position + 1 :])
            seen = read_checkpoint(path)
            if seen is not None:  # dates and other parts of the zip that mean nothing
                assert (seen.job, seen.epochs, seen.best_epoch) == ("job", 3, 2)
                for arrays in (seen.weights, seen.optimizer, seen.best):
                    np.testing.assert_array_equal(arrays[0], kernel)
    assert "is damaged, so training starts anew" in caplog.text
    path.unlink()
    caplog.clear()
    assert read_checkpoint(path) is None
    assert not caplog.text
