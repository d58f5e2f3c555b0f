"""Weighted sums of guides: loaded once per worker, bound to each batch of photos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from doodl.guidance.aesthetic import AestheticGuide
from doodl.guidance.classifier import ClassifierGuide
from doodl.guidance.crops import CropViews
from doodl.guidance.networks import load_classifier
from doodl.guidance.pixels import FidelityGuide, SymmetryGuide, load_callable
from doodl.guidance.similarity import SubjectGuide, TextGuide
from doodl.guidance.spec import BCE, POCKET_CLASSIFIER, GuideSpec
from doodl.guidance.terms import Assessment, BoundGuide, Guide, GuideRow
from doodl.guidance.towers import LAION_B32, LAION_G14, LAION_L14, ImageTower, TowerName, load_tower
from doodl.pocket import weights_dir
from doodl.recipes.config import CropConfig
from doodl.scores import AestheticScorer, ScorerEnsemble, load_scorer

__all__ = ["BoundGuidance", "Guidance", "GuideRow", "load_guidance"]

POCKET = "pocket"

SUBJECT_TOWERS = {LAION_B32: 0.5, LAION_L14: 0.25, LAION_G14: 0.25}
"""The ensemble for personalising a Stable Diffusion model, with the paper's weights."""


@dataclass(frozen=True, eq=False)
class Guidance:
    """Guides and their weights, their networks loaded.

    Attributes:
        guides: one per spec.
    """

    specs: tuple[GuideSpec, ...]
    guides: tuple[Guide, ...]

    @classmethod
    def of_scorer(cls, scorer: AestheticScorer | ScorerEnsemble) -> Guidance:
        """Return the guidance by one aesthetic score alone."""
        return cls((GuideSpec("aesthetic"),), (AestheticGuide(scorer),))

    @property
    def scorer(self) -> AestheticScorer | ScorerEnsemble | None:
        """The first aesthetic guide's scorer; None where none guides."""
        scorers = [guide.scorer for guide in self.guides if isinstance(guide, AestheticGuide)]
        return scorers[0] if scorers else None

    def networks(self) -> list[nn.Module]:
        """Return every network that the guides hold."""
        return [
            part
            for guide in self.guides
            for value in vars(guide).values()
            for part in (value if isinstance(value, tuple) else (value,))
            if isinstance(part, nn.Module)
        ]

    def bind(self, rows: Sequence[GuideRow], sources: Tensor | None = None) -> BoundGuidance:
        """Return the guidance of one batch of photos.

        Args:
            rows: one per photo.
            sources: (B, 3, H, W) in [-1, 1], what `fidelity` compares with.
        Raises: ValueError if a row lacks what a guide needs.
        """
        bound = tuple(guide.bind(rows, sources) for guide in self.guides)
        return BoundGuidance(self.specs, bound)


@dataclass(frozen=True, eq=False)
class BoundGuidance:
    """The weighted sum of guides on the photos of one batch, each photo for itself."""

    specs: tuple[GuideSpec, ...]
    guides: tuple[BoundGuide, ...]

    def loss(
        self, images: Tensor, generators: Sequence[torch.Generator], *, crops: CropConfig
    ) -> Tensor:
        """Return what the gradient lowers (B,): the guides' mean losses over crops, weighted.

        Args:
            images: (B, 3, H, W), about [-1, 1]; what lies beyond is clamped, with gradient.
            generators: one per photo; they draw its crops.
        """
        views = CropViews(images, generators, crops)
        return self._sum([guide.loss(views) for guide in self.guides])

    def assess(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return `value` and `values` of images, from one pass through the networks."""
        parts: list[Assessment] = [guide.assess(images) for guide in self.guides]
        values = {spec.name: part.values for spec, part in zip(self.specs, parts, strict=True)}
        return self._sum([part.losses for part in parts]), values

    def value(self, images: Tensor) -> Tensor:
        """Return the weighted loss (B,) of the whole images, without crops; lower is better."""
        return self.assess(images)[0]

    def values(self, images: Tensor) -> dict[str, Tensor]:
        """Return per guide's name (B,), higher is better, in the guide's own unit.

        Aesthetic: the score (its negative under direction down, minus the distance to a target);
        text and subject: the cosine; classifier: the probability; the others: minus the loss.
        """
        return self.assess(images)[1]

    def keep(self, places: Sequence[int]) -> BoundGuidance:
        """Return the guidance of only these photos of the batch."""
        return replace(self, guides=tuple(guide.keep(places) for guide in self.guides))

    def _sum(self, losses: Sequence[Tensor]) -> Tensor:
        terms = [spec.weight * loss.float() for spec, loss in zip(self.specs, losses, strict=True)]
        return torch.stack(terms).sum(0)


def load_guidance(
    specs: Sequence[GuideSpec],
    *,
    model: str,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Guidance:
    """Load the guides' networks, each once.

    Args:
        specs: at least one.
        model: the diffusion model's name; `pocket` has guides of its own, every other is taken
            for one of the Stable Diffusion class (ALGORITHM, section 5).
        dtype: of the networks; losses and scores are float32.
    Raises: ModelError if a network is not to be had; ValueError if a spec makes no sense here.
    """
    if not specs:
        raise ValueError("no guides: name at least one, as in aesthetic=1.")
    loader = _Loader(model == POCKET, torch.device(device), dtype)
    return Guidance(tuple(specs), tuple(loader.guide(spec) for spec in specs))


class _Loader:
    """Loads guides for one model; a tower that two of them use is loaded once."""

    def __init__(self, pocket: bool, device: torch.device, dtype: torch.dtype) -> None:
        self.pocket, self.device, self.dtype = pocket, device, dtype
        self._towers: dict[str, ImageTower] = {}

    def guide(self, spec: GuideSpec) -> Guide:
        match spec.kind:
            case "aesthetic":
                return AestheticGuide(self._scorer(spec.value))
            case "text":
                return TextGuide(self._tower(LAION_G14), spec.value)
            case "subject":
                if self.pocket:
                    return SubjectGuide((self._tower(LAION_G14),), (1.0,))
                towers = tuple(self._tower(name) for name in SUBJECT_TOWERS)
                return SubjectGuide(towers, tuple(SUBJECT_TOWERS.values()))
            case "classifier":
                return self._classifier(spec)
            case "symmetry":
                return SymmetryGuide()
            case "fidelity":
                return FidelityGuide()
            case "callable":
                return load_callable(str(spec.value))
        raise ValueError(f"guide kind {spec.kind!r} cannot be loaded.")

    def _scorer(self, value: str | None) -> AestheticScorer | ScorerEnsemble:
        name = value or (POCKET if self.pocket else "laion-v1")
        scorer = load_scorer(name, device=self.device, dtype=self.dtype)
        if self.pocket and name == POCKET and isinstance(scorer, AestheticScorer):
            self._towers[POCKET] = scorer.tower
        return scorer

    def _tower(self, name: TowerName) -> ImageTower:
        """Return the tower, or the pocket model's own in its place."""
        key = POCKET if self.pocket else name.model
        if key not in self._towers:
            source = weights_dir() / "tower" if self.pocket else name
            self._towers[key] = load_tower(source, device=self.device, dtype=self.dtype)
        return self._towers[key]

    def _classifier(self, spec: GuideSpec) -> ClassifierGuide:
        value = spec.value or (POCKET_CLASSIFIER if self.pocket else None)
        if value is None:
            raise ValueError(
                "guide classifier names no network; write classifier:MODEL or "
                "classifier:MODEL/CLASS."
            )
        bce = value.startswith(f"{BCE}:")
        classifier, label = load_classifier(
            value.removeprefix(f"{BCE}:"), device=self.device, dtype=self.dtype
        )
        return ClassifierGuide(classifier, label, bce or classifier.multi_label)
