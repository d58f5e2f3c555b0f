"""Options that several commands have. Imports neither torch nor Ray nor Arrow."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from jobs import exits

Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Model = Annotated[
    str, typer.Option(help="auto, pocket, a name of `models list`, a pulled hub id, or a path.")
]
Preset = Annotated[str | None, typer.Option(help="Recipe: pocket or paper-aesthetic.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME=VALUE", help="Override one value of the preset; repeatable."
    ),
]
Sampler = Annotated[
    str | None, typer.Option(help="edict, or belm: one network call a step.  \\[default: edict]")
]
Method = Annotated[
    str | None,
    typer.Option(
        help="doodl, or one it is compared with: one-step, hybrid, pixel or autoencoder.  "
        "\\[default: doodl]"
    ),
]
Quality = Annotated[
    str | None,
    typer.Option(
        help="Values of the preset for speed: fast, balanced (the preset's own) or paper (slow)."
    ),
]


def _batch_size(text: str) -> int:
    """Return a number of photos; 0 for `auto`."""
    if text == "auto":
        return 0
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise typer.BadParameter(f"{text!r} must be a whole number from 1 up, or auto.")
    return number


BatchSize = Annotated[
    int,
    typer.Option(
        parser=_batch_size,
        metavar="NUMBER|auto",
        help="Photos that one worker optimises together; auto (enhance): as many as its memory "
        "holds, at most 32.",
    ),
]


def recipe_overrides(
    texts: list[str] | None, quality: str | None, sampler: str | None, method: str | None
) -> dict[str, Any]:
    """Return what --quality, --sampler, --method and each --set change; the last one wins."""
    from pipeline.presets import chosen_overrides

    with exits.usage_errors():
        changes = chosen_overrides(quality, sampler, method)
    return {**changes, **dict(assignment(text) for text in texts or [])}


def words(text: str) -> tuple[str, ...]:
    """Return the words between commas."""
    return tuple(word for word in (part.strip() for part in text.split(",")) if word)


def assignment(text: str) -> tuple[str, Any]:
    """Return (name, value) of a `--set NAME=VALUE`; what is no JSON is text."""
    import json

    name, separator, value = text.partition("=")
    if not separator:
        raise exits.UsageError(
            f"--set {text!r} must be NAME=VALUE, as in optimiser.num_optim_steps=8."
        )
    try:
        return name.strip(), json.loads(value)
    except json.JSONDecodeError:
        return name.strip(), value
