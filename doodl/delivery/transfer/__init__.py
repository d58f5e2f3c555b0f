"""Carry a change made at the model's resolution to the full-resolution photo."""

from doodl.delivery.transfer.apply import (
    apply_transfer,
    apply_transfer_to_pixels,
    enlarge_to_pixels,
)
from doodl.delivery.transfer.fit import LocalAffine, TransferFit, fit_transfer

__all__ = [
    "LocalAffine",
    "TransferFit",
    "apply_transfer",
    "apply_transfer_to_pixels",
    "enlarge_to_pixels",
    "fit_transfer",
]
