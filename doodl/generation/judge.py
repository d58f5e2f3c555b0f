"""What a network that gave no gradient says of a picture: the guides' check."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from doodl.guidance.guidance import GuideRow
from doodl.guidance.spec import GuideSpec
from doodl.scores import AestheticScorer, load_scorer


class Judge:
    """Measures what the first guide it understands aims at, by its own tower and head.

    Its unit is that guide's: the score (aesthetic), or the cosine to the words (text) or to the
    mean of the subject photos (subject).
    """

    def __init__(self, scorer: AestheticScorer) -> None:
        self.scorer = scorer

    @torch.no_grad()
    def __call__(self, guides: Sequence[GuideSpec], row: GuideRow, image: Tensor) -> float | None:
        """Return the measure of an image (1, 3, H, W) in [-1, 1]; None if no guide has one."""
        tower = self.scorer.tower
        for guide in guides:
            if guide.kind == "aesthetic":
                return float(self.scorer(image))
            if guide.kind == "text":
                aim = tower.embed_texts([guide.value or row.prompt])
            elif guide.kind == "subject" and row.subjects:
                seen = [tower(subject[None].to(image.device)) for subject in row.subjects]
                aim = F.normalize(torch.cat(seen).mean(0, keepdim=True), dim=-1)
            else:
                continue
            return float((tower(image) * aim).sum())
        return None


def load_judge(model: str, *, device: str | torch.device = "cpu") -> Judge | None:
    """Return the judge of a model's pictures: the pocket model has one, others have none yet."""
    if model != "pocket":
        return None
    scorer = load_scorer("pocket-judge", device=device)
    assert isinstance(scorer, AestheticScorer)
    return Judge(scorer)
