import hashlib
import json
import os
import shutil
import time
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest

from featx.backbones import weights as weights_module
from featx.backbones.build import build_network, build_tap_model
from featx.backbones.catalog import BUNDLED, find_backbone
from featx.backbones.source import resolve_backbone
from featx.backbones.weights import (
    bundled_folder,
    file_sha256,
    find_weights_file,
    resolve_weights,
    weights_places,
)
from featx.exceptions import BackboneError, WeightsError

ROW = find_backbone("mobilenet")
TINY = find_backbone(BUNDLED)
TINY_FILE = bundled_folder() / TINY.weights_file


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """Empty folders where weights are looked for."""
    folders = tmp_path / "featx-weights", tmp_path / "keras-home"
    monkeypatch.setenv("FEATX_WEIGHTS", str(folders[0]))
    monkeypatch.setenv("KERAS_HOME", str(folders[1]))
    return folders


def put(path, content=b"weights"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.fixture(scope="module")
def network(built):
    return built("mobilenet")[1]


def test_the_published_name_is_found_before_the_plain_one_and_keras_last(places):
    ours, home = places
    expected = [
        ours / ROW.weights_file,
        ours / "mobilenet.weights.h5",
        home / "models" / ROW.weights_file,
    ]
    assert weights_places(ROW) == expected
    for number, path in reversed(list(enumerate(expected))):
        put(path, b"%d" % number)
        found = resolve_weights(ROW)
        assert (found.path, found.source, found.seed) == (path, "imagenet", None)
        assert found.sha256 == hashlib.sha256(b"%d" % number).hexdigest()
        assert find_weights_file(ROW) == path
        assert resolve_weights(ROW, "imagenet") == found


@pytest.mark.parametrize(
    ("settings", "folders"),
    [
        ({"KERAS_HOME": "~/k"}, ["k/models"]),
        ({}, [".keras/models"]),
        ({"FEATX_WEIGHTS": "~/w", "KERAS_HOME": "~/k"}, ["w", "w", "k/models"]),
    ],
)
def test_places_follow_the_settings_and_the_home_folder(settings, folders, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("FEATX_WEIGHTS", "KERAS_HOME"):
        monkeypatch.delenv(name)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    places = weights_places(ROW)
    assert [place.parent for place in places] == [tmp_path / folder for folder in folders]


def test_an_explicit_file_goes_before_every_place(places, tmp_path):
    put(places[0] / ROW.weights_file, b"in the folder")
    path = put(tmp_path / "mine.weights.h5", b"mine")
    found = resolve_weights(ROW, path)
    assert (found.path, found.sha256) == (path, hashlib.sha256(b"mine").hexdigest())
    assert found.source == str(path)
    assert resolve_weights(ROW, str(path)) == found


def test_the_digest_is_of_the_bytes_not_of_the_name(tmp_path):
    a, b = put(tmp_path / "a.h5", b"same"), put(tmp_path / "b.weights.h5", b"same")
    assert file_sha256(a) == file_sha256(b) == hashlib.sha256(b"same").hexdigest()
    specs = [resolve_backbone(ROW.name, weights=path).spec() for path in (a, b)]
    assert specs[0] == specs[1]
    put(a, b"other")
    assert resolve_backbone(ROW.name, weights=a).spec() != specs[0]


def test_missing_offline_says_what_is_missing_where_to_put_it_and_what_else_there_is(places):
    with pytest.raises(WeightsError, match="FEATX_OFFLINE forbids the download") as raised:
        resolve_weights(ROW)
    message = str(raised.value)
    for part in (
        "the ImageNet weights of mobilenet are not here",
        ROW.weights_file,
        ROW.weights_url,
        *map(str, weights_places(ROW)),
        "--weights",
        "FEATX_WEIGHTS",
        "--backbone tiny",
    ):
        assert part in message


@pytest.mark.parametrize("weights", [None, "imagenet", ""])
def test_nothing_is_ever_drawn_unless_asked_for(weights):
    with pytest.raises(WeightsError, match="are not here"):
        resolve_backbone("resnet50", weights=weights)


@pytest.mark.parametrize(
    "text", ["random", "random:", "random:x", "random:-1", "random:1.5", "random:²"]
)
def test_random_weights_need_a_seed(text):
    with pytest.raises(WeightsError, match=f"need a seed, as in 'random:0', received '{text}'"):
        resolve_weights(ROW, text)


def test_an_unchanged_file_is_read_once(tmp_path, monkeypatch):
    path = put(tmp_path / "old.weights.h5", b"first")
    now_ns = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now_ns + 10_000_000_000)  # written long ago
    first = file_sha256(path)
    with monkeypatch.context() as patch:
        patch.setattr(hashlib, "file_digest", None)
        assert file_sha256(path) == first
    old = path.stat()
    path.write_bytes(b"other")
    os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))
    assert path.stat().st_ino == old.st_ino
    assert file_sha256(path) == hashlib.sha256(b"other").hexdigest()


def test_a_file_changed_a_moment_ago_is_read_again(tmp_path):
    path = put(tmp_path / "new.weights.h5", b"first")
    status = path.stat()
    file_sha256(path)
    put(path, b"other")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert file_sha256(path) == hashlib.sha256(b"other").hexdigest()


def test_a_file_changed_a_moment_before_a_long_read_is_read_again(tmp_path, monkeypatch):
    path = put(tmp_path / "large.weights.h5", b"first")
    status = path.stat()
    moment, digest = [status.st_mtime_ns + 10**9], hashlib.file_digest

    def slow(*given):
        moment[0] += 10**10
        return digest(*given)

    with monkeypatch.context() as patch:
        patch.setattr(hashlib, "file_digest", slow)
        patch.setattr("time.time_ns", lambda: moment[0])
        file_sha256(path)
    put(path, b"other")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert file_sha256(path) == hashlib.sha256(b"other").hexdigest()


def test_a_seed_has_one_digest_and_every_seed_its_own():
    found = resolve_weights(ROW, "random:7")
    assert (found.source, found.seed, found.path) == ("random:7", 7, None)
    assert resolve_weights(ROW, "random:007") == found
    assert resolve_weights(ROW, "random:8").sha256 != found.sha256
    # Features in caches are named by this digest: it changes with the recipe, and never else.
    assert found.sha256 == hashlib.sha256(b"featx-random-weights-2:7").hexdigest()


def test_a_file_whose_name_begins_with_random_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "random_walk.weights.h5")
    assert resolve_weights(ROW, "random_walk.weights.h5").path is not None


def test_no_other_backbone_brings_weights():
    with pytest.raises(WeightsError, match=r"no weights of mobilenet come with featx"):
        resolve_weights(ROW, "bundled")


@pytest.mark.parametrize("text", ["nowhere.h5", "imagnet", "folder"])
def test_what_is_no_file_is_an_error(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(
        WeightsError, match=rf"weights file for mobilenet, received '{text}', which is no"
    ):
        resolve_weights(ROW, text)


def test_another_suffix_is_an_error(tmp_path):
    path = put(tmp_path / "weights.pt")
    with pytest.raises(
        WeightsError, match=r"ends in one of .*\.weights\.h5.*received .*weights\.pt"
    ):
        resolve_weights(ROW, path)


def check_loads(path, network, built):
    source = resolve_backbone(ROW.name, weights=path, input_size=64)
    loaded = build_network(source)
    for ours, theirs in zip(loaded.get_weights(), network.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("name", ["mine.weights.h5", "mine.keras"])
def test_weights_saved_by_keras_3_are_loaded(name, network, built, tmp_path):
    path = tmp_path / name
    network.save(path) if name.endswith(".keras") else network.save_weights(path)
    check_loads(path, network, built)


def test_weights_in_the_format_that_keras_publishes_are_loaded_from_its_folder(
    network, built, places, write_legacy_weights
):
    write_legacy_weights(network, places[1] / "models" / ROW.weights_file)
    check_loads(None, network, built)


def check_refused(path, match, capfd):
    capfd.readouterr()

    def build():
        build_network(resolve_backbone(ROW.name, weights=path, input_size=64))

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with pytest.raises(WeightsError, match=match) as raised:
            build()
    message = str(raised.value)
    assert str(path) in message
    assert len(message) - len(str(path)) < 350
    assert "\n" not in message
    assert not warned
    assert capfd.readouterr().err == ""


def small_network(keras):
    return keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3)])


def test_weights_of_another_network_are_refused(keras, tmp_path, write_legacy_weights, capfd):
    other = small_network(keras)
    counts = r"does not fit mobilenet: expected 3,228,864 parameters.*received 112\."
    other.save_weights(tmp_path / "other.weights.h5")
    check_refused(tmp_path / "other.weights.h5", counts, capfd)
    other.save(tmp_path / "other.keras")
    check_refused(tmp_path / "other.keras", counts, capfd)
    check_refused(write_legacy_weights(other, tmp_path / "other.h5"), counts, capfd)


def test_the_network_that_weights_are_of_is_named(network, tmp_path, capfd, keras):
    named = r"received 1,382,064, as many as tiny: use that backbone \(-b tiny\)"
    check_refused(TINY_FILE, named, capfd)
    features = keras.layers.GlobalAveragePooling2D()(network.output)
    whole = keras.Model(network.input, keras.layers.Dense(1000)(features))
    whole.save_weights(tmp_path / "top.weights.h5")
    # Keras finds every layer by its place and leaves the top aside.
    build_network(resolve_backbone(ROW.name, weights=tmp_path / "top.weights.h5", input_size=64))


def test_truncated_weights_are_refused(network, tmp_path, write_legacy_weights, capfd):
    network.save_weights(tmp_path / "whole.weights.h5")
    write_legacy_weights(network, tmp_path / "whole.h5")
    for name, share in (("weights.h5", 0.999), ("h5", 0.5)):
        data = (tmp_path / f"whole.{name}").read_bytes()
        path = put(tmp_path / f"cut.{name}", data[: int(len(data) * share)])
        check_refused(path, "damaged or cut short.*Get the file again", capfd)


@pytest.mark.parametrize("name", ["text.h5", "text.weights.h5", "text.keras"])
@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"<html>404 Not Found</html>", "a web page in place of the download"),
        (b"", "an empty file"),
        (b"version https://git-lfs.github.com/spec/v1", "`git lfs pull` gets the file itself"),
        (b"\x80\x05\x95\x00", "a pickle, which featx never reads"),
        (b"PK\x03\x04 cut", "a zip that is cut short or damaged"),
    ],
)
def test_a_file_that_is_no_weights_is_called_what_it_is(name, content, named, tmp_path, capfd):
    match = f"is no weights file: expected .*received .*{named}"
    check_refused(put(tmp_path / name, content), match, capfd)


def test_files_of_pytorch_and_of_whole_models_are_called_what_they_are(tmp_path, keras, capfd):
    with zipfile.ZipFile(tmp_path / "net.pth", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02.")
    check_refused(tmp_path / "net.pth", "received a file of PyTorch, which is a pickle", capfd)
    small_network(keras).save(tmp_path / "net.keras")
    renamed = (tmp_path / "net.keras").rename(tmp_path / "net.h5")
    check_refused(renamed, r"received a \.keras file. Give it a name that ends in \.keras", capfd)


@pytest.mark.realdata
def test_the_shared_weights_give_the_features_that_keras_gives(
    mobilenet_weights, keras, places, pixels, vectors_of
):
    named = places[0] / "mobilenet_v2.weights.h5"
    put(named, mobilenet_weights.read_bytes())
    source = resolve_backbone("mobilenet_v2", input_size=96)
    assert source.weights.path == named
    images = pixels(2, 96, 96, 3)
    (received,) = vectors_of(build_tap_model(source, ("avg",)), images)
    application = keras.applications.MobileNetV2(
        include_top=False, weights=None, pooling="avg", input_shape=(96, 96, 3)
    )
    application.load_weights(mobilenet_weights)
    inputs = keras.applications.mobilenet_v2.preprocess_input(images.astype(np.float32))
    expected = keras.ops.convert_to_numpy(application(inputs))
    np.testing.assert_allclose(received, expected, rtol=1e-4, atol=1e-4 * expected.max())


@pytest.mark.realdata
def test_weights_of_the_right_kind_of_file_but_another_network(mobilenet_weights, keras):
    source = resolve_backbone("mobilenet", weights=mobilenet_weights, input_size=32)
    with pytest.raises(BackboneError, match=r"as many as mobilenet_v2: use that"):
        build_network(source)


# The backbone that comes with featx: no download, no setting.


@pytest.mark.parametrize("weights", [None, "bundled"])
def test_it_is_here_and_whole(weights):
    found = resolve_weights(TINY, weights)
    assert (found.source, found.path, found.sha256) == ("bundled", TINY_FILE, TINY.weights_hash)
    assert find_weights_file(TINY) == TINY_FILE


def test_file_card_and_table_agree():
    card = json.loads(TINY_FILE.with_name("tiny.json").read_text("utf-8"))
    assert card["sha256"] == TINY.weights_hash == hashlib.sha256(TINY_FILE.read_bytes()).hexdigest()
    assert card["bytes"] == TINY_FILE.stat().st_size <= 4e6
    assert card["parameters"] == TINY.parameters
    assert (card["input_size_px"], card["alpha"]) == (
        TINY.input_size_px,
        dict(TINY.arguments)["alpha"],
    )
    assert card["pooled_features"] == TINY.features
    assert "127.5 - 1" in card["preprocessing"]
    assert TINY.shared.preprocessing == "tf"
    for part in ("data", "method", "licence_note", "figures", "not_for"):
        assert card[part], part


def test_its_network_is_as_the_table_says_and_gives_features(pixels, vectors_of):
    source = resolve_backbone(BUNDLED)
    network = build_network(source)
    assert network.count_params() == TINY.parameters
    assert network.output_shape[-1] == TINY.features
    images = pixels(3, *source.input_size_px, 3)
    (vectors,) = vectors_of(build_tap_model(source, ("avg",), network=network), images)
    assert vectors.shape == (3, TINY.features)
    assert np.isfinite(vectors).all()
    assert np.linalg.norm(vectors[0] - vectors[1]) > 1e-3 * np.linalg.norm(vectors[0])


def test_it_has_no_imagenet_weights():
    with pytest.raises(WeightsError, match="tiny has no ImageNet weights: leave --weights out"):
        resolve_backbone(BUNDLED, weights="imagenet")


@pytest.fixture
def another_folder(tmp_path, monkeypatch):
    """A broken installation stands for what the tests must not do to the real one."""
    monkeypatch.setattr(weights_module, "bundled_folder", lambda: tmp_path)
    return tmp_path


def test_a_damaged_file_is_refused(another_folder):
    path = Path(shutil.copy(TINY_FILE, another_folder))
    with path.open("r+b") as file:
        file.seek(1000)
        file.write(b"damage")
    with pytest.raises(WeightsError, match=r"bundled weights are damaged.*reinstall featx"):
        resolve_backbone(BUNDLED)


def test_a_missing_file_is_an_error(another_folder):
    with pytest.raises(
        WeightsError, match=r"not where they belong, .*tiny\.weights\.h5: reinstall"
    ):
        resolve_backbone(BUNDLED)
