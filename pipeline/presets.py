"""The presets, as the command line shows them. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from doodl.recipes.presets import (
    PRESET_NOTES,
    PRESETS,
    preset_values,
    quality_overrides,
    sampler_overrides,
)


@dataclass(frozen=True)
class ShownPreset:
    """One preset: what it is for, and (name, value, meaning) of each of its values."""

    name: str
    task: str
    about: str
    target: float | None
    values: list[tuple[str, Any, str]]


def shown_presets() -> list[ShownPreset]:
    """Return every preset, by name."""
    return [shown_preset(name) for name in PRESETS]


def shown_preset(name: str) -> ShownPreset:
    """Return one preset. Raises: ValueError naming those there are."""
    values = preset_values(name)
    note = PRESET_NOTES[name]
    return ShownPreset(name, note.task, note.about, note.target, values)


def chosen_overrides(
    quality: str | None, sampler: str | None, method: str | None
) -> dict[str, Any]:
    """Return what a quality, a sampler and a method change of a recipe; None changes nothing.

    What every recipe does anyway (edict, doodl, balanced) is no override, and no new fingerprint.
    Raises: ValueError on an unknown quality or sampler.
    """
    changes = quality_overrides(quality) if quality is not None else {}
    if sampler is not None or method not in (None, "doodl"):
        changes.pop("sampler.kind", None)  # the quality's choice gives way to one that is asked
    if sampler is not None:
        changes |= sampler_overrides(sampler)
    if method is not None and method != "doodl":
        changes["method"] = method
    return changes
