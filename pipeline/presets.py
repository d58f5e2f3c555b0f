"""The presets, as the command line shows them. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from doodl.config import PRESETS
from doodl.presets import PRESET_NOTES, preset_values


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
