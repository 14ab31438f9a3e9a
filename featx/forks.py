"""What a process that was forked off cannot use: OpenVINO and Keras, if they ran before the fork.

A fork copies the memory of a process and none of its threads, so that work handed to theirs waits
for ever. OpenVINO cannot be started anew there: it takes up idle threads that are gone.
"""

from __future__ import annotations

import os
import sys
from typing import Literal

from featx.exceptions import EngineError

_Library = Literal["Keras", "OpenVINO"]
_started: set[_Library] = set()
_lost: set[_Library] = set()


def require_threads(library: _Library) -> None:
    """Raise `EngineError` where a library was in use before this process was forked."""
    if library in _lost:
        raise EngineError(
            f"{library} was in use before this process was forked, and would wait here for ever: "
            "start processes with multiprocessing.get_context('spawn'), or load models and "
            "predict only after the fork (gunicorn without --preload)"
        )
    _started.add(library)


def _after_fork() -> None:
    _lost.update(_started)
    # What else the user did with these libraries counts too.
    if "openvino" in sys.modules:
        _lost.add("OpenVINO")
    context = getattr(sys.modules.get("tensorflow.python.eager.context"), "_context", None)
    if getattr(context, "_context_handle", None) is not None:
        _lost.add("Keras")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
