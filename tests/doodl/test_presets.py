"""The presets against the table they come from, and what is said of their values."""

import pytest

from doodl.recipes.config import EditConfig
from doodl.recipes.presets import (
    MEANINGS,
    PRESET_NOTES,
    PRESETS,
    config_names,
    preset,
    preset_values,
)

# Presets of the released code (ALGORITHM, section 5): steps, iterations, p, clip, noise, momentum,
# tied, renormalised, loss scale, crops, power, CFG, guides.
TABLE = {
    "paper-aesthetic": (
        50, 25, 0.93, 1e-3, 0.0, 0.9, False, False, 1.0, 16, 0.3, 1.0, "aesthetic:laion-v1=1"),
    "paper-text": (50, 50, 0.93, 1e-3, 1e-4, 0.9, True, True, 1.0, 16, 0.3, 7.5, "text=1"),
    "paper-personalize": (
        50, 500, 0.93, 3e-3, 0.0, 0.9, True, True, 3.0, 16, 0.06, 7.5, "subject=1"),
    "paper-classifier": (
        50, 50, 0.93, 1e-2, 1e-3, 0.9, True, True, 0.05, 16, 0.3, 7.5, "classifier=1"),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(TABLE))
def test_paper_presets_are_the_released_codes(name):
    config = preset(name)
    sampler, optimiser = config.sampler, config.optimiser
    assert (
        sampler.num_inference_steps, optimiser.num_optim_steps, sampler.p,
        optimiser.grad_clip_value, optimiser.noise_scale, optimiser.momentum,
        optimiser.tie_latents, optimiser.renormalise, optimiser.loss_scale,
        config.num_crops, config.cut_power, sampler.guidance_scale, *config.guides,
    ) == TABLE[name]  # fmt: skip
    # In all of them: both decodes, a learning rate of 1, ties of gradients and latents together,
    # and none of our additions.
    assert optimiser.decode_pair
    assert optimiser.learning_rate == 1
    assert optimiser.tie_gradients == optimiser.tie_latents
    plain = EditConfig(sampler, optimiser, config.guides, cut_power=config.cut_power)
    assert config == plain
    assert (optimiser.grad_mean_abs, optimiser.grad_blur_sigma, optimiser.patience) == (None, 0, 0)


def test_the_papers_aesthetic_target_is_told():
    assert PRESET_NOTES["paper-aesthetic"].target == 10


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_that_tie_latents_are_not_for_photos(name):
    assert preset(name).optimiser.tie_latents == (PRESET_NOTES[name].task != "enhance")


def test_every_preset_has_a_note_and_every_value_a_meaning():
    assert set(PRESET_NOTES) == set(PRESETS)
    assert set(MEANINGS) == set(config_names())


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_the_values_shown_make_the_preset_again(name):
    values: dict = {}
    for key, value, _ in preset_values(name):
        *path, last = key.split(".")
        node = values
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    assert EditConfig.from_dict(values) == preset(name)
