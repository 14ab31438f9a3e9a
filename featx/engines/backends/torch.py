"""PyTorch as Keras's backend."""

from __future__ import annotations

import gc
import threading
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from featx.engines.backends.adapter import Forward


class TorchAdapter:
    """PyTorch; see `featx.engines.backends.adapter.Adapter`."""

    def __init__(self) -> None:
        import torch  # type: ignore[import-not-found, unused-ignore]

        self._torch = torch
        self._local = threading.local()

    def accelerators(self) -> list[str]:
        """Return the GPUs of CUDA or ROCm."""
        return [f"gpu:{index}" for index in range(self._torch.cuda.device_count())]

    def processors(self) -> list[str]:
        """Return the one processor there is."""
        return ["cpu"]

    def kind(self, device: str) -> str:
        """Return the maker's name of a GPU, else ``"CPU"``."""
        if device == "cpu":
            return "CPU"
        return str(self._torch.cuda.get_device_name(_index(device)))

    def jit_choices(self, device: str) -> tuple[bool, ...]:
        """Return plain kernels: TorchDynamo needs a compiler on the machine, and minutes."""
        return (False,)

    def compute_in_float32(self) -> None:
        """Switch TensorFloat-32 off, for the process; cuDNN uses it by default."""
        self._torch.backends.cudnn.allow_tf32 = False
        self._torch.backends.cuda.matmul.allow_tf32 = False

    def compile_model(self, model: Any, device: str, *, jit: bool) -> Forward:
        """Run a model eagerly, on a GPU in a stream of the calling thread."""
        torch = self._torch
        on_gpu = device != "cpu"
        if on_gpu:  # its weights came by the stream of the thread that built it
            torch.cuda.synchronize(_index(device))

        def forward(pixels: NDArray[np.uint8]) -> list[Any]:
            # Each thread has its own device, mode and stream.
            with keras.device(device), torch.inference_mode():
                batch = torch.from_numpy(np.require(pixels, requirements=["C", "W"]))
                if on_gpu:
                    self._take_stream(_index(device))
                    # Only from pinned memory is a copy not waited for.
                    batch = batch.pin_memory().to(f"cuda:{_index(device)}", non_blocking=True)
                outputs = model(batch, training=False)
            return list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]

        return forward

    def to_numpy(self, outputs: list[Any]) -> list[NDArray[np.float32]]:
        """Copy tensors to the host."""
        return [output.to("cpu", self._torch.float32).numpy() for output in outputs]

    def out_of_memory(self, error: BaseException) -> bool:
        """Tell whether the allocator of PyTorch gave up, or a library under it."""
        if isinstance(error, self._torch.OutOfMemoryError):
            return True
        return isinstance(error, RuntimeError) and any(
            sign in str(error)
            for sign in ("out of memory", "ALLOC_FAILED", "DefaultCPUAllocator: can't allocate")
        )

    def clean_up(self) -> None:
        """Free tensors that a traceback held, and what the allocator of the GPU keeps."""
        gc.collect()
        if self._torch.cuda.is_available():
            self._torch.cuda.empty_cache()

    def _take_stream(self, index: int) -> None:
        # The default stream is shared by all threads, and in one stream nothing overlaps.
        streams = self._local.__dict__.setdefault("streams", {})
        if index not in streams:
            streams[index] = self._torch.cuda.Stream(index)
            self._torch.cuda.set_stream(streams[index])


def _index(device: str) -> int:
    return int(device.partition(":")[2])
