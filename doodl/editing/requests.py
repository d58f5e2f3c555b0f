"""One photo to edit, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from doodl.delivery.deliver import Delivery, edit_words
from doodl.editing.objective import Aim
from doodl.guidance.guidance import GuideRow
from doodl.images import Photo


@dataclass(frozen=True)
class EditRequest:
    """One photo to edit.

    Attributes:
        photo: the decoded source.
        aim: up, down or a target score.
        seed: of the photo's own random generator.
        prompt: what the denoiser is told the photo shows; empty leaves it to the noise.
        strength: share of the change that is delivered, in [0, 1].
        detail, deliver, strip_gps: as in `Delivery`.
        checkpoint: bytes of an interrupted optimisation of this very request, to go on from; the
            photo starts again if they are not.
        subjects: exemplar images (3, H, W) in [-1, 1] for a subject guide.
        label: class for a classifier guide that names none.
        protect: (H, W) uint8 at the photo's size: 255 keeps the photo's own pixel, 0 none of it.
    """

    photo: Photo
    aim: Aim
    seed: int
    prompt: str = ""
    strength: float = 1.0
    detail: float = 0.0
    deliver: str = "transfer"
    strip_gps: bool = False
    checkpoint: bytes | None = None
    subjects: tuple[Tensor, ...] = ()
    label: str | None = None
    protect: np.ndarray | None = None

    @property
    def row(self) -> GuideRow:
        """What the guides need to know of it."""
        return GuideRow(self.prompt, self.aim.direction, self.aim.target, self.subjects, self.label)

    def __post_init__(self) -> None:
        _ = self.delivery  # raises ValueError for what makes no sense
        size = self.photo.pixels.shape[:2]
        if self.protect is not None and self.protect.shape != size:
            raise ValueError(f"protect (={self.protect.shape}) must be of the photo's size {size}.")

    @property
    def delivery(self) -> Delivery:
        return Delivery(
            what=edit_words(self.aim.direction, self.aim.target),
            strength=self.strength,
            detail=self.detail,
            deliver=self.deliver,
            strip_gps=self.strip_gps,
        )


@dataclass
class EditResult:
    """What became of one photo. Scores are of the file as encoded, not of the model's frame.

    Attributes:
        encoded: the edited photo's file bytes; there whatever the status says.
        status: ok | rejected | skipped (good enough as it was).
        inversion_error: RMS of the pair's round trip over the RMS of the latents; None for a
            method that does not invert.
        loss_curve: loss of each rendered iterate.
        delta_e: mean CIEDE2000 colour difference to the source.
        rejection: why it is not delivered; None unless rejected.
        protected: share of the frame that was protected; None if nothing was to be.
        delivered_strength: share of the change in the file: the request's strength, or less where
            only less of it pleased guide and judge both.
        change: what `doodl.delivery.deliver.restrength` needs; None if it was not kept.
    """

    encoded: bytes
    status: str
    score_before: float
    score_after: float
    judge_before: float
    judge_after: float
    psnr_db: float
    ssim: float
    inversion_error: float | None
    num_optim_steps: int
    stop_reason: str
    loss_curve: list[float]
    change: bytes | None = None
    delta_e: float | None = None
    rejection: str | None = None
    protected: float | None = None
    delivered_strength: float = 1.0
