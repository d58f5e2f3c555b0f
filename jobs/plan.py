"""`plan`: what a run would do, how long it would take and what it would cost."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from jobs import console, exits
from jobs.enhance import build_choice, build_spec
from manifests.commits import OutputFolder
from manifests.plan import COMPUTED, COPY, DEFERRED, DONE, FAILED, INVALID, Plan
from manifests.scan import unlisted
from pipeline.estimate import Calibration, Estimate, estimate, from_ledger, probe, workers_of
from pipeline.inputs import unlisted_lines
from pipeline.models import resolve_device
from pipeline.plan import RunChoice, preview_plan
from pipeline.spec import SHIPPED_MODEL, JobSpec

_WORDS = {
    "new": "new", "changed": "changed since they were done", "retry": "failed, tried again",
    "forced": "done, done again", COPY: "copied from the same photo's result",
    INVALID: "cannot be run", DONE: "done", FAILED: "failed, left so",
    DEFERRED: "left for later",
}  # fmt: skip


def show_plan(
    photos: Path,
    out: Path | None,
    options: dict[str, Any],
    choice: dict[str, Any],
    *,
    probe_rows: int | None,
    price_per_hour: float | None,
    calibrate_from: Path | None,
    as_json: bool,
) -> int:
    """Print what a run would do and return an exit code.

    Args:
        probe_rows: photos to measure; 0 none; None one, if no earlier run tells and the model is
            the shipped one, which is quick.
        calibrate_from: another output folder whose earlier runs may tell.
    """
    if price_per_hour is not None and not price_per_hour >= 0:
        raise exits.UsageError(f"--price-per-hour (={price_per_hour}) must not be negative.")
    options = {**options, "device": resolve_device(options["device"])}
    spec, why = build_spec(photos, out, options)
    return print_plan(
        spec, build_choice(choice), why, probe_rows=probe_rows, price_per_hour=price_per_hour,
        calibrate_from=calibrate_from, as_json=as_json,
    )  # fmt: skip


def print_plan(
    spec: JobSpec,
    choice: RunChoice,
    why: str,
    *,
    as_json: bool,
    probe_rows: int | None = 0,
    price_per_hour: float | None = None,
    calibrate_from: Path | None = None,
) -> int:
    """Print what a run of a spec would do and return an exit code; arguments as `show_plan`."""
    plan = preview_plan(spec, choice)
    rows = sum(plan.counts[state] for state in COMPUTED)
    calibration, unknown = None, ""
    if rows:
        calibration, unknown = _calibration(spec, plan, probe_rows, calibrate_from)
    figures = estimate(
        rows,
        calibration,
        workers=workers_of(spec),
        price_per_hour=price_per_hour,
        why_unknown=unknown,
    )
    code = exits.ROWS_FAILED if unlisted(plan.table) else exits.OK
    if as_json:
        console.print_json(
            {"photos": spec.photos, "out": spec.out, "model": spec.model, "compute": rows,
             "counts": plan.counts, "orphans": plan.num_orphans, "device": spec.device,
             "estimate": asdict(figures),
             "unlisted": [{"path": path, "error": why} for path, why in unlisted(plan.table)]}
        )  # fmt: skip
        return code
    console.say(why)
    table = [(_WORDS[state], count) for state, count in plan.counts.items() if count]
    source = spec.photos or f"{len(spec.prompts)} prompt(s)"
    console.print_table(f"{source} → {spec.out}", ("rows", "count"), table)
    console.result(f"{rows:,} to compute")
    if rows:
        for line in _lines(figures, spec.device):
            console.result(line)
    for line in unlisted_lines(plan.table):
        console.say(line)
    return code


def _calibration(
    spec: JobSpec, plan: Plan, probe_rows: int | None, calibrate_from: Path | None
) -> tuple[Calibration | None, str]:
    """Return (measured seconds, why there are none)."""
    if probe_rows:
        console.say(f"measuring {probe_rows} photo(s); nothing is kept of them")
        measured = probe(spec, plan, probe_rows)
        return measured, "unknown: none of the photos tried could be edited"
    folders = [OutputFolder(spec.out)]
    if calibrate_from is not None:
        folders.append(OutputFolder(str(calibrate_from)))
    known = from_ledger(spec, folders)
    unknown = "unknown: no earlier run of this model on this device; measure with --probe 3"
    if known is not None or probe_rows == 0 or spec.model != SHIPPED_MODEL:
        return known, unknown
    console.say("no earlier run tells: measuring one photo, nothing is kept of it (--probe 0: not)")
    try:
        return probe(spec, plan, 1), "unknown: the photo tried could not be edited; try --probe 3"
    except Exception as error:  # nobody asked for it: the plan is shown all the same
        return None, f"unknown: the probe failed ({type(error).__name__}: {error})"


def _lines(figures: Estimate, device: str) -> list[str]:
    if figures.worker_hours is None:
        return [f"time and cost {figures.basis}"]
    unit = "GPU" if device == "cuda" else "CPU-worker"
    workers = "1 worker" if figures.workers == 1 else f"{figures.workers} workers"
    lines = [
        f"{figures.worker_hours:.3g} {unit}-hours: {figures.mean_seconds:.1f} s a photo "
        f"(median {figures.median_seconds:.1f}, p90 {figures.p90_seconds:.1f}; "
        f"were all at p90: {figures.worker_hours_p90:.3g} hours)",
        f"about {duration(figures.eta_seconds or 0)} with {workers}",
    ]
    if figures.cost is not None:
        lines.append(f"costs {figures.cost:,.2f} at the price given, loading models not counted")
    return [*lines, f"basis: {figures.basis}"]


def duration(seconds: float) -> str:
    """Return a time for a person: `45 s`, `12 min`, `3 h 20 min`, `2 d 4 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"
