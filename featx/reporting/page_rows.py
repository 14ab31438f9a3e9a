"""The rows of a report as its page holds them: numbers and names packed, pictures in a budget."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from featx.files.safe_json import Json
from featx.images.labels import SEPARATOR
from featx.models.scored import Scored
from featx.reporting.thumbnails import thumbnails

_SCORED, _RIGHT, _TRAINED_ON = 1, 2, 4
# Side of a picture in pixels by the number of rows: what all of so many rows have room for.
_SIDES_PX = ((1200, 160), (2500, 128), (1 << 62, 96))
_MOST_PICTURES = 4000
_TRIED = 48
_MARGIN = 0.97
_OF_KEY = 16


def pack_rows(scored: Scored, points: NDArray[np.floating]) -> Json:
    """Return all rows of the features: ``columns`` and ``names`` lie in ``data``, base64 of gzip.

    Codes are those of ``texts``, from 1; 0 is none.
    """
    features, rows = scored.features, scored.rows
    n = len(features)
    texts, sets, label, predicted = _answers(scored)
    flags = np.zeros(n, np.uint8)
    flags[rows] = _SCORED + _RIGHT * scored.right
    if scored.trained_on is not None:
        flags[rows[scored.trained_on]] += _TRAINED_ON
    stated = np.full(n, "") if features.splits is None else features.splits
    splits, split = np.unique(stated, return_inverse=True)
    columns = {
        **{name: _spread(points[:, axis]) for axis, name in enumerate("xy")},
        "label": label,
        "predicted": predicted,
        "confidence": _shares(n, rows, scored.confidence),
        "likelihood": _shares(n, rows, scored.likelihood),
        "flags": flags,
        "split": _small(split),
    }
    if scored.label_sets is not None:
        doubtful = np.zeros(n, np.intp)
        doubtful[rows] = scored.doubtful
        columns["doubtful"] = _small(doubtful)
    named = "\0".join(features.paths).encode("utf-8", "backslashreplace")
    parts, described, offset = [], [], 0
    for name, column in columns.items():
        data = column.astype(column.dtype.newbyteorder("<")).tobytes()
        described.append([name, column.dtype.itemsize, offset, len(data)])
        parts.append(data)
        offset += len(data)
    packed = gzip.compress(b"".join([*parts, named]), 6, mtime=0)
    return {
        "rows": n,
        "columns": described,
        "names": [offset, len(named)],
        "texts": texts,
        "sets": sets,
        "labels": scored.names.tolist() if scored.label_sets is not None else [],
        "splits": splits.tolist(),
        "data": base64.b64encode(packed).decode("ascii"),
    }


def _answers(
    scored: Scored,
) -> tuple[list[str], list[list[int]], NDArray[np.unsignedinteger], NDArray[np.unsignedinteger]]:
    """Return texts of answers, the labels that each has, and codes of labels and predictions."""
    features, rows = scored.features, scored.rows
    n, known = len(features), scored.names.tolist()
    predicted = np.zeros(n, np.intp)
    if scored.judged is not None:
        texts = [*known, *sorted(set(features.classes or ()) - set(known))]
        code = {text: number + 1 for number, text in enumerate(texts)}
        codes = np.array([code[text] for text in features.classes or ()] + [0], np.intp)
        label = codes[features.labels]
        label[rows] = scored.judged.truth + 1
        predicted[rows] = scored.judged.predicted + 1
        return texts, [[number] for number in range(len(texts))], _small(label), _small(predicted)
    assert scored.label_sets is not None
    label = np.zeros(n, np.intp)
    truth = (scored.label_sets[0] > 0).astype(np.uint8)
    both = np.concatenate([truth, scored.decided.astype(np.uint8)])
    unique, codes = np.unique(both, axis=0, return_inverse=True)
    codes = codes.ravel()
    label[rows], predicted[rows] = codes[: len(rows)] + 1, codes[len(rows) :] + 1
    sets = [np.flatnonzero(row).tolist() for row in unique]
    texts = [SEPARATOR.join(known[number] for number in numbers) or "(none)" for numbers in sets]
    return texts, sets, _small(label), _small(predicted)


def _spread(values: NDArray[np.floating]) -> NDArray[np.uint16]:
    """Return numbers as places between their least and greatest, 0 to 65535."""
    if not len(values):
        return np.zeros(0, np.uint16)
    low, high = float(values.min()), float(values.max())
    return np.round((values - low) * (65535 / max(high - low, 1e-12))).astype(np.uint16)


def _shares(n: int, rows: NDArray[np.intp], values: NDArray[np.floating]) -> NDArray[np.uint16]:
    shares = np.zeros(n, np.uint16)
    shares[rows] = np.round(np.clip(values, 0, 1) * 65535)
    return shares


def _small(codes: NDArray[np.integer]) -> NDArray[np.unsignedinteger]:
    """Return codes in as few bytes as they need."""
    return codes.astype(np.min_scalar_type(int(codes.max(initial=0))))


def choose_pictures(
    scored: Scored, budget_bytes: int, *, first: Sequence[int] = (), seed: int = 0
) -> dict[int, str]:
    """Return pictures of rows as data URIs, by row, within a budget of bytes.

    Some rows come `first`, then the worst errors, then images of each class in turn.
    """
    features = scored.features
    n = len(features)
    side_px = next(side for most, side in _SIDES_PX if n <= most)
    order = list(dict.fromkeys([*first, *_by_interest(scored, seed)]))
    pictures = thumbnails(features, order[:_TRIED], side_px=side_px)
    if not pictures:
        # Perhaps only these are missing.
        pictures = thumbnails(features, order[_TRIED : 4 * _TRIED], side_px=side_px)
    if pictures:
        mean = sum(map(len, pictures.values())) / len(pictures)
        count = min(_MOST_PICTURES, int(budget_bytes * _MARGIN / mean))
        rest = [row for row in order[:count] if row not in pictures]
        pictures |= thumbnails(features, rest, side_px=side_px)
    kept, used = {}, 0
    for row in order:
        if row in pictures and (used := used + len(pictures[row]) + _OF_KEY) <= budget_bytes:
            kept[row] = pictures[row]
    return kept


def _by_interest(scored: Scored, seed: int) -> list[int]:
    """Return all rows: the worst errors, up to half of the pictures, then each class in turn."""
    features = scored.features
    worst = worst_first(scored)[: _MOST_PICTURES // 2]
    shuffled = np.random.default_rng(seed).permutation(len(features))
    labels = features.labels[shuffled]
    order = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(np.diff(labels[order], prepend=-2))
    turn = np.arange(len(order)) - np.repeat(starts, np.diff([*starts, len(order)]))
    in_turn = shuffled[order[np.argsort(turn, kind="stable")]]
    return list(dict.fromkeys([*worst, *in_turn.tolist()]))


def worst_first(scored: Scored) -> list[int]:
    """Return the rows that the model is wrong about, the most convinced first."""
    wrong = np.flatnonzero(~scored.right)
    order = np.argsort(scored.likelihood[wrong] - scored.confidence[wrong], kind="stable")
    worst: list[int] = scored.rows[wrong[order]].tolist()
    return worst
