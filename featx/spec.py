"""What identifies a feature: the specification that names a space of the cache.

Two features may stand for each other only if everything that decides their values is equal.
`FeatureSpec` holds exactly that, and nothing else: neither paths nor labels (they belong to the
dataset), nor the engine (provenance: on a CPU every engine agrees at ``f32`` with Keras to 1e-4
relative).
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, TypedDict, get_args

from featx.exceptions import CacheFormatError, DatasetError, FeaturesError, UnknownNameError, reason

Resize = Literal["stretch", "crop"]
Precision: TypeAlias = str
"""One of `PRECISIONS`, or ``int8:`` with the digest of a quantised network."""
PRECISIONS = ("f32", "bf16", "f16", "mixed")
HALVES = PRECISIONS[1:3]
"""The half precisions of processors."""
INT8 = "int8"
StorageDtype = Literal["float32", "float16"]
Window: TypeAlias = tuple[float, float] | Literal["image"]
"""The values that become black and white, or ``"image"`` for the extremes of each image."""

_RESIZES = ("stretch", "crop")
_INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")


@dataclass(frozen=True, kw_only=True, slots=True)
class ImagePolicy:
    """How the bytes of an image file become RGB pixels of the network's size.

    Parameters
    ----------
    resize : {"stretch", "crop"}, default "stretch"
        ``stretch`` ignores the aspect ratio (as Keras's ``load_img`` does), ``crop`` scales the
        shorter side and cuts the centre.
    interpolation : {"nearest", "bilinear", "bicubic", "lanczos"}, default "bilinear"
        Pillow's filter of that name (antialiased when shrinking).
    draft : bool, default True
        Let the JPEG decoder shrink by 2, 4 or 8 while it decodes, never below twice the input size.
        Several times as fast on photographs of a camera, with slightly other pixels.
    decoder : int, default 1
        Version of the rules in `featx.images.decode`; raised when a rule changes pixel values.
    window : tuple of two float, "image" or None, default None
        For images of more than 8 bits a sample: the values that become black and white, such as
        ``(0, 4095)``; what lies between is mapped linearly, what lies beyond is clipped. With
        ``"image"`` they are the lowest and the highest value of each image. Images of 8 bits stay
        as they are.

    Examples
    --------
    >>> ImagePolicy(window=(0, 4095)).to_dict()["window"]
    [0.0, 4095.0]
    """

    resize: Resize = "stretch"
    interpolation: str = "bilinear"
    draft: bool = True
    decoder: int = 1
    window: Window | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "window", _as_window(self.window))
        if self.resize not in _RESIZES:
            raise DatasetError(f"resize must be one of {_RESIZES}, received {self.resize!r}")
        if self.interpolation not in _INTERPOLATIONS:
            raise DatasetError(
                f"interpolation must be one of {_INTERPOLATIONS}, received {self.interpolation!r}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the policy as JSON types, without a window where none is set."""
        out: dict[str, Any] = {
            "decoder": self.decoder,
            "draft": self.draft,
            "interpolation": self.interpolation,
            "resize": self.resize,
        }
        if self.window is not None:
            out["window"] = list(self.window) if isinstance(self.window, tuple) else self.window
        return out


def _as_window(value: object) -> Window | None:
    """Return a window with its ends as floats, so that equal ones have one text."""
    if value is None or value == "image":
        return value
    if isinstance(value, tuple | list) and len(value) == 2:
        try:
            low, high = map(float, value)
        except (TypeError, ValueError, OverflowError):
            low = high = math.nan
        # The difference of the largest numbers is infinite.
        if low < high and math.isfinite(high - low):
            return low, high
    raise DatasetError(
        "window must be 'image' or two finite numbers, the lower one first, such as (0, 4095), "
        f"received {value!r}"
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Augmentation:
    """What may be drawn for a view; a row of `AUGMENTATIONS`.

    Parameters
    ----------
    flip : float
        Probability of a mirror image.
    least_area : float, default 1.0
        Smallest part of the picture that is cut out and resized; 1 for no cutting.
    most_stretch : float, default 1.0
        Largest ratio of the sides of what is cut out, relative to the whole; its reciprocal is the
        smallest.
    colour : float, default 0.0
        Brightness, contrast and saturation are each multiplied by 1 - `colour` to 1 + `colour`.
    """

    flip: float
    least_area: float = 1.0
    most_stretch: float = 1.0
    colour: float = 0.0

    @property
    def is_drawn(self) -> bool:
        """Whether one view of an image differs from the next."""
        return 0 < self.flip < 1 or self.least_area < 1 or self.colour > 0


# A row never changes, as caches are named by it: another rule is another name. With 0.35 of the
# area and 4:3, each side keeps at least sqrt(0.35 * 3 / 4) = 0.51: what is cut out always holds the
# centre of the picture, where the subject is. A mirror image alone is drawn with certainty: half of
# the views would be the picture itself otherwise.
AUGMENTATIONS: dict[str, Augmentation] = {
    "flip-1": Augmentation(flip=1.0),
    "flip-crop-1": Augmentation(flip=0.5, least_area=0.35, most_stretch=4 / 3),
    "flip-crop-colour-1": Augmentation(flip=0.5, least_area=0.35, most_stretch=4 / 3, colour=0.2),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewPolicy:
    """One seeded augmentation of every image: a space of the cache holds one view.

    Parameters
    ----------
    policy : str, default "flip-crop-colour-1"
        Name of a row of `AUGMENTATIONS`, which is its version too.
    seed : int, default 0
        Seed of the drawing; a view is a function of policy, seed, index and key of the image.
    index : int, default 0
        Which of several views; each is of its own, so that further ones leave the first as they
        are. ``flip-1`` has one view, whatever seed and index.

    Examples
    --------
    >>> [ViewPolicy(index=i).to_dict()["index"] for i in range(3)]
    [0, 1, 2]
    """

    policy: str = "flip-crop-colour-1"
    seed: int = 0
    index: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.policy, str):
            raise DatasetError(f"expected the name of a view policy, received {self.policy!r}")
        if self.policy not in AUGMENTATIONS:
            raise UnknownNameError("view policy", self.policy, AUGMENTATIONS)
        for name, value in (("seed", self.seed), ("index", self.index)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise DatasetError(
                    f"{name} of a view must be a whole number from 0 on, received {value!r}"
                )

    def to_dict(self) -> dict[str, Any]:
        """Return the policy as JSON types."""
        return {"index": self.index, "policy": self.policy, "seed": self.seed}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ViewPolicy:
        """Read what `to_dict` wrote.

        Raises
        ------
        CacheFormatError
            If a part is missing, unknown, or of another type.
        """
        parts = sorted(data) if isinstance(data, dict) else data
        if parts != ["index", "policy", "seed"]:
            raise CacheFormatError(f"expected index, policy and seed of a view, received {parts!r}")
        try:
            return cls(**data)
        except (DatasetError, UnknownNameError) as error:
            raise CacheFormatError(f"damaged view policy: {error}") from error


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureSpec:
    """Everything that decides the value of a feature.

    Parameters
    ----------
    backbone : str
        Name of the architecture, for example ``"mobilenet_v2"``.
    weights_sha256 : str
        SHA-256 of the weights file (64 hexadecimal digits), or of the recipe for random weights.
    input_size_px : tuple of two int
        Height and width of the network's input, in pixels.
    preprocessing : str
        Name of the map from pixel values to the network's input, see `featx.backbones.catalog`.
    image : ImagePolicy
        Decoding and resizing.
    dtype : {"float32", "float16"}, default "float32"
        Type in which features are stored.
    precision : str, default "f32"
        Arithmetic of the forward pass: ``f32``; ``bf16`` or ``f16``, of a processor; ``mixed``,
        Keras's half precision; ``int8:`` and the digest of the quantised network.
    views : ViewPolicy or None, default None
        Set for a space that holds one augmented view of each image.

    Examples
    --------
    >>> spec = FeatureSpec(backbone="tiny", weights_sha256="0" * 64, input_size_px=(96, 96),
    ...                    preprocessing="tf")
    >>> spec.name
    'tiny-6511e2b59f11'
    >>> FeatureSpec.from_dict(spec.to_dict()) == spec
    True
    """

    backbone: str
    weights_sha256: str
    input_size_px: tuple[int, int]
    preprocessing: str
    image: ImagePolicy = field(default_factory=ImagePolicy)
    dtype: StorageDtype = "float32"
    precision: Precision = "f32"
    views: ViewPolicy | None = None

    def __post_init__(self) -> None:
        dtypes, digest = get_args(StorageDtype), rf"{INT8}:[0-9a-f]{{64}}"
        if self.dtype not in dtypes:
            raise FeaturesError(f"dtype must be one of {dtypes}, received {self.dtype!r}")
        if self.precision not in PRECISIONS and not re.fullmatch(digest, str(self.precision)):
            raise FeaturesError(
                f"precision must be one of {PRECISIONS}, received {self.precision!r}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the specification as JSON types.

        A part that is absent is left out, so that a later version can add parts without renaming
        the spaces that do not use them.
        """
        out: dict[str, Any] = {
            "type": "featx-spec",
            "version": 1,
            "backbone": self.backbone,
            "dtype": self.dtype,
            "image": self.image.to_dict(),
            "input_size_px": list(self.input_size_px),
            "precision": self.precision,
            "preprocessing": self.preprocessing,
            "weights_sha256": self.weights_sha256,
        }
        if self.views is not None:
            out["views"] = self.views.to_dict()
        return out

    def canonical_json(self) -> str:
        """Return the one JSON text of this specification: sorted keys, no spaces, ASCII."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"), ensure_ascii=True)

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON, 64 hexadecimal digits."""
        return hashlib.sha256(self.canonical_json().encode("ascii")).hexdigest()

    @property
    def name(self) -> str:
        """Name of the space's folder: the backbone and the first 12 digits of the digest."""
        return f"{folder_name(self.backbone)}-{self.digest[:12]}"

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> FeatureSpec:
        """Read what `to_dict` wrote.

        Raises
        ------
        CacheFormatError
            If a part is missing, unknown, of another type, or of a later version.
        """
        kind = data.get("type") if isinstance(data, dict) else None
        if kind != "featx-spec":
            raise CacheFormatError(f"expected a feature specification, received type {kind!r}")
        if data.get("version") != 1 or isinstance(data["version"], bool):
            raise CacheFormatError(
                f"specification version {data.get('version')!r} is not known to this featx, which "
                "reads version 1: upgrade featx"
            )
        try:
            views = data.get("views")
            height, width = (int(n) for n in data["input_size_px"])
            spec = cls(
                backbone=str(data["backbone"]),
                weights_sha256=str(data["weights_sha256"]),
                input_size_px=(height, width),
                preprocessing=str(data["preprocessing"]),
                image=ImagePolicy(**data["image"]),
                dtype=data["dtype"],
                precision=data["precision"],
                views=None if views is None else ViewPolicy.from_dict(views),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CacheFormatError(f"damaged feature specification: {reason(error)}") from error
        if spec.canonical_json() != json.dumps(data, sort_keys=True, separators=(",", ":")):
            raise CacheFormatError("the feature specification has parts that featx does not know")
        return spec


def folder_name(text: str) -> str:
    """Return `text` with every character that is unsafe in a file name replaced by ``-``.

    Letters and digits of any script are kept, so that names in other scripts stay apart.

    Examples
    --------
    >>> folder_name("file:my model.keras")
    'file-my-model.keras'
    """
    kept = "".join(c if c.isalnum() or c in "._-" else "-" for c in text)
    return kept.strip(".-")[:80] or "unnamed"


_BETWEEN_TAPS, _BETWEEN_BACKBONES = ",", " + "


class BlockName(TypedDict):
    """What names a block of features, or several side by side; see `joined_name`."""

    backbone: str
    tap: str


def joined_name(parts: Iterable[tuple[str, str]]) -> BlockName:
    """Return the name of blocks side by side, each given by its backbone and tap.

    >>> joined_name([("tiny", "avg"), ("tiny", "max"), ("mobilenet_v2", "avg")])
    {'backbone': 'tiny + mobilenet_v2', 'tap': 'avg,max + avg'}
    """
    taps: dict[str, list[str]] = {}
    for backbone, tap in parts:
        taps.setdefault(backbone, []).append(tap)
    texts = [_BETWEEN_TAPS.join(names) for names in taps.values()]
    return {"backbone": _BETWEEN_BACKBONES.join(taps), "tap": _BETWEEN_BACKBONES.join(texts)}


def joined_parts(name: BlockName) -> list[tuple[str, str]]:
    """Return backbone and tap of each of the blocks that a name stands for."""
    backbones = name["backbone"].split(_BETWEEN_BACKBONES)
    taps = name["tap"].split(_BETWEEN_BACKBONES)
    if len(backbones) != len(taps):
        return [(name["backbone"], name["tap"])]
    pairs = zip(backbones, taps, strict=True)
    return [(backbone, tap) for backbone, texts in pairs for tap in texts.split(_BETWEEN_TAPS)]
