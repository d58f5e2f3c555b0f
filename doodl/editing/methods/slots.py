"""A photo at work, and what every method does with those that share a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from doodl.backbones.denoiser import NoisePredictor
from doodl.editing.objective import EnhanceProblem
from doodl.editing.start import Start
from doodl.engine.sampling import RoundTrip
from doodl.optimise import LatentState


@dataclass(eq=False)
class Slot:
    """One photo at work.

    Attributes:
        place: of its request among all that were given. request: it.
        view: (1, 3, H, W) in [-1, 1], the photo at the model's size.
        base: (1, 3, H, W), what its change is measured from.
        previews: (K, 3, H, W), what each step promises without guidance; None if nobody asks.
        state: its latents and all that a resumed run needs.
        start: where its noise started, if not at the photo as it is.
        inversion_error: of its round trip; None for a method that does not invert.
    """

    place: int
    request: Any
    view: Tensor
    base: Tensor
    state: LatentState
    inversion_error: float | None = None
    previews: Tensor | None = None
    start: Start | None = None

    @property
    def started(self) -> Tensor:
        """The image (1, 3, H, W) of the noise as it started."""
        return self.base if self.start is None else self.start.image


class Way(Protocol):
    """A method at work on photos of one frame size.

    Attributes:
        predictor: of the photos' prompts.
        inverts: whether it goes by way of the noise.
        joins: whether photos at different iterations can share a batch.
    """

    predictor: NoisePredictor
    inverts: bool
    joins: bool

    def begin(self, latents: Tensor) -> tuple[RoundTrip, Tensor | None]:
        """Return where photos of these latents (B, C, h, w) start, and (K, B, 3, H, W) previews."""

    def advance(self, slots: Sequence[Slot], problem: EnhanceProblem) -> None:
        """Take one iteration of all of them; those that are done get their stop_reason."""

    def render(self, slots: Sequence[Slot], problem: EnhanceProblem) -> Tensor:
        """Return the best images (B, 3, H, W) of photos that are done."""
