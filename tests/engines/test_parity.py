"""OpenVINO and Keras agree on every architecture of the catalogue, and on real photographs.

Agreement is a `disagreement` of at most 1e-4 for every tap: the largest difference relative to the
largest value.
"""

import gc

import numpy as np
import pytest

from featx.backbones.build import build_tap_model, draw_images
from featx.backbones.catalog import CATALOG
from featx.backbones.source import resolve_backbone
from featx.engines import keras as keras_engine
from featx.engines import openvino as openvino_engine
from featx.engines.keras import KerasEngine
from featx.engines.openvino import TOLERANCE, OpenVinoEngine, disagreement

# A block in the middle of the networks of each family.
BLOCKS = {
    "MobileNet": "conv_pw_6",
    "MobileNetV2": "block_6",
    "MobileNetV3": "expanded_conv_4",
    "NASNet": "normal_concat_2",
    "EfficientNet": "block4a",
    "EfficientNetV2": "block4a",
    "DenseNet": "conv3_block4",
    "ResNet": "conv3_block2",
    "ResNetV2": "conv3_block2",
    "InceptionV3": "mixed5",
    "InceptionResNetV2": "block17_5",
    "Xception": "block6",
    "VGG16": "block3",
    "VGG19": "block3",
    "ConvNeXt": "stage_1_block_1",
}
ALWAYS = {
    "tiny",
    "mobilenet",
}


ARCHITECTURES = [
    pytest.param(name, marks=() if name in ALWAYS else pytest.mark.slow) for name in CATALOG
]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_architecture_agrees_with_keras(name, monkeypatch):
    row = CATALOG[name]
    size = 64 if row.shared.min_size_px <= 64 else 96
    source = resolve_backbone(name, weights="random:0", input_size=size)
    taps = ("avg", "max", "gem", f"{BLOCKS[row.family]}:avg", f"{BLOCKS[row.family]}:max")
    images = draw_images((32, size, size), 3)[np.random.default_rng(3).permutation(32)]
    network = build_tap_model(source, taps)
    for module in (keras_engine, openvino_engine):
        monkeypatch.setattr(module, "build_tap_model", lambda *_, **__: network)
    expected = KerasEngine(source, taps, batch_size=32).run(images)
    engine = OpenVinoEngine(source, taps)
    worst = {}
    for count in (1, 7, 32):
        for tap, values in engine.run(images[:count]).items():
            worst[tap, count] = disagreement(values, expected[tap][:count])
    del engine
    gc.collect()
    assert max(worst.values()) <= TOLERANCE, worst
    # Vectors that hardly differ would agree whatever the engine did.
    spread = np.ptp(expected["avg"], axis=0).max() / np.abs(expected["avg"]).max()
    assert spread > 100 * TOLERANCE


@pytest.mark.slow
@pytest.mark.realdata
def test_photographs_are_told_apart_alike(shared, mobilenet_weights):
    from PIL import Image
    from sklearn.linear_model import LogisticRegression

    paths = sorted((shared / "data" / "ants_bees").rglob("*.jpg"))
    pixels = np.stack(
        [np.asarray(Image.open(path).convert("RGB").resize((224, 224))) for path in paths]
    )
    labels = [path.parent.name for path in paths]
    source = resolve_backbone("mobilenet_v2", weights=mobilenet_weights)
    engines = [KerasEngine(source, ("avg",)), OpenVinoEngine(source, ("avg",))]
    theirs, ours = (
        np.concatenate([engine.run(pixels[i : i + 32])["avg"] for i in range(0, len(pixels), 32)])
        for engine in engines
    )
    assert disagreement(ours, theirs) <= TOLERANCE
    head = LogisticRegression(max_iter=1000).fit(theirs, labels)
    np.testing.assert_array_equal(head.predict(ours), head.predict(theirs))
    np.testing.assert_allclose(head.predict_proba(ours), head.predict_proba(theirs), atol=1e-4)
