"""One safetensors file in the original layout: the same model as the folder it was made from."""

import json
import shutil

import open_clip
import pytest
import torch
from open_clip.transformer import TextTransformer
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from doodl.backbones import load_backbone
from doodl.backbones.clip_tokenizer import clip_tokenizer
from doodl.backbones.single_file import from_open_clip
from doodl.errors import ModelError
from tests.doodl.ldm_layout import unet_to_ldm, vae_to_ldm
from tests.doodl.tiny_models import make_folder


def clip_to_ldm(encoder, prefix):
    return {
        f"{prefix}text_model.{name.removeprefix('text_model.')}": tensor
        for name, tensor in encoder.state_dict().items()
    }


def to_open_clip(encoder, prefix):
    """The other way than the loader's: attention's three matrices joined, a projection turned."""
    parts = {name.removeprefix("text_model."): t for name, t in encoder.state_dict().items()}
    tensors = {
        "token_embedding.weight": parts["embeddings.token_embedding.weight"],
        "positional_embedding": parts["embeddings.position_embedding.weight"],
        "ln_final.weight": parts["final_layer_norm.weight"],
        "ln_final.bias": parts["final_layer_norm.bias"],
        "logit_scale": torch.tensor(4.6),
    }
    if "text_projection.weight" in parts:
        tensors["text_projection"] = parts["text_projection.weight"].T.contiguous()
    pairs = {
        "ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2", "attn.out_proj": "self_attn.out_proj",
    }  # fmt: skip
    for i in range(encoder.config.num_hidden_layers):
        block, layer = f"transformer.resblocks.{i}", f"encoder.layers.{i}"
        for kind in ("weight", "bias"):
            for there, here in pairs.items():
                tensors[f"{block}.{there}.{kind}"] = parts[f"{layer}.{here}.{kind}"]
            tensors[f"{block}.attn.in_proj_{kind}"] = torch.cat(
                [parts[f"{layer}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
            )
    return {prefix + name: tensor for name, tensor in tensors.items()}


def tensors_of(backbone, kind):
    tensors = unet_to_ldm(backbone.unet) | vae_to_ldm(backbone.vae)
    one, *two = backbone.text.encoders
    if kind == "sd1":
        tensors |= clip_to_ldm(one, "cond_stage_model.transformer.")
    elif kind == "sd2":
        tensors |= to_open_clip(one, "cond_stage_model.model.")
    else:
        tensors |= clip_to_ldm(one, "conditioner.embedders.0.transformer.")
        tensors |= to_open_clip(two[0], "conditioner.embedders.1.model.")
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


@pytest.fixture
def file_of(tmp_path):
    """Write a kind's folder and its single file, with the configs that make it small beside it."""

    def write(kind):
        folder = make_folder(tmp_path / "folder", kind)
        backbone = load_backbone(folder)
        path = tmp_path / "tiny.safetensors"
        save_file(tensors_of(backbone, kind), path)
        for part in sorted(folder.iterdir()):
            if part.is_dir():
                shutil.copytree(
                    part, tmp_path / "tiny" / part.name,
                    ignore=shutil.ignore_patterns("*.safetensors"),
                )  # fmt: skip
        return backbone, path

    (tmp_path / "folder").mkdir()
    return write


@pytest.fixture(scope="module")
def tokenizer():
    return clip_tokenizer()


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_single_file_is_the_model_it_was_made_from(file_of, kind):
    folder, path = file_of(kind)
    single = load_backbone(path)
    assert (single.kind, single.prediction_type) == (folder.kind, folder.prediction_type)
    assert single.revision != folder.revision
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 4, 8, 12, generator=generator)
    image = torch.rand(1, 3, 16, 24, generator=generator) * 2 - 1
    with torch.no_grad():
        for compute in (
            lambda b: b.predictor(["a red rose"], guidance_scale=3.0)(latents, torch.tensor(500)),
            lambda b: b.decode(latents),
            lambda b: b.encode(image),
        ):
            torch.testing.assert_close(compute(single), compute(folder), rtol=1e-5, atol=1e-6)
    for part in (single.unet, single.vae, *single.text.encoders):
        assert not any(p.requires_grad or p.is_meta for p in part.parameters())


def test_what_sd2_predicts_is_read_beside_the_file_or_asked_for(file_of, tmp_path):
    _, path = file_of("sd2")
    shutil.rmtree(tmp_path / "tiny" / "scheduler")
    with pytest.raises(ModelError, match=r"tiny\.yaml"):
        load_backbone(path)
    yaml = tmp_path / "tiny.yaml"
    yaml.write_text('model:\n  params:\n    parameterization: "v"\n')
    assert load_backbone(path).prediction_type == "v_prediction"
    yaml.write_text("model:\n  params:\n    linear_start: 0.00085\n")
    assert load_backbone(path).prediction_type == "epsilon"


def test_file_that_does_not_fit_the_published_configs_says_so(file_of, tmp_path):
    _, path = file_of("sd1")
    (tmp_path / "tiny" / "unet" / "config.json").unlink()
    with pytest.raises(ModelError, match=r"does not fit its kind's configs .* folder tiny/"):
        load_backbone(path)


def test_file_that_lacks_a_tensor_is_not_loaded(file_of):
    backbone, path = file_of("sd1")
    tensors = tensors_of(backbone, "sd1")
    del tensors["model.diffusion_model.middle_block.0.in_layers.0.weight"]
    save_file(tensors, path)
    with pytest.raises(ModelError, match=r"mid_block\.resnets\.0\.norm1\.weight"):
        load_backbone(path)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("model.diffusion_model.joint_blocks.0.weight", (1,), "diffusers folder"),
        ("model.diffusion_model.double_blocks.0.weight", (1,), "diffusers folder"),
        ("conditioner.embedders.0.model.ln_final.weight", (1,), "refiner"),
        ("lora_unet.weight", (1,), "not a whole"),
        ("model.diffusion_model.input_blocks.0.0.weight", (320, 9, 3, 3), "not a whole"),
    ],
)
def test_other_files_are_named_for_what_they_are(tmp_path, name, shape, message):
    save_file({name: torch.zeros(shape)}, tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match=message):
        load_backbone(tmp_path / "other.safetensors")


def test_inpainting_file_is_refused(tmp_path):
    names = {
        "model.diffusion_model.input_blocks.0.0.weight": (320, 9, 3, 3),
        "first_stage_model.quant_conv.bias": (8,),
        "cond_stage_model.transformer.text_model.final_layer_norm.bias": (768,),
    }
    save_file({n: torch.zeros(s) for n, s in names.items()}, tmp_path / "i.safetensors")
    with pytest.raises(ModelError, match="takes 9 channels"):
        load_backbone(tmp_path / "i.safetensors")


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".bin", ".pth"])
def test_pickles_are_never_opened(tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    torch.save({"state_dict": {}}, path)
    with pytest.raises(ModelError, match=r"not a \.safetensors file"):
        load_backbone(path)


def test_cut_off_file_is_a_model_error(file_of):
    _, path = file_of("sd1")
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ModelError, match="cannot be read as safetensors"):
        load_backbone(path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a photo of a dog",
        "Crème brûlée, 3 for 4€!",
        "it's  spaced\tout",
        "日本の庭 🌸",
        "word " * 99,
    ],
)
def test_tokens_are_open_clips(tokenizer, text):
    """Its tokenizer is other code over the same merges; it fills up with 0 to the length of 77."""
    want = open_clip.SimpleTokenizer()(text)[0].tolist()
    want = want[: want.index(49407) + 1]
    assert tokenizer(text, max_length=77, truncation=True).input_ids == want


def test_openclips_towers_are_padded_with_zeros(tokenizer):
    tokens = clip_tokenizer("!")("a dog", padding="max_length", max_length=77).input_ids
    assert tokens == open_clip.SimpleTokenizer()("a dog")[0].tolist()
    assert tokenizer("a dog", padding="max_length", max_length=77).input_ids[-1] == 49407


def test_text_tower_of_open_clip_gives_the_same_embedding():
    torch.manual_seed(0)
    tower = TextTransformer(
        context_length=77, vocab_size=49408, width=16, heads=2, layers=2, output_dim=8
    ).eval()
    config = CLIPTextConfig(
        vocab_size=49408, hidden_size=16, intermediate_size=64, projection_dim=8,
        num_hidden_layers=2, num_attention_heads=2, hidden_act="gelu", eos_token_id=2,
    )  # fmt: skip
    model = CLIPTextModelWithProjection(config).eval()
    model.load_state_dict(from_open_clip(tower.state_dict()), strict=True)
    tokens = open_clip.SimpleTokenizer()(["a photo of a dog", "dusk"])
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).text_embeds, tower(tokens), rtol=1e-4, atol=1e-5)


def test_configs_beside_a_file_must_be_json_objects(file_of, tmp_path):
    _, path = file_of("sd1")
    (tmp_path / "tiny" / "vae" / "config.json").write_text(json.dumps([1]))
    with pytest.raises(ModelError, match="JSON object"):
        load_backbone(path)
