"""One picture to make, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from doodl.guidance.guidance import GuideRow
from doodl.guidance.spec import GuideSpec


@dataclass(frozen=True)
class GenerateRequest:
    """One picture to make.

    Attributes:
        prompt: what the denoiser is told; may be empty.
        negative_prompt: what classifier-free guidance leads away from.
        seed: of the picture's own random generator: its first noise, its crops, its updates' noise.
        height_px, width_px: multiples of the model's `size_multiple`.
        guides: what the picture is optimised for; none: a plain sample.
        guide_row: what the guides need to know of this picture.
        checkpoint: bytes of an interrupted optimisation of this very request, to go on from.
    """

    prompt: str
    seed: int
    height_px: int
    width_px: int
    negative_prompt: str = ""
    guides: tuple[GuideSpec, ...] = ()
    guide_row: GuideRow = field(default_factory=GuideRow)
    checkpoint: bytes | None = None


@dataclass
class GenerateResult:
    """What became of one picture. "Before" is the unguided sample of the same noise.

    Attributes:
        encoded: the picture's file bytes; there whatever the status says.
        unguided: the unguided sample's; None without guides, or if the safety checker flagged it.
        status: ok | rejected (no iterate was better by the guides, or flagged).
        score_before, score_after: the only guide's value; None with several guides or none.
        guide_values_before, guide_values_after: each guide's value, higher is better.
        judge_before, judge_after: of the first guide that a network which did not guide can judge.
        safety: passed | flagged | off | none (the model ships no checker).
        rejection: one line why it is not delivered; None if it is.
        loss_curve: loss of each rendered iterate.
    """

    encoded: bytes
    unguided: bytes | None
    status: str
    width_px: int
    height_px: int
    score_before: float | None
    score_after: float | None
    guide_values_before: dict[str, float]
    guide_values_after: dict[str, float]
    judge_before: float | None
    judge_after: float | None
    safety: str
    num_optim_steps: int
    stop_reason: str
    loss_curve: list[float]
    rejection: str | None = None
