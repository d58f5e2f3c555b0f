"""Pipeline folders of every kind as their publishers lay them out, but small and with random
weights: configs, file names and classes are the real ones."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    LCMScheduler,
    PNDMScheduler,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

KINDS = ("sd1", "sd2", "sdxl", "turbo", "lcm", "sd3", "flux")
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
WIDTH = 16


def make_folder(path, kind):
    """Write the folder of a kind and return its path."""
    torch.manual_seed(0)
    path.mkdir(exist_ok=True)
    parts = {"sd3": _sd3, "flux": _flux, "sdxl": _sdxl}.get(kind, _sd)(path, kind)
    index = {"_diffusers_version": "0.35.0", **parts}
    if kind == "sdxl":
        index["force_zeros_for_empty_prompt"] = True
    (path / "model_index.json").write_text(json.dumps(index))
    return path


def unet(**options):
    defaults = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": WIDTH,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    }
    return UNet2DConditionModel(**{**defaults, **options})


def vae(**options):
    defaults = {
        "block_out_channels": (8, 16),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "latent_channels": 4,
        "norm_num_groups": 4,
        "scaling_factor": 0.18215,
    }
    return AutoencoderKL(**{**defaults, **options})


def save_clip(path, number, tokenizer, *, projected):
    """Write text_encoder<number> and its tokenizer; return their lines of model_index.json."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        projection_dim=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)
    # As drawn, the weights are so small that every prompt would come out the same.
    for weight in model.parameters():
        weight.data += 0.1 * torch.randn_like(weight)
    model.save_pretrained(path / f"text_encoder{number}")
    tokenizer.save_pretrained(path / f"tokenizer{number}")
    return {
        f"text_encoder{number}": ["transformers", type(model).__name__],
        f"tokenizer{number}": ["transformers", "CLIPTokenizer"],
    }


def save_t5(path, number):
    """Write a T5 encoder and a tokenizer of single letters; return their lines of the index."""
    pieces = ["<pad>", "</s>", "<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz"]
    vocabulary = [(piece, -float(i)) for i, piece in enumerate(pieces)]
    tokenizer = T5Tokenizer(vocab=vocabulary, extra_ids=0)
    model = T5EncoderModel(
        T5Config(
            vocab_size=len(pieces), d_model=2 * WIDTH, d_kv=8, d_ff=WIDTH, num_layers=1, num_heads=2
        )
    )
    model.save_pretrained(path / f"text_encoder{number}")
    tokenizer.save_pretrained(path / f"tokenizer{number}")
    return {
        f"text_encoder{number}": ["transformers", "T5EncoderModel"],
        f"tokenizer{number}": ["transformers", "T5TokenizerFast"],
    }


@functools.cache
def clip_tokenizer():
    """A CLIP tokenizer of single letters, read from its two files as every other."""
    letters = [*"abcdefghijklmnopqrstuvwxyz"]
    pieces = [*letters, *(f"{letter}</w>" for letter in letters)]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        (path / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
        (path / "merges.txt").write_text("#version: 0.2\n")
        (path / "tokenizer_config.json").write_text(
            json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 24})
        )
        return CLIPTokenizer.from_pretrained(path)


def _save(path, **networks):
    """Write networks; return their lines of model_index.json."""
    for name, network in networks.items():
        network.save_pretrained(path / name)
    return {name: ["diffusers", type(network).__name__] for name, network in networks.items()}


def _sd(path, kind):
    scheduler = {
        "sd1": lambda: PNDMScheduler(**BETAS, steps_offset=1),
        "sd2": lambda: DDIMScheduler(**BETAS, prediction_type="v_prediction", steps_offset=1),
        "turbo": lambda: EulerDiscreteScheduler(**BETAS, timestep_spacing="trailing"),
        "lcm": lambda: LCMScheduler(**BETAS),
    }[kind]()
    options = {"time_cond_proj_dim": 8} if kind == "lcm" else {}
    if kind == "sd2":
        options = {"use_linear_projection": True, "attention_head_dim": (2, 4)}
    return {
        "_class_name": "StableDiffusionPipeline",
        **_save(path, unet=unet(**options), vae=vae(), scheduler=scheduler),
        **save_clip(path, "", clip_tokenizer(), projected=False),
        "safety_checker": [None, None],
    }


def _sdxl(path, kind):
    tokenizer = clip_tokenizer()
    network = unet(
        cross_attention_dim=2 * WIDTH,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=8 + 6 * 4,
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
    )
    scheduler = EulerDiscreteScheduler(**BETAS, timestep_spacing="leading", steps_offset=1)
    return {
        "_class_name": "StableDiffusionXLPipeline",
        **_save(path, unet=network, vae=vae(scaling_factor=0.13025), scheduler=scheduler),
        **save_clip(path, "", tokenizer, projected=False),
        **save_clip(path, "_2", tokenizer, projected=True),
    }


def _flow_vae():
    return vae(latent_channels=4, scaling_factor=1.5305, shift_factor=0.0609)


def _sd3(path, kind):
    tokenizer = clip_tokenizer()
    network = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=16,
        pooled_projection_dim=2 * 8,
        pos_embed_max_size=12,
    )
    return {
        "_class_name": "StableDiffusion3Pipeline",
        **_save(
            path,
            transformer=network,
            vae=_flow_vae(),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        ),
        **save_clip(path, "", tokenizer, projected=True),
        **save_clip(path, "_2", tokenizer, projected=True),
        **save_t5(path, "_3"),
    }


def _flux(path, kind):
    network = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=2 * WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(2, 2, 4),
    )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    return {
        "_class_name": "FluxPipeline",
        **_save(path, transformer=network, vae=_flow_vae(), scheduler=scheduler),
        **save_clip(path, "", clip_tokenizer(), projected=False),
        **save_t5(path, "_2"),
    }
