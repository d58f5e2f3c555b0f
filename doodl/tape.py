"""What a walk down a sampler leaves for the walk back, and how much of it is kept.

The walk back needs, for each call of the noise predictor, only that call's input: everything
between the calls is linear with known coefficients. `memory` says where the inputs come from:

    checkpoint   stored on the way (one small latent a call); each call is recomputed once. Of more
                 than 32 steps of a float32 network only some pairs are stored, and the few steps
                 between two of them are rebuilt: T = 128 stores no more than T = 32, and the
                 gradient is exact to rounding instead of to the bit
    invert       rebuilt by the inverse on the way back (nothing stored), as the DOODL paper does;
                 the state is carried in float64, as the inverse swells its rounding: by p^-2T,
                 which at p = 0.93 is too much for T = 200 (keep to p = 0.93^(50/T))
    full         plain autograd keeps every activation; for tests and small models
    budget:SIZE  every call's input is stored, and the activations of as many calls as fit in SIZE
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

# Up to so many steps the input of every call is stored, which is exact to the bit.
_STORED_PAIRS = 32
_LONGEST_REBUILT = 4
# What rebuilding may make of a stored pair's rounding.
_MOST_SWELLING = 4.0

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


def pair_spacing(num_steps: int, swelling: float) -> int:
    """Return after every how many steps `checkpoint` stores the pair; 1: every input is stored.

    32 pairs at most, up to T = 128; beyond that one of four. Fewer steps are rebuilt in a row, or
    none, where undoing one step swells an error by much (`swelling`, a factor).
    """
    spacing = min(-(-num_steps // _STORED_PAIRS), _LONGEST_REBUILT)
    while spacing > 1 and swelling**spacing > _MOST_SWELLING:
        spacing -= 1
    return max(spacing, 1)


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
        rebuild: no call's input is stored; the walk back hands in what it has rebuilt.
        spacing: with rebuild, a pair is stored after every so many steps; 0: only the walk's end,
            and the whole walk is carried in float64, as rebuilding all of it swells its rounding.
        budget_bytes: room for activations of calls, as many as fit, the last ones first.
    """

    predict_noise: PredictNoise
    rebuild: bool = False
    spacing: int = 0
    budget_bytes: int = 0
    calls: list[_Call] = field(default_factory=list)
    pairs: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @classmethod
    def of(cls, predict_noise: PredictNoise, memory: str, num_steps: int, swelling: float) -> Tape:
        """Return the tape of a walk of so many invertible steps in a memory mode but `full`.

        Args:
            swelling: by what factor undoing a step may swell an error of the pair.
        """
        mode, budget_bytes = parse_memory(memory)
        spacing = pair_spacing(num_steps, swelling) if mode == "checkpoint" else 0
        # A network in half precision takes a rebuilt latent for its neighbour, whose noise is
        # another by far more than the latents are off.
        if getattr(predict_noise, "dtype", None) in (torch.float16, torch.bfloat16):
            spacing = min(spacing, 1)
        rebuild = mode == "invert" or spacing > 1
        return cls(predict_noise, rebuild, spacing if rebuild else 0, budget_bytes)

    def state(self, z: Tensor) -> Tensor:
        """Return the walk's own copy of a latent: float64 if all of it is to be rebuilt."""
        # A copy: the first call's input is kept, and the caller may change its own in place.
        return z.double() if self.rebuild and not self.spacing else z.clone()

    def passed(self, index: int, x: Tensor, y: Tensor, *, last: bool) -> None:
        """Tell of the pair after step `index` (0, 1, ..) of the walk, to be stored if it is one."""
        if self.rebuild and (last or (self.spacing and (index + 1) % self.spacing == 0)):
            self.pairs[index] = (x, y)

    def rebuilt_from(self, index: int, x: Tensor | None, y: Tensor | None) -> Any:
        """Return the pair after step `index` as the walk back goes on with it: the stored one where
        there is one, else the rebuilt (x, y); (None, None) unless it rebuilds."""
        if index not in self.pairs:
            return x, y
        x, y = self.pairs[index]
        return x.double(), y.double()

    def predictor(self, like: Tensor, num_calls: int, t: Tensor | None) -> PredictNoise:
        """Return the predictor of one walk of `num_calls` calls, which records them.

        Args:
            like: latents of the shape, dtype and device of the caller's.
            t: a timestep to measure a call's activations at; None if there is no call.
        """
        self.calls, self.pairs = [], {}
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
