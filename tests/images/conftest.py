"""What tests of images share."""

from __future__ import annotations

import pytest

from featx.images import line


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """Keep images in their order, however long another process holds one of them up."""
    monkeypatch.setattr(line, "_PATIENCE_S", 600)
