"""Is a model what it says, whole, and does it work? What `models check` finds out."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from doodl.backbones.backbone import Backbone
from doodl.backbones.components import takes_fp16_files, weight_files
from doodl.backbones.loading import load_backbone
from doodl.errors import ModelError
from doodl.models.hub import COMPONENTS, find_model, missing_parts

_NETWORKS = [part for part in COMPONENTS if part.startswith(("unet", "transf", "vae", "text_"))]
_QUICK_PX = 64
_ROOM = 2.0  # weights in float32, and as much again for what loading and a call take


@dataclass(frozen=True)
class ModelFacts:
    """What was found. loaded: the weights were loaded and run; else their shapes were checked."""

    path: str
    kind: str
    prediction_type: str
    few_steps: bool
    guidance_embedded: bool
    native_px: int
    size_multiple: int
    latent_channels: int
    parameters: int
    file_dtypes: str
    size_bytes: int
    revision: str
    loaded: bool


def check_backbone(source: str | Path) -> ModelFacts:
    """Check a model's files, shapes and, where memory allows, its numbers; hash it all.

    Raises: ModelError saying what is wrong.
    """
    path = find_model(str(source))
    missing = missing_parts(path) if path.is_dir() else []
    if missing:
        raise ModelError(f"{path} is not whole: {', '.join(missing)}. Pull or copy it again.")
    skeleton = load_backbone(path, device="meta")
    _run(skeleton, skeleton.native_px)
    files = _weights(path)
    shapes, dtypes = _headers(files)
    if path.is_dir():
        _check_shapes(path, skeleton)
    parameters = sum(math.prod(shape) for shape in shapes)
    loaded = 4 * parameters * _ROOM < _free_bytes()
    if loaded:
        backbone = load_backbone(path)
        results = _run(backbone, min(_QUICK_PX, backbone.native_px))
        for name, value in zip(("prediction", "decoded image"), results, strict=True):
            if not torch.isfinite(value).all():
                raise ModelError(f"{path}: its {name} is not finite; its weights are damaged.")
    return ModelFacts(
        path=str(path),
        kind=skeleton.kind,
        prediction_type=skeleton.prediction_type,
        few_steps=skeleton.few_steps,
        guidance_embedded=skeleton.guidance_embedded,
        native_px=skeleton.native_px,
        size_multiple=skeleton.size_multiple,
        latent_channels=skeleton.latent_channels,
        parameters=parameters,
        file_dtypes=", ".join(sorted(dtypes)),
        size_bytes=sum(file.stat().st_size for file in files),
        revision=skeleton.revision,
        loaded=loaded,
    )


def _weights(path: Path) -> list[Path]:
    """Return the files that loading in float32 reads."""
    if path.is_file():
        return [path]
    parts = sorted(part for part in path.iterdir() if part.name in _NETWORKS)
    return [
        file
        for part in parts
        for file in weight_files(part, fp16=takes_fp16_files(part, torch.float32))
    ]


def _headers(files: list[Path]) -> tuple[list[list[int]], set[str]]:
    shapes, dtypes = [], set()
    for file in files:
        try:
            with safe_open(file, "pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118  (it is no dictionary)
                    shapes.append(tensors.get_slice(name).get_shape())
                    dtypes.add(str(tensors.get_slice(name).get_dtype()))
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{file} cannot be read: {error}") from error
    return shapes, dtypes


def _check_shapes(path: Path, skeleton: Backbone) -> None:
    """Raise ModelError unless the network's files hold just the tensors its config asks for."""
    part = path / ("unet" if skeleton.kind in ("sd", "sdxl") else "transformer")
    found: dict[str, list[int]] = {}
    for file in weight_files(part, fp16=takes_fp16_files(part, torch.float32)):
        with safe_open(file, "pt") as tensors:
            found |= {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
    for name, tensor in skeleton.unet.state_dict().items():
        if found.get(name) != list(tensor.shape):
            raise ModelError(
                f"{part}: {name} should be {list(tensor.shape)} by its config and is "
                f"{found.get(name, 'absent')}."
            )


@torch.no_grad()
def _run(backbone: Backbone, size_px: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (prediction, decoded image) of one call each; shapes alone on `meta`.

    Raises: ModelError if a shape is not what it has to be.
    """
    side = max(1, size_px // backbone.size_multiple) * backbone.size_multiple
    generator = torch.Generator().manual_seed(0)
    shape = (1, *backbone.latent_shape(side, side))
    latents = torch.randn(shape, generator=generator).to(backbone.device)
    t = backbone.schedule(4).timesteps[0].to(backbone.device)
    prediction = backbone.predictor(["a photo"])(latents, t)
    image = backbone.decode(latents)
    encoded = backbone.encode(image)
    for name, value, want in (
        ("prediction", prediction, shape),
        ("decoded image", image, (1, 3, side, side)),
        ("encoded image", encoded, shape),
    ):
        if tuple(value.shape) != want:
            raise ModelError(
                f"{backbone.name}: its {name} has the shape {tuple(value.shape)}, not {want}."
            )
    return prediction, image


def _free_bytes() -> int:
    """Return the memory that programs can have now; 4 GB where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        fields = dict(line.split(":") for line in lines)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, ValueError, KeyError):
        try:
            return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (ValueError, OSError, AttributeError):
            return 4 * 10**9
