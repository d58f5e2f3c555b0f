"""`evaluate ablations` and `evaluate tune`: one recipe under changes, from one command each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from jobs import exits
from jobs.locations import argument, local_only
from jobs.options import BatchSize, Json, Model, Preset, Set, assignment, words

PHOTO_TASKS = ("enhance", "personalize")
Photos = Annotated[
    list[Path] | None,
    argument(
        "[PHOTOS]...",
        "Folders, manifests or Parquet files of photos; for tasks enhance and personalize.",
    ),
]
Out = Annotated[Path, typer.Option(help="Results.", parser=local_only, metavar="PATH")]
Task = Annotated[str, typer.Option(help="enhance, text, classes, personalize or aesthetic.")]
Only = Annotated[
    str, typer.Option(help="Ablations by name, comma-separated.  \\[default: all that act]")
]
Dulled = Annotated[int, typer.Option(help="enhance: photos to damage, then edit.")]
Untouched = Annotated[int, typer.Option(help="enhance: photos to edit as they are.")]
Directions = Annotated[str, typer.Option(help="enhance: up, down or both.")]
Prompts = Annotated[
    list[str] | None,
    typer.Option(
        "--prompt", help="text, aesthetic: what to draw; repeatable.  \\[default: five flowers]"
    ),
]
Prompt = Annotated[
    str, typer.Option("--denoiser-prompt", help="classes, personalize: for the UNet.")
]
Subjects = Annotated[int, typer.Option(help="personalize: photos that are exemplars, one each.")]
Seeds = Annotated[int, typer.Option(help="Generation: pictures of each.")]
Size = Annotated[int, typer.Option(help="Generation: side of the pictures, in pixels.")]
Workers = Annotated[int, typer.Option(help="Processes, of one thread each.")]
Seed = Annotated[int, typer.Option(help="Of the draw of photos, or the first picture's.")]
Redo = Annotated[bool, typer.Option("--redo", help="Compute finished rows again.")]
_FLOWER = "a photo of a flower"


def register(app: typer.Typer) -> None:
    """Add the commands to `evaluate`."""
    app.command("ablations")(ablations)
    app.command("tune")(tune)


def ablations(
    out: Out,
    photos: Photos = None,
    task: Task = "enhance",
    only: Only = "",
    dulled: Dulled = 100,
    untouched: Untouched = 0,
    directions: Directions = "up",
    validation: Annotated[
        int, typer.Option(help="enhance: photos left out, as in `evaluate enhance`.")
    ] = 6,
    prompts: Prompts = None,
    prompt: Prompt = _FLOWER,
    subjects: Subjects = 10,
    seeds: Seeds = 20,
    size: Size = 128,
    model: Model = "pocket",
    preset: Preset = None,
    overrides: Set = None,
    workers: Workers = 1,
    batch_size: BatchSize = 6,
    seed: Seed = 0,
    redo: Redo = False,
    json: Json = False,
) -> None:
    """Measure what each part of a recipe earns: the preset with one part changed at a time.

    The same command again goes on where the last one stopped.

    Example: doodl-batch evaluate ablations photos.parquet --out ablations --dulled 20
    """
    _run("ablations", locals())


def tune(
    out: Out,
    photos: Photos = None,
    task: Task = "enhance",
    validation: Annotated[
        int, typer.Option(help="Photos or pictures that no other table is made of.")
    ] = 24,
    directions: Directions = "up",
    prompts: Prompts = None,
    prompt: Prompt = _FLOWER,
    subjects: Subjects = 10,
    size: Size = 128,
    model: Model = "pocket",
    preset: Preset = None,
    overrides: Set = None,
    workers: Workers = 1,
    batch_size: BatchSize = 6,
    seed: Seed = 0,
    redo: Redo = False,
    json: Json = False,
) -> None:
    """Compare learning rates on a validation split: photos kept apart, or pictures of other seeds.

    Photos are kept apart from those of `evaluate enhance` if that has the same --validation.

    Example: doodl-batch evaluate tune photos.parquet --out rates --validation 8
    """
    _run("tune", locals())


def _run(kind: str, given: dict[str, Any]) -> None:
    from jobs.evaluate import run_evaluate_variants

    task, photos = given["task"], given["photos"] or []
    if task not in ("enhance", "text", "classes", "personalize", "aesthetic"):
        raise exits.UsageError(
            f"--task {task!r} must be enhance, text, classes, personalize or aesthetic."
        )
    if bool(photos) != (task in PHOTO_TASKS):
        said = "none was named" if task in PHOTO_TASKS else f"{task} draws from prompts"
        raise exits.UsageError(f"PHOTOS go with tasks {' and '.join(PHOTO_TASKS)}; {said}.")
    recipe = {
        "model": "pocket" if given["model"] == "auto" else given["model"],
        "overrides": dict(assignment(text) for text in given["overrides"] or []),
        **({} if given["preset"] is None else {"preset": given["preset"]}),
    }
    options: dict[str, Any] = {"recipe": recipe, "batch_size": given["batch_size"]}
    if kind == "ablations":
        options["only"] = words(given["only"])
    options |= _of_photos(given) if task == "enhance" else _of_generation(task, given)
    code = run_evaluate_variants(
        kind, task, photos, given["out"], options,
        workers=given["workers"], redo=given["redo"], as_json=given["json"],
    )  # fmt: skip
    raise typer.Exit(code)


def _of_photos(given: dict[str, Any]) -> dict[str, Any]:
    draw = {
        # Of a tuning all photos are those kept apart.
        "num_dulled": given.get("dulled", 0), "num_untouched": given.get("untouched", 0),
        "num_validation": given["validation"], "seed": given["seed"],
    }  # fmt: skip
    return {"referee": None, "directions": words(given["directions"]), "draw": draw}


def _of_generation(task: str, given: dict[str, Any]) -> dict[str, Any]:
    options = {
        "out": given["out"], "seed": given["seed"], "size_px": given["size"],
        "seeds": given.get("seeds", 1), "validation": given["validation"],
    }  # fmt: skip
    if task in ("text", "aesthetic"):
        return {**options, "prompts": given["prompts"]}
    options["prompt"] = given["prompt"]
    if task == "personalize":
        options |= {"photos": given["photos"], "subjects": given["subjects"]}
    return options
