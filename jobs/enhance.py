"""`enhance`, `plan` and `run`: from options to a run, and its end as a person sees it."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any

from jobs import console, exits
from manifests.commits import OutputFolder
from manifests.plan import COMPUTED, COPY, DEFERRED, DONE, FAILED, INVALID
from pipeline.models import resolve_device, resolve_model
from pipeline.plan import RunChoice, preview_plan
from pipeline.run import RunSummary, run_job
from pipeline.spec import JobSpec, default_out, make_spec


def build_spec(
    photos: Path | None, out: Path | None, options: dict[str, Any]
) -> tuple[JobSpec, str]:
    """Return the spec of the options, with `auto` resolved, and one line on what it became."""
    if photos is not None and not photos.exists():
        raise exits.UsageError(f"{photos} does not exist; give a folder of photos or a manifest.")
    out = default_out(photos) if out is None else out
    if out.exists() and not out.is_dir():
        raise exits.UsageError(f"{out} is a file; choose a folder with --out.")
    job = OutputFolder(str(out)).read_job()
    recorded = None if job is None else job["params"].get("model")
    model, why = resolve_model(options["model"], recorded)
    options = {**options, "model": model}
    if "device" in options:
        options["device"] = resolve_device(options["device"])
    with exits.usage_errors():
        return make_spec(photos, out, **options), f"model {model}: {why}"


def build_choice(options: dict[str, Any]) -> RunChoice:
    """Return which rows a run takes up."""
    with exits.usage_errors():
        return RunChoice(**options)


def run_enhance(
    photos: Path,
    out: Path | None,
    options: dict[str, Any],
    choice: dict[str, Any],
    *,
    report: bool,
    as_json: bool,
) -> int:
    """Run the job, print its summary and return its exit code."""
    spec, why = build_spec(photos, out, options)
    return run_spec(spec, build_choice(choice), why, report=report, as_json=as_json)


def run_spec_file(path: Path, *, if_running: str, as_json: bool) -> int:
    """Run a written spec and return its exit code."""
    if not path.is_file():
        raise exits.UsageError(f"{path} is not a file; give a job spec, as OUT/_state/spec.json.")
    with exits.usage_errors():
        spec = JobSpec.from_json(path.read_text())
    choice = build_choice({"if_running": if_running})
    return run_spec(spec, choice, f"spec {path}", report=True, as_json=as_json)


def run_spec(spec: JobSpec, choice: RunChoice, why: str, *, report: bool, as_json: bool) -> int:
    """Run a spec, print its summary and return its exit code."""
    with console.RunProgress(quiet=as_json) as progress:
        progress.message(why)
        if os.environ.get("RAY_ADDRESS") and spec.runner == "local":
            progress.message(
                "RAY_ADDRESS is set and not used: this version runs on a private Ray on this "
                "machine; running on a cluster comes later"
            )
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
    spec, why = build_spec(photos, out, options)
    return print_plan(spec, build_choice(choice), why, as_json=as_json)


def print_plan(spec: JobSpec, choice: RunChoice, why: str, *, as_json: bool) -> int:
    """Print what a run of a spec would do and return an exit code."""
    plan = preview_plan(spec, choice)
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
    source = spec.photos or f"{len(spec.prompts)} prompt(s)"
    console.print_table(f"{source} → {spec.out}", ("rows", "count"), rows)
    console.result(f"{compute:,} to compute")
    return exits.OK
