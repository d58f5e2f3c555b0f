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
BatchSize = Annotated[int, typer.Option(help="Photos that one worker optimises together.")]


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
