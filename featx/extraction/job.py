"""A job: an extraction that has been settled. What is computed, where from, and where it goes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.backbones.source import log_preprocessing
from featx.cache.columns import Strings
from featx.cache.features import Features
from featx.cache.layout import CacheLayout
from featx.cache.manifest import Block, Heading, Manifest, find_manifest, manifest_names
from featx.cache.records import Identity, Origin, remember_origin
from featx.cache.space import FeatureSpace
from featx.engines.choice import settle_precision
from featx.exceptions import BackboneError, DatasetError, UnknownNameError
from featx.extraction.backbone_choice import (
    Branch,
    for_each,
    known_dataset,
    known_image,
    known_int8,
    known_preprocessing,
    known_weights,
    listed,
    read_branches,
)
from featx.extraction.pipeline import Ledger, MemoryStore, Network, Run, RunOptions, Stage
from featx.files.stores import as_address
from featx.images.dataset import ImageDataset, packed_images
from featx.images.decode import Target
from featx.images.files import SomeImages
from featx.images.labels import SplitNames, read_splits
from featx.images.loader import load_images
from featx.images.reading import Reading
from featx.images.remote import RemoteImages
from featx.spec import (
    AUGMENTATIONS,
    INT8,
    FeatureSpec,
    ImagePolicy,
    Precision,
    StorageDtype,
    ViewPolicy,
)

# Images that a quantised network is calibrated on, where all of them can be read.
_CALIBRATED = 128
WeightsChoice = str | os.PathLike[str] | Mapping[str, str | os.PathLike[str]] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """An extraction that has been settled; it pickles, and `open` makes what it needs."""

    # Each network with its plain specification and those of its views.
    parts: tuple[tuple[FeatureSpec, Network], ...] = ()
    data: object  # images: whatever `ImageDataset.from_any` takes, or the name of a dataset
    layout: CacheLayout | None  # the cache whose features are used
    keep: bool = True  # whether new features are written to it; else they stay in memory
    named: Manifest | None = None  # the dataset, where the data are the name of one
    reading: Reading = field(default_factory=Reading)  # how the data are read

    @property
    def blocks(self) -> tuple[Block, ...]:
        """What a dataset will have: every tap of every specification."""
        return tuple(
            Block(spec.backbone, tap, spec.name, None if spec.views is None else spec.views.index)
            for spec, network in self.parts
            for tap in network.taps
        )

    @property
    def origins(self) -> dict[Identity, Origin]:
        """How each backbone was named, by its canonical name and the digest of its weights."""
        return {
            (source.name, source.weights.sha256): Origin(
                source.address, source.weights_choice, source.trust
            )
            for source in (network.source for _, network in self.parts)
        }

    @property
    def imported(self) -> bool:
        """Whether the features were made elsewhere, so that nothing can be extracted."""
        return self.named is not None and self.named.source == "imported"

    def images(self) -> ImageDataset:
        """Return the images; raise `DatasetError` where there are none."""
        if self.named is not None:
            return images_of(self.named)
        return ImageDataset.from_any(self.data, **self.reading.options)

    def open(self) -> list[Stage]:
        """Return what fills the stores, one stage for each part, with the stores opened."""
        return [Stage(spec, network, self._store(spec)) for spec, network in self.parts]

    def _store(self, spec: FeatureSpec) -> FeatureSpace | MemoryStore:
        space = None if self.layout is None else FeatureSpace(self.layout, spec)
        return space if self.keep and space is not None else MemoryStore(spec, space)

    def features(self, manifest: Manifest, stages: Sequence[Stage]) -> Features:
        """Return the features of a dataset that stages have filled."""
        spaces = [s.store for s in stages if isinstance(s.store, FeatureSpace) for _ in s.taps]
        return Features(manifest.changed(blocks=self.blocks), spaces, origins=self.origins)

    def complete(self, stages: Sequence[Stage]) -> Features | None:
        """Return the features of a named dataset that has all that is asked for, else None."""
        if self.named is None:
            return None
        if self.imported:
            assert self.layout is not None
            return Features.open(self.named.name, cache=self.layout.root)
        features = self.features(self.named, stages)
        keys = features.keys
        there = len(keys) and not any(stage.missing(keys).any() for stage in stages)
        return features if there else None

    def compute(self, on_error: str = "raise") -> tuple[list[NDArray[np.floating]], Ledger]:
        """Return features (m, d) of the readable images by stage and tap, and the ledger."""
        images, stages = self.images(), self.open()
        ledger = Ledger.blank(len(images))
        Run(images, stages, ledger, RunOptions(on_error=on_error)).work()
        keys = ledger.key[ledger.usable]
        if not len(keys):
            return [np.empty((0, 0), np.float32) for _ in self.blocks], ledger
        return [stage.store.gather(tap, keys) for stage in stages for tap in stage.taps], ledger

    def remember_origins(self) -> None:
        """Keep in the cache which weights were named, so that they are found again."""
        for identity, origin in self.origins.items():
            named = origin.weights is not None or ":" in origin.backbone
            if named and self.layout is not None:
                remember_origin(self.layout, identity, origin)


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What an extraction is asked for; see `featx.extract` for the fields."""

    backbone: str | Sequence[str] | None = None
    weights: WeightsChoice = None
    taps: str | Sequence[str] | Mapping[str, str | Sequence[str]] | None = None
    input_size: int | tuple[int, int] | Mapping[str, int | tuple[int, int]] | None = None
    preprocessing: str | Mapping[str, str | None] | None = None
    trust: bool = False
    image: ImagePolicy | None = None
    views: int = 0
    view_policy: str | ViewPolicy | None = None
    cache: str | os.PathLike[str] | None = None
    engine: str = "auto"
    batch_size: int | str = "auto"
    dtype: StorageDtype = "float32"
    precision: str = "f32"
    reading: Reading = field(default_factory=Reading)

    def settle(self, data: object) -> Job:
        """Settle before the first image is read what is computed and where it goes."""
        layout = CacheLayout.at(self.cache)
        if isinstance(data, Iterator):  # which gives its images once
            data = ImageDataset.from_any(data, **self.reading.options)
        job = Job(
            data=data,
            layout=layout,
            named=find_named(layout, data, self.reading.splits),
            reading=self.reading,
        )
        if job.named is not None:
            self.reading.check_used("name", repr(data))
        if job.imported:
            assert job.named is not None
            _check_imported(job.named, self.backbone)
            return job
        names = ["tiny"] if self.backbone is None else listed(self.backbone)
        known = job.named or known_dataset(layout, data)
        branches = self._branches(names, layout, known)
        sources = [branch.choice.resolve() for branch in branches]
        for source in sources:
            log_preprocessing(source)
        parts = []
        for source, taps in zip(sources, [branch.taps for branch in branches], strict=True):
            network = Network(
                source,
                taps,
                self.engine,
                batch_size=as_batch_size(self.batch_size),
                folder=engines_folder(),
            )
            image = self.image or known_image(layout, source, known)
            plain = source.spec(image=image, dtype=self.dtype)
            if self.precision == INT8:
                precision = known_int8(
                    layout, plain, source, taps, known, engines_folder()
                ) or _calibrated(job.images(), plain, network)
            else:
                precision = settle_precision(self.precision, self.engine, source)
            network = replace(network, precision=precision)
            specs = with_views(replace(plain, precision=precision), self.views, self.view_policy)
            parts += [(spec, network) for spec in specs]
        return replace(job, parts=tuple(parts))

    def _branches(
        self, names: list[str], layout: CacheLayout, known: Manifest | Heading | None
    ) -> list[Branch]:
        weights = known_weights(layout, names, known) if self.weights is None else self.weights
        if len(names) > 1 and isinstance(weights, str | os.PathLike):
            file = os.fspath(weights)
            if not file.startswith("random") and file not in ("imagenet", "bundled"):
                raise BackboneError(
                    f"weights of one network are given for {len(names)} backbones: name theirs, "
                    f"--weights {names[-1]}={file} (weights={{{names[-1]!r}: {file!r}}})"
                )
        stated = for_each(names, self.preprocessing, "preprocessings are")
        preprocessing = {
            name: stated[name] or known_preprocessing(layout, name, known, trust=self.trust)
            for name in names
        }
        return read_branches(
            names,
            "avg" if self.taps is None else self.taps,
            weights=weights,
            input_size=self.input_size,
            preprocessing=preprocessing,
            trust=self.trust,
        )


def with_views(
    plain: FeatureSpec, views: int, policy: str | ViewPolicy | None = None
) -> list[FeatureSpec]:
    """Return a specification and those of so many augmented views of the same images."""
    if views < 0:
        raise DatasetError(f"views must be 0 or more, received {views}")
    family = as_view_policy(policy)
    if views > 1 and not AUGMENTATIONS[family.policy].is_drawn:
        others = " or ".join(name for name, rule in AUGMENTATIONS.items() if rule.is_drawn)
        raise DatasetError(
            f"{family.policy} has one view of an image, received views={views}: ask for one "
            f"(--views 1), or take the policy {others}"
        )
    return [plain, *(replace(plain, views=replace(family, index=index)) for index in range(views))]


def as_view_policy(policy: str | ViewPolicy | None) -> ViewPolicy:
    """Return a policy of views given by name, in full, or not at all."""
    return ViewPolicy(policy=policy) if isinstance(policy, str) else policy or ViewPolicy()


def as_batch_size(value: int | str) -> int | None:
    """Return a number of images, None for the engine's choice."""
    if value == "auto":
        return None
    if isinstance(value, int) and value > 0:
        return value
    raise BackboneError(f"batch_size must be 'auto' or a positive number, received {value!r}")


def _calibrated(images: ImageDataset, plain: FeatureSpec, network: Network) -> Precision:
    """Return the precision of a network that is quantised on some of the images."""
    from featx.engines.int8 import quantise

    rows = np.random.default_rng(0).permutation(len(images))[:_CALIBRATED].tolist()
    loading = load_images(images, rows, [Target(plain.input_size_px, plain.image)])
    pixels = [image.pixels[0] for image in loading if image.pixels]
    return quantise(network.source, network.taps, pixels, engines_folder())


def engines_folder() -> Path:
    """Return where converted networks are kept: of the user, for every cache."""
    named = os.environ.get("FEATX_ENGINES")
    if named:
        return Path(named).expanduser()
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(caches) / "featx" / "engines"


def find_named(layout: CacheLayout, data: object, splits: SplitNames = None) -> Manifest | None:
    """Return the manifest of the dataset that `data` names, or None when it is something else."""
    if not isinstance(data, str) or Path(data).expanduser().exists():
        return None
    if layout.dataset(data).is_file():
        manifest = find_manifest(layout, data)
        return manifest.changed(split=read_splits(manifest.split, splits, what=repr(data))[0])
    if any(mark in data for mark in "/\\.*"):
        return None  # a path that does not exist, for the dataset to report
    raise UnknownNameError(
        "folder, file or extracted dataset",
        data,
        manifest_names(layout),
        hint=f"Expected a path that exists, or a dataset in the cache {layout.root}",
    )


def _check_imported(manifest: Manifest, backbone: str | Sequence[str] | None) -> None:
    """Refuse backbones that an imported dataset has no features of."""
    there = {block.backbone for block in manifest.blocks}
    others = set() if backbone is None else set(listed(backbone)) - there
    if others:
        raise DatasetError(
            f"{manifest.name!r} was imported: it has features of {', '.join(sorted(there))}, and "
            f"no images for {', '.join(sorted(others))} to look at; leave -b (backbone) out"
        )


def images_of(manifest: Manifest) -> ImageDataset:
    """Return the images of a named dataset, where they were."""
    if manifest.source == "arrays":
        raise DatasetError(
            f"{manifest.name!r} was made from arrays: features that it does not have yet need the "
            "arrays again"
        )
    packed = _packed(manifest) if manifest.source == "packed" else {}
    return ImageDataset(
        name=manifest.name,
        root=as_address(manifest.root) or (Path(manifest.root) if manifest.root else None),
        paths=tuple(manifest.path),
        classes=manifest.classes,
        labels=None if manifest.classes is None else manifest.label,
        groups=tuple(manifest.group) if manifest.group.any() else None,
        splits=tuple(manifest.split) if manifest.split.any() else None,
        strays=manifest.strays,
        **packed,
    )


def _packed(manifest: Manifest) -> dict[str, Any]:
    """Return where the images of a dataset lie: behind addresses, or in an archive or several.

    Raises `DatasetError` where there is no archive any more.
    """
    addresses = [row for row, path in enumerate(manifest.path) if as_address(path)]
    if as_address(manifest.root) or not manifest.root or addresses:
        # Addresses in a table are followed where they were followed before.
        follow = any(manifest.key[row].any() for row in addresses)
        return {"arrays": RemoteImages(manifest.path, manifest.root, follow=follow)}
    paths, images = packed_images(manifest.root, manifest.column)
    return {"arrays": SomeImages(images, Strings.of(paths).find(manifest.path))}
