"""Every error that featx raises on purpose.

::

    FeatxError
    ├── DatasetError             what was given as data cannot be used (also ValueError)
    ├── ImageError               one image cannot be read or decoded (also ValueError)
    ├── UnknownNameError         a name that is in no table, with "did you mean" (also LookupError)
    ├── BackboneError            a backbone cannot be built
    │   └── WeightsError         weights are missing, damaged, or of another network
    ├── EngineError              a forward pass failed
    ├── CacheError               the cache folder cannot be used as asked
    │   ├── CacheWriteError      it cannot be written: permission, disk full, I/O error
    │   └── CacheFormatError     a file in it is damaged, foreign, or of another format version
    ├── StoreError               a bucket or web server does not give or take what it should
    ├── FeaturesError            features do not fit what they are used for (also ValueError)
    ├── HeadError                a head cannot be built or trained as asked (also ValueError)
    ├── FineTuningError          a network cannot be fine-tuned as asked (also ValueError)
    ├── ArtefactError            a saved model is damaged, foreign, unsafe, or of another version
    ├── ExportError              a model cannot be exported as asked, or its export differs from it
    ├── OutputError              a file would replace what is needed, or cannot be written there
    └── MissingExtraError        an optional dependency is not installed (also ImportError)

Every message says what was expected, what was received, and what to do next.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = [
    "ArtefactError",
    "BackboneError",
    "CacheError",
    "CacheFormatError",
    "CacheWriteError",
    "DatasetError",
    "EngineError",
    "ExportError",
    "FeaturesError",
    "FeatxError",
    "FineTuningError",
    "HeadError",
    "ImageError",
    "MissingExtraError",
    "OutputError",
    "StoreError",
    "UnknownNameError",
    "WeightsError",
    "reason",
]

_MOST_CHARACTERS = 200
# Patterns are compiled where an error has happened: commands that only print help import this too.
_SENTENCE = r"(?<=[.!?])\s+(?=[A-Z`'\"(])"
_COLOUR = r"\x1b\[[0-9;]*m"
# Advice for programs that call the library themselves, which nobody can follow in featx.
_ADVICE = (
    r"(?i)safe_mode|custom_object|load_model|from_config|get_config|unsafe|weights_only|compile=|"
    r"allow_pickle|bug report|github\.com|\bplease\b|^consider\b|^try\b"
)
# Where an error was raised, but not what is wrong.
_PLACE = (
    r"^(Exception from |Traceback |File \"|Check '|\[\[|Detected at node|Arguments received by|"
    r"<class |Exception encountered when calling )"
)


class FeatxError(Exception):
    """Base of every error that featx raises on purpose.

    Attributes
    ----------
    options : tuple of str
        What the user's command lacks; the command line then shows the corrected command.
    """

    options: tuple[str, ...] = ()


def reason(error: BaseException) -> str:
    r"""Return what went wrong in another library, to be put into a message of featx.

    Only the first sentence that states a fact: advice of the library, places in its source code and
    characters that would move the cursor are left out.

    Parameters
    ----------
    error : BaseException
        Of any library. An error of featx itself is given back whole.

    Returns
    -------
    str
        One line of at most 200 characters, without a full stop; the name of the error's type where
        its text says nothing.

    Examples
    --------
    >>> reason(ValueError("File not found.\nPlease pass safe_mode=False."))
    'File not found'
    >>> reason(RuntimeError())
    'RuntimeError'
    """
    if isinstance(error, FeatxError):
        return str(error)
    lines = [" ".join(line.split()) for line in re.sub(_COLOUR, "", str(error)).splitlines()]
    lines = [line for line in lines if line and not re.match(_PLACE, line)]
    if len(lines) > 1 and lines[0].endswith(":"):  # a heading of TensorFlow; the reason comes last
        lines = [f"{lines[0]} {lines[-1]}"]
    sentences = [part for line in lines for part in re.split(_SENTENCE, line)]
    facts = (part for part in sentences if not re.search(_ADVICE, part))
    text = next(facts, type(error).__name__)
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    if isinstance(error, KeyError) and " " not in text:
        text = f"{text} is missing"
    if len(text) > _MOST_CHARACTERS:
        text = f"{text[: _MOST_CHARACTERS - 3]}..."
    return text.rstrip(".:") if not text.endswith("...") else text


class DatasetError(FeatxError, ValueError):
    """What was given as data cannot be used."""


class ImageError(FeatxError, ValueError):
    """One image cannot be read or decoded."""


class UnknownNameError(FeatxError, LookupError):
    """A name that is in no table.

    Parameters
    ----------
    kind : str
        What was looked up, for example ``"backbone"``.
    name : str
        The name that was received.
    known : iterable of str
        The names that exist; the nearest ones are suggested.
    hint : str, default ""
        A next step, added at the end.

    Examples
    --------
    >>> print(UnknownNameError("head", "logistics", ["knn", "logistic"]))
    unknown head 'logistics': did you mean 'logistic'? Known: knn, logistic
    """

    def __init__(self, kind: str, name: str, known: Iterable[str], *, hint: str = "") -> None:
        import difflib  # an error has the time; `featx --help` has not

        names = sorted(known)
        spelled = {known_name.lower(): known_name for known_name in names}
        close = difflib.get_close_matches(name.lower(), spelled, n=3, cutoff=0.5)
        near = [spelled[match] for match in close]
        message = f"unknown {kind} {name!r}"
        if near:
            message += ": did you mean " + " or ".join(repr(n) for n in near) + "?"
        if names and len(names) <= 60:
            message += (" " if near else ". ") + "Known: " + ", ".join(names)
        if hint:
            message += (" " if message.endswith("?") else ". ") + hint
        super().__init__(message)
        self.kind, self.name, self.near = kind, name, tuple(near)


class BackboneError(FeatxError):
    """A backbone cannot be built."""


class WeightsError(BackboneError):
    """Weights are missing, damaged, or of another network."""


class EngineError(FeatxError):
    """A forward pass failed."""


class CacheError(FeatxError):
    """The cache folder cannot be used as asked."""


class CacheWriteError(CacheError):
    """The cache cannot be written."""


class CacheFormatError(CacheError):
    """A file in the cache is damaged, foreign, or of another format version."""


class StoreError(FeatxError):
    """A bucket or web server does not give or take what it should.

    Attributes
    ----------
    reason : str
        Why, in a few words, without the address.
    """

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


class FeaturesError(FeatxError, ValueError):
    """Features do not fit what they are used for."""


class HeadError(FeatxError, ValueError):
    """A head cannot be built or trained as asked."""


class FineTuningError(FeatxError, ValueError):
    """A network cannot be fine-tuned as asked."""


class ArtefactError(FeatxError):
    """A saved model is damaged, foreign, unsafe, or of another version."""


class ExportError(FeatxError):
    """A model cannot be exported as asked, or what was written differs from it."""


class OutputError(FeatxError):
    """A file would replace what featx did not make or reads, or cannot be written there."""


class MissingExtraError(FeatxError, ImportError):
    """An optional dependency is not installed.

    Examples
    --------
    >>> print(MissingExtraError("onnxruntime", extra="onnx", purpose="exporting to ONNX"))
    exporting to ONNX needs onnxruntime, which is not installed: pip install 'featx[onnx]'
    """

    def __init__(self, package: str, *, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs {package}, which is not installed: pip install 'featx[{extra}]'"
        )
        self.package, self.extra = package, extra
