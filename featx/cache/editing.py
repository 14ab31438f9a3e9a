"""Edits of a dataset: manifests in, manifests out; no feature is touched.

What was edited is kept in the manifest as a list of edits, and done again when the folder of the
dataset is extracted again (`replay_edits`): labels and splits made here outlast what the folder
says, and hold for images that came since.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from featx.cache.manifest import DUPLICATE, OK, STATUSES, Manifest
from featx.cache.splitting import check_fractions, hash_splits, stratified_splits
from featx.exceptions import CacheFormatError, DatasetError, UnknownNameError, reason
from featx.files.stamps import STAMP

_STRINGS = ("path", "group", "split", "reason")
_ARRAYS = ("label", *STAMP, "key", "status")


def remove_rows(
    manifest: Manifest, globs: Iterable[str] = (), *, status: Iterable[str] = ()
) -> Manifest:
    """Leave out rows.

    Parameters
    ----------
    manifest : Manifest
        The dataset.
    globs : iterable of str, optional
        Patterns of paths such as ``red/*.gif``, in which ``*`` also stands for slashes.
    status : iterable of {"ok", "failed", "duplicate", "pending"}, optional
        What became of the rows; ``duplicate`` leaves the first of equal images.

    Raises
    ------
    UnknownNameError
        For another status.
    DatasetError
        If no row fits, or all do.
    """
    edit = {"edit": "remove", "globs": sorted(globs), "status": sorted(status)}
    for name in edit["status"]:
        if name not in STATUSES:
            raise UnknownNameError("status", name, STATUSES)
    left = _remove(manifest, edit)
    if len(left) == len(manifest):
        asked = ", ".join([*edit["globs"], *edit["status"]])
        raise DatasetError(
            f"no row of {manifest.name!r} fits {asked or 'an empty list'}; paths look like "
            f"{manifest.path[0] if len(manifest) else ''!r}"
        )
    if not len(left):
        raise DatasetError(
            f"nothing would be left of {manifest.name!r}: to be rid of it, delete the dataset"
        )
    return _recorded(left, edit)


def _remove(manifest: Manifest, edit: Mapping[str, Any]) -> Manifest:
    codes = [STATUSES.index(name) for name in edit["status"]]
    kept = ~np.isin(manifest.status, codes)
    globs = edit["globs"]
    if globs:
        kept &= ~np.array([any(fnmatchcase(p, g) for g in globs) for p in manifest.path], np.bool_)
    return _take(manifest, np.flatnonzero(kept))


def relabel(
    manifest: Manifest,
    *,
    classes: Mapping[str, str] | None = None,
    paths: Mapping[str, str] | None = None,
) -> Manifest:
    """Rename, join or drop classes, or label single images.

    Parameters
    ----------
    manifest : Manifest
        The dataset.
    classes : mapping of str to str, optional
        Old class to new one, all at once (two may be swapped); empty text takes the label away.
    paths : mapping of str to str, optional
        Path to class. Images that equal one of these byte for byte get the same label.

    Raises
    ------
    UnknownNameError
        If there is no such class or path.
    DatasetError
        If an image could not be read, so that it cannot be found again.
    """
    old = dict(classes or {})
    for name in old:
        if name not in (manifest.classes or ()):
            raise UnknownNameError("class", name, manifest.classes or ())
    keys = {}
    row_of = {path: row for row, path in enumerate(manifest.path)}
    for path, label in (paths or {}).items():
        row = row_of.get(path)
        if row is None:
            raise UnknownNameError("path", path, row_of)
        if not manifest.key[row].any():
            raise DatasetError(f"{path} could not be read, so that its label cannot be kept")
        keys[manifest.key[row].tobytes().hex()] = label
    edit = {"edit": "relabel", "classes": old, "keys": keys}
    return _recorded(_relabel(manifest, edit), edit)


def _relabel(manifest: Manifest, edit: Mapping[str, Any]) -> Manifest:
    names = [*(manifest.classes or ()), ""]
    by_class = edit["classes"]
    labels = [by_class.get(names[code], names[code]) for code in manifest.label.tolist()]
    by_key = {bytes.fromhex(key): label for key, label in edit["keys"].items()}
    if by_key:
        for row, key in enumerate(manifest.key):
            labels[row] = by_key.get(key.tobytes(), labels[row])
    return _with_labels(manifest, labels)


def assign_splits(
    manifest: Manifest,
    fractions: Mapping[str, float],
    *,
    method: Literal["hash", "stratified"] = "hash",
    seed: int = 0,
) -> Manifest:
    """Split a dataset; rows of one group and equal images are on one side.

    Parameters
    ----------
    manifest : Manifest
        The dataset. Images that could not be read get no split.
    fractions : mapping of str to float
        Such as ``{"train": 0.8, "test": 0.2}``; their sum is 1.
    method : {"hash", "stratified"}, default "hash"
        ``hash`` looks at nothing but group, else key, and seed, so that no image moves when others
        come; ``stratified`` gives every class the same shares, and images that come later are
        placed by their hash.
    seed : int, default 0
        Another seed is another split.

    Raises
    ------
    DatasetError
        If the fractions are none.
    UnknownNameError
        For another method.
    """
    if method not in ("hash", "stratified"):
        raise UnknownNameError("method of splitting", method, ("hash", "stratified"))
    edit = {
        "edit": "split",
        "fractions": check_fractions(fractions),
        "method": method,
        "seed": int(seed),
    }
    return _recorded(_split(manifest, edit), edit)


def _split(
    manifest: Manifest, edit: Mapping[str, Any], earlier: Manifest | None = None
) -> Manifest:
    rows = np.flatnonzero(np.isin(manifest.status, (OK, DUPLICATE)))
    keys, groups = manifest.key[rows], [manifest.group[row] for row in rows]
    fractions, seed = edit["fractions"], edit["seed"]
    if edit["method"] == "hash":
        found = hash_splits(keys, groups, fractions, seed=seed)
    else:
        known = None if earlier is None else _known_splits(manifest, rows, earlier)
        found = stratified_splits(
            keys, groups, manifest.label[rows], fractions, seed=seed, earlier=known
        )
    # What could not be read this time, or was not reached, keeps what it had.
    old = {} if earlier is None else dict(zip(earlier.path, earlier.split, strict=True))
    splits = [old.get(path, "") for path in manifest.path]
    for row, split in zip(rows.tolist(), found, strict=True):
        splits[row] = split
    return replace(manifest, split=splits)


def _known_splits(
    manifest: Manifest, rows: NDArray[np.intp], earlier: Manifest
) -> dict[bytes, str]:
    known, unread = {}, {}
    for path, key, split in zip(earlier.path, earlier.key, earlier.split, strict=True):
        if split and key.any():
            known[key.tobytes()] = split
        elif split:
            unread[path] = split
    for row in rows if unread else ():
        if manifest.path[row] in unread:
            known.setdefault(manifest.key[row].tobytes(), unread[manifest.path[row]])
    return known


def add_rows(manifest: Manifest, other: Manifest, *, name: str | None = None) -> Manifest:
    """Join the rows of two datasets.

    The result is no folder's any more: its paths are absolute, and more of its features are
    extracted by its name. It has the features that both have.

    Parameters
    ----------
    manifest, other : Manifest
        The datasets; a file that is in both is taken from the first.
    name : str, optional
        Name of the result, that of the first by default.

    Raises
    ------
    DatasetError
        If one holds files and the other arrays or imported features, or if imported features
        were not made alike.
    """
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
    known = set(ours.path) if manifest.source == "files" else set()
    rows = np.array([row for row, path in enumerate(theirs.path) if path not in known], np.intp)
    theirs = _take(theirs, rows)
    strings: dict[str, Any] = {
        column: getattr(ours, column) + getattr(theirs, column) for column in _STRINGS
    }
    arrays: dict[str, Any] = {
        column: np.concatenate([getattr(ours, column), getattr(theirs, column)])
        for column in _ARRAYS
    }
    joined = replace(
        ours,
        name=name or manifest.name,
        root="",
        blocks=blocks,
        strays=(),
        edits=(),
        **strings,
        **arrays,
    )
    labels = [*_names(ours), *_names(theirs)]
    return _with_labels(restated(joined), labels)


def _absolute(manifest: Manifest) -> Manifest:
    if not manifest.root:
        return manifest
    return replace(
        manifest, path=[str(PurePosixPath(manifest.root, path)) for path in manifest.path]
    )


def _take(manifest: Manifest, rows: NDArray[np.intp]) -> Manifest:
    strings: dict[str, Any] = {
        name: [getattr(manifest, name)[row] for row in rows] for name in _STRINGS
    }
    arrays: dict[str, Any] = {name: getattr(manifest, name)[rows] for name in _ARRAYS}
    taken = restated(replace(manifest, **strings, **arrays))
    return _with_labels(taken, _names(taken))


def restated(manifest: Manifest) -> Manifest:
    """Let the first of equal images be ``ok`` and the others ``duplicate``."""
    read = np.flatnonzero(np.isin(manifest.status, (OK, DUPLICATE)))
    whole = np.ascontiguousarray(manifest.key[read]).view("V32").ravel()
    status = manifest.status.copy()
    status[read] = DUPLICATE
    status[read[np.unique(whole, return_index=True)[1]]] = OK
    return replace(manifest, status=status)


def _names(manifest: Manifest) -> list[str]:
    names = [*(manifest.classes or ()), ""]
    return [names[code] for code in manifest.label.tolist()]


def _with_labels(manifest: Manifest, labels: Sequence[str]) -> Manifest:
    """Label all rows; classes keep their order, new ones follow, those without a row vanish."""
    used = set(labels) - {""}
    old = [name for name in manifest.classes or () if name in used]
    classes = (*old, *sorted(used.difference(old)))
    code = {name: number for number, name in enumerate(classes)} | {"": -1}
    return replace(
        manifest,
        classes=classes or None,
        label=np.array([code[name] for name in labels], np.int32),
    )


def _recorded(manifest: Manifest, edit: dict[str, Any]) -> Manifest:
    """Keep an edit with the manifest; a split makes earlier splits void."""
    void = edit["edit"] if edit["edit"] == "split" else None
    kept = [old for old in manifest.edits if old["edit"] != void]
    return replace(manifest, edits=(*kept, edit))


_REPLAY: dict[str, Callable[[Manifest, Mapping[str, Any], Manifest], Manifest]] = {
    "relabel": lambda fresh, edit, _: _relabel(fresh, edit),
    "remove": lambda fresh, edit, _: _remove(fresh, edit),
    "split": _split,
}


def replay_edits(fresh: Manifest, earlier: Manifest) -> Manifest:
    """Do to a manifest that was made anew what was done to it before.

    Parameters
    ----------
    fresh : Manifest
        What the folder says now.
    earlier : Manifest
        The dataset as it was, with its edits.

    Returns
    -------
    Manifest
        With the same edits. Images that came since are treated like the others.

    Raises
    ------
    CacheFormatError
        If an edit is damaged, or of a later version.
    """
    for edit in earlier.edits:
        if edit["edit"] not in _REPLAY:
            raise CacheFormatError(
                f"the edit {edit['edit']!r} of {earlier.name!r} is not known to this featx: "
                "upgrade featx"
            )
        try:
            fresh = _REPLAY[edit["edit"]](fresh, edit, earlier)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CacheFormatError(f"damaged edits of {earlier.name!r}: {reason(error)}") from error
    return replace(fresh, edits=earlier.edits)


def later_edits(earlier: Manifest | None, current: Manifest) -> Manifest:
    """Return a dataset with those of its edits only that it did not have before."""
    before = () if earlier is None else earlier.edits
    begins_alike = current.edits[: len(before)] == before
    return replace(current, edits=current.edits[len(before) :] if begins_alike else ())


def kept_rows(earlier: Manifest, paths: Sequence[str]) -> list[int]:
    """Return the rows of a folder whose paths were not left out: the others need not be read."""
    globs = [glob for edit in earlier.edits for glob in edit.get("globs", ())]
    return [
        row for row, path in enumerate(paths) if not any(fnmatchcase(path, glob) for glob in globs)
    ]
