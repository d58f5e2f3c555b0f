"""`enhance`, `plan` and `run`: from options to a run, and its end as a person sees it."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

from jobs import console, exits
from jobs.finish import check_target, summary_of, tell
from jobs.submit import Place, Where, find_place, submit_run
from manifests.commits import OutputFolder
from manifests.paths import local_path
from pipeline.models import resolve_device, resolve_model
from pipeline.plan import RunChoice, refuse_folder
from pipeline.run import RunSummary, run_job
from pipeline.shared import MissingPathError, check_shared, in_ray_job, shared_paths
from pipeline.spec import JobSpec, default_out, make_spec


def build_spec(
    photos: Path | str | None,
    out: Path | str | None,
    options: dict[str, Any],
    place: Place | None = None,
) -> tuple[JobSpec, str]:
    """Return the spec of the options, with `auto` resolved, and one line on what it became."""
    if isinstance(photos, Path) and not photos.exists():
        raise exits.UsageError(f"{photos} does not exist; give a folder of photos or a manifest.")
    with exits.usage_errors():
        out = default_out(photos) if out is None else out
    if isinstance(out, Path) and out.exists() and not out.is_dir():
        raise exits.UsageError(f"{out} is a file; choose a folder with --out.")
    job = OutputFolder(str(out)).read_job()
    recorded = None if job is None else job["params"].get("model")
    model, why = resolve_model(options["model"], recorded, device=options.get("device", "auto"))
    options = {**options, "model": model}
    if place is not None:
        # What a job's driver makes of its spec; this machine's accelerator says nothing of a
        # cluster's.
        options["runner"] = "cluster" if place.runner == "submit" else place.runner
        if options["runner"] != "cluster":
            options["device"] = resolve_device(options["device"])
    elif "device" in options:
        options["device"] = resolve_device(options["device"])
    with exits.usage_errors():
        return make_spec(photos, out, **options), f"model {model}: {why}"


def build_choice(options: dict[str, Any]) -> RunChoice:
    """Return which rows a run takes up."""
    with exits.usage_errors():
        return RunChoice(**options)


def run_enhance(
    photos: Path | str,
    out: Path | str | None,
    options: dict[str, Any],
    choice: dict[str, Any],
    where: Where,
    *,
    report: bool,
    on_finish: str | None = None,
    as_json: bool,
) -> int:
    """Run the job, here or on a cluster, print its summary and return its exit code."""
    check_target(on_finish)
    place = find_place(where)
    spec, why = build_spec(photos, out, options, place)
    lines = [why, place.why]
    return run_spec(
        spec, build_choice(choice), lines, place, where,
        report=report, on_finish=on_finish, as_json=as_json,
    )  # fmt: skip


def check_enhance(
    photos: Path | str,
    out: Path | str | None,
    options: dict[str, Any],
    choice: dict[str, Any],
    on_finish: str | None,
) -> int:
    """Build the job as a run would, compute nothing, and return an exit code."""
    check_target(on_finish)
    spec, _ = build_spec(photos, out, options)
    refuse_folder(OutputFolder(spec.out), spec, build_choice(choice))
    return exits.OK


def run_spec_file(
    path: Path,
    choice: dict[str, Any],
    where: Where,
    *,
    report: bool,
    on_finish: str | None,
    as_json: bool,
) -> int:
    """Run a written spec and return its exit code."""
    check_target(on_finish)
    _check_shared([str(path)])
    if not path.is_file():
        raise exits.UsageError(f"{path} is not a file; give a job spec, as OUT/_state/spec.json.")
    with exits.usage_errors():
        spec = JobSpec.from_json(path.read_text())
    _check_shared([path for path in shared_paths(spec) if path != spec.out])
    place = find_place(where, spec_runner=spec.runner)
    runner = "cluster" if place.runner == "submit" else place.runner
    spec = replace(spec, runner=runner)
    lines = [f"spec {path}", place.why]
    return run_spec(
        spec, build_choice(choice), lines, place, where,
        report=report, on_finish=on_finish, as_json=as_json,
    )  # fmt: skip


def _check_shared(paths: list[str]) -> None:
    """Check first of all, in a cluster's job, that its node has what the submitter has."""
    if not in_ray_job():
        return
    try:
        check_shared(paths)
    except MissingPathError as error:
        console.result(error.problem_line())
        raise


def run_spec(
    spec: JobSpec,
    choice: RunChoice,
    lines: list[str],
    place: Place,
    where: Where,
    *,
    report: bool,
    as_json: bool,
    on_finish: str | None = None,
) -> int:
    """Run a spec, here or on a cluster, print its summary and return its exit code.

    Args:
        lines: what a person is told first: which model, and where it runs, each with the reason.
    """
    if place.runner == "submit":
        for line in [] if as_json else lines:
            console.say(line)
        code = submit_run(spec, choice, place, where, report=report, as_json=as_json)
        if not where.detach:
            # Told from here: a job's entrypoint is shown on dashboards, and targets hold secrets.
            _finish(on_finish, summary_of(spec.out, code), None)
        return code
    try:
        summary = _compute(spec, choice, lines, quiet=as_json)
    except Exception as problem:
        known = exits.exit_code_of(problem)
        fault = exits.INTERNAL if known is None else known
        if fault != exits.OK:  # a run skipped because another has the folder is none
            failed = RunSummary(spec.out, "", exit_code=fault, stopped_by=str(problem))
            _finish(on_finish, failed, None)
        raise
    page = _report(spec.out) if report and (summary.computed or summary.copied) else None
    if as_json:
        console.print_json({**summary.__dict__, "report": page})
    else:
        _print_summary(summary, page)
    _finish(on_finish, summary, page)
    return summary.exit_code


def _finish(target: str | None, summary: RunSummary, page: str | None) -> None:
    problem = None if target is None else tell(target, summary, page)
    if problem is not None:
        console.error(problem)


def _compute(spec: JobSpec, choice: RunChoice, lines: list[str], *, quiet: bool) -> RunSummary:
    with console.RunProgress(quiet=quiet) as progress:
        for line in lines:
            progress.message(line)
        return run_job(spec, choice, progress)


def _report(out: str) -> str | None:
    if local_path(out) is None:
        console.say(f"no report: it is written to a file system, and {out} is none")
        return None
    from jobs.report.build import build_report

    try:
        return str(build_report(out))
    except Exception as error:
        # The photos are delivered: whatever ails their report must not call the run failed.
        console.error(
            f"no report: {type(error).__name__}: {error}",
            f"try again with: doodl-batch report {shlex.quote(out)}",
        )
        return None


def _print_summary(summary: RunSummary, page: str | None) -> None:
    counts = summary.counts
    console.print_table("", ("state", "photos"), [(s, n) for s, n in counts.items() if n])
    rate = (
        f", {3600 * summary.computed / summary.seconds:,.0f} photos/h" if summary.computed else ""
    )
    console.say(
        f"{summary.computed:,} computed, {summary.copied:,} copied, "
        f"in {summary.seconds:.1f} s{rate}"
    )
    if summary.unlisted:
        first = summary.unlisted[0]
        console.error(f"{len(summary.unlisted):,} place(s) could not be listed, {first} the first")
    if summary.stopped_by:
        console.error(summary.stopped_by, "the same command again goes on from here")
    console.result(f"results: {summary.out}")
    if page:
        console.result(f"report:  {page}")
