"""What --quality, --sampler, --method and --set come to, and in which order."""

import pytest

from doodl.recipes.presets import PRESETS, QUALITIES
from jobs import exits
from jobs.options import recipe_overrides
from pipeline.spec import make_spec


def config_of(tmp_path, *options, preset="pocket"):
    overrides = recipe_overrides(*options)
    return make_spec(tmp_path, tmp_path / "out", preset=preset, overrides=overrides).edit_config


def test_without_options_the_recipe_is_the_presets_own():
    assert recipe_overrides(None, None, None, None) == {}
    # What every recipe does anyway is no override, and changes no fingerprint.
    assert recipe_overrides([], "balanced", "edict", "doodl") == {}


@pytest.mark.parametrize("preset", ["pocket", "paper-aesthetic"])
@pytest.mark.parametrize("quality", QUALITIES)
def test_every_quality_is_a_recipe_that_can_run(tmp_path, quality, preset):
    config = config_of(tmp_path, [], quality, None, None, preset=preset)
    assert config.sampler.kind == ("belm" if quality == "fast" else "edict")
    if quality == "balanced":
        assert config == PRESETS[preset]
    if quality == "paper":
        assert (config.sampler.num_inference_steps, config.sampler.depth) == (50, 1.0)


def test_what_is_asked_goes_before_what_a_quality_brings(tmp_path):
    assert config_of(tmp_path, [], "fast", "edict", None).sampler.kind == "edict"
    assert config_of(tmp_path, [], "fast", None, "pixel").method == "pixel"
    steps = ["sampler.num_inference_steps=20"]
    assert config_of(tmp_path, steps, "fast", None, None).sampler.num_inference_steps == 20
    assert config_of(tmp_path, [], "paper", "belm", None).sampler.kind == "belm"


@pytest.mark.parametrize(
    ("options", "message"),
    [(("best", None, None), "fast"), ((None, "ddim", None), "edict or belm")],
)
def test_unknown_words_are_told_with_those_there_are(options, message):
    with pytest.raises(exits.UsageError, match=message):
        recipe_overrides([], *options)


def test_unknown_method_is_told_with_those_there_are(tmp_path):
    with pytest.raises(ValueError, match="one-step"):
        config_of(tmp_path, [], None, None, "two-step")
