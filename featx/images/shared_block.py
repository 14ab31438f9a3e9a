"""Memory that two processes share and that no crash can leave behind.

It has no name in any folder: the kernel frees it with the last process that has it open, however
that process ends. So there is nothing to unlink, and no tracker that could warn about it.
"""

from __future__ import annotations

import mmap
import os
import sys


class SharedBlock:
    """A block of shared memory, made here and attached by a process that is started later.

    Parameters
    ----------
    size_bytes : int
        Its size.

    Attributes
    ----------
    memory : mmap
        The bytes.
    handle : int or str
        What `attach_block` needs in the other process.
    inherited : tuple of int
        File descriptors that the other process has to inherit.
    """

    def __init__(self, size_bytes: int) -> None:
        self.handle: int | str
        self.inherited: tuple[int, ...] = ()
        if sys.platform == "win32":
            self.handle = f"featx-{os.getpid()}-{os.urandom(8).hex()}"
            self.memory = mmap.mmap(-1, size_bytes, tagname=self.handle)
            return
        fd = _anonymous_file()
        os.ftruncate(fd, size_bytes)
        self.memory = mmap.mmap(fd, size_bytes)
        self.handle, self.inherited = fd, (fd,)

    def close(self) -> None:
        """Give the memory up; it goes when the other process has ended too."""
        self.memory.close()
        for fd in self.inherited:
            os.close(fd)
        self.inherited = ()


def attach_block(handle: int | str, size_bytes: int) -> mmap.mmap:
    """Return the memory of a block that the parent process made."""
    if isinstance(handle, int):
        return mmap.mmap(handle, size_bytes)
    if sys.platform == "win32":
        return mmap.mmap(-1, size_bytes, tagname=handle)
    raise ValueError(f"expected a file descriptor, received {handle!r}")


def _anonymous_file() -> int:
    if sys.platform == "linux":
        try:
            return os.memfd_create("featx-images", os.MFD_CLOEXEC)
        except OSError:
            pass
    import tempfile

    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
