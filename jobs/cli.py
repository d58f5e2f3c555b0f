"""The `doodl-batch` command: options in, one call out. Imports neither torch nor Ray nor Arrow."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from jobs import console, exits, human, locations, repair
from jobs.evaluate_commands import app as evaluate_app
from jobs.options import (
    BatchSize,
    Json,
    Method,
    Model,
    Preset,
    Quality,
    Sampler,
    Set,
    recipe_overrides,
)
from jobs.schedule.commands import app as schedule_app
from jobs.study import app as study_app

app = typer.Typer(
    name="doodl-batch",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Improve collections of photographs with diffusion models.",
)
models_app = typer.Typer(no_args_is_help=True, help="The models that can be used.")
presets_app = typer.Typer(no_args_is_help=True, help="The recipes, by name, value by value.")
manifest_app = typer.Typer(no_args_is_help=True, help="Tables that say what to do for each photo.")
app.add_typer(models_app, name="models")
app.add_typer(presets_app, name="presets")
app.add_typer(manifest_app, name="manifest")
app.add_typer(evaluate_app, name="evaluate")
app.add_typer(schedule_app, name="schedule")
app.add_typer(study_app, name="study")
human.register(evaluate_app)
repair.register(app)


Photos = Annotated[
    Path,
    locations.argument(
        "PHOTOS", "A folder of photos, or a manifest (.parquet, .csv, .jsonl).", remote=True
    ),
]
LocalPhotos = Annotated[
    Path, locations.argument("PHOTOS", "A folder of photos, or a manifest, on this machine.")
]
OutArgument = Annotated[Path, locations.argument("OUT", "The output folder of a job.", remote=True)]
LocalOut = Annotated[Path, locations.argument("OUT", "The output folder of a job.")]
Out = Annotated[
    Path | None,
    typer.Option(
        help="Output folder.  \\[default: PHOTOS-doodl beside the photos]",
        parser=locations.location,
        metavar="PATH",
    ),
]
LocalOutOption = Annotated[
    Path | None, locations.option("Output folder.  \\[default: PHOTOS-doodl beside the photos]")
]
Direction = Annotated[
    str | None,
    typer.Option(help="Move the score: up, down, or target (with --target).  \\[default: up]"),
]
Target = Annotated[float | None, typer.Option(help="Score to reach; implies --direction target.")]
Strength = Annotated[float, typer.Option(help="Share of the change that is delivered, 0 to 1.")]
Prompt = Annotated[str, typer.Option(help="What the photos show, for the denoiser; may be empty.")]
Seed = Annotated[
    int | None, typer.Option(help="Seed of every row.  \\[default: from its work_key]")
]
Images = Annotated[str, typer.Option(help="Keep edited photos as: both, files or parquet.")]
MaxPixels = Annotated[int, typer.Option(help="Photos of more pixels than this fail their row.")]
StripGps = Annotated[bool, typer.Option("--strip-gps", help="Leave positions out of the results.")]
Workers = Annotated[
    int,
    typer.Option(
        "--workers",
        "--max-workers",
        help="At most so many workers; a cluster may grow to them.  0: what there is room for now.",
    ),
]
GpusPerWorker = Annotated[
    float, typer.Option(help="GPUs that each worker takes; 0.5 lets two share one.")
]
CpusPerWorker = Annotated[float, typer.Option(help="CPU cores that each worker takes.")]
Resources = Annotated[
    str | None,
    typer.Option(metavar="JSON", help="A cluster's own resources per worker, as '{\"a100\": 1}'."),
]
Sidecar = Annotated[bool, typer.Option("--sidecar", help="Write a JSON file beside each photo.")]
Deliver = Annotated[
    str,
    typer.Option(help="transfer: the change made on the photo; model: the model's own pixels."),
]
Detail = Annotated[
    float, typer.Option(help="Share of the model's new fine detail that is blended in, 0 to 1.")
]
Runner = Annotated[
    str,
    typer.Option(
        help="auto, submit (a job of the cluster at --address or RAY_ADDRESS), local (a private "
        "Ray on this machine) or inline (no Ray, one process)."
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        help="A Ray cluster: http://HOST:8265, HOST:6379 or auto.  \\[default: RAY_ADDRESS]"
    ),
]
Code = Annotated[
    str, typer.Option(help="What the cluster runs: wheel (this installation) or image (its own).")
]
RuntimeEnv = Annotated[
    Path | None,
    typer.Option(
        help="Ray runtime environment for the cluster, YAML or JSON: pip, env_vars, …",
        metavar="FILE",
        exists=True,
        dir_okay=False,
    ),
]
Detach = Annotated[
    bool, typer.Option("--detach", help="Print the submitted job's id and leave it to itself.")
]
MaxChange = Annotated[
    float | None,
    typer.Option(
        help="Budget: the largest RMS change of a delivered photo, as a share of the range; 0.1 is "
        "20 dB. What overspends is not delivered.  \\[default: no budget]"
    ),
]
Protect = Annotated[
    Path | None,
    typer.Option(
        help="Folder of masks, named as the photos are: what is white there stays as it is.",
        parser=locations.local_only,
        metavar="MASK_DIR",
    ),
]
ProtectWith = Annotated[
    str | None,
    typer.Option(metavar="MODULE:FUNCTION", help="Your own code that draws masks: faces, text."),
]
Report = Annotated[bool, typer.Option(help="Write OUT/report at the end.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
RowTimeout = Annotated[
    float, typer.Option(help="Seconds after which a photo is given up; 0: never.")
]
CheckpointEvery = Annotated[
    int, typer.Option(help="Iterations between checkpoints of a photo in work; 0: none.")
]
MaxAttempts = Annotated[
    int, typer.Option(help="Workers that a photo may kill before it is given up.")
]
Breaker = Annotated[
    int, typer.Option(help="Stop if so many photos fail and none succeeds; 0: never.")
]
Grace = Annotated[
    float,
    typer.Option(
        min=0.0, help="Seconds that photos in work get to finish after Ctrl-C or SIGTERM."
    ),
]
Redo = Annotated[bool, typer.Option("--redo", help="Do everything again, with these options.")]
Moved = Annotated[
    bool,
    typer.Option("--moved", help="The photos are those of before, in a new place: go on there."),
]
Force = Annotated[bool, typer.Option("--force", help="Compute rows again that are done.")]
RetryFailed = Annotated[
    bool, typer.Option("--retry-failed", help="Retry every failed row, hopeless ones too.")
]
OnlyFailed = Annotated[bool, typer.Option("--only-failed", help="Retry failed rows, nothing else.")]
Classes = Annotated[
    list[str] | None,
    typer.Option("--class", help="With --only-failed: failures of this class; repeatable."),
]
Rows = Annotated[list[str] | None, typer.Option("--row", help="Only this row; repeatable.")]
Since = Annotated[
    str | None, typer.Option(help="Only photos modified since: 2026-11-01, or 7d, 12h, 30m.")
]
Limit = Annotated[int | None, typer.Option(help="At most so many rows this time.")]
MaxGpuHours = Annotated[
    float | None, typer.Option(help="Stop in order once so many worker hours are spent (exit 8).")
]
OnFinish = Annotated[
    str | None,
    typer.Option(
        metavar="CMD|URL",
        help="At the end, run a command with a JSON summary on its input, or POST the counts.",
    ),
]
IfRunning = Annotated[str, typer.Option(help="If another run has the folder: fail, skip or wait.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]
PromptsManifest = Annotated[
    Path | None,
    locations.argument(
        "PROMPTS", "A manifest of prompts (.csv, .jsonl, .parquet), or use --prompt."
    ),
]
GenerateOut = Annotated[
    Path | None,
    typer.Option(
        help="Output folder.  \\[default: PROMPTS-doodl beside the manifest, or ./doodl-generated]",
        parser=locations.local_only,
        metavar="PATH",
    ),
]
Prompts = Annotated[
    list[str] | None, typer.Option("--prompt", help="What to make a picture of; repeatable.")
]
Guides = Annotated[
    list[str] | None,
    typer.Option(
        "--guide",
        metavar="GUIDE",
        help='What to optimise for, as text=1, text:"a red rose"=0.5, aesthetic=1, '
        "classifier:pocket/tulips=2 or symmetry=0.1; repeatable.",
    ),
]
NegativePrompt = Annotated[str, typer.Option(help="What the pictures are led away from.")]
Seeds = Annotated[int, typer.Option(help="Pictures of each prompt, each from a seed of its own.")]
FirstSeed = Annotated[int | None, typer.Option("--seed", help="The first seed.  \\[default: 0]")]
Size = Annotated[
    str | None,
    typer.Option(metavar="PX", help="512, or 768x512 (width, height).  \\[default: the preset's]"),
]
Format = Annotated[str, typer.Option(help="png, jpeg or webp.")]
SafetyChecker = Annotated[
    str, typer.Option(help="auto (the model's own, where it ships one) or off.")
]
GenerateModel = Annotated[
    str,
    typer.Option(
        "--model", help="auto, pocket, a name of `models list`, a pulled hub id, or a path."
    ),
]
GeneratePreset = Annotated[
    str | None,
    typer.Option("--preset", help="Recipe.  \\[default: the task's, see docs/generate.md]"),
]
Subjects = Annotated[
    list[Path] | None,
    typer.Option(
        "--subject", parser=locations.local_only, metavar="PHOTO", help="A photo of it; repeatable."
    ),
]


def spec_options(
    *,
    direction: str | None,
    target: float | None,
    model: str,
    preset: str | None,
    overrides: list[str] | None,
    quality: str | None = None,
    sampler: str | None = None,
    method: str | None = None,
    **others: Any,
) -> dict[str, Any]:
    """Return the options of a job spec from those of the command line."""
    options = {name: value for name, value in others.items() if value is not None}
    options["direction"] = direction or ("up" if target is None else "target")
    options["target"], options["model"] = target, model
    if preset is not None:
        options["preset"] = preset
    options["overrides"] = recipe_overrides(overrides, quality, sampler, method)
    if (max_change := options.pop("max_change", None)) is not None:
        options["overrides"]["max_change"] = max_change
    return options


def guard_options(
    max_change: float | None, protect: Path | None, protect_with: str | None
) -> dict[str, Any]:
    """Return what is asked of the guard, for `spec_options`."""
    return {
        "max_change": max_change,
        "protect": None if protect is None else str(protect),
        "protect_with": protect_with,
    }


def resource_amounts(text: str | None) -> dict[str, float]:
    """Return the amounts of --resources."""
    import json

    try:
        amounts = json.loads(text or "{}")
    except json.JSONDecodeError:
        amounts = None
    if not isinstance(amounts, dict):
        raise exits.UsageError(f"--resources {text!r} must be JSON, as '{{\"a100\": 1}}'.")
    return amounts


@app.command()
def enhance(
    photos: Photos,
    out: Out = None,
    direction: Direction = None,
    target: Target = None,
    model: Model = "auto",
    preset: Preset = None,
    overrides: Set = None,
    quality: Quality = None,
    sampler: Sampler = None,
    method: Method = None,
    strength: Strength = 1.0,
    prompt: Prompt = "",
    seed: Seed = None,
    images: Images = "both",
    max_pixels: MaxPixels = 200_000_000,
    strip_gps: StripGps = False,
    deliver: Deliver = "transfer",
    detail: Detail = 0.0,
    max_change: MaxChange = None,
    protect: Protect = None,
    protect_with: ProtectWith = None,
    sidecar: Sidecar = False,
    workers: Workers = 0,
    batch_size: BatchSize = 1,
    gpus_per_worker: GpusPerWorker = 1.0,
    cpus_per_worker: CpusPerWorker = 1.0,
    resources: Resources = None,
    runner: Runner = "auto",
    address: Address = None,
    code: Code = "wheel",
    runtime_env: RuntimeEnv = None,
    detach: Detach = False,
    device: Device = "auto",
    row_timeout: RowTimeout = 0.0,
    checkpoint_every: CheckpointEvery = 5,
    max_attempts: MaxAttempts = 2,
    breaker: Breaker = 20,
    grace: Grace = 30.0,
    redo: Redo = False,
    moved: Moved = False,
    force: Force = False,
    retry_failed: RetryFailed = False,
    only_failed: OnlyFailed = False,
    since: Since = None,
    limit: Limit = None,
    max_gpu_hours: MaxGpuHours = None,
    if_running: IfRunning = "fail",
    report: Report = True,
    on_finish: OnFinish = None,
    check: Annotated[bool, typer.Option("--check", hidden=True)] = False,
    json: Json = False,
) -> None:
    """Edit every photo so that its aesthetic score moves the way you ask.

    The same command again goes on where the last one stopped.

    Example: doodl-batch enhance photos/ --direction up
    """
    from jobs.enhance import check_enhance, run_enhance
    from jobs.submit import Where

    options = spec_options(
        direction=direction, target=target, model=model, preset=preset, overrides=overrides,
        quality=quality, sampler=sampler, method=method,
        strength=strength, prompt=prompt, seed=seed, images=images, strip_gps=strip_gps,
        deliver=deliver, detail=detail, sidecar=sidecar,
        **guard_options(max_change, protect, protect_with),
        max_pixels=max_pixels, num_workers=workers, batch_size=batch_size,
        gpus_per_worker=gpus_per_worker, cpus_per_worker=cpus_per_worker,
        resources=resource_amounts(resources), device=device,
        row_timeout_seconds=row_timeout, checkpoint_every=checkpoint_every,
        max_attempts=max_attempts, breaker=breaker, grace_seconds=grace,
    )  # fmt: skip
    choice = {
        "redo": redo, "moved": moved, "force": force,
        "retry_failed": retry_failed, "only_failed": only_failed,
        "since": since, "limit": limit, "max_gpu_hours": max_gpu_hours,
        "if_running": if_running,
    }  # fmt: skip
    if check:
        raise typer.Exit(check_enhance(photos, out, options, choice, on_finish))
    where = Where(runner, address, code, runtime_env, detach)
    raise typer.Exit(
        run_enhance(
            photos, out, options, choice, where, report=report, on_finish=on_finish, as_json=json
        )
    )  # fmt: skip


@app.command()
def generate(
    prompts_manifest: PromptsManifest = None,
    prompt: Prompts = None,
    out: GenerateOut = None,
    guide: Guides = None,
    negative_prompt: NegativePrompt = "",
    seeds: Seeds = 1,
    seed: FirstSeed = None,
    size: Size = None,
    format: Format = "png",
    direction: Direction = None,
    target: Target = None,
    model: GenerateModel = "auto",
    preset: GeneratePreset = None,
    overrides: Set = None,
    sampler: Sampler = None,
    safety_checker: SafetyChecker = "auto",
    images: Images = "both",
    workers: Workers = 0,
    batch_size: BatchSize = 1,
    runner: Runner = "local",
    device: Device = "auto",
    row_timeout: RowTimeout = 0.0,
    checkpoint_every: CheckpointEvery = 5,
    max_attempts: MaxAttempts = 2,
    breaker: Breaker = 20,
    grace: Grace = 30.0,
    redo: Redo = False,
    force: Force = False,
    retry_failed: RetryFailed = False,
    only_failed: OnlyFailed = False,
    limit: Limit = None,
    max_gpu_hours: MaxGpuHours = None,
    if_running: IfRunning = "fail",
    report: Report = True,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Make pictures of prompts, their noise optimised by what you ask of the final pixels.

    Without --guide the prompt itself guides; --guide none makes plain samples. A manifest has a
    column prompt and, if you like, negative_prompt, seed, label, guides and row_id. The same
    command again goes on where the last one stopped; more --seeds make only the new pictures.

    Example: doodl-batch generate --prompt "a photo of a sunflower" --guide text=1 --seeds 4
    """
    from jobs.generate import run_generate

    options = prompt_options(
        prompts=prompt, guides=guide, overrides=overrides, direction=direction, target=target,
        sampler=sampler,
        model=model, preset=preset, negative_prompt=negative_prompt, num_seeds=seeds, seed=seed,
        size=size, image_format=format, safety_checker=safety_checker, images=images,
        num_workers=workers, batch_size=batch_size, runner=runner, device=device,
        row_timeout_seconds=row_timeout, checkpoint_every=checkpoint_every,
        max_attempts=max_attempts, breaker=breaker, grace_seconds=grace,
    )  # fmt: skip
    choice = {
        "redo": redo, "force": force, "retry_failed": retry_failed, "only_failed": only_failed,
        "limit": limit, "max_gpu_hours": max_gpu_hours, "if_running": if_running,
    }  # fmt: skip
    code = run_generate(
        "generate", prompts_manifest, out, options, choice,
        dry_run=dry_run, report=report, as_json=json,
    )  # fmt: skip
    raise typer.Exit(code)


def prompt_options(
    *, prompts: list[str] | None, guides: list[str] | None, size: str | None, **others: Any
) -> dict[str, Any]:
    """Return the options of a generation job's spec from those of the command line."""
    options = spec_options(**others)
    options["prompts"], options["size"] = prompts or [], size
    if guides:
        options["overrides"]["guides"] = guides
    return options


@app.command()
def personalize(
    prompts_manifest: PromptsManifest = None,
    subject: Subjects = None,
    prompt: Prompts = None,
    out: GenerateOut = None,
    guide: Guides = None,
    negative_prompt: NegativePrompt = "",
    seeds: Seeds = 1,
    seed: FirstSeed = None,
    size: Size = None,
    format: Format = "png",
    direction: Direction = None,
    target: Target = None,
    model: GenerateModel = "auto",
    preset: GeneratePreset = None,
    overrides: Set = None,
    sampler: Sampler = None,
    safety_checker: SafetyChecker = "auto",
    images: Images = "both",
    max_pixels: MaxPixels = 200_000_000,
    workers: Workers = 0,
    batch_size: BatchSize = 1,
    runner: Runner = "local",
    device: Device = "auto",
    row_timeout: RowTimeout = 0.0,
    checkpoint_every: CheckpointEvery = 5,
    max_attempts: MaxAttempts = 2,
    breaker: Breaker = 20,
    grace: Grace = 30.0,
    redo: Redo = False,
    force: Force = False,
    retry_failed: RetryFailed = False,
    only_failed: OnlyFailed = False,
    limit: Limit = None,
    max_gpu_hours: MaxGpuHours = None,
    if_running: IfRunning = "fail",
    report: Report = True,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Make pictures of a subject that you show in one photo or several.

    Ask the people in the photos first: see docs/generate.md. A manifest may name each row's own
    photos in a column subject_uris.

    Example: doodl-batch personalize --subject dog.jpg --prompt "a dog in a bucket" --seeds 6
    """
    from jobs.personalize import run_personalize

    options = prompt_options(
        prompts=prompt, guides=guide, overrides=overrides, direction=direction, target=target,
        sampler=sampler,
        model=model, preset=preset, negative_prompt=negative_prompt, num_seeds=seeds, seed=seed,
        size=size, image_format=format, safety_checker=safety_checker, images=images,
        max_pixels=max_pixels, num_workers=workers, batch_size=batch_size, runner=runner,
        device=device, row_timeout_seconds=row_timeout, checkpoint_every=checkpoint_every,
        max_attempts=max_attempts, breaker=breaker, grace_seconds=grace,
    )  # fmt: skip
    choice = {
        "redo": redo, "force": force, "retry_failed": retry_failed, "only_failed": only_failed,
        "limit": limit, "max_gpu_hours": max_gpu_hours, "if_running": if_running,
    }  # fmt: skip
    code = run_personalize(
        prompts_manifest, out, subject or [], options, choice,
        dry_run=dry_run, report=report, as_json=json,
    )  # fmt: skip
    raise typer.Exit(code)


@app.command()
def invert(
    photos: LocalPhotos,
    out: LocalOutOption = None,
    back: Annotated[
        bool, typer.Option("--back", help="PHOTOS holds latents files: make photos of them.")
    ] = False,
    model: GenerateModel = "auto",
    preset: GeneratePreset = None,
    overrides: Set = None,
    sampler: Sampler = None,
    prompt: Prompt = "",
    format: Format = "png",
    images: Images = "both",
    max_pixels: MaxPixels = 200_000_000,
    workers: Workers = 0,
    batch_size: BatchSize = 1,
    runner: Runner = "local",
    device: Device = "auto",
    row_timeout: RowTimeout = 0.0,
    max_attempts: MaxAttempts = 2,
    breaker: Breaker = 20,
    grace: Grace = 30.0,
    redo: Redo = False,
    moved: Moved = False,
    force: Force = False,
    retry_failed: RetryFailed = False,
    only_failed: OnlyFailed = False,
    since: Since = None,
    limit: Limit = None,
    max_gpu_hours: MaxGpuHours = None,
    if_running: IfRunning = "fail",
    report: Report = True,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Turn photos into the noise of the model, exactly, and back; say how well that went.

    OUT/latents holds the noise (safetensors), OUT/edited the photo made of it again, and the
    results its error. `--back` on such a folder makes the photos from the noise alone.

    Example: doodl-batch invert photos/ --out inverted
    """
    from jobs.invert import run_invert

    options = spec_options(
        direction=None, target=None, model=model, preset=preset, overrides=overrides,
        sampler=sampler,
        prompt=prompt, image_format=format, images=images, max_pixels=max_pixels,
        num_workers=workers, batch_size=batch_size, runner=runner, device=device,
        row_timeout_seconds=row_timeout, max_attempts=max_attempts, breaker=breaker,
        grace_seconds=grace,
    )  # fmt: skip
    choice = {
        "redo": redo, "moved": moved, "force": force,
        "retry_failed": retry_failed, "only_failed": only_failed,
        "since": since, "limit": limit, "max_gpu_hours": max_gpu_hours, "if_running": if_running,
    }  # fmt: skip
    code = run_invert(
        photos, out, options, choice, back=back, dry_run=dry_run, report=report, as_json=json
    )
    raise typer.Exit(code)


@app.command()
def plan(
    photos: Photos,
    out: Out = None,
    direction: Direction = None,
    target: Target = None,
    model: Model = "auto",
    preset: Preset = None,
    overrides: Set = None,
    quality: Quality = None,
    sampler: Sampler = None,
    method: Method = None,
    strength: Strength = 1.0,
    prompt: Prompt = "",
    seed: Seed = None,
    max_pixels: MaxPixels = 200_000_000,
    strip_gps: StripGps = False,
    deliver: Deliver = "transfer",
    detail: Detail = 0.0,
    max_change: MaxChange = None,
    protect: Protect = None,
    protect_with: ProtectWith = None,
    redo: Redo = False,
    moved: Moved = False,
    force: Force = False,
    retry_failed: RetryFailed = False,
    only_failed: OnlyFailed = False,
    since: Since = None,
    limit: Limit = None,
    workers: Workers = 0,
    device: Device = "auto",
    price_per_hour: Annotated[
        float | None, typer.Option(help="Price of one worker's accelerator, to reckon the cost.")
    ] = None,
    probe: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Edit so many photos now to measure the time, keeping nothing.  "
            "\\[default: 1 if no earlier run tells and the model is pocket]",
        ),
    ] = None,
    calibrate_from: Annotated[
        Path | None,
        typer.Option(
            help="Another job's output folder, whose runs tell the time.",
            parser=locations.local_only,
            metavar="OUT",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Say what `enhance` would do, how long it would take and what it would cost; do nothing.

    Example: doodl-batch plan photos/ --direction up --price-per-hour 2.50
    """
    from jobs.plan import show_plan

    options = spec_options(
        direction=direction, target=target, model=model, preset=preset, overrides=overrides,
        quality=quality, sampler=sampler, method=method,
        strength=strength, prompt=prompt, seed=seed, max_pixels=max_pixels, strip_gps=strip_gps,
        num_workers=workers, device=device, deliver=deliver, detail=detail,
        **guard_options(max_change, protect, protect_with),
    )  # fmt: skip
    choice = {
        "redo": redo, "moved": moved, "force": force,
        "retry_failed": retry_failed, "only_failed": only_failed,
        "since": since, "limit": limit,
    }  # fmt: skip
    raise typer.Exit(
        show_plan(
            photos, out, options, choice, probe_rows=probe, price_per_hour=price_per_hour,
            calibrate_from=calibrate_from, as_json=json,
        )
    )  # fmt: skip


@app.command()
def run(
    spec: Annotated[
        Path, locations.argument("SPEC", "A job spec in JSON, as OUT/_state/spec.json.")
    ],
    runner: Runner = "auto",
    address: Address = None,
    code: Code = "wheel",
    runtime_env: RuntimeEnv = None,
    detach: Detach = False,
    redo: Redo = False,
    moved: Moved = False,
    force: Force = False,
    retry_failed: RetryFailed = False,
    only_failed: OnlyFailed = False,
    classes: Classes = None,
    rows: Rows = None,
    since: Since = None,
    limit: Limit = None,
    max_gpu_hours: MaxGpuHours = None,
    if_running: IfRunning = "fail",
    report: Report = True,
    on_finish: OnFinish = None,
    json: Json = False,
) -> None:
    """Run a written job spec: what a scheduler or a cluster executes.

    Example: doodl-batch run photos-doodl/_state/spec.json
    """
    from jobs.enhance import run_spec_file
    from jobs.submit import Where

    choice = {
        "redo": redo, "moved": moved, "force": force,
        "retry_failed": retry_failed, "only_failed": only_failed,
        "only_classes": tuple(classes or ()), "only_rows": None if rows is None else tuple(rows),
        "since": since, "limit": limit, "max_gpu_hours": max_gpu_hours,
        "if_running": if_running,
    }  # fmt: skip
    where = Where(runner, address, code, runtime_env, detach)
    raise typer.Exit(
        run_spec_file(
            spec, choice, where, report=report, on_finish=on_finish, as_json=json
        )
    )  # fmt: skip


@app.command()
def status(out: OutArgument, address: Address = None, json: Json = False) -> None:
    """Count an output folder's rows by state, and say whether a run is at work on it.

    Example: doodl-batch status photos-doodl
    """
    from jobs.status import show_status

    raise typer.Exit(show_status(out, address, as_json=json))


@app.command()
def logs(
    out: OutArgument,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the job ends.")
    ] = False,
    address: Address = None,
) -> None:
    """Show what the job says that was last submitted to a cluster for an output folder.

    Example: doodl-batch logs photos-doodl --follow
    """
    from jobs.logs import show_logs

    raise typer.Exit(show_logs(out, address, follow=follow))


@app.command()
def stop(out: OutArgument, address: Address = None, json: Json = False) -> None:
    """Let the run at work on an output folder end in order, and say what is committed.

    Example: doodl-batch stop photos-doodl
    """
    from jobs.stop import stop_run

    raise typer.Exit(stop_run(out, address, as_json=json))


@app.command()
def history(
    out: OutArgument,
    limit: Annotated[int, typer.Option(min=1, help="So many runs, the newest.")] = 30,
    json: Json = False,
) -> None:
    """Show an output folder's runs, night by night: when, how many, how long, how they ended.

    Example: doodl-batch history photos-doodl
    """
    from jobs.history import show_history

    raise typer.Exit(show_history(out, limit, as_json=json))


@app.command()
def restrength(
    out: LocalOut,
    strength: Annotated[float, typer.Option(help="Share of each change to deliver, 0 to 1.")],
    detail: Detail = 0.0,
    to: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Where to.  \\[default: OUT/strength-STRENGTH]",
            parser=locations.local_only,
            metavar="PATH",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Deliver the edits of an output folder at another strength, from the originals; no model runs.

    Example: doodl-batch restrength photos-doodl --strength 0.5
    """
    from jobs.restrength import run_restrength

    raise typer.Exit(run_restrength(out, strength, detail, to, as_json=json))


@app.command()
def report(
    out: LocalOut,
    compare: Annotated[
        Path | None,
        typer.Option(
            help="Another run over the same photos, to stand beside OUT's.",
            parser=locations.local_only,
            metavar="RUN_A",
        ),
    ] = None,
) -> None:
    """Write OUT/report/index.html: before and after, scores, failures; or two runs side by side.

    Example: doodl-batch report photos-doodl

    Example: doodl-batch report --compare photos-mild photos-strong
    """
    if compare is not None:
        from jobs.report.compare import build_comparison

        console.result(str(build_comparison(str(compare), str(out))))
        return
    from jobs.report.build import build_report

    console.result(str(build_report(str(out))))


@app.command()
def score(
    photos: LocalPhotos,
    model: Model = "auto",
    json: Json = False,
) -> None:
    """Score photos with the guide and the judge, editing nothing.

    Example: doodl-batch score photos/
    """
    from jobs.score import show_scores

    raise typer.Exit(show_scores(photos, model, as_json=json))


@models_app.command("list")
def models_list(json: Json = False) -> None:
    """List the models this installation can use.

    Example: doodl-batch models list
    """
    from jobs.models import show_models

    raise typer.Exit(show_models(as_json=json))


@presets_app.command("list")
def presets_list(json: Json = False) -> None:
    """List the presets and what each is for.

    Example: doodl-batch presets list
    """
    from jobs.presets import list_presets

    raise typer.Exit(list_presets(as_json=json))


@presets_app.command("show")
def presets_show(
    name: Annotated[str, typer.Argument(help="A name of `presets list`.")],
    json: Json = False,
) -> None:
    """Show every value of a preset, what it means, and what --set calls it.

    Example: doodl-batch presets show paper-text
    """
    from jobs.presets import show_preset

    raise typer.Exit(show_preset(name, as_json=json))


@models_app.command("pull")
def models_pull(
    name: Annotated[str, typer.Argument(help="A name of `models list`, or a hub id: owner/name.")],
    yes: Annotated[bool, typer.Option("--yes", help="Agree to the licence; ask nothing.")] = False,
    fp16: Annotated[
        bool, typer.Option("--fp16", help="The half-size files, where there are any.")
    ] = False,
    revision: Annotated[
        str | None, typer.Option(help="Commit or branch.  \\[default: the one we pin, else main]")
    ] = None,
) -> None:
    """Show a model's size and licence, ask, and download it into the hub's cache.

    Example: doodl-batch models pull sd15
    """
    from jobs.models import pull_model

    raise typer.Exit(pull_model(name, yes=yes, fp16=fp16, revision=revision))


@models_app.command("check")
def models_check(
    model: Annotated[str, typer.Argument(help="A name, a pulled hub id, a folder or a file.")],
    json: Json = False,
) -> None:
    """Check that a model is whole and works, and print what it is; exit 6 if it does not.

    Example: doodl-batch models check pocket
    """
    from jobs.models import show_check

    raise typer.Exit(show_check(model, as_json=json))


@app.command()
def doctor(out: LocalOutOption = None, address: Address = None, json: Json = False) -> None:
    """Check this machine: packages, models, disk, accelerator; and the cluster, if one is named.

    Example: doodl-batch doctor
    """
    from jobs.doctor import show_checks

    raise typer.Exit(show_checks(out, address, as_json=json))


@manifest_app.command("build")
def manifest_build(
    photos: Annotated[Path, locations.argument("PHOTOS", "A folder of photos.")],
    manifest: Annotated[Path, locations.argument("MANIFEST", "The Parquet file to write.")],
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Write over a manifest that is there.")
    ] = False,
) -> None:
    """Write a manifest of a folder, to add prompts, directions or targets to.

    Example: doodl-batch manifest build photos/ photos.parquet
    """
    from jobs.manifest import build

    raise typer.Exit(build(photos, manifest, overwrite=overwrite))


@manifest_app.command("show")
def manifest_show(
    manifest: LocalPhotos,
    rows: Annotated[int, typer.Option(help="How many rows.")] = 10,
    json: Json = False,
) -> None:
    """Show the first rows of a manifest or folder as a run would read them.

    Example: doodl-batch manifest show photos.parquet
    """
    from jobs.manifest import show

    raise typer.Exit(show(manifest, rows, as_json=json))


@manifest_app.command("check")
def manifest_check(manifest: LocalPhotos, json: Json = False) -> None:
    """Check a manifest: its columns and every row; exit 3 if a row could not run.

    Example: doodl-batch manifest check photos.parquet
    """
    from jobs.manifest import check

    raise typer.Exit(check(manifest, as_json=json))


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks of errors.", envvar="DOODL_DEBUG")
    ] = False,
) -> None:
    if debug:
        os.environ["DOODL_DEBUG"] = "1"
    if version:
        from doodl import __version__

        console.out.print(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command line; every expected error becomes one line and an exit code."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(exits.SIGINT)
    except Exception as problem:  # what a person sees is a line, not a traceback
        sys.exit(_report(problem))


def _report(problem: Exception) -> int:
    if os.environ.get("DOODL_DEBUG"):
        console.err.print_exception()
    code = exits.exit_code_of(problem)
    if code is None:
        console.error(
            f"{type(problem).__name__}: {problem}",
            None if os.environ.get("DOODL_DEBUG") else "run again with --debug for the traceback",
        )
        return exits.INTERNAL
    if code == exits.OK:
        console.say(f"skipped: {problem}")
    else:
        console.error(str(problem) or type(problem).__name__)  # a MemoryError says nothing
    return code


if __name__ == "__main__":
    main()
