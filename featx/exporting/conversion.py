"""What the formats have in common: an exported file that runs, and errors of featx's own."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import ExportError, reason
from featx.quiet import quiet_import


@dataclass(frozen=True, slots=True)
class Opened:
    """An exported file in its own runtime.

    Parameters
    ----------
    run : callable
        Pixels of shape (n, h, w, 3), uint8, to probabilities of shape (n, k), float32.
    runtime : str
        Name and version of what runs it.
    classes : list, optional
        Class names inside the file, where the format has a place for them.
    """

    run: Callable[[NDArray[np.uint8]], NDArray[np.float32]]
    runtime: str
    classes: list[Any] | None = None


@contextmanager
def conversion_errors(what: str) -> Iterator[None]:
    """Raise what a converter raises as an `ExportError`, and keep its chatter off the screen."""
    try:
        with quiet_import(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except ExportError:
        raise
    except Exception as error:  # converters raise many kinds
        raise ExportError(
            f"the model cannot be converted to {what}: {reason(error)}. Export it to another "
            "format, and report the backbone that it has"
        ) from error
