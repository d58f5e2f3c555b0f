"""Plots of tables: a dot for each mean and a line for its interval, as SVG that any reader shows.

Written by hand: it is a few lines and dots, and needs no library, font or display.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from doodl.evaluation.store import write_whole
from doodl.evaluation.tables import Table

_ROW_PX, _HEAD_PX, _FOOT_PX = 20, 44, 26
_LABEL_PX, _PANEL_PX, _GAP_PX = 230, 190, 26
_INK, _FAINT, _MARK, _RULE = "#1a1a1a", "#777777", "#1f5fa8", "#dddddd"


def svg_of(table: Table) -> str | None:
    """Return the table's plot, a panel for each of its `plotted` figures; None if it has none.

    A figure that no row has is left out, and so is the dot of a row that lacks it.
    """
    panels = [
        (heading, [row.get(name) for row in table.values])
        for name, heading in table.plotted
        if any(row.get(name) for row in table.values)
    ]
    if not panels or len(table.values) != len(table.rows):
        return None
    labels = [": ".join(row[: table.label_columns]) for row in table.rows]
    height = _HEAD_PX + len(labels) * _ROW_PX + _FOOT_PX
    width = _LABEL_PX + len(panels) * (_PANEL_PX + _GAP_PX)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        _text(8, 16, table.title, _INK, size=13),
    ]
    for i, label in enumerate(labels):
        parts.append(_text(_LABEL_PX - 8, _row_y(i) + 4, _short(label), _INK, anchor="end"))
    for j, (heading, values) in enumerate(panels):
        parts += _panel(_LABEL_PX + j * (_PANEL_PX + _GAP_PX), heading, values, len(labels))
    return "\n".join([*parts, "</svg>", ""])


def write_plots(folder: Path, tables: Sequence[Table]) -> dict[str, Path]:
    """Write each table's plot into the folder, and return the files by the tables' titles.

    Plots of an earlier evaluation that this one has not go.
    """
    written: dict[str, Path] = {}
    for table in tables:
        svg = svg_of(table)
        if svg is None:
            continue
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{plot_name(table.title)}.svg"
        write_whole(path, svg.encode())
        written[table.title] = path
    for stale in folder.glob("*.svg"):
        if stale not in written.values():
            stale.unlink()
    return written


def plot_name(title: str) -> str:
    """Return a file name of letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def _panel(
    left: int, heading: str, values: Sequence[dict[str, Any] | None], rows: int
) -> list[str]:
    known = [value for value in values if value]
    ends = [number for value in known for number in (value["low"], value["high"])]
    # Zero is in sight: most figures are changes, and the others begin there.
    low, high = min(0.0, *ends), max(0.0, *ends)
    step = _tick_step(high - low)
    low, high = math.floor(low / step) * step, max(math.ceil(high / step), 1) * step
    bottom = _HEAD_PX + rows * _ROW_PX

    def x(value: float) -> float:
        return left + _PANEL_PX * (value - low) / (high - low)

    parts = [_text(left + _PANEL_PX / 2, 36, heading, _INK, anchor="middle")]
    for k in range(round((high - low) / step) + 1):
        tick = low + k * step
        ink = _FAINT if abs(tick) < step / 2 else _RULE
        parts.append(_line(x(tick), _HEAD_PX, x(tick), bottom, ink))
        shown = f"{0.0 if abs(tick) < step / 2 else tick:g}"
        parts.append(_text(x(tick), bottom + 15, shown, _FAINT, anchor="middle"))
    for i, value in enumerate(values):
        if value:
            y = _row_y(i)
            parts.append(_line(x(value["low"]), y, x(value["high"]), y, _MARK, 2))
            parts.append(f'<circle cx="{x(value["mean"]):.1f}" cy="{y}" r="3.5" fill="{_MARK}"/>')
    return parts


def _tick_step(span: float) -> float:
    """Return 1, 2 or 5 times a power of ten that cuts the span into four parts or so."""
    if span <= 0:
        return 1.0
    power = 10 ** math.floor(math.log10(span / 4))
    return next(f * power for f in (1, 2, 5, 10) if span / (f * power) <= 5)


def _row_y(row: int) -> int:
    return _HEAD_PX + row * _ROW_PX + _ROW_PX // 2


def _short(label: str, limit: int = 36) -> str:
    shown = "".join(c if c.isprintable() else "?" for c in label)
    return shown if len(shown) <= limit else f"{shown[: limit - 1]}…"


def _text(x: float, y: float, text: str, ink: str, *, anchor: str = "start", size: int = 11) -> str:
    return (
        f'<text x="{x:.1f}" y="{y}" fill="{ink}" text-anchor="{anchor}" font-size="{size}">'
        f"{escape(text)}</text>"
    )


def _line(x1: float, y1: float, x2: float, y2: float, ink: str, width: int = 1) -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1}" x2="{x2:.1f}" y2="{y2}" stroke="{ink}" '
        f'stroke-width="{width}"/>'
    )
