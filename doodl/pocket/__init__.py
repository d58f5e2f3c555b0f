"""The pocket model: a small, trained latent diffusion model that ships inside the package."""

from pathlib import Path

__all__ = ["weights_dir"]


def weights_dir() -> Path:
    """The folder of shipped weights: pipeline/, tower/, judge/ and metrics.json."""
    return Path(__file__).resolve().parent / "weights"
