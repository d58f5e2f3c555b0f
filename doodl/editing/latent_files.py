"""An inverted photo's noise pair as a file: safetensors with what made it, no pickle."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from doodl.errors import LatentsError
from doodl.recipes.config import SAMPLERS, SamplerConfig

FORMAT = "doodl-latents/1"
FORMAT_2 = "doodl-latents/2"
"""As 1, and says which sampler: a reader that knows EDICT alone must not take another's pair."""
MAX_FILE_BYTES = 256 * 2**20
_MAX_HEADER_BYTES = 2**20
_MAX_PROMPT_CHARS = 10_000
_MAX_SIDE_PX = 16_384
_MAX_FRAME_PIXELS = 4096 * 2048  # four times what a 1024 px model makes of a 4:1 panorama


@dataclass(frozen=True, eq=False)
class LatentPair:
    """The noise of one photo, and all that brings the photo back from it.

    Attributes:
        x, y: x_T and y_T, (C, h, w) float32; O-BELM's z_T and z_{T-1}.
        model, model_revision: the diffusion model's name and revision.
        num_inference_steps, depth, mix_weight, guidance_scale: the sampler's.
        prompt: what the denoiser was told.
        width_px, height_px: of the model's frame.
        sampler: edict | belm.
    """

    x: Tensor
    y: Tensor
    model: str
    model_revision: str
    num_inference_steps: int
    depth: float
    mix_weight: float
    guidance_scale: float
    prompt: str
    width_px: int
    height_px: int
    sampler: str = "edict"

    @property
    def sampler_config(self) -> SamplerConfig:
        """The sampler that brings the photo back."""
        return SamplerConfig(
            num_inference_steps=self.num_inference_steps,
            depth=self.depth,
            mix_weight=self.mix_weight,
            guidance_scale=self.guidance_scale,
            kind=self.sampler,
        )


_TOLD: dict[str, type] = {
    "model": str,
    "model_revision": str,
    "num_inference_steps": int,
    "depth": float,
    "mix_weight": float,
    "guidance_scale": float,
    "prompt": str,
    "width_px": int,
    "height_px": int,
}


def latents_to_bytes(pair: LatentPair) -> bytes:
    """Return the pair as a safetensors file: x_T, y_T, and the rest as JSON in its metadata."""
    tensors = {
        name: half.detach().to("cpu", torch.float32).contiguous()
        for name, half in (("x_T", pair.x), ("y_T", pair.y))
    }
    told = {name: getattr(pair, name) for name in _TOLD}
    form = FORMAT
    if pair.sampler != "edict":
        form, told["sampler"] = FORMAT_2, pair.sampler
    return save(tensors, {"format": form, "inversion": json.dumps(told)})


def latents_from_bytes(data: bytes) -> LatentPair:
    """Return the pair of `latents_to_bytes`, every part of it checked: files come from anywhere.

    Raises: LatentsError naming what is wrong.
    """
    if len(data) > MAX_FILE_BYTES:
        raise LatentsError(
            f"the file has {len(data):,} bytes; at most {MAX_FILE_BYTES:,} are read."
        )
    told = _told(_metadata(data))
    try:
        tensors = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise LatentsError(f"the file cannot be read as safetensors: {error}.") from error
    if sorted(tensors) != ["x_T", "y_T"]:
        raise LatentsError(f"the file holds {', '.join(sorted(tensors)[:8])}; want x_T and y_T.")
    x, y = tensors["x_T"], tensors["y_T"]
    if x.ndim != 3 or x.shape != y.shape or {x.dtype, y.dtype} != {torch.float32}:
        raise LatentsError(
            f"x_T is {tuple(x.shape)} {x.dtype} and y_T {tuple(y.shape)} {y.dtype}; "
            "want two float32 of one shape (C, h, w)."
        )
    if not (x.isfinite().all() and y.isfinite().all()):
        raise LatentsError("the latents hold values that are not finite.")
    return LatentPair(x, y, **told)


def _metadata(data: bytes) -> dict[str, Any]:
    """Return the metadata of safetensors bytes; `safetensors.torch.load` does not tell it."""
    try:
        (length,) = struct.unpack("<Q", data[:8])
        if length > _MAX_HEADER_BYTES:
            raise ValueError(f"its header has {length:,} bytes")
        metadata = json.loads(data[8 : 8 + length])["__metadata__"]
        if metadata["format"] not in (FORMAT, FORMAT_2):
            raise ValueError(f"its format is {metadata['format']!r}, not {FORMAT} or {FORMAT_2}")
        told = json.loads(metadata["inversion"])
        if not isinstance(told, dict):
            raise TypeError("its inversion is no JSON object")
        if metadata["format"] == FORMAT:
            told["sampler"] = "edict"
    except (struct.error, ValueError, KeyError, TypeError, RecursionError) as error:
        raise LatentsError(f"the file is no latents file of doodl-batch ({error}).") from error
    return told


def _told(values: dict[str, Any]) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for name, kind in _TOLD.items():
        value = values.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and kind is float:
            value = float(value)
        if type(value) is not kind:
            raise LatentsError(f"{name} (={value!r}) of the file must be of type {kind.__name__}.")
        told[name] = value
    told["sampler"] = values.get("sampler")
    if told["sampler"] not in SAMPLERS:
        raise LatentsError(
            f"sampler (={told['sampler']!r}) of the file must be {' or '.join(SAMPLERS)}."
        )
    bounds: dict[str, tuple[float, float]] = {
        "num_inference_steps": (1, 10_000),
        "depth": (1e-6, 1),
        "mix_weight": (1e-6, 1),
        "guidance_scale": (0, 1000),
        "width_px": (1, _MAX_SIDE_PX),
        "height_px": (1, _MAX_SIDE_PX),
    }
    for name, (low, high) in bounds.items():
        if not low <= told[name] <= high:  # false for NaN too
            raise LatentsError(f"{name} (={told[name]}) of the file must be in {low}..{high}.")
    if told["width_px"] * told["height_px"] > _MAX_FRAME_PIXELS:
        raise LatentsError(
            f"the file's frame of {told['width_px']}x{told['height_px']} px is too large; "
            f"at most {_MAX_FRAME_PIXELS:,} pixels are made."
        )
    if len(told["prompt"]) > _MAX_PROMPT_CHARS:
        raise LatentsError(f"the file's prompt has {len(told['prompt']):,} characters.")
    return told
