"""The other ways to edit, on the pocket model: each moves as it says, behind the same guard."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from doodl import moves
from doodl.editing.editor import PhotoEditor, load_editor
from doodl.editing.methods import check_method
from doodl.editing.methods.identity import LatentBackbone, PixelBackbone, adapted
from doodl.editing.methods.stepwise import acting_alphas, denoise_step, denoised, guided_noise
from doodl.editing.objective import Aim
from doodl.editing.requests import EditRequest
from doodl.engine.checkpoints import state_to_bytes
from doodl.generation import ImageGenerator
from doodl.images import decode_photo
from doodl.recipes.config import METHODS, EditConfig, SamplerConfig
from doodl.recipes.presets import preset
from doodl.schedule import Schedule, stable_diffusion_alphas_cumprod
from pipeline.spec import make_spec
from tests.doodl.predictors import SmallNet, analytic, pair
from tests.photos import jpeg

PRESET = preset("pocket")
QUICK = replace(
    PRESET,
    working_px=64,
    num_crops=1,
    stop_score=None,
    sampler=replace(PRESET.sampler, num_inference_steps=10),
    optimiser=replace(PRESET.optimiser, num_optim_steps=2, min_optim_steps=0),
)
STEPWISE = ("one-step", "hybrid")
SCHEDULE = Schedule.ddim(stable_diffusion_alphas_cumprod(), 10)


@pytest.fixture(scope="module")
def shipped():
    torch.set_num_threads(1)
    return load_editor("pocket", QUICK)


def editor_of(shipped, method, **options):
    config = replace(QUICK, method=method, **options)
    return PhotoEditor(shipped.backbone, shipped.guide, shipped.judge, config)


def request(seed, direction="up", **options):
    return EditRequest(decode_photo(jpeg(seed, (96, 96))), Aim(direction), seed, **options)


def pixels(result):
    return decode_photo(result.encoded).pixels.astype(int)


@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_lowers_its_loss_and_says_so_in_the_same_columns(shipped, method, direction):
    (result,) = editor_of(shipped, method).edit([request(3, direction)])
    assert result.loss_curve[-1] < result.loss_curve[0]
    assert result.stop_reason == "steps"
    assert Aim(direction).improved(result.score_before, result.score_after)
    assert (result.inversion_error is None) == (method in ("pixel", "autoencoder"))
    want = 2 if method not in STEPWISE else 4  # of five steps the last changes nothing
    assert result.num_optim_steps == want


def test_methods_differ(shipped):
    edits = [pixels(editor_of(shipped, method).edit([request(4)])[0]) for method in METHODS]
    for i, one in enumerate(edits):
        for other in edits[:i]:
            assert np.abs(one - other).mean() > 0.05


@pytest.mark.parametrize("method", METHODS)
def test_an_interrupted_photo_resumes_to_the_same_file(shipped, method):
    saved, editor = {}, editor_of(shipped, method)
    (straight,) = editor.edit(
        [request(5)], on_iteration=lambda _, state: saved.setdefault(
            state.iteration, state_to_bytes(state))
    )  # fmt: skip
    (resumed,) = editor.edit([request(5, checkpoint=saved[1])])
    assert resumed.encoded == straight.encoded
    assert resumed.loss_curve == straight.loss_curve


@pytest.mark.parametrize("method", [*STEPWISE, "pixel"])
def test_a_photo_does_not_depend_on_its_batch(shipped, method):
    editor = editor_of(shipped, method)
    requests = [request(6), request(7, "down")]
    for one, batched in zip(requests, editor.edit(requests), strict=True):
        (alone,) = editor.edit([one])
        assert batched.loss_curve == pytest.approx(alone.loss_curve, abs=1e-3)
        assert np.abs(pixels(batched) - pixels(alone)).mean() < 0.05


@pytest.mark.parametrize("method", STEPWISE)
def test_photos_resumed_at_different_steps_share_a_batch(shipped, method):
    editor, saved = editor_of(shipped, method), {}
    (straight,) = editor.edit(
        [request(8)], on_iteration=lambda _, state: saved.setdefault(
            state.iteration, state_to_bytes(state))
    )  # fmt: skip
    ahead, behind = editor.edit([request(8, checkpoint=saved[2]), request(9)])
    assert ahead.loss_curve == pytest.approx(straight.loss_curve, abs=1e-3)
    assert behind.loss_curve == pytest.approx(editor.edit([request(9)])[0].loss_curve, abs=1e-3)


@pytest.mark.parametrize("method", STEPWISE)
def test_a_photo_that_is_good_enough_is_skipped_as_it_is(shipped, method):
    good = request(10)
    stop = shipped.scores(good.photo)[0] - 1
    editor = editor_of(shipped, method, stop_score=stop, warm_start=False)
    (result,) = editor.edit([good])
    assert (result.status, result.num_optim_steps) == ("skipped", 0)
    # The base against itself is no change at all; only JPEG's second rounding is left.
    assert np.abs(pixels(result) - good.photo.pixels).mean() < 1


@pytest.mark.parametrize("method", STEPWISE)
def test_guidance_lowers_the_loss_and_without_it_nothing_changes(shipped, method):
    losses = [
        editor_of(shipped, method, step_guidance=strength).edit([request(11)])[0].loss_curve
        for strength in (0.0, 16.0)
    ]
    assert losses[0][1] == pytest.approx(losses[0][0], abs=0.05)  # crops are drawn anew
    assert losses[1][1] < losses[0][1] - 0.05


def test_pixels_are_their_own_latents(shipped):
    backbone = PixelBackbone(**vars(shipped.backbone))
    image = torch.rand(1, 3, 16, 16) * 2 - 1
    assert torch.equal(backbone.decode(backbone.encode(image)), image)


@pytest.mark.parametrize("kind", [LatentBackbone, PixelBackbone])
def test_sampler_without_diffusion_is_the_identity(shipped, kind):
    schedule = kind(**vars(shipped.backbone)).schedule(10, 0.5)
    assert (schedule.a.tolist(), schedule.b.tolist()) == ([1], [0])
    assert not schedule.noise_calls.any()


def test_doodl_is_left_as_it_is(shipped):
    assert adapted(shipped.backbone, QUICK) == (shipped.backbone, QUICK)


def test_denoised_undoes_the_noise_that_was_added():
    clean, noise, alpha = torch.randn(1, 4, 3, 3), torch.randn(1, 4, 3, 3), 0.3
    z = alpha**0.5 * clean + (1 - alpha) ** 0.5 * noise
    assert torch.allclose(denoised(z, noise, alpha), clean, atol=1e-6)


def test_guided_step_goes_against_the_gradient():
    z, noise, gradient = torch.randn(3, 1, 4, 3, 3)
    for step, alpha in zip(moves.ddim(SCHEDULE), acting_alphas(SCHEDULE), strict=True):
        moved = denoise_step(z, guided_noise(noise, gradient, alpha, 1.0), step)
        assert ((moved - denoise_step(z, noise, step)) * gradient).sum() < 0


def test_ddims_inversion_comes_back_with_an_error_of_first_order():
    latents, errors = pair()[0], []
    for num_steps in (50, 100, 200):
        schedule = Schedule.ddim(stable_diffusion_alphas_cumprod(), num_steps).part(0.5)
        steps = moves.ddim(schedule)
        (noise,) = moves.invert(analytic, steps, (latents,))
        (back,) = moves.generate(analytic, steps, (noise,))
        errors.append(((back - latents).norm() / (noise - latents).norm()).item())
    assert errors[0] < 0.03  # observed 0.020, and half of it for twice the steps
    for coarse, fine in itertools.pairwise(errors):
        assert coarse / fine == pytest.approx(2, abs=0.05)


@pytest.mark.parametrize("memory", ["checkpoint", "invert", "full", "budget:6KiB", "budget:1GiB"])
def test_gradient_through_ddims_chain_is_plain_autograds(memory):
    net, z = SmallNet().double(), pair()[0]
    steps = moves.ddim(SCHEDULE)

    def gradient(run):
        leaf = z.clone().requires_grad_()
        return torch.autograd.grad(run(leaf)[0].sin().sum(), leaf)[0]

    got = gradient(lambda z: moves.generate_with_grad(net, steps, (z,), memory=memory))
    want = gradient(lambda z: moves.generate(net, steps, (z,)))
    assert (got - want).norm() / want.norm() < 1e-10


def test_methods_are_refused_where_they_make_no_sense(shipped, tmp_path):
    with pytest.raises(ValueError, match="must be one of"):
        EditConfig(method="two-step")
    untied = replace(QUICK.optimiser, tie_latents=False, decode_pair=False)
    with pytest.raises(ValueError, match="way of its own"):
        EditConfig(method="pixel", sampler=SamplerConfig(kind="belm"), optimiser=untied)
    with pytest.raises(ValueError, match="edits photos"):
        ImageGenerator(shipped.backbone, replace(QUICK, method="pixel"), lambda _: None)
    with pytest.raises(ValueError, match="edits photos"):
        make_spec(tmp_path, tmp_path / "out", task="invert", overrides={"method": "hybrid"})

    class Flow:
        prediction_type, name = "flow", "some flow"

    for method in METHODS:
        if method in STEPWISE:
            with pytest.raises(ValueError, match="is a flow"):
                check_method(Flow(), replace(QUICK, method=method))
        else:
            check_method(Flow(), replace(QUICK, method=method))


def test_recipes_that_leave_the_method_alone_keep_their_fingerprint(tmp_path):
    recipe = make_spec(tmp_path, tmp_path / "out").params()["recipe"]
    assert not {"method", "step_guidance"} & set(recipe)
    asked = make_spec(tmp_path, tmp_path / "out", overrides={"method": "pixel"})
    assert asked.params()["recipe"]["method"] == "pixel"
    assert math.isclose(asked.edit_config.step_guidance, 32)
