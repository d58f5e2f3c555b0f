"""`evaluate ablations`: what each part of a recipe earns, from one command."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from jobs import exits
from jobs.locations import argument, local_only
from jobs.options import BatchSize, Json, Model, Preset, Set, assignment, words

Photos = Annotated[
    list[Path] | None,
    argument("[PHOTOS]...", "Folders, manifests or Parquet files of photos; for task enhance."),
]
Only = Annotated[
    str, typer.Option(help="Ablations, comma-separated, as the rows name them.  \\[default: all]")
]


def register(app: typer.Typer) -> None:
    """Add `ablations` to the `evaluate` commands."""
    app.command("ablations")(ablations)


def ablations(
    out: Annotated[Path, typer.Option(help="Results.", parser=local_only, metavar="PATH")],
    photos: Photos = None,
    task: Annotated[str, typer.Option(help="enhance, or text: guided generation.")] = "enhance",
    only: Only = "",
    dulled: Annotated[int, typer.Option(help="enhance: photos to damage, then edit.")] = 100,
    untouched: Annotated[int, typer.Option(help="enhance: photos to edit as they are.")] = 0,
    limit: Annotated[
        int | None, typer.Option(help="enhance: at most so many of each of the two.")
    ] = None,
    directions: Annotated[str, typer.Option(help="enhance: up, down or both.")] = "up",
    validation: Annotated[
        int, typer.Option(help="enhance: photos left out, as in `evaluate enhance`.")
    ] = 6,
    prompts: Annotated[
        list[str] | None,
        typer.Option("--prompt", help="text: what to draw; repeatable.  \\[default: five flowers]"),
    ] = None,
    seeds: Annotated[int, typer.Option(help="text: pictures of each prompt.")] = 20,
    size: Annotated[int, typer.Option(help="text: side of the pictures, in pixels.")] = 128,
    model: Model = "pocket",
    preset: Preset = None,
    overrides: Set = None,
    workers: Annotated[int, typer.Option(help="Processes, of one thread each.")] = 1,
    batch_size: BatchSize = 6,
    seed: Annotated[int, typer.Option(help="Of the draw of photos, or the first picture's.")] = 0,
    redo: Annotated[bool, typer.Option("--redo", help="Compute finished rows again.")] = False,
    json: Json = False,
) -> None:
    """Measure what each part of the recipe earns: the preset with one part changed at a time.

    The same command again goes on where the last one stopped.

    Example: doodl-batch evaluate ablations photos.parquet --out ablations --limit 20
    """
    from jobs.evaluate import run_evaluate_ablations, run_evaluate_guided

    recipe: dict[str, Any] = {
        "model": "pocket" if model == "auto" else model,
        "overrides": dict(assignment(text) for text in overrides or []),
        **({} if preset is None else {"preset": preset}),
    }
    if task == "text":
        _no_photos(photos)
        options = {
            "task": task, "recipe": recipe, "prompts": prompts, "seeds": seeds, "seed": seed,
            "size_px": size, "validation": 0, "batch_size": batch_size, "ablations": words(only),
        }  # fmt: skip
        code = run_evaluate_guided(out, options, workers=workers, redo=redo, as_json=json)
        raise typer.Exit(code)
    if task != "enhance":
        raise exits.UsageError(f"--task {task!r} must be enhance or text.")
    if not photos:
        raise exits.UsageError("task enhance edits photos: name folders or Parquet files of them.")
    draw = {
        "num_dulled": dulled if limit is None else min(dulled, limit),
        "num_untouched": untouched if limit is None else min(untouched, limit),
        "num_validation": validation, "seed": seed,
    }  # fmt: skip
    options = {
        "recipe": recipe, "referee": None, "only": words(only),
        "directions": words(directions), "batch_size": batch_size, "draw": draw,
    }  # fmt: skip
    code = run_evaluate_ablations(photos, out, options, workers=workers, redo=redo, as_json=json)
    raise typer.Exit(code)


def _no_photos(photos: Sequence[Path] | None) -> None:
    if photos:
        raise exits.UsageError("task text draws pictures from prompts; it takes no photos.")
