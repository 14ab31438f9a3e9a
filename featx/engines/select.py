"""Choose an engine."""

from __future__ import annotations

from functools import lru_cache

from featx.backbones.source import BackboneSource
from featx.engines.protocol import Engine
from featx.exceptions import UnknownNameError

__all__ = ["ENGINES", "make_engine"]

ENGINES: dict[str, str] = {
    "auto": "the fastest engine for this machine",
    "keras": "Keras 3 on its backend (TensorFlow by default)",
}
"""Engines by name, with what they are."""


def make_engine(
    name: str, source: BackboneSource, taps: tuple[str, ...], *, batch_size: int | None = None
) -> Engine:
    """Build an engine for a backbone and its taps.

    Parameters
    ----------
    name : str
        Key of `ENGINES`.
    source : BackboneSource
        The backbone.
    taps : tuple of str
        Canonical names of taps.
    batch_size : int, optional
        Number of images in a batch; by default the engine's choice.

    Raises
    ------
    UnknownNameError
        If there is no such engine.
    """
    if name not in ENGINES:
        raise UnknownNameError("engine", name, ENGINES)
    return _built(name, source, taps, batch_size)


# Repeated predictions share one network; two are kept, since networks are large.
@lru_cache(maxsize=2)
def _built(
    name: str, source: BackboneSource, taps: tuple[str, ...], batch_size: int | None
) -> Engine:
    from featx.engines.keras import KerasEngine

    return KerasEngine(source, taps, **({"batch_size": batch_size} if batch_size else {}))
