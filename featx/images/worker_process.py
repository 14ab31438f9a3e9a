"""One process that reads and decodes images, seen from the process that starts it.

It is started by hand: `multiprocessing` would run the user's main module again in it, which needs a
guard that scripts forget and notebooks cannot have.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from featx.images.messages import receive, send

_PACKAGES = ("featx", "numpy", "PIL", "pillow_heif")
# Neither the working folder (-P) nor PYTHONPATH or other variables (-E) decide what the process
# imports, as a folder of images may hold a json.py. These packages come from where this process has
# them, found by name, so that nothing else beside them takes precedence.
_BOOT = """
import json, sys
from importlib.machinery import PathFinder
hello = json.loads(sys.stdin.buffer.readline())
class SamePackages:
    @staticmethod
    def find_spec(name, path=None, target=None):
        folder = hello["packages"].get(name)
        return folder and PathFinder.find_spec(name, [folder])
sys.meta_path.insert(0, SamePackages)
sys.path += hello["packages"].values()
from featx.images.worker_main import main
main(hello)
"""
_ENVIRONMENT = {
    # Pixels need no linear algebra: its threads would be started for nothing, one a CPU.
    **dict.fromkeys(("MKL_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
    # For glibc: up to 128 MiB are kept from one image to the next, as to have them anew, zeroed by
    # the kernel, took an eighth of the time of a large photograph.
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(128 << 20),
}


class ProcessDiedError(Exception):
    """The process is gone, or talks nonsense."""


class WorkerProcess:
    """A process that runs `featx.images.worker_main`.

    Parameters
    ----------
    hello : dict
        What it has to know.
    inherited : tuple of int
        File descriptors that it shares.

    Raises
    ------
    OSError
        If no process can be started.
    """

    def __init__(self, hello: dict[str, Any], inherited: tuple[int, ...]) -> None:
        options: dict[str, Any] = {}
        # A group of its own: Ctrl-C in a terminal is the parent's to handle, even before the worker
        # has said so itself.
        if sys.platform == "win32":
            options["creationflags"] = subprocess.CREATE_NEW_PROCESS_GROUP
        else:
            options.update(process_group=0, pass_fds=inherited)
        if not sys.executable:
            raise OSError("Python does not know its own executable (sys.executable)")
        self._process = subprocess.Popen(
            [sys.executable, "-E", "-P", *_flags(), "-c", _BOOT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **_ENVIRONMENT},
            **options,
        )
        self._hello = {**hello, "packages": _package_folders()}
        pil = sys.modules.get("PIL.Image")
        if pil is not None:
            # The user's own limit holds there too.
            self._hello["most_pixels"] = pil.MAX_IMAGE_PIXELS

    def greet(self) -> None:
        """Send the first message.

        Raises
        ------
        ProcessDiedError
            If it has ended.
        """
        self.send(self._hello)

    def send(self, message: dict[str, Any]) -> None:
        """Send a message.

        Raises
        ------
        ProcessDiedError
            If it has ended.
        """
        assert self._process.stdin is not None
        try:
            send(self._process.stdin, message)
        except (OSError, ValueError) as error:
            raise ProcessDiedError(str(error)) from error

    def receive(self) -> dict[str, Any]:
        """Wait for a message.

        Raises
        ------
        ProcessDiedError
            If it has ended, or sends what is no message.
        """
        assert self._process.stdout is not None
        try:
            message = receive(self._process.stdout)
        except (OSError, ValueError) as error:
            raise ProcessDiedError(str(error)) from error
        if message is None:
            raise ProcessDiedError("it closed its output")
        return message

    def kill(self) -> None:
        """End it at once; it keeps nothing that could be lost."""
        self._process.kill()

    def end(self) -> str:
        """Wait for its end, and return how it came, for example ``"signal 11"``."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                # What was not sent yet cannot be sent any more.
                with suppress(OSError):
                    pipe.close()
        try:
            code = self._process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        if code >= 0:
            return f"exit status {code}"
        lack = ", often for lack of memory" if code == -getattr(signal, "SIGKILL", 9) else ""
        return f"signal {-code}{lack}"


def _flags() -> list[str]:
    """Return the flags of this interpreter that variables of the environment may have set."""
    no_user_site = ["-s"] if sys.flags.no_user_site else []
    return [*no_user_site, *(["-B"] if sys.dont_write_bytecode else [])]


def _package_folders() -> dict[str, str]:
    """Return the folder from which this process imported each package that decoding needs."""
    files = {name: getattr(sys.modules.get(name), "__file__", None) for name in _PACKAGES}
    return {name: str(Path(file).absolute().parents[1]) for name, file in files.items() if file}
