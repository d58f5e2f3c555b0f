"""Guides that need no network: symmetry, fidelity to the source, and the user's own function."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from doodl.guidance.crops import CropViews
from doodl.guidance.terms import Assessment, GuideRow
from doodl.guidance.towers import clamp_straight_through


def symmetry_loss(images: Tensor) -> Tensor:
    """Return the mean squared difference (B,) of images and their mirror image, left and right."""
    return (images - images.flip(-1)).square().mean((1, 2, 3))


def fidelity_loss(images: Tensor, sources: Tensor) -> Tensor:
    """Return the mean squared difference (B,) of images and their sources, in [-1, 1] units."""
    return (images - sources).square().mean((1, 2, 3))


@dataclass(frozen=True)
class SymmetryGuide:
    """Mirror symmetry; both the guide and, knowing nothing of its photos, its bound form."""

    def bind(self, rows: Sequence[GuideRow], sources: Tensor | None) -> SymmetryGuide:
        return self

    def loss(self, views: CropViews) -> Tensor:
        return symmetry_loss(views.images)

    def assess(self, images: Tensor) -> Assessment:
        losses = symmetry_loss(clamp_straight_through(images, -1.0, 1.0))
        return Assessment(losses, -losses)

    def keep(self, places: Sequence[int]) -> SymmetryGuide:
        return self


@dataclass(frozen=True, eq=False)
class FidelityGuide:
    """Closeness to the source; unbound until `bind` gives it the sources (B, 3, H, W)."""

    sources: Tensor | None = None

    def bind(self, rows: Sequence[GuideRow], sources: Tensor | None) -> FidelityGuide:
        if sources is None or len(sources) != len(rows):
            raise ValueError(
                "guide fidelity compares with a source photo, and there is none; leave it out "
                "where images are generated from nothing."
            )
        return FidelityGuide(sources.detach())

    def loss(self, views: CropViews) -> Tensor:
        return self._losses(views.images)

    def assess(self, images: Tensor) -> Assessment:
        losses = self._losses(clamp_straight_through(images, -1.0, 1.0))
        return Assessment(losses, -losses)

    def keep(self, places: Sequence[int]) -> FidelityGuide:
        assert self.sources is not None  # only a bound guide is kept
        return FidelityGuide(self.sources[list(places)])

    def _losses(self, images: Tensor) -> Tensor:
        assert self.sources is not None
        if images.shape != self.sources.shape:
            raise ValueError(
                f"guide fidelity: images {tuple(images.shape)} and sources "
                f"{tuple(self.sources.shape)} must be of one shape."
            )
        return fidelity_loss(images, self.sources)


@dataclass(frozen=True)
class CallableGuide:
    """A function of the user's: images (B, 3, H, W) in [-1, 1] -> losses (B,), differentiable.

    It is code that the user chose and runs with the user's rights. That its losses depend on each
    image alone is the user's to see to.
    """

    name: str
    function: Callable[[Tensor], Any]

    def bind(self, rows: Sequence[GuideRow], sources: Tensor | None) -> CallableGuide:
        return self

    def loss(self, views: CropViews) -> Tensor:
        return self._losses(views.images)

    def assess(self, images: Tensor) -> Assessment:
        losses = self._losses(clamp_straight_through(images, -1.0, 1.0))
        return Assessment(losses, -losses)

    def keep(self, places: Sequence[int]) -> CallableGuide:
        return self

    def _losses(self, images: Tensor) -> Tensor:
        try:
            losses = self.function(images)
        except (torch.OutOfMemoryError, MemoryError):
            raise  # not the function's fault: the caller tries a smaller batch
        except Exception as error:
            raise ValueError(
                f"guide callable:{self.name} raised {type(error).__name__}: {error}"
            ) from error
        given = (
            f"{tuple(losses.shape)} {losses.dtype}"
            if isinstance(losses, Tensor)
            else type(losses).__name__
        )
        if not isinstance(losses, Tensor) or losses.shape != images.shape[:1]:
            raise ValueError(
                f"guide callable:{self.name} must return one loss per image, a tensor of shape "
                f"({len(images)},); got {given}."
            )
        if not losses.is_floating_point():
            raise ValueError(f"guide callable:{self.name} must return floats; got {given}.")
        if torch.is_grad_enabled() and images.requires_grad and not losses.requires_grad:
            raise ValueError(
                f"guide callable:{self.name} returned losses without a gradient to the images; "
                "compute them from the images with torch, without detach or no_grad."
            )
        return losses


def load_callable(name: str) -> CallableGuide:
    """Return the guide of `module:function`, which is imported.

    Raises: ValueError if there is no such module or function.
    """
    module_name, _, function_name = name.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"guide callable:{name} cannot be imported: {error}. The module must be installed or "
            "on PYTHONPATH; the current folder is not searched on workers."
        ) from error
    if not callable(function):
        raise ValueError(f"guide callable:{name} is a {type(function).__name__}, not a function.")
    return CallableGuide(name, function)
