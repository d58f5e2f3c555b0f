"""Figures of one photo: how far it moved, how near it is to another, how its whites fared."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from doodl.measures.fidelity import psnr_db

_LUMA = np.array([0.2126, 0.7152, 0.0722], np.float32)  # Rec. 709
NEUTRAL_CHROMA = 0.05
WHITE_LUMA = 0.6
_MIN_NEUTRAL_SHARE = 0.005


@dataclass(frozen=True)
class NeutralDrift:
    """What became of a photo's whites; chroma in units of the full range, [0, 1].

    Attributes:
        share: of the frame's pixels that are near-neutral whites in the reference.
        chroma_change: mean change of the chroma's length; above 0 the whites took on colour.
        red_green, blue_yellow: mean signed change of R - G and of B - (R + G) / 2.
        shift: mean length of the change of chroma, whatever its direction.
    """

    share: float
    chroma_change: float
    red_green: float
    blue_yellow: float
    shift: float


def chroma(pixels: np.ndarray) -> np.ndarray:
    """Return the colour without its lightness, (H, W, 2): R - G and B - (R + G) / 2, in [0, 1]."""
    red, green, blue = np.moveaxis(_unit(pixels), -1, 0)
    return np.stack([red - green, blue - (red + green) / 2], axis=-1)


def neutral_drift(reference: np.ndarray, delivered: np.ndarray) -> NeutralDrift | None:
    """Return how the near-neutral bright pixels of `reference` changed colour in `delivered`.

    Near-neutral whites have chroma below 0.05 and luma above 0.6. None where they are less than
    half a percent of the frame. Both photos are (H, W, 3) uint8 or uint16 of one shape.
    """
    before, after = chroma(reference), chroma(delivered)
    length = np.hypot(before[..., 0], before[..., 1])
    white = (length < NEUTRAL_CHROMA) & (_unit(reference) @ _LUMA > WHITE_LUMA)
    share = float(white.mean())
    if share < _MIN_NEUTRAL_SHARE:
        return None
    change = (after - before)[white]
    longer = np.hypot(after[..., 0], after[..., 1])[white] - length[white]
    return NeutralDrift(
        share=share,
        chroma_change=float(longer.mean()),
        red_green=float(change[:, 0].mean()),
        blue_yellow=float(change[:, 1].mean()),
        shift=float(np.hypot(change[:, 0], change[:, 1]).mean()),
    )


def rms_change(first: np.ndarray, second: np.ndarray) -> float:
    """Return the root mean square difference of two photos, in units of the full range."""
    return float(np.sqrt(np.mean(np.square(_unit(first) - _unit(second)), dtype=np.float64)))


def distance_db(first: np.ndarray, second: np.ndarray) -> float | None:
    """Return the PSNR in dB of two photos, None if they are equal."""
    value = psnr_db(first, second)
    return value if np.isfinite(value) else None


def _unit(pixels: np.ndarray) -> np.ndarray:
    return pixels.astype(np.float32) / np.iinfo(pixels.dtype).max
