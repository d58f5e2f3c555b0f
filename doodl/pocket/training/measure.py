"""Measure trained pocket networks on photos that training never saw."""

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from doodl.pocket.autoencoder import PatchAutoencoder
from doodl.pocket.scorer import Scorer, tokenize
from doodl.pocket.training.captions import FLOWERS
from doodl.pocket.training.degrade import DEGRADATIONS, degrade
from doodl.pocket.training.improve import improve
from doodl.pocket.training.photos import PhotoSet, center_crops
from doodl.pocket.training.recipes import ScorerRecipe

__all__ = ["measure_scorer"]

SEVERITIES = (0.15, 0.3, 0.5, 0.75, 1.0)


@torch.no_grad()
def measure_scorer(
    scorer: Scorer,
    recipe: ScorerRecipe,
    photos: PhotoSet,
    tokenizer: PreTrainedTokenizerFast,
    autoencoder: PatchAutoencoder | None = None,
    *,
    limit: int = 96,
    seed: int = 11,
) -> dict[str, object]:
    """Ranking accuracies per degradation, scores of natural photos, and caption retrieval.

    pairs: how often the less damaged of two versions of a photo (none and five severities, all 15
    pairs) scores higher; mildest: the same for none against severity 0.15 only. Types that the
    scorer was not trained on are counted apart.
    """
    step = max(1, len(photos) // limit)
    part = photos.subset(range(0, len(photos), step)[:limit])
    device = next(scorer.parameters()).device
    image = center_crops(part, (128, 128)).to(device)
    natural = _scores(scorer, image)
    per_type: dict[str, dict[str, float]] = {}
    for name in DEGRADATIONS:
        columns = [natural]
        for severity in SEVERITIES:
            generator = torch.Generator().manual_seed(seed)
            severities = torch.full((len(image),), severity, device=device)
            columns.append(_scores(scorer, degrade(name, image, severities, generator)))
        table = torch.stack(columns, 1)
        pairs = [
            (table[:, i] > table[:, j]).float().mean()
            for i in range(table.shape[1])
            for j in range(i + 1, table.shape[1])
        ]
        per_type[name] = {
            "pairs": round(float(torch.stack(pairs).mean()), 3),
            "mildest": round(float((table[:, 0] > table[:, 1]).float().mean()), 3),
            "score_at_1": round(float(table[:, -1].mean()), 2),
        }

    def mean_of(key: str, names: tuple[str, ...]) -> float | None:
        if not names:
            return None
        return round(sum(per_type[name][key] for name in names) / len(names), 3)

    improved = _scores(scorer, improve(image, torch.ones(len(image), device=device)))
    result: dict[str, object] = {
        "photos": len(part),
        "pairs_trained_types": mean_of("pairs", recipe.degradations),
        "pairs_left_out_types": mean_of("pairs", recipe.left_out),
        "pairs_all_types": mean_of("pairs", tuple(DEGRADATIONS)),
        "mildest_trained_types": mean_of("mildest", recipe.degradations),
        "mildest_all_types": mean_of("mildest", tuple(DEGRADATIONS)),
        "natural_score_mean": round(float(natural.mean()), 2),
        "natural_score_std": round(float(natural.std()), 2),
        "improved_over_natural": round(float((improved > natural).float().mean()), 3),
        "improved_gain": round(float((improved - natural).mean()), 2),
        "per_type": per_type,
    }
    if autoencoder is not None:
        trip = torch.cat(
            [(autoencoder(b * 2 - 1).sample / 2 + 0.5).clamp(0, 1) for b in image.split(32)]
        )
        result["round_trip_change"] = round(float((_scores(scorer, trip) - natural).mean()), 2)
    result["flower_caption_retrieval"] = _retrieval(scorer, photos, tokenizer)
    return result


def _scores(scorer: Scorer, image: Tensor) -> Tensor:
    return torch.cat([scorer.score(batch) for batch in image.split(32)])


def _retrieval(
    scorer: Scorer, photos: PhotoSet, tokenizer: PreTrainedTokenizerFast
) -> float | None:
    """How often the right one of the five flower captions is nearest; None without flowers."""
    kinds = list(FLOWERS)
    rows = [i for i, label in enumerate(photos.labels) if label in kinds]
    if not rows:
        return None
    flowers = photos.subset(rows)
    device = next(scorer.parameters()).device
    texts = [f"a photo of {form}" for kind in kinds for form in FLOWERS[kind]]
    embedded = scorer.embed_text(tokenize(tokenizer, texts).to(device))
    prototypes = embedded.view(len(kinds), 2, -1).mean(1)
    right = 0
    for start in range(0, len(flowers), 64):
        part = flowers.subset(range(start, min(start + 64, len(flowers))))
        nearest = (scorer.embed(center_crops(part, (128, 128)).to(device)) @ prototypes.T).argmax(1)
        right += sum(kinds[int(k)] == label for k, label in zip(nearest, part.labels, strict=True))
    return round(right / len(flowers), 3)
