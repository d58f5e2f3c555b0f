"""`presets list|show` as a person and a program read them."""

import json

import pytest
from typer.testing import CliRunner

from jobs.cli import app
from pipeline.spec import make_spec


def invoke(*arguments):
    return CliRunner().invoke(app, list(arguments), terminal_width=200, env={"COLUMNS": "200"})


def shown(name):
    result = invoke("presets", "show", name, "--json")
    assert result.exit_code == 0
    return json.loads(result.output)


def test_list_names_every_preset_and_what_it_is_for():
    listed = json.loads(invoke("presets", "list", "--json").output)
    names = [preset["name"] for preset in listed]
    assert {"pocket", "paper-aesthetic", "paper-text", "paper-personalize"} <= set(names)
    assert {preset["task"] for preset in listed} == {"enhance", "generate", "personalize"}
    text = invoke("presets", "list").output
    assert all(name in text for name in names)


def test_show_gives_each_value_with_its_meaning():
    values = shown("paper-personalize")["values"]
    assert values["optimiser.loss_scale"]["value"] == 3.0
    assert values["guides"]["value"] == ["subject=1"]
    assert all(entry["meaning"] for entry in values.values())
    text = invoke("presets", "show", "paper-aesthetic").output
    assert "optimiser.grad_clip_value" in text
    assert "aesthetic:laion-v1=1" in text
    assert "--target" in text


def test_an_unknown_preset_names_those_there_are(monkeypatch):
    from jobs.exits import UsageError

    result = invoke("presets", "show", "grand")
    assert isinstance(result.exception, UsageError)
    assert "paper-text" in str(result.exception)


OTHERS = {
    "sampler.memory": "full", "sampler.optimise_at": 3, "sampler.num_inference_steps": 25,
    "sampler.kind": "belm", "method": "one-step",
    "guides": ["symmetry=2"], "stop_score": 8.5, "sampler.depth": 0.25, "sampler.mix_weight": 0.5,
    "transfer_locality": 0.5,
}  # fmt: skip


BESIDE = {"sampler.kind": {"optimiser.tie_latents": False, "optimiser.decode_pair": False}}
"""What another value has to come with."""


@pytest.mark.parametrize("name", sorted(shown("paper-text")["values"]))
def test_every_value_that_is_shown_can_be_overridden(tmp_path, name):
    old = shown("paper-text")["values"][name]["value"]
    new = OTHERS.get(name, (not old) if isinstance(old, bool) else 7)
    assert new != old
    overrides = {name: new, **BESIDE.get(name, {})}
    spec = make_spec(tmp_path, preset="paper-text", overrides=overrides)
    node = spec.edit_config.to_dict()
    for part in name.split("."):
        node = node[part]
    assert node == new
