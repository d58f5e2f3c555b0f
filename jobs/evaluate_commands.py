"""The `evaluate` commands: options in, one call out. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from jobs import ablations, exits
from jobs.locations import argument, local_only
from jobs.options import BatchSize, Json, Model, Preset, Set, assignment, words

app = typer.Typer(no_args_is_help=True, help="How good the results are, in figures.")
ablations.register(app)

EvaluationPhotos = Annotated[
    list[Path], argument("PHOTOS...", "Folders, manifests or Parquet files of photos.")
]
EvaluationOut = Annotated[Path, typer.Option(help="Results.", parser=local_only, metavar="PATH")]


@app.command("enhance")
def enhance(
    photos: EvaluationPhotos,
    out: EvaluationOut,
    referee: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the scorer that judges.  \\[default: the shipped referee]",
            parser=local_only,
            metavar="PATH",
        ),
    ] = None,
    dulled: Annotated[int, typer.Option(help="Photos to damage, then edit.")] = 100,
    untouched: Annotated[int, typer.Option(help="Photos to edit as they are.")] = 50,
    validation: Annotated[
        int, typer.Option(help="Photos kept apart to tune the methods' strengths on.")
    ] = 6,
    limit: Annotated[
        int | None, typer.Option(help="At most so many dulled, and so many untouched photos.")
    ] = None,
    methods: Annotated[
        str, typer.Option(help="Of the rows, comma-separated.  \\[default: all]")
    ] = "",
    directions: Annotated[str, typer.Option(help="up, down or both.")] = "up,down",
    types: Annotated[
        str, typer.Option(help="Damage to draw from, comma-separated.  \\[default: all of tone]")
    ] = "",
    severity: Annotated[
        tuple[float, float], typer.Option(help="Range of the damage's severity.")
    ] = (0.4, 0.9),
    max_px: Annotated[int, typer.Option(help="Larger photos are scaled down to it.")] = 1024,
    model: Model = "pocket",
    preset: Preset = None,
    overrides: Set = None,
    workers: Annotated[int, typer.Option(help="Processes, of one thread each.")] = 1,
    batch_size: BatchSize = 6,
    seed: Annotated[int, typer.Option(help="Of the draw of photos, damage and crops.")] = 0,
    redo: Annotated[bool, typer.Option("--redo", help="Compute finished rows again.")] = False,
    json: Json = False,
) -> None:
    """Measure the edit against its rivals on photos it never saw, some of them damaged on purpose.

    The same command again goes on where the last one stopped; more photos keep what is there.

    Example: doodl-batch evaluate enhance photos.parquet --out evaluation --limit 8
    """
    from jobs.evaluate import run_evaluate_enhance

    recipe = {
        "model": "pocket" if model == "auto" else model,
        "overrides": dict(assignment(text) for text in overrides or []),
        **({} if preset is None else {"preset": preset}),
    }
    draw = {
        "num_dulled": dulled if limit is None else min(dulled, limit),
        "num_untouched": untouched if limit is None else min(untouched, limit),
        "num_validation": validation, "severity": severity, "max_px": max_px,
        "types": words(types), "seed": seed,
    }  # fmt: skip
    options = {
        "recipe": recipe, "referee": referee, "methods": words(methods),
        "directions": words(directions), "batch_size": batch_size, "draw": draw,
    }  # fmt: skip
    code = run_evaluate_enhance(photos, out, options, workers=workers, redo=redo, as_json=json)
    raise typer.Exit(code)


@app.command("samples")
def samples(
    photos: EvaluationPhotos,
    out: EvaluationOut,
    captions: Annotated[
        list[str] | None,
        typer.Option("--caption", help="What to draw; repeatable.  \\[default: five flowers]"),
    ] = None,
    number: Annotated[int, typer.Option(help="Samples of each caption.")] = 40,
    steps: Annotated[
        str, typer.Option(help="Denoising steps; several, comma-separated, are compared.")
    ] = "50",
    guidance_scale: Annotated[float, typer.Option(help="Of classifier-free guidance.")] = 3.0,
    samplers: Annotated[
        str,
        typer.Option("--sampler", "--samplers", help="ddim, edict or belm; several are compared."),
    ] = "ddim",
    size: Annotated[int, typer.Option(help="Side of the samples, in pixels.")] = 128,
    model: Model = "pocket",
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    json: Json = False,
) -> None:
    """Draw photos from captions and measure how near they come to held-out photos.

    Of several samplers or numbers of steps, the pictures of the same noise are compared as well.

    Example: doodl-batch evaluate samples flowers.parquet --out samples --caption "a photo of roses"
    """
    from jobs.evaluate import run_evaluate_samples

    options = {
        "number": number, "steps": _numbers(steps), "guidance_scale": guidance_scale,
        "samplers": words(samplers), "size_px": size, "seed": seed,
        "model": "pocket" if model == "auto" else model,
        **({"captions": tuple(captions)} if captions else {}),
    }  # fmt: skip
    raise typer.Exit(run_evaluate_samples(photos, out, options, as_json=json))


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in words(text))
    except ValueError:
        raise exits.UsageError(f"--steps {text!r} must be whole numbers, as in 10,20,50.") from None


Seeds = Annotated[int, typer.Option(help="Pictures of each, each from a seed of its own.")]
FirstSeed = Annotated[int, typer.Option("--seed", help="The first seed.")]
Methods = Annotated[
    str,
    typer.Option(
        help="Of original, one-step, hybrid, doodl, original-belm and doodl-belm, "
        "comma-separated.  \\[default: original,one-step,doodl]"
    ),
]
Measures = Annotated[
    list[str] | None,
    typer.Option(
        "--measure",
        metavar="SCORER",
        help="Judges the pictures, and has no part in them; repeatable.  "
        "\\[default: the shipped judge and referee]",
    ),
]
Size = Annotated[int, typer.Option(help="Side of the pictures, in pixels.")]
GuidedWorkers = Annotated[int, typer.Option(help="Processes, of one thread each.")]
Validation = Annotated[
    int, typer.Option(help="Pictures of other seeds that the rivals' strengths are tuned on.")
]
Guides = Annotated[
    list[str] | None,
    typer.Option("--guide", help="What guides instead of the preset's guides; repeatable."),
]
Redo = Annotated[bool, typer.Option("--redo", help="Compute finished rows again.")]
GuidedBatch = Annotated[int, typer.Option("--batch-size", help="Pictures drawn together.")]


@app.command("text")
def text(
    out: EvaluationOut,
    prompts: Annotated[
        list[str] | None,
        typer.Option("--prompt", help="What to draw; repeatable.  \\[default: five flowers]"),
    ] = None,
    prompts_file: Annotated[
        Path | None,
        typer.Option(
            help="Prompts one a line, or CSV or TSV with columns Prompts and Category.",
            exists=True,
            dir_okay=False,
            metavar="FILE",
        ),
    ] = None,
    seeds: Seeds = 10,
    seed: FirstSeed = 0,
    methods: Methods = "",
    measures: Measures = None,
    guides: Guides = None,
    model: Model = "pocket",
    preset: Preset = None,
    overrides: Set = None,
    size: Size = 128,
    validation: Validation = 8,
    workers: GuidedWorkers = 1,
    batch_size: GuidedBatch = 8,
    redo: Redo = False,
    json: Json = False,
) -> None:
    """Measure text guidance: is the picture nearer its caption, to models that did not guide?

    Example: doodl-batch evaluate text --out text-guidance --prompt "a photo of roses" --seeds 4
    """
    if prompts and prompts_file:
        raise exits.UsageError("--prompt and --prompts-file exclude each other.")
    _guided(
        "text",
        out,
        locals(),
        prompts=prompts,
        prompts_text=None if prompts_file is None else prompts_file.read_text("utf-8"),
    )


@app.command("classes")
def classes(
    out: EvaluationOut,
    photos: Annotated[
        list[Path] | None,
        typer.Option(
            "--photos",
            parser=local_only,
            metavar="PATH",
            help="Real photos with a column `label`, for the distance to each class; repeatable.",
        ),
    ] = None,
    labels: Annotated[
        list[str] | None,
        typer.Option("--class", help="Asked for; repeatable.  \\[default: all the classifier has]"),
    ] = None,
    prompt: Annotated[
        str, typer.Option(help="For the denoiser; {class} stands for the class's name.")
    ] = "a photo of a flower",
    seeds: Seeds = 10,
    seed: FirstSeed = 0,
    methods: Methods = "",
    measures: Measures = None,
    guides: Guides = None,
    model: Model = "pocket",
    preset: Preset = None,
    overrides: Set = None,
    size: Size = 128,
    validation: Validation = 8,
    workers: GuidedWorkers = 1,
    batch_size: GuidedBatch = 8,
    redo: Redo = False,
    json: Json = False,
) -> None:
    """Measure classifier guidance (vocabulary expansion): is it the class to another classifier?

    Example: doodl-batch evaluate classes --out classes --photos flowers.parquet --seeds 4
    """
    _guided("classes", out, locals(), labels=labels, prompt=prompt, photos=photos or [])


@app.command("personalize")
def personalize(
    photos: EvaluationPhotos,
    out: EvaluationOut,
    subjects: Annotated[int, typer.Option(help="Photos that are exemplars, one each.")] = 10,
    prompt: Annotated[str, typer.Option(help="For the denoiser.")] = "a photo of a flower",
    seeds: Seeds = 10,
    seed: FirstSeed = 0,
    methods: Methods = "",
    measures: Measures = None,
    guides: Guides = None,
    model: Model = "pocket",
    preset: Preset = None,
    overrides: Set = None,
    size: Size = 128,
    validation: Validation = 8,
    workers: GuidedWorkers = 1,
    batch_size: GuidedBatch = 8,
    redo: Redo = False,
    json: Json = False,
) -> None:
    """Measure personalisation: is the subject in it, and the prompt, to others than the guide?

    Example: doodl-batch evaluate personalize flowers.parquet --out personal --subjects 4 --seeds 2
    """
    _guided("personalize", out, locals(), photos=photos, subjects=subjects, prompt=prompt)


@app.command("aesthetic")
def aesthetic(
    out: EvaluationOut,
    prompts: Annotated[
        list[str] | None,
        typer.Option("--prompt", help="What to draw; repeatable.  \\[default: five flowers]"),
    ] = None,
    seeds: Seeds = 10,
    seed: FirstSeed = 0,
    methods: Methods = "",
    measures: Measures = None,
    guides: Guides = None,
    model: Model = "pocket",
    preset: Preset = None,
    overrides: Set = None,
    size: Size = 128,
    validation: Validation = 8,
    workers: GuidedWorkers = 1,
    batch_size: GuidedBatch = 8,
    redo: Redo = False,
    json: Json = False,
) -> None:
    """Measure aesthetic guidance: wins, draws and losses by scorers that did not guide.

    Example: doodl-batch evaluate aesthetic --out aesthetic --seeds 4
    """
    _guided("aesthetic", out, locals(), prompts=prompts)


def _guided(task: str, out: Path, given: dict[str, Any], **items: Any) -> None:
    from jobs.evaluate import run_evaluate_guided

    overrides = dict(assignment(one) for one in given["overrides"] or [])
    if given["guides"]:
        overrides["guides"] = given["guides"]
    options = {
        "task": task,
        "recipe": {
            "model": "pocket" if given["model"] == "auto" else given["model"],
            "overrides": overrides,
            **({} if given["preset"] is None else {"preset": given["preset"]}),
        },
        "methods": words(given["methods"]), "measures": tuple(given["measures"] or ()),
        "seeds": given["seeds"], "seed": given["seed"], "size_px": given["size"],
        "validation": given["validation"], "batch_size": given["batch_size"], **items,
    }  # fmt: skip
    code = run_evaluate_guided(
        out, options, workers=given["workers"], redo=given["redo"], as_json=given["json"]
    )
    raise typer.Exit(code)
