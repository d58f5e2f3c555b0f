"""Build OUT/report from OUT/results: pairs, scores, failures."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from pipeline.collection import OutputView
from pipeline.pictures import delivered_thumbnail, source_thumbnail


@dataclass(frozen=True)
class Card:
    """One photo on the page; texts are escaped by the template."""

    row_id: str
    before: str | None
    after: str | None
    guide: str
    judge: str
    fidelity: str


_GROUPS = (
    ("Delivered", "ok"),
    ("Rejected: the edit did not improve the photo", "rejected"),
    ("Left alone: already good", "skipped"),
)

MAX_PICTURES = 1000
"""Photos shown of each group: making the thumbnails of 40,000 would take longer than the night."""


def build_report(out: str, *, max_pictures: int = MAX_PICTURES) -> Path:
    """Write OUT/report/index.html with its thumbnails and return its path.

    A photo that cannot be shown (moved, unreadable) keeps its row, without a picture. Of a group
    larger than max_pictures an even sample is shown, and the page says so.
    Raises: ManifestError if OUT is not an output folder.
    """
    view = OutputView(out)
    folder = Path(out) / "report"
    thumbnails = folder / "thumbnails"
    thumbnails.mkdir(parents=True, exist_ok=True)
    rows = view.result_records()
    groups = []
    for title, status in _GROUPS:
        group = [row for row in rows if row["status"] == status]
        shown = _sample(group, max_pictures)
        groups.append((title, len(group), [_card(view, row, thumbnails) for row in shown]))
    page = (
        _environment()
        .get_template("page.html.jinja")
        .render(
            job=view.job_facts(),
            facts=_facts(rows),
            groups=groups,
            failures=[row for row in rows if row["status"] == "failed"],
        )
    )
    index = folder / "index.html"
    _write(index, page.encode("utf-8", "replace"))
    return index


def _sample(rows: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    if len(rows) <= count:
        return rows
    return [rows[i * len(rows) // count] for i in range(count)]


def _card(view: OutputView, row: dict[str, Any], thumbnails: Path) -> Card:
    psnr = row["psnr_db"]
    return Card(
        row_id=row["row_id"],
        before=_thumbnail(thumbnails, "before", row, lambda: source_thumbnail(row["image_uri"])),
        after=_thumbnail(thumbnails, "after", row, lambda: delivered_thumbnail(view, row))
        if row["status"] == "ok"
        else None,
        guide=_change(row["score_before"], row["score_after"]),
        judge=_change(row["judge_before"], row["judge_after"]),
        fidelity=f"PSNR {psnr:.1f} dB, SSIM {row['ssim']:.3f}, {row['edit_seconds']:.1f} s"
        if psnr is not None
        else "",
    )


def _change(before: float | None, after: float | None) -> str:
    if before is None or after is None:
        return "-"
    return f"{before:.2f} → {after:.2f} ({after - before:+.2f})"


def _thumbnail(
    folder: Path, kind: str, row: dict[str, Any], make: Callable[[], bytes | None]
) -> str | None:
    # Named by a hash: a photo's own name may hold anything, and never reaches a path or a URL.
    name = hashlib.blake2b(f"{row['row_id']}\0{row['work_key']}".encode("utf-8", "surrogatepass"))
    path = folder / f"{name.hexdigest()[:24]}-{kind}.jpg"
    if not path.is_file():
        data = make()
        if data is None:
            return None
        _write(path, data)
    return f"thumbnails/{path.name}"


def _write(path: Path, data: bytes) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".tmp-")
    with os.fdopen(handle, "wb") as stream:
        stream.write(data)
    Path(temporary).chmod(0o644)
    Path(temporary).replace(path)


def _facts(rows: Iterable[dict[str, Any]]) -> list[tuple[str, str]]:
    rows = list(rows)
    facts = [("photos", f"{len(rows):,}")]
    facts += [
        (status, f"{sum(row['status'] == status for row in rows):,}")
        for status in ("ok", "rejected", "skipped", "failed")
    ]
    for name, before, after in (
        ("guide", "score_before", "score_after"),
        ("judge", "judge_before", "judge_after"),
    ):
        changes = [row[after] - row[before] for row in rows if row[before] is not None]
        if changes:
            facts.append((f"mean {name} change", f"{sum(changes) / len(changes):+.2f}"))
    return facts


def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("jobs.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
