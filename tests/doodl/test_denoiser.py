"""The prompted predictor on the pocket UNet: guidance, and what a smaller batch keeps."""

import copy

import pytest
import torch

from doodl.backbones import load_backbone
from doodl.backbones.denoiser import NoisePredictor, call_unet
from doodl.edict import generate, invert
from doodl.pocket import weights_dir
from doodl.schedule import Schedule, stable_diffusion_alphas_cumprod

T = torch.tensor(500)


@pytest.fixture(scope="module")
def backbone():
    torch.set_num_threads(1)
    return load_backbone(weights_dir() / "pipeline")


@pytest.fixture
def latents(backbone):
    shape = (3, backbone.latent_channels, 8, 8)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def predictor(backbone, prompts, negatives, guidance_scale=3.0):
    return NoisePredictor(
        backbone.unet,
        backbone.embed_prompts(prompts),
        alphas_cumprod=backbone.alphas_cumprod,
        negative_embeds=backbone.embed_prompts(negatives),
        guidance_scale=guidance_scale,
    )


PROMPTS = ["a red blob", "", "a landscape at dusk"]


@pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS[:1]], ids=["each", "one for all"])
@pytest.mark.parametrize("negatives", [["blurry", "dark", ""], ["blurry"]], ids=["each", "one"])
def test_kept_photos_are_predicted_as_before(backbone, latents, prompts, negatives):
    whole = predictor(backbone, prompts, negatives)
    with torch.no_grad():
        want = whole(latents, T)
        got = whole.keep([2, 0])(latents[[2, 0]], T)
    torch.testing.assert_close(got, want[[2, 0]], rtol=1e-4, atol=1e-4)


def test_prompts_and_negatives_act_on_their_own_photo_alone(backbone, latents):
    """Without this, rows could be kept in any order and nobody would see."""
    with torch.no_grad():
        want = predictor(backbone, PROMPTS, ["blurry"] * 3)(latents, T)
        for prompts, negatives in (
            (["a red blob", "another", "a landscape at dusk"], ["blurry"] * 3),
            (PROMPTS, ["blurry", "dark", "blurry"]),
        ):
            change = predictor(backbone, prompts, negatives)(latents, T) - want
            moved = change.abs().amax((1, 2, 3)) > 1e-3
            assert moved.tolist() == [False, True, False]


@pytest.mark.parametrize(("rows", "negative_rows"), [(3, 1), (1, 3), (3, 3), (1, 1)])
def test_prompt_equal_to_its_negative_runs_no_second_branch(backbone, latents, rows, negative_rows):
    guided = predictor(backbone, [""] * rows, [""] * negative_rows)
    assert guided.negative_embeds is None
    with torch.no_grad():
        plain = NoisePredictor(
            backbone.unet, backbone.embed_prompts([""]), alphas_cumprod=backbone.alphas_cumprod
        )
        torch.testing.assert_close(guided(latents, T), plain(latents, T))


def test_guidance_is_from_the_negative_toward_the_prompt(backbone, latents):
    def plain(prompts):
        return NoisePredictor(
            backbone.unet, backbone.embed_prompts(prompts), alphas_cumprod=backbone.alphas_cumprod
        )(latents, T)

    with torch.no_grad():
        negative, positive = plain(["blurry"]), plain(PROMPTS)
        want = negative + 3.0 * (positive - negative)
        got = predictor(backbone, PROMPTS, ["blurry"])(latents, T)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_second_branch_runs_only_for_rows_that_it_changes(backbone, latents):
    rows = []

    def counted(network, z, t, conditioning):
        rows.append(len(z))
        return call_unet(network, z, t, conditioning)

    def build(prompts):
        return NoisePredictor(
            backbone.unet,
            backbone.embed_prompts(prompts),
            alphas_cumprod=backbone.alphas_cumprod,
            negative_embeds=backbone.embed_prompts([""]),
            guidance_scale=3.0,
            call=counted,
        )

    with torch.no_grad():
        mixed = build(PROMPTS)(latents, T)
        both = predictor(backbone, PROMPTS, ["", "blurry", ""])(latents, T)
        build([""])(latents, T)
    assert rows == [5, 3]  # of three photos, two have a prompt; of none, none
    torch.testing.assert_close(mixed[[0, 2]], both[[0, 2]], rtol=1e-4, atol=1e-4)


def test_v_prediction_of_a_known_v_is_its_noise():
    """With z = sqrt(a) x + sqrt(1-a) e, v = sqrt(a) e - sqrt(1-a) x says e exactly."""
    alphas = stable_diffusion_alphas_cumprod()
    image, noise = torch.randn(
        2, 1, 4, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )

    def velocity(network, z, t, conditioning):
        return alphas[t].sqrt() * noise - (1 - alphas[t]).sqrt() * image

    predict = NoisePredictor(
        None,
        torch.zeros(1, 1, 1, dtype=torch.float64),
        alphas_cumprod=alphas,
        prediction_type="v_prediction",
        call=velocity,
    )
    schedule = Schedule.ddim(alphas, 10, final_alpha_cumprod=1.0)
    z = schedule.alphas[0].sqrt() * image + (1 - schedule.alphas[0]).sqrt() * noise
    for a, b, t in zip(schedule.a, schedule.b, schedule.timesteps, strict=True):
        predicted = predict(z, t)
        torch.testing.assert_close(predicted, noise)
        z = a * z + b * predicted
    torch.testing.assert_close(z, image)


def test_flow_of_a_known_velocity_goes_from_the_noise_to_the_image_and_back():
    image, noise = torch.randn(
        2, 1, 4, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    predict = NoisePredictor(
        None,
        torch.zeros(1, 1, 1, dtype=torch.float64),
        alphas_cumprod=None,
        prediction_type="flow",
        call=lambda network, z, t, conditioning: noise - image,
    )
    schedule = Schedule.flow(6, shift=3.0)
    for half in generate(predict, noise, noise, schedule):
        torch.testing.assert_close(half, image)
    for half in invert(predict, image, image, schedule):
        torch.testing.assert_close(half, noise)


@pytest.mark.parametrize("size", [1.0, 1e-7])
def test_gradients_too_small_for_float16_pass_through_it(size):
    """A cotangent of 1e-7 is two of float16's smallest steps: unscaled it keeps one digit."""
    network = torch.nn.Conv2d(4, 4, 3, padding=1).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    network.weight.data = torch.randn(4, 4, 3, 3, generator=generator) * 0.2
    half = copy.deepcopy(network).half()
    z, cotangent = torch.randn(2, 2, 4, 6, 6, generator=generator)
    cotangent[1] = 0  # a row without a gradient stays without
    z.requires_grad_()

    def through(call, dtype):
        predict = NoisePredictor(
            None, torch.zeros(1, 1, 1, dtype=dtype), alphas_cumprod=None, call=call
        )
        return torch.autograd.grad(predict(z, T), z, size * cotangent)[0]

    want = through(lambda n, latents, t, c: network(latents), torch.float32)
    got = through(lambda n, latents, t, c: half(latents), torch.float16)
    # float16 has 11 bits: 5e-4 a number, some more over a sum of 36.
    torch.testing.assert_close(got, want, rtol=5e-3, atol=5e-3 * size)
