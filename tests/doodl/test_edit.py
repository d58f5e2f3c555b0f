"""The edit on the pocket model itself: exactness, gradients, independence of the batch."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from doodl.adjoint import generate_with_grad
from doodl.checkpoints import state_to_bytes
from doodl.config import preset
from doodl.edict import generate, invert
from doodl.edit import EditRequest, load_editor
from doodl.images import decode_photo
from doodl.objective import Aim, EnhanceProblem
from tests.photos import jpeg

SHORT = replace(preset("pocket"), optimiser=replace(preset("pocket").optimiser, num_optim_steps=2))


@pytest.fixture(scope="module")
def editor():
    torch.set_num_threads(1)
    return load_editor("pocket", SHORT)


def request(seed, direction="up", size=(160, 160), **options):
    return EditRequest(decode_photo(jpeg(seed, size)), Aim(direction), seed=seed, **options)


def problem_of(editor, requests):
    views = torch.cat([editor.view(r.photo) for r in requests])
    latents = editor.backbone.encode(views)
    problem = EnhanceProblem.of(
        editor.backbone,
        editor.backbone.predictor([""]),
        editor.guide,
        editor.config,
        views=views,
        bases=editor.backbone.decode(latents),
        aims=[r.aim for r in requests],
        grey=[r.photo.grey for r in requests],
    )
    return problem, latents


def test_pocket_unet_inverts_exactly_at_the_presets_depth(editor):
    problem, latents = problem_of(editor, [request(0), request(1)])
    p = editor.config.sampler.p
    with torch.no_grad():
        noise = invert(problem.predictor, latents, latents, problem.schedule, mix_weight=p)
        x_0, y_0 = generate(problem.predictor, *noise, problem.schedule, mix_weight=p)
    for got in (x_0, y_0):
        assert ((got - latents).norm() / latents.norm()).item() <= 1e-3
    assert (noise[0] - latents).norm() / latents.norm() > 0.1  # it did go somewhere


@pytest.mark.parametrize("memory", ["checkpoint", "invert", "budget:64MiB"])
def test_gradient_of_the_score_is_plain_autograds(editor, memory):
    problem, latents = problem_of(editor, [request(2)])
    p = editor.config.sampler.p
    with torch.no_grad():
        x, y = invert(problem.predictor, latents, latents, problem.schedule, mix_weight=p)

    def gradient(mode):
        a, b = x.clone().requires_grad_(), y.clone().requires_grad_()
        x_0, _ = generate_with_grad(
            problem.predictor, a, b, problem.schedule, mix_weight=p, memory=mode
        )
        score = editor.guide(problem.delivered(problem.decode(x_0)))
        return torch.autograd.grad(score.sum(), (a, b))

    for got, want in zip(gradient(memory), gradient("full"), strict=True):
        assert want.norm() > 0
        assert ((got - want).norm() / want.norm()).item() < 1e-4


def test_networks_get_no_gradient(editor):
    networks = (editor.backbone.unet, editor.backbone.vae, editor.guide, editor.judge)
    assert not any(p.requires_grad for net in networks for p in net.parameters())


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_few_steps_move_the_guides_score_the_asked_way(editor, direction):
    result = editor.edit([request(3, direction)])[0]
    assert result.loss_curve[-1] < result.loss_curve[0]
    assert Aim(direction).improved(result.score_before, result.score_after)
    assert result.inversion_error < 1e-3
    assert result.num_optim_steps == 2


def test_a_photo_does_not_depend_on_its_batch(editor):
    requests = [request(4), request(5, "down"), request(6, size=(160, 224))]
    together = editor.edit(requests)
    for one, alone in zip(requests, together, strict=True):
        got = editor.edit([one])[0]
        assert got.score_after == pytest.approx(alone.score_after, abs=1e-3)
        pixels, others = (decode_photo(r.encoded).pixels.astype(int) for r in (got, alone))
        assert np.abs(pixels - others).mean() < 0.05


def test_same_seed_same_pixels(editor):
    assert editor.edit([request(7)])[0].encoded == editor.edit([request(7)])[0].encoded


def test_interrupted_photo_resumes_to_the_same_result(editor):
    saved = []

    def save(index, state):
        if state.iteration == 1:
            saved.append(state_to_bytes(state))

    straight = editor.edit([request(8)], on_iteration=save)[0]
    resumed = editor.edit([request(8, checkpoint=saved[0])])[0]
    assert resumed.encoded == straight.encoded
    assert resumed.loss_curve == straight.loss_curve


def test_strength_zero_delivers_the_source_itself(editor):
    source = request(9, strength=0.0)
    delivered = decode_photo(editor.edit([source])[0].encoded)
    # Only JPEG's own second rounding is left, with the same quantisation tables.
    assert np.abs(delivered.pixels.astype(int) - source.photo.pixels).mean() < 1.0


@pytest.mark.parametrize("strength", [-0.1, 1.1])
def test_strength_outside_zero_one_is_refused(strength):
    with pytest.raises(ValueError, match="strength"):
        request(0, strength=strength)
