import json

import pytest

from doodl.recipes.config import EditConfig, SamplerConfig
from doodl.recipes.presets import PRESETS, preset


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_survive_their_plain_values(name):
    assert EditConfig.from_dict(preset(name).to_dict()) == preset(name)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"optimiser": {"num_optim_steps": "abc"}}, "optimiser.num_optim_steps"),
        ({"optimiser": {"num_optim_steps": -1}}, "must be finite and not negative"),
        ({"optimiser": {"num_optim_steps": 2.5}}, "must be of type int"),
        ({"optimiser": {"tie_gradients": 1}}, "true or false"),
        ({"optimiser": {"momentum": float("nan")}}, "optimiser.momentum"),
        ({"sampler": {"depth": 0}}, "sampler.depth"),
        ({"sampler": {"depth": 1.5}}, r"in \(0, 1\]"),
        ({"sampler": {"mix_weight": 2}}, r"in \(0, 1\]"),
        ({"num_crops": True}, "num_crops"),
        ({"num_crops": 0}, "unless whole_view"),
        ({"transfer_locality": 1.5}, "transfer_locality"),
        ({"sampler": {"optimise_at": 0}}, "above zero"),
        ({"sampler": {"optimise_at": 51}}, "at most num_inference_steps"),
        ({"guides": ["beauty=1"]}, "beauty=1"),
        ({"guides": "aesthetic=1"}, "must be a list"),
        ({"guides": [1]}, "must be a list"),
    ],
)
def test_values_that_make_no_sense_are_named(values, words):
    with pytest.raises(ValueError, match=words):
        EditConfig.from_dict(values)


def test_an_unknown_preset_names_those_there_are():
    with pytest.raises(ValueError, match="pocket, pocket-text"):
        preset("grand")


def test_guides_survive_json():
    config = EditConfig(guides=('text:"a red rose"=0.5', "aesthetic=1"))
    values = json.loads(json.dumps(config.to_dict()))
    assert values == config.to_dict()
    assert EditConfig.from_dict(values) == config


@pytest.mark.parametrize("memory", ["", "lots", "Full", "budget", "budget:all"])
def test_a_memory_that_is_none_is_refused_with_the_recipe(memory):
    with pytest.raises(ValueError, match="checkpoint, invert, full or budget:SIZE"):
        SamplerConfig(memory=memory)
    for word in ("checkpoint", "invert", "full", "budget:8GiB"):
        assert SamplerConfig(memory=word).memory == word
