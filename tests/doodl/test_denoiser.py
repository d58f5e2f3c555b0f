"""The prompted predictor on the pocket UNet: guidance, and what a smaller batch keeps."""

import pytest
import torch

from doodl.backbones import load_backbone
from doodl.denoiser import NoisePredictor
from doodl.pocket import weights_dir

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
