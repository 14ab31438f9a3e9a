"""What the time stamp of a file can tell of its content."""

from __future__ import annotations

__all__ = ["SETTLED_NS"]

SETTLED_NS = 2_000_000_000
"""Nanoseconds between two changes of a file that certainly differ in its modification time.

The coarsest stamps are FAT's, of two seconds. What was read of a file that had been modified less
than this before may have changed since under the same size, inode and stamp: it is to be read
again.
"""
