"""Where a network is cut."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from featx.backbones.build import build_network
from featx.backbones.source import resolve_backbone
from featx.exceptions import FineTuningError, UnknownNameError
from featx.finetuning.network import find_cut
from featx.quiet import quiet_import


@pytest.fixture(scope="module")
def keras():
    with quiet_import():
        import keras
    return keras


@pytest.fixture(scope="module")
def source():
    return resolve_backbone("mobilenet_v2", weights="random:0", input_size=32)


@pytest.fixture(scope="module")
def network(source):
    network = build_network(source)
    network.trainable = True
    return network


def names(layers):
    return [layer.name for layer in layers]


def test_from_a_block_on(network, source):
    cut = find_cut(network, source, "avg", "block_16")
    assert cut.layers == ("block_15_add",)
    assert tuple(cut.tensors[0].shape[1:]) == (1, 1, 160)
    assert [names(group)[0] for group in cut.groups] == ["block_16_expand"]
    assert names(cut.groups[0])[-2:] == ["Conv_1", "Conv_1_bn"]
    assert names(cut.frozen)[-1] == "block_15_project_BN"


def test_a_block_with_a_shortcut_is_cut_below_both_paths(network, source):
    # block_15 takes the output of block_14 twice: for its layers and for the sum.
    cut = find_cut(network, source, "avg", "block_15")
    assert cut.layers == ("block_14_add",)
    assert len(cut.groups) == 2


def test_a_cut_inside_a_block_crosses_both_paths(network, source):
    cut = find_cut(network, source, "avg", "block_15_depthwise")
    assert set(cut.layers) == {"block_14_add", "block_15_expand_relu"}


def test_all_has_no_frozen_part_and_takes_pixels(network, source):
    cut = find_cut(network, source, "avg", "all")
    assert (cut.layers, cut.frozen) == ((), ())


def test_a_share_counts_layers_with_weights(network, source):
    weighted = [layer for layer in network.layers if layer.weights]
    cut = find_cut(network, source, "avg", "10%")
    trained = [layer for group in cut.groups for layer in group]
    assert names(trained) == names(weighted[-round(len(weighted) / 10) :])


def test_all_but_the_first_layers_as_keras_counts_them(network, source):
    cut = find_cut(network, source, "avg", "after:15")
    assert names(cut.frozen) == [layer.name for layer in network.layers[:15] if layer.weights]


def test_a_tap_further_down_ends_the_trained_part(network, source):
    cut = find_cut(network, source, "block_14:avg", "block_14")
    assert [names(group)[0] for group in cut.groups] == ["block_14_expand"]


NOTHING, AFTER = "nothing would be trained", "comes after the tap 'block_14:avg'"


@pytest.mark.parametrize(
    ("tap", "part", "error", "message"),
    [
        *(("block_14:avg", part, FineTuningError, AFTER) for part in ("block_16", "Conv_1")),
        ("avg", "out_relu", FineTuningError, f"{NOTHING}: 'out_relu' unfreezes no layer"),
        ("avg", "after:1000", FineTuningError, NOTHING),
        ("avg", "blok_15", UnknownNameError, "did you mean 'block_1[0-9]'.*30%, after:15, all"),
        *(("avg", part, FineTuningError, "expected a share") for part in ("0%", "101%", "x%")),
        *(("avg", part, FineTuningError, "expected a number") for part in ("after:", "after:-1")),
    ],
)
def test_what_cannot_be_unfrozen_is_said(network, source, tap, part, error, message):
    with pytest.raises(error, match=message):
        find_cut(network, source, tap, part)


def test_what_crosses_has_to_be_the_output_of_a_layer(keras):
    pixels = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, name="low")(pixels)
    y = keras.layers.Conv2D(4, 3, name="high")(keras.ops.sin(x))
    source = SimpleNamespace(row=None, name="file:own")
    with pytest.raises(FineTuningError, match="no output of one layer"):
        find_cut(keras.Model(pixels, y), source, "avg", "high")
