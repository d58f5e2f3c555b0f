"""The referee: the scorer that judges the edits, and the check that it can."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from doodl.errors import ModelError
from doodl.evaluation.cases import Source
from doodl.guidance.towers import load_tower
from doodl.images import decode_photo
from doodl.pocket import weights_dir
from doodl.scores import AestheticScorer, load_aesthetic_head


def default_referee() -> Path:
    """Return the folder of the shipped referee. Raises: ModelError if it is not shipped."""
    folder = weights_dir() / "referee"
    if not (folder / "open_clip_config.json").is_file():
        raise ModelError(
            "this installation holds no referee; give the folder of a scorer with --referee "
            "(open_clip_config.json, open_clip_model.safetensors, aesthetic_head.safetensors)."
        )
    return folder


def load_referee(folder: str | Path) -> AestheticScorer:
    """Load a scorer from its folder, the way guide and judge are. Raises: ModelError."""
    folder = Path(folder)
    head = load_aesthetic_head(folder / "aesthetic_head.safetensors")
    return AestheticScorer(load_tower(folder), head).eval()


def check_referee(folder: str, sources: Sequence[Source], limit: int = 96) -> dict[str, Any] | None:
    """Return the referee's own check on these photos, of types it learnt and types it did not.

    How often it ranks the less damaged of two versions of a photo higher, by type of damage. None
    for fewer than two photos, or if the folder is no pocket scorer, whose text tower is needed too.
    """
    from doodl.pocket.scorer import load_scorer
    from doodl.pocket.training.captions import load_tokenizer
    from doodl.pocket.training.measure import measure_scorer
    from doodl.pocket.training.photos import PhotoSet
    from doodl.pocket.training.recipes import RECIPES

    path = Path(folder)
    if len(sources) < 2 or not (path / "tokenizer.json").is_file():
        return None
    photos = [decode_photo(source.read()).pixels for source in sources[:limit]]
    chosen = PhotoSet(
        tuple(torch.from_numpy(p.copy()).permute(2, 0, 1) for p in photos),
        tuple(source.label for source in sources[:limit]),
        tuple(source.name for source in sources[:limit]),
    )
    recipe = RECIPES.get(path.name, RECIPES["referee"])
    measured = measure_scorer(
        load_scorer(path), recipe, chosen, load_tokenizer(path), limit=max(1, len(chosen))
    )
    return {**measured, "left_out": list(recipe.left_out), "recipe": recipe.name}
