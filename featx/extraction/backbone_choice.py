"""Backbones as they are asked for, and found again for features that were extracted before."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from featx.backbones.catalog import BUNDLED, find_backbone
from featx.backbones.networks import locate_network
from featx.backbones.source import BackboneSource, canonical_name, resolve_backbone
from featx.backbones.taps import parse_taps
from featx.backbones.weights import is_tuned_file, matching_weights
from featx.cache.layout import CacheLayout
from featx.cache.manifest import Heading, Manifest, read_heading
from featx.cache.records import Origin, recall_origin
from featx.cache.space import read_spec
from featx.exceptions import BackboneError, CacheFormatError, WeightsError
from featx.files.stores import as_address, parent, shown
from featx.spec import INT8, FeatureSpec, ImagePolicy, Precision, folder_name

_LOG = logging.getLogger("featx")
_EARLIER_DEFAULT = ImagePolicy(draft=False)


@dataclass(frozen=True, slots=True)
class BackboneChoice:
    """A backbone as it is asked for; the fields are arguments of `featx.extract`."""

    backbone: str
    weights: str | os.PathLike[str] | None = None
    input_size: int | tuple[int, int] | None = None
    preprocessing: str | None = None
    trust: bool = False

    def arguments(self) -> dict[str, Any]:
        """Return the choice as arguments of `featx.extract` and parameters of estimators."""
        return asdict(self)

    def resolve(self) -> BackboneSource:
        """Settle weights, input size and preprocessing."""
        return resolve_backbone(
            self.backbone,
            weights=self.weights,
            input_size=self.input_size,
            preprocessing=self.preprocessing,
            trust=self.trust,
        )

    def completed(self, spec: FeatureSpec, origin: Origin | None = None) -> BackboneChoice:
        """Return the choice with what it leaves open as it was in an extraction of known origin."""
        backbone, weights, trust = self.backbone, self.weights, self.trust
        if origin is not None and canonical_name(origin.backbone) == spec.backbone:
            backbone = origin.backbone if backbone == spec.backbone else backbone
            weights = origin.weights if weights is None else weights
            trust = trust or origin.trust
        # Of a network of one's own, the default preprocessing may change with featx.
        default = spec.preprocessing if ":" in spec.backbone else None
        preprocessing = self.preprocessing or default
        return BackboneChoice(backbone, weights, spec.input_size_px, preprocessing, trust)

    def located(self, sha256: str) -> BackboneChoice:
        """Return the choice with its weights where a file of this digest is now, if it is found."""
        if not sha256 or ":" in self.backbone:
            return self
        return replace(self, weights=matching_weights(self.backbone, self.weights, sha256))

    def find(self, sha256: str, user: str = "the model was trained") -> BackboneSource:
        """Settle the backbone with weights of this digest; `WeightsError` says who used them."""
        step = (
            "name their file with --weights (weights=...), or a folder that has it with "
            "FEATX_WEIGHTS"
        )
        try:
            source = self.located(sha256).resolve()
        except WeightsError as error:
            if self.weights in (None, "imagenet"):
                raise
            raise WeightsError(
                f"{user} with weights of {self.backbone} (SHA-256 {sha256[:16]}...) that were "
                f"{os.fspath(self.weights)!r} and cannot be used: {error}; {step}"
            ) from error
        if source.weights.sha256 != sha256:
            raise WeightsError(
                f"{user} with weights of {self.backbone} whose SHA-256 is {sha256[:16]}..., found "
                f"{source.weights.sha256[:16]}... at "
                f"{source.weights.path or source.weights.source}: {step}"
            )
        return source


@dataclass(frozen=True, slots=True)
class Branch:
    """A backbone as it is asked for, and the taps that are read of it."""

    choice: BackboneChoice
    taps: tuple[str, ...]


def listed(names: str | Sequence[str]) -> list[str]:
    """Return names, each once, of which one may be given by itself."""
    return [names] if isinstance(names, str) else list(dict.fromkeys(names))


def for_each(names: Sequence[str], value: Any, what: str) -> dict[str, Any]:
    """Return by backbone what is given for all, or in a mapping for some."""
    if not isinstance(value, Mapping):
        return dict.fromkeys(names, value)
    strangers = set(value) - set(names)
    if strangers:
        raise BackboneError(
            f"{what} given for {', '.join(sorted(strangers))}, the backbones are {', '.join(names)}"
        )
    return {name: value.get(name) for name in names}


def read_branches(
    backbone: str | Sequence[str],
    tap: str | Sequence[str] | Mapping[str, str | Sequence[str]],
    *,
    weights: Any = None,
    input_size: Any = None,
    preprocessing: Any = None,
    trust: bool = False,
) -> list[Branch]:
    """Return the branches that parameters stand for; all but the first may be by backbone."""
    names = listed(backbone)
    if not names:
        raise BackboneError("expected at least one backbone, received none")
    taps = for_each(names, tap, "taps are")
    sizes = for_each(names, input_size, "input sizes are")
    files = for_each(names, weights, "weights are")
    preprocessings = for_each(names, preprocessing, "preprocessings are")
    return [
        Branch(
            BackboneChoice(name, files[name], sizes[name], preprocessings[name], trust),
            parse_taps(taps[name]),
        )
        for name in names
    ]


def branch_arguments(branches: Sequence[Branch]) -> dict[str, Any]:
    """Return what `read_branches` takes; of one branch with one tap, as plain values."""
    choices = {branch.choice.backbone: branch.choice.arguments() for branch in branches}
    taps = {branch.choice.backbone: list(branch.taps) for branch in branches}
    trust = any(branch.choice.trust for branch in branches)
    if len(branches) == 1:
        (choice,), (names,) = choices.values(), taps.values()
        return {**choice, "trust": trust, "tap": names[0] if len(names) == 1 else names}
    by_name = {
        key: {name: choice[key] for name, choice in choices.items()}
        for key in ("weights", "input_size", "preprocessing")
    }
    return {"backbone": list(choices), **by_name, "trust": trust, "tap": taps}


def known_weights(
    layout: CacheLayout, names: list[str], known: Manifest | Heading | None
) -> dict[str, str]:
    """Return by backbone the weights that were named when a dataset was extracted."""
    if known is None:
        return {}
    rows = {name: find_backbone(name).name for name in names if ":" not in name}
    rows = {name: row for name, row in rows.items() if row != BUNDLED}
    chosen = {}
    for name, row in rows.items():
        digests = {spec.weights_sha256 for spec in _known_specs(layout, known, row)}
        if len(digests) != 1:
            continue  # none, or several: then the published ones are as good as any
        (digest,) = digests
        origin = recall_origin(layout, (row, digest))
        if origin is None or origin.weights is None:
            continue
        try:
            user = f"the dataset {known.name!r} was extracted"
            source = BackboneChoice(row, origin.weights).find(digest, user)
        except WeightsError as error:
            raise WeightsError(f"{error}; --weights imagenet takes the published ones") from error
        chosen[name] = source.weights_choice or ""
        _LOG.warning(
            "%s: %s was extracted with the weights %s, which are used; --weights imagenet takes "
            "the published ones",
            row,
            known.name,
            chosen[name],
        )
    return chosen


def known_preprocessing(
    layout: CacheLayout, name: str, known: Manifest | Heading | None, *, trust: bool
) -> str | None:
    """Return the preprocessing of a network of one's own when a dataset was extracted with it."""
    located = locate_network(name)
    if known is None or located is None or (located[0].needs_trust and not trust):
        return None
    specs = _known_specs(layout, known, canonical_name(name))
    if len({(spec.preprocessing, spec.weights_sha256) for spec in specs}) != 1:
        return None
    kind, path = located
    if not path.exists() or is_tuned_file(path):
        return None
    # The default may be another today, and another network of this name may want another.
    same = kind.digest(path) == specs[0].weights_sha256
    return specs[0].preprocessing if same else None


def known_image(
    layout: CacheLayout, source: BackboneSource, known: Manifest | Heading | None
) -> ImagePolicy | None:
    """Return the default of featx 0.1 where a dataset, or else the cache, has only features of it.

    So nothing is computed again, and the features of one cache fit together.
    """
    of_cache = [path.name for path in layout.spaces.glob(f"{folder_name(source.name)}-*")]
    of_dataset = [] if known is None else [block.space for block in known.blocks]
    for spaces in (of_dataset, of_cache):
        policies = {
            spec.image
            for spec in _specs(layout, spaces)
            if (spec.backbone, spec.weights_sha256) == (source.name, source.weights.sha256)
        }
        if policies & {_EARLIER_DEFAULT, ImagePolicy()}:
            return None if ImagePolicy() in policies else _EARLIER_DEFAULT
    return None


def known_int8(
    layout: CacheLayout,
    plain: FeatureSpec,
    source: BackboneSource,
    taps: tuple[str, ...],
    known: Manifest | Heading | None,
    folder: Path,
) -> Precision | None:
    """Return the precision of a dataset's features whose quantised network is still kept."""
    from featx.engines.openvino import find_int8

    for spec in [] if known is None else _known_specs(layout, known, source.name):
        same = replace(spec, precision="f32", dtype=plain.dtype, views=None) == plain
        quantised = same and spec.precision.startswith(INT8)
        if quantised and find_int8(spec.precision, source, taps, folder):
            return spec.precision
    return None


def _known_specs(
    layout: CacheLayout, known: Manifest | Heading, backbone: str
) -> list[FeatureSpec]:
    """Return the specifications of a dataset's features of a backbone."""
    return _specs(layout, [block.space for block in known.blocks if block.backbone == backbone])


def _specs(layout: CacheLayout, spaces: Iterable[str]) -> list[FeatureSpec]:
    specs = []
    for space in set(spaces):
        with suppress(CacheFormatError, FileNotFoundError):
            specs.append(read_spec(layout.spaces / space))
    return specs


def known_dataset(layout: CacheLayout, data: object) -> Heading | None:
    """Return what the cache knows of a folder or a table under its name."""
    if not isinstance(data, str | os.PathLike):
        return None
    path = Path(data).expanduser()
    with suppress(CacheFormatError, FileNotFoundError, OSError):
        for name in dict.fromkeys((path.resolve().name, path.resolve().stem)):
            if not layout.dataset(name).is_file():
                continue
            heading = read_heading(layout.dataset(name))
            if address := as_address(data):
                if heading.root in (shown(address).rstrip("/"), shown(parent(address))):
                    return heading
            elif Path(heading.root) in (path.resolve(), path.resolve().parent):
                return heading
    return None
