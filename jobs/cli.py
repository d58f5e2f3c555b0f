"""The `doodl-batch` command: options in, one call out. Imports neither torch nor Ray nor Arrow."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from jobs import console, exits

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
manifest_app = typer.Typer(no_args_is_help=True, help="Tables that say what to do for each photo.")
app.add_typer(models_app, name="models")
app.add_typer(manifest_app, name="manifest")


def _path(text: str) -> Path:
    """Return the absolute path of a path or `file://` URI; other storage is not supported yet."""
    from manifests.paths import local_path

    path = local_path(text)
    if path is None:
        raise exits.UsageError(
            f"{text} is not on a local or mounted file system; object stores are not supported yet."
        )
    absolute = Path(path).expanduser().absolute()
    # The default output folder is named after the last part, which must be a name.
    return absolute.resolve() if ".." in absolute.parts else absolute


def _path_argument(metavar: str, help: str) -> Any:
    return typer.Argument(help=help, parser=_path, metavar=metavar)


Photos = Annotated[
    Path, _path_argument("PHOTOS", "A folder of photos, or a manifest (.parquet, .csv, .jsonl).")
]
OutArgument = Annotated[Path, _path_argument("OUT", "The output folder of a job.")]
Out = Annotated[
    Path | None,
    typer.Option(
        help="Output folder.  [default: PHOTOS-doodl beside the photos]",
        parser=_path,
        metavar="PATH",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Direction = Annotated[
    str | None,
    typer.Option(help="Move the score: up, down, or target (with --target).  [default: up]"),
]
Target = Annotated[float | None, typer.Option(help="Score to reach; implies --direction target.")]
Model = Annotated[
    str, typer.Option(help="auto, pocket, or the path of a diffusers pipeline folder.")
]
Preset = Annotated[str | None, typer.Option(help="Recipe: pocket or paper-aesthetic.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME=VALUE", help="Override one value of the preset; repeatable."
    ),
]
Strength = Annotated[float, typer.Option(help="Share of the change that is delivered, 0 to 1.")]
Prompt = Annotated[str, typer.Option(help="What the photos show, for the denoiser; may be empty.")]
Seed = Annotated[int | None, typer.Option(help="Seed of every row.  [default: from its work_key]")]
Images = Annotated[str, typer.Option(help="Keep edited photos as: both, files or parquet.")]
MaxPixels = Annotated[int, typer.Option(help="Photos of more pixels than this fail their row.")]
StripGps = Annotated[bool, typer.Option("--strip-gps", help="Leave positions out of the results.")]
Sidecar = Annotated[bool, typer.Option("--sidecar", help="Write a JSON file beside each photo.")]
Deliver = Annotated[
    str,
    typer.Option(help="transfer: the change made on the photo; model: the model's own pixels."),
]
Detail = Annotated[
    float, typer.Option(help="Share of the model's new fine detail that is blended in, 0 to 1.")
]
Workers = Annotated[int, typer.Option(help="Worker processes; 0: one per core or accelerator.")]
BatchSize = Annotated[int, typer.Option(help="Photos that one worker optimises together.")]
Runner = Annotated[str, typer.Option(help="local (a private Ray) or inline (no Ray, one process).")]
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
Force = Annotated[bool, typer.Option("--force", help="Compute rows again that are done.")]
RetryFailed = Annotated[
    bool, typer.Option("--retry-failed", help="Retry every failed row, hopeless ones too.")
]
OnlyFailed = Annotated[bool, typer.Option("--only-failed", help="Retry failed rows, nothing else.")]
Since = Annotated[
    str | None, typer.Option(help="Only photos modified since: 2026-11-01, or 7d, 12h, 30m.")
]
Limit = Annotated[int | None, typer.Option(help="At most so many rows this time.")]
MaxGpuHours = Annotated[
    float | None, typer.Option(help="Stop in order once so many worker hours are spent (exit 8).")
]
IfRunning = Annotated[str, typer.Option(help="If another run has the folder: fail, skip or wait.")]


def spec_options(
    *,
    direction: str | None,
    target: float | None,
    model: str,
    preset: str | None,
    overrides: list[str] | None,
    **others: Any,
) -> dict[str, Any]:
    """Return the options of a job spec from those of the command line."""
    options = {name: value for name, value in others.items() if value is not None}
    options["direction"] = direction or ("up" if target is None else "target")
    options["target"], options["model"] = target, model
    if preset is not None:
        options["preset"] = preset
    options["overrides"] = dict(_assignment(text) for text in overrides or [])
    return options


def _assignment(text: str) -> tuple[str, Any]:
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


@app.command()
def enhance(
    photos: Photos,
    out: Out = None,
    direction: Direction = None,
    target: Target = None,
    model: Model = "auto",
    preset: Preset = None,
    overrides: Set = None,
    strength: Strength = 1.0,
    prompt: Prompt = "",
    seed: Seed = None,
    images: Images = "both",
    max_pixels: MaxPixels = 200_000_000,
    strip_gps: StripGps = False,
    deliver: Deliver = "transfer",
    detail: Detail = 0.0,
    sidecar: Sidecar = False,
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
    since: Since = None,
    limit: Limit = None,
    max_gpu_hours: MaxGpuHours = None,
    if_running: IfRunning = "fail",
    report: Annotated[bool, typer.Option(help="Write OUT/report at the end.")] = True,
    json: Json = False,
) -> None:
    """Edit every photo so that its aesthetic score moves the way you ask.

    The same command again goes on where the last one stopped.

    Example: doodl-batch enhance photos/ --direction up
    """
    from jobs.enhance import run_enhance

    options = spec_options(
        direction=direction, target=target, model=model, preset=preset, overrides=overrides,
        strength=strength, prompt=prompt, seed=seed, images=images, strip_gps=strip_gps,
        deliver=deliver, detail=detail, sidecar=sidecar,
        max_pixels=max_pixels, num_workers=workers, batch_size=batch_size, runner=runner,
        device=device, row_timeout_seconds=row_timeout, checkpoint_every=checkpoint_every,
        max_attempts=max_attempts, breaker=breaker, grace_seconds=grace,
    )  # fmt: skip
    choice = {
        "redo": redo, "force": force, "retry_failed": retry_failed, "only_failed": only_failed,
        "since": since, "limit": limit, "max_gpu_hours": max_gpu_hours,
        "if_running": if_running,
    }  # fmt: skip
    raise typer.Exit(run_enhance(photos, out, options, choice, report=report, as_json=json))


@app.command()
def plan(
    photos: Photos,
    out: Out = None,
    direction: Direction = None,
    target: Target = None,
    model: Model = "auto",
    preset: Preset = None,
    overrides: Set = None,
    strength: Strength = 1.0,
    prompt: Prompt = "",
    seed: Seed = None,
    max_pixels: MaxPixels = 200_000_000,
    strip_gps: StripGps = False,
    deliver: Deliver = "transfer",
    detail: Detail = 0.0,
    redo: Redo = False,
    force: Force = False,
    retry_failed: RetryFailed = False,
    only_failed: OnlyFailed = False,
    since: Since = None,
    limit: Limit = None,
    json: Json = False,
) -> None:
    """Say what `enhance` would do, and do nothing.

    Example: doodl-batch plan photos/ --direction up
    """
    from jobs.enhance import show_plan

    options = spec_options(
        direction=direction, target=target, model=model, preset=preset, overrides=overrides,
        strength=strength, prompt=prompt, seed=seed, max_pixels=max_pixels, strip_gps=strip_gps,
        deliver=deliver, detail=detail,
    )  # fmt: skip
    choice = {
        "redo": redo, "force": force, "retry_failed": retry_failed, "only_failed": only_failed,
        "since": since, "limit": limit,
    }  # fmt: skip
    raise typer.Exit(show_plan(photos, out, options, choice, as_json=json))


@app.command()
def run(
    spec: Annotated[Path, _path_argument("SPEC", "A job spec in JSON, as OUT/_state/spec.json.")],
    if_running: IfRunning = "fail",
    json: Json = False,
) -> None:
    """Run a written job spec: what a scheduler or a cluster executes.

    Example: doodl-batch run photos-doodl/_state/spec.json
    """
    from jobs.enhance import run_spec_file

    raise typer.Exit(run_spec_file(spec, if_running=if_running, as_json=json))


@app.command()
def status(out: OutArgument, json: Json = False) -> None:
    """Count an output folder's rows by state, and say whether a run is at work on it.

    Example: doodl-batch status photos-doodl
    """
    from jobs.status import show_status

    raise typer.Exit(show_status(out, as_json=json))


@app.command()
def restrength(
    out: OutArgument,
    strength: Annotated[float, typer.Option(help="Share of each change to deliver, 0 to 1.")],
    detail: Detail = 0.0,
    to: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Where to.  [default: OUT/strength-STRENGTH]",
            parser=_path,
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
def report(out: OutArgument) -> None:
    """Write OUT/report/index.html: before and after, scores, failures.

    Example: doodl-batch report photos-doodl
    """
    from jobs.report.build import build_report

    console.result(str(build_report(str(out))))


@app.command()
def score(
    photos: Photos,
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


@app.command()
def doctor(json: Json = False) -> None:
    """Check this machine: packages, models, Ray, disk, accelerator.

    Example: doodl-batch doctor
    """
    from jobs.doctor import show_checks

    raise typer.Exit(show_checks(as_json=json))


@manifest_app.command("build")
def manifest_build(
    photos: Annotated[Path, _path_argument("PHOTOS", "A folder of photos.")],
    manifest: Annotated[Path, _path_argument("MANIFEST", "The Parquet file to write.")],
) -> None:
    """Write a manifest of a folder, to add prompts, directions or targets to.

    Example: doodl-batch manifest build photos/ photos.parquet
    """
    from jobs.manifest import build

    raise typer.Exit(build(photos, manifest))


@manifest_app.command("show")
def manifest_show(
    manifest: Photos,
    rows: Annotated[int, typer.Option(help="How many rows.")] = 10,
    json: Json = False,
) -> None:
    """Show the first rows of a manifest or folder as a run would read them.

    Example: doodl-batch manifest show photos.parquet
    """
    from jobs.manifest import show

    raise typer.Exit(show(manifest, rows, as_json=json))


@manifest_app.command("check")
def manifest_check(manifest: Photos, json: Json = False) -> None:
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
        console.say(str(problem))
    else:
        console.error(str(problem))
    return code


if __name__ == "__main__":
    main()
