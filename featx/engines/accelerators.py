"""Whether there is a GPU: first whether there could be one, then what the backend of Keras sees."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from featx.exceptions import EngineError
from featx.quiet import quiet_import

_ROOT = Path("/")
# What the drivers put there, and the variables that hide their devices from a process. Under WSL a
# driver of any maker is behind one file.
_TRACES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("dev", "nvidia[0-9]*", ("CUDA_VISIBLE_DEVICES",)),
    ("proc/driver/nvidia/gpus", "*", ("CUDA_VISIBLE_DEVICES",)),
    ("dev", "dxg", ("CUDA_VISIBLE_DEVICES",)),
    ("dev", "kfd", ("HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")),
)


def may_have_gpu() -> bool:
    """Tell whether asking for GPUs is worth importing a numerical library.

    Takes well under a millisecond. True does not promise one: a driver may be broken, and the
    backend may be built without it. Only Linux is looked at, and WSL.
    """
    if not sys.platform.startswith("linux"):
        return False
    return any(
        not any(os.environ.get(name) in ("", "-1") for name in hiding)
        and any((_ROOT / folder).glob(pattern))
        for folder, pattern, hiding in _TRACES
    )


def gpus() -> list[str]:
    """Return the GPUs that the backend of Keras can use, by the names it knows them by.

    Returns
    -------
    list of str
        For example ``["gpu:0", "gpu:1"]``; empty where there is none, or where featx does not know
        the backend.
    """
    from featx.engines.backends.adapter import load_adapter

    try:
        with quiet_import():
            return load_adapter().accelerators()
    except EngineError:
        return []
