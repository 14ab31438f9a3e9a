"""What decoding may take: memory and time are bounded before a decoder starts."""

import io
import struct
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, JpegImagePlugin

from featx.exceptions import DatasetError, ImageError
from featx.images import limits
from featx.images.dataset import ImageDataset
from featx.images.decode import decode_image, decode_rgb
from featx.images.limits import Budget, budget, most_decode_bytes, set_most_decode_bytes
from featx.images.loader import load_images
from featx.spec import ImagePolicy
from tests.images.test_decode import encode, png, png_chunk

RNG = np.random.default_rng(3)
PHOTO = Image.fromarray(RNG.integers(0, 256, (48, 64, 3), dtype=np.uint8))
PLAIN = ImagePolicy(draft=False)


def segment(code, body):
    return b"\xff" + bytes([code]) + struct.pack(">H", len(body) + 2) + body


def many_scans(scans, *, hidden=b""):
    frame = segment(0xC2, struct.pack(">BHHB", 8, 4800, 4800, 1) + b"\1\x11\0")
    scan = segment(0xDA, b"\1\1\0\0\0\0") + b"\0\0"
    return b"\xff\xd8" + frame + (scan + hidden) * scans + b"\xff\xd9"


def tiff(tags, tail=b""):
    entries = b"".join(struct.pack("<HHII", tag, 4, n, value) for tag, n, value in tags)
    head = b"II*\0" + struct.pack("<IH", 8, len(tags))
    return head + entries + bytes(4) + tail


def tiff_of_large_tiles():
    tags = [(256, 16), (257, 16), (258, 8), (259, 8), (262, 1), (277, 1), (322, 60_000)]
    tags += [(323, 60_000), (324, 8), (325, 8)]
    return tiff([(tag, 1, value) for tag, value in tags])


def tiff_of_many_strips(n):
    tags = [(256, 1, 4), (257, 1, n), (258, 1, 8), (259, 1, 1), (262, 1, 1), (273, n, 200)]
    tags += [(277, 1, 1), (278, 1, 1), (279, n, 200)]
    return tiff(tags, bytes(200 + 4 * n))


def jpeg_2000(**options):
    data = bytearray(encode(PHOTO, "JPEG2000", **options))
    at = data.index(b"\xff\x4f\xff\x51") + 8
    # What the outer header says stays.
    struct.pack_into(">2I", data, at, 12_000, 9_000)
    return bytes(data)


def riff(width, height):
    bits = (width - 1) | (height - 1) << 14
    body = b"WEBPVP8L" + struct.pack("<IBI", 9, 0x2F, bits) + bytes(5)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def bmp_rle(width, height):
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, 4, 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 1082, 0, 0, 1078) + head + bytes(1024) + b"\0\0\0\1"


HOSTILE = {
    "png of one column": (
        png(1, 80_000_000, 8, 0, b""),
        "too large: 1x80000000 pixels of PNG take",
    ),
    "png of two columns": (png(2, 30_000_000, 8, 6, b""), "too large: 2x30000000 pixels of PNG"),
    "png of empty chunks": (
        png(4, 4, 8, 0, b"").replace(png_chunk(b"IEND", b""), png_chunk(b"teXt", b"") * 300_000),
        "too much work: more than 250,000 PNG chunks",
    ),
    "webp": (riff(16_000, 5_000), "too large: 16000x5000 pixels of WEBP take about 1,3.. MiB"),
    "jpeg of scans": (many_scans(2000), "too much work: 4800x4800 pixels of JPEG .* about 1[45] s"),
    "jpeg of scans behind a comment": (
        many_scans(2000, hidden=segment(0xFE, b"\xff\xd9")),
        "too much work: 4800x4800 pixels of JPEG",
    ),
    "jpeg of segments": (
        b"\xff\xd8" + segment(0xFE, b"") * 300_000,
        "too much work: more than 250,000 JPEG segments",
    ),
    "jpeg of filling": (b"\xff\xd8" + b"\xff" * 20_000_000, "truncated: JPEG header"),
    "large progressive jpeg": (
        many_scans(1).replace(struct.pack(">HH", 4800, 4800), struct.pack(">HH", 65000, 65000)),
        "too large: 65000x65000 pixels of JPEG take about",
    ),
    "gif of comments": (
        b"GIF89a" + struct.pack("<HHBBB", 4, 4, 0, 0, 0) + b"!\xfe" + b"\1a" * 300_000,
        "too much work: more than 250,000 GIF blocks",
    ),
    "bmp": (bmp_rle(8000, 8000), "too much work: 8000x8000 pixels of BMP"),
    "ppm in text": (b"P2 6000 6000 255\n" + b"1 " * 9_000_000, "too much work: .* 18,0.* bytes"),
    "ppm without an end": (b"P5\n#" + b" " * 100_000, "damaged: PPM without its size"),
    "tiff of large tiles": (tiff_of_large_tiles(), "too large: 16x16 pixels of TIFF take"),
    "tiff of strips": (tiff_of_many_strips(300_000), "too much work: .* strips or tiles of a TIFF"),
    "jpeg 2000 within another size": (jpeg_2000(), "too large: 64x48 pixels of JPEG2000"),
    "jpeg 2000 of small blocks": (
        jpeg_2000(no_jp2=True, codeblock_size=(4, 4)),
        "too large: 12000x9000 pixels",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_takes_too_much_fails_before_it_is_decoded(name):
    data, reason = HOSTILE[name]
    for policy in (PLAIN, ImagePolicy(draft=True)):
        with pytest.raises(ImageError, match=reason) as caught:
            decode_image(data, (64, 64), policy)
        assert len(str(caught.value)) < 300


def test_what_an_image_is_brought_to_counts_too():
    column = encode(Image.new("L", (2, 60_000)), "PNG")
    assert decode_image(column, (8, 8), PLAIN).shape == (8, 8, 3)
    for policy in (PLAIN, ImagePolicy(resize="crop")):
        with pytest.raises(ImageError, match="too large: 2x60000 pixels of PNG take about"):
            decode_image(column, (8, 6000), policy)
    with pytest.raises(ImageError, match="too large: 2x60000 pixels of an array take about"):
        decode_image(np.zeros((60_000, 2), np.uint8), (8, 6000), PLAIN)


@pytest.fixture(scope="module")
def large():
    """JPEG files of 108 million pixels: the picture, and one that is turned."""
    small = Image.fromarray(RNG.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    data = encode(small.resize((12_000, 9000)), "JPEG")
    turned = Image.Exif()
    turned[0x0112] = 6
    return data, data[:2] + segment(0xE1, turned.tobytes()) + data[2:]


def test_a_jpeg_of_any_size_is_read_at_a_fraction(large):
    whole = JpegImagePlugin.JpegImageFile(io.BytesIO(large[0]))
    whole.draft(None, (6000, 4500))
    np.testing.assert_array_equal(decode_rgb(large[0]), np.asarray(whole))
    upright = decode_image(large[0], (90, 120), PLAIN)
    np.testing.assert_array_equal(upright, np.asarray(whole.resize((120, 90), 2)))
    assert decode_rgb(large[1], draft_px=(1, 1)).shape == (1500, 1125, 3)
    assert decode_image(large[1], (120, 90), PLAIN).shape == (120, 90, 3)


def test_a_limit_of_the_users_holds_for_a_jpeg_too(large, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000_000)
    with pytest.raises(ImageError, match="too large: 12000x9000 pixels, the limit is 10000000"):
        decode_rgb(large[0])


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "GIF"])
def test_what_fits_into_memory_is_decoded_however_many_pixels_it_has(kind):
    # Pillow warns of more than 89 million pixels.
    data = encode(Image.new("L", (10_000, 9500), 7), kind)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (decode_image(data, (8, 8), PLAIN) == 7).all()


@pytest.fixture
def memory():
    """A function that sets the memory of decoding, until the test ends."""
    yield set_most_decode_bytes
    set_most_decode_bytes(None)


def test_a_gif_whose_first_frame_overlaps_its_canvas_is_decoded_without_a_warning(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limits._PILLOWS_PIXELS)
    data = bytearray(encode(Image.new("L", (10_000, 9500), 7), "GIF"))
    data[6:10] = struct.pack("<HH", 4, 4)
    at = data.index(b"\x2c" + struct.pack("<HHHH", 0, 0, 10_000, 9500))
    # Restore to background: of use to a second frame only.
    data[at:at] = b"!\xf9\4\x08\0\0\0\0"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (decode_image(bytes(data), (8, 8), PLAIN) == 7).all()


def test_the_memory_of_decoding_can_be_set(memory, monkeypatch):
    data = encode(Image.new("RGB", (2000, 1000)), "PNG")
    monkeypatch.setenv("FEATX_DECODE_MEMORY", "10MB")
    memory(None)
    assert most_decode_bytes() == 10**7
    expected = (
        r"too large: 2000x1000 pixels of PNG take about 1\d MiB of memory to decode, the limit is "
        r"9 MiB: make the image smaller, or set FEATX_DECODE_MEMORY=1GB"
    )
    with pytest.raises(ImageError, match=expected):
        decode_image(data, (8, 8), PLAIN)
    # It is read once.
    monkeypatch.setenv("FEATX_DECODE_MEMORY", "1GiB")
    with pytest.raises(ImageError, match=expected):
        decode_image(data, (8, 8), PLAIN)
    memory(None)
    assert decode_image(data, (8, 8), PLAIN).shape == (8, 8, 3)


def test_a_wrong_memory_of_decoding_is_said_once(memory, monkeypatch):
    images = ImageDataset.from_arrays(np.zeros((3, 4, 4), np.uint8))
    monkeypatch.setenv("FEATX_DECODE_MEMORY", "much")
    memory(None)
    with pytest.raises(DatasetError, match="FEATX_DECODE_MEMORY must be a size such as 512MiB"):
        next(load_images(images, range(3), [((4, 4), PLAIN)]))


def test_processes_have_the_memory_of_this_one(memory, tmp_path):
    Image.new("RGB", (2000, 1000)).save(tmp_path / "a.png")
    data = ImageDataset.from_folder(tmp_path, labels="none")
    memory(10**7)
    (row,) = load_images(data, [0], [((4, 4), PLAIN)], isolate=True)
    assert row.reason.startswith("too large: 2000x1000 pixels of PNG take about")
    memory(10**8)
    (row,) = load_images(data, [0], [((4, 4), PLAIN)], isolate=True)
    assert row.status == "decoded"


def test_a_large_jpeg_2000_is_read_at_a_fraction(monkeypatch):
    picture = PHOTO.resize((640, 480))
    data = encode(picture, "JPEG2000", num_resolutions=4)
    whole = decode_image(data, (480, 640), PLAIN)
    for most, scale in ((640 * 480, 1), (640 * 480 - 1, 2), (640 * 480 // 4 - 1, 4), (10, 8)):
        monkeypatch.setitem(limits.MOST_PIXELS, "JPEG2000", most)
        with Image.open(io.BytesIO(data)) as image:
            image.reduce = scale.bit_length() - 1
            image.load()
            expected = np.asarray(image)
        np.testing.assert_array_equal(decode_rgb(data), expected)
        assert expected.shape == (480 // scale, 640 // scale, 3)
    # No smaller than the levels that it has; a draft has nothing to do with it.
    assert np.array_equal(decode_image(data, (60, 80), ImagePolicy()), expected)
    monkeypatch.undo()
    assert np.array_equal(decode_image(data, (480, 640), ImagePolicy()), whole)


LARGE = """
import sys, warnings
warnings.simplefilter("error")
from featx.exceptions import ImageError
from featx.images import decode, limits
from featx.images.files import read_file
from featx.memory import peak_bytes
from featx.spec import ImagePolicy
path, small, window = sys.argv[1:]
policy = ImagePolicy(draft=False, window=window or None)
decode.decode_image(read_file(small), (8, 8), policy)  # so that all is imported
needs, check = [], limits.check_work
decode.check_work = lambda *a, **k: needs.append(check(*a, **k)) or needs[0]
before = peak_bytes()
try:
    decode.decode_image(read_file(path), (224, 224), policy)
except ImageError as error:
    print(error)
else:
    print("decoded", needs[0], peak_bytes() - before)
"""
# What 110 million pixels come to, in which mode, and how they are written.
LARGE_FILES = {
    "jpeg": ("decoded", "RGB", "JPEG", {}),
    "png": ("decoded", "RGB", "PNG", {"compress_level": 1}),
    "png of 16 bits": ("decoded", "I;16", "PNG", {"compress_level": 1}),
    "tiff": ("decoded", "RGB", "TIFF", {}),
    "tiff lzw": ("decoded", "RGB", "TIFF", {"compression": "tiff_lzw"}),
    "tiff of 16 bits": ("decoded", "I;16", "TIFF", {}),
    "tiff on its side": ("decoded", "L", "TIFF", {"tiffinfo": {274: 6}}),
    "bmp": ("decoded", "RGB", "BMP", {}),
    "gif": ("decoded", "L", "GIF", {}),
    "png with alpha": ("decoded", "RGBA", "PNG", {"compress_level": 1}),
    "webp": ("too large", "RGB", "WEBP", {"quality": 1, "method": 0}),
}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux keeps the peak")
@pytest.mark.parametrize("name", LARGE_FILES)
def test_what_is_estimated_is_an_upper_bound(name, tmp_path):
    result, mode, kind, options = LARGE_FILES[name]
    for file, size in (("large", (12_300, 9000)), ("small", (64, 48))):
        Image.new(mode, size).save(tmp_path / file, kind, **options)
    window = "image" if mode == "I;16" else ""
    command = [
        sys.executable,
        "-c",
        LARGE,
        str(tmp_path / "large"),
        str(tmp_path / "small"),
        window,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout.startswith(result)
    if result == "decoded":
        need, peak = map(int, done.stdout.split()[1:])
        assert peak <= need


@pytest.mark.parametrize("kind", ["P5", "P6"])
@pytest.mark.parametrize("full", [1, 100, 255, 256, 4095, 65535])
def test_ppm_of_any_depth_equals_pillows(kind, full):
    values = RNG.integers(0, full + 1, (5, 7, 3 if kind == "P6" else 1))
    raw = values.astype(np.uint8 if full < 256 else ">u2").tobytes()
    data = f"{kind} # a comment\n7\t5\n{full}\n".encode() + raw
    image = Image.open(io.BytesIO(data))
    if image.mode == "I":
        expected = (np.asarray(image)[..., None] + 128) // 257 * np.ones(3)
    else:
        expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(decode_rgb(data), expected)
    with pytest.raises(ImageError, match="truncated"):
        decode_rgb(data[:-1])


def test_bands_of_rows_make_no_difference(monkeypatch):
    grey = Image.fromarray(RNG.integers(0, 65536, (48, 64)).astype(np.uint16))
    clear = Image.merge("RGBA", (*PHOTO.split(), PHOTO.getchannel(0)))
    palette = PHOTO.quantize(8)
    files = [encode(grey, "PNG"), encode(clear, "PNG"), encode(palette, "PNG", transparency=2)]
    arrays = [np.asarray(grey), np.asarray(clear), np.asarray(clear) / 255, np.asarray(PHOTO)]
    whole = [decode_rgb(data) for data in files], [decode_image(a, (48, 64), PLAIN) for a in arrays]
    monkeypatch.setattr("featx.images.decode.BAND_PX", 64 * 7)
    monkeypatch.setattr("featx.images.decode.BAND_PX", 64 * 7)
    bands = [decode_rgb(data) for data in files], [decode_image(a, (48, 64), PLAIN) for a in arrays]
    for before, after in zip(whole[0] + whole[1], bands[0] + bands[1], strict=True):
        np.testing.assert_array_equal(after, before)


def test_a_budget_is_shared_and_comes_back():
    shared = Budget(1000 << 20)
    held, most, lock = [0], [0], threading.Lock()

    def work(need):
        with shared.hold(need):
            with lock:
                held[0] += need
                most[0] = max(most[0], held[0])
            with lock:
                held[0] -= need

    needs = [300 << 20, 700 << 20, 400 << 20, 2000 << 20] * 25
    threads = [threading.Thread(target=work, args=(need,)) for need in needs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] <= 2000 << 20
    with pytest.raises(ZeroDivisionError, match="division"), shared.hold(1000 << 20):
        raise ZeroDivisionError("division")
    with shared.hold(1000 << 20):
        pass


PEAK = """
import sys
from featx.images.dataset import ImageDataset
from featx.images.loader import load_images
from featx.memory import peak_bytes
from featx.spec import ImagePolicy
if __name__ == "__main__":
    data = ImageDataset.from_folder(sys.argv[1], labels="none")
    rows = load_images(
        data, range(len(data)), [((32, 32), ImagePolicy())], workers=4, isolate=sys.argv[2] == "p"
    )
    found = {row.status for row in rows}
    print(found, peak_bytes() >> 20)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux keeps the peak")
def test_threads_share_the_memory(tmp_path):
    for i in range(4):
        Image.new("RGB", (5000, 5000 + i)).save(tmp_path / f"{i}.webp", lossless=True)
    command = [sys.executable, "-c", PEAK, str(tmp_path), "t"]
    done = subprocess.run(command, capture_output=True, text=True)
    status, peak = done.stdout.rsplit(" ", 1)
    assert (status, done.stderr) == ("{'decoded'}", "")
    # Each takes 400 MiB.
    assert int(peak) < 1200


def test_processes_ask_for_memory_and_give_it_back(tmp_path, monkeypatch):
    asked = []
    take, give_back = Budget.take, Budget.give_back

    def noted(method):
        def change(self, need_bytes):
            asked.append((method.__name__, need_bytes))
            method(self, need_bytes)

        return change

    monkeypatch.setattr(Budget, "take", noted(take))
    monkeypatch.setattr(Budget, "give_back", noted(give_back))
    for i in range(12):
        size = (5000, 4400) if i % 4 == 1 else (30, 40 + i)
        Image.new("L", size, i).save(tmp_path / f"{i:02d}.png", compress_level=1)
    data = ImageDataset.from_folder(tmp_path, labels="none")
    rows = list(load_images(data, range(12), [((4, 4), PLAIN)], workers=2, isolate=True))
    assert [row.status for row in rows] == ["decoded"] * 12
    assert [int(row.pixels[0].mean()) for row in rows] == list(range(12))
    assert sorted(name for name, need in asked if need) == ["give_back"] * 3 + ["take"] * 3
    assert budget()._used == 0
