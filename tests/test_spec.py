import dataclasses
import hashlib
import json

import pytest

from featx.exceptions import CacheFormatError, DatasetError, UnknownNameError
from featx.spec import AUGMENTATIONS, FeatureSpec, ImagePolicy, ViewPolicy, folder_name

SPEC = FeatureSpec(
    backbone="mobilenet_v2",
    weights_sha256="ab" * 32,
    input_size_px=(224, 192),
    preprocessing="tf",
    image=ImagePolicy(draft=False),
)
VIEWS = ViewPolicy(policy="flip-crop-colour-1", seed=7)
# Every cache in the world is named by this text: a change orphans all of them.
PINNED_JSON = (
    '{"backbone":"mobilenet_v2","dtype":"float32","image":{"decoder":1,"draft":false,'
    '"interpolation":"bilinear","resize":"stretch"},"input_size_px":[224,192],'
    '"precision":"f32","preprocessing":"tf","type":"featx-spec","version":1,'
    f'"weights_sha256":"{"ab" * 32}"}}'
)
PINNED_DIGEST = "83e453713b4b0dc0bf2163a517163493568c536c43aafe115de427e5827288d3"
CHANGES = [
    {"backbone": "mobilenet"},
    {"weights_sha256": "cd" * 32},
    {"input_size_px": (192, 224)},
    {"preprocessing": "caffe"},
    {"image": ImagePolicy(draft=False, resize="crop")},
    {"image": ImagePolicy(draft=False, interpolation="bicubic")},
    {"image": ImagePolicy()},
    {"image": ImagePolicy(draft=False, decoder=2)},
    {"image": ImagePolicy(draft=False, window=(0, 4095))},
    {"image": ImagePolicy(draft=False, window=(-1000.5, 400))},
    {"image": ImagePolicy(draft=False, window="image")},
    {"dtype": "float16"},
    {"precision": "mixed"},
    {"precision": f"int8:{'0' * 64}"},
    {"views": VIEWS},
    {"views": ViewPolicy(policy="flip-crop-colour-1", seed=8)},
    {"views": ViewPolicy(policy="flip-crop-1", seed=7)},
    {"views": ViewPolicy(policy="flip-crop-colour-1", seed=7, index=1)},
]


def test_the_canonical_text_and_its_digest_never_change():
    assert SPEC.canonical_json() == PINNED_JSON
    assert hashlib.sha256(PINNED_JSON.encode()).hexdigest() == PINNED_DIGEST
    assert SPEC.digest == PINNED_DIGEST
    assert SPEC.name == f"mobilenet_v2-{PINNED_DIGEST[:12]}"


def test_every_part_changes_the_digest():
    changed = [dataclasses.replace(SPEC, **change) for change in CHANGES]
    assert len({spec.digest for spec in [SPEC, *changed]}) == len(CHANGES) + 1
    touched = {part for change in CHANGES for part in change}
    assert touched == {field.name for field in dataclasses.fields(FeatureSpec)}


def test_a_window_is_named_only_where_it_is_set_and_has_one_text():
    assert "window" not in ImagePolicy().to_dict()
    assert ImagePolicy(window="image").to_dict()["window"] == "image"
    same = [ImagePolicy(window=ends) for ends in ((0, 4095), [0.0, 4095], (False, "4095"))]
    assert len(set(same)) == 1
    texts = {dataclasses.replace(SPEC, image=policy).canonical_json() for policy in same}
    assert len(texts) == 1
    assert '"resize":"stretch","window":[0.0,4095.0]}' in texts.pop()


@pytest.mark.parametrize("change", [{}, *CHANGES])
def test_a_round_trip_through_json_gives_the_same_specification(change):
    spec = dataclasses.replace(SPEC, **change)
    again = FeatureSpec.from_dict(json.loads(spec.canonical_json()))
    assert again == spec
    assert again.digest == spec.digest
    assert hash(again) == hash(spec)


def test_the_text_is_ascii_whatever_the_name():
    spec = dataclasses.replace(SPEC, backbone="file:муха")
    assert spec.canonical_json().isascii()
    assert FeatureSpec.from_dict(json.loads(spec.canonical_json())) == spec


@pytest.mark.parametrize("part", sorted(SPEC.to_dict()))
def test_a_missing_part_is_an_error(part):
    data = SPEC.to_dict()
    del data[part]
    with pytest.raises(CacheFormatError, match=f"{part}|expected a feature spec|version None"):
        FeatureSpec.from_dict(data)


@pytest.mark.parametrize("part", sorted(ImagePolicy().to_dict()))
def test_a_missing_part_of_the_image_policy_is_an_error(part):
    data = SPEC.to_dict()
    del data["image"][part]
    with pytest.raises(CacheFormatError, match="does not know"):
        FeatureSpec.from_dict(data)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("backbone", None),
        ("backbone", 5),
        ("weights_sha256", ["ab"]),
        ("input_size_px", 224),
        ("input_size_px", "24"),
        ("input_size_px", [224]),
        ("input_size_px", [224, 192, 3]),
        ("input_size_px", [224, None]),
        ("input_size_px", [224.5, 192]),
        ("preprocessing", 1),
        ("image", "stretch"),
        ("image", None),
        ("image", {**ImagePolicy().to_dict(), "resize": "squeeze"}),
        ("image", {**ImagePolicy().to_dict(), "interpolation": "cubic"}),
        ("image", {**ImagePolicy().to_dict(), "sharpen": True}),
        ("image", {**ImagePolicy().to_dict(), "window": None}),
        ("image", {**ImagePolicy().to_dict(), "window": [4095, 0]}),
        ("image", {**ImagePolicy().to_dict(), "window": [0, 4095]}),
        ("image", {**ImagePolicy().to_dict(), "window": "all"}),
        ("views", {"seed": 1}),
        ("views", 5),
        ("views", {}),
        ("views", {**VIEWS.to_dict(), "policy": "flip-crop-colour-0"}),
        ("views", {**VIEWS.to_dict(), "policy": None}),
        ("views", {**VIEWS.to_dict(), "seed": 1.0}),
        ("views", {**VIEWS.to_dict(), "index": -1}),
        ("views", {"policy": "flip-1", "seed": 0}),
        ("views", {**VIEWS.to_dict(), "count": 4}),
        ("quantised", True),
    ],
)
def test_a_mistyped_or_unknown_part_is_an_error(part, value):
    with pytest.raises(
        CacheFormatError, match="damaged (feature spec|view)|does not know|seed of a view, received"
    ):
        FeatureSpec.from_dict({**SPEC.to_dict(), part: value})


@pytest.mark.parametrize(
    "data", [None, [], "featx-spec", {}, {"type": "featx-shard", "version": 1}]
)
def test_what_is_no_specification_is_an_error(data):
    with pytest.raises(CacheFormatError, match="expected a feature specification, received type"):
        FeatureSpec.from_dict(data)


def test_a_specification_from_the_future_asks_for_an_upgrade():
    with pytest.raises(CacheFormatError, match=r"version 2 is not known.*upgrade featx"):
        FeatureSpec.from_dict({**SPEC.to_dict(), "version": 2})


def test_view_policies_are_checked():
    assert ViewPolicy() == ViewPolicy(policy="flip-crop-colour-1", seed=0, index=0)
    assert ViewPolicy.from_dict(VIEWS.to_dict()) == VIEWS
    with pytest.raises(UnknownNameError, match=r"unknown view policy 'flip-crop-color-1': did you"):
        ViewPolicy(policy="flip-crop-color-1")
    with pytest.raises(DatasetError, match="index of a view must be .* from 0 on, received -1"):
        ViewPolicy(index=-1)
    with pytest.raises(DatasetError, match="seed of a view must be .* from 0 on, received True"):
        ViewPolicy(seed=True)


def test_the_rules_behind_the_names_of_views_never_change():
    rows = {name: dataclasses.astuple(rule) for name, rule in AUGMENTATIONS.items()}
    assert rows == {
        "flip-1": (1.0, 1.0, 1.0, 0.0),
        "flip-crop-1": (0.5, 0.35, 4 / 3, 0.0),
        "flip-crop-colour-1": (0.5, 0.35, 4 / 3, 0.2),
    }


def test_image_policies_are_checked():
    with pytest.raises(DatasetError, match=r"resize must be one of .*'crop'.* received 'squeeze'"):
        ImagePolicy(resize="squeeze")
    with pytest.raises(DatasetError, match=r"interpolation must be one of .* received 'cubic'"):
        ImagePolicy(interpolation="cubic")


@pytest.mark.parametrize(
    ("text", "folder"),
    [
        ("mobilenet_v2", "mobilenet_v2"),
        ("file:my model", "file-my-model"),
        ("file:муха", "file-муха"),
        ("file:蜂", "file-蜂"),
        ("../../etc/passwd", "etc-passwd"),
        ("..", "unnamed"),
        ("", "unnamed"),
        ("a\0b\\c", "a-b-c"),
    ],
)
def test_folder_names_are_safe_and_keep_every_script(text, folder):
    assert folder_name(text) == folder


def test_names_that_share_a_folder_name_still_name_spaces_apart():
    one, two = (dataclasses.replace(SPEC, backbone=name) for name in ("file:a b", "file:a-b"))
    assert folder_name(one.backbone) == folder_name(two.backbone)
    assert one.name != two.name


def test_a_long_name_is_cut():
    assert len(folder_name("x" * 300)) == 80


@pytest.mark.parametrize(
    ("part", "value"),
    [("dtype", "banana"), ("precision", "f64"), ("version", True), ("input_size_px", [1.0, 2.0])],
)
def test_values_of_another_kind_are_refused(part, value):
    spec = FeatureSpec(
        backbone="tiny", weights_sha256="0" * 64, input_size_px=(64, 64), preprocessing="tf"
    )
    with pytest.raises(CacheFormatError, match="specification"):
        FeatureSpec.from_dict(spec.to_dict() | {part: value})
