"""Photos edited by weighted sums of guides, and what decides then whether they are delivered."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from doodl.editing.editor import PhotoEditor, load_editor
from doodl.editing.objective import Aim
from doodl.editing.requests import EditRequest
from doodl.guidance.guidance import load_guidance
from doodl.guidance.spec import parse_guides
from doodl.images import decode_photo
from doodl.recipes.presets import preset
from tests.photos import jpeg

SHORT = replace(
    preset("pocket"),
    sampler=replace(preset("pocket").sampler, num_inference_steps=10),
    optimiser=replace(preset("pocket").optimiser, num_optim_steps=1, min_optim_steps=0),
    judge_slack=0.0,
)


def warmth(images):
    """Low where red is above blue."""
    return (images[:, 2] - images[:, 0]).mean((1, 2))


WARMTH = "callable:tests.doodl.test_edit_guides:warmth=2"


@pytest.fixture(scope="module")
def editor():
    torch.set_num_threads(1)
    return load_editor("pocket", SHORT)


def guided_by(editor, *guides, config=SHORT):
    guidance = load_guidance(parse_guides(guides), model="pocket")
    return PhotoEditor(
        editor.backbone, guidance.scorer or editor.guide, editor.judge, config, guidance=guidance
    )


def request(seed, **options):
    return EditRequest(decode_photo(jpeg(seed, (160, 160))), Aim("up"), seed=seed, **options)


def test_naming_the_models_own_score_changes_no_bit(editor):
    plain = editor.edit([request(1)])[0]
    named = guided_by(editor, "aesthetic=1").edit([request(1)])[0]
    assert named.encoded == plain.encoded
    assert named.loss_curve == plain.loss_curve


def test_a_weighted_sum_lowers_its_loss_and_keeps_the_scores(editor):
    two = replace(SHORT, optimiser=replace(SHORT.optimiser, num_optim_steps=2))
    guides = (WARMTH, "text=0.5", "subject=0.2", "fidelity=1")
    guided = guided_by(editor, *guides, config=two)
    subject = decode_photo(jpeg(8, (96, 96)))
    exemplar = editor.view(subject)[0]
    one = request(2, prompt="a photo of red tulips", subjects=(exemplar,))
    result = guided.edit([one])[0]
    assert min(result.loss_curve[1:]) < result.loss_curve[0]
    before = decode_photo(jpeg(2, (160, 160))).pixels.astype(float)
    after = decode_photo(result.encoded).pixels.astype(float)
    change = (after - before).mean((0, 1))
    assert change[0] > change[2]
    # No aesthetic guide acts; the scores are the pocket model's as ever.
    assert (result.score_before, result.judge_before) == editor.scores(one.photo)


def test_a_row_that_lacks_what_a_guide_needs_is_refused(editor):
    with pytest.raises(ValueError, match="no words"):
        guided_by(editor, "text=1").edit([request(3)])


def tinted(seed, red, blue):
    photo = decode_photo(jpeg(seed, (160, 160)))
    tint = np.array([red, 0, blue])
    pixels = np.clip(photo.pixels + tint, 0, 255).astype(np.uint8)
    return replace(photo, pixels=pixels)


@pytest.mark.parametrize(
    ("red", "judge", "improved"),
    [
        (20, 0.0, True),  # the sum fell, the judge is indifferent
        (20, -0.4, True),  # the judge minds a little
        (20, -0.6, False),  # the judge minds more than its tolerance of 0.5
        (-20, 3.0, False),  # the sum rose, whatever the judge says
    ],
)
def test_without_an_aesthetic_guide_the_sum_decides_and_the_judge_may_fall_a_little(
    editor, red, judge, improved
):
    guided = guided_by(editor, WARMTH)
    after = (2.0, 5.0 + judge)  # the score of a guide that does not act counts for nothing
    objection = guided.guard.objection(request(4), tinted(4, red, -red), (5.0, 5.0), after)
    assert (objection is None) is improved


@pytest.mark.parametrize(
    ("red", "after", "improved"),
    [
        (20, (6.0, 6.0), True),
        (20, (4.0, 6.0), False),  # the aesthetic guide fell
        (20, (6.0, 4.9), False),  # the judge fell, be it little
        (-40, (6.0, 6.0), False),  # the sum rose
    ],
)
def test_beside_an_aesthetic_guide_score_judge_and_sum_must_all_improve(
    editor, red, after, improved
):
    guided = guided_by(editor, WARMTH.replace("=2", "=50"), "aesthetic=0.01")
    objection = guided.guard.objection(request(5), tinted(5, red, -red), (5.0, 5.0), after)
    assert (objection is None) is improved


def test_good_enough_is_a_matter_of_aesthetic_guides_only(editor):
    satisfied = replace(SHORT, stop_score=0.1, warm_start=False)
    one = request(6)
    assert guided_by(editor, "aesthetic=1", config=satisfied).edit([one])[0].status == "skipped"
    other = guided_by(editor, WARMTH, config=satisfied).edit([one])[0]
    assert (other.status, other.stop_reason) != ("skipped", "good_enough")
    assert other.num_optim_steps == 1


def test_guides_come_from_the_config_or_from_the_call():
    config = replace(SHORT, guides=("symmetry=1",))
    kinds = [
        [spec.kind for spec in load_editor("pocket", config, guides=guides).guidance.specs]
        for guides in ((), ("fidelity=1", "text:a rose=2"))
    ]
    assert kinds == [["symmetry"], ["fidelity", "text"]]


def test_optimise_at_is_no_value_for_a_photo(editor):
    config = replace(SHORT, sampler=replace(SHORT.sampler, optimise_at=5))
    with pytest.raises(ValueError, match=r"sampler\.depth"):
        PhotoEditor(editor.backbone, editor.guide, editor.judge, config)
