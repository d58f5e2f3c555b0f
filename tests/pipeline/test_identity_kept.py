"""Existing output folders keep their identity: what was enhanced once is not enhanced again."""

from dataclasses import replace
from importlib import import_module

from doodl.recipes.config import EditConfig
from manifests.identity import params_fingerprint
from pipeline.spec import JobSpec, loader_of

# The recipe as the first release wrote it. Values added since must not show up beside these.
RECIPE = {
    "sampler": {
        "num_inference_steps": 50,
        "depth": 1.0,
        "mix_weight": None,
        "memory": "checkpoint",
        "guidance_scale": 1.0,
    },
    "optimiser": {
        "num_optim_steps": 25,
        "learning_rate": 1.0,
        "momentum": 0.9,
        "grad_clip_value": 0.001,
        "noise_scale": 0.0,
        "loss_scale": 1.0,
        "tie_gradients": False,
        "tie_latents": False,
        "renormalise": False,
        "decode_pair": True,
        "grad_mean_abs": None,
        "grad_blur_sigma": 0.0,
        "patience": 0,
    },
    "working_px": 512,
    "num_crops": 16,
    "cut_power": 0.3,
    "whole_view": False,
    "transfer_in_loss": False,
    "fidelity_weight": 0.0,
    "neutral_weight": 0.0,
    "stop_score": None,
}


def test_fingerprints_of_enhance_jobs_stay_what_they_were():
    config = EditConfig.from_dict(RECIPE).to_dict()
    spec = JobSpec(photos="/p", out="/o", model_revision="blake2b:00", config=config)
    assert params_fingerprint(spec.params()) == "b1928f40975fece8e64f461cafa4f253"
    spec = replace(
        spec,
        model="/m",
        preset="paper-aesthetic",
        direction="target",
        target=7.0,
        prompt="a dog",
        strength=0.5,
        seed=3,
        strip_gps=True,
        overrides={"num_crops": 4},
    )
    assert params_fingerprint(spec.params()) == "2441425083dbd371753c0a8de0c7251a"


def test_a_spec_from_before_the_library_had_rooms_is_understood():
    """Its editor is named by where it was then; the file is what an earlier version wrote."""
    for earlier, task in (
        ("doodl.edit:load_editor", "enhance"),
        ("doodl.inversion:load_inverter", "invert"),
        ("doodl.generation:load_generator", "generate"),
    ):
        spec = JobSpec(photos="/p", out="/o", model_revision="blake2b:00", config={}, task=task)
        written = spec.to_json().replace(spec.editor, earlier)
        assert JobSpec.from_json(written).editor == loader_of(task)
        module, _, function = loader_of(task).partition(":")
        assert callable(getattr(import_module(module), function))
