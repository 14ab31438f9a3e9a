"""Views: drawn from the key alone, within the picture, and nothing else than what was drawn."""

import hashlib
import io
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from featx.images.dataset import ImageDataset
from featx.images.decode import (
    Box,
    Target,
    View,
    as_targets,
    change_look,
    decode_image,
    decode_sizes,
    draw_view,
)
from featx.images.files import array_key
from featx.images.loader import load_images
from featx.spec import AUGMENTATIONS, ImagePolicy, ViewPolicy

PLAIN = ImagePolicy(draft=False)
KEYS = [hashlib.sha256(bytes([i % 256, i // 256])).digest() for i in range(2000)]


def photo(width, height, seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), 2)


def encode(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def target(policy="flip-crop-colour-1", size=(24, 32), image=PLAIN, **parts):
    return Target(size, image, ViewPolicy(policy=policy, **parts))


def test_what_is_drawn_for_a_key_never_changes():
    # Every space of views in the world was made with these: a change is a new name.
    view = draw_view(ViewPolicy(seed=3, index=1), bytes(range(32)))
    assert not view.flip
    expected = (0.09353266, 0.18589820, 0.53598087, 0.71035158, 0.93231252, 1.15264153, 0.90075209)
    assert (*view.box, *view[2:]) == pytest.approx(expected, abs=1e-8)
    crop = draw_view(ViewPolicy(policy="flip-crop-1"), bytes(32))
    assert crop[2:] == (1.0, 1.0, 1.0)
    assert draw_view(ViewPolicy(policy="flip-1", seed=9, index=4), KEYS[0]) == View(None, True)


@pytest.mark.parametrize("policy", AUGMENTATIONS)
def test_what_is_drawn_is_spread_over_what_is_allowed(policy):
    rule = AUGMENTATIONS[policy]
    views = [draw_view(ViewPolicy(policy=policy), key) for key in KEYS]
    assert np.mean([view.flip for view in views]) == pytest.approx(rule.flip, abs=0.04)
    for name in ("brightness", "contrast", "saturation"):
        drawn = np.array([getattr(view, name) for view in views])
        assert drawn.min() >= 1 - rule.colour
        assert drawn.max() <= 1 + rule.colour
        assert drawn.mean() == pytest.approx(1, abs=0.02)
        assert np.ptp(drawn) == pytest.approx(2 * rule.colour, rel=0.02)
    if rule.least_area == 1:
        assert {view.box for view in views} == {None}
        return
    left, top, width, height = np.array([view.box for view in views]).T
    area, shape = width * height, width / height
    assert area.min() == pytest.approx(rule.least_area, abs=0.01)
    assert area.mean() == pytest.approx((1 + rule.least_area) / 2, abs=0.02)
    assert area.max() == pytest.approx(1, abs=0.01)
    assert shape.min() == pytest.approx(3 / 4, abs=0.02)
    assert shape.max() == pytest.approx(4 / 3, abs=0.03)
    assert np.log(shape).mean() == pytest.approx(0, abs=0.02)
    assert min(left.min(), top.min()) >= 0
    assert (left + width).max() <= 1 + 1e-12
    assert (top + height).max() <= 1 + 1e-12
    # The centre of the picture is in every one of them.
    assert max(left.max(), top.max()) < 0.5
    assert min((left + width).min(), (top + height).min()) > 0.5
    place = left[width < 0.9] / (1 - width[width < 0.9])
    assert np.histogram(place, 4, (0, 1))[0].min() > 0.2 * len(place)


def test_policy_seed_index_and_key_each_make_another_view():
    drawn = [
        draw_view(ViewPolicy(policy=policy, seed=seed, index=index), key)
        for policy in ("flip-crop-1", "flip-crop-colour-1")
        for seed in range(3)
        for index in range(8)
        for key in KEYS[:3]
    ]
    assert len({view.box for view in drawn}) == len(drawn)


def test_views_are_the_same_in_threads_and_in_another_process(tmp_path):
    data = encode(photo(90, 70), "JPEG")
    (tmp_path / "a.jpg").write_bytes(data)
    targets = [Target((24, 32), PLAIN), *(target(index=i) for i in range(4))]
    expected = decode_sizes(data, targets)
    assert len({pixels.tobytes() for pixels in expected}) == 5
    with ThreadPoolExecutor(8) as pool:
        for got in pool.map(lambda _: decode_sizes(data, targets[::-1]), range(16)):
            assert all(map(np.array_equal, got, expected[::-1]))
    code = (
        "import sys\n"
        "from featx.images.decode import Target, decode_sizes\n"
        "from featx.spec import ImagePolicy, ViewPolicy\n"
        "data = open('a.jpg', 'rb').read()\n"
        "for i in range(4):\n"
        "    target = Target((24, 32), ImagePolicy(), ViewPolicy(index=i))\n"
        "    sys.stdout.buffer.write(decode_sizes(data, [target])[0].tobytes())\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    run = [sys.executable, "-c", code]
    out = subprocess.run(run, cwd=tmp_path, env=env, capture_output=True, check=True)
    assert out.stdout == b"".join(pixels.tobytes() for pixels in expected[1:])


def test_one_read_gives_the_picture_and_its_views(tmp_path):
    for i in range(3):
        photo(80, 60, seed=i).save(tmp_path / f"{i}.png")
    data = ImageDataset.from_folder(tmp_path, labels="none")
    targets = [((24, 32), PLAIN), target(), target("flip-1")]
    for row in load_images(data, [2, 0, 1], targets):
        content = data.read(row.index)
        assert np.array_equal(row.pixels[0], decode_image(content, (24, 32), PLAIN))
        assert all(map(np.array_equal, row.pixels, decode_sizes(content, targets)))
        assert np.array_equal(row.pixels[2], row.pixels[0][:, ::-1])
        assert all(p.dtype == np.uint8 and p.shape == (24, 32, 3) for p in row.pixels)


def test_arrays_have_views_of_their_own_key():
    array = np.asarray(photo(40, 30))
    base, view, again = decode_sizes(array, [((24, 32), PLAIN), target(), target()])
    assert np.array_equal(view, again)
    assert not np.array_equal(view, base)
    (named,) = decode_sizes(array, [target()], key=array_key(array))
    assert np.array_equal(view, named)
    (other,) = decode_sizes(array, [target()], key=bytes(32))
    assert not np.array_equal(view, other)
    (row,) = load_images(ImageDataset.from_arrays([array]), [0], [target()])
    assert np.array_equal(row.pixels[0], view)
    grey = np.full((1, 1), 200, np.uint8)
    assert (decode_sizes(grey, [target("flip-crop-1")])[0] == 200).all()


@pytest.mark.parametrize("policy", AUGMENTATIONS)
@pytest.mark.parametrize("resize", ["stretch", "crop"])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "lanczos"])
def test_pictures_of_one_pixel_and_of_one_line_have_views(policy, resize, interpolation):
    image = ImagePolicy(resize=resize, interpolation=interpolation)
    for width, height in ((1, 1), (2, 1), (1, 3000), (3000, 1), (7, 5)):
        data = encode(Image.new("RGB", (width, height), (120, 120, 120)))
        for seed in range(5):
            (pixels,) = decode_sizes(data, [target(policy, (9, 8), image, seed=seed)])
            assert pixels.shape == (9, 8, 3)
            assert pixels.std() == 0


def test_what_is_cut_out_is_where_it_was_drawn():
    # Red grows to the right and green downwards, so that a pixel tells where it was.
    ramp = np.zeros((200, 256, 3), np.uint8)
    ramp[..., 0] = np.arange(256)
    ramp[..., 1] = np.arange(200)[:, None]
    data = encode(Image.fromarray(ramp))
    for seed in range(20):
        policy = ViewPolicy(policy="flip-crop-1", seed=seed)
        view = draw_view(policy, hashlib.sha256(data).digest())
        (got,) = decode_sizes(data, [Target((64, 64), PLAIN, policy)])
        columns, rows = got[32, :, 0].astype(float), got[:, 32, 1].astype(float)
        if view.flip:
            columns = columns[::-1]
        assert columns[0] == pytest.approx(256 * view.box.left, abs=3)
        assert columns[-1] == pytest.approx(256 * (view.box.left + view.box.width), abs=4)
        assert rows[0] == pytest.approx(200 * view.box.top, abs=3)
        assert rows[-1] == pytest.approx(200 * (view.box.top + view.box.height), abs=4)
        # With `crop` the network sees the middle 200 columns, and so do its views.
        (middle,) = decode_sizes(data, [Target((64, 64), ImagePolicy(resize="crop"), policy)])
        assert middle[..., 0].min() >= 28
        assert middle[..., 0].max() <= 228


def test_a_view_follows_the_orientation_of_the_picture():
    upright = photo(60, 90)
    block = Image.Exif()
    block[0x0112] = 6
    turned = encode(upright.transpose(Image.Transpose.ROTATE_90), exif=block)
    one, other = (
        decode_sizes(data, [target()], key=KEYS[0])[0] for data in (encode(upright), turned)
    )
    assert np.array_equal(one, other)


def test_colours_change_by_the_factors():
    flat = Image.new("RGB", (4, 4), (100, 100, 100))
    assert np.asarray(change_look(flat, View(None, False, 1.2, 1.0, 1.0))).flatten()[0] == 120
    assert (np.asarray(change_look(flat, View(None, False, 1.0, 1.2, 0.8))) == 100).all()
    two = Image.fromarray(np.array([[[50] * 3, [150] * 3]], np.uint8))
    got = np.asarray(change_look(two, View(None, False, 1.0, 1.2, 1.0)))
    assert got[0, :, 0].tolist() == [40, 160]
    red = Image.new("RGB", (4, 4), (200, 50, 50))
    got = np.asarray(change_look(red, View(None, False, 1.0, 1.0, 0.0)))
    assert np.ptp(got) == 0
    bright = np.asarray(change_look(Image.new("RGB", (2, 2), "white"), View(None, False, 1.2)))
    assert (bright == 255).all()
    ramp = np.asarray(photo(20, 20))
    same = np.asarray(change_look(Image.fromarray(ramp), View(None, False)))
    assert np.array_equal(same, ramp)


def test_a_draft_leaves_twice_the_pixels_of_what_is_cut_out():
    data = encode(photo(1600, 1200), "JPEG", quality=95)
    draft = ImagePolicy(draft=True)
    exact, drafted = (
        decode_sizes(data, [target("flip-crop-1", (96, 128), image, seed=s) for s in range(12)])
        for image in (PLAIN, draft)
    )
    for one, other in zip(exact, drafted, strict=True):
        assert 0 < np.abs(one.astype(int) - other).mean() < 1.0
    # Half the picture leaves twice the size for the whole, and too little for a part of it.
    sizes = (300, 400)
    plain, part = Target(sizes, draft), Target(sizes, draft, ViewPolicy(policy="flip-crop-1"))
    whole, crop = decode_sizes(data, [plain, part])
    assert not np.array_equal(whole, decode_sizes(data, [plain._replace(image=PLAIN)])[0])
    assert np.array_equal(crop, decode_sizes(data, [part._replace(image=PLAIN)])[0])


def test_targets_are_pairs_or_triples():
    assert as_targets([((2, 3), PLAIN)]) == [Target((2, 3), PLAIN)] == [((2, 3), PLAIN, None)]
    size, image, view = target()
    assert (size, image, view) == ((24, 32), PLAIN, ViewPolicy())
    assert Box(0.0, 0.0, 1.0, 1.0).width == 1.0
