"""The classifier guide: images made to look, to a classifier, like one of its classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from doodl.guidance.classes import find_class
from doodl.guidance.crops import CropViews
from doodl.guidance.terms import Assessment, GuideRow
from doodl.guidance.towers import ImageNetwork


class Classifier(ImageNetwork):
    """A frozen image classifier: images (B, 3, H, W) in [-1, 1] -> logits (B, C), float32.

    Attributes:
        labels: class names in the order of the logits; empty where nothing says them. Synonyms
            are separated by commas.
        multi_label: trained with a sigmoid per class, so that classes do not exclude each other.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        name: str,
        size_px: int,
        mean: Sequence[float],
        std: Sequence[float],
        num_classes: int,
        interpolation: str = "bilinear",
        labels: Sequence[str] = (),
        multi_label: bool = False,
    ) -> None:
        super().__init__(size_px, tuple(mean), tuple(std), interpolation)
        self.network = network.eval().requires_grad_(False)
        self.name, self.num_classes = name, num_classes
        self.labels, self.multi_label = tuple(labels), multi_label

    def to_dtype(self, dtype: torch.dtype) -> Classifier:
        """Return the classifier with its network, not its normalisation, in this dtype."""
        self.network.to(dtype)
        return self

    def forward(self, images: Tensor) -> Tensor:
        images = self.prepare(images).to(next(self.network.parameters()).dtype)
        output = self.network(images)
        return (output if isinstance(output, Tensor) else output.logits).float()

    def class_index(self, label: str) -> int:
        """Return the index of a class named by its label, by one of its synonyms, or by number.

        Raises: ValueError naming a few of the classes there are.
        """
        return find_class(self.labels, self.num_classes, label, self.name)


def class_losses(logits: Tensor, classes: Tensor, *, binary: bool) -> Tensor:
    """Return minus the log probability (B,) of each image's class.

    Args:
        logits: (B, C). classes: (B,) int64.
        binary: of the class against its absence (sigmoid), else against the others (softmax).
    """
    if binary:
        return F.softplus(-logits.gather(1, classes[:, None])[:, 0])
    return F.cross_entropy(logits, classes, reduction="none")


@dataclass(frozen=True, eq=False)
class ClassifierGuide:
    """A loaded classifier with the class it looks for: its own, or each row's label."""

    classifier: Classifier
    label: str | None = None
    binary: bool = False

    def bind(self, rows: Sequence[GuideRow], sources: Tensor | None) -> BoundClassifier:
        """Return the guide of these rows. Raises: ValueError on an absent or unknown class."""
        labels = [self.label if self.label is not None else row.label for row in rows]
        if any(label is None for label in labels):
            raise ValueError(
                f"guide classifier:{self.classifier.name} has no class: write "
                f"classifier:{self.classifier.name}/CLASS, or give the rows a label."
            )
        indices = [self.classifier.class_index(str(label)) for label in labels]
        classes = torch.tensor(indices, device=self.classifier.mean.device)
        return BoundClassifier(self.classifier, classes, self.binary)


@dataclass(frozen=True, eq=False)
class BoundClassifier:
    """The classifier term of one batch; classes (B,) int64."""

    classifier: Classifier
    classes: Tensor
    binary: bool

    def loss(self, views: CropViews) -> Tensor:
        """Return the mean cross-entropies (B,) over crops."""
        logits = self.classifier(views.of(self.classifier))
        classes = self.classes.repeat_interleave(len(logits) // len(self.classes))
        return views.mean(class_losses(logits, classes, binary=self.binary))

    def assess(self, images: Tensor) -> Assessment:
        """Return the cross-entropies and the probabilities of the classes (B,)."""
        losses = class_losses(self.classifier(images), self.classes, binary=self.binary)
        return Assessment(losses, torch.exp(-losses))

    def keep(self, places: Sequence[int]) -> BoundClassifier:
        return replace(self, classes=self.classes[list(places)])
