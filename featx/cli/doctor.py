"""``featx doctor``."""

from __future__ import annotations

import os
import platform
import shutil
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from featx.cli import options
from featx.terminal import say, say_json

_NEEDED = (
    "tensorflow", "keras", "numpy", "h5py", "scikit-learn", "joblib", "pillow", "openvino",
    "skops", "click", "rich",
)  # fmt: skip
_EXTRAS = {"jax": "jax", "torch": "torch", "optuna": "hpo", "onnxruntime": "onnx",
           "keras-hub": "hub", "pillow-heif": "heif"}  # fmt: skip
_FEW_BYTES = 1 << 30


@options.command(
    "doctor",
    options.cache,
    options.as_json,
)
def command(cache: Path, as_json: bool) -> int:
    """Say what works on this machine and what does not.

    Ends with 1 when something that every command needs does not work.

    \b
    featx doctor
    """
    checks = [*_packages(), _backend(), _engine(), _weights(), _writing(cache)]
    broken = [check for check in checks if check["state"] == "broken"]
    if as_json:
        say_json({"checks": checks, "broken": len(broken)})
    else:
        for check in checks:
            say(f"{check['state']:7} {check['what']:13} {check['found']}")
        say("everything needed works" if not broken else f"{len(broken)} things are broken")
    return 1 if broken else 0


def _check(state: str, what: str, found: str) -> dict[str, str]:
    return {"state": state, "what": what, "found": found}


def _packages() -> list[dict[str, str]]:
    checks = [_check("ok", "machine", _machine())]
    for package in _NEEDED:
        try:
            checks.append(_check("ok", package, metadata.version(package)))
        except metadata.PackageNotFoundError:
            checks.append(_check("broken", package, "not installed: pip install featx"))
    missing = []
    for package, extra in _EXTRAS.items():
        if find_spec(package.replace("-", "_")) is None:
            missing.append(f"{package} (featx[{extra}])")
        else:
            checks.append(_check("ok", package, metadata.version(package)))
    if missing:
        checks.append(_check("note", "optional", f"not installed: {', '.join(missing)}"))
    return checks


def _machine() -> str:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    system = f"{platform.system()} {platform.machine()}"
    return f"Python {platform.python_version()}, {system}, {cores} cores"


def _backend() -> dict[str, str]:
    from featx.exceptions import reason
    from featx.quiet import quiet_import

    try:
        with quiet_import():
            import keras

            backend = keras.backend.backend()
            devices = [str(device) for device in keras.distribution.list_devices()]
            total = float(keras.ops.sum(keras.ops.ones((2, 2))))
    except Exception as error:  # whatever is wrong with a backend is what is to be told
        return _check("broken", "backend", reason(error))
    if total != 4.0:
        return _check("broken", "backend", f"{backend} adds up four ones to {total}")
    return _check("ok", "backend", f"{backend} on {', '.join(devices)}")


def _engine() -> dict[str, str]:
    from featx.engines.choice import gpus, may_have_gpu
    from featx.engines.openvino import half_precision
    from featx.exceptions import EngineError
    from featx.threads import usable_processors

    if seen := may_have_gpu() and gpus():
        return _check("ok", "engine", f"keras on {', '.join(seen)}; --precision fast is mixed")
    try:
        half = half_precision()
    except EngineError as error:
        return _check("note", "engine", f"keras on the processor: {error}")
    fast = half or "f32, as this processor has neither bf16 nor f16"
    threads = usable_processors()
    return _check("ok", "engine", f"openvino, {threads} threads; --precision fast is {fast}")


def _weights() -> dict[str, Any]:
    from featx.backbones.catalog import CATALOG
    from featx.backbones.weights import find_weights_file

    here = [row.name for row in CATALOG.values() if find_weights_file(row)]
    return _check("ok", "weights", f"here: {', '.join(here) or 'none'}; the others are downloaded")


def _write_probe(path: Path) -> None:
    path.write_bytes(b"featx")


def _writing(cache: Path) -> dict[str, str]:
    from featx.cache.layout import CacheLayout, publish
    from featx.exceptions import CacheError, reason

    layout = CacheLayout(cache)
    existed = cache.exists()
    probe = layout.root / "doctor-probe"
    try:
        publish(layout, probe, _write_probe)
        probe.unlink()
        free = shutil.disk_usage(layout.root).free
    except (CacheError, OSError) as error:
        return _check("broken", "cache", reason(error))
    finally:
        if not existed and cache.is_dir():
            shutil.rmtree(cache)
    state = "ok" if free > _FEW_BYTES else "note"
    return _check(state, "cache", f"{cache} can be written, {free / 1e9:,.1f} GB free")
