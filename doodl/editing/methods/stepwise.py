"""Guidance inside each denoising step: the rivals that look ahead while they walk down once.

From a DDIM inversion, at each step of the way down an image is judged and the noise prediction
becomes ε + λ sqrt(1-ᾱ) ∇_z L: with it the step lowers the loss (b < 0 in z_s = a z + b ε).

one-step   the image is the decoded x̂_0 = (z - sqrt(1-ᾱ) ε) / sqrt(ᾱ), what this step promises
hybrid     the image is the final one that plain DDIM reaches from z, with the gradient through
           all of those steps; the released code's `latent_traversal=False`, on one chain

The gradient is shaped as the edit's own (blurred, rescaled per photo), and the loss is the edit's
own, so that the rivals are fair ones. There is no choice among iterates: the end is delivered, if
the guard lets it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from doodl.backbones import Backbone
from doodl.backbones.denoiser import NoisePredictor
from doodl.editing.methods.slots import Slot
from doodl.editing.objective import EnhanceProblem
from doodl.engine.network_call import epsilon_of
from doodl.engine.sampling import RoundTrip
from doodl.moves import Denoise, ddim, generate_with_grad, invert
from doodl.optimise import shape_gradient
from doodl.recipes.config import EditConfig
from doodl.schedule import Schedule


def acting_alphas(schedule: Schedule) -> list[float]:
    """Return the cumulative alpha at each of the steps of `moves.ddim`."""
    alphas: list[float] = schedule.alphas[schedule.noise_calls].tolist()
    return alphas


def denoised(z: Tensor, noise_pred: Tensor, alpha: float) -> Tensor:
    """Return the estimate x̂_0 = (z - sqrt(1 - alpha) epsilon) / sqrt(alpha)."""
    return (z - math.sqrt(1 - alpha) * noise_pred) / math.sqrt(alpha)


def denoise_step(z: Tensor, noise_pred: Tensor, step: Denoise) -> Tensor:
    """Return z_s = a z + b epsilon, by a noise prediction that is there already."""
    return step.do((z,), lambda *_: noise_pred)[0]


def guided_noise(noise_pred: Tensor, gradient: Tensor, alpha: float, guidance: float) -> Tensor:
    """Return epsilon + guidance sqrt(1 - alpha) gradient: the sign that lowers the loss.

    Source: classifier guidance (arXiv:2105.05233), algorithm 2, with -loss for log p.
    """
    return noise_pred + guidance * math.sqrt(1 - alpha) * gradient


class StepByStep:
    """One walk down, an iteration a step; `state.x` is z, and `state.iteration` counts the steps.

    Attributes:
        joins: photos of one batch are all at the same step, which t belongs to.
    """

    inverts = True
    joins = False

    def __init__(
        self, backbone: Backbone, config: EditConfig, predictor: NoisePredictor, schedule: Schedule
    ) -> None:
        self.backbone, self.config, self.predictor = backbone, config, predictor
        self.schedule = schedule
        self.steps = ddim(schedule.on(backbone.device))
        self.alphas = acting_alphas(schedule)
        self.whole_chain = config.method == "hybrid"

    @torch.no_grad()
    def begin(self, latents: Tensor) -> tuple[RoundTrip, Tensor | None]:
        """Return the way to the noise and back, and for one-step what each step promises.

        A guided x̂_0 is compared with the unguided one of its step: the difference is the
        guidance's doing alone, not the blur of a prediction made from noise.
        """
        (noise,) = invert(self.predictor, self.steps, (latents,))
        z, previews = noise, []
        for step, alpha in zip(self.steps, self.alphas, strict=True):
            noise_pred = epsilon_of(self.predictor, z, step.t)
            if not self.whole_chain:
                previews.append(self.backbone.decode(denoised(z, noise_pred, alpha)))
            z = denoise_step(z, noise_pred, step)
        trip = RoundTrip.of((noise, noise), (z, z), (latents, latents))
        return trip, torch.stack(previews) if previews else None

    def advance(self, slots: Sequence[Slot], problem: EnhanceProblem) -> None:
        """Take the next step of the photos that are farthest behind; a resumed one may be ahead."""
        fresh = [i for i, slot in enumerate(slots) if not slot.state.loss_curve]
        if fresh:
            self._judge_start([slots[i] for i in fresh], problem.keep(fresh))
        going_on = [i for i, slot in enumerate(slots) if slot.state.stop_reason is None]
        if not going_on:
            return
        behind = min(slots[i].state.iteration for i in going_on)
        places = [i for i in going_on if slots[i].state.iteration == behind]
        self._step([slots[i] for i in places], problem.keep(places), behind)

    @torch.no_grad()
    def render(self, slots: Sequence[Slot], problem: EnhanceProblem) -> Tensor:
        ends = problem.decode(torch.stack([slot.state.best_x for slot in slots]))
        # Stopped before the first step, x is noise still.
        stayed = [slot.state.best_iteration == 0 for slot in slots]
        started = torch.cat([slot.started for slot in slots])
        return torch.where(
            torch.tensor(stayed, device=ends.device).view(-1, 1, 1, 1), started, ends
        )

    @torch.no_grad()
    def _judge_start(self, slots: Sequence[Slot], problem: EnhanceProblem) -> None:
        # By copies: the walk then draws its crops as if nobody had looked.
        generators = [_copy(slot.state.generator) for slot in slots]
        judgement = problem.judge(torch.cat([slot.started for slot in slots]), generators)
        _note(slots, judgement.loss, judgement.value)
        # As for the edit: a good photo is left as it was only where no updates are a minimum.
        may_stay = not self.config.optimiser.min_optim_steps
        for slot, good in zip(slots, judgement.good_enough.tolist(), strict=True):
            stays = good and (may_stay or slot.start is not None)
            if stays and slot.state.stop_reason is None:
                slot.state.stop_reason = "good_enough"

    def _step(self, slots: Sequence[Slot], problem: EnhanceProblem, index: int) -> None:
        states, step = [slot.state for slot in slots], self.steps[index]
        z = torch.stack([state.x for state in states])
        noise_pred, gradient = self._guide(z, index, slots, problem)
        gradient, _ = shape_gradient(gradient, gradient, self.config.optimiser)
        guided = guided_noise(noise_pred, gradient, self.alphas[index], self.config.step_guidance)
        for state, latents in zip(states, denoise_step(z, guided, step), strict=True):
            state.x = state.y = latents
            state.iteration += 1
        if index + 1 == len(self.steps):
            self._judge_end(slots, problem)

    def _guide(
        self, z: Tensor, index: int, slots: Sequence[Slot], problem: EnhanceProblem
    ) -> tuple[Tensor, Tensor]:
        """Return epsilon at z, and the gradient of the loss at z."""
        predictor, t = problem.predictor, self.steps[index].t
        with torch.enable_grad():
            leaf = z.detach().requires_grad_()
            if self.whole_chain:
                with torch.no_grad():
                    noise_pred = epsilon_of(predictor, z, t)
                memory, rest = self.config.sampler.memory, self.steps[index:]
                (latents,) = generate_with_grad(predictor, rest, (leaf,), memory=memory)
            else:
                noise_pred = epsilon_of(predictor, leaf, t)
                latents = denoised(leaf, noise_pred, self.alphas[index])
                problem = problem.with_bases(torch.stack([_preview(s, index) for s in slots]))
            generators = [slot.state.generator for slot in slots]
            loss = problem.judge(self.backbone.decode(latents), generators).loss
            (gradient,) = torch.autograd.grad(loss.sum(), leaf)
        return noise_pred.detach(), gradient

    @torch.no_grad()
    def _judge_end(self, slots: Sequence[Slot], problem: EnhanceProblem) -> None:
        images = problem.decode(torch.stack([slot.state.x for slot in slots]))
        judgement = problem.judge(images, [slot.state.generator for slot in slots])
        for slot in slots:
            slot.state.best_value = math.inf  # the end is delivered, or nothing
        _note(slots, judgement.loss, judgement.value)
        for slot in slots:
            slot.state.stop_reason = slot.state.stop_reason or "steps"


def _preview(slot: Slot, index: int) -> Tensor:
    assert slot.previews is not None
    return slot.previews[index]


def _note(slots: Sequence[Slot], loss: Tensor, value: Tensor) -> None:
    """Take the iterate that was just judged for the one to deliver, where it is finite."""
    record = torch.stack([loss.detach(), value.detach()]).T.tolist()
    for slot, (loss_i, value_i) in zip(slots, record, strict=True):
        state = slot.state
        state.loss_curve.append(loss_i)
        if not (math.isfinite(loss_i) and math.isfinite(value_i)):
            state.stop_reason = "diverged"
            continue
        state.best_value, state.best_iteration = value_i, state.iteration
        state.best_x, state.best_y = state.x, state.y


def _copy(generator: torch.Generator) -> torch.Generator:
    copy = torch.Generator()
    copy.set_state(generator.get_state())
    return copy
