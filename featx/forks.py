"""What a process that was forked off cannot use: a backend of Keras that had run before the fork.

A fork copies the memory of a process and none of its threads, so that work handed to TensorFlow's
waits for ever. OpenVINO is started anew there (`featx.engines.openvino`).
"""

from __future__ import annotations

import os
import sys

from featx.exceptions import EngineError

__all__ = ["require_backend"]

_started = False
_lost = False


def require_backend() -> None:
    """Raise `EngineError` where the backend of Keras was started before this process was forked."""
    global _started
    if _lost:
        raise EngineError(
            "TensorFlow, or another backend of Keras, had run in this process's parent before the "
            "fork, and would wait for ever here: start processes with "
            "multiprocessing.get_context('spawn'), or load models and predict for the first time "
            "after the fork (gunicorn without --preload)"
        )
    _started = True


def _after_fork() -> None:
    global _lost
    # The user's own TensorFlow counts too.
    module = sys.modules.get("tensorflow.python.eager.context")
    context = getattr(module, "_context", None)
    ran = getattr(context, "_context_handle", None) is not None
    _lost = _lost or _started or ran


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
