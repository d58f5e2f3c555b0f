"""The safety checker a model may ship: what it flags is not delivered."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from doodl.errors import ModelError

CHOICES = ("auto", "off")


@dataclass(frozen=True)
class SafetyCheck:
    """A checker, or why there is none: `off` (as asked) or `none` (the model ships none)."""

    check: Callable[[Tensor], list[bool]] | None
    absent: str = "none"

    @torch.no_grad()
    def flagged(self, images: Tensor) -> list[bool]:
        """Return which of the images (B, 3, H, W) in [-1, 1] are not to be shown."""
        return [False] * len(images) if self.check is None else list(self.check(images))

    def word(self, flagged: bool) -> str:
        """Return what the results say: passed, flagged, off or none."""
        if self.check is None:
            return self.absent
        return "flagged" if flagged else "passed"


def load_safety(folder: Path, choice: str, *, device: str | torch.device = "cpu") -> SafetyCheck:
    """Return the check of a pipeline folder's own checker.

    Args:
        choice: auto, or off.
    Raises: ValueError on another choice; ModelError if there is a checker that cannot be loaded.
    """
    if choice not in CHOICES:
        raise ValueError(f"safety_checker (={choice!r}) must be one of {', '.join(CHOICES)}.")
    if choice == "off":
        return SafetyCheck(None, "off")
    if importlib.util.find_spec("doodl.generation.checker") is None:
        if (folder / "safety_checker").is_dir():
            raise ModelError(
                f"{folder.name} ships a safety checker, which this version cannot load; "
                "give --safety-checker off to do without it."
            )
        return SafetyCheck(None)
    load_safety_checker = importlib.import_module("doodl.generation.checker").load_safety_checker
    return SafetyCheck(load_safety_checker(folder, device=device), "none")
