"""A whole model in one safetensors file, in the layout of the original latent diffusion code."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from doodl.backbones.clip_tokenizer import clip_tokenizer
from doodl.backbones.components import load_tokenizer
from doodl.backbones.process import noise_process
from doodl.backbones.published import PUBLISHED
from doodl.errors import ModelError
from doodl.models.configs import read_config
from doodl.models.weights import check_finite, load_tensors, one_line

_UNET = "model.diffusion_model."
_FIRST = f"{_UNET}input_blocks.0.0.weight"
_VAE = "first_stage_model."
# (part, class, prefix in the file, whether in open_clip's layout)
_TEXT = {
    "sd1": [("text_encoder", "CLIPTextModel", "cond_stage_model.transformer.", False)],
    "sd2": [("text_encoder", "CLIPTextModel", "cond_stage_model.model.", True)],
    "sdxl": [
        ("text_encoder", "CLIPTextModel", "conditioner.embedders.0.transformer.", False),
        ("text_encoder_2", "CLIPTextModelWithProjection", "conditioner.embedders.1.model.", True),
    ],
}


def load_file(path: Path, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Return the parts of a single file, and what is known of them.

    The file holds no configs. They are the published ones of its kind, unless a folder beside it,
    named as the file without its suffix, has others: `unet/config.json` and so on, as in a
    diffusers folder. Whether an SD 2 file predicts epsilon or v cannot be told from its weights:
    `scheduler/scheduler_config.json` in that folder says it, or a `.yaml` of the same name
    beside the file, as its publishers hand out.
    Raises: ModelError if the file is not a whole model of a kind we know.
    """
    names, in_channels = _names(path)
    kind = _kind_of(path, names)
    if in_channels not in (None, 4) and not (path.with_suffix("") / "unet").is_dir():
        raise ModelError(
            f"{path.name}: its network takes {in_channels} channels; inpainting and editing models "
            "are not supported."
        )
    configs = _configs(path, kind)
    configs["scheduler"] = _scheduler(path, kind, names, configs["scheduler"])
    noise_process(configs["scheduler"], "sd")  # before gigabytes are read in vain
    upcast_vae = bool(configs["vae"].get("force_upcast"))
    upcast_vae = upcast_vae and dtype in (torch.float16, torch.bfloat16)
    vae_dtype = torch.float32 if upcast_vae else dtype
    empty = device.type == "meta"
    return {
        "kind": "sdxl" if kind == "sdxl" else "sd",
        "scheduler": configs["scheduler"],
        "unet": _diffusers_part(path, "UNet2DConditionModel", configs["unet"], _UNET, dtype, empty),
        "vae": _diffusers_part(path, "AutoencoderKL", configs["vae"], _VAE, vae_dtype, empty),
        "encoders": tuple(
            _text_encoder(path, class_name, configs[part], prefix, open_clip, dtype, empty)
            for part, class_name, prefix, open_clip in _TEXT[kind]
        ),
        "tokenizers": tuple(
            _tokenizer(path, part, open_clip) for part, _, _, open_clip in _TEXT[kind]
        ),
        "upcast_vae": upcast_vae,
        "zero_empty": kind == "sdxl",
    }


def _names(path: Path) -> tuple[set[str], int | None]:
    """Return the names of the file's tensors, and how many channels its network takes."""
    try:
        with safe_open(path, "pt") as tensors:
            names = set(tensors.keys())
            first = tensors.get_slice(_FIRST).get_shape() if _FIRST in names else None
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} cannot be read as safetensors: {error}") from error
    return names, None if first is None else int(first[1])


def _kind_of(path: Path, names: set[str]) -> str:
    starts = {name[: len(prefix)] for prefix in _prefixes() for name in names}

    def has(prefix: str) -> bool:
        return prefix in starts

    if has("conditioner.embedders.0.model."):
        raise ModelError(f"{path.name} is an SDXL refiner; take the base model.")
    if any(name.startswith((f"{_UNET}joint_blocks.", f"{_UNET}double_blocks.")) for name in names):
        raise ModelError(
            f"{path.name} is an SD 3 or FLUX file, which lacks its tokenizers; take the diffusers "
            "folder of the model."
        )
    if has(_UNET) and has(_VAE):
        for kind, towers in reversed(_TEXT.items()):
            if all(has(prefix) for _, _, prefix, _ in towers):
                return kind
    raise ModelError(
        f"{path.name} is not a whole SD 1, SD 2 or SDXL model: it needs a network, an autoencoder "
        "and text encoders under the names of the original code."
    )


def _prefixes() -> list[str]:
    return [
        _UNET,
        _VAE,
        "conditioner.embedders.0.model.",
        *(prefix for towers in _TEXT.values() for _, _, prefix, _ in towers),
    ]


def _configs(path: Path, kind: str) -> dict[str, dict[str, Any]]:
    folder = path.with_suffix("")
    configs = dict(PUBLISHED[kind])
    for part in configs:
        name = "scheduler_config.json" if part == "scheduler" else "config.json"
        if (folder / part / name).is_file():
            configs[part] = read_config(folder / part / name)
    return configs


def _scheduler(path: Path, kind: str, names: set[str], config: dict[str, Any]) -> dict[str, Any]:
    if (path.with_suffix("") / "scheduler").is_dir():
        return config
    if "ztsnr" in names:
        raise ModelError(f"{path.name} was trained to zero signal, which is not supported.")
    if "v_pred" in names:
        return {**config, "prediction_type": "v_prediction"}
    if kind != "sd2":
        return config
    try:
        text = path.with_suffix(".yaml").read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(
            f"{path.name}: whether an SD 2 model predicts epsilon or v cannot be told from its "
            f"weights; put its {path.stem}.yaml beside it."
        ) from error
    velocity = re.search(r"""^\s*parameterization\s*:\s*["']?v["']?\s*$""", text, re.MULTILINE)
    return {**config, "prediction_type": "v_prediction" if velocity else "epsilon"}


def _tensors(path: Path, prefix: str) -> dict[str, Tensor]:
    with safe_open(path, "pt") as tensors:
        return {n: tensors.get_tensor(n) for n in tensors.keys() if n.startswith(prefix)}  # noqa: SIM118


def _diffusers_part(
    path: Path,
    class_name: str,
    config: dict[str, Any],
    prefix: str,
    dtype: torch.dtype,
    empty: bool,
) -> Any:
    from diffusers.loaders import single_file_utils

    convert = {
        _UNET: single_file_utils.convert_ldm_unet_checkpoint,
        _VAE: single_file_utils.convert_ldm_vae_checkpoint,
    }[prefix]
    try:
        with torch.device("meta"):
            model = getattr(importlib.import_module("diffusers"), class_name).from_config(config)
        model.eval().requires_grad_(False)
        if empty:
            return torch.nn.Module.to(model, dtype)
        converted = convert(checkpoint=_tensors(path, prefix), config=dict(model.config))
        load_tensors(model, _cast(converted, dtype), "its part", assign=True)
    except (
        OSError,
        SafetensorError,
        KeyError,
        ValueError,
        TypeError,
        AttributeError,
        RuntimeError,
        ModelError,
    ) as error:
        raise ModelError(_misfit(path, prefix, error)) from error
    check_finite(path, model.state_dict())
    return model.requires_grad_(False)


def _text_encoder(
    path: Path,
    class_name: str,
    config: dict[str, Any],
    prefix: str,
    open_clip: bool,
    dtype: torch.dtype,
    empty: bool,
) -> Any:
    transformers = importlib.import_module("transformers")
    try:
        settings = transformers.CLIPTextConfig(**config)
        with torch.device("meta" if empty else "cpu"):
            model = getattr(transformers, class_name)(settings).to(dtype)
        model.eval().requires_grad_(False)
        if empty:
            return model
        own = model.state_dict()
        wrapped = any(name.startswith("text_model.") for name in own)
        tensors = {n.removeprefix(prefix): t for n, t in _tensors(path, prefix).items()}
        if open_clip:
            tensors = from_open_clip(tensors)
        if not wrapped:  # since transformers 5.6 the model without projection has no inner one
            tensors = {n.removeprefix("text_model."): t for n, t in tensors.items()}
        # The file may hold more: a logit scale, places, a last layer that the model leaves out.
        kept = {name: tensor for name, tensor in tensors.items() if name in own}
        load_tensors(model, _cast(kept, dtype), "its part")
    except (
        OSError,
        SafetensorError,
        KeyError,
        ValueError,
        TypeError,
        AttributeError,
        RuntimeError,
        ModelError,
    ) as error:
        raise ModelError(_misfit(path, prefix, error)) from error
    check_finite(path, model.state_dict())
    return model


def from_open_clip(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return an open_clip text tower's tensors under the names of transformers' CLIP."""
    names = {
        "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
        "positional_embedding": "text_model.embeddings.position_embedding.weight",
        "ln_final.weight": "text_model.final_layer_norm.weight",
        "ln_final.bias": "text_model.final_layer_norm.bias",
    }
    inner = {
        "ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2", "attn.out_proj": "self_attn.out_proj",
    }  # fmt: skip
    renamed = {}
    for name, tensor in tensors.items():
        block = re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+)[._](weight|bias)", name)
        if name in names:
            renamed[names[name]] = tensor
        elif name == "text_projection":  # applied from the right there, from the left here
            renamed["text_projection.weight"] = tensor.T.contiguous()
        elif block:
            number, layer, kind = block.groups()
            target = f"text_model.encoder.layers.{number}"
            if layer == "attn.in_proj":
                for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                    renamed[f"{target}.self_attn.{part}_proj.{kind}"] = piece.clone()
            elif layer in inner:
                renamed[f"{target}.{inner[layer]}.{kind}"] = tensor
    return renamed


def _cast(tensors: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {n: t.to(dtype) if t.is_floating_point() else t for n, t in tensors.items()}


def _misfit(path: Path, prefix: str, error: Exception) -> str:
    return (
        f"{path.name}: what it has under {prefix} does not fit its kind's configs "
        f"({one_line(error)}). If "
        f"it is a variant, put its configs in a folder {path.stem}/ beside it."
    )


def _tokenizer(path: Path, part: str, open_clip: bool) -> Any:
    folder = path.with_suffix("") / part.replace("text_encoder", "tokenizer")
    if folder.is_dir():
        return load_tokenizer(folder)
    return clip_tokenizer("!") if open_clip else clip_tokenizer()
