"""Every kind of backbone, small and with random weights, from its real folder format: the loaded
model against diffusers' own pipeline, the exact round trip, the gradient, an optimisation."""

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    FluxPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)

from doodl.adjoint import generate_with_grad
from doodl.backbones import load_backbone
from doodl.edict import generate, invert
from doodl.editing.editor import PhotoEditor
from doodl.editing.objective import Aim
from doodl.editing.requests import EditRequest
from doodl.images import decode_photo
from doodl.recipes.config import EditConfig, OptimiserConfig, SamplerConfig
from doodl.scores import load_scorer
from tests.doodl.tiny_models import KINDS, make_folder
from tests.photos import jpeg

PROMPTS = ["a red rose", "a landscape at dusk"]
SIZE_PX = (16, 24)
PIPELINES = {
    "sdxl": StableDiffusionXLPipeline,
    "sd3": StableDiffusion3Pipeline,
    "flux": FluxPipeline,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    torch.set_num_threads(1)
    made = {}

    def folder(kind):
        if kind not in made:
            made[kind] = make_folder(tmp_path_factory.mktemp(kind), kind)
        return made[kind]

    return folder


@pytest.fixture(scope="module")
def backbones(folders):
    loaded = {}

    def backbone(kind, dtype=torch.float64):
        if (kind, dtype) not in loaded:
            loaded[kind, dtype] = load_backbone(folders(kind), dtype=dtype)
        return loaded[kind, dtype]

    return backbone


def latents_of(backbone, batch=2, seed=0):
    shape = (batch, *backbone.latent_shape(*SIZE_PX))
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(backbone.dtype)


def steps_of(backbone):
    num_steps = 2 if backbone.few_steps else 4
    return backbone.schedule(num_steps, size_px=SIZE_PX)


@pytest.mark.parametrize(
    ("kind", "guidance_scale"), [("sd1", 1.0), ("sd3", 1.0), *((kind, 3.0) for kind in KINDS)]
)
def test_one_chain_is_what_diffusers_own_pipeline_samples(folders, backbones, kind, guidance_scale):
    """Text encoding, sizes, packing, times, guidance and steps at once, against other code."""
    backbone = backbones(kind, torch.float32)
    pipeline = PIPELINES.get(kind, StableDiffusionPipeline).from_pretrained(
        folders(kind), low_cpu_mem_usage=False
    )
    pipeline.set_progress_bar_config(disable=True)
    if backbone.kind in ("sd", "sdxl"):
        ending = (
            {"timestep_spacing": "trailing", "set_alpha_to_one": True}
            if backbone.few_steps
            else {"timestep_spacing": "leading", "set_alpha_to_one": False}
        )
        pipeline.scheduler = DDIMScheduler.from_config(
            pipeline.scheduler.config, steps_offset=0, clip_sample=False, **ending
        )
    latents, schedule = latents_of(backbone), steps_of(backbone)
    height, width = SIZE_PX
    start, options = latents, {}
    if kind == "flux":
        start = FluxPipeline._pack_latents(latents, 2, 4, *latents.shape[-2:])
    else:
        options["negative_prompt"] = None
    want = pipeline(
        PROMPTS,
        latents=start,
        height=height,
        width=width,
        num_inference_steps=len(schedule),
        guidance_scale=guidance_scale,
        output_type="latent",
        return_dict=False,
        **options,
    )[0]
    if kind == "flux":
        want = FluxPipeline._unpack_latents(want, height, width, 2)
    predictor = backbone.predictor(PROMPTS, guidance_scale=guidance_scale)
    with torch.no_grad():
        for a, b, t in zip(schedule.a, schedule.b, schedule.timesteps, strict=True):
            latents = float(a) * latents + float(b) * predictor(latents, t)
    # Both are in float32; the random networks' steps swell its rounding (6e-8) some.
    torch.testing.assert_close(latents, want, rtol=1e-4, atol=1e-4 * want.abs().max().item())


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip_is_exact(backbones, kind):
    backbone = backbones(kind)
    latents, schedule = latents_of(backbone), steps_of(backbone)
    predictor = backbone.predictor(PROMPTS, guidance_scale=3.0)
    with torch.no_grad():
        noise = invert(predictor, latents, latents, schedule)
        back, also_back = generate(predictor, *noise, schedule)
    assert (noise[0] - latents).norm() > 0.05 * latents.norm()  # it went somewhere
    for z in (back, also_back):
        assert ((z - latents).norm() / latents.norm()).item() < 1e-9


@pytest.mark.parametrize(
    ("kind", "memory"),
    [("sd2", "invert"), ("sd3", "invert"), *((kind, "checkpoint") for kind in KINDS)],
)
def test_gradient_is_plain_autograds(backbones, kind, memory):
    backbone = backbones(kind)
    schedule = steps_of(backbone)
    predictor = backbone.predictor(PROMPTS, guidance_scale=3.0)

    def gradient(run):
        x, y = (latents_of(backbone, seed=seed).requires_grad_() for seed in (1, 2))
        x_0, y_0 = run(x, y)
        loss = (x_0.sin() + 0.5 * y_0.cos()).sum()
        return torch.cat(torch.autograd.grad(loss, (x, y)))

    want = gradient(lambda x, y: generate(predictor, x, y, schedule))
    got = gradient(lambda x, y: generate_with_grad(predictor, x, y, schedule, memory=memory))
    # `invert` carries the error of rebuilding the pair, far above float64's own.
    tolerance = 1e-10 if memory == "checkpoint" else 1e-7
    assert ((got - want).norm() / want.norm()).item() < tolerance


@pytest.mark.parametrize("kind", KINDS)
def test_steps_down_the_gradient_lower_a_loss_on_the_decoded_image(backbones, kind):
    backbone = backbones(kind, torch.float32)
    schedule = steps_of(backbone)
    target = torch.rand(1, 3, *SIZE_PX, generator=torch.Generator().manual_seed(3)) * 2 - 1
    predictor = backbone.predictor(["a red rose"], guidance_scale=3.0)
    x = backbone.init_noise([torch.Generator().manual_seed(0)], *SIZE_PX)
    losses = []
    for _ in range(3):
        x = x.requires_grad_()
        x_0, _ = generate_with_grad(predictor, x, x, schedule)
        loss = (backbone.decode(x_0) - target).square().mean()
        losses.append(loss.item())
        (grad,) = torch.autograd.grad(loss, x)
        x = (x - 0.01 * x.norm() * grad / grad.norm()).detach()
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.999 * losses[0]


@pytest.mark.parametrize("kind", ["sdxl", pytest.param("flux", marks=pytest.mark.slow)])
def test_a_photo_is_edited_on_it_and_the_loss_falls(backbones, kind):
    config = EditConfig(
        sampler=SamplerConfig(num_inference_steps=4, mix_weight=0.93),
        optimiser=OptimiserConfig(num_optim_steps=2, grad_clip_value=1e-1),
        working_px=32,
        num_crops=1,
    )
    backbone = backbones(kind, torch.float32)
    editor = PhotoEditor(backbone, load_scorer("pocket"), load_scorer("pocket-judge"), config)
    result = editor.edit([EditRequest(decode_photo(jpeg(0, (64, 64))), Aim("up"), seed=0)])[0]
    assert min(result.loss_curve[1:]) < result.loss_curve[0]
    assert result.inversion_error < 0.05
