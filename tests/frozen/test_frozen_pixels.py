"""Decoded pixels of every kind of file through every door, as features of a network that copies."""

from __future__ import annotations

import hashlib
import io

import numpy as np
import pytest
from PIL import Image

import featx

# Decoders of these may differ by a level or two from version to version.
LOSSY = (".jpg", ".jp2", "photo.webp")


@pytest.fixture(scope="module")
def pixels_of(archived, tmp_path_factory):
    """A function that gives pixels of shape (n, 20, 24, 3), and the keys of the pictures."""
    cache = tmp_path_factory.mktemp("pixels")

    def read(images, **options):
        backbone = f"file:{archived / 'pixels.keras'}"
        features = featx.extract(
            images, backbone=backbone, taps="flatten", cache=cache, on_error="raise", **options
        )
        return features.X.reshape(-1, 20, 24, 3), features.keys

    return read


PLAIN = featx.ImagePolicy(draft=False)  # the default of 0.1


@pytest.fixture(scope="module")
def files(archived):
    return sorted((archived / "files").iterdir())


@pytest.fixture(scope="module")
def from_paths(files, pixels_of):
    return pixels_of(list(map(str, files)), image=PLAIN)


def test_pixels_of_every_kind_of_file(files, from_paths, pixels_of, frozen):
    policies = {
        "stretch": from_paths,
        "crop": pixels_of(
            list(map(str, files)), image=featx.ImagePolicy(resize="crop", draft=False)
        ),
        "draft": pixels_of(list(map(str, files)), image=featx.ImagePolicy(draft=True)),
    }
    exact, means = {}, {}
    for policy, (pixels, keys) in policies.items():
        for path, picture, key in zip(files, pixels, keys, strict=True):
            name = f"{policy}/{path.name}"
            if path.name.endswith(LOSSY):
                # Means of 2 x 2 fields
                fields = picture.reshape(2, 10, 2, 12, 3).mean(axis=(1, 3))
                means[name] = np.round(fields.astype(float), 1).ravel().tolist()
            else:
                whole = picture.astype(np.uint8)
                assert np.array_equal(whole, picture)
                exact[name] = hashlib.sha256(whole.tobytes()).hexdigest()
            exact[f"key/{path.name}"] = key.tobytes().hex()
    frozen("pixels", exact)
    frozen("pixels-lossy", means, tolerance=2)


def loaded(content):
    image = Image.open(io.BytesIO(content))
    image.load()
    return image


@pytest.mark.parametrize("door", ["bytes", "file", "picture"])
def test_every_door_gives_the_same(door, files, from_paths, pixels_of):
    enter = {
        "bytes": lambda path: path.read_bytes(),
        "file": lambda path: io.BytesIO(path.read_bytes()),
        "picture": lambda path: loaded(path.read_bytes()),
    }[door]
    pixels, keys = pixels_of([enter(path) for path in files], image=PLAIN)
    assert [path.name for path, one, other in zip(files, pixels, from_paths[0], strict=True)
            if not np.array_equal(one, other)] == []  # fmt: skip
    if door != "picture":
        assert np.array_equal(keys, from_paths[1])


def test_arrays_of_every_type(pixels_of, frozen):
    rng = np.random.default_rng(4)
    colour = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
    grey = colour[..., 0]
    alpha = np.concatenate([colour, rng.integers(0, 256, (30, 40, 1), dtype=np.uint8)], axis=2)
    arrays = {
        "colour": colour,
        "grey": grey,
        "one channel": grey[..., None],
        "alpha": alpha,
        "floats": colour / 255,
        "small floats": (colour / 255).astype(np.float32),
        "16 bits": grey.astype(np.uint16) * 257,
        "boolean": grey > 100,
    }
    pixels, keys = pixels_of(list(arrays.values()))
    found = {
        name: [hashlib.sha256(one.astype(np.uint8).tobytes()).hexdigest(), key.tobytes().hex()]
        for name, one, key in zip(arrays, pixels, keys, strict=True)
    }
    frozen("arrays", found)
    assert np.array_equal(pixels[0], pixels[4])
    assert np.array_equal(pixels[1], pixels[2])
