"""Images of more than 8 bits: what a window makes of them, and where featx notes that one lacks."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from featx.exceptions import DatasetError, ImageError
from featx.images.dataset import ImageDataset
from featx.images.decode import Extent, array_to_rgb, decode_image, decode_sizes, decode_targets
from featx.images.loader import load_images
from featx.spec import ImagePolicy
from tests.images.test_decode import encode, png, png_chunk

RNG = np.random.default_rng(11)
SHAPE = (9, 7)
TWELVE = RNG.integers(0, 4096, SHAPE).astype(np.uint16)
SIGNED = RNG.integers(-2000, 2000, SHAPE)
REAL = RNG.normal(0, 3, SHAPE).astype(np.float32)


def windowed(values, low, high):
    """What a window is defined as."""
    return np.rint(np.clip((values.astype(np.float64) - low) * 255 / (high - low), 0, 255))


def pixels(data, window):
    """The first channel of a picture at its own size; all channels must be equal."""
    rgb = decode_image(data, SHAPE, ImagePolicy(window=window))
    assert (rgb == rgb[..., :1]).all()
    return rgb[..., 0]


def pgm(values, full, *, text=False):
    head = f"P{2 if text else 5} {values.shape[1]} {values.shape[0]} {full}\n".encode()
    if text:
        return head + " ".join(map(str, values.ravel())).encode() + b"\n"
    return head + values.astype(">u2").tobytes()


GREYS = {
    "png": (encode(Image.fromarray(TWELVE), "PNG"), TWELVE),
    "tiff": (encode(Image.fromarray(TWELVE), "TIFF"), TWELVE),
    "tiff big-endian": (encode(Image.fromarray(TWELVE.astype(">u2")), "TIFF"), TWELVE),
    "tiff lzw": (encode(Image.fromarray(TWELVE), "TIFF", compression="tiff_lzw"), TWELVE),
    "tiff 32 bits": (encode(Image.fromarray(SIGNED.astype(np.int32) * 1000), "TIFF"), SIGNED * 1e3),
    "tiff floats": (encode(Image.fromarray(REAL), "TIFF"), REAL),
    "pgm": (pgm(TWELVE, 65535), TWELVE),
    "jpeg 2000": (encode(Image.fromarray(TWELVE), "JPEG2000"), TWELVE),
    **{
        np.dtype(kind).name: (values.astype(kind), values.astype(kind))
        for kind, values in (
            ("u2", TWELVE), ("i2", SIGNED), ("i4", SIGNED * 1000), ("i8", SIGNED), ("u4", TWELVE),
            ("f2", REAL), ("f4", REAL * 1e6), ("f8", REAL),
        )
    },
}  # fmt: skip


@pytest.mark.parametrize("name", GREYS)
def test_a_window_maps_its_ends_to_black_and_white(name):
    data, values = GREYS[name]
    low, high = np.quantile(values, (0.2, 0.8)).astype(float)
    assert np.array_equal(pixels(data, (low, high)), windowed(values, low, high))
    whole = windowed(values, float(values.min()), float(values.max()))
    assert np.array_equal(pixels(data, "image"), whole)
    assert (whole.min(), whole.max()) == (0, 255)


def test_unsigned_32_bits_are_not_taken_for_negative():
    values = np.array([[0, 1 << 31, (1 << 32) - 1]], np.uint32)
    data = bytearray(encode(Image.fromarray(values.view(np.int32)), "TIFF"))
    at = data.index(struct.pack("<HHI", 339, 3, 1))
    data[at + 8 : at + 10] = struct.pack("<H", 1)
    (rgb,) = decode_sizes(bytes(data), [((1, 3), ImagePolicy(window="image"))])
    assert rgb[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("full", [300, 4095, 65535])
def test_samples_of_a_pgm_are_counted_as_in_the_file(full, text):
    values = RNG.integers(0, full + 1, SHAPE)
    got = pixels(pgm(values, full, text=text), (50, 250)).astype(int)
    # Pillow scales them to 16 bits, rounded.
    assert np.abs(got - windowed(values, 50, 250)).max() <= 1


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_tiff_of_16_bits_with_a_sign(order):
    data = raw_tiff(SIGNED[..., None], order, signed=True)
    assert np.array_equal(pixels(data, (-1000, 400)), windowed(SIGNED, -1000, 400))


def test_a_window_over_16_bits_changes_nothing():
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    for data in (values, encode(Image.fromarray(values), "PNG")):
        plain, full = (
            decode_image(data, (256, 256), ImagePolicy(window=window))
            for window in (None, (0, 65535))
        )
        assert np.array_equal(plain, full)


def test_a_constant_image_is_black_under_its_own_window():
    for values in (np.full(SHAPE, 700, np.uint16), np.full(SHAPE, 0.5)):
        assert not pixels(values, "image").any()
    assert not pixels(encode(Image.fromarray(np.full(SHAPE, 700, np.uint16)), "PNG"), "image").any()


EIGHT = RNG.integers(0, 256, (*SHAPE, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "data",
    [EIGHT, EIGHT[..., 0], EIGHT[..., 0] > 99, encode(Image.fromarray(EIGHT), "PNG"),
     encode(Image.fromarray(EIGHT), "JPEG"), encode(Image.fromarray(EIGHT[..., 0]), "TIFF"),
     pgm(EIGHT[..., 0].astype(int), 255, text=True)],
)  # fmt: skip
@pytest.mark.parametrize("window", ["image", (0, 64)])
def test_images_of_8_bits_stay_as_they_are(data, window):
    plain = decode_image(data, SHAPE, ImagePolicy())
    assert np.array_equal(decode_image(data, SHAPE, ImagePolicy(window=window)), plain)


def colour_png(values, *extra):
    height, width, channels = values.shape
    rows = values.astype(">u2").reshape(height, -1).view(np.uint8)
    raw = np.concatenate([np.zeros((height, 1), np.uint8), rows], axis=1).tobytes()
    return png(width, height, 16, {3: 2, 4: 6}[channels], raw, *extra)


def raw_tiff(values, order, *, signed=False):
    """An uncompressed TIFF of 16 bits with a sign or of colour, which Pillow does not write."""
    height, width, channels = values.shape
    body = values.astype(f"{order}{'i' if signed else 'u'}2").tobytes()
    depth = 16 if channels == 1 else 8  # of several samples it lies at 8
    tags = [(256, 1, width), (257, 1, height), (258, channels, depth), (259, 1, 1)]
    tags += [(262, 1, 1 if channels == 1 else 2), (273, 1, 16), (277, 1, channels)]
    tags += [(278, 1, height), (279, 1, len(body)), (284, 1, 1)]
    tags += [(339, 1, 2)] * signed
    entries = b""
    for tag, n, value in tags:
        kind = "I" if n > 1 or tag in (273, 279) else "H"
        entries += struct.pack(order + "HHI", tag, 3 if n > 1 or kind == "H" else 4, n)
        entries += struct.pack(order + kind, value).ljust(4, b"\0")
    page = struct.pack(order + "H", len(tags)) + entries + bytes(4)
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "I", 16 + len(body))
    return head + struct.pack(order + "3H", 16, 16, 16) + bytes(2) + body + page


@pytest.mark.parametrize("form", ["png", "tiff <", "tiff >", "array"])
def test_all_bits_of_colour_count(form):
    values = RNG.integers(0, 4096, (*SHAPE, 3)).astype(np.uint16)
    if form == "array":
        data = values
    else:
        data = colour_png(values) if form == "png" else raw_tiff(values, form[-1])
    for window, ends in (((100, 4000), (100, 4000)), ("image", (values.min(), values.max()))):
        got = decode_image(data, SHAPE, ImagePolicy(window=window))
        assert np.array_equal(got, windowed(values, *map(float, ends)))


def test_transparency_is_no_part_of_the_window():
    values = RNG.integers(0, 4096, (*SHAPE, 4)).astype(np.uint16)
    values[..., 3] = 65535
    opaque = windowed(values[..., :3], 0, 4095)
    for data in (values, colour_png(values)):
        assert np.array_equal(decode_image(data, SHAPE, ImagePolicy(window=(0, 4095))), opaque)
    values[0, 0, 3] = 0
    for data in (values, colour_png(values)):
        got = decode_image(data, SHAPE, ImagePolicy(window=(0, 4095)))
        assert got[0, 0].tolist() == [255, 255, 255]
    clear = png_chunk(b"tRNS", struct.pack(">3H", *values[1, 1, :3]))
    got = decode_image(colour_png(values[..., :3], clear), SHAPE, ImagePolicy(window=(0, 4095)))
    assert got[1, 1].tolist() == [255, 255, 255]
    floats = np.dstack([REAL, REAL, REAL, np.ones(SHAPE)])
    assert np.array_equal(array_to_rgb(floats, (-1, 1))[..., 0], windowed(REAL, -1, 1))


def test_a_window_comes_before_resizing_and_bands_make_no_difference(monkeypatch):
    values = RNG.integers(0, 4096, (40, 64, 3)).astype(np.uint16)
    grey = encode(Image.fromarray(values[..., 0]), "PNG")
    for data in (values, colour_png(values), grey):
        for window in ((0, 2000), "image"):
            policy = ImagePolicy(window=window)
            whole = decode_image(data, (40, 64), policy)
            small = np.asarray(Image.fromarray(whole).resize((16, 10), Image.Resampling.BILINEAR))
            assert np.array_equal(decode_image(data, (10, 16), policy), small)
            with monkeypatch.context() as patch:
                patch.setattr("featx.images.decode.BAND_PX", 64 * 7)
                assert np.array_equal(decode_image(data, (40, 64), policy), whole)


def test_targets_of_several_windows_share_an_image():
    data = GREYS["png"][0]
    policies = [ImagePolicy(window=w) for w in (None, (0, 4095), "image", (0, 4095))]
    got = decode_sizes(data, [(SHAPE, policy) for policy in policies])
    for rgb, policy in zip(got, policies, strict=True):
        assert np.array_equal(rgb, decode_image(data, SHAPE, policy))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("window", ["image", (0, 1)])
def test_what_is_no_number_fails(bad, window):
    values = REAL.copy()
    values[3, 3] = bad
    for data in (values, encode(Image.fromarray(values), "TIFF")):
        with pytest.raises(ImageError, match="must be finite, received NaN or infinity"):
            decode_image(data, SHAPE, ImagePolicy(window=window))


def test_without_a_window_the_message_names_it():
    wide = encode(Image.fromarray(np.array([[0, 70_000]], np.int32)), "TIFF")
    for data in (GREYS["tiff floats"][0], wide, TWELVE.astype(np.int32), REAL):
        with pytest.raises(ImageError, match=r"--window MIN:MAX \(ImagePolicy\(window=...\)\)$"):
            decode_image(data, SHAPE, ImagePolicy())


@pytest.mark.parametrize(
    "window",
    [(5, 5), (5, 1), (0,), "0:1", "whole", (0, float("nan")), (0, float("inf")), 7, {1: 2}],
)
def test_a_window_that_is_none_is_refused(window):
    with pytest.raises(DatasetError, match=r"window must be 'image' or two finite numbers"):
        ImagePolicy(window=window)


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I", "F"])
def test_pictures_in_memory_have_all_their_bits(mode):
    kind = {"I;16": "<u2", "I;16B": ">u2", "I": np.int32, "F": np.float32}[mode]
    image = Image.fromarray(TWELVE.astype(kind))
    assert image.mode == mode
    (row,) = load_images(
        ImageDataset.from_any([image]), [0], [(SHAPE, ImagePolicy(window=(0, 4095)))]
    )
    assert np.array_equal(row.pixels[0][..., 0], windowed(TWELVE, 0, 4095))
    image.getexif()[0x0112] = 6
    (row,) = load_images(
        ImageDataset.from_any([image]), [0], [(SHAPE[::-1], ImagePolicy(window=(0, 4095)))]
    )
    assert np.array_equal(row.pixels[0][..., 0], np.rot90(windowed(TWELVE, 0, 4095), -1))


def extent_of(data, window=None):
    return decode_targets(data, [((4, 4), ImagePolicy(window=window))], bytes(32)).extent


def test_the_extent_of_deep_images_is_measured():
    low, high = float(TWELVE.min()), float(TWELVE.max())
    for name in ("png", "tiff", "pgm", "uint16"):
        assert extent_of(GREYS[name][0]) == Extent(low, high, 65535)
        assert extent_of(GREYS[name][0], "image") is None
    assert extent_of(np.array([[0.0, 0.1]])) == Extent(0.0, 0.1, 1.0)
    assert extent_of(colour_png(np.full((4, 4, 3), 4095))) == Extent(15 * 257, 15 * 257, 65535)
    low, high, full = extent_of(pgm(np.array([[7, 500]]), 4095))
    assert [round(value) for value in (low, high, full)] == [7, 500, 4095]
    for data in (EIGHT, encode(Image.fromarray(EIGHT), "PNG"), EIGHT > 7):
        assert extent_of(data) is None


def test_extents_come_from_threads_and_processes_alike(tmp_path):
    for i in range(6):
        Image.fromarray(TWELVE + np.uint16(i)).save(tmp_path / f"{i}.png")
    data = ImageDataset.from_folder(tmp_path, labels="none")
    targets = [((4, 4), ImagePolicy())]
    extents = [
        [row.extent for row in load_images(data, range(6), targets, isolate=isolate, workers=2)]
        for isolate in (False, True)
    ]
    assert extents[0] == extents[1]
    assert [extent.high for extent in extents[0]] == [float(TWELVE.max()) + i for i in range(6)]


def test_processes_know_the_window(tmp_path):
    (tmp_path / "a.png").write_bytes(GREYS["png"][0])
    data = ImageDataset.from_folder(tmp_path, labels="none")
    for window in ((0, 4095), "image"):
        policy = ImagePolicy(window=window)
        (row,) = load_images(data, [0], [(SHAPE, policy)], isolate=True)
        assert np.array_equal(row.pixels[0], decode_image(GREYS["png"][0], SHAPE, policy))


def test_a_tiff_in_memory_equals_its_file():
    content = GREYS["tiff floats"][0]
    image = Image.open(io.BytesIO(content))
    image.load()
    policy = ImagePolicy(window=(-3, 3))
    rows = load_images(ImageDataset.from_any([image, content]), [0, 1], [(SHAPE, policy)])
    first, second = (row.pixels[0] for row in rows)
    assert np.array_equal(first, second)
