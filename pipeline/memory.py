"""Errors after which a process is not to be trusted: out of memory, a device in error."""

from __future__ import annotations

import gc
import sys

# A CUDA context that has met one of these answers every later call with an error.
_STICKY = (
    "cuda error",
    "device-side assert",
    "cublas_status_",
    "cudnn_status_",
    "nccl error",
    "unspecified launch failure",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that the machine's or the device's memory did not suffice."""
    if isinstance(error, MemoryError):
        return True
    # By name: torch is loaded in workers only.
    names = {kind.__name__ for kind in type(error).__mro__}
    allocator = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return "OutOfMemoryError" in names or allocator


def is_device_error(error: BaseException) -> bool:
    """Return whether an error leaves the process's accelerator unusable."""
    if not isinstance(error, RuntimeError) or is_out_of_memory(error):
        return False
    return any(sign in str(error).lower() for sign in _STICKY)


def release_memory() -> None:
    """Give back what this process holds and does not need."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        try:
            torch.cuda.empty_cache()
        except RuntimeError:  # a device in error frees nothing
            return
