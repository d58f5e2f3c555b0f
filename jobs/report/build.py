"""Build OUT/report from OUT/results: pairs, scores, failures."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from jobs.console import plain
from jobs.report.pages import THUMBNAILS, render_page, report_folder, write_whole
from jobs.report.rows import (
    COLUMNS,
    MADE_OF_WORDS,
    page_row,
    photo_links,
    report_metrics,
    showable,
)
from jobs.report.thumbnails import Thumbnails
from pipeline.collection import STATES, OutputView

MAX_PICTURES = 5000
"""Photos shown of each status: making the thumbnails of 40,000 would take longer than the night."""

MAX_FAILURES = 5000
"""Failed rows shown; the table has them all."""

SCRIPTS = ("common.js", "charts.js", "report.js")
STYLES = ("base.css", "report.css")

_CARD = (("guide", "judge"), ("psnr", "ssim", "delta_e"), ("seconds", "inversion"))
_HISTOGRAMS = (
    ("Guide's score", ("guide_before", "guide_after")),
    ("Judge's score", ("judge_before", "judge_after")),
    ("Change of score", ("guide", "judge")),
)
_SCATTERS = (
    ("Guide and judge", "guide", "judge"),
    ("Change of score and fidelity", "psnr", "judge"),
)
_SORTS = (
    ("id", "name"), ("judge", "change of judge"), ("guide", "change of guide"),
    ("judge_after", "judge after"), ("psnr", "PSNR"), ("ssim", "SSIM"), ("delta_e", "ΔE"),
    ("inversion", "inversion error"), ("seconds", "time"), ("status", "status"),
)  # fmt: skip


def build_report(
    out: str, *, max_pictures: int = MAX_PICTURES, max_failures: int = MAX_FAILURES
) -> Path:
    """Write OUT/report/index.html with its thumbnails and return its path.

    A photo that cannot be shown (moved, unreadable) keeps its row, without a picture. Of a status
    with more rows than max_pictures an even sample is shown, of the failures max_failures, and
    the page says so.
    Raises: ManifestError if OUT is not an output folder.
    """
    view = OutputView(out)
    folder = report_folder(out)
    thumbnails = Thumbnails(folder / THUMBNAILS)
    results = view.results(COLUMNS)
    rows, notes = [], []
    for status in STATES:
        group = results.filter(pc.equal(results["status"], status))
        limit = max_failures if status == "failed" else max_pictures
        shown = sample(group, limit)
        if len(shown) < group.num_rows:
            notes.append(f"{len(shown):,} of {group.num_rows:,} {status}")
        thumbnails.make_before(view, shown)
        thumbnails.make_delivered(view, shown)
        rows += [_shown_row(row, thumbnails, Path(out), folder) for row in shown]
    job = view.job_facts()
    made = job["task"] in MADE_OF_WORDS
    metrics = used_metrics(report_metrics(job["direction"]), rows)
    data = {
        "labels": ["unguided", "guided"] if made else ["before", "after"],
        "slide": [0, 1],
        "statuses": list(STATES),
        "curves": ["loss"],
        "rows": rows,
        **page_parts(metrics, _CARD, _HISTOGRAMS, _SCATTERS),
    }
    index = folder / "index.html"
    page = render_page(
        "report.html.jinja",
        data,
        scripts=SCRIPTS,
        styles=STYLES,
        title="doodl-batch report",
        lead=_lead(job, made),
        facts=facts_of(results),
        notes=notes,
        statuses=[(s, sum(row["status"] == s for row in rows)) for s in STATES],
        sorts=[(key, label) for key, label in _SORTS if key in metrics or key in ("id", "status")],
        failures=failure_groups(results),
    )
    write_whole(index, page)
    thumbnails.prune()
    return index


def sample(group: pa.Table, count: int) -> list[dict[str, Any]]:
    """Return at most `count` rows as records, evenly spread over the group sorted by row_id."""
    order, total = pc.sort_indices(group["row_id"]), group.num_rows
    if total > count:
        order = order.take(pa.array([i * total // count for i in range(count)], pa.int64()))
    return group.take(order).to_pylist()


def used_metrics(metrics: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return those of the figures that a row has."""
    there = {name for row in rows for name in row["m"]}
    return {name: value for name, value in metrics.items() if name in there}


def page_parts(metrics: Any, card: Any, histograms: Any, scatters: Any) -> dict[str, Any]:
    """Return what of cards and charts there are figures for."""
    return {
        "metrics": metrics,
        "card": [[key for key in line if key in metrics] for line in card],
        "histograms": [
            {"title": title, "series": [key for key in series if key in metrics]}
            for title, series in histograms
            if any(key in metrics for key in series)
        ],
        "scatters": [
            {"title": title, "x": x, "y": y}
            for title, x, y in scatters
            if x in metrics and y in metrics
        ],
    }


def _shown_row(
    row: dict[str, Any], thumbnails: Thumbnails, out: Path, folder: Path
) -> dict[str, Any]:
    after = thumbnails.shown(row, "after") if row["status"] == "ok" else None
    shown = page_row(row, [thumbnails.shown(row, "before"), after])
    links = photo_links(row, out, folder)
    shown["links"] = links
    if all(map(showable, links)):
        shown["full"] = links
    return shown


def facts_of(results: pa.Table) -> list[tuple[str, str]]:
    """Return the page's headline figures, of every row."""
    counts = {v["values"]: v["counts"] for v in pc.value_counts(results["status"]).to_pylist()}
    facts = [("photos", f"{results.num_rows:,}")]
    facts += [(status, f"{counts.get(status, 0):,}") for status in STATES]
    delivered = results.filter(pc.equal(results["status"], "ok"))
    for name, before, after in (
        ("guide", "score_before", "score_after"),
        ("judge", "judge_before", "judge_after"),
    ):
        for which, table in (("all", results), ("delivered", delivered)):
            change = pc.mean(pc.subtract(table[after], table[before])).as_py()
            if change is not None:
                facts.append((f"mean {name} change, {which}", f"{change:+.2f}"))
    for name, column, form in (("PSNR", "psnr_db", "{:.1f} dB"), ("ΔE", "delta_e", "{:.1f}")):
        finite = delivered[column].filter(pc.is_finite(delivered[column]))
        if (middle := pc.mean(finite).as_py()) is not None:
            facts.append((f"mean {name}, delivered", form.format(middle)))
    return facts


def failure_groups(results: pa.Table) -> list[dict[str, Any]]:
    """Return the failures by class, the most frequent first: how many, and the commonest reason."""
    failed = results.filter(pc.equal(results["status"], "failed"))
    reasons = Counter(
        zip(failed["error_type"].to_pylist(), failed["error_message"].to_pylist(), strict=True)
    )
    groups: dict[str | None, dict[str, Any]] = {}
    for (kind, why), count in reasons.most_common():
        group = groups.setdefault(kind, {"kind": kind, "count": 0, "why": why})
        group["count"] += count
    return sorted(groups.values(), key=lambda group: -group["count"])


def _lead(job: dict[str, Any], made: bool) -> str:
    parts = [job["task"]]
    if job["direction"]:
        parts.append(f"direction {job['direction']}")
    if job["target"] is not None:
        parts.append(f"target {job['target']:g}")
    if job["guides"]:
        parts.append(f"guides {plain(job['guides'])}")
    parts += [f"model {plain(str(job['model']))}", f"preset {plain(str(job['preset']))}"]
    before = "Before is the picture of the same noise that nothing guided. " if made else ""
    return (
        f"{', '.join(parts)}. {before}Scores are those of the full-size files, before and after, "
        "delivered or rejected: the guide gave the gradient, the judge gave none."
    )
