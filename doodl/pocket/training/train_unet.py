"""Train the pocket denoiser: a UNet over latents, with its text encoder."""

import json
import random
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from doodl.pocket.autoencoder import PatchAutoencoder
from doodl.pocket.scorer import tokenize
from doodl.pocket.training.captions import CONTEXT_LENGTH, caption
from doodl.pocket.training.degrade import DEGRADATIONS, degrade
from doodl.pocket.training.improve import improve
from doodl.pocket.training.loop import Average, Budget, Checkpointed, LoopReport, autocast, run_loop
from doodl.pocket.training.photos import PhotoSet, center_crops, random_crops

__all__ = ["Denoiser", "make_scheduler", "save_pipeline", "train_unet", "validation_loss"]

CAPTION_DROPOUT = 0.15
_SHAPES_PX = ((128, 128), (128, 128), (128, 128), (128, 192), (192, 128), (96, 128))
_DAMAGES = tuple(n for n in DEGRADATIONS if n not in ("mosaic", "blotchy", "posterised"))


class Denoiser(nn.Module):
    """A small diffusers UNet and the transformers text encoder it attends to."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, latent_channels: int = 8) -> None:
        super().__init__()
        width = 128
        self.text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=width,
                intermediate_size=2 * width,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=CONTEXT_LENGTH,
                projection_dim=width,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        self.unet = UNet2DConditionModel(
            sample_size=16,
            in_channels=latent_channels,
            out_channels=latent_channels,
            block_out_channels=(64, 112),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=width,
            attention_head_dim=4,  # the number of heads: diffusers keeps this name for it
            norm_num_groups=16,
            act_fn="silu",
            # The text also reaches every block through the time embedding: attention at 8×8 alone
            # learns in hours, not minutes, that a word means a colour.
            addition_embed_type="text",
            addition_embed_type_num_heads=4,
        )
        # A new connection starts faint, so that it cannot drown the time.
        nn.init.constant_(self.unet.add_embedding.norm2.weight, 0.1)

    def forward(self, latents: Tensor, timesteps: Tensor, tokens: Tensor) -> Tensor:
        """The noise (B, C, h, w) in `latents`, conditioned on token ids (B, 24)."""
        states = self.text_encoder(tokens).last_hidden_state
        return self.unet(latents, timesteps, encoder_hidden_states=states).sample


def warm_start(network: Denoiser, folder: Path) -> None:
    """Give the network the weights saved in a pipeline folder; connections it lacks stay new.

    Raises: ValueError if the folder's networks are of another shape.
    """
    for part, name in (("unet", "diffusion_pytorch_model"), ("text_encoder", "model")):
        target = getattr(network, part)
        saved = load_file(folder / part / f"{name}.safetensors")
        try:
            result = target.load_state_dict(saved, strict=False)
        except RuntimeError as error:
            raise ValueError(f"{folder / part} is of another shape: {error}") from error
        missing = [key for key in result.missing_keys if not key.startswith("add_embedding.")]
        if missing or result.unexpected_keys:
            raise ValueError(
                f"{folder / part} is of another shape: missing {missing}, "
                f"unexpected {result.unexpected_keys}"
            )


def make_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise schedule, as the released DOODL code uses it."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=0,
        set_alpha_to_one=False,
        clip_sample=False,
        timestep_spacing="leading",
        prediction_type="epsilon",
    )


def train_unet(
    photos: PhotoSet,
    autoencoder: PatchAutoencoder,
    tokenizer: PreTrainedTokenizerFast,
    work: Path,
    budget: Budget,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    batch_size: int = 24,
    learning_rate: float = 1.5e-3,
    start_from: Path | None = None,
) -> tuple[Denoiser, LoopReport]:
    """A trained denoiser (float32, averaged weights, eval mode) and its report.

    Args:
        start_from: a pipeline folder whose unet and text encoder the training goes on from, for
            the same autoencoder and tokenizer; None starts from random weights.
    """
    device = torch.device(device)
    torch.manual_seed(seed)
    network = Denoiser(tokenizer, autoencoder.config["latent_channels"])
    if start_from is not None:
        warm_start(network, start_from)
    network = network.to(device).to(memory_format=torch.channels_last)
    autoencoder = autoencoder.to(device)
    alphas_cumprod = make_scheduler().alphas_cumprod.to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=1e-2)
    average = Average(network, decay=0.999)

    def step_fn(step: int, progress: float) -> tuple[Tensor, dict[str, float]]:  # noqa: ARG001
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        rng = random.Random(seed * 1_000_003 + step)
        latents, captions = _batch(photos, autoencoder, batch_size, generator, rng, device)
        tokens = tokenize(tokenizer, captions).to(device)
        # Stratified times: every batch sees the whole range, which calms the loss.
        offsets = torch.rand(batch_size, generator=generator)
        timesteps = ((torch.arange(batch_size) + offsets) * (1000 / batch_size)).long().to(device)
        noise = torch.randn(latents.shape, generator=generator).to(device)
        alpha = alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        with autocast(device):
            noise_pred = network(noisy, timesteps, tokens)
        return F.mse_loss(noise_pred.float(), noise), {}

    parts = {"network": network, "optimizer": optimizer, "average": average}
    checkpoint = Checkpointed(work / "unet.pt", parts)
    report = run_loop(
        step_fn,
        optimizer,
        budget,
        checkpoint,
        averages={"network": (average, network)},
        on_cpu=device.type == "cpu",
    )
    average.copy_to(network)
    network = network.to(memory_format=torch.contiguous_format)
    return network.eval().requires_grad_(False), report


def _batch(
    photos: PhotoSet,
    autoencoder: PatchAutoencoder,
    batch_size: int,
    generator: torch.Generator,
    rng: random.Random,
    device: torch.device,
) -> tuple[Tensor, list[str]]:
    """Latents of one shape and their captions: three fifths as they are, the rest altered."""
    shape = rng.choice(_SHAPES_PX)
    chosen = torch.randint(len(photos), (batch_size,), generator=generator).tolist()
    image = random_crops(photos, chosen, shape, generator).to(device)
    damaged, improved = batch_size // 4, batch_size // 6
    name = rng.choice(_DAMAGES)
    severity = torch.rand(damaged, generator=generator).to(device)
    amount = torch.rand(improved, generator=generator).to(device)
    image = torch.cat(
        (
            degrade(name, image[:damaged], severity, generator),
            improve(image[damaged : damaged + improved], amount),
            image[damaged + improved :],
        )
    )
    captions = []
    for row, index in enumerate(chosen):
        visible = row < damaged and float(severity[row]) > 0.35
        text = caption(photos.labels[index], rng, name if visible else None)
        captions.append("" if rng.random() < CAPTION_DROPOUT else text)
    with torch.no_grad(), autocast(device):
        latents = autoencoder.encode(image * 2 - 1).latents.float()
    return latents, captions


@torch.no_grad()
def validation_loss(
    network: Denoiser,
    photos: PhotoSet,
    autoencoder: PatchAutoencoder,
    tokenizer: PreTrainedTokenizerFast,
    *,
    with_captions: bool = True,
    seed: int = 1,
) -> float:
    """Mean squared error of the predicted noise on unseen photos, over all times."""
    device = next(network.parameters()).device
    alphas_cumprod = make_scheduler().alphas_cumprod.to(device)
    generator = torch.Generator().manual_seed(seed)
    rng = random.Random(seed)
    total, count = 0.0, 0
    for start in range(0, len(photos), 32):
        part = photos.subset(range(start, min(start + 32, len(photos))))
        latents = autoencoder.encode(center_crops(part, (128, 128)).to(device) * 2 - 1).latents
        captions = [caption(label, rng) if with_captions else "" for label in part.labels]
        timesteps = torch.randint(1000, (len(part),), generator=generator).to(device)
        noise = torch.randn(latents.shape, generator=generator).to(device)
        alpha = alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        noise_pred = network(noisy, timesteps, tokenize(tokenizer, captions).to(device))
        total += float((noise_pred - noise).square().mean((1, 2, 3)).sum())
        count += len(part)
    return total / count


def save_pipeline(
    network: Denoiser,
    autoencoder: PatchAutoencoder,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
) -> None:
    """Write a diffusers pipeline folder in float16."""
    folder.mkdir(parents=True, exist_ok=True)
    network.unet.half().save_pretrained(folder / "unet")
    network.text_encoder.half().save_pretrained(folder / "text_encoder")
    autoencoder.half().save_pretrained(folder / "vae")
    for part in (network, autoencoder):
        part.float()
    tokenizer.save_pretrained(str(folder / "tokenizer"))
    make_scheduler().save_pretrained(folder / "scheduler")
    index: dict[str, Any] = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.35.0",
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "image_encoder": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["doodl.pocket.autoencoder", "PatchAutoencoder"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    # diffusers notes where a network was loaded from: a path of the training machine.
    config_path = folder / "vae" / "config.json"
    config = json.loads(config_path.read_text())
    config.pop("_name_or_path", None)
    config_path.write_text(json.dumps(config, indent=2) + "\n")
