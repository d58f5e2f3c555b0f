"""`enhance`, `plan` and `run`: from options to a run, and its end as a person sees it."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

from jobs import console, exits
from jobs.submit import Place, Where, find_place, submit_run
from manifests.commits import OutputFolder
from manifests.plan import COMPUTED, COPY, DEFERRED, DONE, FAILED, INVALID
from pipeline.models import resolve_device, resolve_model
from pipeline.plan import RunChoice, preview_plan
from pipeline.run import RunSummary, run_job
from pipeline.shared import MissingPathError, check_shared, in_ray_job, shared_paths
from pipeline.spec import JobSpec, default_out, make_spec


def _spec(
    photos: Path, out: Path | None, options: dict[str, Any], place: Place | None = None
) -> tuple[JobSpec, str]:
    """Return the spec of the options, with `auto` resolved, and one line on what it became."""
    if not photos.exists():
        raise exits.UsageError(f"{photos} does not exist; give a folder of photos or a manifest.")
    out = default_out(photos) if out is None else out
    if out.exists() and not out.is_dir():
        raise exits.UsageError(f"{out} is a file; choose a folder with --out.")
    job = OutputFolder(str(out)).read_job()
    recorded = None if job is None else job["params"].get("model")
    model, why = resolve_model(options["model"], recorded)
    options = {**options, "model": model}
    if place is not None:
        # What a job's driver makes of its spec; this machine's accelerator says nothing of a
        # cluster's.
        options["runner"] = "cluster" if place.runner == "submit" else place.runner
        if options["runner"] != "cluster":
            options["device"] = resolve_device(options["device"])
    with exits.usage_errors():
        return make_spec(photos, out, **options), f"model {model}: {why}"


def _choice(options: dict[str, Any]) -> RunChoice:
    with exits.usage_errors():
        return RunChoice(**options)


def run_enhance(
    photos: Path,
    out: Path | None,
    options: dict[str, Any],
    choice: dict[str, Any],
    where: Where,
    *,
    report: bool,
    as_json: bool,
) -> int:
    """Run the job, here or on a cluster, print its summary and return its exit code."""
    place = find_place(where)
    spec, why = _spec(photos, out, options, place)
    lines = [why, place.why]
    return _run(spec, _choice(choice), lines, place, where, report=report, as_json=as_json)


def run_spec_file(
    path: Path, choice: dict[str, Any], where: Where, *, report: bool, as_json: bool
) -> int:
    """Run a written spec and return its exit code."""
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
    return _run(spec, _choice(choice), lines, place, where, report=report, as_json=as_json)


def _check_shared(paths: list[str]) -> None:
    """Check first of all, in a cluster's job, that its node has what the submitter has."""
    if not in_ray_job():
        return
    try:
        check_shared(paths)
    except MissingPathError as error:
        console.result(error.problem_line())
        raise


def _run(
    spec: JobSpec,
    choice: RunChoice,
    lines: list[str],
    place: Place,
    where: Where,
    *,
    report: bool,
    as_json: bool,
) -> int:
    if place.runner == "submit":
        for line in [] if as_json else lines:
            console.say(line)
        return submit_run(spec, choice, place, where, report=report, as_json=as_json)
    with console.RunProgress(quiet=as_json) as progress:
        for line in lines:
            progress.message(line)
        summary = run_job(spec, choice, progress)
    page = _report(spec.out) if report and (summary.computed or summary.copied) else None
    if as_json:
        console.print_json({**summary.__dict__, "report": page})
    else:
        _print_summary(summary, page)
    return summary.exit_code


def _report(out: str) -> str | None:
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
    if summary.stopped_by:
        console.error(summary.stopped_by, "the same command again goes on from here")
    console.result(f"results: {summary.out}")
    if page:
        console.result(f"report:  {page}")


def show_plan(
    photos: Path,
    out: Path | None,
    options: dict[str, Any],
    choice: dict[str, Any],
    *,
    as_json: bool,
) -> int:
    """Print what a run would do and return an exit code."""
    spec, why = _spec(photos, out, options)
    plan = preview_plan(spec, _choice(choice))
    compute = sum(plan.counts[state] for state in COMPUTED)
    if as_json:
        console.print_json(
            {"photos": spec.photos, "out": spec.out, "model": spec.model, "compute": compute,
             "counts": plan.counts, "orphans": plan.num_orphans}
        )  # fmt: skip
        return exits.OK
    console.say(why)
    words = {
        "new": "new", "changed": "changed since they were done", "retry": "failed, tried again",
        "forced": "done, done again", COPY: "copied from the same photo's result",
        INVALID: "cannot be run", DONE: "done", FAILED: "failed, left so",
        DEFERRED: "left for later",
    }  # fmt: skip
    rows = [(words[state], count) for state, count in plan.counts.items() if count]
    console.print_table(f"{spec.photos} → {spec.out}", ("rows", "photos"), rows)
    console.result(f"{compute:,} to compute")
    return exits.OK
