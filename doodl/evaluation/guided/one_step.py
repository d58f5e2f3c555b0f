"""Guidance inside each denoising step for generation: the rivals that walk down once.

As `methods.stepwise`, from pure noise and without a source: at each step an image is judged by the
guides' own loss, and the noise prediction becomes ε + λ sqrt(1-ᾱ) ∇_z L. One-step judges the
decoded x̂_0, what this step promises; hybrid the final image that plain DDIM reaches from z. The
gradient is shaped as DOODL's (rescaled per picture), so that all push equally hard.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from doodl.editing.methods.stepwise import acting_alphas, denoise_step, denoised, guided_noise
from doodl.engine.network_call import epsilon_of
from doodl.generation import GenerateRequest, ImageGenerator
from doodl.moves import ddim, generate, generate_with_grad
from doodl.optimise import shape_gradient


@dataclass(frozen=True)
class OneStepSamples:
    """Images (B, 3, H, W), about [-1, 1]: guided, and of the same noise without guidance."""

    guided: Tensor
    unguided: Tensor


def sample_one_step(
    generator: ImageGenerator,
    requests: Sequence[GenerateRequest],
    *,
    guidance: float,
    whole_chain: bool = False,
) -> OneStepSamples:
    """Sample by DDIM with guidance of weight `guidance` inside each step.

    Args:
        requests: of one size, negative prompt and set of guides.
        whole_chain: judge the final image of all steps that follow (hybrid), not x̂_0.
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
    steps = ddim(schedule.on(backbone.device))
    alphas = acting_alphas(schedule)
    generators = [torch.Generator().manual_seed(request.seed) for request in requests]
    noise = backbone.init_noise(generators, *size)
    z = noise
    with torch.no_grad():
        (unguided,) = generate(predictor, steps, (noise,))
        plain = backbone.decode(unguided)
    bound = generator.guidance(first.guides).bind(
        [request.guide_row for request in requests], plain.clamp(-1, 1)
    )
    for index, (step, alpha) in enumerate(zip(steps, alphas, strict=True)):
        with torch.enable_grad():
            leaf = z.detach().requires_grad_()
            if whole_chain:
                with torch.no_grad():
                    noise_pred = epsilon_of(predictor, z, step.t)
                memory, rest = config.sampler.memory, steps[index:]
                (latents,) = generate_with_grad(predictor, rest, (leaf,), memory=memory)
            else:
                noise_pred = epsilon_of(predictor, leaf, step.t)
                latents = denoised(leaf, noise_pred, alpha)
            image = backbone.decode(latents)
            loss = bound.loss(image, generators, crops=config.crops)
            (gradient,) = torch.autograd.grad(loss.sum(), leaf)
        gradient, _ = shape_gradient(gradient, gradient, config.optimiser)
        guided = guided_noise(noise_pred.detach(), gradient, alpha, guidance)
        z = denoise_step(z, guided, step)
    with torch.no_grad():
        return OneStepSamples(backbone.decode(z), plain)
