"""Presets of KerasHub in local folders; KerasHub itself is used where it is installed."""

import importlib.util
import json
import sys
import zipfile

import numpy as np
import pytest

from featx.backbones.build import build_network, build_tap_model
from featx.backbones.source import resolve_backbone
from featx.engines.choice import make_engine
from featx.exceptions import BackboneError, MissingExtraError, UnknownNameError

STD, MEAN = (0.229, 0.224, 0.225), (0.485, 0.456, 0.406)
TORCH = {
    "scale": [1 / 255 / s for s in STD],
    "offset": [-m / s for m, s in zip(MEAN, STD, strict=True)],
}


@pytest.fixture
def write_preset(tmp_path):
    """Write the JSON files of a preset as `save_to_preset` does, without weights."""

    def write(converter=None, *, name="keras_hub>VGGBackbone", shape=(16, 16, 3)):
        folder = tmp_path / "preset"
        folder.mkdir(exist_ok=True)
        config = {"image_shape": shape, "name": "vgg_backbone"}
        described = {"module": "keras_hub.src", "config": config, "registered_name": name}
        (folder / "config.json").write_text(json.dumps(described))
        if converter is not None:
            text = json.dumps({"module": "keras_hub.src", "config": converter})
            (folder / "image_converter.json").write_text(text)
        return folder

    return write


@pytest.mark.parametrize(
    ("converter", "expected"),
    [
        (TORCH, "torch"),
        ({"scale": 1 / 255, "offset": None}, "unit"),
        ({"scale": [1 / 127.5] * 3, "offset": -1}, "tf"),
        ({"scale": None, "offset": None}, "none"),
        ({"scale": [1 / 255 / 0.3] * 3, "offset": -1}, "mean=76.5/std=76.5"),
    ],
)
def test_the_preset_states_size_and_preprocessing(write_preset, converter, expected):
    source = resolve_backbone(f"hub:{write_preset({**converter, 'image_size': [20, 24]})}")
    assert (source.name, source.input_size_px) == ("hub:preset", (20, 24))
    assert source.preprocessing == expected
    other = resolve_backbone(f"hub:{write_preset({**converter, 'image_size': None})}")
    assert other.input_size_px == (16, 16)
    assert other.weights.sha256 != source.weights.sha256


@pytest.mark.parametrize(
    "converter",
    [None, {"scale": -1}, {"scale": "x"}, {"scale": 1, "mean": [0]}],
)
def test_a_preprocessing_that_featx_does_not_have_has_to_be_chosen(write_preset, converter):
    folder = write_preset(converter)
    with pytest.raises(BackboneError, match=r"states no preprocessing that featx has: give --pre"):
        resolve_backbone(f"hub:{folder}")
    assert resolve_backbone(f"hub:{folder}", preprocessing="tf").preprocessing == "tf"
    with pytest.raises(UnknownNameError, match="did you mean 'tf'"):
        resolve_backbone(f"hub:{folder}", preprocessing="tff")


def test_its_network_is_built_for_the_size_and_read_at_its_layers(
    write_preset, keras_hub, pixels, vectors_of, keras
):
    folder = write_preset({**TORCH, "image_size": [16, 16]})
    source = resolve_backbone(f"hub:{folder}", input_size=(12, 10))
    images = pixels(2, 12, 10, 3)
    (vector,) = vectors_of(build_tap_model(source, ("stem:max",)), images)
    assert keras_hub == [(str(folder), {"image_shape": (12, 10, 3)})]
    seen = images / np.float32(255)
    expected = build_network(source)((seen - np.float32(MEAN)) / np.float32(STD))
    expected = keras.ops.convert_to_numpy(expected).max(axis=(1, 2))
    np.testing.assert_allclose(vector, expected, rtol=1e-4, atol=1e-4)


def test_without_keras_hub_the_extra_is_named(write_preset, monkeypatch):
    monkeypatch.setitem(sys.modules, "keras_hub", None)
    source = resolve_backbone(f"hub:{write_preset(TORCH)}")
    with pytest.raises(MissingExtraError, match=r"keras-hub, which is not .*'featx\[hub\]'"):
        build_network(source)


def test_a_preset_that_does_not_load_is_an_error(write_preset, keras_hub, monkeypatch):
    def fail(*_, **__):
        raise ValueError("no weights\nat all")

    monkeypatch.setattr(sys.modules["keras_hub"].models.Backbone, "from_preset", fail)
    source = resolve_backbone(f"hub:{write_preset(TORCH)}")
    with pytest.raises(BackboneError, match=r"cannot be loaded .* 16x16 px: no weights\. Is it wh"):
        build_network(source)


def test_a_network_of_text_is_an_error(write_preset, keras_hub, monkeypatch, keras):
    tokens = keras.Input((None,), dtype="int32")
    text = keras.Model(tokens, keras.layers.Embedding(4, 2)(tokens))
    monkeypatch.setattr(
        sys.modules["keras_hub"].models.Backbone, "from_preset", lambda *_, **__: text
    )
    source = resolve_backbone(f"hub:{write_preset(TORCH)}")
    with pytest.raises(BackboneError, match=r"inputs of shape \(None,\); expected RGB pixels"):
        build_network(source)


def test_classes_of_others_are_not_made(write_preset):
    with pytest.raises(BackboneError, match=r"a class of keras_hub, received 'mine>Backbone'"):
        resolve_backbone(f"hub:{write_preset(TORCH, name='mine>Backbone')}")


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b"\xff", b'{"registered_name": 3}'])
def test_a_damaged_preset_is_an_error(write_preset, content):
    folder = write_preset(TORCH)
    (folder / "config.json").write_bytes(content)
    with pytest.raises(BackboneError, match=r"cannot be read|is damaged|is no preset"):
        resolve_backbone(f"hub:{folder}")


def test_another_folder_is_an_error(tmp_path):
    with pytest.raises(
        BackboneError, match=r"is no preset of KerasHub: expected a folder with con"
    ):
        resolve_backbone(f"hub:{tmp_path}")
    with pytest.raises(BackboneError, match="the folder of a preset of KerasHub, received"):
        resolve_backbone(f"hub:{tmp_path / 'none'}")


def test_a_network_of_keras_hub_gives_what_it_gives_behind_its_own_converter(
    tmp_path, pixels, vectors_of, keras
):
    keras_hub = pytest.importorskip("keras_hub")
    network = keras_hub.models.VGGBackbone(
        stackwise_num_repeats=[1, 1], stackwise_num_filters=[8, 4], image_shape=(None, None, 3)
    )
    converter = keras_hub.layers.VGGImageConverter(image_size=(24, 24), **TORCH)
    for part in (network, converter):
        part.save_to_preset(tmp_path / "vgg")
    source = resolve_backbone(f"hub:{tmp_path / 'vgg'}")
    assert (source.input_size_px, source.preprocessing) == ((24, 24), "torch")
    images = pixels(2, 24, 24, 3)
    (received,) = vectors_of(build_tap_model(source, ("flatten",)), images)
    expected = keras.ops.convert_to_numpy(network(converter(images.astype(np.float32))))
    np.testing.assert_allclose(received, expected.reshape(2, -1), rtol=1e-4, atol=1e-4)


SMALL = {"num_layers": 2, "num_heads": 2, "hidden_dim": 16, "image_shape": (32, 32, 3)}
TEXT = {"vocabulary_size": 50, "embedding_dim": 16, "num_layers": 1, "num_heads": 2,
        "hidden_dim": 16, "intermediate_dim": 32, "max_sequence_length": 8}  # fmt: skip


def transformer(name):
    """A small one of a family, and the part of it that sees images."""
    hub = pytest.importorskip("keras_hub").models
    if name == "ViT":
        network = hub.ViTBackbone(patch_size=8, mlp_dim=32, **SMALL)
        return network, network
    if name == "DINOV2":
        network = hub.DINOV2Backbone(patch_size=8, intermediate_dim=32, **SMALL)
        return network, network
    images = getattr(hub, f"{name}VisionEncoder")(patch_size=8, intermediate_dim=32, **SMALL)
    if name == "CLIP":
        return hub.CLIPBackbone(images, hub.CLIPTextEncoder(**TEXT), projection_dim=12), images
    from keras_hub.src.models.siglip.siglip_text_encoder import SigLIPTextEncoder

    return hub.SigLIPBackbone(images, SigLIPTextEncoder(**TEXT)), images


@pytest.mark.parametrize("name", ["ViT", "DINOV2", "CLIP", "SigLIP"])
def test_transformers_give_the_tokens_of_their_images(tmp_path, pixels, keras, name):
    network, tower = transformer(name)
    network.save_to_preset(tmp_path / "preset")
    source = resolve_backbone(f"hub:{tmp_path / 'preset'}", preprocessing="tf")
    assert source.input_size_px == (32, 32)
    images = pixels(3, 32, 32, 3)
    tokens = keras.Model(tower.inputs[0], tower.outputs[0])(images.astype(np.float32) / 127.5 - 1)
    tokens = keras.ops.convert_to_numpy(tokens)
    expected = {"avg": tokens}  # SigLIP's tower ends in one vector
    if tokens.ndim == 3:
        first, others = tokens[:, 0], tokens[:, 1:].mean(1)
        expected = {"cls": first, "mean-tokens": others, "cls+mean": np.hstack([first, others])}
        expected["avg"] = tokens.mean(1)
    for engine in ("openvino", "keras"):
        found = make_engine(engine, source, tuple(expected)).run(images)
        for tap, vectors in expected.items():
            np.testing.assert_allclose(found[tap], vectors, rtol=1e-3, atol=1e-4, err_msg=tap)


def test_a_saved_network_with_layers_of_keras_hub_names_the_extra(save_model, tmp_path):
    if importlib.util.find_spec("keras_hub") is not None:
        pytest.skip("keras-hub is installed")
    path = tmp_path / "theirs.keras"
    with (
        zipfile.ZipFile(save_model().removeprefix("file:")) as whole,
        zipfile.ZipFile(path, "w") as changed,
    ):
        for name in whole.namelist():
            data = whole.read(name)
            if name == "config.json":
                config = {**json.loads(data), "class_name": "VGGBackbone"}
                config |= {"module": "keras_hub.src.vgg", "registered_name": "keras_hub>VGG"}
                data = json.dumps(config).encode()
            changed.writestr(name, data)
    source = resolve_backbone(f"file:{path}", input_size=32)
    with pytest.raises(MissingExtraError, match=r"the network in .*theirs\.keras needs keras-hub"):
        build_network(source)
