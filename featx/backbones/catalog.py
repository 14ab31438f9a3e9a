"""The backbones that featx knows by name, as a table, and how a name is found in it.

Parameters and feature sizes are those of the network without its top; the published top-1
accuracies (ImageNet, per cent) are quoted from the Keras Applications documentation and, for
MobileNetV3, from the docstring of `keras.applications.MobileNetV3Small`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from featx.exceptions import UnknownNameError

BUNDLED = "tiny"
"""The backbone whose weights come with featx."""

_KERAS_URL = "https://storage.googleapis.com/tensorflow/keras-applications"


@dataclass(frozen=True, slots=True)
class Family:
    """What the networks of one family share."""

    preprocessing: str  # key of `PREPROCESSINGS` for the published weights
    block: str  # regular expression; its first group is the block that a layer belongs to
    folder: str  # where the published weights are, below `url`
    min_size_px: int = 32
    own_preprocessing: str = ""  # for weights that were not trained on ImageNet; else the same
    url: str = _KERAS_URL


FAMILIES: dict[str, Family] = {
    "MobileNet": Family("tf", r"^(conv_pw_\d+)(?:_|$)", "mobilenet"),
    "MobileNetV2": Family("tf", r"^(block_\d+|expanded_conv)_", "mobilenet_v2"),
    "MobileNetV3": Family("none", r"^(expanded_conv(?:_\d+)?)_(?!\d)", "mobilenet_v3"),
    "NASNet": Family("tf", r"^((?:normal_concat|reduction_concat)_\w+)$", "nasnet"),
    "EfficientNet": Family(
        "efficientnet-imagenet",
        r"^(block\d+[a-z])_",
        "",
        own_preprocessing="none",
        url="https://storage.googleapis.com/keras-applications",
    ),
    "EfficientNetV2": Family("none", r"^(block\d+[a-z])_", "efficientnet_v2"),
    "DenseNet": Family("torch", r"^(conv\d+_block\d+)_", "densenet"),
    "ResNet": Family("caffe", r"^(conv\d+_block\d+)_", "resnet"),
    "ResNetV2": Family("tf", r"^(conv\d+_block\d+)_", "resnet"),
    "InceptionV3": Family("tf", r"^(mixed\d+)$", "inception_v3", min_size_px=75),
    "InceptionResNetV2": Family(
        "tf", r"^(block\d+_\d+|mixed_\w+)(?:_|$)", "inception_resnet_v2", min_size_px=75
    ),
    "Xception": Family("tf", r"^(block\d+)_", "xception", min_size_px=71),
    "VGG16": Family("caffe", r"^(block\d+)_", "vgg16"),
    "VGG19": Family("caffe", r"^(block\d+)_", "vgg19"),
    "ConvNeXt": Family("none", r"^convnext_[a-z]+_(stage_\d+_block_\d+)_", "convnext"),
}


@dataclass(frozen=True, slots=True)
class Backbone:
    """One row of the catalogue."""

    name: str
    keras_name: str  # builder in `keras.applications`
    family: str  # key of `FAMILIES`
    input_size_px: int  # height and width for which the published accuracy holds
    features: int  # channels of the last feature map
    parameters: int
    imagenet_top1: float | None  # per cent, None where nothing is published
    weights_file: str  # the published file without top
    weights_hash: str  # its published MD5 or SHA-256, empty where none is published
    weights_remote: str = ""  # the file's name at its address, where it differs
    arguments: tuple[tuple[str, float], ...] = ()  # further arguments of the builder

    @property
    def shared(self) -> Family:
        """What the family shares."""
        return FAMILIES[self.family]

    @property
    def weights_url(self) -> str:
        """Address of the published weights file."""
        name = self.weights_remote or self.weights_file
        return "/".join(part for part in (self.shared.url, self.shared.folder, name) if part)

    @property
    def size_mb(self) -> float:
        """Size of the network without its top, in megabytes of float32."""
        return self.parameters * 4 / 1e6


# fmt: off
# name, builder, family, input px, features, parameters, top-1 %, weights file, its hash, its remote name
_ROWS: tuple[Backbone, ...] = (
    Backbone("tiny", "MobileNetV2", "MobileNetV2", 64, 1280, 1_382_064, None, "tiny.weights.h5", "d0c7648ee2f5330d88ca7ac67b809efddaceb625ed9c8a361b3eafe5720571d2", arguments=(("alpha", 0.75),)),
    Backbone("mobilenet_v3_small", "MobileNetV3Small", "MobileNetV3", 224, 576, 939_120, 68.1, "weights_mobilenet_v3_small_224_1.0_float_no_top_v2.h5", "d3e8ec802a04aa4fc771ee12a9a9b836"),
    Backbone("mobilenet_v2", "MobileNetV2", "MobileNetV2", 224, 1280, 2_257_984, 71.3, "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5", ""),
    Backbone("mobilenet", "MobileNet", "MobileNet", 224, 1024, 3_228_864, 70.4, "mobilenet_1_0_224_tf_no_top.h5", ""),
    Backbone("mobilenet_v3_large", "MobileNetV3Large", "MobileNetV3", 224, 960, 2_996_352, 75.6, "weights_mobilenet_v3_large_224_1.0_float_no_top_v2.h5", "07fb09a5933dd0c8eaafa16978110389"),
    Backbone("nasnet_mobile", "NASNetMobile", "NASNet", 224, 1056, 4_269_716, 74.4, "nasnet_mobile_no_top.h5", "1ed92395b5b598bdda52abe5c0dbfd63", "NASNet-mobile-no-top.h5"),
    Backbone("efficientnet_b0", "EfficientNetB0", "EfficientNet", 224, 1280, 4_049_571, 77.1, "efficientnetb0_notop.h5", "50bc09e76180e00e4465e1a485ddc09d"),
    Backbone("efficientnet_b1", "EfficientNetB1", "EfficientNet", 240, 1280, 6_575_239, 79.1, "efficientnetb1_notop.h5", "74c4e6b3e1f6a1eea24c589628592432"),
    Backbone("efficientnet_b2", "EfficientNetB2", "EfficientNet", 260, 1408, 7_768_569, 80.1, "efficientnetb2_notop.h5", "111f8e2ac8aa800a7a99e3239f7bfb39"),
    Backbone("efficientnet_b3", "EfficientNetB3", "EfficientNet", 300, 1536, 10_783_535, 81.6, "efficientnetb3_notop.h5", "af6d107764bb5b1abb91932881670226"),
    Backbone("efficientnet_b4", "EfficientNetB4", "EfficientNet", 380, 1792, 17_673_823, 82.9, "efficientnetb4_notop.h5", "ebc24e6d6c33eaebbd558eafbeedf1ba"),
    Backbone("efficientnet_b5", "EfficientNetB5", "EfficientNet", 456, 2048, 28_513_527, 83.6, "efficientnetb5_notop.h5", "38879255a25d3c92d5e44e04ae6cec6f"),
    Backbone("efficientnet_b6", "EfficientNetB6", "EfficientNet", 528, 2304, 40_960_143, 84.0, "efficientnetb6_notop.h5", "9ecce42647a20130c1f39a5d4cb75743"),
    Backbone("efficientnet_b7", "EfficientNetB7", "EfficientNet", 600, 2560, 64_097_687, 84.3, "efficientnetb7_notop.h5", "cbcfe4450ddf6f3ad90b1b398090fe4a"),
    Backbone("efficientnet_v2_b0", "EfficientNetV2B0", "EfficientNetV2", 224, 1280, 5_919_312, 78.7, "efficientnetv2-b0_notop.h5", "893217f2bb855e2983157299931e43ff"),
    Backbone("efficientnet_v2_b1", "EfficientNetV2B1", "EfficientNetV2", 240, 1280, 6_931_124, 79.8, "efficientnetv2-b1_notop.h5", "0e80663031ca32d657f9caa404b6ec37"),
    Backbone("efficientnet_v2_b2", "EfficientNetV2B2", "EfficientNetV2", 260, 1408, 8_769_374, 80.5, "efficientnetv2-b2_notop.h5", "1dfe2e7a5d45b6632553a8961ea609eb"),
    Backbone("efficientnet_v2_b3", "EfficientNetV2B3", "EfficientNetV2", 300, 1536, 12_930_622, 82.0, "efficientnetv2-b3_notop.h5", "f6abf7b5849ac99a89b50dd3fd532856"),
    Backbone("efficientnet_v2_s", "EfficientNetV2S", "EfficientNetV2", 384, 1280, 20_331_360, 83.9, "efficientnetv2-s_notop.h5", "af0682fb74e8c54910f2d4393339c070"),
    Backbone("efficientnet_v2_m", "EfficientNetV2M", "EfficientNetV2", 480, 1280, 53_150_388, 85.3, "efficientnetv2-m_notop.h5", "1b8dc055df72dde80d614482840fe342"),
    Backbone("efficientnet_v2_l", "EfficientNetV2L", "EfficientNetV2", 480, 1280, 117_746_848, 85.7, "efficientnetv2-l_notop.h5", "b0b66b5c863aef5b46e8608fe1711615"),
    Backbone("densenet121", "DenseNet121", "DenseNet", 224, 1024, 7_037_504, 75.0, "densenet121_weights_tf_dim_ordering_tf_kernels_notop.h5", "30ee3e1110167f948a6b9946edeeb738"),
    Backbone("densenet169", "DenseNet169", "DenseNet", 224, 1664, 12_642_880, 76.2, "densenet169_weights_tf_dim_ordering_tf_kernels_notop.h5", "b8c4d4c20dd625c148057b9ff1c1176b"),
    Backbone("densenet201", "DenseNet201", "DenseNet", 224, 1920, 18_321_984, 77.3, "densenet201_weights_tf_dim_ordering_tf_kernels_notop.h5", "c13680b51ded0fb44dff2d8f86ac8bb1"),
    Backbone("resnet50", "ResNet50", "ResNet", 224, 2048, 23_587_712, 74.9, "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5", "4d473c1dd8becc155b73f8504c6f6626"),
    Backbone("resnet101", "ResNet101", "ResNet", 224, 2048, 42_658_176, 76.4, "resnet101_weights_tf_dim_ordering_tf_kernels_notop.h5", "88cf7a10940856eca736dc7b7e228a21"),
    Backbone("resnet152", "ResNet152", "ResNet", 224, 2048, 58_370_944, 76.6, "resnet152_weights_tf_dim_ordering_tf_kernels_notop.h5", "ee4c566cf9a93f14d82f913c2dc6dd0c"),
    Backbone("resnet50_v2", "ResNet50V2", "ResNetV2", 224, 2048, 23_564_800, 76.0, "resnet50v2_weights_tf_dim_ordering_tf_kernels_notop.h5", "fac2f116257151a9d068a22e544a4917"),
    Backbone("resnet101_v2", "ResNet101V2", "ResNetV2", 224, 2048, 42_626_560, 77.2, "resnet101v2_weights_tf_dim_ordering_tf_kernels_notop.h5", "c0ed64b8031c3730f411d2eb4eea35b5"),
    Backbone("resnet152_v2", "ResNet152V2", "ResNetV2", 224, 2048, 58_331_648, 78.0, "resnet152v2_weights_tf_dim_ordering_tf_kernels_notop.h5", "ed17cf2e0169df9d443503ef94b23b33"),
    Backbone("inception_v3", "InceptionV3", "InceptionV3", 299, 2048, 21_802_784, 77.9, "inception_v3_weights_tf_dim_ordering_tf_kernels_notop.h5", "bcbd6486424b2319ff4ef7d526e38f63"),
    Backbone("inception_resnet_v2", "InceptionResNetV2", "InceptionResNetV2", 299, 1536, 54_336_736, 80.3, "inception_resnet_v2_weights_tf_dim_ordering_tf_kernels_notop.h5", "d19885ff4a710c122648d3b5c3b684e4"),
    Backbone("xception", "Xception", "Xception", 299, 2048, 20_861_480, 79.0, "xception_weights_tf_dim_ordering_tf_kernels_notop.h5", "b0042744bf5b25fce3cb969f33bebb97"),
    Backbone("vgg16", "VGG16", "VGG16", 224, 512, 14_714_688, 71.3, "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5", "6d6bbae143d832006294945121d1f1fc"),
    Backbone("vgg19", "VGG19", "VGG19", 224, 512, 20_024_384, 71.3, "vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5", "253f8cb515780f3b799900260a226db6"),
    Backbone("nasnet_large", "NASNetLarge", "NASNet", 331, 4032, 84_916_818, 82.5, "nasnet_large_no_top.h5", "d81d89dc07e6e56530c4e77faddd61b5", "NASNet-large-no-top.h5"),
    Backbone("convnext_tiny", "ConvNeXtTiny", "ConvNeXt", 224, 768, 27_820_128, 81.3, "convnext_tiny_notop.h5", "d547c096cabd03329d7be5562c5e14798aa39ed24b474157cef5e85ab9e49ef1"),
    Backbone("convnext_small", "ConvNeXtSmall", "ConvNeXt", 224, 768, 49_454_688, 82.3, "convnext_small_notop.h5", "6fc8009faa2f00c1c1dfce59feea9b0745eb260a7dd11bee65c8e20843da6eab"),
    Backbone("convnext_base", "ConvNeXtBase", "ConvNeXt", 224, 1024, 87_566_464, 85.3, "convnext_base_notop.h5", "40a20c5548a5e9202f69735ecc06c990e6b7c9d2de39f0361e27baeb24cb7c45"),
    Backbone("convnext_large", "ConvNeXtLarge", "ConvNeXt", 224, 1536, 196_230_336, 86.3, "convnext_large_notop.h5", "96f02b6f0753d4f543261bc9d09bed650f24dd6bc02ddde3066135b63d23a1cd"),
    Backbone("convnext_xlarge", "ConvNeXtXLarge", "ConvNeXt", 224, 2048, 348_147_968, 86.7, "convnext_xlarge_notop.h5", "de3f8a54174130e0cecdc71583354753d557fcf1f4487331558e2a16ba0cfe05"),
)
# fmt: on

CATALOG: dict[str, Backbone] = {row.name: row for row in _ROWS}
"""Backbones by name, in the order in which `featx backbones` lists them."""


def find_backbone(name: str) -> Backbone:
    """Return the row for featx's name or that of the Keras builder; case, - and _ do not matter."""
    plain = _plain(name)
    # Our names before Keras's: one builder may serve several rows, with other arguments.
    by_builder = {_plain(row.keras_name): row for row in _ROWS if not row.arguments}
    row = {_plain(row.name): row for row in _ROWS}.get(plain) or by_builder.get(plain)
    if row is not None:
        return row
    raise UnknownNameError(
        "backbone",
        name,
        CATALOG,
        hint="A network of your own is 'file:PATH.keras', 'onnx:PATH.onnx', 'savedmodel:FOLDER' or "
        "'hub:FOLDER'; `featx backbones` shows the table",
    )


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
