"""The pocket autoencoder: 8×8 patches to latents, with all compute at the low resolution."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from torch import Tensor, nn

__all__ = ["PatchAutoencoder"]


class PointDistribution:
    """A posterior without spread, in the interface of diffusers' latent distributions."""

    def __init__(self, latents: Tensor) -> None:
        self.mean = latents

    def mode(self) -> Tensor:
        """The latents themselves."""
        return self.mean

    def sample(self, generator: torch.Generator | None = None) -> Tensor:  # noqa: ARG002
        """The latents themselves: there is no spread to draw from."""
        return self.mean


@dataclass
class EncodedPatches(BaseOutput):
    """What `encode` returns: latents (B, C, H/8, W/8), also as a `latent_dist`."""

    latent_dist: PointDistribution
    latents: Tensor


@dataclass
class DecodedPatches(BaseOutput):
    """What `decode` returns: sample (B, 3, H, W), about [-1, 1], not clamped."""

    sample: Tensor


def _zero(conv: nn.Conv2d) -> None:
    for parameter in conv.parameters():
        nn.init.zeros_(parameter)


class ResidualBlock(nn.Module):
    """x + conv(silu(conv(silu(x)))), the last convolution starting at zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(width, width, 3, padding=1)
        self.conv_out = nn.Conv2d(width, width, 3, padding=1)
        _zero(self.conv_out)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_out(F.silu(self.conv_in(F.silu(x))))


class LinearPlusResidual(nn.Module):
    """A linear map of each patch plus a convolutional correction that starts at zero."""

    def __init__(self, in_channels: int, out_channels: int, width: int, blocks: int) -> None:
        super().__init__()
        self.linear = nn.Conv2d(in_channels, out_channels, 1)
        self.conv_in = nn.Conv2d(in_channels, width, 3, padding=1)
        self.blocks = nn.Sequential(*[ResidualBlock(width) for _ in range(blocks)])
        self.conv_out = nn.Conv2d(width, out_channels, 3, padding=1)
        _zero(self.conv_out)

    def set_linear(self, weight: Tensor, bias: Tensor) -> None:
        """Set the linear map to weight (out, in) and bias (out,)."""
        state = {"weight": weight[:, :, None, None], "bias": bias}
        self.linear.load_state_dict(state)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.conv_out(F.silu(self.blocks(self.conv_in(x))))


class PatchAutoencoder(ModelMixin, ConfigMixin):
    """An autoencoder over 8×8 patches, in the interface of diffusers' autoencoders.

    Latents come out whitened (about zero mean and unit standard deviation per channel), so
    `scaling_factor` is 1. Works for any height and width divisible by `downsampling_factor`.

    Args:
        block_out_channels: no width of ours: diffusers' pipelines take the downsampling factor from
            its length, 2**(length - 1). A config without it, as the shipped one is, gets it here.
    """

    config_name = "config.json"

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        latent_channels: int = 8,
        downsampling_factor: int = 8,
        encoder_width: int = 96,
        encoder_blocks: int = 3,
        decoder_width: int = 128,
        decoder_blocks: int = 5,
        scaling_factor: float = 1.0,  # noqa: ARG002  read by pipelines from the config
        block_out_channels: Sequence[int] = (96, 96, 96, 96),  # noqa: ARG002  likewise
    ) -> None:
        super().__init__()
        patch = in_channels * downsampling_factor**2
        self.encoder = LinearPlusResidual(patch, latent_channels, encoder_width, encoder_blocks)
        self.decoder = LinearPlusResidual(latent_channels, patch, decoder_width, decoder_blocks)
        self.register_buffer("latent_mean", torch.zeros(1, latent_channels, 1, 1))
        self.register_buffer("latent_std", torch.ones(1, latent_channels, 1, 1))

    @property
    def downsampling_factor(self) -> int:
        """How many pixels of the image one latent pixel stands for, along each side."""
        return self.config["downsampling_factor"]

    def encode(self, image: Tensor, return_dict: bool = True) -> EncodedPatches:  # noqa: ARG002
        """Latents (B, latent_channels, H/8, W/8) of an image (B, 3, H, W) in [-1, 1].

        Args:
            return_dict: diffusers' signature; the output can be indexed like a tuple either way.
        Raises: ValueError if H or W is not a multiple of the downsampling factor.
        """
        factor = self.downsampling_factor
        if image.shape[-2] % factor or image.shape[-1] % factor:
            height, width = image.shape[-2:]
            raise ValueError(
                f"image is {height}×{width} px; both sides must be multiples of {factor}: "
                f"pad or crop it first."
            )
        patches = F.pixel_unshuffle(image, factor)
        latents = (self.encoder(patches) - self.latent_mean) / self.latent_std
        return EncodedPatches(latent_dist=PointDistribution(latents), latents=latents)

    def decode(
        self,
        latents: Tensor,
        return_dict: bool = True,  # noqa: ARG002  diffusers' signature
        generator: torch.Generator | None = None,  # noqa: ARG002  diffusers' signature
    ) -> DecodedPatches:
        """The image (B, 3, 8h, 8w) of latents (B, latent_channels, h, w); not clamped."""
        patches = self.decoder(latents * self.latent_std + self.latent_mean)
        return DecodedPatches(sample=F.pixel_shuffle(patches, self.downsampling_factor))

    def forward(self, image: Tensor) -> DecodedPatches:
        """The round trip: decode(encode(image))."""
        return self.decode(self.encode(image).latents)

    @torch.no_grad()
    def initialise_from_pca(self, patches: Tensor) -> None:
        """Set both linear maps to the principal components of `patches` (N, 3·8·8)."""
        patches = patches.double()
        mean = patches.mean(0)
        covariance = (patches - mean).T @ (patches - mean) / len(patches)
        variances, vectors = torch.linalg.eigh(covariance)
        channels = self.config["latent_channels"]
        basis = vectors[:, -channels:].flip(1)
        std = variances[-channels:].flip(0).sqrt()
        # Half-whitened: latents of the same order of size, leading components still larger.
        scale = std.sqrt() * std.mean().sqrt()
        to_latents = (basis / scale).T
        to_patches = basis * scale
        self.encoder.set_linear(to_latents, -(to_latents @ mean))
        self.decoder.set_linear(to_patches, mean)
