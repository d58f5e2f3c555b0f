"""DOODL's Algorithm 1: momentum on clipped gradients of the final pixels, per photo in a batch.

Each photo keeps its own state (latents, momentum, random generator, best iterate), so photos can
be optimised together, leave when they are done, and be saved and resumed one by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from doodl.recipes.config import OptimiserConfig


@dataclass(eq=False)
class Judgement:
    """What the objective says of a batch of rendered images, one value per photo.

    Attributes:
        loss: (B,), differentiable; what the gradient lowers.
        value: (B,), what iterates are ranked by, lower is better; often the loss without crops.
        good_enough: (B,) bool; True stops the photo with this iterate.
        affordable: (B,) bool; False stops the photo before this iterate; None: all are.
        changed: (B,) bool; True where the start is a change already, so that min_optim_steps, the
            updates that even a good photo gets, does not bind it; None: nowhere.
    """

    loss: Tensor
    value: Tensor
    good_enough: Tensor
    affordable: Tensor | None = None
    changed: Tensor | None = None


class Problem(Protocol):
    """The differentiable way from a latent pair to a judgement."""

    def generate(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Denoise the pair (B, C, h, w), differentiably."""

    def decode(self, latents: Tensor) -> Tensor:
        """Return images (B, 3, H, W) of latents."""

    def judge(self, images: Tensor, generators: Sequence[torch.Generator]) -> Judgement:
        """Judge rendered images; the generators draw each photo's crops."""

    def keep(self, indices: Sequence[int]) -> Problem:
        """Return the problem of only these photos of the batch: the others have finished."""


@dataclass(eq=False)
class LatentState:
    """One photo's place in the optimisation: everything that a resumed run needs.

    Attributes:
        x, y: current noise pair, (C, h, w) float32 or float64.
        velocity_x, velocity_y: momentum buffers m, of the same shape.
        norm_x, norm_y: L2 norms at the start, for renormalising.
        iteration: updates made so far.
        loss_curve: loss of each rendered iterate, the start first.
        best_x, best_y, best_value, best_iteration: the iterate to deliver: the one that was
            good enough, else the best rendered; best_value is inf while none was finite.
        stop_reason: None while running; else steps | good_enough | plateau | budget | diverged.
    """

    x: Tensor
    y: Tensor
    velocity_x: Tensor
    velocity_y: Tensor
    norm_x: float
    norm_y: float
    generator: torch.Generator
    best_x: Tensor
    best_y: Tensor
    iteration: int = 0
    loss_curve: list[float] = field(default_factory=list)
    best_value: float = float("inf")
    best_iteration: int = 0
    stop_reason: str | None = None

    @classmethod
    def start(cls, x: Tensor, y: Tensor, seed: int) -> LatentState:
        """Return the state before the first iteration, from one photo's pair, each (C, h, w)."""
        x, y = x.detach(), y.detach()
        return cls(
            x=x,
            y=y,
            velocity_x=torch.zeros_like(x),
            velocity_y=torch.zeros_like(y),
            norm_x=float(x.norm()),
            norm_y=float(y.norm()),
            # On the CPU whatever the device: the draws then do not depend on where it runs.
            generator=torch.Generator().manual_seed(seed),
            best_x=x,
            best_y=y,
        )


def blur_latents(gradient: Tensor, sigma: float) -> Tensor:
    """Return gradient (B, C, h, w) under a Gaussian of `sigma` latent pixels, borders reflected."""
    if sigma <= 0:
        return gradient
    height, width = gradient.shape[-2:]
    for axis, size in ((-2, height), (-1, width)):
        radius = min(int(3 * sigma + 0.5), size - 1)
        offsets = torch.arange(-radius, radius + 1, dtype=gradient.dtype, device=gradient.device)
        kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
        kernel = (kernel / kernel.sum()).view((1, 1, -1, 1) if axis == -2 else (1, 1, 1, -1))
        padding = (0, 0, radius, radius) if axis == -2 else (radius, radius, 0, 0)
        channels = gradient.shape[1]
        gradient = F.conv2d(
            F.pad(gradient, padding, mode="reflect"),
            kernel.expand(channels, 1, -1, -1),
            groups=channels,
        )
    return gradient


def shape_gradient(
    grad_x: Tensor, grad_y: Tensor, config: OptimiserConfig
) -> tuple[Tensor, Tensor]:
    """Return the pair's gradient as the update uses it: tied, blurred, rescaled, clipped.

    Each step acts on each photo alone: grad_x, grad_y are (B, C, h, w).
    """
    if config.tie_gradients:
        grad_x = grad_y = (grad_x + grad_y) / 2
    grad_x = blur_latents(grad_x, config.grad_blur_sigma)
    grad_y = grad_x if config.tie_gradients else blur_latents(grad_y, config.grad_blur_sigma)
    if config.grad_mean_abs is not None:
        mean_abs = (grad_x.abs() + grad_y.abs()).mean((1, 2, 3), keepdim=True) / 2
        # A photo whose loss is flat has no direction: leave it where it is rather than divide by 0.
        scale = torch.where(mean_abs > 0, config.grad_mean_abs / mean_abs, 0.0)
        grad_x, grad_y = grad_x * scale, grad_y * scale
    if config.grad_clip_value is not None:
        limit = config.grad_clip_value
        grad_x, grad_y = grad_x.clamp(-limit, limit), grad_y.clamp(-limit, limit)
    return grad_x, grad_y


def update(state: LatentState, grad_x: Tensor, grad_y: Tensor, config: OptimiserConfig) -> None:
    """Make one update of one photo's pair in place of the old one; gradients are (C, h, w).

    Source: DOODL (arXiv:2303.13703), Algorithm 1; the order clip, momentum, noise, tie,
    renormalise is the released code's.
    """
    state.velocity_x = config.momentum * state.velocity_x + grad_x
    state.velocity_y = config.momentum * state.velocity_y + grad_y
    x = state.x - config.learning_rate * state.velocity_x
    y = state.y - config.learning_rate * state.velocity_y
    if config.noise_scale:
        # One draw serves both halves, or noise alone would pull the pair apart.
        noise = torch.randn(x.shape, generator=state.generator, dtype=x.dtype).to(x.device)
        x, y = x + config.noise_scale * noise, y + config.noise_scale * noise
    if config.tie_latents:
        x = y = (x + y) / 2
    if config.renormalise:
        x, y = x * (state.norm_x / x.norm()), y * (state.norm_y / y.norm())
    state.x, state.y = x, y
    state.iteration += 1


def _record(
    state: LatentState,
    loss: float,
    value: float,
    good: bool,
    affordable: bool,
    changed: bool,
    config: OptimiserConfig,
) -> None:
    """Take note of the iterate just rendered: the best so far, and whether to stop here."""
    state.loss_curve.append(loss)
    if not (math.isfinite(loss) and math.isfinite(value)):
        state.stop_reason = "diverged"
        return
    if not affordable:
        # The start is kept whatever it costs: it is what there is to show, though not to deliver.
        if state.iteration == 0:
            state.best_value = value
        state.stop_reason = "budget"
        return
    good = good and (changed or state.iteration >= config.min_optim_steps)
    if good or value < state.best_value:
        state.best_value, state.best_iteration = value, state.iteration
        state.best_x, state.best_y = state.x, state.y
    if good:
        state.stop_reason = "good_enough"
    elif state.iteration >= config.num_optim_steps:
        state.stop_reason = "steps"
    elif config.patience and state.iteration - state.best_iteration >= config.patience:
        state.stop_reason = "plateau"


def advance(states: Sequence[LatentState], problem: Problem, config: OptimiserConfig) -> None:
    """Render and judge the current iterate of each photo, then update those that go on.

    Every iterate is rendered before it is judged, the last one too: N updates take N + 1 renders.
    All states must be running and share one latent shape.
    """
    generators = [state.generator for state in states]
    last = all(state.iteration >= config.num_optim_steps for state in states)
    with torch.set_grad_enabled(not last):
        x = torch.stack([state.x for state in states]).requires_grad_(not last)
        y = torch.stack([state.y for state in states]).requires_grad_(not last)
        x_0, y_0 = problem.generate(x, y)
        judgement = problem.judge(problem.decode(x_0), generators)
        loss = judgement.loss
        if config.decode_pair:
            # The released code sums the losses of both decodes and halves the gradient.
            loss = (loss + problem.judge(problem.decode(y_0), generators).loss) / 2
    if not last:
        grad_x, grad_y = torch.autograd.grad(
            config.loss_scale * loss.sum(), (x, y), materialize_grads=True
        )
        grad_x, grad_y = shape_gradient(grad_x, grad_y, config)
    # One transfer to the host per iteration, after everything is queued on the device.
    good = judgement.good_enough
    affordable = torch.ones_like(good) if judgement.affordable is None else judgement.affordable
    changed = torch.zeros_like(good) if judgement.changed is None else judgement.changed
    record = torch.stack(
        [each.detach().to(loss) for each in (loss, judgement.value, good, affordable, changed)]
    )
    for i, (loss_i, value_i, *flags) in enumerate(record.T.tolist()):
        state = states[i]
        good_i, affordable_i, changed_i = map(bool, flags)
        _record(state, loss_i, value_i, good_i, affordable_i, changed_i, config)
        if state.stop_reason is None:
            update(state, grad_x[i], grad_y[i], config)


def optimise(
    states: Sequence[LatentState],
    problem: Problem,
    config: OptimiserConfig,
    *,
    on_iteration: Callable[[Sequence[LatentState]], None] | None = None,
) -> None:
    """Run Algorithm 1 until every photo has stopped; the states hold the result.

    A photo that has stopped, here or before, leaves the batch: nothing more is computed for it.
    `on_iteration` is called with the states after each iteration: checkpoints, heartbeats.
    """
    running = list(states)
    while going_on := [i for i, state in enumerate(running) if state.stop_reason is None]:
        if len(going_on) < len(running):
            running, problem = [running[i] for i in going_on], problem.keep(going_on)
        advance(running, problem, config)
        if on_iteration is not None:
            on_iteration(running)
