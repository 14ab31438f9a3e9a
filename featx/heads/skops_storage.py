"""scikit-learn heads as skops files, and what such a file may hold."""

from __future__ import annotations

import logging
from importlib import import_module
from typing import Any

from featx.exceptions import ArtefactError, HeadError, reason
from featx.files.claims import shortened
from featx.heads.skops_contents import (
    OWN_TYPES,
    Unchecked,
    check_contents,
    check_head,
    make,
    read_stored,
)

_LOGGER = logging.getLogger("featx")
_NEVER = {"tests", "conftest", "_testing", "externals", "datasets"}
_MOST_NAMED = 3


def dump_skops(head: Any) -> bytes:
    """Turn a trained estimator into a skops file.

    Warns through the logger ``featx`` where `load_skops` will ask for trust.

    Parameters
    ----------
    head : estimator
        Trained.

    Returns
    -------
    data : bytes

    Raises
    ------
    HeadError
        It is not trained, or holds what `load_skops` would refuse even with ``trust=True``.
    """
    import skops.io
    from sklearn.exceptions import NotFittedError
    from sklearn.utils.validation import check_is_fitted

    name = type(head).__name__
    try:
        check_is_fitted(head)
        data: bytes = skops.io.dumps(head)
    except NotFittedError as error:
        raise HeadError("the head is not trained: call fit before saving") from error
    except Exception as error:
        raise HeadError(
            f"{name} cannot be saved: {reason(error)}: use a head of featx or scikit-learn"
        ) from error
    cause = why_trust(data)
    if cause:
        refused = [path for path in _distrusted(data) if not _is_loadable(path)]
        if refused:
            raise HeadError(
                f"{name} cannot be saved, since no one could load it: it holds "
                f"{_named(refused)}; expected types of scikit-learn and featx only"
            )
        try:
            check_contents(data)
        except Exception as error:
            raise HeadError(
                f"{name} cannot be saved, since no one could load it: {reason(error)}; use a head "
                "of featx"
            ) from error
        _LOGGER.warning("loading this model will need --trust (trust=True): it %s", cause)
    return data


def why_trust(data: bytes) -> str:
    """Return why a skops file asks for trust, as the end of a sentence; empty where it does not."""
    try:
        check_head(read_stored(data))
    except Unchecked as error:
        return str(error)
    # Damage is for `load_skops` to name; trust does not help with it.
    except Exception:
        return "is damaged"
    return ""


def load_skops(data: bytes, *, name: str, trust: bool = False) -> Any:
    """Make a trained estimator from a skops file.

    Parameters
    ----------
    data : bytes
        The file.
    name : str
        What to call it in errors.
    trust : bool, default=False
        Whether to accept any class of scikit-learn, with any attributes.

    Returns
    -------
    head : estimator

    Raises
    ------
    ArtefactError
        The file is damaged or no skops file, holds what is not accepted, or holds no trained
        classifier.
    """
    try:
        stored = read_stored(data)
        check_head(stored)
        return make(stored)
    except Unchecked as error:
        cause = str(error)
    except Exception as error:
        raise _damaged(name, error) from error
    try:
        check_contents(data)
        import skops.io

        distrusted = _distrusted(data)
    except Exception as error:
        raise _damaged(name, error) from error
    refused = [t for t in distrusted if not _is_loadable(t)]
    if refused:
        raise ArtefactError(
            f"{name} names {_named(refused)}, which featx never loads: expected types of "
            "scikit-learn and featx only; do not use this file unless you made it, and then "
            "train again"
        )
    if not trust:
        raise ArtefactError(
            f"{name} {cause}: give --trust (trust=True) if you know who made the file, and else "
            "do not use it"
        )
    try:
        head = skops.io.loads(data, trusted=distrusted)
    except Exception as error:
        raise _damaged(name, error) from error
    if not _is_trained(head):
        raise ArtefactError(
            f"{name} holds {shortened(type(head).__name__)}, expected a trained classifier: "
            "save the model again"
        )
    return head


def _distrusted(data: bytes) -> list[str]:
    import skops.io

    return sorted(set(skops.io.get_untrusted_types(data=data)))


def _named(paths: list[str]) -> str:
    more = f" and {len(paths) - _MOST_NAMED} more" if len(paths) > _MOST_NAMED else ""
    return ", ".join(shortened(path) for path in paths[:_MOST_NAMED]) + more


def _is_loadable(path: str) -> bool:
    """Whether the path leads to a class of a head of featx, or one that scikit-learn defines.

    Never a function, so that no file can have one called; nothing of numpy or scipy beyond what
    skops trusts, since some of their classes open files when they are made; and nothing that is
    not plainly a part of the library, since looking it up imports it.
    """
    if path in OWN_TYPES:
        return True
    module_name, _, name = path.rpartition(".")
    parts = module_name.split(".")
    if parts[0] != "sklearn" or any(p in _NEVER or p.startswith("__") for p in parts):
        return False
    try:
        found = getattr(import_module(module_name), name, None)
    except Exception:
        return False
    return isinstance(found, type) and found.__module__.startswith("sklearn.")


def _is_trained(head: Any) -> bool:
    from sklearn.base import BaseEstimator
    from sklearn.utils.validation import check_is_fitted

    try:
        check_is_fitted(head)
    except Exception:
        return False
    return isinstance(head, BaseEstimator) and hasattr(head, "predict")


def _damaged(name: str, error: BaseException) -> ArtefactError:
    return ArtefactError(
        f"{name} is damaged or no skops file ({reason(error)}): expected what "
        "featx saved; copy it again or save the model again"
    )
