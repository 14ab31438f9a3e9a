"""What an extraction is asked for, settled before the first image is read."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache as remember
from pathlib import Path
from typing import Any

from featx.backbones.registry import find_backbone
from featx.backbones.source import BackboneSource, log_preprocessing, resolve_backbone
from featx.backbones.taps import parse_taps
from featx.backbones.weights import BUNDLED, matching_weights, resolve_weights
from featx.cache.layout import CacheLayout
from featx.cache.manifest import Block, Manifest, read_manifest
from featx.cache.origins import Identity, Origin, recall_origin, remember_origin
from featx.cache.space import FeatureSpace, ShardWriter, read_spec
from featx.engines.protocol import Engine
from featx.engines.select import make_engine
from featx.exceptions import BackboneError, CacheFormatError, DatasetError, WeightsError
from featx.images.split_names import SplitNames
from featx.named_data import find_named
from featx.pipeline import Stage
from featx.spec import (
    AUGMENTATIONS,
    FeatureSpec,
    ImagePolicy,
    Precision,
    StorageDtype,
    ViewPolicy,
)

_LOG = logging.getLogger("featx")
WeightsChoice = str | os.PathLike[str] | Mapping[str, str | os.PathLike[str]] | None


@dataclass(frozen=True, slots=True)
class ExtractionJob:
    """An extraction that has been asked for.

    Parameters
    ----------
    layout : CacheLayout
        The cache.
    named : Manifest or None
        The dataset, where it was given by the name of an extracted one.
    stages : tuple of Stage
        One for each backbone, and for each view through it.
    spaces : tuple of FeatureSpace
        Where each stage keeps its features.
    blocks : tuple of Block
        What the dataset will have: every tap of every stage.
    origins : dict
        How each backbone was named, by its canonical name and the digest of its weights.
    reading : dict
        Arguments of `ImageDataset.from_any`, with which the images are to be read.
    """

    layout: CacheLayout
    named: Manifest | None
    stages: tuple[Stage, ...] = ()
    spaces: tuple[FeatureSpace, ...] = ()
    blocks: tuple[Block, ...] = ()
    origins: Mapping[Identity, Origin] = field(default_factory=dict)
    reading: dict[str, Any] = field(default_factory=dict)

    def remember_origins(self) -> None:
        """Keep in the cache which weights were named, so that they are found again."""
        for identity, origin in self.origins.items():
            if origin.weights is not None or ":" in origin.backbone:
                remember_origin(self.layout, identity, origin)

    @property
    def imported(self) -> bool:
        """Whether the features were made elsewhere, so that nothing can be extracted."""
        return self.named is not None and self.named.source == "imported"


def prepare(
    data: Any,
    *,
    backbone: str | Sequence[str] | None = None,
    weights: WeightsChoice = None,
    taps: str | Sequence[str] | None = None,
    input_size: int | tuple[int, int] | None = None,
    preprocessing: str | None = None,
    trust: bool = False,
    image: ImagePolicy | None = None,
    views: int = 0,
    view_policy: str | ViewPolicy | None = None,
    cache: str | os.PathLike[str] | None = None,
    engine: str = "auto",
    batch_size: int | str = "auto",
    dtype: StorageDtype = "float32",
    precision: Precision = "f32",
    splits: SplitNames = None,
    root: str | os.PathLike[str] | None = None,
    multilabel: bool = False,
) -> ExtractionJob:
    """Settle what an extraction is to compute and where it goes; see `featx.extract`."""
    layout = CacheLayout.at(cache)
    reading = {"splits": splits, "root": root, "multilabel": multilabel}
    job = ExtractionJob(layout, find_named(layout, data, splits), reading=reading)
    if job.imported:
        return job
    names = "tiny" if backbone is None else backbone
    sources = resolve_backbones(
        names,
        weights=_known_weights(layout, job.named, data, names) if weights is None else weights,
        input_size=input_size,
        preprocessing=preprocessing,
        trust=trust,
    )
    tap_names = parse_taps(taps)
    stages, spaces, blocks = [], [], []
    for source in sources:
        plain = source.spec(image=image, dtype=dtype, precision=precision)
        opener = engine_opener(
            engine,
            source,
            tap_names,
            batch_size=batch_size,
            precision=precision,
            folder=engines_folder(layout, writing=True),
        )
        for spec in (plain, *view_specs(plain, views, view_policy)):
            space = FeatureSpace(layout, spec)
            spaces.append(space)
            stages.append(_disk_stage(space, tap_names, opener))
            view = None if spec.views is None else spec.views.index
            blocks += [Block(spec.backbone, tap, spec.name, view) for tap in tap_names]
    listed = [names] if isinstance(names, str) else list(dict.fromkeys(names))
    return replace(
        job,
        stages=tuple(stages),
        spaces=tuple(spaces),
        blocks=tuple(blocks),
        origins={
            (source.name, source.weights.sha256): _origin(name, source, trust)
            for name, source in zip(listed, sources, strict=True)
        },
    )


def _origin(name: str, source: BackboneSource, trust: bool) -> Origin:
    if source.row is None or name.startswith("file:"):
        prefix, _, path = name.partition(":")
        return Origin(f"{prefix}:{Path(path).expanduser().resolve()}", None, trust)
    chosen = source.weights.source
    if chosen in ("imagenet", "bundled"):
        return Origin(source.name, None, trust)
    file = source.weights.path
    return Origin(source.name, chosen if file is None else str(file.resolve()), trust)


def _known_weights(
    layout: CacheLayout, named: Manifest | None, data: Any, backbone: str | Sequence[str]
) -> dict[str, str]:
    """Return the weights with which a dataset was extracted, of backbones that have others, too."""
    names = [backbone] if isinstance(backbone, str) else list(dict.fromkeys(backbone))
    rows = {name: find_backbone(name).name for name in names if ":" not in name}
    rows = {name: row for name, row in rows.items() if row != BUNDLED}
    manifest = named or _earlier(layout, data) if rows else None
    if manifest is None:
        return {}
    chosen = {}
    for name, row in rows.items():
        digests = set()
        for space in {block.space for block in manifest.blocks if block.backbone == row}:
            with suppress(CacheFormatError, FileNotFoundError):
                digests.add(read_spec(layout.spaces / space).weights_sha256)
        if len(digests) != 1:
            continue  # none, or several: then the published ones are as good as any
        (digest,) = digests
        origin = recall_origin(layout, (row, digest))
        if origin is None or origin.weights is None:
            continue
        weights = matching_weights(row, origin.weights, digest)
        with suppress(WeightsError):
            if resolve_weights(find_backbone(row), weights).sha256 == digest:
                chosen[name] = os.fspath(weights or "")
        _LOG.warning(
            "%s: %s was extracted with the weights %s%s",
            row,
            manifest.name,
            chosen.get(name, origin.weights),
            ", which are used; --weights imagenet takes the published ones"
            if name in chosen
            else ", which are not there any more: the published ones are used",
        )
    return chosen


def _earlier(layout: CacheLayout, data: Any) -> Manifest | None:
    """Return what the cache knows of a folder or a table under its own name."""
    if not isinstance(data, str | os.PathLike):
        return None
    path = Path(data).expanduser()
    with suppress(CacheFormatError, FileNotFoundError, OSError):
        for name in dict.fromkeys((path.resolve().name, path.resolve().stem)):
            if not layout.dataset(name).is_file():
                continue
            manifest = read_manifest(layout.dataset(name))
            if Path(manifest.root) in (path.resolve(), path.resolve().parent):
                return manifest
    return None


def view_specs(
    plain: FeatureSpec, views: int, policy: str | ViewPolicy | None = None
) -> list[FeatureSpec]:
    """Return the specifications of `views` augmented views beside the plain one.

    Raises
    ------
    DatasetError
        If `views` is negative, or there are not so many that differ.
    UnknownNameError
        If there is no such policy.
    """
    if views < 0:
        raise DatasetError(f"views must be 0 or more, received {views}")
    family = as_view_policy(policy)
    if views > 1 and not AUGMENTATIONS[family.policy].is_drawn:
        others = " or ".join(name for name, rule in AUGMENTATIONS.items() if rule.is_drawn)
        raise DatasetError(
            f"{family.policy} has one view of an image, received views={views}: ask for one "
            f"(--views 1), or take the policy {others}"
        )
    return [replace(plain, views=replace(family, index=index)) for index in range(views)]


def as_view_policy(policy: str | ViewPolicy | None) -> ViewPolicy:
    """Return a policy of views given by name, in full, or not at all."""
    return ViewPolicy(policy=policy) if isinstance(policy, str) else policy or ViewPolicy()


def _disk_stage(space: FeatureSpace, taps: tuple[str, ...], engine: Callable[[], Engine]) -> Stage:
    return Stage(
        spec=space.spec,
        taps=taps,
        store=space,
        open_engine=engine,
        open_sink=lambda made: ShardWriter(space, made.provenance()),
    )


def engine_opener(
    name: str,
    source: BackboneSource,
    taps: tuple[str, ...],
    *,
    batch_size: int | str = "auto",
    precision: Precision = "f32",
    folder: Path | None = None,
) -> Callable[[], Engine]:
    """Return a function that opens the engine of a backbone, the same one whenever it is called."""
    size = _batch_size(batch_size)
    return remember(
        lambda: make_engine(name, source, taps, batch_size=size, precision=precision, folder=folder)
    )


def _batch_size(value: int | str) -> int | None:
    if value == "auto":
        return None
    if isinstance(value, int) and value > 0:
        return value
    raise BackboneError(f"batch_size must be 'auto' or a positive number, received {value!r}")


def engines_folder(layout: CacheLayout | None, *, writing: bool) -> Path:
    """Return where converted models are kept.

    ``FEATX_ENGINES`` names a folder for all caches. Else it is in the cache that is written to, or
    that is there; else in the user's own cache folder, since reading makes no cache.
    """
    named = os.environ.get("FEATX_ENGINES")
    if named:
        return Path(named).expanduser()
    if layout is not None and (writing or layout.root.is_dir()):
        return layout.engines
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "featx" / "engines"


def resolve_backbones(
    backbone: str | Sequence[str],
    *,
    weights: WeightsChoice = None,
    input_size: int | tuple[int, int] | None = None,
    preprocessing: str | None = None,
    trust: bool = False,
) -> list[BackboneSource]:
    """Settle one or several backbones; see `featx.extract` for the parameters."""
    names = [backbone] if isinstance(backbone, str) else list(dict.fromkeys(backbone))
    if not names:
        raise BackboneError("expected at least one backbone, received none")
    by_name = weights if isinstance(weights, Mapping) else dict.fromkeys(names, weights)
    unknown = set(by_name) - set(names)
    if unknown:
        raise BackboneError(
            f"weights are given for {', '.join(sorted(unknown))}, the backbones are "
            f"{', '.join(names)}"
        )
    sources = [
        resolve_backbone(
            name,
            weights=by_name.get(name),
            input_size=input_size,
            preprocessing=preprocessing,
            trust=trust,
        )
        for name in names
    ]
    for source in sources:
        log_preprocessing(source)
    return sources
