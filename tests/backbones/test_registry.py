import pytest

from featx.backbones.catalog import CATALOG
from featx.backbones.registry import backbone_names, find_backbone
from featx.backbones.weights import BUNDLED
from featx.exceptions import UnknownNameError


def test_names_are_listed_in_the_order_of_the_catalogue():
    assert backbone_names() == list(CATALOG)


@pytest.mark.parametrize("name", list(CATALOG))
def test_a_backbone_is_found_by_its_name_and_by_that_of_keras(name):
    row = CATALOG[name]
    spellings = {name, name.upper(), name.replace("_", "-")}
    if name != BUNDLED:
        spellings.add(row.keras_name)
    assert {find_backbone(spelling).name for spelling in spellings} == {name}


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("mobilnet_v2", "mobilenet_v2"),
        ("resnet_5O", "resnet50"),
        ("efficentnet_b0", "efficientnet_b0"),
        ("ConvNextTinny", "convnext_tiny"),
    ],
)
def test_a_mistyped_name_is_answered_with_the_nearest(typed, meant):
    with pytest.raises(
        UnknownNameError, match=rf"unknown backbone '{typed}': did you mean.*'{meant}'"
    ):
        find_backbone(typed)


def test_an_unknown_name_is_answered_with_the_table_and_the_way_to_an_own_network():
    with pytest.raises(UnknownNameError, match=r"Known: .*vgg16.*'file:PATH\.keras'"):
        find_backbone("zzzz")
