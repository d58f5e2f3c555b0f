"""From a folder, a file or a pulled repository to a `Backbone`: one loading path for all kinds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from doodl.backbones.backbone import Backbone
from doodl.backbones.components import (
    check_pipeline_configs,
    component_class,
    load_component,
    load_tokenizer,
)
from doodl.backbones.process import noise_process
from doodl.backbones.single_file import load_file
from doodl.backbones.text import TextEncoders, t5_tokens
from doodl.errors import ModelError
from doodl.models.configs import read_config
from doodl.models.hub import find_model
from doodl.models.revisions import folder_revision

_ENCODERS = {"sd": 1, "sdxl": 2, "sd3": 3, "flux": 2}
_SDXL_SIZES = 6
_KIND_OF_TRANSFORMER = {"SD3Transformer2DModel": "sd3", "FluxTransformer2DModel": "flux"}


def load_backbone(
    source: str | Path,
    *,
    name: str | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    vae_tiling: bool = False,
) -> Backbone:
    """Load a latent diffusion model of a known kind, frozen.

    Args:
        source: a diffusers pipeline folder; a single safetensors file of SD 1, SD 2 or SDXL; a
            name of `doodl.models.hub.KNOWN`; or a hub id, as `owner/name` or `owner/name@revision`.
            Nothing is downloaded: names and ids must have been pulled.
        device: `meta` loads no weights, only shapes.
        dtype: what the networks run in; the latents stay float32, and so does an autoencoder that
            overflows in half precision.
        vae_tiling: encode and decode frames larger than the autoencoder's own in tiles.
    Raises: ModelError if a part is absent, of an unknown class, not whole or not in safetensors,
        or if the configs ask for what this version does not know.
    """
    path, device = find_model(str(source)), torch.device(device)
    parts = (load_file if path.is_file() else _load_folder)(path, dtype, device)
    process = noise_process(parts["scheduler"], parts["kind"])
    _check_fit(path, parts)
    if vae_tiling and hasattr(parts["vae"], "enable_tiling"):
        parts["vae"].enable_tiling()
    unet_config = parts["unet"].config
    few_step_flux = parts["kind"] == "flux" and not unet_config.guidance_embeds
    vae_dtype = torch.float32 if parts["upcast_vae"] else dtype
    return Backbone(
        kind=parts["kind"],
        unet=parts["unet"].to(device),
        vae=parts["vae"].to(device),
        text=TextEncoders(
            kind=parts["kind"],
            encoders=parts["encoders"],
            tokenizers=parts["tokenizers"],
            device=device,
            dtype=dtype,
            zero_empty=parts["zero_empty"],
            t5_width=int(getattr(unet_config, "joint_attention_dim", None) or 0),
            t5_tokens=t5_tokens(parts["kind"], few_step_flux=few_step_flux),
        ),
        process=process,
        device=device,
        dtype=dtype,
        vae_dtype=vae_dtype,
        # A pulled model's folder is named after its commit, which says little.
        name=name or (path.name if Path(source).exists() else str(source)),
        revision=folder_revision(path),
    )


def _load_folder(folder: Path, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Return the parts of a diffusers pipeline folder, and what its configs say of them."""
    check_pipeline_configs(folder)
    index = read_config(folder / "model_index.json")
    kind, network = _kind_of(folder, index)
    scheduler = read_config(folder / "scheduler" / "scheduler_config.json")
    noise_process(scheduler, kind)  # before gigabytes are read in vain
    # Older configs leave the flag out and mean an autoencoder that half precision suits.
    upcast_vae = bool(read_config(folder / "vae" / "config.json").get("force_upcast", False))
    upcast_vae = upcast_vae and dtype in (torch.float16, torch.bfloat16)

    def load(part: str, dtype: torch.dtype = dtype) -> Any:
        class_name = component_class(folder, index, part)
        if class_name is None:
            if part == "text_encoder_3":
                return None
            raise ModelError(f"{folder.name}: its model_index.json names no {part}.")
        return load_component(folder, part, class_name, dtype, device)

    numbers = ["", "_2", "_3"][: _ENCODERS[kind]]
    encoders = tuple(load(f"text_encoder{number}") for number in numbers)
    tokenizers = tuple(
        load_tokenizer(folder / f"tokenizer{number}") if encoder is not None else None
        for number, encoder in zip(numbers, encoders, strict=True)
    )
    return {
        "kind": kind,
        "scheduler": scheduler,
        "unet": load(network),
        "vae": load("vae", torch.float32 if upcast_vae else dtype),
        "encoders": encoders,
        "tokenizers": tokenizers,
        "upcast_vae": upcast_vae,
        "zero_empty": bool(index.get("force_zeros_for_empty_prompt")),
    }


def _kind_of(folder: Path, index: dict[str, Any]) -> tuple[str, str]:
    """Return (kind, name of the network's component). Raises: ModelError for the SDXL refiner."""
    network = component_class(folder, index, "transformer")
    if network is not None:
        if network not in _KIND_OF_TRANSFORMER:
            raise ModelError(f"{folder.name}: its transformer is a {network}.")
        return _KIND_OF_TRANSFORMER[network], "transformer"
    component_class(folder, index, "unet")
    two = component_class(folder, index, "text_encoder_2") is not None
    one = component_class(folder, index, "text_encoder") is not None
    if index.get("requires_aesthetics_score") or (two and not one):
        raise ModelError(
            f"{folder.name} is an SDXL refiner, which only finishes what the base model has begun; "
            "take the base model."
        )
    return ("sdxl" if two else "sd"), "unet"


def _check_fit(path: Path, parts: dict[str, Any]) -> None:
    """Raise ModelError if the parts are each sound but not a text-to-image model together."""
    kind, config, vae = parts["kind"], parts["unet"].config, parts["vae"].config
    channels = int(vae.latent_channels) * (4 if kind == "flux" else 1)
    if config.in_channels != channels:
        raise ModelError(
            f"{path.name}: its network takes {config.in_channels} channels and its autoencoder "
            f"makes {channels}; inpainting, editing and upscaling models are not supported."
        )
    if kind in ("sd3", "flux"):
        return
    for option in ("class_embed_type", "num_class_embeds", "encoder_hid_dim_type"):
        if getattr(config, option, None) is not None:
            raise ModelError(f"{path.name}: its UNet has {option}, which is not supported.")
    # "text" pools the states that attention sees anyway; "text_time" needs SDXL's own inputs.
    wanted = ("text_time",) if kind == "sdxl" else (None, "text")
    found = getattr(config, "addition_embed_type", None)
    if found not in wanted:
        raise ModelError(
            f"{path.name}: its UNet's addition_embed_type (={found!r}) must be "
            f"{' or '.join(repr(word) for word in wanted)} for a model with {_ENCODERS[kind]} "
            "text encoders."
        )
    if kind == "sdxl":
        pooled = int(parts["encoders"][1].config.projection_dim)
        sizes = config.projection_class_embeddings_input_dim - pooled
        if sizes != _SDXL_SIZES * config.addition_time_embed_dim:
            raise ModelError(
                f"{path.name}: its UNet takes {sizes / config.addition_time_embed_dim:g} sizes "
                f"beside the text, SDXL's base model {_SDXL_SIZES}; is it the refiner?"
            )
