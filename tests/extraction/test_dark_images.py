"""Deep images that look black: noted once, with a window that shows them."""

import numpy as np
import pytest
from PIL import Image

import featx
from featx.extraction.dark_images import DarkImages
from featx.images.decode import Extent

WORDS = "less than a quarter of"


def notes(*extents):
    dark = DarkImages()
    for row, extent in enumerate(extents):
        dark.add(row, f"{row}.png", Extent(*extent))
    return dark.notes()


def test_images_are_counted_and_the_first_is_named():
    dark = DarkImages()
    for row in (5, 2, 9):
        dark.add(row, f"{row}.png", Extent(0, 3000 + row, 65535))
    assert dark.notes() == [
        "3 images of 16 bits use less than a quarter of their range (such as 2.png: 0 to 3002): "
        "they look black; --window 0:4095 makes use of it"
    ]


@pytest.mark.parametrize(
    ("high", "full", "window"),
    [(3987, 65535, "0:4095"), (4095, 65535, "0:4095"), (4096, 65535, "0:8191"), (1, 65535, "0:1"),
     (500, 4095, "0:511"), (16_383, 65535, "0:16383"), (0.07, 1, "0:0.125"), (0.125, 1, "0:0.125")],
)  # fmt: skip
def test_the_window_ends_at_a_power_of_two(high, full, window):
    (note,) = notes((0, high, full))
    assert note.startswith(f"1 image of {'floats' if full == 1 else '16 bits'} uses {WORDS} its")
    assert note.endswith(f"it looks black; --window {window} makes use of it")


def test_beside_bright_images_each_has_a_window_of_its_own():
    (note,) = notes((0, 4000, 65535), (0, 60_000, 65535))
    assert note.startswith("1 image of 16 bits uses")
    assert note.endswith("--window image makes use of it")


def test_bright_and_empty_images_are_not_noted():
    assert notes((0, 16_384, 65535), (0, 0, 65535), (0, 0.25, 1)) == []
    assert len(notes((0, 9, 65535), (0, 0, 65535), (0, 0.1, 1))) == 2


@pytest.mark.parametrize("isolate", [False, True])
def test_a_report_has_one_note_of_all_images(tmp_path, isolate):
    rng = np.random.default_rng(0)
    for i in range(8):
        path = tmp_path / "deep" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 3000, (20, 20)).astype(np.uint16)).save(path)
    options = {"cache": tmp_path / "cache", "isolate": isolate}
    (note,) = featx.extract(tmp_path / "deep", **options).report["notes"]
    assert note.startswith(f"8 images of 16 bits use {WORDS} their range (such as a/0.png: ")
    assert note.endswith("they look black; --window 0:4095 makes use of it")
    windowed = featx.ImagePolicy(window=(0, 4095))
    assert featx.extract(tmp_path / "deep", image=windowed, **options).report["notes"] == []


def test_arrays_of_any_range_have_features_with_a_window(tmp_path):
    values = np.random.default_rng(0).integers(-1000, 3000, (6, 24, 24))
    ct = featx.ImagePolicy(window=(-1000, 400))
    eight = np.rint(np.clip((values + 1000.0) * 255 / 1400, 0, 255)).astype(np.uint8)
    expected = featx.extract(eight, cache=tmp_path).X
    for kind in (np.int16, np.int32, np.float64):
        got = featx.extract(values.astype(kind), image=ct, cache=tmp_path)
        assert np.array_equal(got.X, expected)
    with pytest.raises(featx.exceptions.DatasetError, match=r"received int16; .*--window MIN:MAX"):
        featx.extract(values.astype(np.int16), cache=tmp_path)
