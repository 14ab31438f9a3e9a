"""SavedModels in local folders: what they state, what becomes of them, what is refused."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from featx.backbones.build import build_network, build_tap_model
from featx.backbones.saved_model import SCHEMA
from featx.backbones.source import canonical_name, resolve_backbone
from featx.backbones.weights import folder_sha256
from featx.exceptions import BackboneError, UnknownNameError, WeightsError
from featx.files.messages import parse_schema


def resolve(folder, **options):
    return resolve_backbone(f"savedmodel:{folder}", trust=True, **options)


@pytest.fixture
def vectors(pixels, vectors_of):
    def run(source, *taps):
        images = pixels(3, *source.input_size_px, 3)
        return images, vectors_of(build_tap_model(source, taps or ("avg",)), images)

    return run


@pytest.fixture
def save_function(tmp_path, tf):
    """Save one function as a SavedModel: as __call__, or as signatures alone."""

    def save(function, shape, dtype="float32", *, signatures=None, name="module"):
        spec = tf.TensorSpec(shape, dtype, name="images")
        traced = tf.function(function, input_signature=[spec], autograph=False)
        module = tf.Module()
        if signatures is None:
            module.__call__ = traced
        found = dict.fromkeys(signatures or (), traced.get_concrete_function())
        tf.saved_model.save(module, tmp_path / name, signatures=found or None)
        return tmp_path / name

    return save


def test_without_trust_nothing_of_the_folder_is_read(hub_module, monkeypatch):
    monkeypatch.setattr(Path, "open", lambda *_, **__: pytest.fail("a file was opened"))
    monkeypatch.setattr(Path, "read_bytes", lambda *_: pytest.fail("a file was read"))
    with pytest.raises(BackboneError, match=r"can do anything when it runs.*give --trust \(trust="):
        resolve_backbone(f"savedmodel:{hub_module}")


def test_a_module_of_tensorflow_hub_gives_its_vectors_of_pixels_from_0_to_1(
    hub_module, vectors, tf
):
    source = resolve(hub_module)
    assert (source.name, source.row, source.input_size_px) == (
        "savedmodel:vector-2",
        None,
        (32, 24),
    )
    assert source.preprocessing == "unit"
    images, (average, flat) = vectors(source, "avg", "flatten")
    module = tf.saved_model.load(str(hub_module))
    expected = module(tf.constant(images / 255, tf.float32), training=False).numpy()
    assert average.shape == (3, 6)
    np.testing.assert_allclose(average, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(average, flat)
    other = module(tf.constant(images / 255, tf.float32), training=True).numpy()
    assert np.abs(other - expected).max() > 0.1


def test_another_preprocessing_can_be_chosen(hub_module, vectors, tf):
    source = resolve(hub_module, preprocessing="tf")
    images, (average,) = vectors(source)
    expected = tf.saved_model.load(str(hub_module))(tf.constant(images / 127.5 - 1, tf.float32))
    np.testing.assert_allclose(average, expected, rtol=1e-4, atol=1e-5)
    assert source.spec() != resolve(hub_module).spec()


def test_what_keras_exports_gives_maps_that_are_pooled(keras, tmp_path, vectors):
    images = keras.Input((16, 20, 3))
    x = keras.layers.Conv2D(5, 3)(images)
    model = keras.Model(images, keras.layers.BatchNormalization()(x))
    model.export(tmp_path / "net", verbose=False)
    source = resolve(tmp_path / "net")
    assert source.input_size_px == (16, 20)
    pixels, (average, grid) = vectors(source, "avg", "grid:2")
    expected = keras.ops.convert_to_numpy(model(pixels / np.float32(255)))
    assert grid.shape == (3, 20)
    np.testing.assert_allclose(average, expected.mean(axis=(1, 2)), rtol=1e-4, atol=1e-5)


def test_a_graph_for_any_size_needs_one_and_has_the_shapes_of_that(save_function, vectors):
    folder = save_function(lambda x: x[:, ::2, ::2], (None, None, None, 3))
    with pytest.raises(BackboneError, match=r"does not fix the size of its input.*--input-size"):
        resolve(folder)
    images, (flat,) = vectors(resolve(folder, input_size=(8, 6)), "flatten")
    expected = images[:, ::2, ::2].reshape(3, -1) / np.float32(255)
    np.testing.assert_allclose(flat, expected, rtol=1e-5)


def test_whole_numbers_are_taken_as_they_are(save_function, vectors, tf):
    folder = save_function(lambda x: tf.cast(x, tf.float32) + 0.5, (None, 4, 4, 3), "uint8")
    source = resolve(folder)
    assert source.preprocessing == "none"
    images, (flat,) = vectors(source, "flatten")
    np.testing.assert_array_equal(flat, images.reshape(3, -1) + np.float32(0.5))
    with pytest.raises(BackboneError, match=r"takes uint8 pixels.*'none', received 'tf'"):
        build_network(resolve(folder, preprocessing="tf"))


def test_a_signature_stands_in_for_a_call_and_its_outputs_are_places(save_function, vectors):
    def two(x):
        return {"default": x[:, 0, 0], "stem/map": x}

    folder = save_function(two, (None, 4, 4, 3), signatures=["other", "serving_default"])
    images, (default, stem) = vectors(resolve(folder), "avg", "stem_map:flatten")
    np.testing.assert_allclose(default, images[:, 0, 0] / np.float32(255), rtol=1e-5)
    np.testing.assert_allclose(stem, images.reshape(3, -1) / np.float32(255), rtol=1e-5)
    with pytest.raises(UnknownNameError, match=r"'stem_mop': did you mean 'stem_map'"):
        build_tap_model(resolve(folder), ("stem_mop:avg",))


def test_of_outputs_without_a_default_one_has_to_be_named(save_function):
    folder = save_function(lambda x: {"b": x, "a": x}, (None, 4, 4, 3), signatures=["image"])
    with pytest.raises(BackboneError, match=r"has the outputs a, b: name one.*--tap a:max"):
        build_tap_model(resolve(folder), ("max",))
    assert build_tap_model(resolve(folder), ("b:max",)).output_shape == (None, 3)


@pytest.mark.parametrize(
    ("shape", "dtype", "received"),
    [
        ((None, 4, 4, 1), "float32", r"__call__ takes \(n, 4, 4, 1\) float32"),
        ((None, 7), "float32", r"__call__ takes \(n, 7\) float32"),
        ((1, 4, 4, 3), "float32", r"__call__ takes \(1, 4, 4, 3\) float32"),
        ((None,), "string", r"__call__ takes \(n\) of another type"),
    ],
)
def test_a_function_of_something_else_is_an_error(save_function, shape, dtype, received, tf):
    folder = save_function(tf.identity, shape, dtype)
    with pytest.raises(BackboneError, match=rf"shape \(n, h, w, 3\).*received {received}"):
        resolve(folder)


def test_a_module_without_functions_is_an_error(tmp_path, tf):
    tf.saved_model.save(tf.Module(), tmp_path / "empty")
    with pytest.raises(BackboneError, match="received no function at all"):
        resolve(tmp_path / "empty")


def test_another_size_than_that_of_the_signature_is_an_error(hub_module):
    with pytest.raises(BackboneError, match=r"inputs of \(32, 24\), received \(48, 48\): leave"):
        build_network(resolve(hub_module, input_size=48))


def test_weights_and_half_precision_are_not_for_a_saved_model(hub_module):
    with pytest.raises(BackboneError, match="brings its own weights: leave --weights out"):
        resolve(hub_module, weights="random:0")
    with pytest.raises(BackboneError, match=r"received 'mixed'; leave --precision out"):
        build_network(resolve(hub_module), mixed="bfloat16")


def test_no_such_folder_or_another_folder_is_an_error(tmp_path):
    with pytest.raises(
        BackboneError, match=r"the folder of a TensorFlow SavedModel, received .*no"
    ):
        resolve(tmp_path / "nowhere")
    with pytest.raises(
        BackboneError, match=r"is no SavedModel: expected a folder with saved_model"
    ):
        resolve(tmp_path)
    with pytest.raises(BackboneError, match="and the path of a folder: 'savedmodel:'"):
        resolve("")


def test_a_damaged_file_is_an_error(hub_module, tmp_path):
    folder = shutil.copytree(hub_module, tmp_path / "cut")
    file = folder / "saved_model.pb"
    file.write_bytes(file.read_bytes()[:-300])
    with pytest.raises(BackboneError, match="cannot be read .*damaged or cut short"):
        resolve(folder)
    file.write_bytes(b"")
    with pytest.raises(BackboneError, match="holds 0 graphs; expected one: it is damaged"):
        resolve(folder)


def test_missing_variables_are_an_error(hub_module, tmp_path):
    folder = shutil.copytree(hub_module, tmp_path / "bare")
    shutil.rmtree(folder / "variables")
    with pytest.raises(BackboneError, match="cannot be loaded and applied .* Is it whole"):
        build_network(resolve(folder))


def test_another_backend_is_an_error(hub_module, monkeypatch, keras):
    source = resolve(hub_module)
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(BackboneError, match=r"'tensorflow', received 'jax'; set KERAS_BACKEND"):
        build_network(source)


def test_a_folder_is_identified_by_the_names_and_bytes_of_its_files(hub_module, tmp_path):
    copy = shutil.copytree(hub_module, tmp_path / "copy")
    assert folder_sha256(copy) == folder_sha256(hub_module)
    (copy / "assets" / "labels.txt").parent.mkdir(exist_ok=True)
    (copy / "assets" / "labels.txt").write_text("ant")
    added = folder_sha256(copy)
    (copy / "assets" / "labels.txt").rename(copy / "assets" / "names.txt")
    assert len({added, folder_sha256(copy), folder_sha256(hub_module)}) == 3
    (copy / "more").symlink_to(hub_module)
    with pytest.raises(WeightsError, match="a link to a folder or something else: copy the folder"):
        folder_sha256(copy)


def test_a_version_is_named_with_its_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert canonical_name("savedmodel:~/models/efficientnet/2/") == "savedmodel:efficientnet-2"
    assert canonical_name("hub:.") == f"hub:{tmp_path.name}"


def test_what_is_read_has_the_numbers_of_tensorflow():
    from tensorflow.core.protobuf import saved_model_pb2

    ours = {"signatures": "signature_def", "objects": "object_graph_def", "shape": "tensor_shape"}
    ours |= {"functions": "concrete_functions", "inputs": "inputs", "tensor": "tensor_spec_value"}
    others = {
        "Concrete.inputs": "canonicalized_input_signature",
        "Concrete.bound": "bound_inputs",
        "MetaGraph.graph": "graph_def",
        "Graph.nodes": "node",
        "Library.functions": "function",
        "GraphFunction.nodes": "node_def",
        "GraphFunction.results": "ret",
        "Declaration.inputs": "input_arg",
        "Operation.inputs": "input",
        "Operation.attributes": "attr",
        "Attribute.tensor": "tensor",
        "TensorSpec.shape": "shape",
        "Tensor.content": "tensor_content",
    }

    def compare(message, theirs):
        for number, name, kind, several in messages[message]:
            field = theirs.fields_by_number[number]
            assert field.name == others.get(f"{message}.{name}", ours.get(name, name))
            assert field.is_repeated == several
            if kind in messages and kind not in seen:
                seen.add(kind)
                compare(kind, field.message_type)

    messages, seen = parse_schema(SCHEMA), {"SavedModel"}
    compare("SavedModel", saved_model_pb2.SavedModel.DESCRIPTOR)
    assert seen == set(messages)
