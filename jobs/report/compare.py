"""Two output folders over the same photos, side by side: `report --compare RUN_A RUN_B`."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

from jobs.console import plain
from jobs.report.build import MAX_PICTURES, SCRIPTS, STYLES, page_parts, sample, used_metrics
from jobs.report.pages import THUMBNAILS, render_page, report_folder, write_whole
from jobs.report.rows import COLUMNS, curve, metric, rounded, text, usable
from jobs.report.thumbnails import Thumbnails
from manifests.errors import ManifestError
from manifests.job import differences
from pipeline.collection import OutputView

OUTCOMES = ("B higher", "A higher", "equal", "only in A", "only in B")
"""Of the judge's score of what each run delivers; an edit not delivered leaves the photo's own."""

_METRICS = {
    "judge_lead": metric("judge, B − A", better=1, signed=True, help="of what each delivers"),
    "guide_lead": metric("guide, B − A", better=1, signed=True, help="of what each delivers"),
    "judge_a": metric("Δ judge, A", signed=True, help="0 where A delivers nothing"),
    "judge_b": metric("Δ judge, B", signed=True, help="0 where B delivers nothing"),
    "guide_a": metric("Δ guide, A", signed=True),
    "guide_b": metric("Δ guide, B", signed=True),
    "psnr_a": metric("PSNR, A", 1, unit=" dB"),
    "psnr_b": metric("PSNR, B", 1, unit=" dB"),
    "ssim_a": metric("SSIM, A", 3),
    "ssim_b": metric("SSIM, B", 3),
    "delta_e_a": metric("ΔE, A", 1),
    "delta_e_b": metric("ΔE, B", 1),
    "seconds_a": metric("time, A", 1, unit=" s"),
    "seconds_b": metric("time, B", 1, unit=" s"),
}
_CARD = (("judge_lead", "guide_lead"), ("judge_a", "judge_b"), ("psnr_a", "psnr_b"))
_HISTOGRAMS = (
    ("Change of the judge's score", ("judge_a", "judge_b")),
    ("Change of the guide's score", ("guide_a", "guide_b")),
    ("PSNR", ("psnr_a", "psnr_b")),
)
_SCATTERS = (("The judge on both", "judge_a", "judge_b"),)
_SORTS = (
    ("id", "name"), ("judge_lead", "judge, B − A"), ("guide_lead", "guide, B − A"),
    ("judge_a", "judge, A"), ("judge_b", "judge, B"), ("psnr_a", "PSNR, A"),
    ("psnr_b", "PSNR, B"), ("status", "outcome"),
)  # fmt: skip

Records = dict[str, dict[str, Any]]


def build_comparison(run_a: str, run_b: str, *, max_pictures: int = MAX_PICTURES) -> Path:
    """Write the page of two runs into the report folder of the second, and return its path.

    Rows are the same photo if they have the same row_id. Of more than max_pictures an even sample
    is shown, and the page says so.
    Raises: ManifestError if one of them is not an output folder, or they share no row.
    """
    views = OutputView(run_a), OutputView(run_b)
    tables = [view.results(COLUMNS) for view in views]
    a, b = ({row["row_id"]: row for row in sample(t, t.num_rows)} for t in tables)
    if not a.keys() & b.keys():
        raise ManifestError(f"{run_a} and {run_b} have no photo in common; nothing to compare.")
    names = sorted(a.keys() | b.keys())
    shared = sorted(a.keys() & b.keys())
    # Those of one run alone have nothing to be compared with: they come where there is room.
    chosen = _spread(shared, max_pictures)
    alone = sorted(a.keys() ^ b.keys())
    chosen = sorted(chosen + _spread(alone, max_pictures - len(chosen)))
    folder = report_folder(run_b, _folder_name(run_a))
    thumbnails = Thumbnails(folder / THUMBNAILS)
    thumbnails.make_before(views[1], _of(b, chosen))
    thumbnails.make_before(views[0], [row for row in _of(a, chosen) if row["row_id"] not in b])
    thumbnails.make_delivered(views[0], _of(a, chosen), "first")
    thumbnails.make_delivered(views[1], _of(b, chosen), "second")
    rows = [_row(a.get(name), b.get(name), thumbnails) for name in chosen]
    every = Counter(_outcome(a.get(name), b.get(name)) for name in names)
    metrics = used_metrics(_METRICS, rows)
    statuses = [outcome for outcome in OUTCOMES if every[outcome]]
    data = {
        "labels": ["before", "A", "B"],
        "slide": [1, 2],
        "statuses": statuses,
        "curves": ["A", "B"],
        "rows": rows,
        **page_parts(metrics, _CARD, _HISTOGRAMS, _SCATTERS),
    }
    page = render_page(
        "report.html.jinja",
        data,
        scripts=SCRIPTS,
        styles=STYLES,
        title="doodl-batch: two runs compared",
        lead=_lead(run_a, run_b, views),
        facts=_facts(a, b, every),
        notes=[f"{len(chosen):,} of {len(names):,}"] if len(chosen) < len(names) else [],
        statuses=[(s, sum(row["status"] == s for row in rows)) for s in statuses],
        sorts=[(key, label) for key, label in _SORTS if key in metrics or key in ("id", "status")],
        failures=[],
    )
    write_whole(folder / "index.html", page)
    thumbnails.prune()
    return folder / "index.html"


def _spread(names: list[str], count: int) -> list[str]:
    """Return at most so many of the names, evenly."""
    count = min(count, len(names))
    return [names[i * len(names) // count] for i in range(count)]


def _folder_name(run: str) -> str:
    """Return `compare-NAME-HASH`: of the path, for two runs may have one name."""
    path = os.path.abspath(run)  # noqa: PTH100 (a name of a hash, not a path to follow)
    digest = hashlib.blake2b(os.fsencode(path), digest_size=3).hexdigest()
    name = re.sub(r"[^a-z0-9]+", "-", Path(path).name.lower()).strip("-")[:40]
    return f"compare-{name}-{digest}"


def _of(records: Records, names: list[str]) -> list[dict[str, Any]]:
    return [records[name] for name in names if name in records]


def delivered_change(row: dict[str, Any], score: str) -> float | None:
    """Return the change of a score by what is delivered: none where nothing is."""
    before, after = row[f"{score}_before"], row[f"{score}_after"]
    if before is None:
        return None
    if row["status"] != "ok":
        return 0.0
    return None if after is None else after - before


def _outcome(a: dict[str, Any] | None, b: dict[str, Any] | None) -> str:
    if a is None:
        return "only in B"
    if b is None:
        return "only in A"
    first, second = (delivered_change(row, "judge") for row in (a, b))
    if first is None or second is None or first == second:
        return "equal"
    return "B higher" if second > first else "A higher"


def _row(
    a: dict[str, Any] | None, b: dict[str, Any] | None, thumbnails: Thumbnails
) -> dict[str, Any]:
    either = b or a
    assert either is not None
    values: dict[str, float | None] = {}
    for mark, row in (("a", a), ("b", b)):
        if row is not None:
            values[f"judge_{mark}"] = delivered_change(row, "judge")
            values[f"guide_{mark}"] = delivered_change(row, "score")
            values[f"psnr_{mark}"] = row["psnr_db"]
            values[f"ssim_{mark}"] = row["ssim"]
            values[f"delta_e_{mark}"] = row["delta_e"]
            values[f"seconds_{mark}"] = row["edit_seconds"]
    for name in ("judge", "guide"):
        first, second = values.get(f"{name}_a"), values.get(f"{name}_b")
        if first is not None and second is not None:
            values[f"{name}_lead"] = second - first
    return {
        "id": text(either["row_id"]),
        "status": _outcome(a, b),
        "pics": [
            thumbnails.shown(either, "before"),
            None if a is None else thumbnails.shown(a, "first"),
            None if b is None else thumbnails.shown(b, "second"),
        ],
        "m": {name: rounded(v) for name, v in values.items() if v is not None and usable(v)},
        "curves": [curve((row or {}).get("loss_curve") or []) for row in (a, b)],
        "lines": [
            ("status", ", ".join(_standing(mark, row) for mark, row in (("A", a), ("B", b))))
        ],
    }


def _standing(mark: str, row: dict[str, Any] | None) -> str:
    return f"{mark} {'has no such photo' if row is None else row['status']}"


def _facts(a: Records, b: Records, every: Counter[str]) -> list[tuple[str, str]]:
    both = [(a[name], b[name]) for name in a.keys() & b.keys()]
    facts = [("photos in both", f"{len(both):,}")]
    facts += [(f"judge: {name}", f"{every[name]:,}") for name in OUTCOMES[:3]]
    facts += [(name, f"{every[name]:,}") for name in OUTCOMES[3:] if every[name]]
    for mark, which in (("A", 0), ("B", 1)):
        changes = [delivered_change(pair[which], "judge") for pair in both]
        known = [change for change in changes if change is not None]
        if known:
            facts.append((f"mean judge change, {mark}", f"{sum(known) / len(known):+.2f}"))
        facts.append((f"delivered, {mark}", f"{sum(p[which]['status'] == 'ok' for p in both):,}"))
    return facts


def _lead(run_a: str, run_b: str, views: tuple[OutputView, OutputView]) -> str:
    changed = differences(views[0].job, views[1].job)
    said = ", ".join(f"{name}: {old!r} → {new!r}" for name, (old, new) in changed.items())
    return (
        f"A is {plain(run_a)}, B is {plain(run_b)}. Options that differ, A → B: "
        f"{plain(said) or 'none'}. Changes are those of what each run delivers: an edit that was "
        "rejected, skipped or failed leaves the photo as it was, a change of 0."
    )
