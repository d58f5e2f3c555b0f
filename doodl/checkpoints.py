"""One photo's optimisation state as bytes: saved every few iterations, resumed bit for bit."""

from __future__ import annotations

import json

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from doodl.errors import OptimisationError
from doodl.optimise import LatentState

_TENSORS = ("x", "y", "velocity_x", "velocity_y", "best_x", "best_y")
_VALUES = ("norm_x", "norm_y", "iteration", "loss_curve", "best_value", "best_iteration")


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


def state_from_bytes(data: bytes, *, device: str | torch.device = "cpu") -> LatentState:
    """Return the state of `state_to_bytes`.

    Raises: OptimisationError if the bytes are not such a state.
    """
    try:
        tensors = load(data)
        values = json.loads(bytes(tensors["values"].tolist()))
        generator = torch.Generator()
        generator.set_state(tensors["generator"])
        return LatentState(
            **{name: tensors[name].to(device) for name in _TENSORS},
            **{name: values[name] for name in _VALUES},
            generator=generator,
        )
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise OptimisationError(f"checkpoint cannot be resumed: {error}") from error
