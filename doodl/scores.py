"""Aesthetic scores: a head on CLIP image embeddings, nominally 1 to 10."""

from __future__ import annotations

import hashlib
from itertools import pairwise
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from doodl.errors import ModelError
from doodl.pocket import weights_dir
from doodl.towers import ImageTower, load_tower

# The heads as LAION published them. A pickle is opened only if it is one of these, bit for bit.
PINNED_SHA256 = {
    "8ad3923d7ecf019df20ecd2ab5542a3075fbba0278d239c0371345f3d7fcbde0": "LAION v1, ViT-B/16",
    "c7b14cead230694acc7b9447974d3cad78003c72da032e402a303b6c2429e85f": "LAION v1, ViT-B/32",
    "2cd4e60f4f24ae3bcd57b847b13c1f3ba27edc28cc1a7f9ce74ee9f421243cba": "LAION v1, ViT-L/14",
    "21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0": "LAION v2, ViT-L/14",
}

_V2_INDICES = (0, 2, 4, 6, 7)
POCKET_SCORERS = {"pocket": "tower", "pocket-judge": "judge"}


class LinearHead(nn.Module):
    """LAION v1 and pocket: score = w . e + b. `(B, D) -> (B,)`."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.linear = nn.Linear(weight.shape[1], 1)
        self.linear.load_state_dict({"weight": weight, "bias": bias.reshape(1)})

    def forward(self, embeddings: Tensor) -> Tensor:
        return self.linear(embeddings).squeeze(-1)


class MLPHead(nn.Module):
    """LAION v2: five linear layers without activations between. `(B, D) -> (B,)`.

    The dropout of its training sits between the layers and is the identity in use.
    """

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        layers = []
        for i in _V2_INDICES:
            weight, bias = state[f"layers.{i}.weight"], state[f"layers.{i}.bias"]
            layer = nn.Linear(weight.shape[1], weight.shape[0])
            layer.load_state_dict({"weight": weight, "bias": bias})
            layers.append(layer)
        self.layers = nn.Sequential(*layers)

    def forward(self, embeddings: Tensor) -> Tensor:
        return self.layers(embeddings).squeeze(-1)


def _read_state(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return {key: value.float() for key, value in load_file(path).items()}
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest not in PINNED_SHA256:
        raise ModelError(
            f"{path.name} is a pickle with sha256 {digest[:12]}..., which is none of the pinned "
            f"aesthetic heads ({', '.join(PINNED_SHA256.values())}); convert it to .safetensors."
        )
    state = torch.load(path, map_location="cpu", weights_only=True)
    return {key: value.float() for key, value in state.items()}


def load_aesthetic_head(path_or_name: str | Path) -> nn.Module:
    """Load an aesthetic head: embeddings (B, D), L2-normalised -> scores (B,), not clipped.

    Args:
        path_or_name: `pocket`, `pocket-judge`, or a file: LAION v1 linear (`weight` (1, D),
            `bias` (1,)), LAION v2 MLP (`layers.N.weight`), in .safetensors, or in .pth if it is
            one of the published heads (pinned sha256).
    Raises: ModelError if the file is absent, not pinned, or of another layout.
    """
    if str(path_or_name) in POCKET_SCORERS:
        path = weights_dir() / POCKET_SCORERS[str(path_or_name)] / "aesthetic_head.safetensors"
    else:
        path = Path(path_or_name)
    if not path.is_file():
        raise ModelError(
            f"aesthetic head {path_or_name} is not a file, nor one of {', '.join(POCKET_SCORERS)}."
        )
    try:
        state = _read_state(path)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{path.name} cannot be read as tensors: {error}") from error
    if _is_linear(state):
        head: nn.Module = LinearHead(state["weight"], state["bias"])
    elif _is_mlp(state):
        head = MLPHead(state)
    else:
        shapes = {name: tuple(state[name].shape) for name in sorted(state)[:4]}
        raise ModelError(
            f"{path.name} has tensors {shapes}; want weight (1, D) and bias (1,), "
            "or layers.0/2/4/6/7 whose last is one wide, each with weight and bias."
        )
    return head.eval().requires_grad_(False)


def _is_linear(state: dict[str, Tensor]) -> bool:
    if not {"weight", "bias"} <= state.keys():
        return False
    weight, bias = state["weight"], state["bias"]
    return weight.ndim == 2 and len(weight) == 1 and bias.numel() == 1


def _is_mlp(state: dict[str, Tensor]) -> bool:
    """Return whether the layers are all there and each takes what the one before it gives."""
    names = [f"layers.{i}" for i in _V2_INDICES]
    if not all(f"{name}.{part}" in state for name in names for part in ("weight", "bias")):
        return False
    weights = [state[f"{name}.weight"] for name in names]
    if any(weight.ndim != 2 for weight in weights) or len(weights[-1]) != 1:
        return False
    fed = all(after.shape[1] == len(before) for before, after in pairwise(weights))
    return fed and all(
        state[f"{name}.bias"].shape == weight.shape[:1]
        for name, weight in zip(names, weights, strict=True)
    )


class AestheticScorer(nn.Module):
    """Tower and head in one: images (B, 3, H, W) in [-1, 1] -> scores (B,), about 1..10."""

    def __init__(self, tower: ImageTower, head: nn.Module) -> None:
        super().__init__()
        self.tower, self.head = tower, head

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.tower(images))


def load_scorer(name: str, *, device: str | torch.device = "cpu") -> AestheticScorer:
    """Load one of the shipped scorers: `pocket` (the guide) or `pocket-judge`.

    Raises: ModelError on another name, or if the package's weights are absent.
    """
    if name not in POCKET_SCORERS:
        raise ModelError(f"scorer {name!r} is not shipped; use {' or '.join(POCKET_SCORERS)}.")
    tower = load_tower(weights_dir() / POCKET_SCORERS[name], device=device)
    return AestheticScorer(tower, load_aesthetic_head(name).to(device)).eval()
