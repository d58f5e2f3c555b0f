"""The rivals on the pocket model itself: each lacks what it says it lacks, and no more."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from doodl.config import preset
from doodl.edit import load_editor
from doodl.evaluation.methods import (
    METHODS,
    Edited,
    LatentBackbone,
    auto_contrast,
    counted,
    make_request,
    run_method,
    without_noise,
)
from doodl.evaluation.metrics import rms_change
from doodl.evaluation.onestep import (
    _problem,
    _walk_unguided,
    ddim_invert,
    denoise_step,
    denoised,
    guided_noise,
    walk_guided,
)
from doodl.images import decode_photo
from tests.photos import jpeg

QUICK = replace(
    preset("pocket"),
    working_px=64,
    num_crops=1,
    sampler=replace(preset("pocket").sampler, num_inference_steps=10),
    optimiser=replace(preset("pocket").optimiser, num_optim_steps=1),
)


@pytest.fixture(scope="module")
def editor():
    torch.set_num_threads(1)
    return counted(load_editor("pocket", QUICK))


@pytest.fixture(scope="module")
def requests():
    return [make_request(decode_photo(jpeg(seed, (96, 96))), "up", seed) for seed in (3, 4)]


@pytest.fixture(scope="module")
def edits(editor, requests):
    return {
        name: run_method(method, editor, requests, method.start) for name, method in METHODS.items()
    }


@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_changes_the_photo_and_gives_back_a_whole_file(edits, requests, name):
    outcomes, cost = edits[name]
    assert cost.cpu_seconds > 0
    for request, edited in zip(requests, outcomes, strict=True):
        assert isinstance(edited, Edited), edited
        photo = decode_photo(edited.encoded)
        assert photo.pixels.shape == request.photo.pixels.shape
        assert rms_change(photo.pixels, request.photo.pixels) > 1e-3


def test_methods_without_a_unet_call_none_and_the_others_do(edits):
    calls = {name: cost.unet_calls for name, (_, cost) in edits.items()}
    assert calls["zero-unet"] == calls["autoencoder"] == calls["auto-contrast"] == 0
    assert calls["edit"] == calls["no-smoothing"] > calls["one-step"] > 0
    assert calls["full-depth"] > 1.9 * calls["edit"]


def test_rivals_are_not_the_edit(edits):
    shipped = [decode_photo(e.encoded).pixels for e in edits["edit"][0]]
    for name, (outcomes, _) in edits.items():
        if name != "edit":
            others = [decode_photo(e.encoded).pixels for e in outcomes]
            assert all(rms_change(a, b) > 1e-4 for a, b in zip(shipped, others, strict=True)), name


def test_strength_of_a_rival_moves_its_change(editor, requests):
    method = METHODS["autoencoder"]
    changes = [
        np.mean(
            [
                rms_change(request.photo.pixels, decode_photo(edited.encoded).pixels)
                for request, edited in zip(
                    requests, run_method(method, editor, requests, strength)[0], strict=True
                )
            ]
        )
        for strength in (0.25, 1.0)
    ]
    assert changes[0] < changes[1]


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_zero_unet_predicts_no_noise_whatever_the_model_predicts(editor, prediction_type):
    process = replace(editor.backbone.process, prediction_type=prediction_type)
    backbone = without_noise(replace(editor.backbone, process=process))
    latents = torch.randn(2, backbone.latent_channels, 8, 8)
    predictor = backbone.predictor([""])
    assert predictor(latents, torch.tensor(500)).abs().max() == 0
    assert editor.backbone.predictor([""])(latents, torch.tensor(500)).abs().max() > 0


def test_autoencoders_sampler_is_the_identity(editor):
    schedule = LatentBackbone(**vars(editor.backbone)).schedule(10, 0.5)
    assert schedule.a.tolist() == [1]
    assert schedule.b.tolist() == [0]
    assert not schedule.noise_calls.any()


def test_denoised_undoes_the_noise_that_was_added():
    clean, noise, alpha = torch.randn(1, 4, 3, 3), torch.randn(1, 4, 3, 3), 0.3
    z = alpha**0.5 * clean + (1 - alpha) ** 0.5 * noise
    assert torch.allclose(denoised(z, noise, alpha), clean, atol=1e-6)


def test_guided_step_goes_against_the_gradient(editor):
    schedule = editor.backbone.schedule(10, 0.5)
    z, noise, gradient = torch.randn(3, 1, 4, 3, 3)
    for a, b, alpha, acts in zip(
        schedule.a.tolist(), schedule.b.tolist(), schedule.alphas.tolist(),
        schedule.noise_calls.tolist(), strict=True,
    ):  # fmt: skip
        if acts:
            moved = denoise_step(z, guided_noise(noise, gradient, alpha, 1.0), a, b)
            assert ((moved - denoise_step(z, noise, a, b)) * gradient).sum() < 0


@pytest.mark.parametrize("direction", ["up", "down"])
def test_one_step_guidance_lowers_the_loss_and_its_opposite_raises_it(editor, requests, direction):
    asked = [make_request(r.photo, direction, r.seed) for r in requests]
    backbone, sampler = editor.backbone, editor.config.sampler
    schedule = backbone.schedule(sampler.num_inference_steps, sampler.depth)
    predictor = backbone.predictor([r.prompt for r in asked])
    views = torch.cat([editor.view(r.photo) for r in asked])
    with torch.no_grad():
        noise = ddim_invert(predictor, backbone.encode(views), schedule)
        _, shown = _walk_unguided(editor, predictor, noise, schedule)
    problems = [_problem(editor, predictor, asked, views, image) for image in shown]

    def loss(guidance):
        z = walk_guided(editor, predictor, problems[:-1], noise, schedule, asked, guidance)
        generators = [torch.Generator().manual_seed(r.seed) for r in asked]
        with torch.no_grad():
            return problems[-1].judge(backbone.decode(z), generators).value

    lower, unguided, higher = loss(16.0), loss(0.0), loss(-16.0)
    assert (lower < unguided).all()
    assert (higher > unguided).all()


def test_ddim_inversion_comes_back_near_the_latents(editor, requests):
    backbone = editor.backbone
    schedule = backbone.schedule(10, 0.5)
    predictor = backbone.predictor([""])
    with torch.no_grad():
        latents = backbone.encode(editor.view(requests[0].photo))
        noise = ddim_invert(predictor, latents, schedule)
        back, _ = _walk_unguided(editor, predictor, noise, schedule)
    error = (back - latents).norm() / latents.norm()
    moved = (noise - latents).norm() / latents.norm()
    assert error < 0.5 * moved


def test_toy_is_the_stated_blend():
    # A ramp of 50..205 auto-contrasts to 0..255; grey, so saturation has nothing to act on.
    ramp = np.repeat(np.linspace(50, 205, 156).astype(np.uint8)[None, :, None], 40, 0)
    grey = np.repeat(ramp, 3, 2)
    stretched = (ramp.astype(float) - 50) * 255 / 155
    assert np.abs(auto_contrast(grey) - (0.7 * stretched + 0.3 * ramp)).max() <= 1.5
    # Black and white are there, so the levels stay; colour moves away from luma by a fifth.
    reaching = np.zeros((40, 40, 3), np.uint8)
    reaching[:10], reaching[10:30] = 255, (200, 100, 100)
    luma = 0.299 * 200 + 0.701 * 100
    want = luma + 1.2 * (np.array([200, 100, 100]) - luma)
    assert np.abs(auto_contrast(reaching)[20, 20] - want).max() <= 1.5
