"""Aesthetic scores: a head on CLIP image embeddings, nominally 1 to 10."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from doodl.errors import ModelError
from doodl.guidance.towers import (
    OPENAI_B16,
    OPENAI_B32,
    OPENAI_L14,
    ImageTower,
    TowerName,
    load_tower,
)
from doodl.models.weights import check_finite, one_line
from doodl.pocket import weights_dir

# The heads as LAION published them. A pickle is opened only if it is one of these, bit for bit.
PINNED_SHA256 = {
    "8ad3923d7ecf019df20ecd2ab5542a3075fbba0278d239c0371345f3d7fcbde0": "LAION v1, ViT-B/16",
    "c7b14cead230694acc7b9447974d3cad78003c72da032e402a303b6c2429e85f": "LAION v1, ViT-B/32",
    "2cd4e60f4f24ae3bcd57b847b13c1f3ba27edc28cc1a7f9ce74ee9f421243cba": "LAION v1, ViT-L/14",
    "21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0": "LAION v2, ViT-L/14",
}

_V2_INDICES = (0, 2, 4, 6, 7)
POCKET_SCORERS = {"pocket": "tower", "pocket-judge": "judge", "pocket-referee": "referee"}

HEADS_FOLDER = "DOODL_HEADS"
"""Environment variable: the folder of the published heads' files."""


class PublishedHead(NamedTuple):
    """A head as it was published: the file's name, its address, and the tower it sits on."""

    file: str
    address: str
    tower: TowerName


_V1 = "https://github.com/LAION-AI/aesthetic-predictor"
_V2 = "https://github.com/christophschuhmann/improved-aesthetic-predictor"
PUBLISHED_HEADS = {
    "laion-v1-b32": PublishedHead("sa_0_4_vit_b_32_linear.pth", _V1, OPENAI_B32),
    "laion-v1-l14": PublishedHead("sa_0_4_vit_l_14_linear.pth", _V1, OPENAI_L14),
    "laion-v2": PublishedHead("sac+logos+ava1-l14-linearMSE.pth", _V2, OPENAI_L14),
}

# The released code's weights .5 and 1.5 over their count: what its ensemble came to.
ENSEMBLES = {"laion-v1": {"laion-v1-l14": 0.25, "laion-v1-b32": 0.75}}


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


def _head_file(path_or_name: str | Path) -> Path:
    name = str(path_or_name)
    if name in POCKET_SCORERS:
        return weights_dir() / POCKET_SCORERS[name] / "aesthetic_head.safetensors"
    if name in PUBLISHED_HEADS:
        head = PUBLISHED_HEADS[name]
        # Where LAION's own code keeps its v1 heads.
        folder = Path(os.environ.get(HEADS_FOLDER) or Path.home() / ".cache" / "emb_reader")
        if not (folder / head.file).is_file():
            raise ModelError(
                f"aesthetic head {name}: {head.file} is not in {folder}; get it from "
                f"{head.address} and put it there, or name its folder in {HEADS_FOLDER}."
            )
        return folder / head.file
    if not Path(name).is_file():
        known = (*POCKET_SCORERS, *PUBLISHED_HEADS)
        raise ModelError(f"aesthetic head {name} is not a file, nor one of {', '.join(known)}.")
    return Path(name)


def load_aesthetic_head(path_or_name: str | Path) -> nn.Module:
    """Load an aesthetic head: embeddings (B, D), L2-normalised -> scores (B,), not clipped.

    Args:
        path_or_name: a name of POCKET_SCORERS or PUBLISHED_HEADS, or a file: LAION v1
            linear (`weight` (1, D), `bias` (1,)), LAION v2 MLP (`layers.N.weight`), in
            .safetensors, or in .pth if it is one of the published heads (pinned sha256).
    Raises: ModelError if the file is absent, not pinned, or of another layout.
    """
    path = _head_file(path_or_name)
    try:
        state = _read_state(path)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{path.name} cannot be read as tensors: {one_line(error)}") from error
    check_finite(path, state)
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


def head_size(head: nn.Module) -> int:
    """Return D, the size of the embeddings that a head of `load_aesthetic_head` takes."""
    first = next(module for module in head.modules() if isinstance(module, nn.Linear))
    return first.in_features


class AestheticScorer(nn.Module):
    """Tower and head in one: images (B, 3, H, W) in [-1, 1] -> scores (B,), about 1..10."""

    def __init__(self, tower: ImageTower, head: nn.Module) -> None:
        super().__init__()
        self.tower, self.head = tower, head

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.tower(images))


class ScorerEnsemble(nn.Module):
    """Scorers under weights that are brought to a sum of 1: images -> scores (B,)."""

    def __init__(self, scorers: Sequence[AestheticScorer], weights: Sequence[float]) -> None:
        super().__init__()
        self.scorers = nn.ModuleList(scorers)
        # The released code divides by their count, so its scores were off by their sum.
        self.weights = tuple(weight / sum(weights) for weight in weights)

    def parts(self) -> list[tuple[AestheticScorer, float]]:
        """Return the scorers, each with its share of the score."""
        return [
            (scorer, weight)
            for scorer, weight in zip(self.scorers, self.weights, strict=True)
            if isinstance(scorer, AestheticScorer)
        ]

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([weight * scorer(images) for scorer, weight in self.parts()]).sum(0)


def load_scorer(
    name: str,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> AestheticScorer | ScorerEnsemble:
    """Load a scorer by name, or a head by file together with its tower.

    Args:
        name: one of SCORER_NAMES (`laion-v1` is both v1 heads, weighted), the path of a head, or
            TOWER@PATH with an open_clip folder or model name (NAME:TAG) for TOWER. Without it a
            head's tower is guessed: by its sha256, then by its size.
    Raises: ModelError if a part is absent or the two do not fit.
    """
    if name in ENSEMBLES:
        parts = ENSEMBLES[name]
        scorers = [_load_one(part, device, dtype) for part in parts]
        return ScorerEnsemble(scorers, list(parts.values()))
    return _load_one(name, device, dtype)


def _load_one(name: str, device: str | torch.device, dtype: torch.dtype) -> AestheticScorer:
    tower_name, _, path = name.rpartition("@")
    head = load_aesthetic_head(path)
    tower = load_tower(
        _named_tower(tower_name) if tower_name else _tower_of(path, head),
        device=device,
        dtype=dtype,
    )
    given, wanted = tower.embedding_size, head_size(head)
    if given != wanted:
        raise ModelError(
            f"aesthetic head {path} takes embeddings of {wanted}, its tower {tower.name} gives "
            f"{given}; write TOWER@{path} with the tower it was trained on."
        )
    return AestheticScorer(tower, head.to(device)).eval()


def _named_tower(text: str) -> Path | TowerName:
    model, _, tag = text.partition(":")
    return TowerName(model, tag) if tag else Path(text)


def _tower_of(path: str, head: nn.Module) -> Path | TowerName:
    """Return the tower that a head was trained on, as far as its name, file and size tell."""
    if path in POCKET_SCORERS:
        return weights_dir() / POCKET_SCORERS[path]
    if path in PUBLISHED_HEADS:
        return PUBLISHED_HEADS[path].tower
    beside = Path(path).parent
    if (beside / "open_clip_config.json").is_file():
        return beside
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    if "B/16" in PINNED_SHA256.get(digest, ""):
        return OPENAI_B16
    sizes = {512: OPENAI_B32, 768: OPENAI_L14}
    if head_size(head) not in sizes:
        raise ModelError(
            f"aesthetic head {path} takes embeddings of {head_size(head)}, and nothing says of "
            f"which tower; write TOWER@{path}, TOWER an open_clip folder or NAME:TAG."
        )
    return sizes[head_size(head)]
