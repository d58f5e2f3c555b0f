"""Where the noise starts: the stretch of the levels that the guide prefers, or the photo."""

import io
from dataclasses import replace
from importlib.resources import files

import numpy as np
import pytest
import torch
from PIL import Image

from doodl.delivery.transfer.guide import luminance
from doodl.editing.editor import load_editor
from doodl.editing.guard import Fidelity, verdict
from doodl.editing.objective import Aim
from doodl.editing.requests import EditRequest
from doodl.editing.start import WarmStart, stretched_levels
from doodl.engine.checkpoints import state_to_bytes
from doodl.guidance.guidance import GuideRow
from doodl.images import decode_photo
from doodl.optimise import LatentState
from doodl.recipes.presets import preset

POCKET = preset("pocket")
SHORT = replace(POCKET, optimiser=replace(POCKET.optimiser, num_optim_steps=1))
LEVELS = replace(POCKET, optimiser=replace(POCKET.optimiser, num_optim_steps=0, min_optim_steps=0))


@pytest.fixture(scope="module")
def load():
    loaded = {}

    def load_(config=SHORT, guides=()):
        key = (config, guides)
        if key not in loaded:
            loaded[key] = load_editor("pocket", config, guides=guides)
        return loaded[key]

    torch.set_num_threads(1)
    return load_


def photo(name="coffee.jpg", haze=0.0, tint=(0, 0, 0)):
    """A sample photo of 192 px, mixed with a veil of light grey, as a PNG and decoded again."""
    image = (
        Image.open(files("doodl.pocket.samples").joinpath(name)).convert("RGB").resize((192, 160))
    )
    pixels = np.asarray(image, dtype=np.float32) * (1 - haze) + haze * (200 + np.array(tint))
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "PNG")
    return decode_photo(file.getvalue())


def request(direction="up", *, seed=3, **options):
    strength = options.pop("strength", 1.0)
    checkpoint = options.pop("checkpoint", None)
    protect = options.pop("protect", None)
    return EditRequest(
        photo(**options), Aim(direction), seed=seed, strength=strength, checkpoint=checkpoint,
        protect=protect,
    )  # fmt: skip


def choice(editor, source, direction="up", **options):
    aim = Aim("target", 9.0) if direction == "target" else Aim(direction)
    row = GuideRow("", aim.direction, aim.target)
    return WarmStart(editor.guidance, editor.config, row, aim, editor.view(source), **options)


def test_a_stretch_reaches_both_ends_of_the_range():
    view = 0.3 * torch.rand(1, 3, 40, 50) - 0.2
    whole = stretched_levels(view, 1.0, by_channel=True)
    assert torch.allclose(whole.amin((2, 3)), torch.tensor(-1.0))
    assert torch.allclose(whole.amax((2, 3)), torch.tensor(1.0))
    half = stretched_levels(view, 0.5, by_channel=True)
    assert torch.allclose(half, (view + whole) / 2, atol=1e-6)
    assert torch.equal(stretched_levels(view, 0.0, by_channel=True), view)


def test_levels_of_each_channel_take_a_cast_out_and_those_of_the_luminance_keep_it():
    grey = torch.rand(1, 1, 40, 50).expand(1, 3, 40, 50)
    cast = 0.5 * grey + torch.tensor([0.2, 0.0, -0.2]).view(1, 3, 1, 1)
    by_channel = stretched_levels(cast, 1.0, by_channel=True)
    assert (by_channel.amax(1) - by_channel.amin(1)).max() < 1e-4
    together = stretched_levels(cast, 0.5, by_channel=False)
    assert (together[:, 0] - together[:, 2]).mean() > 0.4


def test_a_photo_without_any_range_is_not_blown_up():
    view = 0.1 + 0.002 * torch.randn(1, 3, 30, 30)
    stretched = stretched_levels(view, 1.0, by_channel=True)
    assert stretched.isfinite().all()
    assert stretched.std() <= 10.5 * view.std()


def test_the_guide_prefers_a_hazy_photos_stretch_and_leaves_the_photo_it_was(load):
    hazy, clean = photo(haze=0.6), photo()
    editor = load()
    start = choice(editor, hazy).preferred()
    assert start is not None
    was, now = editor.guide(editor.view(hazy)), editor.guide(start)
    assert now > was + 1
    target = editor.view(clean)
    before, after = ((v - target).square().mean() for v in (editor.view(hazy), start))
    assert after < 0.5 * before
    assert choice(editor, photo("camera.jpg")).preferred() is None


@pytest.mark.parametrize("direction", ["down", "target"])
def test_other_aims_start_at_the_photo(load, direction):
    assert choice(load(), photo(haze=0.6), direction).preferred() is None


def test_it_is_an_option_and_of_aesthetic_guides_alone(load):
    hazy = photo(haze=0.6)
    assert choice(load(replace(SHORT, warm_start=False)), hazy).preferred() is None
    assert choice(load(guides=("text=1",)), hazy).preferred() is None


def test_a_start_spends_no_more_than_the_budget(load):
    hazy = photo(haze=0.6)
    editor = load()
    free = choice(editor, hazy).preferred()
    view = editor.view(hazy)
    rms = (free - view).square().mean().sqrt().item()
    held = choice(editor, hazy, max_change=0.6 * rms).preferred()
    assert held is not None
    assert (held - view).square().mean().sqrt() <= 0.6 * rms
    assert choice(editor, hazy, max_change=1e-3).preferred() is None


def test_a_start_keeps_what_is_protected(load):
    hazy = photo(haze=0.6)
    editor = load()
    view = editor.view(hazy)
    protect = torch.zeros_like(view[:, :1])
    protect[..., : view.shape[-1] // 2] = 1
    start = choice(editor, hazy, protect=protect).preferred()
    assert start is not None
    same = view.shape[-1] // 2
    assert torch.equal(start[..., :same], view[..., :same])
    assert not torch.equal(start[..., same:], view[..., same:])


def test_levels_alone_are_delivered_where_they_are_preferred_and_nothing_where_not(load):
    hazy, good = load(LEVELS).edit([request(haze=0.6), request(name="camera.jpg")])
    assert hazy.status == "ok"
    assert hazy.num_optim_steps == 0
    assert hazy.score_after > hazy.score_before + 1
    assert good.status in ("skipped", "rejected")
    plain, _ = load(replace(LEVELS, warm_start=False)).edit([request(haze=0.6), request()])
    assert plain.status == "rejected"
    clean = photo().pixels.astype(float)

    def distance(pixels):
        return np.square(pixels - clean).mean()

    assert distance(decode_photo(hazy.encoded).pixels) < 0.5 * distance(photo(haze=0.6).pixels)


def test_a_photo_that_starts_as_it_is_has_the_edit_it_had(load):
    with_it, without = (
        load(config).edit([request(name="camera.jpg")])[0]
        for config in (SHORT, replace(SHORT, warm_start=False))
    )
    assert with_it.encoded == without.encoded
    assert with_it.loss_curve == without.loss_curve


def test_a_warm_photo_does_not_depend_on_its_batch(load):
    editor = load()
    alone = editor.edit([request(haze=0.6)])[0]
    among = editor.edit([request(name="camera.jpg", seed=1), request(haze=0.6), request(seed=2)])[1]
    assert among.num_optim_steps == alone.num_optim_steps
    one, two = (decode_photo(r.encoded).pixels.astype(int) for r in (alone, among))
    assert np.abs(one - two).max() <= 1


def test_an_interrupted_warm_photo_goes_on_from_where_it_was(load):
    config = replace(SHORT, stop_score=None)
    config = replace(config, optimiser=replace(config.optimiser, num_optim_steps=3))
    editor = load(config)
    saved = []
    whole = editor.edit(
        [request(haze=0.6)], on_iteration=lambda _, state: saved.append(state_to_bytes(state))
    )[0]
    resumed = editor.edit([request(haze=0.6, checkpoint=saved[1])])[0]
    assert resumed.encoded == whole.encoded
    assert resumed.loss_curve == whole.loss_curve


def test_good_photos_get_their_updates_and_warm_ones_may_stop_at_once(load):
    config = replace(SHORT, stop_score=1.0)
    config = replace(config, optimiser=replace(config.optimiser, num_optim_steps=4))
    warm, as_is = load(config).edit([request(haze=0.6), request(name="camera.jpg")])
    assert (warm.num_optim_steps, warm.stop_reason, warm.status) == (0, "good_enough", "ok")
    assert as_is.num_optim_steps == config.optimiser.min_optim_steps


@pytest.mark.parametrize("method", ["one-step", "hybrid"])
def test_step_by_step_a_good_start_is_delivered_as_it_is(load, method):
    config = replace(SHORT, stop_score=1.0, method=method)
    warm = load(config).edit([request(haze=0.6)])[0]
    assert (warm.num_optim_steps, warm.stop_reason, warm.status) == (0, "good_enough", "ok")
    levels = load(LEVELS).edit([request(haze=0.6)])[0]
    one, two = (decode_photo(r.encoded).pixels.astype(int) for r in (warm, levels))
    # Not the same, for DDIM's inversion at this T is no exact one.
    assert np.abs(one - two).mean() < 0.5 * np.abs(photo(haze=0.6).pixels - two).mean()


@pytest.mark.parametrize("method", ["one-step", "hybrid", "autoencoder", "pixel"])
def test_every_method_starts_warm(load, method):
    config = replace(SHORT, method=method)
    warm, cold = (
        load(replace(config, warm_start=on)).edit([request(haze=0.6)])[0] for on in (True, False)
    )
    assert warm.status == "ok"
    assert warm.score_after > cold.score_after + 0.5


def test_half_the_strength_delivers_half_the_start(load):
    source = photo(haze=0.6).pixels.astype(float)
    editor = load(LEVELS)
    whole, half = (
        decode_photo(editor.edit([request(haze=0.6, strength=s)])[0].encoded).pixels - source
        for s in (1.0, 0.5)
    )
    assert np.abs(whole / 2 - half).mean() < 0.05 * np.abs(whole).mean() + 0.5


def test_a_grey_photo_stays_grey(load):
    source = photo(haze=0.6)
    grey = np.asarray(Image.fromarray(source.pixels).convert("L").convert("RGB"))
    file = io.BytesIO()
    Image.fromarray(grey).save(file, "PNG")
    edited = load(LEVELS).edit([EditRequest(decode_photo(file.getvalue()), Aim("up"), seed=0)])[0]
    pixels = decode_photo(edited.encoded).pixels
    assert edited.status == "ok"
    assert (pixels.max(2) == pixels.min(2)).all()
    assert (
        luminance(torch.tensor(pixels / 255.0).permute(2, 0, 1)[None]).std()
        > 1.2 * (grey / 255.0).std()
    )


def test_a_verdict_on_a_warm_start_is_on_the_change_it_is():
    state = LatentState.start(*torch.zeros(2, 1, 2, 2), 0)
    faithful = Fidelity(30.0, 0.95, 2.0)
    state.stop_reason = "good_enough"
    assert verdict(state, None, faithful, None).status == "skipped"
    assert verdict(state, None, faithful, None, warm=True).status == "ok"
    assert verdict(state, "the judge fell", faithful, None, warm=True).reason == "the judge fell"
    state.stop_reason = "budget"
    assert verdict(state, None, faithful, 0.5, warm=True).status == "rejected"
    state.stop_reason = "steps"
    assert verdict(state, None, faithful, 0.001, warm=True).status == "rejected"
