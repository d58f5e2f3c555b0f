"""Gradients through the whole sampler, in the memory of one network call.

The walk back needs, for each call of the noise predictor, only that call's input: everything
between the calls is linear with known coefficients. `memory` says where the inputs come from:

    checkpoint   stored on the way (2T small latents); each call is recomputed once
    invert       rebuilt by the inverse on the way back (nothing stored), as the DOODL paper does;
                 the pair is carried in float64: un-mixing swells its rounding by p^-2 a step
    full         plain autograd keeps every activation; for tests and small models
    budget:SIZE  checkpoint, but the activations of as many calls as fit in SIZE are kept

Cost in forward passes of the predictor, at T steps with two calls each (backward through
activations counts as one): 6T for checkpoint and invert, 4T for full.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from doodl.config import MIX_WEIGHT
from doodl.edict import (
    PredictNoise,
    Steps,
    as_state,
    check_pair,
    generate,
    mix,
    unmix,
)
from doodl.schedule import Schedule

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


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


@dataclass
class _Call:
    """One call of the predictor: its input, and its graph while activations are kept."""

    latents: Tensor
    graph: tuple[Tensor, Tensor] | None = None


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


def _weight_storages(predict_noise: PredictNoise) -> set[int]:
    """Return the addresses of the weights of a network, or of the `unet` a predictor holds."""
    networks = (predict_noise, getattr(predict_noise, "unet", None))
    return {
        weight.untyped_storage().data_ptr()
        for network in networks
        if isinstance(network, torch.nn.Module)
        for weight in network.parameters()
    }


def activation_bytes(predict_noise: PredictNoise, latents: Tensor, t: Tensor) -> int:
    """Return the bytes autograd keeps for one call, each storage counted once, weights left out."""
    # By storage: a linear layer saves its weight as a view, which is no Parameter.
    weights = _weight_storages(predict_noise)
    storages: dict[int, int] = {}

    def record(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if not isinstance(tensor, torch.nn.Parameter) and storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        # Held in a name so that no storage is freed and its address counted for another.
        graph = _evaluate_with_graph(predict_noise, latents, t)
    del graph
    return sum(storages.values())


@dataclass
class _Tape:
    """What the way down leaves for the way back."""

    predict_noise: PredictNoise
    steps: Steps
    mix_weight: float
    rebuild: bool
    budget_bytes: int
    calls: list[_Call] = field(default_factory=list)

    def kept_calls(self, latents: Tensor) -> int:
        if self.budget_bytes == 0:
            return 0
        first = next((i for i in self.steps.denoising() if self.steps.calls[i]), None)
        if first is None:
            return 0
        per_call = activation_bytes(self.predict_noise, latents, self.steps.t[first])
        return self.budget_bytes // max(per_call, 1)


class _Generate(torch.autograd.Function):
    """`edict.generate` whose backward walks the steps with one call's activations at a time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, tape: _Tape) -> tuple[Tensor, Tensor]:
        steps, tape.calls, dtype = tape.steps, [], x.dtype
        # The last calls are kept: the walk back uses them first and frees them first.
        recomputed = 2 * sum(steps.calls) - tape.kept_calls(x)
        # Copies: the first call's input is kept, and the caller may change its own in place.
        x, y = (x.double(), y.double()) if tape.rebuild else (x.clone(), y.clone())

        def predict(z: Tensor, t: Tensor) -> Tensor:
            if tape.rebuild:
                return as_state(tape.predict_noise(z.to(dtype), t), z)
            call = _Call(z)
            tape.calls.append(call)
            if len(tape.calls) <= recomputed:
                return as_state(tape.predict_noise(z, t), z)
            call.graph = _evaluate_with_graph(tape.predict_noise, z, t)
            return call.graph[1].detach()

        for i in steps.denoising():
            if steps.calls[i]:
                a, b, t = steps.a[i], steps.b[i], steps.t[i]
                u, v = (x, y) if steps.x_first[i] else (y, x)
                u = a * u + b * predict(v, t)
                v = a * v + b * predict(u, t)
                x, y = (u, v) if steps.x_first[i] else (v, u)
            x, y = mix(x, y, tape.mix_weight)
        ctx.tape = tape
        if tape.rebuild:
            ctx.save_for_backward(x, y)
        return x.to(dtype), y.to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_x: Tensor, grad_y: Tensor) -> tuple[Tensor, Tensor, None]:
        tape: _Tape = ctx.tape
        steps, p = tape.steps, tape.mix_weight
        x: Any
        y: Any
        x, y = ctx.saved_tensors if tape.rebuild else (None, None)
        remaining = list(tape.calls)

        def pull_back(
            t: Tensor, cotangent: Tensor, latents: Tensor | None
        ) -> tuple[Tensor, Tensor]:
            """Return (epsilon, J^T cotangent) of the call made at this point of the walk."""
            if latents is not None:
                latents = latents.to(cotangent.dtype)
                leaf, noise_pred = _evaluate_with_graph(tape.predict_noise, latents, t)
            else:
                call = remaining.pop()
                # A second backward over kept activations finds them consumed and recomputes.
                graph, call.graph = call.graph, None
                leaf, noise_pred = graph or _evaluate_with_graph(
                    tape.predict_noise, call.latents, t
                )
            return noise_pred.detach(), _pull_back(leaf, noise_pred, cotangent)

        for i in steps.noising():
            a, b, t = steps.a[i], steps.b[i], steps.t[i]
            # Transpose of mix: y' = p y + (1-p) x', x' = p x + (1-p) y.
            grad_x = grad_x + (1 - p) * grad_y
            grad_x, grad_y = p * grad_x, p * grad_y + (1 - p) * grad_x
            if tape.rebuild:
                x, y = unmix(x, y, p)
            if not steps.calls[i]:
                continue
            x_first = steps.x_first[i]
            grad_u, grad_v = (grad_x, grad_y) if x_first else (grad_y, grad_x)
            u, v = (x, y) if x_first else (y, x)
            # v' = a v + b eps(u'), then u' = a u + b eps(v), transposed and undone in turn.
            noise_pred, pulled = pull_back(t, b * grad_v, u)
            grad_u, grad_v = grad_u + pulled, a * grad_v
            if tape.rebuild:
                v = (v - b * noise_pred) / a
            noise_pred, pulled = pull_back(t, b * grad_u, v)
            grad_u, grad_v = a * grad_u, grad_v + pulled
            if tape.rebuild:
                u = (u - b * noise_pred) / a
            grad_x, grad_y = (grad_u, grad_v) if x_first else (grad_v, grad_u)
            x, y = (u, v) if x_first else (v, u)
        return grad_x, grad_y, None


def generate_with_grad(
    predict_noise: PredictNoise,
    x: Tensor,
    y: Tensor,
    schedule: Schedule,
    *,
    mix_weight: float = MIX_WEIGHT,
    memory: str = "checkpoint",
) -> tuple[Tensor, Tensor]:
    """Return `edict.generate`'s (x_0, y_0), differentiable in x and y.

    Args:
        memory: checkpoint | invert | full | budget:SIZE, see the module's head. All give plain
            autograd's gradient: to 1e-10 in float64, 1e-4 in float32.
        others: as `edict.generate`. Freeze the predictor's weights: they get no gradient, save
            under `full`, where autograd computes one for each that asks.
    Raises: ValueError as `edict.generate`, or on an unknown memory mode.
    Source: DOODL (arXiv:2303.13703), section 3.3: gradients through invertible EDICT steps.
    """
    mode, budget_bytes = parse_memory(memory)
    if mode == "full":
        return generate(predict_noise, x, y, schedule, mix_weight=mix_weight)
    if not (torch.is_grad_enabled() and (x.requires_grad or y.requires_grad)):
        with torch.no_grad():
            return generate(predict_noise, x, y, schedule, mix_weight=mix_weight)
    check_pair(x, y, mix_weight)
    tape = _Tape(
        predict_noise, Steps(schedule, x.device), mix_weight, mode == "invert", budget_bytes
    )
    return _Generate.apply(x, y, tape)
