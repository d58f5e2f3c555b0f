"""Build OUT/report from OUT/results: pairs, scores, failures."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pyarrow as pa
import pyarrow.compute as pc

from jobs.console import plain
from pipeline.collection import STATES, OutputView
from pipeline.pictures import before_thumbnail, delivered_thumbnails


@dataclass(frozen=True)
class Card:
    """One photo on the page; texts are escaped by the template."""

    row_id: str
    before: str | None
    after: str | None
    guide: str
    judge: str
    fidelity: str
    prompt: str | None = None
    guide_changes: tuple[tuple[str, str], ...] = ()
    note: str | None = None


_GROUPS = (
    ("Delivered", "ok"),
    ("Rejected: not improved, so not delivered", "rejected"),
    ("Left alone: already good", "skipped"),
)

MADE_OF_WORDS = ("generate", "personalize")
"""Tasks whose pictures are made of prompts: before is the picture that nothing guided."""

MAX_PICTURES = 1000
"""Photos shown of each group: making the thumbnails of 40,000 would take longer than the night."""

MAX_FAILURES = 1000
"""Failed rows listed; the table has them all."""

_FIDELITY = {
    "psnr_db": "PSNR {:.1f} dB",
    "autoencoder_psnr_db": "autoencoder alone {:.1f} dB",
    "ssim": "SSIM {:.3f}",
    "inversion_error": "inversion error {:.1e}",
    "seed": "seed {}",
    "edit_seconds": "{:.1f} s",
}

_COLUMNS = (
    "row_id", "work_key", "image_uri", "status", "error_type", "error_message", "edited_uri",
    "score_before", "score_after", "judge_before", "judge_after", "psnr_db", "ssim",
    "edit_seconds", "task", "prompt", "seed", "inversion_error", "guide_values_before",
    "guide_values_after", "safety", "unguided_uri", "autoencoder_psnr_db",
)  # fmt: skip


def build_report(
    out: str, *, max_pictures: int = MAX_PICTURES, max_failures: int = MAX_FAILURES
) -> Path:
    """Write OUT/report/index.html with its thumbnails and return its path.

    A photo that cannot be shown (moved, unreadable) keeps its row, without a picture. Of a group
    larger than max_pictures an even sample is shown, of the failures the first max_failures, and
    the page says so.
    Raises: ManifestError if OUT is not an output folder.
    """
    view = OutputView(out)
    folder = Path(out) / "report"
    thumbnails = folder / "thumbnails"
    thumbnails.mkdir(parents=True, exist_ok=True)
    results = view.results(_COLUMNS)
    groups = []
    for title, status in _GROUPS:
        group = _with_status(results, status)
        shown = _sample(group, max_pictures)
        _make_thumbnails(view, shown, thumbnails)
        groups.append((title, group.num_rows, [_card(row, thumbnails) for row in shown]))
    failed = _with_status(results, "failed")
    page = (
        _environment()
        .get_template("page.html.jinja")
        .render(
            job=view.job_facts(),
            made_of_words=view.job_facts()["task"] in MADE_OF_WORDS,
            facts=_facts(results),
            groups=groups,
            failures=failed.take(_in_order(failed)[:max_failures]).to_pylist(),
            num_failures=failed.num_rows,
        )
    )
    index = folder / "index.html"
    _write(index, page.encode("utf-8", "replace"))
    return index


def _with_status(results: pa.Table, status: str) -> pa.Table:
    return results.filter(pc.equal(results["status"], status))


def _in_order(table: pa.Table) -> pa.Array:
    """Return the table's row numbers, sorted by row_id."""
    return pc.sort_indices(table["row_id"])


def _sample(group: pa.Table, count: int) -> list[dict[str, Any]]:
    """Return at most `count` rows as records, evenly spread over the group sorted by row_id."""
    order, total = _in_order(group), group.num_rows
    if total > count:
        order = order.take(pa.array([i * total // count for i in range(count)], pa.int64()))
    return group.take(order).to_pylist()


def _card(row: dict[str, Any], thumbnails: Path) -> Card:
    made = row["task"] in MADE_OF_WORDS
    return Card(
        row_id=row["row_id"],
        before=_shown(thumbnails, row, "before"),
        after=_shown(thumbnails, row, "after") if row["status"] == "ok" else None,
        guide=_change(row["score_before"], row["score_after"]),
        judge=_change(row["judge_before"], row["judge_after"]),
        fidelity=", ".join(
            text.format(row[name])
            for name, text in _FIDELITY.items()
            if row[name] is not None and (name != "seed" or made)
        ),
        prompt=row["prompt"] if made else None,
        guide_changes=_guide_changes(row),
        note=row["error_message"] if made else None,
    )


def _guide_changes(row: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    """Return each guide's name and change; none where the row tells no guide's values."""
    if row["guide_values_before"] is None or row["guide_values_after"] is None:
        return ()
    before, after = json.loads(row["guide_values_before"]), json.loads(row["guide_values_after"])
    return tuple((name, _change(before[name], after.get(name))) for name in before)


def _change(before: float | None, after: float | None) -> str:
    if before is None or after is None:
        return "-"
    return f"{before:.2f} → {after:.2f} ({after - before:+.2f})"


def _make_thumbnails(view: OutputView, rows: list[dict[str, Any]], folder: Path) -> None:
    """Write the thumbnails of these rows that an earlier report has not."""
    for row in rows:
        path = _thumbnail_path(folder, row, "before")
        if not path.is_file() and (data := before_thumbnail(view, row)) is not None:
            _write(path, data)
    paths = {
        row["row_id"]: _thumbnail_path(folder, row, "after")
        for row in rows
        if row["status"] == "ok"
    }
    lacking = [row for row in rows if row["row_id"] in paths and not paths[row["row_id"]].is_file()]
    for row_id, data in delivered_thumbnails(view, lacking):
        _write(paths[row_id], data)


def _thumbnail_path(folder: Path, row: dict[str, Any], kind: str) -> Path:
    # Named by a hash: a photo's own name may hold anything, and never reaches a path or a URL.
    name = hashlib.blake2b(f"{row['row_id']}\0{row['work_key']}".encode("utf-8", "surrogatepass"))
    return folder / f"{name.hexdigest()[:24]}-{kind}.jpg"


def _shown(folder: Path, row: dict[str, Any], kind: str) -> str | None:
    path = _thumbnail_path(folder, row, kind)
    return f"thumbnails/{path.name}" if path.is_file() else None


def _write(path: Path, data: bytes) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".tmp-")
    with os.fdopen(handle, "wb") as stream:
        stream.write(data)
    Path(temporary).chmod(0o644)
    Path(temporary).replace(path)


def _facts(results: pa.Table) -> list[tuple[str, str]]:
    counts = {v["values"]: v["counts"] for v in pc.value_counts(results["status"]).to_pylist()}
    facts = [("photos", f"{results.num_rows:,}")]
    facts += [(status, f"{counts.get(status, 0):,}") for status in STATES]
    for name, before, after in (
        ("guide", "score_before", "score_after"),
        ("judge", "judge_before", "judge_after"),
    ):
        change = pc.mean(pc.subtract(results[after], results[before])).as_py()
        if change is not None:
            facts.append((f"mean {name} change", f"{change:+.2f}"))
    return facts


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("jobs.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["plain"] = lambda text: plain(text or "")
    return environment
