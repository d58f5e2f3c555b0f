"""The edit on the pocket model itself: exactness, gradients, independence of the batch."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from doodl.adjoint import generate_with_grad
from doodl.edict import generate, invert
from doodl.editing.editor import PhotoEditor, load_editor
from doodl.editing.objective import Aim, EnhanceProblem, points_to_go
from doodl.editing.requests import EditRequest
from doodl.engine import sampling
from doodl.engine.checkpoints import state_to_bytes
from doodl.engine.sampling import round_trip
from doodl.errors import InversionError, OptimisationError
from doodl.images import decode_photo
from doodl.optimise import LatentState
from doodl.recipes.presets import preset
from tests.photos import jpeg

SHORT = replace(
    preset("pocket"),
    optimiser=replace(preset("pocket").optimiser, num_optim_steps=2, min_optim_steps=0),
)


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


def test_photos_that_leave_a_batch_take_their_prompts_and_aims_with_them(editor):
    requests = [
        request(10, prompt="a red blob"),
        request(11, "down"),
        request(12, prompt="a landscape at dusk"),
        request(13, prompt="a red blob"),
    ]
    # One is good enough as it stands, wherever its place; the others go on without it.
    scores = sorted(editor.scores(requests[i].photo)[0] for i in (0, 2, 3))
    stop_score = (scores[1] + scores[2]) / 2
    sampler = replace(SHORT.sampler, num_inference_steps=10, guidance_scale=2.0)
    config = replace(SHORT, stop_score=stop_score, sampler=sampler, warm_start=False)
    guided = PhotoEditor(editor.backbone, editor.guide, editor.judge, config)
    together = guided.edit(requests)
    assert "steps" in [r.stop_reason for r in together]
    assert [r.status for r in together].count("skipped") == 1
    for one, batched in zip(requests, together, strict=True):
        alone = guided.edit([one])[0]
        assert alone.stop_reason == batched.stop_reason
        assert alone.num_optim_steps == batched.num_optim_steps
        assert batched.loss_curve == pytest.approx(alone.loss_curve, abs=1e-3)
        assert batched.score_after == pytest.approx(alone.score_after, abs=1e-3)


def test_photo_whose_latents_are_not_finite_fails_alone(editor, monkeypatch):
    requests = [request(14), request(15), request(16)]
    want = editor.edit([requests[0], requests[2]])
    encode = editor.backbone.encode

    def encode_with_one_overflow(images):
        latents = encode(images)
        if len(images) == len(requests):  # and not those of a warm start
            latents[1, 0, 0, 0] = float("inf")
        return latents

    monkeypatch.setattr(editor.backbone, "encode", encode_with_one_overflow)
    seen = set()
    got = editor.edit(requests, on_iteration=lambda place, state: seen.add(place))
    assert isinstance(got[1], InversionError)
    assert seen == {0, 2}
    for result, expected in zip((got[0], got[2]), want, strict=True):
        assert result.score_after == pytest.approx(expected.score_after, abs=1e-3)


def spoil(monkeypatch, direction, from_call):
    """Make the loss of photos of one direction NaN from one judgement on."""
    judge, calls = EnhanceProblem.judge, []

    def spoilt(self, images, generators):
        judgement = judge(self, images, generators)
        calls.append(len(images))
        if len(calls) > from_call:
            hit = torch.tensor([aim.direction == direction for aim in self.aims])
            judgement.loss = torch.where(hit, torch.nan, judgement.loss)
        return judgement

    monkeypatch.setattr(EnhanceProblem, "judge", spoilt)


def test_photo_that_diverges_at_once_fails_alone(editor, monkeypatch):
    spoil(monkeypatch, "down", 0)
    got = editor.edit([request(17, "down"), request(18)])
    assert isinstance(got[0], OptimisationError)
    assert got[1].num_optim_steps == 2


@pytest.mark.parametrize("finite", [1, 2])
def test_photo_that_diverges_later_gets_its_best_finite_iterate(editor, monkeypatch, finite):
    spoil(monkeypatch, "down", finite)
    (got,) = editor.edit([request(17, "down")])
    assert got.stop_reason == "diverged"
    assert len(got.loss_curve) == finite + 1
    # The start alone is finite in the one case, and nothing to deliver; in the other, the update.
    assert got.status == ("rejected" if finite == 1 else "ok")


def test_latents_without_any_scale_still_have_an_error(editor):
    problem, latents = problem_of(editor, [request(19)])
    sampler = editor.config.sampler
    zeros = torch.zeros_like(latents)
    errors = round_trip(problem.predictor, zeros, problem.schedule, sampler).errors
    assert np.isfinite(errors).all()


def test_change_is_measured_from_the_decode_of_the_round_trip(editor, monkeypatch):
    decoded, decode = [], editor.backbone.decode
    generate = sampling.generate

    def lossy(*args, **kwargs):
        x_0, y_0 = generate(*args, **kwargs)
        return x_0 + 0.25, y_0

    def recorded(latents):
        decoded.append(latents)
        return decode(latents)

    monkeypatch.setattr("doodl.engine.sampling.generate", lossy)
    monkeypatch.setattr(editor.backbone, "decode", recorded)
    source = request(20)
    editor.edit([source])
    latents = editor.backbone.encode(editor.view(source.photo))
    torch.testing.assert_close(decoded[0], latents + 0.25, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["unreadable", "of another frame"])
def test_checkpoint_that_does_not_fit_starts_the_photo_again(editor, caplog, kind):
    checkpoint = b"not safetensors"
    if kind == "of another frame":
        x = torch.zeros(4, 8, 8)
        checkpoint = state_to_bytes(LatentState.start(x, x, seed=0))
    plain = editor.edit([request(21)])[0]
    again = editor.edit([request(21, checkpoint=checkpoint)])[0]
    assert again.encoded == plain.encoded
    assert "starts again" in caplog.text


def test_delivered_file_is_read_whatever_its_size(editor, monkeypatch):
    def strict(data, *, max_pixels=100):
        return decode_photo(data, max_pixels=max_pixels)

    source = request(22)
    monkeypatch.setattr("doodl.editing.editor.decode_photo", strict)
    assert editor.edit([source])[0].encoded


@pytest.mark.parametrize("whole_view", [True, False])
def test_overshoot_beyond_black_and_white_earns_nothing(editor, whole_view):
    problem, _ = problem_of(editor, [request(23)])
    problem = replace(problem, config=replace(problem.config, whole_view=whole_view))
    images = problem.views * 3
    scores = [
        problem.guidance.loss(
            frames, [torch.Generator().manual_seed(0)], crops=problem.config.crops
        )
        for frames in (images, images.clamp(-1, 1))
    ]
    assert scores[0].item() == pytest.approx(scores[1].item(), abs=1e-5)


@pytest.mark.parametrize("strength", [-0.1, 1.1])
def test_strength_outside_zero_one_is_refused(strength):
    with pytest.raises(ValueError, match="strength"):
        request(0, strength=strength)


@pytest.mark.parametrize(
    ("aim", "value", "points"),
    [
        (Aim("up"), 5.3, 3.0),
        (Aim("up"), 9.0, 0.6),  # at the aim and beyond: the dearest
        (Aim("down"), -7.0, 6.0),  # the guide's value is then the negative score
        (Aim("target", 6.0), -1.5, 1.5),  # minus the distance
    ],
)
def test_points_to_go_are_the_distance_to_the_aim(aim, value, points):
    assert points_to_go(value, aim, 8.3) == pytest.approx(points)


def test_change_is_dearer_the_nearer_a_photo_is_to_a_good_score(editor):
    problem, _ = problem_of(editor, [request(0), request(1)])
    config, scores = editor.config, editor.guide(problem.views).tolist()
    want = [
        config.fidelity_weight / points_to_go(score, Aim("up"), config.good_score)
        for score in scores
    ]
    assert problem.fidelity_weights.tolist() == pytest.approx(want, rel=1e-5)
    assert problem.keep([1]).fidelity_weights.tolist() == pytest.approx(want[1:], rel=1e-5)
    plain = replace(editor.config, good_score=None)
    other = PhotoEditor(editor.backbone, editor.guide, editor.judge, plain)
    same, _ = problem_of(other, [request(0), request(1)])
    assert same.fidelity_weights.tolist() == [plain.fidelity_weight] * 2
