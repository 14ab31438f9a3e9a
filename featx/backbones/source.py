"""A backbone, its weights and its input, resolved before any numerical framework is imported."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path

from featx.backbones.catalog import Backbone, find_backbone
from featx.backbones.networks import (
    NETWORK_KINDS,
    NetworkKind,
    Size,
    StatedInput,
    locate_network,
    network_name,
)
from featx.backbones.preprocessing import CHOICES, find_preprocessing
from featx.backbones.weights import (
    Weights,
    WeightsPath,
    file_sha256,
    is_tuned_file,
    read_tuned,
    resolve_weights,
    weights_preprocessing,
)
from featx.exceptions import BackboneError
from featx.spec import FeatureSpec, ImagePolicy, Precision, StorageDtype

_PLACES = {"nchw": "first", "nhwc": "last"}
_LOGGER = logging.getLogger("featx.preprocessing")
_logged: set[str] = set()


@dataclass(frozen=True, slots=True)
class BackboneSource:
    """A resolved backbone, a plain value: all that it takes to build its network, and its name."""

    name: str  # in the catalogue, or ``file:STEM``, ``savedmodel:STEM``, ``hub:STEM``
    row: Backbone | None  # of the catalogue; None for a network of one's own
    weights: Weights
    input_size_px: Size  # height and width
    preprocessing: str  # a canonical name of `find_preprocessing`
    note: str = field(default="", compare=False)  # which preprocessing was chosen, and why
    doubtful: bool = field(default=False, compare=False)  # whether it may be the wrong one
    trust: bool = field(default=False, compare=False)  # whether the caller trusts what it may do

    @property
    def kind(self) -> str:
        """Key of `NETWORK_KINDS`, empty for a name of the catalogue."""
        prefix, colon, _ = self.name.partition(":")
        return prefix if colon else ""

    @property
    def is_native(self) -> bool:
        """Whether OpenVINO reads the network itself, and Keras cannot."""
        return bool(self.kind) and NETWORK_KINDS[self.kind].native

    @property
    def address(self) -> str:
        """The name that finds this backbone from any folder: its path is absolute."""
        path = self.weights.path
        return f"{self.kind}:{path.resolve()}" if self.kind and path is not None else self.name

    @property
    def weights_choice(self) -> str | None:
        """The weights to ask for together with `address`: a path, ``random:SEED`` or None."""
        if self.kind or self.weights.source in ("imagenet", "bundled"):
            return None
        path = self.weights.path
        return self.weights.source if path is None else str(path.resolve())

    def absolute(self) -> BackboneSource:
        """Return a backbone whose path means the same in another folder."""
        path = self.weights.path
        if path is None:
            return self
        return replace(self, weights=replace(self.weights, path=path.absolute()))

    def digest_now(self) -> str:
        """Return the digest of the weights as they are in their file; ``OSError`` without it."""
        path = self.weights.path
        if path is None:
            return self.weights.sha256
        if is_tuned_file(path):
            return read_tuned(path).sha256
        return NETWORK_KINDS[self.kind].digest(path) if self.kind else file_sha256(path)

    def spec(
        self,
        *,
        image: ImagePolicy | None = None,
        dtype: StorageDtype = "float32",
        precision: Precision = "f32",
    ) -> FeatureSpec:
        """Return the specification of its features."""
        return FeatureSpec(
            backbone=self.name,
            weights_sha256=self.weights.sha256,
            input_size_px=self.input_size_px,
            preprocessing=self.preprocessing,
            image=image or ImagePolicy(),
            dtype=dtype,
            precision=precision,
        )


def resolve_backbone(
    name: str,
    *,
    weights: WeightsPath | None = None,
    input_size: int | Size | None = None,
    preprocessing: str | None = None,
    trust: bool = False,
) -> BackboneSource:
    """Settle a backbone, its weights, its input size and its preprocessing.

    `name` is of the catalogue, or a network of one's own: ``file:PATH.keras``, ``onnx:PATH.onnx``,
    either with ``.featx`` (a model with its network in it), ``savedmodel:FOLDER`` (TensorFlow) or
    ``hub:FOLDER`` (a preset of KerasHub). `weights` are as
    `featx.backbones.weights.resolve_weights` takes them. The input size is in pixels, by default
    the backbone's own.

    A `preprocessing` is only for networks of one's own: ``none`` (pixels 0 to 255), ``unit``,
    ``tf``, ``torch``, ``caffe`` or numbers such as ``mean=127/std=128``, see
    `featx.backbones.preprocessing.find_preprocessing`. By default it is ``none`` for ``file:``,
    what the files state for ``onnx:`` and ``hub:``, and for ``savedmodel:`` ``none`` where its
    graph rescales pixels itself or takes uint8, else ``unit``, TensorFlow Hub's convention.
    `log_preprocessing` says what was chosen.

    `trust` is needed for ``savedmodel:``, whose graph may do anything, such as read and write
    files. Without it nothing in the folder is read.
    """
    if name.startswith("import:"):
        raise BackboneError(
            f"the features of {name!r} were made elsewhere: featx cannot make them from images; "
            "give it features, an array of shape (n, d)"
        )
    size = None
    if input_size is not None:
        height, width = (input_size,) * 2 if isinstance(input_size, int) else input_size
        if min(height, width) < 1:
            raise BackboneError(f"expected an input size in pixels, received {input_size!r}")
        size = int(height), int(width)
    located = locate_network(name)
    if located is None:
        source = _catalogued(find_backbone(name), weights, size, preprocessing)
        return replace(source, trust=trust)
    kind, path = located
    if kind.needs_trust and not trust:
        raise BackboneError(
            f"{name!r} is {kind.summary}, which can do anything when it runs, such as read and "
            "write files: give --trust (trust=True) if you know who made it"
        )
    kind.require(path, name)
    if weights is not None:
        raise BackboneError(
            f"a '{kind.prefix}:' backbone brings its own weights: leave --weights out"
        )
    resolve = _tuned if is_tuned_file(path) else _user_network
    source = resolve(kind, path, size, preprocessing)
    return replace(source, trust=trust)


def canonical_name(name: str) -> str:
    """Return the name under which features of a backbone are kept, such as ``file:mine``."""
    if name.startswith("import:"):
        return name
    located = locate_network(name)
    return find_backbone(name).name if located is None else network_name(*located)


def _catalogued(
    row: Backbone, choice: WeightsPath | None, size: Size | None, preprocessing: str | None
) -> BackboneSource:
    if preprocessing is not None:
        raise BackboneError(
            f"{row.name} has a preprocessing of its own; expected none, received {preprocessing!r}"
        )
    size = size or (row.input_size_px, row.input_size_px)
    if min(size) < row.shared.min_size_px:
        raise BackboneError(
            f"{row.name} takes inputs of {row.shared.min_size_px} px or more, received "
            f"{size[0]}x{size[1]}"
        )
    weights = resolve_weights(row, choice)
    return BackboneSource(row.name, row, weights, size, weights_preprocessing(row, weights))


def _tuned(
    kind: NetworkKind, path: Path, size: Size | None, preprocessing: str | None
) -> BackboneSource:
    """Settle a network in a model of featx: read as in its training, unless asked otherwise."""
    tuned = read_tuned(path)
    if tuned.prefix != kind.prefix:
        raise BackboneError(f"{path} has another network in it: name it as {tuned.prefix}:{path}")
    trained = tuned.spec.preprocessing
    if preprocessing not in (None, trained):
        raise BackboneError(
            f"{path} was trained with the preprocessing {trained!r}, received {preprocessing!r}: "
            "leave --preprocessing out"
        )
    row = find_backbone(tuned.architecture) if tuned.architecture else None
    weights = Weights(f"{kind.prefix}:{path}", tuned.sha256, path)
    size = size or tuned.spec.input_size_px
    return BackboneSource(network_name(kind, path), row, weights, size, trained)


def _user_network(
    kind: NetworkKind, path: Path, size: Size | None, preprocessing: str | None
) -> BackboneSource:
    """Settle a network that is not in the catalogue from what its files say of its input."""
    name = network_name(kind, path)
    # Another process may change the files meanwhile: the digest is that of before they are read.
    weights = Weights(f"{kind.prefix}:{path}", kind.digest(path), path)
    stated = kind.read(path)
    chosen = preprocessing or stated.preprocessing
    if not chosen:
        raise BackboneError(
            f"{path} states no preprocessing that featx has: give --preprocessing "
            f"(preprocessing=...), one of {CHOICES}"
        )
    chosen, rule = find_preprocessing(chosen)
    if not stated.layout and not rule.layout:
        raise BackboneError(
            f"{path} leaves open where the channels of its input are: add nchw (channels first) or "
            f"nhwc (last) to --preprocessing (preprocessing=...), as in {chosen}/nchw"
        )
    if stated.layout and rule.layout == stated.layout:
        chosen, rule = find_preprocessing(chosen.removesuffix(f"/{rule.layout}"))
    if stated.layout and rule.layout:
        raise BackboneError(
            f"{path} takes images with their channels {_PLACES[stated.layout]}, as its shape says: "
            f"leave {rule.layout} out of --preprocessing (preprocessing=...)"
        )
    size = size or stated.size_px
    if size is None:
        raise BackboneError(
            f"{path} does not fix the size of its input, or does not take RGB images: give "
            "--input-size (input_size=...)"
        )
    note, doubtful = _note(name, chosen, stated, explicit=preprocessing is not None)
    return BackboneSource(name, None, weights, size, chosen, note, doubtful)


def _note(name: str, chosen: str, stated: StatedInput, *, explicit: bool) -> tuple[str, bool]:
    """Return what a user should know of the preprocessing, and whether it may be wrong."""
    used = f"{name}: preprocessing {chosen} ({find_preprocessing(chosen)[1].summary})"
    if stated.pixels == "0..255" and chosen != "none":
        return (
            f"{used}, and the network rescales pixels itself, so that they are rescaled twice. "
            "Leave --preprocessing (preprocessing=...) out",
            True,
        )
    if explicit:
        return f"{used}, as asked", False
    if stated.pixels == "0..255":
        return f"{used}, because the network rescales pixels itself", False
    if stated.statement:
        return f"{used}, because {stated.statement}", False
    change = f"give --preprocessing (preprocessing=...), one of {CHOICES}"
    if stated.pixels == "0..1" and chosen == "none":
        return f"{used}, but the network seems to take pixels from 0 to 1: {change}", True
    if stated.pixels == "0..1":
        return f"{used}, because the network's own arithmetic takes these", False
    return f"{used}, by default. If the network was trained on others, {change}", True


def log_preprocessing(source: BackboneSource) -> None:
    """Log once a process which preprocessing was chosen for a network of one's own, and why."""
    # A ``file:`` network gets pixels as they are: that is worth a line only where it is doubtful.
    plain = source.kind == "file" and source.preprocessing == "none"
    if source.note and source.note not in _logged and (source.doubtful or not plain):
        _logged.add(source.note)
        _LOGGER.log(logging.WARNING if source.doubtful else logging.INFO, "%s", source.note)
