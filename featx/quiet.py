"""Keep the logging of TensorFlow, absl and OpenVINO away from the user."""

from __future__ import annotations

import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_LOCK = threading.RLock()
_SETTINGS = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TF_CPP_MAX_VLOG_LEVEL": "0",
    "GRPC_VERBOSITY": "ERROR",
    "ABSL_MIN_LOG_LEVEL": "3",
    "OPENVINO_TELEMETRY_OPT_OUT": "1",
}


@contextmanager
def quiet_import(*, shown_on_error: bool = True) -> Iterator[None]:
    """Import or start a numerical library without its banner on standard error.

    TensorFlow writes lines from C++ before any log level applies, so that nothing but taking file
    descriptor 2 away keeps them from the screen. What was written is shown after all when the
    body fails, unless the caller's own error says all, and everything is shown when the environment
    has ``FEATX_DEBUG``. The root logger is left as it was: OpenVINO raises its level, and leaves it
    raised when a conversion fails.
    """
    if os.environ.get("FEATX_DEBUG"):
        with _root_logger_kept():
            yield
        return
    # Not above: the help of a command that lists what libraries can do is to be quick.
    import tempfile

    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    with _LOCK, _root_logger_kept(), tempfile.TemporaryFile() as caught:
        _flush()
        try:
            original = os.dup(2)
        except OSError:  # a process without standard error has nothing to keep quiet
            yield
            return
        os.dup2(caught.fileno(), 2)
        try:
            yield
        except BaseException:
            _restore(original)
            caught.seek(0)
            if shown_on_error:
                os.write(2, caught.read())
            raise
        _restore(original)
    for name in ("tensorflow", "absl", "h5py"):
        logging.getLogger(name).setLevel(logging.ERROR)


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Load a file without what libraries print and warn of where it fails; its error says all.

    Warnings of what succeeds are given afterwards.
    """
    if os.environ.get("FEATX_DEBUG"):
        yield
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with quiet_import(shown_on_error=False):
            yield
    for warning in caught:
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


@contextmanager
def _root_logger_kept() -> Iterator[None]:
    root = logging.getLogger()
    level, filters, handlers = root.level, root.filters[:], root.handlers[:]
    try:
        yield
    finally:
        root.setLevel(level)
        root.filters[:], root.handlers[:] = filters, handlers


def _restore(original: int) -> None:
    _flush()
    os.dup2(original, 2)
    os.close(original)


def _flush() -> None:
    with suppress(AttributeError, OSError, ValueError):  # it may be absent or closed
        sys.stderr.flush()
