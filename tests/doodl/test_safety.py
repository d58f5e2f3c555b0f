"""The safety checker of a model's folder, small and with random weights, against diffusers' own."""

import json

import pytest
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers import CLIPConfig

from doodl.errors import ModelError
from doodl.generation.checker import load_safety_checker

MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


@pytest.fixture
def folder(tmp_path):
    """A folder whose checker has thresholds that some images pass and some do not."""
    torch.manual_seed(0)
    vision = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "image_size": 32, "patch_size": 8,
    }  # fmt: skip
    model = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=8))
    for name in ("concept_embeds", "special_care_embeds"):
        weight = getattr(model, name)
        weight.data = torch.randn(weight.shape)
    model.special_care_embeds_weights.data = torch.full((3,), 0.3)
    # Every threshold is the median of the images' nearest: half of them pass, half do not.
    with torch.no_grad():
        pooled = model.eval().vision_model(normalised(images()))[1]
        nearest = torch.cosine_similarity(
            model.visual_projection(pooled)[:, None], model.concept_embeds, dim=-1
        ).amax(1)
    model.concept_embeds_weights.data.fill_(nearest.sort().values[5:7].mean())
    model.save_pretrained(tmp_path / "safety_checker")
    (tmp_path / "feature_extractor").mkdir()
    (tmp_path / "feature_extractor" / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": MEAN, "image_std": STD, "size": {"shortest_edge": 32}})
    )
    write_index(tmp_path, ["stable_diffusion", "StableDiffusionSafetyChecker"])
    return tmp_path


def normalised(pixels):
    return (pixels / 2 + 0.5 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def write_index(folder, entry):
    (folder / "model_index.json").write_text(json.dumps({"safety_checker": entry}))


def images(count=12):
    generator = torch.Generator().manual_seed(1)
    colours = torch.rand(count, 3, 1, 1, generator=generator)
    noise = torch.rand(count, 3, 32, 32, generator=generator)
    return (0.5 * colours + 0.5 * noise) * 2 - 1


def test_flags_are_diffusers_own(folder):
    checker = load_safety_checker(folder)
    pixels = images()
    reference = StableDiffusionSafetyChecker.from_pretrained(folder / "safety_checker").eval()
    _, want = reference(normalised(pixels), pixels.clone())
    scores = checker.scores(pixels)
    # diffusers rounds to three digits: none may lie where that decides.
    assert min(abs(score) for score in scores) > 5e-4
    assert checker(pixels) == [bool(flag) for flag in want]
    assert 0 < sum(want) < len(want)


def test_nearness_to_special_care_lowers_the_threshold(folder):
    checker, pixels = load_safety_checker(folder), images()
    checker.model.special_care_embeds_weights.data.fill_(2.0)  # a cosine never gets there
    without = torch.tensor(checker.scores(pixels))
    checker.model.special_care_embeds_weights.data.fill_(-2.0)
    torch.testing.assert_close(torch.tensor(checker.scores(pixels)), without + 0.01)


def test_images_of_any_size_are_looked_at_and_left_as_they_are(folder):
    checker = load_safety_checker(folder)
    pixels = torch.rand(2, 3, 45, 90, generator=torch.Generator().manual_seed(2)) * 2 - 1
    before = pixels.clone()
    assert len(checker(pixels)) == 2
    torch.testing.assert_close(pixels, before, rtol=0, atol=0)


def test_model_without_a_checker_has_none(folder):
    for entry in (None, [None, None]):
        write_index(folder, entry)
        assert load_safety_checker(folder) is None
    assert load_safety_checker(folder / "a.safetensors") is None


def test_checker_that_cannot_be_loaded_is_not_passed_over(folder):
    weights = folder / "safety_checker" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="safety_checker cannot be loaded"):
        load_safety_checker(folder)
    weights.write_bytes(whole)
    (folder / "feature_extractor" / "preprocessor_config.json").write_text("{}")
    with pytest.raises(ModelError, match="mean and std"):
        load_safety_checker(folder)
    write_index(folder, ["os", "system"])
    with pytest.raises(ModelError, match="is a system"):
        load_safety_checker(folder)
