"""A sampler is a list of invertible moves.

Between the network's calls everything is linear with known coefficients, so a move says how it
changes the state, how that is undone, and its transpose. Three folds over a list are the rest:
`generate` of `do`, `invert` of `undo` from the end, `generate_with_grad` of `back`. Another exact
sampler is a move and a list.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from doodl.engine.network_call import PredictNoise, epsilon_of
from doodl.engine.tape import PullBack, Tape
from doodl.recipes.config import parse_memory
from doodl.schedule import Schedule

State = tuple[Tensor, ...]
"""What a sampler carries: (x, y) or (z,), each (B, C, h, w)."""


class Move(Protocol):
    """One change of the state, linear but for one call of the network or none (`num_calls`).

    `do` makes it and `undo` takes it back. `back` is the transpose, from the gradient by the state
    after the move to that by the state before; its pull_back(c) is J^T c of the move's own call.
    """

    num_calls: ClassVar[int] = 1

    @property
    def exact(self) -> bool:
        """Whether `undo` gives the state that was, to rounding."""
        return True

    def do(self, z: State, epsilon: PredictNoise, /) -> State: ...
    def undo(self, z: State, epsilon: PredictNoise, /) -> State: ...
    def back(self, g: State, pull_back: PullBack, /) -> State: ...


@dataclass(frozen=True, eq=False)
class Denoise(Move):
    """z_k <- a z_k + b epsilon(z_r, t): DDIM's step, Euler's of a flow, half a step of EDICT.

    With r = k its `undo` is approximate: it predicts at the latents it starts from, as DDIM's does.
    """

    k: int
    r: int
    a: float
    b: float
    t: Tensor

    @property
    def exact(self) -> bool:
        return self.k != self.r

    def do(self, z: State, epsilon: PredictNoise) -> State:
        return _put(z, self.k, self.a * z[self.k] + self.b * epsilon(z[self.r], self.t))

    def undo(self, z: State, epsilon: PredictNoise) -> State:
        return _put(z, self.k, (z[self.k] - self.b * epsilon(z[self.r], self.t)) / self.a)

    def back(self, g: State, pull_back: PullBack) -> State:
        pulled = pull_back(self.b * g[self.k])
        g = _put(g, self.k, self.a * g[self.k])
        return _put(g, self.r, g[self.r] + pulled)


def _put(z: State, k: int, z_k: Tensor) -> State:
    return (*z[:k], z_k, *z[k + 1 :])


@dataclass(frozen=True)
class Mix(Move):
    """x <- p x + (1-p) y, then y <- p y + (1-p) x with the new x: EDICT's averaging, its eq. 12-13.

    Raises: ValueError if p is outside (0, 1]; 1 leaves the pair unmixed.
    """

    p: float
    num_calls: ClassVar[int] = 0

    def __post_init__(self) -> None:
        if not 0 < self.p <= 1:
            raise ValueError(f"mix_weight (={self.p}) must be in (0, 1]; EDICT has 0.93 at T = 50.")

    def do(self, z: State, _: PredictNoise) -> State:
        (x, y), p = z, self.p
        x = p * x + (1 - p) * y
        return x, p * y + (1 - p) * x

    def undo(self, z: State, _: PredictNoise) -> State:
        (x, y), p = z, self.p
        y = (y - (1 - p) * x) / p
        return (x - (1 - p) * y) / p, y

    def back(self, g: State, _: PullBack) -> State:
        (g_x, g_y), p = g, self.p
        g_x = g_x + (1 - p) * g_y
        return p * g_x, p * g_y + (1 - p) * g_x


@dataclass(frozen=True, eq=False)
class TwoStep(Move):
    """(x, y) <- (y, c y + q x + n epsilon(y, t)): x is the latent before y."""

    c: float
    q: float
    n: float
    t: Tensor

    def do(self, z: State, epsilon: PredictNoise) -> State:
        x, y = z
        noise_pred = epsilon(y, self.t)
        return y, self.c * y + self.q * x + self.n * noise_pred

    def undo(self, z: State, epsilon: PredictNoise) -> State:
        y, after = z
        return (after - self.c * y - self.n * epsilon(y, self.t)) / self.q, y

    def back(self, g: State, pull_back: PullBack) -> State:
        g_y, g_after = g
        return self.q * g_after, g_y + self.c * g_after + pull_back(self.n * g_after)


class Swap(Move):
    """(x, y) <- (y, x)."""

    num_calls: ClassVar[int] = 0

    def do(self, z: State, _: Any) -> State:
        return z[::-1]

    undo = back = do


def edict(schedule: Schedule, p: float) -> list[Move]:
    """EDICT (arXiv:2211.12446), eq. 14, on (x, y): each half is denoised with the noise predicted
    at the other, in an order that alternates with the step's absolute index (its section 4.3), so
    that a part-way schedule keeps its phase; then the two are mixed."""
    x, y = 0, 1
    mix, moves = Mix(p), list[Move]()
    for i, (t, a, b, acts) in enumerate(schedule.steps(), schedule.first_index):
        u, v = (x, y) if i % 2 == 0 else (y, x)
        # Where alpha does not change the step is the identity: no calls, the mixing stays.
        if acts:
            moves += [Denoise(u, v, a, b, t), Denoise(v, u, a, b, t)]
        moves.append(mix)
    return moves


def belm(schedule: Schedule) -> list[Move]:
    """O-BELM (arXiv:2410.07273): from (z_T, z_{T-1}) to (z_0, z_1), the outer latent first.

    A schedule's steps z' = a z + b epsilon are a change of variable away from one ODE: with A the
    product of the a's so far, z / A advances by h = b / (a A) times epsilon. The explicit two-step
    formula that is exact for quadratics (the midpoint rule with variable steps), with r the ratio
    of this h to the one before,

        z_next = (1 - r^2) a z + r^2 a a_before z_before + (1 + r) b epsilon(z, t)

    is solved for z_before as readily. For DDIM's a and b it is O-BELM's in tau = sqrt(1 - alpha) /
    sqrt(alpha), where h is proportional to tau's change; for flow matching (a = 1, b = sigma' -
    sigma) the same in sigma, with the velocity as epsilon. Both are of second order.

    The first step is in the pair already. z_1 still holds a step's noise: decode z_0 only.

    Raises: ValueError if no step of the schedule acts.
    """
    moves: list[Move] = []
    for before, now in pairwise(ddim(schedule)):
        r = now.b / (now.a * before.b)
        c, q, n = (1 - r**2) * now.a, r**2 * now.a * before.a, (1 + r) * now.b
        moves.append(TwoStep(c, q, n, now.t))
    return [*moves, Swap()]


def ddim(schedule: Schedule) -> list[Denoise]:
    """DDIM (arXiv:2010.02502), eq. 12, at sigma = 0, on (z,): the steps that act.

    Raises: ValueError if no step of the schedule acts.
    """
    moves = [Denoise(0, 0, a, b, t) for t, a, b, acts in schedule.steps() if acts]
    if not moves:
        raise ValueError("schedule must have a step that changes alpha; got none.")
    return moves


def check_state(z: State) -> None:
    """Raise ValueError unless these are latents that a sampler can carry without loss."""
    kinds = {(tuple(latents.shape), latents.dtype, latents.device) for latents in z}
    if len(kinds) > 1 or z[0].ndim != 4:
        raise ValueError(f"latents must be (B, C, h, w) of one shape, dtype, device; got {kinds}.")
    # Half precision leaves a round trip of 8e-3 at T = 50: for the networks, not the state.
    if (dtype := z[0].dtype) not in (torch.float32, torch.float64):
        raise ValueError(f"latents (of {dtype}) must be float32 or float64; cast with .float().")


def generate(predict_noise: PredictNoise, moves: Sequence[Move], z: State) -> State:
    """Return the state at the list's end, in z's dtype; raises ValueError as `check_state`."""
    check_state(z)
    epsilon = partial(epsilon_of, predict_noise)
    for move in moves:
        z = move.do(z, epsilon)
    return z


def invert(predict_noise: PredictNoise, moves: Sequence[Move], z: State) -> State:
    """Return the state that `generate` brings back to z; arguments and errors are its own."""
    check_state(z)
    epsilon = partial(epsilon_of, predict_noise)
    for move in reversed(moves):
        z = move.undo(z, epsilon)
    return z


def generate_with_grad(
    predict_noise: PredictNoise, moves: Sequence[Move], z: State, *, memory: str = "checkpoint"
) -> State:
    """Return `generate`'s state, differentiable in z, in the memory of one call of the network.

    Args:
        memory: checkpoint | invert | full | budget:SIZE, see `doodl.engine.tape`. All give plain
            autograd's gradient: to 1e-10 in float64, 1e-4 in float32. Where an `undo` is not exact,
            `invert` stores what `checkpoint` does.
        others: as `generate`. Freeze the predictor's weights: they get no gradient, save under
            `full`, where autograd computes one for each that asks.
    Cost in forward passes, a pull-back being one: 3 a call for checkpoint and invert, 2 for full.
    Raises: ValueError as `generate`, or on an unknown memory mode.
    Source: DOODL (arXiv:2303.13703), section 3.3: gradients through invertible steps.
    """
    mode, budget_bytes = parse_memory(memory)
    if mode == "full":
        return generate(predict_noise, moves, z)
    if not (torch.is_grad_enabled() and any(latents.requires_grad for latents in z)):
        with torch.no_grad():
            return generate(predict_noise, moves, z)
    check_state(z)
    rebuild = mode == "invert" and all(move.exact for move in moves)
    num_calls = sum(move.num_calls for move in moves)
    tape = Tape(predict_noise, z[0].dtype, num_calls, budget_bytes, stores=not rebuild)
    return _Generate.apply(tape, moves, *z)


class _Generate(torch.autograd.Function):
    """`generate` whose backward walks the moves with one call's activations at a time."""

    @staticmethod
    def forward(ctx: Any, tape: Tape, moves: Sequence[Move], *z: Tensor) -> State:
        # Copies in and out: the caller may change its own in place, and an output that its own way
        # back holds would be a cycle. In float64 to be rebuilt, which swells rounding.
        carried = tape.dtype if tape.stores else torch.float64
        state = tuple(latents.to(carried, copy=True) for latents in z)
        for move in moves:
            state = move.do(state, tape.predict)
        ctx.tape, ctx.moves, ctx.end = tape, moves, None if tape.stores else state
        return tuple(latents.to(tape.dtype, copy=True) for latents in state)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *g: Tensor) -> Any:
        tape, z = ctx.tape.turned(), ctx.end
        for move in reversed(ctx.moves):
            if z is not None:
                z = move.undo(z, tape.predict)  # its call is recorded here, to be pulled back next
            g = move.back(g, tape.pull_back)
        return None, None, *g
