"""One-step classifier guidance as an edit: the rival that looks one step ahead.

At each step of the way down, x̂_0 = (z - sqrt(1-ᾱ) ε) / sqrt(ᾱ) is decoded and judged, and the
noise prediction becomes ε + λ sqrt(1-ᾱ) ∇_z L: with it the step lowers the loss (b < 0 in
z_s = a z + b ε). The gradient is shaped as the edit's own (blurred, rescaled per photo), and the
loss is the edit's own, so that the rival is a fair one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from doodl.denoiser import NoisePredictor
from doodl.edit import EditRequest, PhotoEditor
from doodl.errors import DoodlError, InversionError, OptimisationError
from doodl.guard import score_objection
from doodl.images import decode_photo, encode_photo, into_photo_space
from doodl.objective import EnhanceProblem
from doodl.optimise import shape_gradient
from doodl.schedule import Schedule
from doodl.transfer import TransferFit, apply_transfer_to_pixels


@dataclass(frozen=True)
class OneStepEdit:
    """One photo's outcome; see `methods.Edited`."""

    encoded: bytes
    status: str
    num_steps: int
    inversion_error: float


def ddim_invert(predictor: NoisePredictor, latents: Tensor, schedule: Schedule) -> Tensor:
    """Return the noise that DDIM walks back to about these latents, (B, C, h, w).

    Each step's noise is predicted at the latents it starts from, not at those it leads to: the
    round trip is not exact. Source: DDIM (arXiv:2010.02502), section 4.3.
    """
    z = latents
    for t, a, b, acts in reversed(_steps(schedule, latents.device)):
        if acts:
            z = (z - b * predictor(z, t).to(z.dtype)) / a
    return z


def denoise_step(z: Tensor, noise_pred: Tensor, a: float, b: float) -> Tensor:
    """Return z_s = a z + b epsilon."""
    return a * z + b * noise_pred


def guided_noise(noise_pred: Tensor, gradient: Tensor, alpha: float, guidance: float) -> Tensor:
    """Return epsilon + guidance sqrt(1 - alpha) gradient: the sign that lowers the loss.

    Source: classifier guidance (arXiv:2105.05233), algorithm 2, with -loss for log p.
    """
    return noise_pred + guidance * math.sqrt(1 - alpha) * gradient


def denoised(z: Tensor, noise_pred: Tensor, alpha: float) -> Tensor:
    """Return the estimate x̂_0 = (z - sqrt(1 - alpha) epsilon) / sqrt(alpha)."""
    return (z - math.sqrt(1 - alpha) * noise_pred) / math.sqrt(alpha)


def edit_one_step(
    editor: PhotoEditor, requests: Sequence[EditRequest], *, guidance: float
) -> list[OneStepEdit | DoodlError]:
    """Edit photos by one-step guidance of weight `guidance`; photos of one frame share batches."""
    views = [editor.view(request.photo) for request in requests]
    outcomes: dict[int, OneStepEdit | DoodlError] = {}
    for shape in dict.fromkeys(view.shape for view in views):
        places = [i for i, view in enumerate(views) if view.shape == shape]
        group = _edit_group(
            editor, [requests[i] for i in places], torch.cat([views[i] for i in places]), guidance
        )
        outcomes.update(zip(places, group, strict=True))
    return [outcomes[i] for i in range(len(requests))]


def _edit_group(
    editor: PhotoEditor, requests: Sequence[EditRequest], views: Tensor, guidance: float
) -> list[OneStepEdit | DoodlError]:
    backbone, sampler = editor.backbone, editor.config.sampler
    predictor = backbone.predictor(
        [request.prompt for request in requests], guidance_scale=sampler.guidance_scale
    )
    schedule = backbone.schedule(sampler.num_inference_steps, sampler.depth)
    with torch.no_grad():
        latents = backbone.encode(views)
        noise = ddim_invert(predictor, latents, schedule)
        restored, shown = _walk_unguided(editor, predictor, noise, schedule)
    rms = latents.square().mean((1, 2, 3)).sqrt().clamp_min(torch.finfo(latents.dtype).tiny)
    errors = ((restored - latents).square().mean((1, 2, 3)).sqrt() / rms).tolist()
    problems = [_problem(editor, predictor, requests, views, image) for image in shown]
    final = walk_guided(editor, predictor, problems[:-1], noise, schedule, requests, guidance)
    with torch.no_grad():
        images = backbone.decode(final)
        start = problems[-1].judge(shown[-1], _generators(requests))
    optimiser = editor.config.optimiser
    outcomes: list[OneStepEdit | DoodlError] = []
    for i, request in enumerate(requests):
        if not math.isfinite(errors[i]):
            outcomes.append(InversionError("the DDIM inversion left the finite numbers."))
        elif not bool(images[i].isfinite().all()):
            outcomes.append(OptimisationError("the guided way down left the finite numbers."))
        else:
            # As for the edit: a good photo is left as it was only where no updates are a minimum.
            good_enough = bool(start.good_enough[i]) and not optimiser.min_optim_steps
            image = shown[-1][i : i + 1] if good_enough else images[i : i + 1]
            encoded, improved = _deliver(editor, request, shown[-1][i : i + 1], image)
            status = "skipped" if good_enough else "ok" if improved else "rejected"
            outcomes.append(OneStepEdit(encoded, status, len(schedule), errors[i]))
    return outcomes


def _walk_unguided(
    editor: PhotoEditor, predictor: NoisePredictor, noise: Tensor, schedule: Schedule
) -> tuple[Tensor, list[Tensor]]:
    """Return where the noise leads by itself, and the decoded x̂_0 of each step, then of the end.

    They are what a guided x̂_0 is compared with: the difference is the guidance's doing alone,
    not the blur of a prediction made from noise.
    """
    z, shown = noise, []
    alphas = schedule.alphas.tolist()
    for (t, a, b, acts), alpha in zip(_steps(schedule, noise.device), alphas, strict=True):
        if acts:
            noise_pred = predictor(z, t).to(z.dtype)
            shown.append(editor.backbone.decode(denoised(z, noise_pred, alpha)))
            z = denoise_step(z, noise_pred, a, b)
    return z, [*shown, editor.backbone.decode(z)]


def walk_guided(
    editor: PhotoEditor,
    predictor: NoisePredictor,
    problems: Sequence[EnhanceProblem],
    noise: Tensor,
    schedule: Schedule,
    requests: Sequence[EditRequest],
    guidance: float,
) -> Tensor:
    """Return the latents (B, C, h, w) that guided denoising ends at.

    Args:
        problems: one for each step that acts, its bases what that step shows without guidance.
    """
    z, judges, generators = noise, iter(problems), _generators(requests)
    alphas = schedule.alphas.tolist()
    for (t, a, b, acts), alpha in zip(_steps(schedule, noise.device), alphas, strict=True):
        if not acts:
            continue
        with torch.enable_grad():
            leaf = z.detach().requires_grad_()
            noise_pred = predictor(leaf, t).to(leaf.dtype)
            image = editor.backbone.decode(denoised(leaf, noise_pred, alpha))
            loss = next(judges).judge(image, generators).loss
            (gradient,) = torch.autograd.grad(loss.sum(), leaf)
        gradient, _ = shape_gradient(gradient, gradient, editor.config.optimiser)
        guided = guided_noise(noise_pred.detach(), gradient, alpha, guidance)
        z = denoise_step(z, guided, a, b)
    return z


def _problem(
    editor: PhotoEditor,
    predictor: NoisePredictor,
    requests: Sequence[EditRequest],
    views: Tensor,
    bases: Tensor,
) -> EnhanceProblem:
    return EnhanceProblem.of(
        editor.backbone,
        predictor,
        editor.guide,
        editor.config,
        views=views,
        bases=bases,
        aims=[request.aim for request in requests],
        grey=[request.photo.grey for request in requests],
    )


def _deliver(
    editor: PhotoEditor, request: EditRequest, base: Tensor, image: Tensor
) -> tuple[bytes, bool]:
    """Return the edited file, and whether guide and judge both find it improved."""
    photo = request.photo
    fit = TransferFit(into_photo_space(photo, base), grey=photo.grey)
    transfer = fit.fit(into_photo_space(photo, image)).detach()
    strength = request.strength * editor.pleasing_share(request, base, image)
    pixels = apply_transfer_to_pixels(transfer, photo.pixels, strength=strength)
    encoded = encode_photo(photo, pixels, software=editor.software)
    before, after = editor.scores(photo), editor.scores(decode_photo(encoded))
    slack = editor.config.judge_slack
    return encoded, score_objection(request.aim, before, after, slack) is None


def _steps(schedule: Schedule, device: torch.device) -> list[tuple[Tensor, float, float, bool]]:
    """Return (t, a, b, whether the step acts) of each step, from noise to photo."""
    return list(
        zip(
            schedule.timesteps.to(device).unbind(0),
            schedule.a.tolist(),
            schedule.b.tolist(),
            schedule.noise_calls.tolist(),
            strict=True,
        )
    )


def _generators(requests: Sequence[EditRequest]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(request.seed) for request in requests]
