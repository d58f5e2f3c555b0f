"""One photo's optimisation state as bytes: saved every few iterations, resumed bit for bit."""

from __future__ import annotations

import json

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from doodl.errors import OptimisationError
from doodl.optimise import LatentState

_TENSORS = ("x", "y", "velocity_x", "velocity_y", "best_x", "best_y")
_VALUES = (
    "norm_x",
    "norm_y",
    "iteration",
    "loss_curve",
    "best_value",
    "best_iteration",
    "stop_reason",
)


def state_to_bytes(state: LatentState) -> bytes:
    """Return the state as safetensors bytes: latents, momentum, best iterate, random state."""
    tensors = {name: getattr(state, name).detach().cpu().contiguous() for name in _TENSORS}
    # safetensors refuses tensors that share memory; best_x is x itself right after a best iterate.
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    tensors["generator"] = state.generator.get_state()
    values = {name: getattr(state, name) for name in _VALUES}
    payload = json.dumps(values).encode()
    tensors["values"] = torch.frombuffer(bytearray(payload), dtype=torch.uint8)
    return save(tensors)


def state_from_bytes(data: bytes, *, like: Tensor | None = None) -> LatentState:
    """Return the state of `state_to_bytes`.

    Args:
        like: latents (C, h, w) of the photo; the state must have their shape and dtype, and goes
            to their device.
    Raises: OptimisationError if the bytes are not such a state.
    """
    try:
        tensors = load(data)
        values = json.loads(bytes(tensors["values"].tolist()))
        generator = torch.Generator()
        generator.set_state(tensors["generator"])
        like = tensors["x"] if like is None else like
        for name in _TENSORS:
            shape, dtype = tensors[name].shape, tensors[name].dtype
            if (shape, dtype) != (like.shape, like.dtype):
                raise ValueError(
                    f"{name} is {tuple(shape)} {dtype}; the photo's latents are "
                    f"{tuple(like.shape)} {like.dtype}."
                )
        return LatentState(
            **{name: tensors[name].to(like.device) for name in _TENSORS},
            **{name: values[name] for name in _VALUES},
            generator=generator,
        )
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise OptimisationError(f"checkpoint cannot be resumed: {error}") from error
