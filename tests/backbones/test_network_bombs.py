"""Networks that would unpack to more than they hold: refused before Keras reads them."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile

import h5py
import numpy as np
import pytest

import featx
from featx.backbones.build import build_network
from featx.backbones.source import resolve_backbone
from featx.backbones.weights import unpacked
from featx.exceptions import BackboneError, WeightsError
from featx.files.safe_zip import require_plain_network

SIZE = {"input_size": 32}


def repacked(path, target, *, change=None, extra=(), compression=zipfile.ZIP_DEFLATED):
    """The same network in a zip that is compressed, with members added or changed."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w", compression) as new:
        for item in old.infolist():
            data = old.read(item)
            new.writestr(item.filename, (change or {}).get(item.filename, data))
        for name, data in extra:
            new.writestr(name, data)
    return target


def hdf5(**options):
    """A file of a few kilobytes with an array that claims any size."""
    file = io.BytesIO()
    with h5py.File(file, "w") as h5:
        h5.create_dataset("layers/vars/0", dtype="f4", **options)
    return file.getvalue()


HUGE = {
    "chunked": {"shape": (1 << 18, 1 << 17), "chunks": (1024, 1024)},
    "compressed": {"shape": (1 << 18, 1 << 17), "chunks": (64, 64), "compression": "gzip"},
    "never written": {"shape": (1 << 18, 1 << 17)},
}


def test_a_network_that_was_compressed_is_read_as_before(small_network, tmp_path, photos):
    path = repacked(small_network, tmp_path / "packed.keras")
    assert path.stat().st_size < small_network.stat().st_size
    files = sorted(photos.rglob("*.jpg"))[:2]
    one, other = (
        featx.extract(photos, backbone=f"file:{p}", cache=tmp_path / p.stem).X
        for p in (small_network, path)
    )
    assert len(one) >= len(files)
    np.testing.assert_array_equal(one, other)


def test_a_configuration_that_unpacks_to_gigabytes_is_refused(small_network, tmp_path):
    bomb = {"config.json": b'{"a": "' + b"A" * (96 << 20) + b'"}'}
    path = repacked(small_network, tmp_path / "bomb.keras", change=bomb)
    assert path.stat().st_size < 1 << 20
    with pytest.raises(BackboneError, match=r"bomb\.keras .* claim to be larger than the file"):
        resolve_backbone(f"file:{path}")


@pytest.mark.parametrize("kind", HUGE)
def test_weights_that_claim_gigabytes_are_refused(small_network, tmp_path, kind):
    data = hdf5(**HUGE[kind])
    assert len(data) < 100_000
    path = repacked(
        small_network,
        tmp_path / "huge.keras",
        change={"model.weights.h5": data},
        compression=zipfile.ZIP_STORED,
    )
    with pytest.raises(WeightsError, match=r"huge\.keras is refused: its arrays claim 137,438,95"):
        build_network(resolve_backbone(f"file:{path}", **SIZE))
    weights = tmp_path / "huge.weights.h5"
    weights.write_bytes(data)
    with pytest.raises(WeightsError, match=r"huge\.weights\.h5 is refused: its arrays claim"):
        build_network(resolve_backbone("tiny", weights=weights))


def test_hdf5_behind_a_preamble_is_found(tmp_path):
    with h5py.File(tmp_path / "late.weights.h5", "w", userblock_size=512) as h5:
        h5.create_dataset("x", dtype="f4", **HUGE["chunked"])
    with pytest.raises(WeightsError, match="is refused: its arrays claim"):
        build_network(resolve_backbone("tiny", weights=tmp_path / "late.weights.h5"))


@pytest.mark.parametrize("name", ["model.weights.npz", "assets/deep.bin"])
def test_a_zip_in_a_zip_is_bounded_by_the_whole_file(small_network, tmp_path, name):
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", bytes(96 << 20))
    path = repacked(small_network, tmp_path / "deep.keras", extra=[(name, inner.getvalue())])
    with pytest.raises(WeightsError, match="is refused: its members claim to be larger"):
        build_network(resolve_backbone(f"file:{path}", **SIZE))
    for _ in range(3):
        outer = io.BytesIO()
        with zipfile.ZipFile(outer, "w") as archive:
            archive.writestr(name, inner.getvalue())
        inner = outer
    with pytest.raises(ValueError, match="zip in a zip in a zip"):
        require_plain_network(inner, "deep.keras")


def test_a_bomb_does_not_hide_behind_a_comment(small_network, tmp_path):
    bomb = {"config.json": bytes(96 << 20)}
    path = repacked(small_network, tmp_path / "bomb.keras", change=bomb)
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = b"hello"
    with (
        path.open("rb") as file,
        pytest.raises(ValueError, match="does not end as a zip without a comment"),
    ):
        require_plain_network(file, path.name, packed=True)


@pytest.fixture
def tuned(small_network, tmp_path):
    """A function that puts a network into a ``.featx`` file, with its digest."""
    spec = featx.FeatureSpec(
        backbone="file:small",
        weights_sha256="1" * 64,
        input_size_px=(32, 32),
        preprocessing="none",
    )

    def write(network):
        digest = hashlib.sha256(network).hexdigest()
        said = {
            "type": "featx-model",
            "version": 2,
            "spec": {**spec.to_dict(), "weights_sha256": digest},
            "network": {"architecture": ""},
            "files": {"network.keras": digest},
        }
        with zipfile.ZipFile(tmp_path / "m.featx", "w") as archive:
            archive.writestr("model.json", json.dumps(said))
            archive.writestr("network.keras", network)
        return tmp_path / "m.featx"

    return write


def test_a_network_in_a_model_may_not_be_compressed_at_any_depth(small_network, tmp_path, tuned):
    with unpacked(tuned(small_network.read_bytes())) as path:
        assert path.read_bytes() == small_network.read_bytes()
    packed = repacked(small_network, tmp_path / "packed.keras").read_bytes()
    refused = r"m\.featx: network\.keras is refused: it is compressed"
    with pytest.raises(WeightsError, match=refused), unpacked(tuned(packed)):
        pass
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", bytes(1000))
    deep = repacked(
        small_network,
        tmp_path / "deep.keras",
        extra=[("model.weights.npz", inner.getvalue())],
        compression=zipfile.ZIP_STORED,
    ).read_bytes()
    with pytest.raises(WeightsError, match=refused), unpacked(tuned(deep)):
        pass


def test_weights_in_a_model_may_not_be_chunked(small_network, tmp_path, tuned):
    data = hdf5(shape=(8, 8), chunks=(2, 2))
    chunked = repacked(
        small_network,
        tmp_path / "chunked.keras",
        change={"model.weights.h5": data},
        compression=zipfile.ZIP_STORED,
    ).read_bytes()
    with pytest.raises(WeightsError, match="no array of this file alone"), unpacked(tuned(chunked)):
        pass
