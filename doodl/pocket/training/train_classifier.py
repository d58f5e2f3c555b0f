"""Train a small classifier of flowers: something for classifier guidance to act on."""

import json
import random
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from doodl.pocket.autoencoder import PatchAutoencoder
from doodl.pocket.training.captions import FLOWERS
from doodl.pocket.training.degrade import TONE, degrade
from doodl.pocket.training.loop import Average, Budget, Checkpointed, LoopReport, autocast, run_loop
from doodl.pocket.training.photos import PhotoSet, center_crops, random_crops

__all__ = ["accuracy", "flowers_of", "save_classifier", "train_classifier"]

ARCHITECTURE = "test_resnet"
IMAGE_SIZE_PX = 64
_MEAN, _STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
_DAMAGED_SHARE = 0.3
_ROUND_TRIP_SHARE = 0.3
_LABEL_SMOOTHING = 0.1


def flowers_of(photos: PhotoSet) -> PhotoSet:
    """The photos whose label is one of FLOWERS."""
    return photos.subset([i for i, label in enumerate(photos.labels) if label in FLOWERS])


def train_classifier(
    photos: PhotoSet,
    work: Path,
    budget: Budget,
    *,
    autoencoder: PatchAutoencoder | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    batch_size: int = 48,
    learning_rate: float = 2.5e-3,
) -> tuple[nn.Module, LoopReport]:
    """A trained classifier of FLOWERS, in their order (float32, eval mode), and its report.

    Args:
        photos: those without a flower's label are left out.
        autoencoder: some batches are round trips through it, because it is decoded images that
            guidance will show the classifier.
    Raises: ValueError if no photo has a flower's label.
    """
    device = torch.device(device)
    torch.manual_seed(seed)
    flowers = flowers_of(photos)
    if not len(flowers):
        raise ValueError(f"no photo is labelled with one of {', '.join(FLOWERS)}")
    kinds = list(FLOWERS)
    classes = torch.tensor([kinds.index(label) for label in flowers.labels])
    network = timm.create_model(ARCHITECTURE, num_classes=len(kinds), drop_rate=0.2)
    network = network.to(device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=0.1)
    average = Average(network)

    def step_fn(step: int, progress: float) -> tuple[Tensor, dict[str, float]]:  # noqa: ARG001
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        rng = random.Random(seed * 1_000_003 + step)
        chosen = torch.randint(len(flowers), (batch_size,), generator=generator)
        image = random_crops(flowers, chosen.tolist(), (128, 128), generator, min_scale=0.5)
        image = image.to(device)
        if rng.random() < _DAMAGED_SHARE:
            severity = torch.rand(batch_size, generator=generator).to(device)
            image = degrade(rng.choice(TONE), image, severity, generator)
        if autoencoder is not None and rng.random() < _ROUND_TRIP_SHARE:
            with torch.no_grad(), autocast(device):
                image = (autoencoder(image * 2 - 1).sample.float() / 2 + 0.5).clamp(0, 1)
        with autocast(device):
            logits = network(prepared(image))
        target = classes[chosen].to(device)
        loss = F.cross_entropy(logits.float(), target, label_smoothing=_LABEL_SMOOTHING)
        return loss, {"accuracy": float((logits.argmax(1) == target).float().mean())}

    parts = {"network": network, "optimizer": optimizer, "average": average}
    report = run_loop(
        step_fn,
        optimizer,
        budget,
        Checkpointed(work / "classifier.pt", parts),
        averages={"network": (average, network)},
        on_cpu=device.type == "cpu",
    )
    average.copy_to(network)
    network = network.to(memory_format=torch.contiguous_format)
    return network.eval().requires_grad_(False), report


def prepared(image: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [0, 1] as the classifier reads them."""
    size = (IMAGE_SIZE_PX, IMAGE_SIZE_PX)
    image = F.interpolate(image, size=size, mode="bilinear", antialias=True, align_corners=False)
    mean, std = (torch.tensor(v, device=image.device).view(1, 3, 1, 1) for v in (_MEAN, _STD))
    return ((image - mean) / std).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def accuracy(network: nn.Module, photos: PhotoSet) -> float | None:
    """Share of the flowers among `photos` that are named rightly; None without flowers."""
    flowers = flowers_of(photos)
    if not len(flowers):
        return None
    device = next(network.parameters()).device
    kinds = list(FLOWERS)
    right = 0
    for start in range(0, len(flowers), 64):
        part = flowers.subset(range(start, min(start + 64, len(flowers))))
        found = network(prepared(center_crops(part, (128, 128)).to(device))).argmax(1)
        right += sum(kinds[int(k)] == label for k, label in zip(found, part.labels, strict=True))
    return round(right / len(flowers), 3)


def save_classifier(network: nn.Module, folder: Path) -> None:
    """Write a timm folder (config.json, model.safetensors), in float16."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architecture": ARCHITECTURE,
        "num_classes": len(FLOWERS),
        "label_names": list(FLOWERS),
        "pretrained_cfg": {
            "input_size": [3, IMAGE_SIZE_PX, IMAGE_SIZE_PX],
            "fixed_input_size": False,
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "crop_mode": "squash",
            "mean": list(_MEAN),
            "std": list(_STD),
            "num_classes": len(FLOWERS),
            "license": "apache-2.0",
        },
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    state = {
        name: (v.detach().half() if v.dtype.is_floating_point else v.detach()).cpu().contiguous()
        for name, v in network.state_dict().items()
    }
    save_file(state, folder / "model.safetensors")
