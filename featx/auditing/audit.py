"""`audit`: what is doubtful in a dataset, from its features, its labels and its originals."""

from __future__ import annotations

import os
import shlex
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, Unpack

import numpy as np
from numpy.typing import NDArray

from featx.auditing.findings import KINDS, Audit, AuditedImage, Finding, by_importance
from featx.auditing.label_errors import (
    LabelDoubts,
    Passes,
    doubt_labels,
    held_out_probabilities,
    mean_probabilities,
)
from featx.auditing.near_duplicates import (
    SIDE,
    Agreement,
    Near,
    compare_pictures,
    near_pairs,
    similar_looks,
)
from featx.auditing.pictures import Pictures, doubtful_pictures, greys_of, look_at
from featx.backbones.source import canonical_name
from featx.backbones.taps import parse_tap
from featx.cache.editing import label_conflicts
from featx.cache.features import Features
from featx.cache.manifest import FAILED
from featx.exceptions import DatasetError, FeaturesError, HeadError, MissingExtraError
from featx.extraction.run import as_features
from featx.files.identity import related_rows
from featx.images.labels import SEPARATOR, look_like_sets
from featx.images.reading import ReadingOptions
from featx.memory import as_bytes
from featx.models.training import check_classes
from featx.spec import BlockName

Numbers = NDArray[np.intp]

_KEPT_FIRST = ("test", "val", "train", "")
_UNLIKE = 3.5  # standard deviations, of the logarithm of the distance to the nearest images
_SURELY_NEAR, _NEARER = 0.01, 0.04  # distances of features, and in those of rows to their nearest
_FEW_OF_A_CLASS, _FEW_IN_ALL = 10, 139
_UNEQUAL = 10.0
_MIXED_UP, _EACH_WAY, _SWALLOWED, _ENOUGH = 0.6, 0.2, 0.8, 10
_LISTED = 5


def audit(
    features: object,
    *,
    backbone: str | None = None,
    tap: str | None = None,
    pictures: bool = True,
    seed: int = 0,
    max_ram: str | int = "1GiB",
    multilabel: bool = False,
    cache: str | os.PathLike[str] | None = None,
    **reading: Unpack[ReadingOptions],
) -> Audit:
    """Say what is doubtful in a dataset: copies, wrong labels, strangers, bad pictures, classes.

    Parameters
    ----------
    features : Features, or data
        From `featx.extract`, or `Features.open`; of whatever else it takes, features are extracted
        first. The name of a dataset stands for all features that the cache has of it.
    backbone, tap : str, optional
        Judge labels by these features only; by default by all blocks, whose probabilities are
        averaged. The first block names images that are near each other.
    pictures : bool, default True
        Whether to look at the originals, each once, where they are. Without them nearly equal
        images are named by their features alone, and nothing is said of sharpness and light.
    seed : int, default 0
        Seed of folds, heads and clusters.
    max_ram : str or int, default "1GiB"
        Bound on the memory for features. Labels are judged in batches beyond half of it.
    multilabel : bool, default False
        Whether the columns of a table have to be labels, see `ImageDataset.from_csv`.
    cache : path, optional
        The cache folder of data that are no features, as of `featx.extract`.
    **reading
        How data that are no features are read, as for `featx.extract`: ``splits``, ``root``,
        ``label_column``, ...

    Returns
    -------
    Audit
        Findings, each with its severity, images, evidence and the command that acts on it.

    Raises
    ------
    FeaturesError
        If there are no images, or no block fits.

    Notes
    -----
    Labels: confident learning (Northcutt, Jiang, Chuang: "Confident learning: estimating
    uncertainty in dataset labels", 2021) on out-of-fold probabilities. Nearly equal images: nearest
    neighbours in the features, then the pixels of both (`featx.auditing.near_duplicates`).

    Examples
    --------
    >>> import featx
    >>> audit = featx.audit(featx.extract("photos/"))  # doctest: +SKIP
    >>> audit.counts()  # doctest: +SKIP
    {'contradiction': 1, 'label': 4, 'outlier': 1}
    """
    named = {"backbone": backbone, "taps": tap, "multilabel": multilabel}
    features = as_features(features, reading, stored=True, cache=cache, **named)
    if not len(features):
        raise FeaturesError(f"{features.name!r} has no image that could be read: nothing to audit")
    blocks = _blocks(features, backbone, tap)
    study = _Study(features, blocks, seed, as_bytes(max_ram))
    study.compare(pictures)
    study.judge_labels()
    findings = [
        finding
        for part in (_unread, _copies, _near, _labels, _classes, _pictures, _strangers, _counts)
        for finding in part(study)
    ]
    return Audit(
        features.name, len(features), by_importance(findings), study.left_out, study.checked
    )


def _blocks(features: Features, backbone: str | None, tap: str | None) -> list[BlockName]:
    name = None if backbone is None else canonical_name(backbone)
    where = None if tap is None else str(parse_tap(tap))
    blocks: list[BlockName] = [
        {"backbone": block.backbone, "tap": block.tap}
        for block in features.blocks
        if block.view is None and name in (None, block.backbone) and where in (None, block.tap)
    ]
    if not blocks:
        there = ", ".join(map(str, features.blocks)) or "none"
        raise FeaturesError(f"no block for {backbone=}, {tap=}; there are: {there}")
    return blocks


@dataclass
class _Study:
    """What is known of a dataset, as far as it was looked at."""

    features: Features
    blocks: list[BlockName]
    seed: int
    ram_bytes: int
    near: Near | None = None
    pictures: Pictures | None = None
    agreement: Agreement | None = None
    rows: Numbers = field(default_factory=lambda: np.empty(0, np.intp))  # whose labels are judged
    doubts: LabelDoubts | None = None
    left_out: list[str] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        manifest = self.features.manifest
        self.numbers = self.features.rows
        self.classes = manifest.classes or ()
        self.labels = self.features.labels
        self.copies = related_rows(self.features.keys, None)
        self.most_compared = max(2, self.ram_bytes // 4 // SIDE**2)

    def path(self, row: int) -> str:
        return self.features.manifest.path[int(self.numbers[row])]

    def split(self, row: int) -> str:
        return self.features.manifest.split[int(self.numbers[row])]

    def label(self, row: int) -> str:
        code = self.labels[row]
        return self.classes[code] if code >= 0 else ""

    def image(
        self, row: int, action: Literal["", "relabel", "remove"] = "", new_label: str = ""
    ) -> AuditedImage:
        return AuditedImage(
            int(row), self.path(row), self.label(row), self.split(row), action, new_label
        )

    def finding(
        self,
        kind: str,
        evidence: str,
        images: Sequence[AuditedImage] = (),
        *,
        classes: Sequence[str] = (),
        score: float | None = None,
        command: str = "",
    ) -> Finding:
        """Return a finding with the command of its kind."""
        # As words, not as a pattern: a name may have braces.
        text = command or KINDS[kind].command.replace("{name}", shlex.quote(self.features.name))
        return Finding(kind, evidence, tuple(images), tuple(classes), score, text)

    def compare(self, with_pictures: bool) -> None:
        """Find images that are near each other, and compare their pixels where these are there."""
        firsts = np.unique(self.copies).astype(np.intp)
        try:
            self.near = near_pairs(
                self.features,
                self.blocks[0],
                firsts,
                max_ram_bytes=self.ram_bytes // 4,
                seed=self.seed,
            )
        except MissingExtraError as error:
            self.near = Near.nothing(len(self.features))
            self.left_out.append(f"nearly equal images and outliers: {error}")
        else:
            self.checked.append(f"features of {len(firsts):,} different images, with each other")
        imported = self.features.manifest.source == "imported"
        if with_pictures and not imported:
            few = len(firsts) <= self.most_compared
            kept = firsts if few else self._nearest_rows()
            self.pictures = look_at(self.features, kept.tolist())
            if few and self.pictures is not None:
                self._add_similar_looks(firsts[self.pictures.seen[firsts]])
        if self.pictures is None:
            why = "left out" if not with_pictures else "no original is where it was"
            self.left_out.append(
                f"pixels ({why}): nothing is said of size, light and sharpness, and nearly equal "
                "images are named by their features alone"
            )
            return
        seen = self.pictures.seen
        self.checked.append(f"pixels of {int(seen.sum()):,} images")
        if missing := int((~seen).sum()):
            self.left_out.append(
                f"pixels of {missing:,} images whose files are gone or have changed since"
            )
        compared = np.zeros(len(seen), np.bool_)
        compared[list(self.pictures.greys)] = True
        if len(firsts) > self.most_compared:
            self.left_out.append(
                f"pairs whose features are not among the nearest: pixels of {compared.sum():,} "
                "images were compared with each other"
            )
        self.near = self.near.take(np.flatnonzero(compared[self.near.pairs].all(axis=1)))
        used, numbers = np.unique(self.near.pairs, return_inverse=True)
        if len(used):
            greys = greys_of(self.pictures, used)
            self.agreement = compare_pictures(greys, numbers.reshape(-1, 2))

    def _add_similar_looks(self, rows: Numbers) -> None:
        """Add pairs of rows that look alike in their coarse shades."""
        assert self.near is not None
        assert self.pictures is not None
        if not len(rows):
            return
        more = rows[similar_looks(greys_of(self.pictures, rows))]
        pairs, at = np.unique(np.concatenate([self.near.pairs, more]), axis=0, return_index=True)
        cosine = np.concatenate([self.near.cosine, np.full(len(more), np.nan)])[at]
        self.near = Near(pairs, cosine, self.near.nearness)

    def equal_pairs(self) -> Iterator[tuple[int, int, float, str]]:
        """Yield rows that are nearly equal, how nearly, and what they are to each other."""
        assert self.near is not None
        if self.pictures is None:
            for number in self._surely_near().tolist():
                first, second = self.near.pairs[number].tolist()
                cosine = float(self.near.cosine[number])
                yield first, second, cosine, f"their features agree to {cosine:.1%}"
            return
        if self.agreement is None:
            return
        agreement = self.agreement
        for number in np.flatnonzero(agreement.equal).tolist():
            first, second = self.near.pairs[number].tolist()
            what = "is the mirror image of" if agreement.mirrored[number] else "shows what"
            area = agreement.window[number]
            part = "the whole" if area > 0.97 else f"{area:.0%} of it"
            text = (
                f"one {what} the other{'' if agreement.mirrored[number] else ' shows'}, {part}: "
                f"their pixels agree to {agreement.plain[number]:.0%}"
            )
            yield first, second, float(agreement.detail[number]), text

    def _surely_near(self) -> Numbers:
        """Return the pairs that are far nearer to each other than images are to their nearest."""
        assert self.near is not None
        near = (1 - self.near.cosine <= _SURELY_NEAR) & (self.near.relative_distance <= _NEARER)
        return np.flatnonzero(near)

    def _nearest_rows(self) -> Numbers:
        """Return the rows of the pairs that are nearest, as many as are looked at."""
        assert self.near is not None
        pairs = self.near.pairs[np.argsort(self.near.relative_distance, kind="stable")]
        rows, first = np.unique(pairs, return_index=True)
        return np.sort(rows[np.argsort(first)[: self.most_compared]])

    def judge_labels(self) -> None:
        """Judge the labels by heads that have not seen the images."""
        features = self.features
        y, rows = features.y, np.flatnonzero(self.labels >= 0)
        if y is None or not len(rows):
            self.left_out.append("labels: there are none")
            return
        if sets := look_like_sets(self.classes):
            self.left_out.append(f"labels: they {sets}, which are not judged yet")
            return
        units = np.unique(np.stack([self.labels[rows], self.copies[rows]]), axis=1)
        several = np.flatnonzero(np.bincount(units[0]) >= 2)
        rows = rows[np.isin(self.labels[rows], several)]
        try:
            check_classes(features, y, rows)
            self.doubts = doubt_labels(self.labels[rows], self._probabilities(rows))
        except (DatasetError, HeadError) as error:
            self.left_out.append(f"labels: {error}")
            return
        self.rows = rows
        by = ", ".join(f"{block['backbone']} {block['tap']}" for block in self.blocks)
        self.checked.append(f"labels of {len(rows):,} images, by {by}")

    def _probabilities(self, rows: Numbers) -> Passes:
        """Return the mean of what heads on all blocks say of rows that they have not seen."""
        related = related_rows(self.features.keys, self.features.groups)
        pairs = [(first, second) for first, second, _, _ in self.equal_pairs()]
        together = _joined(related, pairs)[rows]
        parts = []
        for block in self.blocks:
            judge = partial(
                held_out_probabilities,
                self.features,
                block,
                rows,
                max_ram_bytes=self.ram_bytes,
                seed=self.seed,
            )
            try:
                parts.append(judge(together=together))
            except DatasetError:
                # Nearly equal images may tie a whole class together; copies alone seldom do.
                parts.append(judge())
        return mean_probabilities(parts)


def _joined(groups: NDArray[np.int64], pairs: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
    """Return groups of rows, those of each pair made one."""
    if not pairs:
        return groups
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n, links = len(groups), np.array(pairs, np.int64)
    first = np.concatenate([np.arange(n), links[:, 0]])
    second = np.concatenate([groups, links[:, 1]])
    graph = coo_array((np.ones(len(first), np.bool_), (first, second)), shape=(n, n))
    joined: NDArray[np.int64] = connected_components(graph, directed=False)[1].astype(np.int64)
    return joined


# Files


def _unread(study: _Study) -> Iterator[Finding]:
    manifest = study.features.manifest
    for number in np.flatnonzero(manifest.status == FAILED).tolist():
        image = AuditedImage(-1, manifest.path[number])
        yield study.finding("unreadable", manifest.reason[number], [image])
    row_of = {study.path(row): row for row in range(len(study.numbers))} if _edited(study) else {}
    for conflict in label_conflicts(manifest):
        row = row_of.get(conflict["path"])
        if row is not None:
            before, folder = (conflict[name] or "no class" for name in ("before", "folder"))
            evidence = f"it was in {before} when it was labelled, and is in {folder} now"
            yield study.finding("moved", evidence, [study.image(row)])


def _edited(study: _Study) -> bool:
    return any(edit.get("before") for edit in study.features.manifest.edits)


def _copies(study: _Study) -> Iterator[Finding]:
    """Find groups of files that are equal byte for byte."""
    counts = np.bincount(study.copies, minlength=len(study.copies))
    repeated = np.flatnonzero(counts[study.copies] > 1)
    groups = defaultdict(list)
    for row in repeated.tolist():
        groups[int(study.copies[row])].append(row)
    for rows in groups.values():
        labels = Counter(study.label(row) for row in rows if study.label(row))
        sets = {frozenset(label.split(SEPARATOR)) for label in labels}
        if len(sets) > 1:
            yield _contradiction(study, rows, labels)
        if len({study.split(row) for row in rows}) > 1:
            kept = _kept(study, rows)
            images = [study.image(row, "" if row == kept else "remove") for row in rows]
            yield study.finding("leak", "the files are equal byte for byte", images, score=1.0)
        elif len(sets) <= 1:
            images = [study.image(row, "remove" if row != rows[0] else "") for row in rows]
            evidence = f"{len(rows)} files are equal byte for byte"
            yield study.finding("duplicate", evidence, images, score=1.0)


def _contradiction(study: _Study, rows: list[int], labels: Counter[str]) -> Finding:
    """Return a finding about equal images; most of them decide, else the other images do."""
    (first, most), (_, next_most), *_ = labels.most_common()
    better = first if most > next_most else ""
    numbers = np.flatnonzero(np.isin(study.rows, rows))
    if not better and study.doubts is not None and len(numbers):
        most_probable = study.rows[numbers[study.doubts.quality[numbers].argmax()]]
        better = study.label(int(most_probable))
    images = [
        study.image(row, "relabel", better)
        if better and study.label(row) != better
        else study.image(row)
        for row in rows
    ]
    evidence = f"equal byte for byte, labelled {' and '.join(sorted(labels))}"
    return study.finding("contradiction", evidence, images, classes=sorted(labels), score=1.0)


def _kept(study: _Study, rows: Sequence[int]) -> int:
    """Return which of several images of one content stays: one that is held out, the largest."""

    def worth(row: int) -> tuple[int, int, int]:
        split = study.split(row)
        order = _KEPT_FIRST.index(split) if split in _KEPT_FIRST else len(_KEPT_FIRST)
        size = 0 if study.pictures is None else int(study.pictures.size_px[row].prod())
        return order, -size, row

    return min(rows, key=worth)


def _near(study: _Study) -> Iterator[Finding]:
    """Find pairs of nearly equal images."""
    for first, second, score, evidence in study.equal_pairs():
        rows, sure = (first, second), study.pictures is not None
        leak = study.split(first) != study.split(second)
        labels = [study.label(row) for row in rows]
        if leak:
            kept = _kept(study, rows)
            images = [study.image(r, "remove" if sure and r != kept else "") for r in rows]
            yield study.finding("near-leak", evidence, images, score=score)
        if all(labels) and labels[0] != labels[1]:
            images = [study.image(row) for row in rows]
            doubtful = _more_doubtful(study, rows)
            if doubtful is not None:
                other = labels[1 - rows.index(doubtful)]
                images[rows.index(doubtful)] = study.image(doubtful, "relabel", other)
            yield study.finding("near-contradiction", evidence, images, score=score)
        elif not leak:
            kept = _kept(study, rows)
            images = [study.image(r, "remove" if sure and r != kept else "") for r in rows]
            yield study.finding("near-duplicate", evidence, images, score=score)


def _more_doubtful(study: _Study, rows: tuple[int, int]) -> int | None:
    """Return which of two images has the label that the others contradict, None if neither."""
    if study.doubts is None:
        return None
    wrong = [row for row in rows if study.doubts.wrong[study.rows == row].any()]
    return wrong[0] if len(wrong) == 1 else None


# Labels and classes


def _labels(study: _Study) -> Iterator[Finding]:
    if study.doubts is None:
        return
    doubts = study.doubts
    for number in np.flatnonzero(doubts.wrong).tolist():
        row, quality = int(study.rows[number]), float(doubts.quality[number])
        better = study.classes[doubts.better[number]]
        sure = float(doubts.better_probability[number])
        evidence = f"by the other images it is {better} ({sure:.0%}), not {study.label(row)} "
        evidence += f"({quality:.0%})"
        images = [study.image(row, "relabel", better)]
        yield study.finding("label", evidence, images, score=1 - quality)


def _classes(study: _Study) -> Iterator[Finding]:
    counts = np.bincount(study.labels[study.labels >= 0], minlength=len(study.classes))
    groups = defaultdict(list)
    for code, name in enumerate(study.classes):
        if counts[code]:
            groups[_plain(name)].append(name)
    for names in groups.values():
        if len(names) > 1:
            largest = max(names, key=lambda name: counts[study.classes.index(name)])
            changes = [shlex.quote(f"{name}={largest}") for name in names if name != largest]
            command = (
                f"featx dataset relabel {shlex.quote(study.features.name)} {' '.join(changes)}"
            )
            evidence = f"they differ only in case, accents, blanks or marks: {', '.join(names)}"
            yield study.finding("class-names", evidence, classes=names, score=1.0, command=command)
    if study.doubts is None:
        return
    predicted, k = study.doubts.predicted, len(study.classes)
    pairs, times = np.unique(study.labels[study.rows] * np.int64(k) + predicted, return_counts=True)
    often = dict(zip(pairs.tolist(), times.tolist(), strict=True))
    totals = np.bincount(study.labels[study.rows], minlength=k)
    mixed = {tuple(sorted(divmod(pair, k), key=lambda c: (-totals[c], c))) for pair in often}
    for large, small in sorted(mixed):
        if large == small or totals[small] < _ENOUGH:
            continue
        there = often.get(small * k + large, 0) / totals[small]
        back = often.get(large * k + small, 0) / totals[large]
        # Of a class that was cut in two unequal parts, heads take all for the larger one.
        swallowed = there >= _SWALLOWED
        if swallowed or (min(there, back) >= _EACH_WAY and there + back >= _MIXED_UP):
            names = [study.classes[large], study.classes[small]]
            evidence = (
                f"{there:.0%} of {names[1]} look like {names[0]}, and {back:.0%} the other way"
            )
            change = shlex.quote(f"{names[1]}={names[0]}")
            command = f"featx dataset relabel {shlex.quote(study.features.name)} {change}"
            score = float(min(1.0, max(there, (there + back) / 2)))
            yield study.finding(
                "class-features", evidence, classes=names, score=score, command=command
            )


def _plain(name: str) -> str:
    """Return a name without case, accents, blanks and marks between words."""
    letters = unicodedata.normalize("NFKD", name.casefold())
    plain = "".join(c for c in letters if not unicodedata.combining(c))
    return "".join(c for c in plain if c not in " _-.\t") or name


def _counts(study: _Study) -> Iterator[Finding]:
    """Say where there are too few images to measure, and which classes are small."""
    labelled = study.labels >= 0
    counts = np.bincount(study.labels[labelled], minlength=len(study.classes))
    present = np.flatnonzero(counts)
    if not len(present):
        return
    small = present[counts[present] < _FEW_OF_A_CLASS]
    if len(small):
        order = small[np.argsort(counts[small], kind="stable")]
        names = [study.classes[code] for code in order]
        shown = ", ".join(f"{study.classes[c]} ({counts[c]})" for c in order[:_LISTED])
        more = f" and {len(small) - _LISTED:,} more" if len(small) > _LISTED else ""
        evidence = (
            f"{len(small):,} classes have fewer than {_FEW_OF_A_CLASS} images, too few to tell how "
            f"well they are known: {shown}{more}"
        )
        yield study.finding("few", evidence, classes=names, score=1.0)
    splits = study.features.splits
    parts = {"the dataset": int(labelled.sum())}
    if splits is not None:
        held_out = [name for name in ("test", "val") if (splits == name).any()]
        parts = {f"the split {n}": int((labelled & (splits == n)).sum()) for n in held_out} or parts
    for name, size in parts.items():
        if 0 < size < _FEW_IN_ALL:
            half = 1.96 * np.sqrt(0.9 * 0.1 / size)
            evidence = (
                f"{name} has {size:,} labelled images: an accuracy of 90 % on them is known to "
                f"{half:.0%} up and down only"
            )
            yield study.finding("few", evidence, score=1 - size / _FEW_IN_ALL)
    largest, least = present[counts[present].argmax()], present[counts[present].argmin()]
    ratio = counts[largest] / counts[least]
    if ratio >= _UNEQUAL:
        names = [study.classes[largest], study.classes[least]]
        evidence = (
            f"{names[0]} has {counts[largest]:,} images, {names[1]} has {counts[least]:,}: "
            f"{ratio:,.0f} times as many"
        )
        yield study.finding("imbalance", evidence, classes=names, score=1 - 1 / ratio)


# Pictures


def _pictures(study: _Study) -> Iterator[Finding]:
    if study.pictures is None:
        return
    sizes = [min(study.features.spec(**block).input_size_px) for block in study.blocks]
    for kind, rows in doubtful_pictures(study.pictures, min(sizes)).items():
        action: Literal["", "remove"] = "remove" if kind == "blank" else ""
        for row, score, evidence in rows:
            yield study.finding(kind, evidence, [study.image(row, action)], score=score)


def _strangers(study: _Study) -> Iterator[Finding]:
    """Find images that are far from all others."""
    assert study.near is not None
    nearness = study.near.nearness
    rows = np.flatnonzero(np.isfinite(nearness))
    if len(rows) < 20:
        return
    distance = np.log(np.maximum(1 - nearness[rows], 1e-6))
    middle = np.median(distance)
    spread = max(1.4826 * float(np.median(np.abs(distance - middle))), 0.05)
    z = (distance - middle) / spread
    for number in np.flatnonzero(z > _UNLIKE).tolist():
        row = int(rows[number])
        evidence = (
            f"its nearest images are {np.exp(distance[number] - middle):.1f} times as far as those "
            "of most"
        )
        score = float(min(1.0, z[number] / 10))
        yield study.finding("outlier", evidence, [study.image(row)], score=score)
