"""Files of classifiers, taken with care: tensors, settings and labels, nothing that runs."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from doodl.errors import ModelError
from doodl.models.weights import one_line

LOAD_ERRORS = (
    OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, EOFError,
    SafetensorError, pickle.UnpicklingError,
)  # fmt: skip
"""What the libraries raise on a missing, cut-off or foreign config or weights file."""


def read_state(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint file, without the wrappers that training leaves.

    Raises: ModelError if it is not there, or holds anything but tensors, numbers and text.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            with torch.serialization.safe_globals(_numpy_globals()):
                state = torch.load(path, map_location="cpu", weights_only=True)
    except LOAD_ERRORS as error:
        raise ModelError(f"{path} cannot be read as tensors: {one_line(error)}") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping):
        raise ModelError(f"{path} holds a {type(state).__name__}, not a table of tensors.")
    return {
        str(name).removeprefix("module."): value
        for name, value in state.items()
        if isinstance(value, Tensor)
    }


def _numpy_globals() -> list[Any]:
    """Return what rebuilds NumPy arrays of numbers: training logs keep their accuracies so."""
    import numpy as np
    from numpy._core.multiarray import _reconstruct, scalar

    return [
        *((function, f"numpy.{core}.multiarray.{name}")
          for core in ("core", "_core")
          for function, name in ((_reconstruct, "_reconstruct"), (scalar, "scalar"))),
        np.ndarray, np.dtype, type(np.dtype("f8")), type(np.dtype("f4")), type(np.dtype("i8")),
    ]  # fmt: skip


def checked_labels(path: Path, labels: Any, num_classes: int) -> list[str]:
    """Return the labels of a file. Raises: ModelError if they are some, but not one a class."""
    if not isinstance(labels, (list, tuple)) or (labels and len(labels) != num_classes):
        count = len(labels) if hasattr(labels, "__len__") else labels
        raise ModelError(f"{path}: {count} labels for {num_classes} classes.")
    return [str(label) for label in labels]


def square(path: Path, size: Any) -> int:
    """Return the side of an input size (height, width). Raises: ModelError if it is no square."""
    height, width = size if isinstance(size, (list, tuple)) and len(size) == 2 else (None, None)
    if not isinstance(height, int) or height != width or not 8 <= height <= 4096:
        raise ModelError(f"{path}: input size {size!r}; only squares of 8 to 4096 px are known.")
    return height
