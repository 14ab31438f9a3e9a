import hashlib
import json
import pickle
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest

from featx.backbones.build import build_network, build_tap_model
from featx.backbones.source import resolve_backbone
from featx.backbones.taps import layer_outputs
from featx.exceptions import BackboneError, UnknownNameError
from featx.spec import ImagePolicy


@pytest.fixture
def vectors(pixels, vectors_of):
    def run(source, *taps):
        images = pixels(2, *source.input_size_px, 3)
        return vectors_of(build_tap_model(source, taps or ("avg",)), images)

    return run


@pytest.fixture
def own(tmp_path):
    """Save a network, and settle it as a backbone."""

    def settle(model, **options):
        model.save(tmp_path / "net.keras")
        return resolve_backbone(f"file:{tmp_path / 'net.keras'}", **options)

    return settle


def test_a_backbone_takes_its_own_input_size_or_the_one_asked_for():
    assert resolve_backbone("xception", weights="random:0").input_size_px == (299, 299)
    assert resolve_backbone("xception", weights="random:0", input_size=96).input_size_px == (96, 96)


@pytest.mark.parametrize("size", [0, -5, (0, 32), (32, 0)])
def test_a_size_that_is_none_is_an_error(size):
    with pytest.raises(BackboneError, match="expected an input size in pixels, received"):
        resolve_backbone("mobilenet", weights="random:0", input_size=size)


def test_a_catalogued_backbone_has_a_preprocessing_of_its_own():
    with pytest.raises(BackboneError, match="mobilenet has a preprocessing of its own.*'caffe'"):
        resolve_backbone("mobilenet", weights="random:0", preprocessing="caffe")


def test_the_specification_holds_what_was_settled():
    source = resolve_backbone("MobileNet", weights="random:3", input_size=(32, 48))
    spec = source.spec(image=ImagePolicy(resize="crop"), dtype="float16", precision="mixed")
    assert (spec.backbone, spec.weights_sha256) == ("mobilenet", source.weights.sha256)
    assert (spec.input_size_px, spec.preprocessing) == ((32, 48), "tf")
    assert (spec.image.resize, spec.dtype, spec.precision) == ("crop", "float16", "mixed")
    assert spec.views is None


def test_a_source_pickles_and_names_what_finds_it_again(save_model, tmp_path, monkeypatch):
    path = Path(save_model().removeprefix("file:"))
    monkeypatch.chdir(tmp_path)
    for name, weights, address, choice in (
        ("file:mine.keras", None, f"file:{path}", None),
        ("MobileNet", "random:3", "mobilenet", "random:3"),
        ("tiny", None, "tiny", None),
        ("mobilenet", "mine.keras", "mobilenet", str(path)),
    ):
        source = resolve_backbone(name, weights=weights, trust=True)
        assert (source.address, source.weights_choice, source.trust) == (address, choice, True)
        assert pickle.loads(pickle.dumps(source)) == source
        again = resolve_backbone(source.address, weights=source.weights_choice)
        assert again.spec() == source.spec()


def test_an_own_network_is_named_by_its_file_and_identified_by_its_bytes(
    save_model, keras, pixels, vectors_of
):
    name = save_model()
    path = Path(name.removeprefix("file:"))
    source = resolve_backbone(name)
    assert (source.name, source.row, source.input_size_px) == ("file:mine", None, (32, 32))
    assert source.weights.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    images = pixels(2, 32, 32, 3)
    (received,) = vectors_of(build_tap_model(source, ("flatten",)), images)
    model = keras.models.load_model(path)
    expected = keras.ops.convert_to_numpy(model(images.astype(np.float32)))
    np.testing.assert_allclose(received, expected.reshape(2, -1), rtol=1e-5, atol=1e-4)


def test_a_relative_path_and_a_home_folder_are_followed(save_model, tmp_path, monkeypatch):
    save_model()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    sources = [resolve_backbone(name) for name in ("file:mine.keras", "file:~/mine.keras")]
    assert sources[0].spec() == sources[1].spec()
    assert build_network(sources[0]).input_shape == (None, 32, 32, 3)


def test_a_network_of_any_input_size_needs_one(save_model, vectors):
    name = save_model(size=None)
    with pytest.raises(BackboneError, match=r"does not fix the size of its input.*--input-size"):
        resolve_backbone(name)
    (vector,) = vectors(resolve_backbone(name, input_size=(24, 40)), "flatten")
    assert vector.shape == (2, 9 * 17 * 5)


def test_an_inner_layer_of_fixed_size_does_not_fix_the_input(keras, own):
    images = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(4, 3)(keras.layers.Resizing(16, 16)(images))
    with pytest.raises(BackboneError, match="does not fix the size of its input"):
        own(keras.Model(images, x))


def test_a_network_with_channels_first_is_an_error(keras, own):
    images = keras.Input((3, 16, 16))
    with pytest.raises(BackboneError, match=r"\(None, 3, 16, 16\): expected .*channels last"):
        own(keras.Model(images, keras.layers.ReLU()(images)), input_size=16)


GREY = r"\(None, 32, 32, 1\): expected RGB pixels"
REFUSED = [
    ({"channels": 1}, {}, "avg", GREY),
    ({"channels": 1}, {"input_size": 32}, "avg", GREY),
    ({}, {"input_size": 48}, "avg", r"inputs of shape \(32, 32, 3\).*\(48, 48, 3\)"),
    ({"outputs": 2}, {}, "avg", r"has 1 inputs and 2 outputs; expected one of each"),
    ({}, {"weights": "random:0"}, "avg", "brings its own weights: leave --weights out"),
    ({}, {"preprocessing": "cafe"}, "avg", "unknown preprocessing 'cafe': did you mean 'caffe'"),
    ({}, {}, "lastconv:avg", r"of file:mine 'lastconv': .*'last_conv'.*Known: "),
]


@pytest.mark.parametrize(("saved", "options", "tap", "match"), REFUSED)
def test_what_an_own_network_does_not_take_is_an_error(saved, options, tap, match, save_model):
    name = save_model(**saved)
    with pytest.raises((BackboneError, UnknownNameError), match=match):
        build_tap_model(resolve_backbone(name, **options), (tap,))


@pytest.mark.parametrize(
    ("preprocessing", "scale", "offset"),
    [(None, 1, 0), ("none", 1, 0), ("unit", 1 / 255, 0), ("tf", 1 / 127.5, -1)],
)
def test_an_own_network_reads_pixels_as_asked(
    preprocessing, scale, offset, keras, own, pixels, vectors_of
):
    images = keras.Input((8, 8, 3))
    same = keras.Model(images, keras.layers.Identity()(images))
    source = own(same, preprocessing=preprocessing)
    assert source.spec().preprocessing == (preprocessing or "none")
    batch = pixels(2, 8, 8, 3)
    (received,) = vectors_of(build_tap_model(source, ("flatten",)), batch)
    np.testing.assert_allclose(received, batch.reshape(2, -1) * scale + offset, atol=1e-5)


def test_a_classifier_gives_its_outputs(save_model, keras, vectors):
    name = save_model(tail=[keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(7)])
    average, flat = vectors(resolve_backbone(name), "avg", "flatten")
    assert average.shape == (2, 7)
    np.testing.assert_array_equal(average, flat)


def test_the_layers_of_an_own_network_are_taps(save_model, vectors):
    last, first = vectors(resolve_backbone(save_model()), "last_conv:max", "conv2d_1:avg")
    assert (last.shape, first.shape) == ((2, 5), (2, 4))


def test_a_network_inside_a_network_is_a_tap(keras, own, vectors):
    inner = keras.Sequential(
        [keras.Input((16, 16, 3)), keras.layers.Conv2D(6, 3)], name="inner_net"
    )
    images = keras.Input((16, 16, 3))
    outputs = keras.layers.GlobalAveragePooling2D()(inner(images))
    inside, last = vectors(own(keras.Model(images, outputs)), "inner_net:avg", "avg")
    np.testing.assert_allclose(inside, last, rtol=1e-5, atol=1e-5)


def test_a_sequential_network_is_taken_as_it_is(keras, own, vectors):
    layers = [keras.layers.Conv2D(6, 3, name="stem"), keras.layers.GlobalMaxPooling2D()]
    source = own(keras.Sequential([keras.Input((16, 20, 3)), *layers]))
    assert source.input_size_px == (16, 20)
    stem, last = vectors(source, "stem:max", "avg")
    np.testing.assert_array_equal(stem, last)


def test_a_layer_that_is_applied_twice_is_no_tap(keras, own, vectors):
    shared, images = keras.layers.Conv2D(3, 3, name="shared"), keras.Input((16, 16, 3))
    source = own(keras.Model(images, shared(shared(images))))
    assert "shared" not in layer_outputs(build_network(source))
    assert vectors(source, "avg")[0].shape == (2, 3)


def test_code_in_a_file_is_not_run(keras, tmp_path, own):
    trace = tmp_path / "trace"
    images = keras.Input((8, 8, 3))
    write = f"__import__('pathlib').Path({str(trace)!r}).touch()"
    lamb = keras.layers.Lambda(eval(f"lambda x: ({write}, x)[1]"), output_shape=(8, 8, 3))
    model = keras.Model(images, lamb(images))
    trace.unlink(missing_ok=True)
    source = own(model)
    with pytest.raises(BackboneError, match=r"Lambda layers \('lambda\w*'\)") as raised:
        build_network(source)
    assert "savedmodel:FOLDER --trust" in str(raised.value)
    assert "safe_mode" not in str(raised.value)
    assert not trace.exists()


def test_layers_that_are_not_keras_s_are_named(keras, tmp_path, own, monkeypatch):
    class Twice(keras.layers.Layer):
        def call(self, x):
            return x * 2

    class Thrice(Twice):
        pass

    monkeypatch.setattr("keras.src.saving.object_registration.GLOBAL_CUSTOM_OBJECTS", {})
    monkeypatch.setattr("keras.src.saving.object_registration.GLOBAL_CUSTOM_NAMES", {})
    registered = keras.saving.register_keras_serializable("own")(Thrice)
    images = keras.Input((8, 8, 3))
    model = keras.Model(images, keras.Sequential([Twice(), registered()])(images))
    source = own(model)
    monkeypatch.setattr("keras.src.saving.object_registration.GLOBAL_CUSTOM_OBJECTS", {})
    named = r"'Twice', 'Thrice' \(registered as 'own>Thrice'\)"
    with pytest.raises(BackboneError, match=f"received {named}") as raised:
        build_network(source)
    assert not re.search("custom_objects|from_config|safe_mode", str(raised.value))
    # The advice works.
    model.export(tmp_path / "net", verbose=False)
    exported = resolve_backbone(f"savedmodel:{tmp_path / 'net'}", trust=True)
    assert build_network(exported).output_shape == (None, 8, 8, 3)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "an empty file"),
        (b"<!DOCTYPE html><html>", "a web page in place of the download"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "`git lfs pull` gets"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        (b"\x80\x04\x95", "a pickle"),
    ],
)
def test_a_file_that_is_no_keras_model_is_called_what_it_is(content, named, tmp_path):
    (tmp_path / "net.keras").write_bytes(content)
    for size in (None, 32):
        with pytest.raises(
            BackboneError, match=rf"is no model saved by Keras 3.*received .*{named}"
        ):
            resolve_backbone(f"file:{tmp_path / 'net.keras'}", input_size=size)


@pytest.mark.parametrize("name", ["nowhere.keras", "folder.keras", ""])
def test_no_such_file(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.keras").mkdir()
    with pytest.raises(BackboneError, match=f"received 'file:{name}', which is no file"):
        resolve_backbone(f"file:{name}")


def test_a_file_of_another_kind(tmp_path):
    path = tmp_path / "model.h5"
    path.write_bytes(b"legacy")
    with pytest.raises(BackboneError, match=r"or of a tuned \.featx, .*model\.h5'$"):
        resolve_backbone(f"file:{path}")


@pytest.mark.parametrize(
    "config", [b"", b"{", b"[]", b"5", b'{"config": []}', b'{"config": {"layers": [1]}}']
)
def test_a_file_that_is_no_model(config, tmp_path):
    path = tmp_path / "odd.keras"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", config)
    with pytest.raises(BackboneError, match=r"odd\.keras (is no model|does not fix)"):
        resolve_backbone(f"file:{path}")
    with pytest.raises(BackboneError, match=r"cannot be loaded as a Keras model|is no model saved"):
        build_network(resolve_backbone(f"file:{path}", input_size=32))


def test_a_model_cut_short(save_model):
    path = Path(save_model().removeprefix("file:"))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(BackboneError, match="is no model saved by Keras 3"):
        resolve_backbone(f"file:{path}")


def test_a_model_without_its_weights(save_model, tmp_path):
    whole = Path(save_model().removeprefix("file:"))
    path = tmp_path / "bare.keras"
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, "w") as target:
        for name in ("config.json", "metadata.json"):
            json.loads(source.read(name))
            target.writestr(name, source.read(name))
    with pytest.raises(BackboneError, match=r"bare\.keras cannot be loaded"):
        build_network(resolve_backbone(f"file:{path}"))
