"""`similar`: the cached images nearest to any image, whose features are computed as theirs were."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Unpack

import numpy as np

from featx.backbones.source import BackboneSource, canonical_name
from featx.cache.features import Features
from featx.cache.key_index import KeyIndex
from featx.cache.manifest import FAILED
from featx.exceptions import DatasetError
from featx.extraction.backbone_choice import BackboneChoice
from featx.extraction.job import Job, engines_folder
from featx.extraction.pipeline import Network
from featx.extraction.run import as_features
from featx.heads.rows import Doubles, Numbers
from featx.images.dataset import ImageDataset
from featx.images.files import local_path, read_file, read_one
from featx.images.reading import ReadingOptions, StrPath
from featx.spec import BlockName


@dataclass(frozen=True, slots=True)
class Match:
    """A cached image that is near to another image.

    Parameters
    ----------
    path : str
        Its path, as ``Features.paths`` has it.
    label : str or None
        Its class; None where it has none.
    split : str or None
        Its split; None where it has none.
    similarity : float
        Cosine similarity of the features, from -1 to 1; a copy has 1.
    row : int
        Its row of the features.
    """

    path: str
    label: str | None
    split: str | None
    similarity: float
    row: int


@dataclass(frozen=True, slots=True)
class Similar:
    """An image and the cached images that are nearest to it.

    Parameters
    ----------
    path : str
        The image as it was named.
    matches : tuple of Match
        The most similar first; empty if the image could not be read.
    row : int or None
        The row of the same image in the dataset, by its content; None for an image that is new. It
        is not among the matches; further copies of it are.
    status : {"ok", "failed"}
        Whether the image could be read.
    reason : str
        Why not.
    """

    path: str
    matches: tuple[Match, ...]
    row: int | None = None
    status: str = "ok"
    reason: str = ""


def similar(
    features: object,
    images: StrPath | Iterable[StrPath],
    k: int = 10,
    *,
    backbone: str | None = None,
    tap: str | None = None,
    weights: StrPath | None = None,
    trust: bool = False,
    engine: str = "auto",
    cache: StrPath | None = None,
    **reading: Unpack[ReadingOptions],
) -> list[Similar]:
    """Return the cached images that are nearest to each of some images.

    The features of an image are computed as those of the dataset were: by the same network and
    weights, from pixels that were read in the same way. An image that is in the dataset is known by
    its content and needs no network. The search is exact.

    Parameters
    ----------
    features : Features, or data
        Of the dataset; of whatever else `featx.extract` takes, features are extracted first.
    images : path or iterable of paths
        Image files; also paths of the dataset, whose originals need not be there any more.
    k : int, default 10
        How many matches an image.
    backbone, tap : str, optional
        Which block of the features, where there are several.
    weights : str or path, optional
        The backbone's weights, where they are not where they were.
    trust : bool, default False
        Needed for ``savedmodel:`` backbones, whose graph may do anything.
    engine : str, default "auto"
        Key of `featx.engines.choice.ENGINES`.
    cache : path, optional
        The cache folder of data that are no features, as of `featx.extract`.
    **reading
        How data that are no features are read, as for `featx.extract`: ``splits``, ``root``,
        ``label_column``, ...

    Returns
    -------
    list of Similar
        One for each image, in their order. One that cannot be read has the status failed.

    Raises
    ------
    FeaturesError
        If not exactly one block fits.
    DatasetError
        If an image is not in the dataset, and its features were imported.
    WeightsError, BackboneError
        If the network is needed and cannot be built as it was.

    See Also
    --------
    featx.Features.neighbours : The same for rows, paths, or features of your own.

    Examples
    --------
    >>> feats = featx.Features.open("photos")  # doctest: +SKIP
    >>> for match in featx.similar(feats, "new.jpg", k=3)[0].matches:  # doctest: +SKIP
    ...     print(match.path, match.label, round(match.similarity, 3))
    ants/1.jpg ants 0.931
    """
    listed = [images] if isinstance(images, str | bytes | os.PathLike) else list(images)
    names = [os.fsdecode(name) for name in listed]
    given = features
    features = as_features(
        given,
        reading,
        stored=True,
        backbone=backbone,
        taps=tap,
        weights=weights,
        trust=trust,
        engine=engine,
        cache=cache,
    )
    if backbone is not None and features is not given:
        backbone = canonical_name(backbone)
    block = features.block(backbone=backbone, tap=tap)
    which: BlockName = {"backbone": block.backbone, "tap": block.tap}
    rows, reasons = _known_rows(features, names)
    X = np.zeros((len(names), features.width(**which)), np.float32)
    known = rows >= 0
    if known.any():
        X[known] = features.take(rows[known], **which)
    new = [n for n, reason in enumerate(reasons) if not reason and not known[n]]
    if new:
        if features.manifest.source == "imported":
            raise DatasetError(
                f"{names[new[0]]!r} is not in {features.name!r}, whose features were imported, so "
                "that featx cannot compute others: name images of the dataset, or pass features to "
                "Features.neighbours"
            )
        spec = features.spec(**which)
        network = Network(
            _find_source(features, which, weights, trust),
            (block.tap,),
            engine,
            precision=spec.precision,
            folder=engines_folder(),
        )
        unseen = ImageDataset.from_paths([names[n] for n in new])
        job = Job(parts=((spec, network),), data=unseen, layout=None, keep=False)
        values, ledger = job.compute("skip")
        computed = np.array(new)[ledger.usable]
        if len(computed):
            X[computed] = values[0]
        for n, status, reason in zip(new, ledger.status.tolist(), ledger.reason, strict=True):
            reasons[n] = reason if status == FAILED else ""
    readable = np.flatnonzero([not reason for reason in reasons])
    nearest = features.neighbours(X[readable], k, **which, exclude=rows[readable])
    matches = dict(zip(readable.tolist(), _matches(features, *nearest), strict=True))
    return [
        Similar(name, matches[n], None if rows[n] < 0 else int(rows[n]))
        if n in matches
        else Similar(name, (), status="failed", reason=reasons[n])
        for n, name in enumerate(names)
    ]


def _known_rows(features: Features, names: Sequence[str]) -> tuple[Numbers, list[str]]:
    """Return the row of each image, -1 for none, and why it cannot be read, "" if it can."""
    by_path = {path: row for row, path in enumerate(features.paths)}
    index = KeyIndex([features.keys])
    rows, reasons = np.full(len(names), -1, np.intp), [""] * len(names)
    for n, name in enumerate(names):
        path = by_path.get(_below(features.manifest.root, name), by_path.get(name, -1))
        image = read_one(partial(read_file, local_path(name)))
        if image.key is None:
            rows[n] = path
            reasons[n] = "" if path >= 0 else image.reason
            continue
        key = np.frombuffer(image.key, np.uint8)[None]
        same = path >= 0 and np.array_equal(features.keys[path], key[0])
        rows[n] = path if same else index.find(key)[1][0]
    return rows, reasons


def _below(root: str, name: str) -> str:
    """Return the path of a file below a folder, as a dataset has it."""
    try:
        return Path(os.path.abspath(name)).relative_to(root).as_posix()
    except ValueError:
        return name


def _find_source(
    features: Features, which: BlockName, weights: StrPath | None, trust: bool
) -> BackboneSource:
    """Return the backbone of a block, with the weights that its features were computed with."""
    spec = features.spec(**which)
    choice = BackboneChoice(which["backbone"], weights, trust=trust)
    completed = choice.completed(spec, features.origin(**which))
    return completed.find(spec.weights_sha256, f"the dataset {features.name!r} was extracted")


def _matches(features: Features, rows: Numbers, values: Doubles) -> list[tuple[Match, ...]]:
    paths, y, splits = features.paths, features.y, features.splits
    return [
        tuple(
            Match(
                paths[row],
                None if y is None else str(y[row]) or None,
                None if splits is None else str(splits[row]) or None,
                float(value),
                int(row),
            )
            for row, value in zip(of_query.tolist(), similarities.tolist(), strict=True)
            if row >= 0
        )
        for of_query, similarities in zip(rows, values, strict=True)
    ]
