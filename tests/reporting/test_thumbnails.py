"""Small pictures of what the features are of, and of nothing else."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

import featx
from featx.reporting.thumbnails import thumbnails


def opened(uri):
    head, _, data = uri.partition(",")
    assert head == "data:image/webp;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_a_picture_shows_its_image(photos, tmp_path):
    features = featx.extract(photos, backbone="tiny", cache=tmp_path / "cache")
    pictures = thumbnails(features, range(len(features)), side_px=24)
    assert sorted(pictures) == list(range(len(features)))
    for row, uri in pictures.items():
        pixels = opened(uri)
        assert pixels.shape == (24, 24, 3)
        with Image.open(photos / features.paths[row]) as image:
            colour = np.asarray(image.convert("RGB")).mean((0, 1))
        assert np.abs(pixels.mean((0, 1)) - colour).max() < 6


def test_missing_changed_and_broken_originals_have_no_picture(photos, tmp_path):
    features = featx.extract(photos, backbone="tiny", cache=tmp_path / "cache")
    missing, changed, broken, *others = features.paths
    (photos / missing).unlink()
    (photos / changed).write_bytes((photos / others[0]).read_bytes())
    (photos / broken).write_bytes(b"no image")
    pictures = thumbnails(features, range(len(features)))
    assert [features.paths[row] for row in sorted(pictures)] == others


def test_arrays_have_no_pictures(tmp_path):
    pixels = np.zeros((3, 40, 40, 3), np.uint8)
    features = featx.extract(pixels, backbone="tiny", cache=tmp_path / "cache")
    assert thumbnails(features, [0, 1, 2]) == {}
