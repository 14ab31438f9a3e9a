"""OpenVINO without its telemetry, and with errors of featx's own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from featx.exceptions import EngineError, FeatxError, reason
from featx.forks import require_threads
from featx.quiet import quiet_import

_TELEMETRY = "openvino_telemetry"
FALL_BACK = "use the Keras engine instead: --engine keras (engine='keras')"
"""What to do where OpenVINO does not work."""


def load_openvino() -> Any:
    """Import OpenVINO, and return the module.

    Its telemetry writes into the home folder and asks the network as soon as `openvino` is
    imported, and no environment variable keeps it from that. OpenVINO does without it where it is
    not installed, so that is what it finds.

    Raises
    ------
    EngineError
        If it cannot be imported, or was in use before this process was forked.
    """
    require_threads("OpenVINO")
    absent = _TELEMETRY not in sys.modules
    if absent:
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
    try:
        with quiet_import():
            import openvino
    except Exception as error:  # a library that does not fit the machine raises many kinds
        raise EngineError(
            f"OpenVINO cannot be imported ({reason(error)}): pip install openvino, or {FALL_BACK}"
        ) from error
    finally:
        if absent:
            sys.modules.pop(_TELEMETRY, None)
    return openvino


@contextmanager
def translated(doing: str, next_step: str = FALL_BACK) -> Iterator[None]:
    """Raise whatever OpenVINO raises as an EngineError that says what was being done."""
    try:
        yield
    except FeatxError:
        raise
    except Exception as error:  # OpenVINO raises RuntimeError, and what its parsers raise
        raise EngineError(f"{doing} failed: {reason(error)}. {_capital(next_step)}") from error


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
