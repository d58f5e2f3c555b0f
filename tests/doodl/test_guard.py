"""The guard: budget, verdicts with their reasons, and what is measured of the delivered file."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from doodl.editing.editor import PhotoEditor, load_editor
from doodl.editing.guard import Fidelity, measure_fidelity, score_objection, verdict
from doodl.editing.objective import Aim, EnhanceProblem
from doodl.editing.requests import EditRequest
from doodl.images import decode_photo
from doodl.measures.fidelity import delta_e, psnr_db
from doodl.optimise import LatentState
from doodl.recipes.presets import preset
from tests.photos import jpeg

SHORT = preset("pocket")
SHORT = replace(
    SHORT, optimiser=replace(SHORT.optimiser, num_optim_steps=4, grad_mean_abs=6e-3), num_crops=1
)
FAITHFUL = Fidelity(40.0, 0.99, 1.0)


@pytest.fixture(scope="module")
def editor():
    torch.set_num_threads(1)
    return load_editor("pocket", SHORT)


@pytest.fixture(scope="module")
def source():
    return EditRequest(decode_photo(jpeg(3, (160, 160))), Aim("up"), seed=3)


@pytest.fixture(scope="module")
def free(editor, source):
    return editor.edit([source])[0]


def within(editor, budget):
    config = replace(editor.config, max_change=budget)
    return PhotoEditor(editor.backbone, editor.guide, editor.judge, config)


def change_of(result):
    return 10 ** (-result.psnr_db / 20)


def test_a_budget_that_is_not_reached_changes_nothing(editor, source, free):
    bounded = within(editor, 0.9).edit([source])[0]
    assert (bounded.encoded, bounded.status) == (free.encoded, free.status)


def test_the_best_iterate_within_the_budget_is_taken_and_the_photo_stops_there(
    editor, source, free
):
    budget = 0.7 * change_of(free)
    bounded = within(editor, budget).edit([source])[0]
    assert bounded.stop_reason == "budget"
    assert bounded.num_optim_steps < free.num_optim_steps
    assert 0 < change_of(bounded) <= budget


def test_a_budget_below_one_step_rejects_the_photo_and_says_why(editor, source):
    result = within(editor, 1e-6).edit([source])[0]
    assert (result.status, result.stop_reason) == ("rejected", "budget")
    assert "within the budget of 1e-06" in result.rejection


def test_an_edit_forced_to_overspend_is_not_delivered(editor, source, free, monkeypatch):
    monkeypatch.setattr(EnhanceProblem, "_affordable", lambda *images: None)
    budget = 0.9 * change_of(free)
    result = within(editor, budget).edit([source])[0]
    assert result.encoded == free.encoded
    assert result.status == "rejected"
    assert f"over its budget of {budget:g}" in result.rejection


def test_the_start_over_budget_is_rejected_and_not_an_error(editor, source, monkeypatch):
    def none_is(self, images, delivered):
        return torch.zeros(len(images), dtype=torch.bool)

    monkeypatch.setattr(EnhanceProblem, "_affordable", none_is)
    result = within(editor, 0.5).edit([source])[0]
    assert (result.status, result.num_optim_steps) == ("rejected", 0)


def test_what_is_spent_is_reckoned_of_what_is_delivered(editor, source):
    half = replace(source, strength=0.5)
    own = replace(source, deliver="model")
    views = editor.view(source.photo).repeat(3, 1, 1, 1)
    problem = EnhanceProblem.of(
        editor.backbone, None, editor.guide, replace(SHORT, max_change=0.1),
        views=views, bases=views, aims=[source.aim] * 3, grey=[False] * 3,
        deliveries=[r.delivery for r in (source, half, own)],
    )  # fmt: skip
    brighter = views.clamp(-0.5, 0.5) + 0.24  # 0.12 of the range and more
    delivered = views + 0.25 * (views < 0.5)
    rms = ((delivered - views).square().mean((1, 2, 3)).sqrt() / 2)[0].item()
    assert 0.095 < rms < 0.19
    affordable = problem._affordable(brighter, delivered).tolist()
    assert affordable == [False, True, False]
    assert problem._affordable(views, delivered).tolist() == [False, True, True]


def test_verdicts_name_their_reason():
    x = torch.zeros(4, 2, 2)
    state = LatentState.start(x, x, 0)
    state.iteration, state.best_iteration, state.stop_reason = 3, 2, "steps"
    assert verdict(state, None, FAITHFUL, None).status == "ok"
    assert verdict(state, None, FAITHFUL, 0.02).status == "ok"
    over = verdict(state, None, FAITHFUL, 0.005)
    assert (over.status, "0.0100 of the range" in over.reason) == ("rejected", True)
    assert verdict(state, "the judge fell", FAITHFUL, None).reason == "the judge fell"
    state.iteration = state.best_iteration = 0
    state.stop_reason = "good_enough"
    assert verdict(state, "any", FAITHFUL, None).status == "skipped"


def test_objections_name_who_fell_and_from_where_to_where():
    up = Aim("up")
    assert score_objection(up, (5, 5), (6, 6)) is None
    assert (
        score_objection(up, (5, 5), (6, 4.5)) == "not improved: the judge went from 5.000 to 4.500"
    )
    assert "guide" in score_objection(Aim("target", 6.0), (5, 5), (8, 6))


def test_delta_e_is_zero_for_equals_and_a_hundred_from_black_to_white():
    black, white = np.zeros((4, 4, 3), np.float32), np.ones((4, 4, 3), np.float32)
    assert delta_e(black, black) == 0
    assert delta_e(black, white) == pytest.approx(100, abs=0.1)


def test_delta_e_minds_a_tint_more_than_grain_of_the_same_psnr():
    photo = decode_photo(jpeg(5, (200, 240)))
    rng = np.random.default_rng(0)
    grain = rng.choice([-12, 12], photo.pixels.shape)
    grainy, tinted = (
        replace(photo, pixels=np.clip(photo.pixels + each, 0, 255).astype(np.uint8))
        for each in (grain, np.array([12, -12, 12]))
    )
    assert abs(psnr_db(photo.pixels, grainy.pixels) - psnr_db(photo.pixels, tinted.pixels)) < 0.5
    measured = [measure_fidelity(photo, each) for each in (grainy, tinted)]
    assert measured[0].delta_e < measured[1].delta_e
    assert measured[0].ssim < measured[1].ssim


def test_delta_e_grows_with_the_change():
    photo = decode_photo(jpeg(6, (100, 120)))
    values = [
        measure_fidelity(
            photo, replace(photo, pixels=(photo.pixels * share).astype(np.uint8))
        ).delta_e
        for share in (1.0, 0.95, 0.8, 0.5)
    ]
    assert values == sorted(values)
    assert values[0] == 0


class Fixed(torch.nn.Module):
    """A scorer whose score is a function of the mean light, for a change of light alone."""

    def __init__(self, score):
        super().__init__()
        self.score = score

    def forward(self, images):
        return self.score(images.mean((1, 2, 3)))


@pytest.mark.parametrize(
    ("best", "share"),
    [(0.5, 1.0), (0.06, 0.5), (0.03, 0.25), (-1.0, 1.0)],  # none pleases: the whole is judged
)
def test_the_largest_share_that_pleases_the_judge_is_delivered(editor, source, best, share):
    view = editor.view(source.photo)
    light = float(view.mean())
    brighter = torch.full_like(view, 0.2)  # kept small: nothing is clipped
    base = torch.zeros_like(view) + 0.01 * torch.randn(
        view.shape, generator=torch.Generator().manual_seed(0)
    )
    image = base + brighter
    judged = PhotoEditor(
        editor.backbone,
        Fixed(lambda mean: mean),
        Fixed(lambda mean: -((mean - light - best) ** 2)),  # likes light up to twice `best`
        replace(editor.config, judge_slack=0.0),
    )
    assert judged.guard.pleasing_share(source, base, image) == share


@pytest.mark.parametrize(
    ("after", "fine"),
    [
        ((5.3, 6.0 - 0.1), True),  # within the noise, and the guide rose by more
        ((5.05, 6.0 - 0.1), False),  # together they fell
        ((5.3, 6.0 - 0.2), False),  # beyond the noise
        ((4.9, 6.5), False),  # the guide itself must rise
        ((5.3, 6.1), True),
    ],
)
def test_a_fall_of_the_judge_within_its_noise_is_no_objection(after, fine):
    assert (score_objection(Aim("up"), (5.0, 6.0), after, 0.13) is None) == fine
    if after[1] < 6.0:
        assert score_objection(Aim("up"), (5.0, 6.0), after) is not None
