"""One-step guidance for generation: the rival that looks one step ahead.

As `evaluation.onestep`, from pure noise and without a source: at each step x̂_0 is decoded and
judged by the guides' own loss, and the noise prediction becomes ε + λ sqrt(1-ᾱ) ∇_z L. The
gradient is shaped as DOODL's (rescaled per picture), so that both push equally hard.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from doodl.evaluation.onestep import denoise_step, denoised, guided_noise
from doodl.generation import GenerateRequest, ImageGenerator
from doodl.optimise import shape_gradient


@dataclass(frozen=True)
class OneStepSamples:
    """Images (B, 3, H, W), about [-1, 1]: guided, and of the same noise without guidance."""

    guided: Tensor
    unguided: Tensor


def sample_one_step(
    generator: ImageGenerator, requests: Sequence[GenerateRequest], *, guidance: float
) -> OneStepSamples:
    """Sample by DDIM with one-step guidance of weight `guidance`.

    Args:
        requests: of one size, negative prompt and set of guides.
    """
    backbone, config = generator.backbone, generator.config
    first = requests[0]
    predictor = backbone.predictor(
        [request.prompt for request in requests],
        negative_prompts=first.negative_prompt,
        guidance_scale=config.sampler.guidance_scale,
    )
    size = first.height_px, first.width_px
    schedule = backbone.schedule(config.sampler.num_inference_steps, size_px=size)
    steps = list(
        zip(
            schedule.timesteps.unbind(0),
            schedule.a.tolist(),
            schedule.b.tolist(),
            schedule.alphas.tolist(),
            schedule.noise_calls.tolist(),
            strict=True,
        )
    )
    generators = [torch.Generator().manual_seed(request.seed) for request in requests]
    noise = backbone.init_noise(generators, *size)
    unguided, z = noise, noise
    with torch.no_grad():
        for t, a, b, _, acts in steps:
            if acts:
                unguided = denoise_step(unguided, predictor(unguided, t).to(noise.dtype), a, b)
        plain = backbone.decode(unguided)
    bound = generator.guidance(first.guides).bind(
        [request.guide_row for request in requests], plain.clamp(-1, 1)
    )
    for t, a, b, alpha, acts in steps:
        if not acts:
            continue
        with torch.enable_grad():
            leaf = z.detach().requires_grad_()
            noise_pred = predictor(leaf, t).to(leaf.dtype)
            image = backbone.decode(denoised(leaf, noise_pred, alpha))
            loss = bound.loss(image, generators, crops=config.crops)
            (gradient,) = torch.autograd.grad(loss.sum(), leaf)
        gradient, _ = shape_gradient(gradient, gradient, config.optimiser)
        z = denoise_step(z, guided_noise(noise_pred.detach(), gradient, alpha, guidance), a, b)
    with torch.no_grad():
        return OneStepSamples(backbone.decode(z), plain)
