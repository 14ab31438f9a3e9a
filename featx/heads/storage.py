"""Heads as the bytes that an artefact keeps. Nothing here writes or reads a pickle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from featx.exceptions import ArtefactError
from featx.heads.dense_storage import ARRAYS, DESCRIPTION, dump_dense, is_dense, load_dense
from featx.heads.skops_storage import dump_skops, load_skops

_SKOPS = "head.skops"


def dump_head(head: Any) -> dict[str, bytes]:
    """Turn a trained head into files.

    Parameters
    ----------
    head : estimator
        Trained. A `DenseClassifier`, alone or behind a ``StandardScaler``, becomes ``head.json``
        and ``head.h5``; anything else ``head.skops``.

    Returns
    -------
    files : dict of str to bytes
        Contents by file name.

    Raises
    ------
    HeadError
        The head is not trained, or holds something that `load_head` would never accept.

    Examples
    --------
    >>> from featx.heads.registry import make_head
    >>> head = make_head("logistic").fit([[0.0], [1.0]], ["ants", "bees"])
    >>> files = dump_head(head)
    >>> sorted(files)
    ['head.skops']
    >>> load_head(files).predict([[0.9]]).tolist()
    ['bees']
    """
    return dump_dense(head) if is_dense(head) else {_SKOPS: dump_skops(head)}


def load_head(files: Mapping[str, bytes], *, trust: bool = False) -> Any:
    """Make a trained head from files.

    Parameters
    ----------
    files : mapping of str to bytes
        As `dump_head` gave them; other names are left alone.
    trust : bool, default=False
        By default only heads of the table in `featx.heads.skops_contents` are made, each of whose
        attributes is one that training leaves. With trust, any class of scikit-learn with any
        attributes: it can write files, run pickles and crash the process. Functions and classes
        from anywhere else are refused all the same.

    Returns
    -------
    head : estimator
        With the same answers, bit for bit, as the one that was saved.

    Raises
    ------
    ArtefactError
        A file is missing, damaged, not ours, or holds what is not accepted; it is named.
    """
    if _SKOPS in files:
        return load_skops(files[_SKOPS], name=_SKOPS, trust=trust)
    if DESCRIPTION in files and ARRAYS in files:
        return load_dense(files[DESCRIPTION], files[ARRAYS])
    raise ArtefactError(
        f"no head: expected {_SKOPS}, or {DESCRIPTION} and {ARRAYS}, received "
        f"{', '.join(sorted(files)) or 'no files'}: save the model again"
    )
