"""A small model's tensors under the names of the original latent diffusion code, as single files
have them. Written from that code's own modules, not from the loader's tables."""

from __future__ import annotations

import re

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}


def unet_to_ldm(unet):
    """Return `model.diffusion_model.*` of a diffusers UNet."""
    tensors = {}
    stride = unet.config.layers_per_block + 1
    for name, tensor in unet.state_dict().items():
        stem, _, kind = name.rpartition(".")
        tensors[f"model.diffusion_model.{_unet_stem(unet, stem, stride)}.{kind}"] = tensor
    return tensors


def _unet_stem(unet, stem, stride):
    if stem in UNET_ENDS:
        return UNET_ENDS[stem]
    match = re.fullmatch(
        r"(down_blocks|up_blocks|mid_block)\.(?:(\d+)\.)?(\w+)\.(\d+)\.?(.*)", stem
    )
    side, level, part, number, rest = match.groups()
    number, level = int(number), int(level or 0)
    rest = RESNET[rest] if part == "resnets" else rest
    if side == "mid_block":
        return f"middle_block.{2 * number if part == 'resnets' else 1}.{rest}"
    if part == "downsamplers":
        return f"input_blocks.{(level + 1) * stride}.0.op"
    if part == "upsamplers":
        after = 2 if hasattr(unet.up_blocks[level], "attentions") else 1
        return f"output_blocks.{level * stride + stride - 1}.{after}.conv"
    place = level * stride + number
    blocks = f"input_blocks.{1 + place}" if side == "down_blocks" else f"output_blocks.{place}"
    return f"{blocks}.{0 if part == 'resnets' else 1}.{rest}"


def vae_to_ldm(vae):
    """Return `first_stage_model.*` of a diffusers AutoencoderKL."""
    tensors, levels = {}, len(vae.config.block_out_channels)

    def level(match):
        side, number = match.groups()
        return f"down.{number}" if side == "down" else f"up.{levels - 1 - int(number)}"

    for name, tensor in vae.state_dict().items():
        new = re.sub(r"(down|up)_blocks\.(\d+)", level, name)
        new = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", new)
        new = re.sub(r"\.resnets\.(\d)", r".block.\1", new)
        new = re.sub(r"\.(down|up)samplers\.0\.conv", r".\1sample.conv", new)
        new = new.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
        if "mid_block.attentions.0" in new:
            stem, _, kind = new.replace("mid_block.attentions.0.", "mid.attn_1.").rpartition(".")
            before, _, part = stem.partition("attn_1.")
            new = f"{before}attn_1.{ATTENTION[part]}.{kind}"
            if part != "group_norm" and kind == "weight":
                tensor = tensor[:, :, None, None]  # a 1x1 convolution there
        tensors[f"first_stage_model.{new}"] = tensor
    return tensors
