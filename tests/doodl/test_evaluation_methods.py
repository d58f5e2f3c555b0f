"""The rivals on the pocket model itself: each lacks what it says it lacks, and no more."""

import io
from dataclasses import replace
from importlib.resources import files

import numpy as np
import pytest
import torch
from PIL import Image

from doodl.editing.editor import load_editor
from doodl.evaluation.ablations import ABLATIONS
from doodl.evaluation.methods import (
    METHODS,
    Edited,
    auto_contrast,
    counted,
    make_request,
    run_method,
)
from doodl.evaluation.unets import without_noise
from doodl.images import decode_photo
from doodl.measures.metrics import rms_change
from doodl.recipes.presets import preset
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


RIVALS = [name for name in METHODS if name not in ABLATIONS]


@pytest.fixture(scope="module")
def edits(editor, requests):
    return {
        name: run_method(METHODS[name], editor, requests, METHODS[name].start) for name in RIVALS
    }


@pytest.mark.parametrize("name", [name for name in RIVALS if name != "levels"])
def test_every_method_changes_the_photo_and_gives_back_a_whole_file(edits, requests, name):
    outcomes, cost = edits[name]
    assert cost.cpu_seconds > 0
    for request, edited in zip(requests, outcomes, strict=True):
        assert isinstance(edited, Edited), edited
        photo = decode_photo(edited.encoded)
        assert photo.pixels.shape == request.photo.pixels.shape
        assert rms_change(photo.pixels, request.photo.pixels) > 1e-3


def test_levels_are_the_warm_start_and_no_update_of_it(editor):
    image = Image.open(files("doodl.pocket.samples").joinpath("coffee.jpg")).resize((96, 96))
    file = io.BytesIO()
    Image.fromarray(np.asarray(image) // 3 + np.uint8(140)).save(file, "PNG")
    hazy = decode_photo(file.getvalue())
    ((edited,), _) = run_method(METHODS["levels"], editor, [make_request(hazy, "up", 5)], 1.0)
    assert isinstance(edited, Edited)
    assert (edited.status, edited.num_optim_steps) == ("ok", 0)
    stretched = decode_photo(edited.encoded).pixels
    assert stretched.std() > 1.5 * hazy.pixels.std()


def test_methods_without_a_unet_call_none_and_the_others_do(edits):
    calls = {name: cost.unet_calls for name, (_, cost) in edits.items()}
    assert calls["zero-unet"] == calls["autoencoder"] == calls["auto-contrast"] == 0
    assert calls["edit"] == calls["no-smoothing"] > calls["one-step"] > 0
    assert calls["full-depth"] > 1.9 * calls["edit"]
    # Both invert, come back, and render twice; O-BELM starts its inversion by Heun.
    assert 0.4 * calls["edit"] < calls["edit-belm"] < 0.7 * calls["edit"]


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
