"""ONNX networks: what their files state, the features that come out, what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from onnx_files import (
    FLOAT,
    FLOAT16,
    IMAGE,
    INT64,
    KERNEL,
    MAP,
    NET,
    UINT8,
    N,
    node,
    value,
    write,
    write_net,
    write_tokens,
)

import featx
from featx.backbones.source import canonical_name, resolve_backbone
from featx.engines.choice import make_engine
from featx.exceptions import (
    BackboneError,
    EngineError,
    FineTuningError,
    UnknownNameError,
    WeightsError,
)


def images(count=3, height=16, width=24):
    return np.random.default_rng(1).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def map_of(x):
    """What the network makes of its input with channels last, channels last."""
    return np.maximum(x @ KERNEL[:, :, 0, 0].T, 0)


def vectors(path, taps=("avg",), pixels=None, **options):
    source = resolve_backbone(f"onnx:{path}", **options)
    return make_engine("auto", source, tuple(taps)).run(images() if pixels is None else pixels)


def close(received, expected):
    np.testing.assert_allclose(received, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("channels", ["first", "last"])
def test_pixels_go_in_and_every_pooling_comes_out(tmp_path, channels):
    x = (images().astype(np.float32)[..., ::-1] - [1, 2, 3]) / [4, 5, 6]
    if channels == "first":
        path = write_net(tmp_path / "net.onnx")
    else:
        nodes = [
            node("Transpose", "image", "turned", perm=[0, 3, 1, 2]),
            node("Conv", "turned kernel", "conv"),
            node("Relu", "conv", "map"),
        ]
        path = write_net(tmp_path / "net.onnx", value("image", FLOAT, N, 16, 24, 3), nodes=nodes)
    taps = ("avg", "max", "gem:2", "flatten", "grid:2", "map:max", "conv:avg")
    found = vectors(path, taps, preprocessing="mean=1,2,3/std=4,5,6/bgr")
    expected = map_of(x)
    close(found["avg"], expected.mean((1, 2)))
    close(found["max"], expected.max((1, 2)))
    close(found["gem:2"], np.sqrt((np.maximum(expected, 1e-6) ** 2).mean((1, 2))))
    close(found["flatten"], expected.reshape(3, -1))
    close(found["grid:2"][:, 5:10], expected[:, :8, 12:].mean((1, 2)))
    np.testing.assert_array_equal(found["map:max"], found["max"])
    close(found["conv:avg"], (x @ KERNEL[:, :, 0, 0].T).mean((1, 2)))


def test_tokens_have_poolings_of_their_own(tmp_path):
    path = write_tokens(tmp_path / "net.onnx")
    found = vectors(path, ("cls", "mean-tokens", "cls+mean", "avg"), preprocessing="unit")
    tokens = map_of(images() / 255).reshape(3, 384, 5)
    close(found["cls"], tokens[:, 0])
    close(found["mean-tokens"], tokens[:, 1:].mean(1))
    close(found["cls+mean"], np.hstack([tokens[:, 0], tokens[:, 1:].mean(1)]))
    close(found["avg"], tokens.mean(1))
    with pytest.raises(BackboneError, match="tap cls needs tokens"):
        vectors(write_net(tmp_path / "map.onnx"), ("cls",), preprocessing="unit")


@pytest.mark.parametrize("dtype", [UINT8, FLOAT16])
def test_other_number_types_of_the_input(tmp_path, dtype):
    nodes = [node("Cast", "image", "float", to=FLOAT), node("Conv", "float kernel", "conv"), NET[1]]
    path = write_net(tmp_path / "net.onnx", value("image", dtype, N, 3, 16, 24), nodes=nodes)
    options = {} if dtype == UINT8 else {"preprocessing": "none"}
    x = images().astype(np.float32)
    np.testing.assert_allclose(vectors(path, **options)["avg"], map_of(x).mean((1, 2)), rtol=2e-3)
    assert resolve_backbone(f"onnx:{path}", **options).preprocessing == "none"
    if dtype == UINT8:
        close(vectors(path, preprocessing="none/bgr")["avg"], map_of(x[..., ::-1]).mean((1, 2)))
        with pytest.raises(BackboneError, match="takes whole numbers from 0 to 255, received"):
            vectors(path, preprocessing="torch")


def test_of_several_outputs_one_is_named_or_is_the_only_map(tmp_path):
    vector = node("ReduceMean", "map", "avg", axes=[2, 3], keepdims=0)
    pooled = value("avg", FLOAT, N, 5)
    path = write_net(tmp_path / "net.onnx", outputs=(MAP, pooled), nodes=[*NET, vector])
    found = vectors(path, ("avg", "max", "map:avg"), preprocessing="unit")
    close(found["map:avg"], found["avg"])
    assert (found["max"] >= found["avg"]).all()
    two = write_net(tmp_path / "two.onnx", outputs=(MAP, value("conv", FLOAT, N, 5, 16, 24)))
    with pytest.raises(BackboneError, match=r"outputs map, conv: name one .* --tap map:avg"):
        vectors(two, preprocessing="unit")
    with pytest.raises(UnknownNameError, match="did you mean 'conv'"):
        vectors(two, ("cov:max",), preprocessing="unit")


STATED = {
    "its metadata": ({"metadata": {"mean": "[127, 127, 127]", "std": "128"}}, None, None),
    "its own words": ({"metadata": {"preprocessing": "mean=127/std=128"}}, None, None),
    "net.json": ({}, "net.json", {"mean": [127, 127, 127], "std": 128, "layout": "NCHW"}),
    "preprocessor_config.json": (
        {},
        "preprocessor_config.json",
        {"rescale_factor": 1 / 255, "image_mean": [127 / 255] * 3, "image_std": [128 / 255] * 3},
    ),
}


@pytest.mark.parametrize("where", STATED)
def test_the_preprocessing_is_read_where_it_is_stated(tmp_path, where):
    more, name, content = STATED[where]
    path = write_net(tmp_path / "net.onnx", **more)
    if name:
        (tmp_path / name).write_text(json.dumps(content))
    source = resolve_backbone(f"onnx:{path}")
    assert source.preprocessing == "mean=127/std=128"
    assert "states it" in source.note
    assert resolve_backbone(f"onnx:{path}", preprocessing="torch").preprocessing == "torch"


def test_without_a_statement_it_has_to_be_given(tmp_path):
    path = write_net(tmp_path / "net.onnx")
    with pytest.raises(BackboneError, match=r"states no preprocessing.*mean=127/std=128"):
        resolve_backbone(f"onnx:{path}")
    (tmp_path / "net.json").write_text("{")
    with pytest.raises(BackboneError, match=r"net\.json cannot be read"):
        resolve_backbone(f"onnx:{path}")


def test_an_open_layout_has_to_be_given_and_a_known_one_must_not(tmp_path):
    image = value("image", FLOAT, N, "c", "h", "w")
    path = write_net(tmp_path / "net.onnx", image, [value("map", FLOAT, N, 5, "h", "w")])
    with pytest.raises(BackboneError, match="where the channels .*unit/nchw"):
        resolve_backbone(f"onnx:{path}", preprocessing="unit", input_size=16)
    options = {"preprocessing": "unit/nchw", "input_size": 16}
    found = vectors(path, pixels=images(width=16), **options)
    close(found["avg"], map_of(images(width=16) / 255).mean((1, 2)))
    known = write_net(tmp_path / "known.onnx")
    source = resolve_backbone(f"onnx:{known}", preprocessing="unit/nchw")
    assert source.preprocessing == "unit"
    with pytest.raises(BackboneError, match="channels first, as its shape says: leave nhwc out"):
        resolve_backbone(f"onnx:{known}", preprocessing="unit/nhwc")


def test_an_open_size_has_to_be_given_and_a_fixed_one_stays(tmp_path):
    image = value("image", FLOAT, N, 3, "h", "w")
    path = write_net(tmp_path / "net.onnx", image, [value("map", FLOAT, N, 5, "h", "w")])
    with pytest.raises(BackboneError, match="give --input-size"):
        resolve_backbone(f"onnx:{path}", preprocessing="unit")
    found = vectors(path, preprocessing="unit", input_size=(16, 24))
    close(found["avg"], map_of(images() / 255).mean((1, 2)))
    fixed = write_net(tmp_path / "fixed.onnx")
    with pytest.raises(BackboneError, match=r"inputs of \(16, 24\) px, received \(32, 32\)"):
        vectors(fixed, preprocessing="unit", input_size=32)


def test_weights_beside_the_file_are_part_of_its_identity(tmp_path):
    (tmp_path / "here").mkdir()
    path = write_net(tmp_path / "here" / "net.onnx", external="net.bin")
    whole = write_net(tmp_path / "whole.onnx")
    options = {"preprocessing": "unit"}
    close(vectors(path, **options)["avg"], vectors(whole, **options)["avg"])
    before = resolve_backbone(f"onnx:{path}", **options).weights.sha256
    (tmp_path / "here" / "net.bin").write_bytes(2 * KERNEL.tobytes())
    assert resolve_backbone(f"onnx:{path}", **options).weights.sha256 != before
    (tmp_path / "here" / "net.bin").unlink()
    with pytest.raises(BackboneError, match=r"weights in 'net\.bin', which is not beside it"):
        resolve_backbone(f"onnx:{path}", **options)


@pytest.mark.parametrize("place", ["/etc/passwd", "../net.bin"])
def test_weights_elsewhere_are_not_read(tmp_path, place):
    (tmp_path / "here").mkdir()
    (tmp_path / "net.bin").write_bytes(KERNEL.tobytes())
    path = write_net(tmp_path / "here" / "net.onnx", external=place)
    with pytest.raises(BackboneError, match="expected a file in its own folder"):
        resolve_backbone(f"onnx:{path}", preprocessing="unit")


def test_weights_behind_a_link_out_of_the_folder_are_not_read(tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / "secret").write_bytes(KERNEL.tobytes())
    path = write_net(tmp_path / "here" / "net.onnx", external="net.bin")
    (tmp_path / "here" / "net.bin").unlink()
    (tmp_path / "here" / "net.bin").symlink_to(tmp_path / "secret")
    with pytest.raises(BackboneError, match="expected a file in its own folder"):
        resolve_backbone(f"onnx:{path}", preprocessing="unit")


TWO = [node("Add", "image other", "sum"), node("Conv", "sum kernel", "conv"), NET[1]]
REFUSED = {
    "no ONNX": (lambda path: path.write_bytes(b"\x89PNG no network at all"), "ONNX network"),
    "an empty file": (lambda path: path.write_bytes(b""), "no ONNX network"),
    "two inputs": (
        lambda path: write(
            path, TWO, [IMAGE, value("other", FLOAT, N, 3, 16, 24)], [MAP], {"kernel": KERNEL}
        ),
        r"has 2 inputs \(image, other\); expected one",
    ),
    "a fixed batch": (
        lambda path: write_net(path, value("image", FLOAT, 1, 3, 16, 24)),
        "takes batches of 1 only: .*dynamic",
    ),
    "one channel": (
        lambda path: write_net(path, value("image", FLOAT, N, 1, 16, 24)),
        r"shape \(n, 1, 16, 24\): expected 3 channels",
    ),
    "no image": (
        lambda path: write_net(path, value("image", INT64, N, 77)),
        r"'image' of shape \(n, 77\) and ONNX type 7: expected images",
    ),
    "custom operators": (
        lambda path: write_net(path, nodes=[NET[0], node("Mine", "conv", "map", domain="mine")]),
        "operators that are not ONNX's own: Mine",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_network_of_images_ends_in_one_message(tmp_path, case):
    make, message = REFUSED[case]
    path = tmp_path / "net.onnx"
    make(path)
    with pytest.raises(BackboneError, match=message) as caught:
        resolve_backbone(f"onnx:{path}", preprocessing="unit")
    assert "\n" not in str(caught.value)


def test_what_openvino_cannot_run_is_said(tmp_path):
    path = write_net(tmp_path / "net.onnx", nodes=[NET[0], node("NoSuchThing", "conv", "map")])
    with pytest.raises(EngineError, match="cannot read .*NoSuchThing") as caught:
        vectors(path, preprocessing="unit")
    assert len(str(caught.value)) < 600
    good = write_net(tmp_path / "good.onnx")
    source = resolve_backbone(f"onnx:{good}", preprocessing="unit")
    for engine, precision in (("keras", "f32"), ("auto", "mixed")):
        with pytest.raises(
            EngineError, match=r"runs with OpenVINO, and Keras cannot read it: leave --engine"
        ):
            make_engine(engine, source, ("avg",), precision=precision)


def test_a_network_that_mixes_its_images_is_refused(tmp_path):
    nodes = [
        node("ReduceMean", "image", "mean", axes=[0], keepdims=1),
        node("Sub", "image mean", "rest"),
        node("Conv", "rest kernel", "conv"),
        NET[1],
    ]
    path = write_net(tmp_path / "net.onnx", nodes=nodes)
    with pytest.raises(BackboneError, match="other features at the tap avg when it is alone"):
        vectors(path, preprocessing="unit")


def test_from_images_to_a_model_without_tensorflow(tmp_path, photos, run_python):
    path = write_net(tmp_path / "net.onnx", metadata={"preprocessing": "unit"})
    code = f"""
import sys, featx
backbone = "onnx:{path}"
kept = dict(taps=["avg", "conv"], cache="{tmp_path}/c")
features = featx.extract({str(photos)!r}, backbone=backbone, **kept)
result = featx.train(features, tap="avg", cv=0, head="ridge")
result.model.save("{tmp_path}/m.featx")
files = sorted(map(str, __import__("pathlib").Path({str(photos)!r}).glob("*/*.jpg")))
print(featx.load("{tmp_path}/m.featx", cache="{tmp_path}/d").predict(files).tolist())
print(sorted({{"tensorflow", "keras"}} & set(sys.modules)))
"""
    done = run_python(code)
    labels, imported = done.stdout.splitlines()
    assert eval(labels) == ["blue"] * 6 + ["red"] * 6
    assert imported == "[]"
    again = featx.extract(photos, backbone=f"onnx:{path}", cache=tmp_path / "c")
    assert again.report["extracted"] == 0
    with pytest.raises(FineTuningError, match="an ONNX network, one function without layers"):
        featx.finetune(tmp_path / "m.featx", photos, tmp_path / "f.featx", cache=tmp_path / "c")
    write_net(path, metadata={"preprocessing": "tf"})
    with pytest.raises(WeightsError, match="SHA-256"):
        featx.load(tmp_path / "m.featx", cache=tmp_path / "e").predict([str(photos / "red/0.jpg")])


def test_a_file_is_described_without_running_it(tmp_path, featx_command):
    path = write_net(tmp_path / "net.onnx", metadata={"preprocessing": "torch"})
    told = json.loads(featx_command("backbones", f"onnx:{path}", "--json").stdout)
    assert told["name"] == "onnx:net"
    assert (told["input_size_px"], told["preprocessing"]) == ([16, 24], "torch")
    assert (told["outputs"], told["tensors"]) == ("map", ["conv", "map"])
    image = value("image", FLOAT, N, "c", "h", "w")
    silent = write_net(tmp_path / "silent.onnx", image)
    shown = featx_command("backbones", f"onnx:{silent}").stdout
    assert "not stated: give --input-size" in shown
    assert "channels first or last" in shown
    missing = featx_command("backbones", f"onnx:{tmp_path / 'none.onnx'}")
    assert (missing.returncode, "which is no file" in missing.stderr) == (1, True)


def test_names_of_tensors_with_slashes_and_numbers_are_kept(tmp_path, photos):
    nodes = [
        node("Conv", "image kernel", "/stage.1/conv_100%:0"),
        node("Relu", "/stage.1/conv_100%:0", "map"),
    ]
    path = write_net(tmp_path / "net.onnx", nodes=nodes)
    tap = "/stage.1/conv_100%:0:max"
    own = {"backbone": f"onnx:{path}", "preprocessing": "unit", "cache": tmp_path / "c"}
    features = featx.extract(photos, taps=[tap, "avg"], **own)
    assert features.matrix(tap=tap).shape == (12, 5)
    assert canonical_name(own["backbone"]) == "onnx:net"
    again = featx.extract(photos, taps=[tap], **own)
    np.testing.assert_array_equal(again.matrix(tap=tap), features.matrix(tap=tap))
    assert again.report["extracted"] == 0


@pytest.mark.realdata
def test_a_published_network_agrees_with_onnxruntime(shared):
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    path = shared / "weights" / "efficientnet_lite0_224.onnx"
    pixels = images(4, 224, 224)
    found = vectors(path, ("avg", "map:flatten"), pixels, preprocessing="mean=127/std=128")
    x = ((pixels.astype(np.float32) - 127) / 128).transpose(0, 3, 1, 2)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    expected = dict(zip(("map", "avg"), session.run(["map", "avg"], {"image": x}), strict=True))
    close(found["avg"], expected["avg"])
    close(found["map:flatten"], expected["map"].transpose(0, 2, 3, 1).reshape(4, -1))
