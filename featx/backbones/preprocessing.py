"""What is done to pixels in front of a network: an affine map by channel, by name or by numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from featx.exceptions import BackboneError, UnknownNameError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_SAME = 1e-3
_NUMBERS = re.compile(r"(mean|std)=([^,]+(?:,[^,]+){0,2})")
_WORDS = ("rgb", "bgr", "nchw", "nhwc", "bytes")


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """``input = pixel * scale + offset`` by channel, of pixels from 0 to 255."""

    scale: tuple[float, ...]  # scale and offset are in the channel order of the network
    offset: tuple[float, ...]
    summary: str
    bgr: bool = False  # whether the network wants blue first
    layout: str = ""  # "nchw" or "nhwc", where the network itself leaves it open

    def is_near(self, other: Preprocessing) -> bool:
        """Tell whether the network is given the same, compared at both ends of the pixels."""
        return (self.bgr, self.layout) == (other.bgr, other.layout) and all(
            abs(a * pixel + b - (c * pixel + d)) <= _SAME * max(1.0, abs(c) * 255)
            for a, b, c, d in zip(self.scale, self.offset, other.scale, other.offset, strict=True)
            for pixel in (0, 255)
        )


PREPROCESSINGS: dict[str, Preprocessing] = {
    "none": Preprocessing((1.0,) * 3, (0.0,) * 3, "pixels from 0 to 255"),
    "unit": Preprocessing((1 / 255,) * 3, (0.0,) * 3, "pixels from 0 to 1"),
    "tf": Preprocessing((1 / 127.5,) * 3, (-1.0,) * 3, "pixels from -1 to 1"),
    "torch": Preprocessing(
        tuple(1 / (255 * std) for std in _IMAGENET_STD),
        tuple(-mean / std for mean, std in zip(IMAGENET_MEAN, _IMAGENET_STD, strict=True)),
        "ImageNet's mean and deviation",
    ),
    "caffe": Preprocessing(
        (1.0,) * 3, (-103.939, -116.779, -123.68), "ImageNet's mean, blue first", bgr=True
    ),
    # Keras's EfficientNet, and only it, divides once more by sqrt(std) after its Normalization
    # layer when it is built with weights="imagenet". An affine map of the pixels around the mean
    # does the same before that layer, so that one architecture serves all weights.
    "efficientnet-imagenet": Preprocessing(
        tuple(std**-0.5 for std in _IMAGENET_STD),
        tuple(
            255.0 * mean * (1.0 - std**-0.5)
            for mean, std in zip(IMAGENET_MEAN, _IMAGENET_STD, strict=True)
        ),
        "EfficientNet's rescaling for ImageNet weights",
    ),
}
"""Preprocessings by name: ``tf``, ``torch`` and ``caffe`` are the modes of Keras Applications."""
CHOICES = "none, unit, tf, torch, caffe or numbers such as mean=127/std=128"
"""What a user may ask for."""


def find_preprocessing(text: str) -> tuple[str, Preprocessing]:
    """Return the canonical name of a preprocessing and what it does.

    `text` is a name of `PREPROCESSINGS`, or parts with slashes between: a name, or ``mean=M`` and
    ``std=S``, each one number or three, in the channel order of the network; ``bgr`` where blue is
    first; ``nchw`` or ``nhwc`` where a network leaves the order of its axes open. Mean and
    deviation are of pixels from 0 to 255; where none is above 1, of pixels from 0 to 1, unless
    there is ``bytes``.

    >>> find_preprocessing("mean=0.5/std=0.5")[0]
    'tf'
    >>> find_preprocessing("mean=127/std=128/bgr")[0]
    'mean=127/std=128/bgr'
    """
    if text in PREPROCESSINGS:
        return text, PREPROCESSINGS[text]
    first, *rest = parts = [part.strip().lower() for part in text.split("/")]
    base = PREPROCESSINGS.get(first)
    parts = rest if base else parts
    words = [part for part in parts if part in _WORDS]
    numbers = [_NUMBERS.fullmatch(part) for part in parts if part not in _WORDS]
    if "=" not in text and numbers:
        raise UnknownNameError(
            "preprocessing", text, PREPROCESSINGS, hint="Numbers are given as mean=127/std=128"
        )
    given: dict[str, list[float]] = {}
    for match in numbers:
        given[match[1] if match else ""] = _three(match[2].split(",")) if match else []
    layout = [word for word in words if word[0] == "n"]
    colour = [word for word in words if word in ("rgb", "bgr")]
    if (
        len(given) != len(numbers)
        or not all(given.values())
        or (base and given)
        or min(given.get("std", [1.0])) <= 0
        or max(len(layout), len(colour), words.count("bytes")) > 1
    ):
        raise BackboneError(
            "expected a preprocessing such as mean=123.7,116.3,103.5/std=58.4,57.1,57.4/bgr, each "
            f"part once, every std above 0, received {text!r}"
        )
    if base:
        std = [1 / scale for scale in base.scale]
        mean = [-offset * s for offset, s in zip(base.offset, std, strict=True)]
        return named_preprocessing(
            mean, std, bgr=base.bgr or "bgr" in words, layout="".join(layout)
        )
    mean, std = given.get("mean", [0.0] * 3), given.get("std", [1.0] * 3)
    if given and _are_small(mean, std) and "bytes" not in words:
        mean, std = [value * 255 for value in mean], [value * 255 for value in std]
    return named_preprocessing(mean, std, bgr="bgr" in words, layout="".join(layout))


def named_preprocessing(
    mean: Sequence[float], std: Sequence[float], *, bgr: bool = False, layout: str = ""
) -> tuple[str, Preprocessing]:
    """Return the canonical name of ``(pixel - mean) / std``, pixels from 0 to 255, and the map."""
    # As the name has them, so that reading it gives the same.
    mean, std = ([float(f"{value:.9g}") + 0.0 for value in values] for values in (mean, std))
    scale = tuple(1 / value for value in std)
    offset = tuple(-m / s for m, s in zip(mean, std, strict=True))
    parts = [f"{name}={_listed(values)}" for name, values in (("mean", mean), ("std", std))]
    said = {"bytes": _are_small(mean, std), "bgr": bgr, layout: bool(layout)}
    text = "/".join([*parts, *(word for word, there in said.items() if there)])
    order = ", blue first" if bgr else ""
    summary = f"(pixel - {_listed(mean)}) / {_listed(std)}{order}"
    made = Preprocessing(scale, offset, summary, bgr, layout)
    known = [name for name, rule in PREPROCESSINGS.items() if rule.is_near(made)]
    return (known[0], PREPROCESSINGS[known[0]]) if known else (text, made)


def _are_small(mean: Sequence[float], std: Sequence[float]) -> bool:
    return max(*map(abs, mean), *std) <= 1


def _three(values: Sequence[str]) -> list[float]:
    """Return a number for each channel, none where there are two, or texts that are no numbers."""
    try:
        numbers = [float(value) for value in values]
    except ValueError:
        return []
    finite = all(abs(number) < 1e6 for number in numbers)
    return numbers * (3 // len(numbers)) if finite and len(numbers) in (1, 3) else []


def _listed(values: Sequence[float]) -> str:
    texts = [f"{value:.9g}" for value in values]
    return texts[0] if len(set(texts)) == 1 else ",".join(texts)
