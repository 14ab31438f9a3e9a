"""Images: datasets of files and arrays, one decode policy, an ordered parallel loader."""

from featx.images.dataset import ImageDataset
from featx.images.decode import (
    MAX_PIXELS,
    array_to_rgb,
    decode_image,
    decode_rgb,
    decode_sizes,
    fit_array,
    resize_rgb,
)
from featx.images.files import IMAGE_EXTENSIONS, hash_file
from featx.images.loader import Loaded, Target, array_key, load_images

__all__ = [
    "IMAGE_EXTENSIONS",
    "MAX_PIXELS",
    "ImageDataset",
    "Loaded",
    "Target",
    "array_key",
    "array_to_rgb",
    "decode_image",
    "decode_rgb",
    "decode_sizes",
    "fit_array",
    "hash_file",
    "load_images",
    "resize_rgb",
]
