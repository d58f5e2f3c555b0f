"""Weights that are absent, cut, of another shape or not finite are refused, whoever loads them."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPConfig

from doodl.backbones import load_backbone
from doodl.errors import ModelError
from doodl.generation.checker import load_safety_checker
from doodl.guidance.networks import load_classifier
from doodl.guidance.towers import load_tower
from doodl.guidance.wsdan import SequentialWSDAN
from doodl.models.weights import check_finite, load_tensors
from doodl.pocket import weights_dir
from doodl.scores import load_aesthetic_head, load_scorer
from tests.doodl.test_classifiers import FEATURES_6E, hugging_face_folder, meta, random_state
from tests.doodl.test_single_file import tensors_of
from tests.doodl.tiny_models import make_folder
from tests.doodl.tiny_towers import write_tower


@dataclass
class Case:
    """A model on disk: what loads it, its weights file, and one tensor of that."""

    load: Any
    weights: Path
    tensor: str


def open_clip_folder(path):
    folder = write_tower(path / "tower")
    return Case(lambda: load_tower(folder), folder / "open_clip_model.safetensors", "ln_final.bias")


def open_clip_positions(path):
    """open_clip resizes these without a word."""
    return replaced(open_clip_folder(path), "visual.positional_embedding")


def open_clip_pickle(path):
    case = open_clip_folder(path)
    weights = case.weights.with_name("open_clip_pytorch_model.bin")
    torch.save(load_file(case.weights), weights)
    case.weights.unlink()
    return Case(case.load, weights, "positional_embedding")


def pocket_tower_copy(path):
    folder = shutil.copytree(weights_dir() / "tower", path / "tower")
    (folder / "aesthetic_head.safetensors").unlink()
    weights = folder / "open_clip_model.safetensors"
    names = sorted(load_file(weights))
    return Case(lambda: load_tower(folder), weights, next(n for n in names if "visual" in n))


def head_with_its_tower(path):
    folder = shutil.copytree(weights_dir() / "judge", path / "judge")
    head = folder / "aesthetic_head.safetensors"
    return Case(
        lambda: load_scorer(str(head)), folder / "open_clip_model.safetensors", "text_projection"
    )


def linear_head(path):
    head = path / "head.safetensors"
    shutil.copy(weights_dir() / "tower" / "aesthetic_head.safetensors", head)
    return Case(lambda: load_aesthetic_head(head), head, "bias")


def mlp_head(path):
    layers = nn.Sequential(
        *(
            nn.Linear(a, b)
            for a, b in ((8, 6), (1, 1), (6, 5), (1, 1), (5, 4), (1, 1), (4, 3), (3, 1))
        )
    )
    head = path / "mlp.safetensors"
    kept = {f"layers.{k}": v for k, v in layers.state_dict().items() if k[0] in "02467"}
    save_file(kept, head)
    return Case(lambda: load_aesthetic_head(head), head, "layers.4.bias")


def timm_folder(path):
    folder = path / "flowers"
    folder.mkdir()
    config = {
        "architecture": "test_resnet",
        "num_classes": 5,
        "pretrained_cfg": {"classifier": "fc"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    weights = folder / "model.safetensors"
    save_file(timm.create_model("test_resnet", num_classes=5).state_dict(), weights)
    return Case(lambda: load_classifier(str(folder)), weights, "layer1.0.bn1.running_var")


def timm_file(path):
    case = timm_folder(path)
    weights = shutil.copy(case.weights, path / "mine.safetensors")
    return Case(lambda: load_classifier(f"test_resnet@{weights}"), weights, "conv1.0.weight")


def hugging_face(path):
    folder = path / "vit"
    folder.mkdir()
    hugging_face_folder(folder)
    return Case(
        lambda: load_classifier(str(folder)), folder / "model.safetensors", "classifier.bias"
    )


def wsdan_file(path):
    weights = path / "birds.safetensors"
    save_file(random_state(meta(lambda: SequentialWSDAN(FEATURES_6E, 768, 3, 4))), weights)
    return Case(lambda: load_classifier(str(weights)), weights, "attentions.bn.weight")


def part_of(kind, part, tensor):
    def make(path):
        folder = make_folder(path / kind, kind)
        (weights,) = (folder / part).glob("*.safetensors")
        (name,) = (name for name in load_file(weights) if name.endswith(tensor))
        return Case(lambda: load_backbone(folder), weights, name)

    return make


def pocket_part(part):
    def make(path):
        folder = shutil.copytree(weights_dir() / "pipeline", path / "pocket")
        (weights,) = (folder / part).glob("*.safetensors")
        return Case(lambda: load_backbone(folder), weights, sorted(load_file(weights))[-1])

    return make


def single_file(tensor):
    def make(path):
        folder, weights = make_folder(path / "tiny", "sd1"), path / "tiny.safetensors"
        save_file(tensors_of(load_backbone(folder), "sd1"), weights)
        return Case(lambda: load_backbone(weights), weights, tensor)

    return make


def safety_checker(path):
    vision = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "image_size": 32, "patch_size": 8,
    }  # fmt: skip
    model = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=8))
    model.save_pretrained(path / "safety_checker")
    (path / "feature_extractor").mkdir()
    (path / "feature_extractor" / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3})
    )
    (path / "model_index.json").write_text(
        json.dumps({"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]})
    )
    weights = path / "safety_checker" / "model.safetensors"
    return Case(lambda: load_safety_checker(path), weights, "concept_embeds")


def replaced(case, tensor):
    return Case(case.load, case.weights, tensor)


MAKERS = {
    "open_clip": open_clip_folder,
    "open_clip positions": open_clip_positions,
    "open_clip pickle": open_clip_pickle,
    "pocket tower": pocket_tower_copy,
    "head's tower": head_with_its_tower,
    "linear head": linear_head,
    "mlp head": mlp_head,
    "timm folder": timm_folder,
    "timm file": timm_file,
    "hugging face": hugging_face,
    "wsdan": wsdan_file,
    "sd1 unet": part_of("sd1", "unet", "conv_in.bias"),
    "sd1 vae": part_of("sd1", "vae", "decoder.conv_out.bias"),
    "sd1 text encoder": part_of("sd1", "text_encoder", "final_layer_norm.bias"),
    "sdxl second text encoder": part_of("sdxl", "text_encoder_2", "text_projection.weight"),
    "sd3 t5": part_of("sd3", "text_encoder_3", "encoder.final_layer_norm.weight"),
    "flux transformer": part_of("flux", "transformer", "x_embedder.bias"),
    "pocket vae": pocket_part("vae"),
    "pocket unet": pocket_part("unet"),
    "pocket text encoder": pocket_part("text_encoder"),
    "single file unet": single_file("model.diffusion_model.out.2.bias"),
    "single file vae": single_file("first_stage_model.decoder.conv_out.bias"),
    "safety checker": safety_checker,
}


def refused(case):
    with pytest.raises(ModelError) as caught:
        case.load()
    said = str(caught.value)
    assert "\n" not in said
    assert len(said) < 600
    assert case.weights.name in said or case.weights.parent.name in said
    return said


@pytest.fixture(params=MAKERS)
def case(request, tmp_path):
    return MAKERS[request.param](tmp_path)


def edit(case, change):
    pickled = case.weights.suffix == ".bin"
    tensors = torch.load(case.weights) if pickled else load_file(case.weights)
    change(tensors)
    (torch.save if pickled else save_file)(tensors, case.weights)


def test_whole_weights_are_loaded(case):
    case.load()


def test_a_model_without_weights_is_not_made_of_random_numbers(case):
    case.weights.unlink()
    refused(case)


def test_a_missing_tensor_is_named(case):
    edit(case, lambda tensors: tensors.pop(case.tensor))
    said = refused(case)
    assert case.tensor.split(".")[-1] in said


def test_a_tensor_of_another_shape_is_refused(case):
    def longer(tensors):
        tensor = tensors[case.tensor]
        tensors[case.tensor] = torch.cat([tensor.reshape(-1), tensor.reshape(-1)[:3]] * 2)

    def wider(tensors):
        tensor = tensors[case.tensor]
        tensors[case.tensor] = torch.cat([tensor, tensor[:1]])

    edit(case, longer if "positional" not in case.tensor else wider)
    refused(case)


def test_numbers_that_are_not_finite_are_refused(case):
    def spoil(tensors):
        tensors[case.tensor] = tensors[case.tensor].clone()
        tensors[case.tensor].view(-1)[-1] = float("nan")

    edit(case, spoil)
    assert "not finite" in refused(case)


@pytest.mark.parametrize("name", ["ViT-B-32", "RN50", "hf-hub:someone/else"])
def test_a_tower_by_name_alone_has_no_weights(name):
    with pytest.raises(ModelError, match="names no weights"):
        load_tower(name)


def test_a_file_of_weights_for_a_tower_by_name_must_have_its_positions(tmp_path, monkeypatch):
    config = tmp_path / "tiny-tower.json"
    text = {"context_length": 8, "vocab_size": 32, "width": 16, "heads": 2, "layers": 1}
    vision = {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8}
    config.write_text(json.dumps({"embed_dim": 8, "vision_cfg": vision, "text_cfg": text}))
    monkeypatch.setitem(
        open_clip.factory._MODEL_CONFIGS, "tiny-tower", json.loads(config.read_text())
    )
    clip = open_clip.create_model("tiny-tower")
    weights = tmp_path / "w.safetensors"
    save_file(clip.state_dict(), weights)
    assert load_tower("tiny-tower", pretrained=str(weights)).size_px == 16
    state = clip.state_dict()
    state["positional_embedding"] = torch.randn(11, 16)
    save_file(state, weights)
    with pytest.raises(ModelError, match=r"w\.safetensors is not whole: .*positional_embedding"):
        load_tower("tiny-tower", pretrained=str(weights))


def test_counters_of_training_may_be_missing_and_nothing_else():
    network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    state = {k: v for k, v in network.state_dict().items() if "num_batches" not in k}
    load_tensors(network, state, "here")
    for name in state:
        with pytest.raises(ModelError, match=f"here is not whole: no weights for {name}"):
            load_tensors(network, {k: v for k, v in state.items() if k != name}, "here")
    with pytest.raises(ModelError, match="here is of another network: unknown tensors extra"):
        load_tensors(network, {**state, "extra": torch.zeros(1)}, "here")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_finite_numbers_of_every_size_pass(dtype):
    largest = torch.finfo(dtype).max
    check_finite("here", {"a": torch.tensor([largest, -largest, 0.0], dtype=dtype)})
    check_finite("here", {"empty": torch.zeros(0, dtype=dtype), "whole": torch.tensor([1])})
    check_finite("here", {"x.attn_mask": torch.full((2,), -float("inf"), dtype=dtype)})
    for number in (float("nan"), float("inf"), -float("inf")):
        with pytest.raises(ModelError, match="the numbers of a are not finite"):
            check_finite("here", {"a": torch.tensor([0.0, number, 1.0], dtype=dtype)})
