"""The decode policy, line by line, on arrays and on files that Pillow or the test wrote."""

import contextlib
import io
import logging
import os
import struct
import subprocess
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps, features

from featx.exceptions import ImageError
from featx.images.decode import array_to_rgb, decode_image, decode_rgb, decode_sizes
from featx.spec import ImagePolicy

RNG = np.random.default_rng(7)
PIXELS = np.asarray(
    Image.fromarray(RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((61, 47), 2)
)
PHOTO = Image.fromarray(PIXELS)
HAS_AVIF = "avif" in features.modules and features.check("avif")


def encode(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width, height, depth, colour_type, raw, *extra):
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + b"".join(extra)
        + png_chunk(b"IDAT", zlib.compress(raw))
        + png_chunk(b"IEND", b"")
    )


def exif(orientation):
    block = Image.Exif()
    block[0x0112] = orientation
    block[0x010F] = "maker"
    return block


FORMATS = {
    "jpeg": encode(PHOTO, "JPEG", quality=95),
    "jpeg progressive": encode(PHOTO, "JPEG", progressive=True),
    "jpeg cmyk": encode(PHOTO.convert("CMYK"), "JPEG"),
    "png": encode(PHOTO, "PNG"),
    "png palette": encode(PHOTO.quantize(16), "PNG"),
    "gif": encode(PHOTO, "GIF"),
    "bmp": encode(PHOTO, "BMP"),
    "ppm": encode(PHOTO, "PPM"),
    "tiff": encode(PHOTO, "TIFF"),
    "tiff big": encode(PHOTO, "TIFF", big_tiff=True),
    "tiff lzw": encode(PHOTO, "TIFF", compression="tiff_lzw"),
    "webp": encode(PHOTO, "WEBP"),
    "webp lossless": encode(PHOTO, "WEBP", lossless=True),
    "jpeg 2000": encode(PHOTO, "JPEG2000"),
    "jpeg 2000 codestream": encode(PHOTO, "JPEG2000", no_jp2=True),
}
if HAS_AVIF:
    FORMATS["avif"] = encode(PHOTO, "AVIF")
LOSSLESS = ("png", "bmp", "ppm", "tiff", "tiff big", "tiff lzw", "webp lossless")


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_what_pillow_gives(name):
    data = FORMATS[name]
    got = decode_rgb(data)
    with Image.open(io.BytesIO(data)) as image:
        assert np.array_equal(got, np.asarray(image.convert("RGB")))
    assert got.dtype == np.uint8
    if name in LOSSLESS:
        assert np.array_equal(got, PIXELS)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF"])
def test_exif_orientation_is_applied(kind, orientation):
    if kind == "AVIF" and not HAS_AVIF:
        pytest.skip("this Pillow has no AVIF")
    data = encode(PHOTO, kind, exif=exif(orientation))
    with Image.open(io.BytesIO(data)) as image:
        upright = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    got = decode_rgb(data)
    assert got.shape == ((47, 61, 3) if orientation < 5 else (61, 47, 3))
    assert np.array_equal(got, upright)


def test_exif_orientation_of_a_compressed_tiff():
    data = encode(PHOTO, "TIFF", exif=exif(6), compression="tiff_lzw", icc_profile=b"no profile")
    assert np.array_equal(decode_rgb(data), np.rot90(PIXELS, -1))


@pytest.mark.parametrize(
    "block",
    [
        b"Exif\0\0",
        b"Exif\0\0II*\0",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12" * 5,
        b"Exif\0\0II*\0\x08\0\0\0\x02\0" + struct.pack("<HHII", 0x011A, 5, 1, 1 << 30) * 2,
        b"Exif\0\0II*\0\x08\0\0\0\x01\0" + struct.pack("<HHIHH", 0x0112, 3, 1, 99, 0),
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_absurd_exif_is_ignored_without_a_warning(kind, block):
    assert decode_rgb(encode(PHOTO, kind, exif=block)).shape == (47, 61, 3)


def test_a_corrupt_colour_profile_is_ignored():
    for kind in ("JPEG", "PNG", "TIFF", "WEBP"):
        assert decode_rgb(encode(PHOTO, kind, icc_profile=b"\0garbage" * 99)).shape == (47, 61, 3)


def test_a_png_text_bomb_is_not_unpacked():
    bomb = png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(200_000_000), 9))
    got = decode_rgb(png(1, 1, 8, 2, b"\0\x01\x02\x03", bomb))
    assert got.tolist() == [[[1, 2, 3]]]


def test_palette_with_and_without_transparency():
    palette = Image.new("P", (3, 1))
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    palette.putdata([0, 1, 2])
    assert decode_rgb(encode(palette, "PNG")).tolist() == [[[255, 0, 0], [0, 255, 0], [0, 0, 255]]]
    one = decode_rgb(encode(palette, "PNG", transparency=1))
    assert one.tolist() == [[[255, 0, 0], [255, 255, 255], [0, 0, 255]]]
    shades = decode_rgb(encode(palette, "PNG", transparency=bytes([0, 255, 51])))
    assert shades.tolist() == [[[255, 255, 255], [0, 255, 0], [204, 204, 255]]]
    assert decode_rgb(encode(palette, "GIF", transparency=2))[0, 2].tolist() == [255, 255, 255]


def test_alpha_lies_over_white():
    rgba = Image.new("RGBA", (3, 1))
    rgba.putdata([(10, 20, 30, 255), (10, 20, 30, 0), (0, 0, 0, 51)])
    expected = [[[10, 20, 30], [255, 255, 255], [204, 204, 204]]]
    assert decode_rgb(encode(rgba, "PNG")).tolist() == expected
    assert decode_rgb(encode(rgba, "TIFF")).tolist() == expected
    grey = Image.new("LA", (2, 1))
    grey.putdata([(7, 255), (7, 0)])
    assert decode_rgb(encode(grey, "PNG")).tolist() == [[[7, 7, 7], [255, 255, 255]]]


def test_a_transparent_colour_lies_over_white():
    rgb = Image.new("RGB", (2, 1))
    rgb.putdata([(1, 2, 3), (4, 5, 6)])
    got = decode_rgb(encode(rgb, "PNG", transparency=(1, 2, 3)))
    assert got.tolist() == [[[255, 255, 255], [4, 5, 6]]]
    grey = Image.new("L", (2, 1))
    grey.putdata([9, 8])
    got = decode_rgb(encode(grey, "PNG", transparency=8))
    assert got.tolist() == [[[9, 9, 9], [255, 255, 255]]]


@pytest.mark.parametrize(
    ("depth", "raw", "clear", "expected"),
    [
        (1, b"\0\x40", 1, [0, 255]),
        (2, b"\0\x60", 2, [85, 255]),
        (4, b"\0\x35", 5, [51, 255]),
        (16, b"\0" + struct.pack(">HH", 257, 300), 300, [1, 255]),
    ],
)
def test_a_transparent_grey_of_every_depth(depth, raw, clear, expected):
    data = png(2, 1, depth, 0, raw, png_chunk(b"tRNS", struct.pack(">H", clear)))
    assert decode_rgb(data)[0, :, 0].tolist() == expected


def test_a_transparent_colour_of_16_bits():
    raw = b"\0" + struct.pack(">6H", 0x0102, 0x0304, 0x0506, 0x1111, 0x2222, 0x3333)
    data = png(2, 1, 16, 2, raw, png_chunk(b"tRNS", struct.pack(">3H", 0x1111, 0x2222, 0x3333)))
    assert decode_rgb(data).tolist() == [[[1, 3, 5], [255, 255, 255]]]


def test_greyscale_and_one_bit():
    ramp = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4))
    got = decode_rgb(encode(ramp, "PNG"))
    assert np.array_equal(got, np.repeat(np.asarray(ramp)[:, :, None], 3, axis=2))
    bits = Image.fromarray(np.array([[True, False]]))
    for kind in ("PNG", "TIFF", "BMP"):
        assert decode_rgb(encode(bits, kind)).tolist() == [[[255] * 3, [0] * 3]]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_greyscale_is_scaled(kind):
    values = np.array([[0, 128, 129, 257, 32896, 65535]], dtype=np.uint16)
    assert decode_rgb(encode(Image.fromarray(values), kind))[0, :, 1].tolist() == [
        *(0, 0, 1, 1, 128, 255)
    ]


def test_16_bit_values_in_32_bit_pixels_are_scaled_and_larger_ones_refused():
    deep = Image.fromarray(np.array([[0, 65535]], dtype=np.int32))
    assert decode_rgb(encode(deep, "TIFF"))[0, :, 0].tolist() == [0, 255]
    deeper = Image.fromarray(np.array([[0, 65536]], dtype=np.int32))
    with pytest.raises(ImageError, match=r"mode 'I' .* range from 0 to 65536"):
        decode_rgb(encode(deeper, "TIFF"))
    pgm = b"P5 2 1 65535 " + struct.pack(">HH", 257, 65535)
    assert decode_rgb(pgm)[0, :, 0].tolist() == [1, 255]


def test_floating_point_tiff_is_refused():
    real = Image.fromarray(np.array([[0.5, 1.5]], dtype=np.float32))
    with pytest.raises(ImageError, match=r"mode 'F' .*floating point"):
        decode_rgb(encode(real, "TIFF"))


def test_tiff_of_many_channels_is_refused_silently(caplog):
    data = bytearray(encode(PHOTO, "TIFF"))
    at = data.index(struct.pack("<HHI", 277, 3, 1))
    data[at + 8 : at + 10] = struct.pack("<H", 12)
    with caplog.at_level(logging.WARNING), pytest.raises(ImageError, match="more than 6 channels"):
        decode_rgb(bytes(data))
    assert not caplog.records


def test_cmyk_jpeg():
    red = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert np.abs(decode_rgb(encode(red, "JPEG")).astype(int) - [255, 0, 0]).max() <= 2


def test_ycbcr_jpeg_and_tiff():
    red = Image.new("RGB", (16, 16), (254, 0, 0))
    for data in (encode(red, "JPEG"), encode(red.convert("YCbCr"), "TIFF", compression="jpeg")):
        assert np.abs(decode_rgb(data).astype(int) - [254, 0, 0]).max() <= 2


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
def test_first_frame(kind):
    if kind == "AVIF" and not HAS_AVIF:
        pytest.skip("this Pillow has no AVIF")
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:])
    assert np.abs(decode_rgb(data).astype(int) - [255, 0, 0]).max() <= 3


def test_a_malformed_animation_gives_its_default_image():
    data = png(1, 1, 8, 2, b"\0\x01\x02\x03", png_chunk(b"acTL", struct.pack(">II", 0, 0)))
    assert decode_rgb(data).tolist() == [[[1, 2, 3]]]


def test_a_malformed_mpo_gives_its_first_image():
    block = b"MPF\0" + b"garbage"
    data = FORMATS["jpeg"]
    segment = b"\xff\xe2" + struct.pack(">H", len(block) + 2) + block
    assert np.array_equal(decode_rgb(data[:2] + segment + data[2:]), decode_rgb(data))


@pytest.mark.parametrize("name", FORMATS)
def test_whatever_is_cut_short_fails_or_is_complete(name):
    data = FORMATS[name]
    full = decode_rgb(data)
    cuts = sorted({*range(1, 64, 7), *np.linspace(64, len(data) - 1, 40).astype(int).tolist()})
    failures = 0
    for cut in cuts:
        try:
            assert np.array_equal(decode_rgb(data[:cut]), full)
        except ImageError:
            failures += 1
    assert failures >= len(cuts) - 2


@pytest.mark.parametrize("part", [0.3, 0.6, 0.9, 0.99])
@pytest.mark.parametrize("name", ["jpeg", "jpeg progressive", "png"])
def test_truncated_files_say_so(name, part):
    data = FORMATS[name]
    with pytest.raises(ImageError, match=r"^truncated: "):
        decode_rgb(data[: int(part * len(data))])


def test_a_damaged_png_fails():
    data = bytearray(FORMATS["png"])
    data[len(data) // 2] ^= 0x10
    with pytest.raises(ImageError, match=r"^damaged: the checksum of PNG chunk b'IDAT'"):
        decode_rgb(bytes(data))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", r"^empty file \(0 bytes\)$"),
        (b"just text, named .jpg", r"^not an image \(starts with b'just text, named'\)$"),
        (b"<html><body>404</body></html>", r"^not an image \(starts with b'<html"),
        (b"\xff\xd8\xff", r"^truncated: "),
        (b"%PDF-1.7 ...", r"^not an image \(starts with b'%PDF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", r"^not an image"),
        (b"\x89PNG\r\n\x1a\n", r"^truncated: PNG without its end chunk"),
    ],
)
def test_what_is_no_image_is_named(data, reason):
    with pytest.raises(ImageError, match=reason):
        decode_rgb(data)


def bombs():
    side = 20_000
    yield "png", png(side, side, 8, 0, b"")
    yield "bmp", b"BM" + struct.pack("<IIIIiiHHIIiiII", 54, 0, 54, 40, side, side, 1, 24, *[0] * 6)
    yield "ppm", b"P6 20000 20000 255 "
    yield "gif", b"GIF89a" + struct.pack("<HHBBB", side, side, 0, 0, 0)
    frame = b"," + struct.pack("<HHHHB", 19_000, 19_000, 1000, 1000, 0)
    yield "gif", b"GIF89a" + struct.pack("<HHBBB", 10, 10, 0, 0, 0) + frame
    head = struct.pack("<4sI4s", b"VP8X", 10, bytes(4)) + (side - 1).to_bytes(3, "little") * 2
    yield "webp", b"RIFF" + struct.pack("<I", len(head) + 4) + b"WEBP" + head


@pytest.mark.parametrize(("kind", "data"), list(bombs()))
def test_decompression_bombs_fail_on_their_header(kind, data):
    with pytest.raises(
        ImageError,
        match=rf"too large: 20000x20000 pixels of {kind.upper()} take about .* the limit is "
        r"1,024 MiB: .* or set FEATX_DECODE_MEMORY=\dGB$",
    ):
        decode_rgb(data)


def test_a_stricter_limit_of_the_users_is_heeded(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for data in FORMATS.values():
        with pytest.raises(ImageError, match="too large: 61x47 pixels, the limit is 1000"):
            decode_rgb(data)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert decode_rgb(FORMATS["png"]).shape == (47, 61, 3)


def test_load_truncated_images_is_refused(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(ImageError, match="LOAD_TRUNCATED_IMAGES is set in this process"):
        decode_rgb(FORMATS["jpeg"])


def test_heif_names_its_extra_or_is_read():
    data = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64)
    expected = r"needs pillow-heif, .* pip install 'featx\[heif\]'|^damaged|^truncated"
    with pytest.raises(ImageError, match=expected):
        decode_rgb(data)


def test_random_damage_never_escapes_as_another_error():
    rng = np.random.default_rng(3)
    for data in FORMATS.values():
        for _ in range(25):
            hurt = bytearray(data)
            for _ in range(int(rng.integers(1, 6))):
                hurt[int(rng.integers(0, min(len(hurt), 500)))] = int(rng.integers(0, 256))
            with contextlib.suppress(ImageError):
                assert decode_rgb(bytes(hurt)).dtype == np.uint8


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("resize", ["stretch", "crop"])
def test_sizes_and_one_way_for_bytes_and_pixels(resize, interpolation):
    policy = ImagePolicy(resize=resize, interpolation=interpolation)
    for size in ((32, 20), (20, 32), (47, 61), (90, 90), (1, 1)):
        got = decode_image(FORMATS["png"], size, policy)
        assert got.shape == (*size, 3)
        assert np.array_equal(got, decode_image(PIXELS, size, policy))


def test_same_pixels_as_keras(tmp_path):
    for name in ("jpeg", "png palette", "gif", "jpeg cmyk"):
        (tmp_path / name).write_bytes(FORMATS[name])
    code = """
import sys, warnings, numpy as np
from keras.utils import load_img
for name in ("jpeg", "png palette", "gif", "jpeg cmyk"):
    for keep in (False, True):
        for i in ("nearest", "bilinear", "bicubic", "lanczos"):
            image = load_img(name, target_size=(24, 30), interpolation=i, keep_aspect_ratio=keep)
            np.save(f"{name} {keep} {i}.npy", np.asarray(image))
"""
    env = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, check=True, timeout=900)
    for name in ("jpeg", "png palette", "gif", "jpeg cmyk"):
        for keep in (False, True):
            for interpolation in ("nearest", "bilinear", "bicubic", "lanczos"):
                policy = ImagePolicy(
                    resize="crop" if keep else "stretch", interpolation=interpolation
                )
                expected = np.load(tmp_path / f"{name} {keep} {interpolation}.npy")
                assert np.array_equal(decode_image(FORMATS[name], (24, 30), policy), expected)


def test_crop_keeps_the_aspect_ratio_and_the_centre():
    wide = np.zeros((10, 40, 3), np.uint8)
    wide[:, 15:25] = 255
    got = decode_image(wide, (10, 10), ImagePolicy(resize="crop"))
    assert (got == 255).all()
    narrow = decode_image(np.zeros((1000, 1, 3), np.uint8), (1, 1000), ImagePolicy(resize="crop"))
    assert narrow.shape == (1, 1000, 3)


def test_draft_shrinks_but_never_below_twice_the_size():
    rng = np.random.default_rng(1)
    photo = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).resize((800, 600), 2)
    data = encode(photo, "JPEG", quality=95)
    assert decode_rgb(data, draft_px=(150, 200)).shape == (150, 200, 3)
    assert decode_rgb(data, draft_px=(151, 200)).shape == (300, 400, 3)
    assert decode_rgb(data, draft_px=(601, 800)).shape == (600, 800, 3)
    turned = encode(photo, "JPEG", quality=95, exif=exif(6))
    assert decode_rgb(turned, draft_px=(200, 150)).shape == (200, 150, 3)
    assert decode_rgb(turned, draft_px=(200, 151)).shape == (400, 300, 3)
    plain = decode_image(data, (96, 96), ImagePolicy(draft=False)).astype(int)
    draft = decode_image(data, (96, 96), ImagePolicy(draft=True)).astype(int)
    assert 0 < np.abs(plain - draft).mean() < 1.5
    # At 301 pixels twice the size is larger than half the image, so nothing may shrink.
    whole = decode_image(data, (301, 301), ImagePolicy(draft=True))
    assert np.array_equal(whole, decode_image(data, (301, 301), ImagePolicy(draft=False)))


def test_several_sizes_equal_each_size_alone():
    photo = PHOTO.resize((640, 480))
    for data in (encode(photo, "JPEG", exif=exif(8)), encode(photo, "PNG")):
        targets = [
            ((224, 224), ImagePolicy(draft=False)),
            ((64, 64), ImagePolicy(draft=True)),
            ((33, 50), ImagePolicy(draft=True, resize="crop")),
            ((224, 224), ImagePolicy(interpolation="nearest")),
            ((64, 64), ImagePolicy(draft=False)),
            ((64, 64), ImagePolicy(draft=True)),
        ]
        got = decode_sizes(data, targets)
        assert len(got) == len(targets)
        for pixels, (size, policy) in zip(got, targets, strict=True):
            assert np.array_equal(pixels, decode_image(data, size, policy))
    assert decode_sizes(FORMATS["png"], []) == []


def test_rules_of_another_version_are_refused():
    with pytest.raises(ImageError, match="rules of version 2 are asked for"):
        decode_image(FORMATS["png"], (8, 8), ImagePolicy(decoder=2))
    with pytest.raises(ImageError, match=r"at least 1x1 pixels, received \(0, 8\)"):
        decode_image(FORMATS["png"], (0, 8), ImagePolicy())


def test_threads_give_the_same_pixels_and_leave_the_filters_alone():
    before = list(warnings.filters)
    expected = {name: decode_rgb(data) for name, data in FORMATS.items()}
    names = list(FORMATS) * 8
    with ThreadPoolExecutor(8) as pool:
        for name, got in zip(names, pool.map(lambda n: decode_rgb(FORMATS[n]), names), strict=True):
            assert np.array_equal(got, expected[name])
    assert warnings.filters == before


def test_heif_is_read_with_its_extra():
    heif = pytest.importorskip("pillow_heif", reason="the extra heif is not installed")
    heif.register_heif_opener()
    for orientation in range(1, 9):
        data = encode(PHOTO, "HEIF", exif=exif(orientation).tobytes())
        with Image.open(io.BytesIO(data)) as image:
            upright = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
        assert np.array_equal(decode_rgb(data), upright)
        with pytest.raises(ImageError, match=r"^(truncated|damaged): "):
            decode_rgb(data[: len(data) // 2])


def test_arrays_of_every_shape_and_type():
    grey = np.array([[0, 255], [10, 20]], np.uint8)
    rgb = np.repeat(grey[:, :, None], 3, axis=2)
    assert np.array_equal(array_to_rgb(grey), rgb)
    assert np.array_equal(array_to_rgb(grey[:, :, None]), rgb)
    assert np.array_equal(array_to_rgb(rgb), rgb)
    assert np.array_equal(array_to_rgb(grey.astype(np.uint16) * 257), rgb)
    assert np.array_equal(array_to_rgb(grey / 255), rgb)
    assert np.array_equal(array_to_rgb((grey / 255).astype(np.float32)), rgb)
    assert array_to_rgb(np.array([[True, False]]))[0, :, 0].tolist() == [255, 0]
    assert array_to_rgb(np.array([[0.5, 1.0001]], np.float16))[0, :, 0].tolist() == [128, 255]


def test_alpha_of_arrays_lies_over_white():
    rgba = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 0, 0, 51]]], np.uint8)
    assert array_to_rgb(rgba).tolist() == [[[10, 20, 30], [255] * 3, [204] * 3]]


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.full((2, 2), 255.0), r"lie in \[0, 1\], received 255 to 255 .*perhaps 255"),
        (np.full((2, 2), 16.0), r"received 16 to 16 .*perhaps 16\)"),
        (np.array([[-1.0, 1.0]]), r"received -1 to 1 .*map them to \[0, 1\]"),
        (np.array([[np.nan, 1.0]]), "finite, received NaN"),
        (np.array([[0, 255]]), r"received int64 with values 0 to 255: \.astype\('uint8'\)"),
        (np.array([[0, 700]]), r"values 0 to 700: map them to 0\.\.255"),
        (np.array([["a", "b"]]), "received <U1"),
        (
            np.zeros((3, 8, 8), np.uint8),
            r"channels come last here, use array\.transpose\(1, 2, 0\)",
        ),
        (np.zeros((8, 8, 2), np.uint8), r"received \(8, 8, 2\)"),
        (np.zeros(8, np.uint8), r"received \(8,\)"),
        (np.zeros((0, 8), np.uint8), r"without pixels: shape \(0, 8\)"),
    ],
)
def test_other_arrays_are_refused(array, reason):
    with pytest.raises(ImageError, match=reason):
        array_to_rgb(array)
