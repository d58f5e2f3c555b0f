"""What a walk down a sampler leaves for the walk back, and how much of it is kept.

The walk back needs, for each call of the noise predictor, only that call's input: everything
between the calls is linear with known coefficients. `memory` says where the inputs come from:

    checkpoint   stored on the way (one small latent a call); each call is recomputed once
    invert       rebuilt by the inverse on the way back (nothing stored), as the DOODL paper does;
                 the state is carried in float64, as the inverse swells its rounding
    full         plain autograd keeps every activation; for tests and small models
    budget:SIZE  checkpoint, but the activations of as many calls as fit in SIZE are kept
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from doodl.edict import PredictNoise, as_state

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}

PullBack = Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]
"""`pull_back(t, cotangent, latents or None) -> (epsilon, J^T cotangent)` of one call."""


def parse_memory(memory: str) -> tuple[str, int]:
    """Return (mode, bytes) of `checkpoint`, `invert`, `full` or `budget:SIZE` (`budget:8GiB`).

    Raises: ValueError on any other word or an unreadable size.
    """
    if memory in ("checkpoint", "invert", "full"):
        return memory, 0
    match = re.fullmatch(r"budget:(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", memory)
    if match is None:
        raise ValueError(
            f"memory (={memory!r}) must be checkpoint, invert, full or budget:SIZE; "
            "try budget:8GiB."
        )
    return "budget", int(float(match[1]) * _UNITS[match[2]])


def _evaluate_with_graph(
    predict_noise: PredictNoise, latents: Tensor, t: Tensor
) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        leaf = latents.detach().requires_grad_()
        return leaf, as_state(predict_noise(leaf, t), leaf)


def _pull_back(leaf: Tensor, noise_pred: Tensor, cotangent: Tensor) -> Tensor:
    """Return the vector-Jacobian product J^T cotangent of one call."""
    if not noise_pred.requires_grad:  # a predictor that ignores its latents
        return torch.zeros_like(leaf)
    (grad,) = torch.autograd.grad(noise_pred, leaf, cotangent, allow_unused=True)
    return torch.zeros_like(leaf) if grad is None else grad


def activation_bytes(predict_noise: PredictNoise, latents: Tensor, t: Tensor) -> int:
    """Return the bytes autograd keeps for one call, each storage counted once, weights left out.

    Those of a network, or of the `unet` a predictor holds.
    """
    networks = (predict_noise, getattr(predict_noise, "unet", None))
    return saved_bytes(lambda: _evaluate_with_graph(predict_noise, latents, t), networks)


def saved_bytes(work: Callable[[], Any], networks: Iterable[Any]) -> int:
    """Return the bytes autograd keeps of work(), each storage counted once.

    Args:
        networks: the weights of those that are modules are left out.
    """
    # By storage: a linear layer saves its weight as a view, which is no Parameter.
    weights = {
        weight.untyped_storage().data_ptr()
        for network in networks
        if isinstance(network, torch.nn.Module)
        for weight in network.parameters()
    }
    storages: dict[int, int] = {}

    def record(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if not isinstance(tensor, torch.nn.Parameter) and storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        # Held in a name so that no storage is freed and its address counted for another.
        graph = work()
    del graph
    return sum(storages.values())


# Sizes, never tensors, and an entry goes with its predictor: a budget costs one call to measure
# for a predictor and a shape, not one in every iteration.
_measured: WeakKeyDictionary[Any, dict[tuple[Any, ...], int]] = WeakKeyDictionary()


def _remembered_activation_bytes(predict_noise: PredictNoise, latents: Tensor, t: Tensor) -> int:
    key = (latents.shape, latents.dtype, latents.device)
    try:
        sizes = _measured.setdefault(predict_noise, {})
    except TypeError:  # neither hashable nor weakly referable: measured each time
        sizes = {}
    if key not in sizes:
        sizes[key] = activation_bytes(predict_noise, latents, t)
    return sizes[key]


@dataclass
class _Call:
    """One call of the predictor: its input, and its graph while activations are kept."""

    latents: Tensor
    graph: tuple[Tensor, Tensor] | None = None


@dataclass
class Tape:
    """The calls of one walk down: made by `predictor`, taken back by `walk_back`.

    Attributes:
        rebuild: nothing is stored; the walk back hands in the inputs it has rebuilt.
        budget_bytes: room for activations of calls, as many as fit, the last ones first.
    """

    predict_noise: PredictNoise
    rebuild: bool = False
    budget_bytes: int = 0
    calls: list[_Call] = field(default_factory=list)

    def state(self, z: Tensor) -> Tensor:
        """Return the walk's own copy of a latent: float64 if it is to be rebuilt."""
        # A copy: the first call's input is kept, and the caller may change its own in place.
        return z.double() if self.rebuild else z.clone()

    def predictor(self, like: Tensor, num_calls: int, t: Tensor | None) -> PredictNoise:
        """Return the predictor of one walk of `num_calls` calls, which records them.

        Args:
            like: latents of the shape, dtype and device of the caller's.
            t: a timestep to measure a call's activations at; None if there is no call.
        """
        self.calls = []
        kept = 0
        if self.budget_bytes and t is not None:
            per_call = _remembered_activation_bytes(self.predict_noise, like, t)
            kept = self.budget_bytes // max(per_call, 1)
        # The last calls are kept: the walk back uses them first and frees them first.
        recomputed = num_calls - kept

        def predict(z: Tensor, t: Tensor) -> Tensor:
            if self.rebuild:
                return as_state(self.predict_noise(z.to(like.dtype), t), z)
            call = _Call(z)
            self.calls.append(call)
            if len(self.calls) <= recomputed:
                return as_state(self.predict_noise(z, t), z)
            call.graph = _evaluate_with_graph(self.predict_noise, z, t)
            return call.graph[1].detach()

        return predict

    def walk_back(self) -> PullBack:
        """Return the pull-back of one walk back, which takes the calls from the last."""
        remaining = list(self.calls)

        def pull_back(
            t: Tensor, cotangent: Tensor, latents: Tensor | None
        ) -> tuple[Tensor, Tensor]:
            if latents is not None:
                latents = latents.to(cotangent.dtype)
                leaf, noise_pred = _evaluate_with_graph(self.predict_noise, latents, t)
            else:
                call = remaining.pop()
                # A second backward over kept activations finds them consumed and recomputes.
                graph, call.graph = call.graph, None
                leaf, noise_pred = graph or _evaluate_with_graph(
                    self.predict_noise, call.latents, t
                )
            return noise_pred.detach(), _pull_back(leaf, noise_pred, cotangent)

        return pull_back
