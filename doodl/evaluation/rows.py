"""One row of an evaluation: the figures of one photo under one method and direction."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from typing import Any

import torch

from doodl.editing.editor import PhotoEditor
from doodl.errors import DoodlError
from doodl.evaluation.cases import Case, Prepared
from doodl.evaluation.methods import Cost, Edited
from doodl.images import Photo, decode_photo
from doodl.images.thumbnails import thumbnail
from doodl.measures.fidelity import ssim
from doodl.measures.metrics import distance_db, neutral_drift, rms_change
from doodl.recipes.config import EditConfig, without_later_values
from doodl.scores import AestheticScorer

Row = dict[str, Any]
"""One photo under one method and direction; the fields are COLUMNS'."""

COLUMNS = {
    "photo": "name of the source",
    "label": "its class, if it has one",
    "set": "dulled | untouched",
    "type": "the damage, for a dulled photo",
    "severity": "of the damage, in (0, 1]",
    "method": "edit, or one of its rivals",
    "direction": "up | down",
    "status": "ok | rejected | skipped | failed; what is not ok is not delivered",
    "stop_reason": "why the optimisation ended",
    "error": "why the row failed",
    "strength": "value of the method's knob",
    "guide_before": "score of the source by the guide",
    "guide_after": "of the delivered file; the source's own if nothing is delivered",
    "judge_before": "as guide_before, by the judge",
    "judge_after": "as guide_after, by the judge",
    "referee_before": "as guide_before, by the referee",
    "referee_after": "as guide_after, by the referee",
    "referee_edited": "by the referee, of the edited file whether delivered or not",
    "source_db": "PSNR of the delivered file to the source; none if nothing changed",
    "ssim": "SSIM of the delivered file to the source",
    "rms_change": "RMS change of the edited file from the source, delivered or not, in [0, 1]",
    "clean_db_before": "PSNR of the dulled source to the clean original",
    "clean_db_after": "PSNR of the delivered file to the clean original",
    "clean_db_edited": "PSNR of the edited file to the clean original, delivered or not",
    "neutral_share": "share of near-neutral white pixels in the clean original, or the source",
    "neutral_before": "mean chroma shift of those pixels in the source, in [0, 1]",
    "neutral_shift": "the same in the delivered file",
    "neutral_chroma_change": "mean change of their chroma's length in the delivered file",
    "neutral_red_green": "mean signed change of R - G there",
    "neutral_blue_yellow": "mean signed change of B - (R + G) / 2 there",
    "inversion_error": "RMS of the round trip over that of the latents",
    "num_optim_steps": "updates made",
    "cpu_seconds": "processor time of the edit, a batch's mean",
    "unet_calls": "forward passes of the UNet, a batch's mean",
    "width_px": "of the photo",
    "height_px": "of the photo",
    "recipe": "fingerprint of models, method, strength and options",
    "case": "fingerprint of photo, set, damage and seed",
}


@dataclass(frozen=True)
class Run:
    """How a row came to be."""

    method: str
    direction: str
    strength: float
    recipe: str


@dataclass(frozen=True)
class Measured:
    """One finished row, and a small JPEG of the edited photo for the contact sheets."""

    row: Row
    picture: bytes


@dataclass(frozen=True, eq=False)
class Models:
    """What a worker holds: the editor as shipped, its UNet counted, and the referee."""

    editor: PhotoEditor
    referee: AestheticScorer

    @torch.no_grad()
    def scores(self, photo: Photo) -> dict[str, float]:
        """Return the scores of a photo as it stands, by guide, judge and referee."""
        view = self.editor.view(photo)
        scorers = {
            "guide": self.editor.guide, "judge": self.editor.judge, "referee": self.referee,
        }  # fmt: skip
        return {name: float(scorer(view)) for name, scorer in scorers.items()}


def fingerprint(value: Any) -> str:
    """Return 16 hex digits of a value's canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


_LATER_VALUES = ("sampler.kind", "method", "step_guidance", "warm_start")


def recipe_values(config: EditConfig) -> dict[str, Any]:
    """Return a config's values for a fingerprint: those added since count once they are used."""
    return without_later_values(config.to_dict(), _LATER_VALUES)


def case_id(case: Case) -> str:
    """Return 16 hex digits that name the case: safe in a file's name, whatever the photo's is."""
    return fingerprint(case.key)


def measure(
    models: Models,
    run: Run,
    case: Case,
    prepared: Prepared,
    outcome: Edited | Exception,
    cost: Cost,
) -> Measured:
    """Return the row of one outcome: what was delivered, against source and clean original."""
    photo = prepared.photo
    row: Row = {
        **dict.fromkeys(COLUMNS),
        "photo": case.source.name,
        "label": case.source.label,
        "set": case.set,
        "type": case.type,
        "severity": case.severity,
        "method": run.method,
        "direction": run.direction,
        "strength": run.strength,
        "width_px": photo.width_px,
        "height_px": photo.height_px,
        "cpu_seconds": cost.cpu_seconds,
        "unet_calls": cost.unet_calls,
        "recipe": run.recipe,
        "case": case_id(case),
    }
    before = models.scores(photo)
    if isinstance(outcome, Exception):
        known = isinstance(outcome, DoodlError)
        row |= {
            "status": "failed",
            "error": " ".join(f"{'' if known else type(outcome).__name__ + ': '}{outcome}".split()),
        }
        edited = photo
    else:
        row |= {
            "status": outcome.status,
            "stop_reason": outcome.stop_reason,
            "num_optim_steps": outcome.num_optim_steps,
            "inversion_error": outcome.inversion_error,
        }
        edited = decode_photo(outcome.encoded)
    delivered = edited if row["status"] == "ok" else photo
    after = before if delivered is photo else models.scores(delivered)
    for name, score in before.items():
        row[f"{name}_before"], row[f"{name}_after"] = score, after[name]
    row["referee_edited"] = models.scores(edited)["referee"]
    row["rms_change"] = rms_change(photo.pixels, edited.pixels)
    row["source_db"] = distance_db(photo.pixels, delivered.pixels)
    row["ssim"] = ssim(photo.pixels, delivered.pixels)
    row |= _against_clean(prepared, delivered, edited)
    data = prepared.data if isinstance(outcome, Exception) else outcome.encoded
    # A score that is no number is none: JSON has no word for it, and no mean survives it.
    row = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
    return Measured(row, thumbnail(data))


def _against_clean(prepared: Prepared, delivered: Photo, edited: Photo) -> Row:
    """Return the figures that need the photo as it should be: the clean one, or the source."""
    photo, clean = prepared.photo, prepared.clean_pixels
    figures: Row = {}
    if clean is not None:
        for name, other in (("before", photo), ("after", delivered), ("edited", edited)):
            figures[f"clean_db_{name}"] = distance_db(clean, other.pixels)
    reference = photo.pixels if clean is None else clean
    drift = neutral_drift(reference, delivered.pixels)
    source_drift = neutral_drift(reference, photo.pixels)
    if drift is not None and source_drift is not None:
        figures |= {
            "neutral_share": drift.share,
            "neutral_before": source_drift.shift,
            **{f"neutral_{k}": v for k, v in asdict(drift).items() if k != "share"},
        }
    return figures
