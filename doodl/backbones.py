"""Latent diffusion models from diffusers pipeline folders: one loading path for small and large."""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from doodl.denoiser import PREDICTION_TYPES, NoisePredictor
from doodl.errors import ModelError
from doodl.revisions import folder_revision
from doodl.schedule import Schedule, stable_diffusion_alphas_cumprod

# model_index.json comes from outside: only these classes are ever imported on its word.
_CLASSES = {
    "UNet2DConditionModel": "diffusers",
    "AutoencoderKL": "diffusers",
    "AutoencoderTiny": "diffusers",
    "PatchAutoencoder": "doodl.pocket.autoencoder",
    "CLIPTextModel": "transformers",
}


@dataclass
class Backbone:
    """A loaded latent diffusion model, frozen, on one device.

    Latents are float32 whatever the networks run in; images are (B, 3, H, W) in [-1, 1].
    """

    unet: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any
    alphas_cumprod: Tensor
    prediction_type: str
    device: torch.device
    dtype: torch.dtype
    name: str
    revision: str

    @property
    def latent_channels(self) -> int:
        return int(self.vae.config.latent_channels)

    @property
    def latent_factor(self) -> int:
        """Image pixels to a latent pixel, along one side."""
        factor = getattr(self.vae.config, "downsampling_factor", None)
        if factor is not None:
            return int(factor)
        channels = getattr(self.vae.config, "block_out_channels", None)
        if channels is None:
            channels = self.vae.config.encoder_block_out_channels
        return int(2 ** (len(channels) - 1))

    @property
    def size_multiple(self) -> int:
        """Image sides must be a multiple of this: the autoencoder's factor times the UNet's."""
        levels = len(self.unet.config.block_out_channels)
        return self.latent_factor * 2 ** (levels - 1)

    def schedule(self, num_inference_steps: int, depth: float = 1.0) -> Schedule:
        """Return the DDIM schedule of T steps with the model's own alphas, cut to its `depth`.

        The steps offset is 0, as in DOODL.
        """
        return Schedule.ddim(self.alphas_cumprod, num_inference_steps).part(depth)

    @torch.no_grad()
    def encode(self, image: Tensor) -> Tensor:
        """Return the latents (B, C, h, w) float32 of images: the mode of the posterior."""
        output = self.vae.encode(image.to(self.device, self.dtype))
        latents = output.latent_dist.mode() if hasattr(output, "latent_dist") else output.latents
        return ((latents.float() - self._shift) * self._scale).contiguous()

    def decode(self, latents: Tensor) -> Tensor:
        """Return images (B, 3, H, W), about [-1, 1], not clamped; differentiable in the latents."""
        latents = latents / self._scale + self._shift
        return self.vae.decode(latents.to(self.dtype)).sample.float()

    @property
    def _scale(self) -> float:
        return float(getattr(self.vae.config, "scaling_factor", 1.0) or 1.0)

    @property
    def _shift(self) -> float:
        return float(getattr(self.vae.config, "shift_factor", 0.0) or 0.0)

    @torch.no_grad()
    def embed_prompts(self, prompts: list[str]) -> Tensor:
        """Return the text encoder's last hidden states (B, L, D) for the prompts."""
        tokens = self.tokenizer(
            prompts,
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        embeds = self.text_encoder(tokens.input_ids.to(self.device)).last_hidden_state
        return embeds.to(self.dtype)

    def predictor(
        self, prompts: list[str], *, negative: str = "", guidance_scale: float = 1.0
    ) -> NoisePredictor:
        """Return epsilon(latents, t) under the prompts, with guidance only where it acts."""
        unique = all(prompt == prompts[0] for prompt in prompts)
        embeds = self.embed_prompts(prompts[:1] if unique else prompts)
        guided = guidance_scale != 1.0 and any(prompt != negative for prompt in prompts)
        return NoisePredictor(
            self.unet,
            embeds,
            alphas_cumprod=self.alphas_cumprod,
            prediction_type=self.prediction_type,
            negative_embeds=self.embed_prompts([negative]) if guided else None,
            guidance_scale=guidance_scale if guided else 1.0,
        )


def _component(folder: Path, index: dict[str, Any], name: str, dtype: torch.dtype) -> Any:
    _, class_name = index.get(name) or (None, None)
    if class_name not in _CLASSES:
        raise ModelError(
            f"{folder.name}: {name} is a {class_name}; this version loads "
            f"{', '.join(sorted(_CLASSES))}."
        )
    library = _CLASSES[class_name]
    cls = getattr(importlib.import_module(library), class_name)
    # Without the optional accelerate package, diffusers warns at each load unless told so.
    quiet = {} if library == "transformers" else {"low_cpu_mem_usage": False}
    try:
        model = cls.from_pretrained(
            folder / name, torch_dtype=dtype, use_safetensors=True, local_files_only=True, **quiet
        )
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, SafetensorError) as error:
        raise ModelError(f"{folder / name} cannot be loaded: {error}") from error
    return model.eval().requires_grad_(False)


def _check_scheduler(config: dict[str, Any]) -> None:
    """Raise ModelError if the model was trained on noise that `Schedule` does not describe."""
    kind = str(config.get("_class_name"))
    if "FlowMatch" in kind or config.get("use_flow_sigmas"):
        raise ModelError(f"scheduler {kind}: flow matching models are not supported.")
    for name in ("trained_betas", "rescale_betas_zero_snr"):
        if config.get(name):
            raise ModelError(f"scheduler {kind}: {name} is set, which is not supported.")
    prediction_type = config.get("prediction_type", "epsilon")
    if prediction_type not in PREDICTION_TYPES:
        raise ModelError(
            f"scheduler {kind}: prediction_type (={prediction_type!r}) must be one of "
            f"{', '.join(PREDICTION_TYPES)}."
        )


def _alphas_cumprod(config: dict[str, Any]) -> Tensor:
    num_train = config.get("num_train_timesteps", 1000)
    start, end = config.get("beta_start", 0.00085), config.get("beta_end", 0.012)
    kind = config.get("beta_schedule", "scaled_linear")
    if kind == "scaled_linear":
        return stable_diffusion_alphas_cumprod(num_train, start, end)
    if kind == "linear":
        return torch.cumprod(1 - torch.linspace(start, end, num_train, dtype=torch.float64), 0)
    raise ModelError(f"beta_schedule (={kind!r}) must be scaled_linear or linear.")


def load_backbone(
    folder: str | Path,
    *,
    name: str | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Backbone:
    """Load a diffusers pipeline folder (UNet, VAE, text encoder, tokenizer, scheduler config).

    Args:
        folder: holds model_index.json and one folder per component, weights in safetensors.
        dtype: what the networks run in; the latents stay float32.
    Raises: ModelError if a part is absent, of an unknown class, or not in safetensors, or if
        the scheduler's config asks for what `Schedule` does not know.
    """
    from transformers import AutoTokenizer

    folder = Path(folder)
    try:
        index = json.loads((folder / "model_index.json").read_text())
        scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ModelError(f"{folder} is not a diffusers pipeline folder: {error}") from error
    _check_scheduler(scheduler)
    alphas_cumprod = _alphas_cumprod(scheduler)
    device = torch.device(device)
    unet, vae, text_encoder = (
        _component(folder, index, part, dtype).to(device)
        for part in ("unet", "vae", "text_encoder")
    )
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder / 'tokenizer'} cannot be loaded: {error}") from error
    return Backbone(
        unet=unet,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        alphas_cumprod=alphas_cumprod,
        prediction_type=scheduler.get("prediction_type", "epsilon"),
        device=device,
        dtype=dtype,
        name=name or folder.name,
        revision=folder_revision(folder),
    )
