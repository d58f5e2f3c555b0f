"""The guard: what an edit cost the photo, and whether it is delivered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from doodl.delivery.transfer import TransferFit, apply_transfer
from doodl.editing.objective import Aim
from doodl.editing.requests import EditRequest
from doodl.guidance.guidance import Guidance
from doodl.images import Photo, model_view
from doodl.measures.fidelity import delta_e, psnr_db, ssim
from doodl.optimise import LatentState
from doodl.recipes.config import EditConfig
from doodl.scores import AestheticScorer, ScorerEnsemble

_COLOUR_PX = 256
"""Shorter side at which colours are compared: a reader's view, and grain averages out."""


SHARES = (1.0, 0.5, 0.25)
"""Shares of a change that are tried, the largest first, until guide and judge are both pleased.

The guide alone made the change, and may have gone farther than the judge will follow; a smaller
share of it often is an improvement to both.
"""


@dataclass(frozen=True)
class Fidelity:
    """How far a delivered file is from its source.

    Attributes:
        psnr_db, ssim: of the pixels at full size (`doodl.measures.fidelity`).
        delta_e: mean CIEDE2000 colour difference, as seen on a small view; 1 is just noticeable.
    """

    psnr_db: float
    ssim: float
    delta_e: float

    @property
    def change(self) -> float:
        """RMS change as a share of the full range: 0.1 is a PSNR of 20 dB."""
        return float(10 ** (-self.psnr_db / 20))


def measure_fidelity(source: Photo, delivered: Photo) -> Fidelity:
    """Return how far a delivered photo is from its source; both as decoded from their files."""
    views = [model_view(photo, _COLOUR_PX, 1)[0] for photo in (source, delivered)]
    first, second = (view.permute(1, 2, 0).div(2).add(0.5).numpy() for view in views)
    return Fidelity(
        psnr_db(source.pixels, delivered.pixels),
        ssim(source.pixels, delivered.pixels),
        delta_e(first, second),
    )


@dataclass(frozen=True)
class Verdict:
    """Whether an edit is delivered. status: ok | rejected | skipped. reason: why it is rejected."""

    status: str
    reason: str | None = None


def verdict(
    state: LatentState,
    objection: str | None,
    fidelity: Fidelity,
    max_change: float | None,
    *,
    warm: bool = False,
) -> Verdict:
    """Return what becomes of an edit that has been scored on its delivered file.

    Args:
        objection: what guide, judge or the guides' sum have against it; None: it improved.
        max_change: the budget that `fidelity.change` is held to, None for none.
        warm: the noise did not start at the photo as it is: the start is a change already.
    """
    stayed = state.best_iteration == 0 and (not warm or state.stop_reason == "budget")
    if stayed and state.iteration == 0 and state.stop_reason == "good_enough":
        return Verdict("skipped")
    if stayed:
        budget = f" within the budget of {max_change:g}" if state.stop_reason == "budget" else ""
        return Verdict("rejected", f"no iterate was better than the photo as it is{budget}")
    if max_change is not None and fidelity.change > max_change:
        return Verdict(
            "rejected",
            f"the file changed by {fidelity.change:.4f} of the range, over its budget of "
            f"{max_change:g}",
        )
    if objection is not None:
        return Verdict("rejected", objection)
    return Verdict("ok")


def score_objection(
    aim: Aim, before: tuple[float, float], after: tuple[float, float], slack: float = 0.0
) -> str | None:
    """Return which of (guide, judge) did not come nearer the aim; None: both did.

    Args:
        slack: points that the judge may move against the aim, if the guide moved farther with it:
            a judge's scores have a noise, and a fall within it is no finding.
    """
    guide, judge = (aim.gain(b, a) for b, a in zip(before, after, strict=True))
    tolerated = slack > 0 and -slack <= judge and guide + judge > 0
    fine = (guide > 0, judge > 0 or tolerated)
    wrong = [
        f"the {name} went from {b:.3f} to {a:.3f}"
        for name, b, a, ok in zip(("guide", "judge"), before, after, fine, strict=True)
        if not ok
    ]
    return f"not improved: {' and '.join(wrong)}" if wrong else None


@dataclass(frozen=True, eq=False)
class Guard:
    """Who decides whether an edit is delivered: the guide, and a judge that gave no gradient.

    Attributes:
        guidance: all that guided; its scorer, where it has one, is the guide.
        view: gives a photo at the model's size, (1, 3, H, W) in [-1, 1].
    """

    guide: AestheticScorer | ScorerEnsemble
    judge: AestheticScorer | ScorerEnsemble
    guidance: Guidance
    config: EditConfig
    view: Callable[[Photo], Tensor]

    @torch.no_grad()
    def pleasing_share(self, request: EditRequest, base: Tensor, image: Tensor) -> float:
        """Return the largest share of the change that guide and judge both find better; else 1.

        Tried on the model's view, where it costs no file; the delivered file is judged again.
        """
        if self.guidance.scorer is None:
            return 1.0
        view = self.view(request.photo)
        locality = self.config.transfer_locality
        fit = TransferFit(base, grey=(request.photo.grey,), locality=locality)
        transfer = fit.fit(image)
        change = request.strength * (apply_transfer(transfer, view) - view)
        before = float(self.guide(view)), float(self.judge(view))
        for share in SHARES:
            tried = (view + share * change).clamp(-1, 1)
            after = float(self.guide(tried)), float(self.judge(tried))
            if score_objection(request.aim, before, after, self.config.judge_slack) is None:
                return share
        return 1.0

    @torch.no_grad()
    def objection(
        self,
        request: EditRequest,
        delivered: Photo,
        before: tuple[float, float],
        after: tuple[float, float],
    ) -> str | None:
        """Return why the delivered file is no better than the source; None if it is, to all.

        An aesthetic guide and the judge must both come nearer the aim. Where other guides act,
        their weighted sum must have fallen. Where no aesthetic guide asks the judge to rise, it
        must not fall by more than the config's judge_tolerance: what a text or a class asks for
        need not be beautiful, but it must not be damage.
        """
        aesthetic = self.guidance.scorer is not None
        slack = self.config.judge_slack
        if (
            aesthetic
            and (objection := score_objection(request.aim, before, after, slack)) is not None
        ):
            return objection
        tolerance = self.config.judge_tolerance
        if not aesthetic and after[1] < before[1] - tolerance:
            return (
                f"the judge fell from {before[1]:.3f} to {after[1]:.3f}, by more than {tolerance:g}"
            )
        if [spec.kind for spec in self.guidance.specs] == ["aesthetic"]:
            return None  # the aim is the whole sum
        source = self.view(request.photo)
        bound = self.guidance.bind([request.row], source)
        was, is_now = float(bound.value(source)), float(bound.value(self.view(delivered)))
        return None if is_now < was else f"the guides' sum went from {was:.4f} to {is_now:.4f}"

    @torch.no_grad()
    def scores(self, photo: Photo) -> tuple[float, float]:
        """Return (guide score, judge score) of a photo as it stands."""
        view = self.view(photo)
        return float(self.guide(view)), float(self.judge(view))
