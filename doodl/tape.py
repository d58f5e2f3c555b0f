"""What a walk down a sampler leaves for the walk back, and how much of it is kept.

The walk back needs, for each call of the noise predictor, only that call's input: everything
between the calls is linear with known coefficients. `memory` says where the inputs come from:

    checkpoint   stored on the way (one small latent a call); each call is recomputed once
    invert       rebuilt by the inverse on the way back (nothing stored), as the DOODL paper does;
                 the state is carried in float64, as the inverse swells its rounding: EDICT's by
                 p^-2T, which at p = 0.93 is too much for T = 200 (keep to p = 0.93^(50/T))
    full         plain autograd keeps every activation; for tests and small models
    budget:SIZE  every call's input is stored, and the activations of as many calls as fit in SIZE
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

PredictNoise = Callable[[Tensor, Tensor], Tensor]
"""`predict_noise(latents (B, C, h, w), t) -> epsilon (B, C, h, w)`, t a 0-d int64 tensor."""

PullBack = Callable[[Tensor], Tensor]
"""`pull_back(cotangent) -> J^T cotangent` of the call of the predictor that is next, from the last;
J is the derivative of that call's epsilon in its latents."""


def epsilon_of(predict_noise: PredictNoise, latents: Tensor, t: Tensor) -> Tensor:
    """Return epsilon in the latents' dtype: networks may run in bf16, a sampler's state may not."""
    return predict_noise(latents, t).to(latents.dtype)


def _with_graph(predict_noise: PredictNoise, latents: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return the latents as a leaf, and their epsilon with the graph from it."""
    with torch.enable_grad():
        leaf = latents.detach().requires_grad_()
        return leaf, epsilon_of(predict_noise, leaf, t)


def activation_bytes(predict_noise: PredictNoise, latents: Tensor, t: Tensor) -> int:
    """Return the bytes autograd keeps for one call, each storage counted once, weights left out.

    Those of a network, or of the `unet` a predictor holds.
    """
    networks = (predict_noise, getattr(predict_noise, "unet", None))
    return saved_bytes(lambda: _with_graph(predict_noise, latents, t), networks)


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
    t: Tensor
    graph: tuple[Tensor, Tensor] | None = None


@dataclass
class Tape:
    """The calls of a walk, recorded by `predict` and pulled back by `pull_back` from the last.

    Attributes:
        dtype: of the latents that the predictor sees; the walk's own may be wider.
        num_recomputed: so many first calls keep no activations. A budget reduces it, by as many
            calls as fit in budget_bytes: the last ones, which the way back uses and frees first.
        stores: whether calls are recorded; not on the way down if the way back rebuilds.
    """

    predict_noise: PredictNoise
    dtype: torch.dtype
    num_recomputed: int
    budget_bytes: int = 0
    stores: bool = True
    calls: list[_Call] = field(default_factory=list)

    def predict(self, latents: Tensor, t: Tensor) -> Tensor:
        """Return epsilon in the latents' dtype."""
        call = _Call(latents.to(self.dtype), t)
        if self.budget_bytes and not self.calls:
            per_call = _remembered_activation_bytes(self.predict_noise, call.latents, t)
            self.num_recomputed -= self.budget_bytes // max(per_call, 1)
        if self.stores:
            self.calls.append(call)
        if len(self.calls) <= self.num_recomputed:
            return self.predict_noise(call.latents, t).to(latents.dtype)
        call.graph = _with_graph(self.predict_noise, call.latents, t)
        return call.graph[1].detach().to(latents.dtype)

    def pull_back(self, cotangent: Tensor) -> Tensor:
        call = self.calls.pop()
        # A second backward over kept activations finds them consumed and recomputes.
        graph, call.graph = call.graph, None
        leaf, noise_pred = graph or _with_graph(self.predict_noise, call.latents, call.t)
        if not noise_pred.requires_grad:  # a predictor that ignores its latents
            return torch.zeros_like(leaf)
        return torch.autograd.grad(noise_pred, leaf, cotangent, materialize_grads=True)[0]

    def turned(self) -> Tape:
        """Return the tape of one way back; its own calls, at rebuilt latents, keep their graphs."""
        return replace(self, num_recomputed=0, budget_bytes=0, stores=True, calls=list(self.calls))
