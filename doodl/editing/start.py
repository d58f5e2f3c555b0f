"""Where the noise of a photo starts: at the photo, or at the photo with its levels stretched.

A gradient walks a photo back from haze or darkness in small steps, toward what its guide thinks
good at each of them; the same guide ranks two whole photos better than its gradient points. So it
is shown a few stretches of the levels, and the noise that is optimised starts as the inversion of
the one it prefers to the photo, if there is one. Everything else stays: the change is measured
from the photo's own inversion, and reaches the file as every change does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from doodl.backbones import Backbone
from doodl.delivery.mask import keep_protected_view
from doodl.delivery.transfer import TransferFit, apply_transfer
from doodl.delivery.transfer.guide import luminance
from doodl.editing.objective import BUDGET_MARGIN, Aim
from doodl.editing.requests import EditRequest
from doodl.engine.sampling import RoundTrip
from doodl.guidance.guidance import Guidance, GuideRow
from doodl.recipes.config import EditConfig

SHARES = (0.35, 0.7, 1.0)
"""Shares of a stretch that are laid before the guide."""

_CLIPPED = 0.005
"""Share of the values that a stretch clips at either end: specks are not what levels go by."""

_SMALLEST_RANGE = 0.2
"""Of values in [-1, 1]: a flatter photo is not stretched by more than what this range is, ten
times: what it holds beyond is noise."""

_MARGIN = 0.5
"""Points by which the guide must prefer a stretch: good photos are left alone. A stretch pays for
its change by nothing else: it lies on no gradient, so it does not lead the guide astray."""


def stretched_levels(view: Tensor, share: float, *, by_channel: bool) -> Tensor:
    """Return a view with its levels stretched to the full range, mixed with itself.

    Args:
        view: (1, 3, H, W) in [-1, 1].
        share: of the stretched view, in [0, 1].
        by_channel: each colour by its own levels, which also takes a cast out; else all by those
            of the luminance, which leaves colours their proportions.
    """
    values = (view if by_channel else luminance(view)).flatten(2)
    low, high = (
        torch.quantile(values, q, dim=2)[..., None, None] for q in (_CLIPPED, 1 - _CLIPPED)
    )
    scale = 2 / (high - low).clamp_min(_SMALLEST_RANGE)
    return torch.lerp(view, ((view - low) * scale - 1).clamp(-1, 1), share)


@dataclass(frozen=True, eq=False)
class Start:
    """A start that is not the photo itself.

    Attributes:
        view: (1, 3, H, W) in [-1, 1], what was inverted. image: (1, 3, H, W), its noise's decode.
        x, y: its noise, (C, h, w). inversion_error: of its round trip.
    """

    view: Tensor
    image: Tensor
    x: Tensor
    y: Tensor
    inversion_error: float


@dataclass(frozen=True, eq=False)
class WarmStart:
    """The choice of where one photo starts.

    Attributes:
        view: (1, 3, H, W) in [-1, 1], the photo at the model's size.
        protect: (1, 1, H, W), the share of the photo that stays; None: nothing must.
        max_change: what the start may spend of the budget, RMS in [-1, 1] units; None: any.
    """

    guidance: Guidance
    config: EditConfig
    row: GuideRow
    aim: Aim
    view: Tensor
    protect: Tensor | None = None
    max_change: float | None = None

    @classmethod
    def of(
        cls,
        guidance: Guidance,
        config: EditConfig,
        request: EditRequest,
        view: Tensor,
        protect: Tensor | None,
    ) -> WarmStart:
        """Return the choice of a request; `protect` as the attribute."""
        budget = config.max_change
        if budget is not None and request.strength:
            # In [-1, 1] units, of the whole change.
            budget = 2 * BUDGET_MARGIN * budget / request.strength
        return cls(guidance, config, request.row, request.aim, view, protect, budget)

    @torch.no_grad()
    def preferred(self) -> Tensor | None:
        """Return the stretched view (1, 3, H, W) to start from; None: the photo as it is."""
        if not may_start_warm(self.config, self.guidance, self.aim):
            return None
        found = [
            self._kept(stretched_levels(self.view, share, by_channel=by_channel))
            for by_channel in (False, True)
            for share in SHARES
        ]
        losses = self._losses(torch.cat([self.view, *found])).tolist()
        best = min(range(len(losses)), key=losses.__getitem__)
        return found[best - 1] if losses[best] < losses[0] - _MARGIN else None

    @torch.no_grad()
    def is_better(self, delivered: Tensor) -> bool:
        """Return whether the start as it would be delivered, (1, 3, H, W), still is preferred.

        Between the stretched view and the file lie the autoencoder and the transfer's fit.
        """
        as_is, started = self._losses(torch.cat([self.view, self._kept(delivered)])).tolist()
        return bool(started < as_is - _MARGIN)

    def _losses(self, images: Tensor) -> Tensor:
        """Return the guides' loss of images (K,), in points; inf for one beyond the budget."""
        bound = self.guidance.bind([self.row] * len(images), self.view.expand_as(images))
        losses = bound.value(images)
        if self.max_change is not None:
            change = (images.clamp(-1, 1) - self.view).square().mean((1, 2, 3)).sqrt()
            losses = losses.masked_fill(change > self.max_change, float("inf"))
        return losses

    def _kept(self, image: Tensor) -> Tensor:
        return keep_protected_view(self.view, image, self.protect)


def may_start_warm(config: EditConfig, guidance: Guidance, aim: Aim) -> bool:
    """Return whether a photo may start elsewhere than at itself.

    Upward alone, and only where an aesthetic guide acts: levels are no answer to what words, a
    subject or a class ask for.
    """
    aesthetic = any(spec.kind == "aesthetic" for spec in guidance.specs)
    return config.warm_start and aesthetic and aim.direction == "up"


@torch.no_grad()
def warm_starts(
    backbone: Backbone,
    choices: Sequence[WarmStart],
    bases: Tensor,
    grey: Sequence[bool],
    invert: Callable[[Sequence[int], Tensor], RoundTrip],
) -> list[Start | None]:
    """Return where photos of one frame size start; None: at the photo as it is.

    Args:
        bases: (B, 3, H, W), the photos' decoded inversions. grey: whether each has no colour.
        invert: gives the round trip of views (K, 3, H, W) that are of the photos at K places.
    """
    starts: list[Start | None] = [None] * len(choices)
    preferred = [choice.preferred() for choice in choices]
    places = [i for i, start in enumerate(preferred) if start is not None]
    if not places:
        return starts
    stretched = torch.cat([start for start in preferred if start is not None])
    trip = invert(places, stretched)
    images = backbone.decode(trip.x_0)
    fit = TransferFit(
        bases[places],
        grey=[grey[i] for i in places],
        locality=choices[0].config.transfer_locality,
    )
    delivered = apply_transfer(fit.fit(images), torch.cat([choices[i].view for i in places]))
    for k, i in enumerate(places):
        if math.isfinite(trip.errors[k]) and choices[i].is_better(delivered[k : k + 1]):
            starts[i] = Start(
                stretched[k : k + 1], images[k : k + 1], trip.x[k], trip.y[k], trip.errors[k]
            )
    return starts
