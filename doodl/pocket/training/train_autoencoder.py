"""Train the pocket autoencoder on random crops."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from doodl.pocket.autoencoder import PatchAutoencoder
from doodl.pocket.training.degrade import DEGRADATIONS, degrade
from doodl.pocket.training.loop import Average, Budget, Checkpointed, LoopReport, autocast, run_loop
from doodl.pocket.training.photos import PhotoSet, center_crops, random_crops

__all__ = ["reconstruction_db", "reconstruction_loss", "train_autoencoder"]

# A tenth of the crops are damaged ones, so that edits downward stay within what it can decode.
_DAMAGES = tuple(name for name in DEGRADATIONS if name not in ("mosaic", "blotchy", "posterised"))


def reconstruction_loss(decoded: Tensor, image: Tensor) -> Tensor:
    """Squared and absolute error, at full and at lower resolutions; images in [-1, 1].

    The coarse terms keep tone and colour exact, which is what an edit of tone needs most.
    """
    error = decoded - image
    loss = 4 * error.square().mean() + 0.3 * error.abs().mean()
    for factor in (2, 4, 8):
        loss = loss + 0.3 * F.avg_pool2d(error, factor).abs().mean()
    return loss


def train_autoencoder(
    photos: PhotoSet,
    work: Path,
    budget: Budget,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    batch_size: int = 24,
    crop_px: int = 96,
    learning_rate: float = 5e-4,
    latent_channels: int = 8,
) -> tuple[PatchAutoencoder, LoopReport]:
    """A trained autoencoder with whitened latents (float32, eval mode) and its report."""
    device = torch.device(device)
    torch.manual_seed(seed)
    network = PatchAutoencoder(latent_channels=latent_channels)
    start = torch.Generator().manual_seed(seed)
    sample = torch.randint(len(photos), (min(512, 4 * len(photos)),), generator=start).tolist()
    crops = random_crops(photos, sample, (64, 64), start) * 2 - 1
    patches = F.pixel_unshuffle(crops, 8).permute(0, 2, 3, 1).reshape(-1, 192)
    network.initialise_from_pca(patches)
    network = network.to(device=device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=1e-3)
    average = Average(network)

    def step_fn(step: int, progress: float) -> tuple[Tensor, dict[str, float]]:  # noqa: ARG001
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        chosen = torch.randint(len(photos), (batch_size,), generator=generator).tolist()
        image = random_crops(photos, chosen, (crop_px, crop_px), generator)
        damaged = max(1, batch_size // 8)
        name = _DAMAGES[int(torch.randint(len(_DAMAGES), (1,), generator=generator))]
        severity = torch.rand(damaged, generator=generator)
        image = torch.cat((degrade(name, image[:damaged], severity, generator), image[damaged:]))
        image = (image * 2 - 1).to(device, memory_format=torch.channels_last)
        with autocast(device):
            latents = network.encode(image).latents
            # A little noise on the latents makes the decoder smooth between codes.
            spread = latents.detach().float().std((0, 2, 3), keepdim=True)
            noise = torch.randn(latents.shape, generator=generator).to(device)
            decoded = network.decode(latents + 0.03 * spread * noise).sample
        loss = reconstruction_loss(decoded.float(), image)
        return loss, {"db": psnr_db(decoded.detach().float(), image)}

    parts = {"network": network, "optimizer": optimizer, "average": average}
    checkpoint = Checkpointed(work / "autoencoder.pt", parts)
    report = run_loop(
        step_fn,
        optimizer,
        budget,
        checkpoint,
        averages={"network": (average, network)},
        on_cpu=device.type == "cpu",
    )
    average.copy_to(network)
    network = network.to(memory_format=torch.contiguous_format).eval().requires_grad_(False)
    _whiten(network, photos, device, start)
    return network, report


@torch.no_grad()
def _whiten(
    network: PatchAutoencoder, photos: PhotoSet, device: torch.device, generator: torch.Generator
) -> None:
    """Store the mean and standard deviation of each latent channel in the network."""
    chosen = torch.randint(len(photos), (min(1024, 4 * len(photos)),), generator=generator)
    network.latent_mean.zero_()
    network.latent_std.fill_(1)
    latents = torch.cat(
        [
            network.encode(
                random_crops(photos, part.tolist(), (128, 128), generator).to(device) * 2 - 1
            ).latents
            for part in chosen.split(32)
        ]
    )
    network.latent_mean.copy_(latents.mean((0, 2, 3), keepdim=True))
    network.latent_std.copy_(latents.std((0, 2, 3), keepdim=True))


def psnr_db(decoded: Tensor, image: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of images in [-1, 1], over the whole batch."""
    return float(-10 * torch.log10((decoded - image).square().mean() / 4))


@torch.no_grad()
def reconstruction_db(network: PatchAutoencoder, photos: PhotoSet, size_px: int = 128) -> float:
    """Mean over photos of the round trip's PSNR in dB, on centred crops rounded to 8 bits."""
    device = next(network.parameters()).device
    values = []
    for start in range(0, len(photos), 32):
        part = photos.subset(range(start, min(start + 32, len(photos))))
        image = center_crops(part, (size_px, size_px)).to(device)
        decoded = (network(image * 2 - 1).sample.clamp(-1, 1) + 1) / 2
        error = ((decoded * 255).round() / 255 - image).square().mean((1, 2, 3))
        values.append(-10 * torch.log10(error.clamp_min(1e-10)))
    return float(torch.cat(values).mean())
