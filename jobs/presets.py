"""`presets list|show`: the recipes by name, and every value of one."""

from __future__ import annotations

from typing import Any

from jobs import console, exits
from pipeline.presets import shown_preset, shown_presets


def list_presets(*, as_json: bool) -> int:
    """Print the presets and return an exit code."""
    presets = shown_presets()
    if as_json:
        console.print_json([{"name": p.name, "task": p.task, "about": p.about} for p in presets])
    else:
        rows = [(p.name, p.task, p.about) for p in presets]
        console.print_table("Presets", ("name", "task", "what it is for"), rows)
    return exits.OK


def show_preset(name: str, *, as_json: bool) -> int:
    """Print every value of a preset with its meaning and return an exit code."""
    with exits.usage_errors():
        preset = shown_preset(name)
    if as_json:
        console.print_json(
            {
                "name": preset.name,
                "task": preset.task,
                "about": preset.about,
                "target": preset.target,
                "values": {
                    key: {"value": value, "meaning": meaning}
                    for key, value, meaning in preset.values
                },
            }
        )
        return exits.OK
    rows = [(key, _shown(value), meaning) for key, value, meaning in preset.values]
    if preset.target is not None:
        rows.append(("--target", f"{preset.target:g}", "the score that the released code aims at"))
    title = f"{preset.name} ({preset.task}): {preset.about}"
    console.print_table(title, ("name", "value", "meaning"), rows)
    console.result("change one with --set NAME=VALUE, as in --set optimiser.num_optim_steps=8")
    return exits.OK


def _shown(value: Any) -> str:
    """Return a value as --set takes it, so that a line can be pasted; None stays a dash."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ", ".join(value) if value else "-"
    if isinstance(value, float):
        return f"{value:g}"
    return "-" if value is None else str(value)
