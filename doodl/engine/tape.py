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

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from doodl.engine.network_call import PredictNoise, remembered_activation_bytes, with_graph

PullBack = Callable[[Tensor], Tensor]
"""`pull_back(cotangent) -> J^T cotangent`, J the derivative of a call's epsilon in its latents."""


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
            per_call = remembered_activation_bytes(self.predict_noise, call.latents, t)
            self.num_recomputed -= self.budget_bytes // max(per_call, 1)
        if self.stores:
            self.calls.append(call)
        if len(self.calls) <= self.num_recomputed:
            return self.predict_noise(call.latents, t).to(latents.dtype)
        call.graph = with_graph(self.predict_noise, call.latents, t)
        return call.graph[1].detach().to(latents.dtype)

    def pull_back(self, cotangent: Tensor) -> Tensor:
        call = self.calls.pop()
        # A second backward over kept activations finds them consumed and recomputes.
        graph, call.graph = call.graph, None
        leaf, noise_pred = graph or with_graph(self.predict_noise, call.latents, call.t)
        if not noise_pred.requires_grad:  # a predictor that ignores its latents
            return torch.zeros_like(leaf)
        return torch.autograd.grad(noise_pred, leaf, cotangent, materialize_grads=True)[0]

    def turned(self) -> Tape:
        """Return the tape of one way back; its own calls, at rebuilt latents, keep their graphs."""
        return replace(self, num_recomputed=0, budget_bytes=0, stores=True, calls=list(self.calls))
