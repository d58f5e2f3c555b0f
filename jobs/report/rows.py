"""What a page knows of a result row: names made plain, figures made short."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jobs.console import plain
from manifests.inline import is_inline
from manifests.paths import is_safe_relpath, local_path

MADE_OF_WORDS = ("generate", "personalize")
"""Tasks whose pictures are made of prompts: before is the picture that nothing guided."""

COLUMNS = (
    "row_id", "work_key", "image_uri", "status", "error_type", "error_message", "edited_uri",
    "score_before", "score_after", "judge_before", "judge_after", "psnr_db", "ssim", "delta_e",
    "protected", "edit_seconds", "task", "prompt", "seed", "inversion_error", "num_optim_steps",
    "stop_reason", "loss_curve", "guide_values_before", "guide_values_after", "safety",
    "unguided_uri", "autoencoder_psnr_db",
)  # fmt: skip
"""The result columns that a page needs."""

_SHOWABLE = (".jpg", ".jpeg", ".png", ".webp", ".avif", ".gif", ".bmp")
_MAX_CURVE = 60
_MAX_TEXT = 600

Metric = dict[str, Any]


def metric(
    label: str, digits: int | None = 2, *, better: int = 0, signed: bool = False, unit: str = "",
    help: str = "",
) -> Metric:  # fmt: skip
    """Return how a page writes a figure. digits: None for powers of ten. better: 1 up, -1 down."""
    return {
        "label": label, "digits": digits, "better": better, "signed": signed, "unit": unit,
        "help": help,
    }  # fmt: skip


def report_metrics(direction: str | None) -> dict[str, Metric]:
    """Return the figures of a report, in the order that they are listed."""
    better = {"up": 1, "down": -1}.get(direction or "", 0)
    return {
        "guide": metric("Δ guide", better=better, signed=True, help="change of the guide's score"),
        "judge": metric("Δ judge", better=better, signed=True, help="change of the judge's score"),
        "guide_before": metric("guide before"),
        "guide_after": metric("guide after"),
        "judge_before": metric("judge before"),
        "judge_after": metric("judge after"),
        "psnr": metric("PSNR", 1, unit=" dB", help="delivered against source"),
        "ssim": metric("SSIM", 3, help="structural similarity of the luminance"),
        "delta_e": metric("ΔE", 1, help="mean CIEDE2000 colour difference; 1 is just noticeable"),
        "autoencoder": metric(
            "autoencoder", 1, unit=" dB", help="what the autoencoder alone loses"
        ),
        "inversion": metric("inversion error", None, help="relative error of the round trip"),
        "protected": metric("protected", 2, help="share of the frame that a mask kept"),
        "steps": metric("iterations", 0),
        "seconds": metric("time", 1, unit=" s"),
        "seed": metric("seed", 0),
    }


def report_values(row: Mapping[str, Any]) -> dict[str, float]:
    """Return a row's figures, under the names of `report_metrics`; those it has."""
    found = {
        "guide": difference(row["score_before"], row["score_after"]),
        "judge": difference(row["judge_before"], row["judge_after"]),
        "guide_before": row["score_before"],
        "guide_after": row["score_after"],
        "judge_before": row["judge_before"],
        "judge_after": row["judge_after"],
        "psnr": row["psnr_db"],
        "ssim": row["ssim"],
        "delta_e": row["delta_e"],
        "autoencoder": row["autoencoder_psnr_db"],
        "inversion": row["inversion_error"],
        "protected": row["protected"],
        "steps": row["num_optim_steps"],
        "seconds": row["edit_seconds"],
        # Derived seeds have 63 bits, which no page can add to; they are in the table.
        "seed": row["seed"] if row["task"] in MADE_OF_WORDS else None,
    }
    return {name: rounded(value) for name, value in found.items() if usable(value)}


def page_row(row: Mapping[str, Any], pictures: Sequence[str | None]) -> dict[str, Any]:
    """Return one result as a page reads it. pictures: addresses, in the page's order of labels."""
    made = row["task"] in MADE_OF_WORDS
    values: dict[str, Any] = {
        "id": text(row["row_id"]),
        "status": row["status"],
        "pics": list(pictures),
        "m": report_values(row),
    }
    said = {
        "why": text(row["error_message"]),
        "error": text(row["error_type"]),
        "prompt": text(row["prompt"]) if made else None,
        "stop": text(row["stop_reason"]),
        "curves": [curve(row["loss_curve"])] if row["loss_curve"] else None,
        "lines": _guide_lines(row) or None,
    }
    return values | {name: value for name, value in said.items() if value is not None}


def photo_links(row: Mapping[str, Any], out: Path, page: Path) -> list[str | None]:
    """Return addresses of the photos themselves from a page's folder: [before, after].

    Relative, so that folder and photos can be moved together; None where a browser could not
    reach one from a page on disk.
    """
    links: list[str | None] = [None, None]
    before = row["unguided_uri"] or row["image_uri"]
    if row["unguided_uri"] is not None and is_safe_relpath(before):
        links[0] = _address(out / before, page)
    elif before is not None and not is_inline(before) and (path := local_path(before)) is not None:
        links[0] = _address(Path(path), page)
    if row["status"] == "ok" and row["edited_uri"] and is_safe_relpath(row["edited_uri"]):
        links[1] = _address(out / row["edited_uri"], page)
    return links


def showable(link: str | None) -> bool:
    """Return whether browsers show such a file."""
    return link is not None and link.lower().endswith(_SHOWABLE)


def text(value: str | None) -> str | None:
    """Return text as one plain line of bounded length; None of nothing."""
    if not value:
        return None
    line = plain(value)
    return line if len(line) <= _MAX_TEXT else line[: _MAX_TEXT - 1] + "…"


def curve(values: Sequence[float]) -> list[float]:
    """Return a loss curve of at most 60 points, without those that are no numbers."""
    step = max(1, math.ceil((len(values) - 1) / (_MAX_CURVE - 1)))
    chosen = list(values[::step])
    if (len(values) - 1) % step:
        chosen.append(values[-1])
    return [rounded(value) for value in chosen if usable(value)]


def difference(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after - before


def usable(value: float | None) -> bool:
    """Return whether a page can count with the value: JSON has no infinity."""
    return value is not None and math.isfinite(value)


def rounded(value: float) -> float:
    return value if isinstance(value, int) else float(f"{value:.5g}")


def _guide_lines(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return each guide's name and change; none where the row tells no guide's values."""
    if row["guide_values_before"] is None or row["guide_values_after"] is None:
        return []
    before, after = json.loads(row["guide_values_before"]), json.loads(row["guide_values_after"])
    return [
        (plain(name), f"{before[name]:.2f} → {after[name]:.2f} ({after[name] - before[name]:+.2f})")
        for name in before
        if name in after
    ]


def _address(path: Path, page: Path) -> str:
    relative = os.path.relpath(path, page)
    return quote(os.fsencode(relative.replace(os.sep, "/")))
