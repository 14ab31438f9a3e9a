"""Edits of a dataset: manifests in, manifests out; no feature is touched.

What was edited is kept in the manifest as a list of edits, and done again when the folder of the
dataset is extracted again (`replay_edits`): labels and splits made here outlast what the folder
says, and hold for images that came since. The rows before the edits are kept too, so that the last
edit can be taken back: the others are done again to these rows.
"""

from __future__ import annotations

import glob
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from featx.cache.columns import Strings
from featx.cache.manifest import DUPLICATE, OK, STATUSES, Edit, Manifest
from featx.exceptions import CacheFormatError, DatasetError, UnknownNameError, reason
from featx.files.identity import Keys, copies, related_rows
from featx.files.stores import as_address, below

_ESCAPED = re.compile(r"\[([*?[])\]")
_SHOWN = 3
# Held-out splits are cut first: a val added later takes from train and never from test.
_FIRST, _LAST = ("test", "val"), "train"


def remove_rows(
    manifest: Manifest,
    globs: Iterable[str] = (),
    *,
    status: Iterable[str] = (),
    paths: Iterable[str] = (),
) -> Manifest:
    """Remove rows by patterns such as ``red/*.gif`` (``*`` crosses slashes), path, or status."""
    patterns, statuses = sorted({*globs, *map(glob.escape, paths)}), sorted(status)
    for name in statuses:
        if name not in STATUSES:
            raise UnknownNameError("status", name, STATUSES)
    edit: Edit = {"edit": "remove", "globs": patterns, "status": statuses}
    remaining = _edited(manifest, edit)
    if any(old.get("method") == "stratified" for old in manifest.edits):
        # Shares of what is left would give them other splits when they come back.
        gone = manifest.split.filled() & (remaining.path.find(manifest.path) < 0)
        removed = manifest.take(np.flatnonzero(gone))
        edit["splits"] = dict(zip(removed.path, removed.split, strict=True))
    if len(remaining) == len(manifest):
        raise DatasetError(
            f"no row of {manifest.name!r} fits "
            f"{', '.join([*patterns, *statuses]) or 'an empty list'}; paths look like "
            f"{manifest.path[0] if len(manifest) else ''!r}"
        )
    if not len(remaining):
        raise DatasetError(
            f"nothing would be left of {manifest.name!r}: to be rid of it, delete the dataset"
        )
    return remaining


def _remove(manifest: Manifest, edit: Edit, _: Manifest | None = None) -> Manifest:
    keep = ~np.isin(manifest.status, [STATUSES.index(name) for name in edit["status"]])
    keep &= ~_fitting(manifest.path, edit["globs"])
    return _take(manifest, np.flatnonzero(keep))


def _fitting(paths: Sequence[str], globs: Iterable[str]) -> NDArray[np.bool_]:
    """Return which paths fit a pattern."""
    # Thousands of patterns are paths themselves: those are looked up.
    plain, patterns = set(), []
    for pattern in globs:
        path = _ESCAPED.sub(r"\1", pattern)
        if glob.escape(path) == pattern:
            plain.add(path)
        else:
            patterns.append(pattern)
    fits = np.zeros(len(paths), np.bool_)
    if plain:
        fits = Strings.of(sorted(plain)).find(paths) >= 0
    if patterns:
        fitting = (any(fnmatchcase(path, each) for each in patterns) for path in paths)
        fits |= np.fromiter(fitting, np.bool_, len(paths))
    return fits


def relabel(
    manifest: Manifest,
    *,
    classes: Mapping[str, str] | None = None,
    paths: Mapping[str, str] | None = None,
    new_classes: bool = True,
) -> Manifest:
    """Rename or join classes (old to new), or label images by path; "" is none.

    Without `new_classes` a label of an image has to be a class that there is, or that `classes`
    makes; data without labels have none, and take any.
    """
    renamed = dict(classes or {})
    for name in renamed:
        if name not in (manifest.classes or ()):
            raise UnknownNameError("class", name, manifest.classes or ())
    if manifest.classes and not new_classes:
        _check_known({*manifest.classes, *renamed.values(), ""}, (paths or {}).values())
    keys = {}
    rows = manifest.path.find(list(paths or ())).tolist()
    for row, (path, label) in zip(rows, (paths or {}).items(), strict=True):
        if row < 0:
            raise UnknownNameError("path", path, manifest.path)
        if not manifest.key[row].any():
            raise DatasetError(f"{path} could not be read, so that its label cannot be kept")
        keys[manifest.key[row].tobytes().hex()] = label
    edit: Edit = {"edit": "relabel", "classes": renamed, "keys": keys}
    if before := _labels_of(keys, manifest.before_edits):
        edit["before"] = {key: sorted(names) for key, names in before.items()}
    return _edited(manifest, edit)


def _check_known(known: set[str], labels: Iterable[str]) -> None:
    for label in labels:
        if label not in known:
            raise UnknownNameError(
                "class", label, known - {""}, hint="--new-class makes it (new_classes=True)"
            )


def _labels_of(keys: Iterable[str], manifest: Manifest | None) -> dict[str, set[str]]:
    """Return the labels that the images of each key have, one for each of its copies."""
    labels: dict[str, set[str]] = {}
    looked_up = {bytes.fromhex(key) for key in keys}
    if manifest is None or not looked_up:
        return labels
    names = [*(manifest.classes or ()), ""]
    rows = manifest.usable
    for row in rows[_with_keys(manifest.key[rows], looked_up)].tolist():
        labels.setdefault(manifest.key[row].tobytes().hex(), set()).add(names[manifest.label[row]])
    return labels


def _with_keys(keys: Keys, sought: Collection[bytes]) -> NDArray[np.intp]:
    """Return the rows that have one of some keys."""
    heads = np.frombuffer(b"".join(key[:8].ljust(8) for key in sought), np.uint64)
    rows = np.flatnonzero(np.isin(np.ascontiguousarray(keys[:, :8]).view(np.uint64)[:, 0], heads))
    fits = [row for row in rows.tolist() if keys[row].tobytes() in sought]
    return np.array(fits, np.intp)


def label_conflicts(manifest: Manifest) -> list[dict[str, str]]:
    """Return the images that were labelled here and have moved to another class folder since.

    Each with its ``path``, the ``label`` that it has here, what its ``folder`` says now, and what
    it said ``before``. An image that moved to the class that it has here is none.
    """
    labels: dict[str, str] = {}
    before: dict[str, list[str]] = {}
    for edit in manifest.edits:
        labels |= edit.get("keys", {})
        before |= edit.get("before", {})
    folders = _labels_of(before, manifest.before_edits)
    moved = {key: names - {*before[key], labels[key]} for key, names in folders.items()}
    conflicts = []
    for row in manifest.usable if any(moved.values()) else ():
        key = manifest.key[row].tobytes().hex()
        if moved.get(key):
            now = {"folder": min(moved[key]), "before": before[key][0]}
            conflicts.append({"path": manifest.path[row], "label": labels[key], **now})
    return conflicts


def _relabel(manifest: Manifest, edit: Edit, _: Manifest | None = None) -> Manifest:
    names = [edit["classes"].get(name, name) for name in manifest.classes or ()]
    by_key = {bytes.fromhex(key): label for key, label in edit["keys"].items()}
    new = {label: len(names) + number for number, label in enumerate(set(by_key.values()))}
    codes = manifest.label.copy()
    for row in _with_keys(manifest.key, by_key).tolist():
        codes[row] = new[by_key[manifest.key[row].tobytes()]]
    return _with_codes(manifest, codes, [*names, *new])


def assign_splits(
    manifest: Manifest,
    fractions: Mapping[str, float],
    *,
    method: Literal["hash", "stratified"] = "hash",
    seed: int = 0,
) -> Manifest:
    """Split a dataset by `hash_splits` or `stratified_splits`; what was not read gets no split."""
    if method not in ("hash", "stratified"):
        raise UnknownNameError("method of splitting", method, ("hash", "stratified"))
    cuts = _check_fractions(fractions)
    return _edited(
        manifest, {"edit": "split", "fractions": cuts, "method": method, "seed": int(seed)}
    )


def _split(manifest: Manifest, edit: Edit, earlier: Manifest | None = None) -> Manifest:
    rows = manifest.usable
    keys, groups = manifest.key[rows], list(manifest.group.take(rows))
    fractions, seed = edit["fractions"], edit["seed"]
    if edit["method"] == "hash":
        new = hash_splits(keys, groups, fractions, seed=seed)
    else:
        known = None if earlier is None else _known_splits(manifest, rows, earlier)
        labels = manifest.label[rows]
        new = stratified_splits(keys, groups, labels, fractions, seed=seed, earlier=known)
    # Images that were not read this time keep their split.
    splits = Strings.blank(len(manifest))
    if earlier is not None:
        splits = earlier.split.joined([""]).take(earlier.path.find(manifest.path))
    return manifest.changed(split=splits.changed(rows, new))


def _known_splits(
    manifest: Manifest, rows: NDArray[np.intp], earlier: Manifest
) -> dict[bytes, str]:
    """Return the earlier split of each key; rows that had no key then are matched by path."""
    known, unread = {}, {}
    for path, key, split in zip(earlier.path, earlier.key, earlier.split, strict=True):
        if split and key.any():
            known[key.tobytes()] = split
        elif split:
            unread[path] = split
    for row, path in zip(rows, manifest.path.take(rows), strict=True) if unread else ():
        if path in unread:
            known.setdefault(manifest.key[row].tobytes(), unread[path])
    return known


def add_rows(manifest: Manifest, other: Manifest, *, name: str | None = None) -> Manifest:
    """Join the rows of two datasets, with absolute paths, and the features that both have."""
    if manifest.source != other.source:
        raise DatasetError(
            f"{manifest.name!r} holds {manifest.source}, {other.name!r} holds {other.source}: "
            "expected two of a kind"
        )
    blocks = tuple(block for block in manifest.blocks if block in other.blocks)
    if manifest.source == "imported" and not blocks:
        raise DatasetError(
            f"{manifest.name!r} and {other.name!r} were imported apart and share no features: "
            "import them together"
        )
    ours, theirs = _absolute(manifest), _absolute(other)
    new = np.ones(len(theirs), np.bool_)
    if manifest.source == "files":
        new = ours.path.find(theirs.path) < 0
    theirs = _take(theirs, np.flatnonzero(new))
    whole = ours.joined(theirs).changed(
        name=name or manifest.name,
        root="",
        blocks=blocks,
        strays=(),
        edits=(),
        unedited=None,
    )
    return with_labels(restated(whole), [*ours.label_names, *theirs.label_names])


def _absolute(manifest: Manifest) -> Manifest:
    if not manifest.root:
        return manifest
    paths = [
        below(manifest.root, path)
        if as_address(manifest.root) or as_address(path)
        else str(PurePosixPath(manifest.root, path))
        for path in manifest.path
    ]
    return manifest.changed(path=paths)


def _take(manifest: Manifest, rows: NDArray[np.intp]) -> Manifest:
    taken = restated(manifest.take(rows))
    return _with_codes(taken, taken.label, taken.classes or ())


def restated(manifest: Manifest) -> Manifest:
    """Return a manifest in which the first of equal images is ``ok``, the others ``duplicate``."""
    rows = manifest.usable
    status = manifest.status.copy()
    status[rows] = OK
    status[rows[copies(manifest.key[rows])]] = DUPLICATE
    return manifest.changed(status=status)


def with_labels(manifest: Manifest, labels: Sequence[str]) -> Manifest:
    """Label all rows; classes keep their order, new ones follow, those without a row vanish."""
    code = {name: number for number, name in enumerate(set(labels))}
    return _with_codes(manifest, np.array([code[name] for name in labels], np.int32), list(code))


def _with_codes(manifest: Manifest, codes: NDArray[np.int32], names: Sequence[str]) -> Manifest:
    """Label all rows by codes of names, of which some may be alike or empty; see `with_labels`."""
    used = {names[code] for code in np.unique(codes).tolist() if code >= 0} - {""}
    old = [name for name in manifest.classes or () if name in used]
    classes = (*old, *sorted(used.difference(old)))
    numbers = {name: number for number, name in enumerate(classes)}
    new_codes = np.array([*(numbers.get(name, -1) for name in names), -1], np.int32)
    return manifest.changed(classes=classes or None, label=new_codes[codes])


_APPLY: dict[str, Callable[[Manifest, Edit, Manifest | None], Manifest]] = {
    "relabel": _relabel,
    "remove": _remove,
    "split": _split,
}


def _edited(manifest: Manifest, edit: Edit) -> Manifest:
    """Do an edit and keep it with the manifest; a split makes an earlier split void."""
    edits, unedited = list(manifest.edits), manifest.before_edits
    if edit["edit"] == "split":
        for index in reversed(range(len(edits))):
            if edits[index]["edit"] == "split":
                edit["replaced"] = {"index": index, "edit": edits.pop(index)}
    edited = _APPLY[edit["edit"]](manifest, edit, None)
    return edited.changed(edits=(*edits, edit), unedited=unedited)


def undo_edit(manifest: Manifest) -> Manifest:
    """Return a dataset without its last edit: the others are done again to its rows before all."""
    name, raw = manifest.name, manifest.before_edits
    if not manifest.edits:
        raise DatasetError(f"{name!r} has no edit that could be taken back")
    if raw is None:
        again = f"`featx extract {manifest.root}`" if manifest.root else "import or extract it"
        raise DatasetError(
            f"featx 0.1 edited {name!r} and kept no rows from before: {again} again, then undo"
        )
    *edits, last = manifest.edits
    earlier = _with_removed(manifest, raw, last)
    if last["edit"] == "split":
        if replaced := last.get("replaced"):
            edits.insert(replaced["index"], replaced["edit"])
        earlier = earlier.changed(split=Strings.blank(len(earlier)))
    return replay_edits(raw, earlier.changed(edits=tuple(edits)))


def _with_removed(manifest: Manifest, raw: Manifest, last: Edit) -> Manifest:
    """Return a dataset with the rows that its last edit removed, in the splits that they had."""
    if not last.get("splits"):
        return manifest
    splits = last["splits"]
    gone = (Strings.of(list(splits)).find(raw.path) >= 0) & (manifest.path.find(raw.path) < 0)
    back = raw.take(np.flatnonzero(gone))
    return manifest.joined(back.changed(split=[splits[path] for path in back.path]))


def replay_edits(fresh: Manifest, earlier: Manifest) -> Manifest:
    """Return a new manifest of the same data with the edits of the earlier one."""
    edited, known = fresh, earlier if earlier.split.any() else None
    for edit in earlier.edits:
        if edit["edit"] not in _APPLY:
            raise CacheFormatError(
                f"the edit {edit['edit']!r} of {earlier.name!r} is not known to this featx: "
                "upgrade featx"
            )
        try:
            edited = _APPLY[edit["edit"]](edited, edit, known)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CacheFormatError(f"damaged edits of {earlier.name!r}: {reason(error)}") from error
    raw = fresh.changed(edits=(), unedited=None) if earlier.edits else None
    return edited.changed(edits=earlier.edits, unedited=raw)


def later_edits(earlier: Manifest | None, current: Manifest) -> Manifest | None:
    """Return a dataset with only the edits that came after an earlier state; None if some went."""
    before = () if earlier is None else earlier.edits
    begins_alike = current.edits[: len(before)] == before
    return current.changed(edits=current.edits[len(before) :]) if begins_alike else None


def kept_rows(earlier: Manifest, paths: Sequence[str]) -> list[int]:
    """Return the rows of a folder whose paths no edit removed: the others need not be read."""
    globs = [pattern for edit in earlier.edits for pattern in edit.get("globs", ())]
    return np.flatnonzero(~_fitting(paths, globs)).tolist()


# Edits as sentences


def describe_edit(edit: Edit) -> str:
    """Return what an edit did as a sentence about its command."""
    describe = _SENTENCES.get(edit["edit"])
    return f'"{edit["edit"]}" {"is not known here" if describe is None else describe(edit)}.'


def _describe_remove(edit: Edit) -> str:
    parts = [f"images that {_STATUS_WORDS.get(name, name)}" for name in edit["status"]]
    paths = [_ESCAPED.sub(r"\1", pattern) for pattern in edit["globs"]]
    if paths:
        parts.append(_listed(paths) if len(paths) <= _SHOWN else f"{len(paths):,} images by path")
    return f"left out {' and '.join(parts)}"


_STATUS_WORDS = {"failed": "could not be read", "duplicate": "equal an earlier one"}


def _describe_relabel(edit: Edit) -> str:
    parts = [
        f"took the label {old} away" if not new else f"renamed the class {old} to {new}"
        for old, new in edit["classes"].items()
    ]
    counts = Counter(edit["keys"].values()).most_common()
    if counts:
        total = sum(count for _, count in counts)
        kinds = [f"{count:,} as {name}" if name else f"{count:,} as none" for name, count in counts]
        more = "" if len(kinds) <= _SHOWN else f" and {len(kinds) - _SHOWN:,} more classes"
        images = "image" if total == 1 else "images"
        parts.append(f"labelled {total:,} {images}: {_listed(kinds[:_SHOWN])}{more}")
    return ", ".join(parts) or "changed no label"


def _describe_split(edit: Edit) -> str:
    shares = [f"{share:.0%} {name}" for name, share in reversed(edit["fractions"].items())]
    how = "by hash" if edit["method"] == "hash" else "with equal shares of each class"
    return f"made {_listed(shares)} {how}, seed {edit['seed']}"


def _listed(words: Sequence[str]) -> str:
    return ", ".join(words[:-1]) + (" and " if len(words) > 1 else "") + words[-1]


_SENTENCES: dict[str, Callable[[Edit], str]] = {
    "relabel": _describe_relabel,
    "remove": _describe_remove,
    "split": _describe_split,
}


def _check_fractions(fractions: Mapping[str, float]) -> dict[str, float]:
    """Return fractions in the order in which they are cut; they must be positive with sum 1."""
    bad = [name for name, part in fractions.items() if not name.strip() or not 0 < part <= 1]
    if bad or abs(sum(fractions.values()) - 1) > 1e-6:
        raise DatasetError(
            "expected fractions above 0 whose sum is 1, such as train 0.8 and test 0.2, received "
            f"{dict(fractions)}"
        )
    middle = sorted(set(fractions) - {*_FIRST, _LAST})
    return {name: float(fractions[name]) for name in (*_FIRST, *middle, _LAST) if name in fractions}


def hash_splits(
    keys: Keys, groups: Sequence[str], fractions: Mapping[str, float], *, seed: int = 0
) -> list[str]:
    """Return the split of each row, decided by its group, else its key, and the seed alone."""
    # Rows that come later move no row that was there, unless they tie two groups together (an image
    # of one group that equals one of another): then the smaller hash decides.
    names, ends = _cuts(fractions)
    positions = _positions(keys, groups, related_rows(keys, groups), seed)
    return [names[at] for at in np.searchsorted(ends, positions, side="right").tolist()]


def _cuts(fractions: Mapping[str, float]) -> tuple[list[str], NDArray[np.float64]]:
    """Return the names of splits, and where in [0, 1) each but the last one ends."""
    cuts = _check_fractions(fractions)
    return list(cuts), np.cumsum(list(cuts.values()))[:-1]


def _positions(
    keys: Keys, groups: Sequence[str], together: NDArray[np.int64], seed: int
) -> NDArray[np.float64]:
    """Return a number in [0, 1) for each row, the same for related rows."""
    named = np.array([bool(group) for group in groups], np.bool_)
    positions = np.full(len(keys), np.inf)
    # The key counts only where no related row has a group: a copy without a group moves nothing.
    grouped = np.zeros(len(keys), np.bool_)
    grouped[together[named]] = True
    known: dict[str, float] = {}
    for row, group in enumerate(groups):
        if group:
            if group not in known:
                known[group] = _position(seed, "group", group.encode("utf-8", "surrogateescape"))
            positions[row] = known[group]
        elif not grouped[together[row]] and together[row] == row:
            positions[row] = _position(seed, "key", keys[row].tobytes())
    least = np.full(len(keys), np.inf)
    np.minimum.at(least, together, positions)
    spread: NDArray[np.float64] = least[together]
    return spread


def _position(seed: int, kind: str, name: bytes) -> float:
    digest = hashlib.sha256(f"featx-split-1 {seed} {kind} ".encode("ascii") + name).digest()
    return int.from_bytes(digest[:6], "big") / (1 << 48)


def stratified_splits(
    keys: Keys,
    groups: Sequence[str],
    labels: NDArray[np.int32],
    fractions: Mapping[str, float],
    *,
    seed: int = 0,
    earlier: Mapping[bytes, str] | None = None,
) -> list[str]:
    """Return the split of each row, the classes in equal shares; `earlier` ones (by key) stay."""
    # Related rows count for the class of the first. Rows that are related to no earlier one are
    # placed by their hash: the shares of what is fixed cannot be mended without moving it.
    together = related_rows(keys, groups)
    if earlier is not None:
        old: dict[int, str] = {}
        for row, head in enumerate(together.tolist()):
            split = earlier.get(keys[row].tobytes(), "")
            if split:
                old.setdefault(head, split)
        fresh = hash_splits(keys, groups, fractions, seed=seed)
        return [old.get(head, new) for head, new in zip(together.tolist(), fresh, strict=True)]
    names, ends = _cuts(fractions)
    positions = _positions(keys, groups, together, seed)
    weights = np.bincount(together, minlength=len(keys))
    heads = np.flatnonzero(weights)
    chosen = np.zeros(len(keys), np.int64)
    for label in np.unique(labels[heads]):
        rows = heads[labels[heads] == label]
        rows = rows[np.argsort(positions[rows], kind="stable")]
        middles = np.cumsum(weights[rows]) - weights[rows] / 2
        chosen[rows] = np.searchsorted(ends, middles / weights[rows].sum(), side="right")
    return [names[at] for at in chosen[together].tolist()]
