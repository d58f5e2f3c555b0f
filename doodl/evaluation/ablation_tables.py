"""The tables of ablations of the photo edit: what each part earns, picture by picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from doodl.evaluation.ablations import ABLATIONS
from doodl.evaluation.rows import Row
from doodl.evaluation.run import Evaluation
from doodl.evaluation.tables import Table, plain
from doodl.measures.bootstrap import Interval
from doodl.measures.figures import (
    CALLS,
    CLEAN_GAIN,
    DELIVERED,
    REFEREE,
    RMS,
    SECONDS,
    SOURCE_DB,
    WHITES,
    Figure,
    paired,
    summarise,
)

BASE = "edit"
_COSTS = (RMS, DELIVERED, SECONDS, CALLS)
_CAPTION = (
    "The preset with one part changed, on the same photos and seeds. Strengths are not made equal: "
    "RMS % is how far the edited photo moved, delivered or not. A photo that is rejected, skipped "
    "or failed is delivered as it was: its change is 0. Less the preset: photo by photo. "
    "[low, high]: 95 % bootstrap interval over photos."
)


def ablation_tables(
    evaluation: Evaluation, left_out: Sequence[tuple[str, str]] = ()
) -> list[Table]:
    """Return a table for each direction and set of photos.

    Args:
        left_out: ablations that were asked for and make no row, with why.
    """
    tables = []
    for direction in evaluation.spec.directions:
        for what in ("dulled", "untouched"):
            rows = [r for r in evaluation.rows if r["set"] == what and r["direction"] == direction]
            if rows:
                tables.append(_table(f"ablations: {what} photos, {direction}", rows, evaluation))
    note = left_out_note(left_out)
    return [replace(table, caption=table.caption + note) for table in tables]


def left_out_note(left_out: Sequence[tuple[str, str]]) -> str:
    """Return a sentence that names what makes no row, empty for nothing."""
    if not left_out:
        return ""
    same = [name for name, why in left_out if why == "the preset as it is"]
    others = [f"{name} ({why.rstrip('.')})" for name, why in left_out if name not in same]
    told = [f"{', '.join(same)} are the preset as it is"] if same else []
    told += [f"these do not fit the preset: {', '.join(others)}"] if others else []
    return f" Not in the table: {'; '.join(told)}."


def described(method: str) -> tuple[str, str]:
    """Return the part that a method changes, and to what."""
    if method in ABLATIONS:
        return ABLATIONS[method].part, ABLATIONS[method].value
    return method, "unguided" if method == "original" else "the preset"


def _table(title: str, rows: Sequence[Row], evaluation: Evaluation) -> Table:
    seed = evaluation.spec.draw.seed
    gains = (REFEREE, CLEAN_GAIN) if rows[0]["set"] == "dulled" else (REFEREE, SOURCE_DB)
    base = [row for row in rows if row["method"] == BASE]
    cells, values = [], []
    for method in evaluation.spec.methods:
        mine = [row for row in rows if row["method"] == method]
        levels = summarise(mine, (*gains, WHITES, *_COSTS), seed=seed)
        less: dict[str, Interval | None] = dict.fromkeys(figure.name for figure in gains)
        if method != BASE:
            less = paired(mine, base, gains, seed=seed)
        line = [*described(method), str(len(mine))]
        for figure in gains:
            line += [figure.cell(levels[figure.name]), _signed(figure, less[figure.name])]
        line += [figure.cell(levels[figure.name]) for figure in (WHITES, *_COSTS)]
        cells.append(tuple(line))
        values.append({
            "method": method, "part": line[0], "value": line[1], "photos": len(mine),
            **plain(levels), **{f"less:{name}": v for name, v in plain(less).items()},
        })  # fmt: skip
    headings = [h for figure in gains for h in (figure.heading, "less the preset")]
    columns = ("part", "value", "photos", *headings,
               *(figure.heading for figure in (WHITES, *_COSTS)))  # fmt: skip
    plotted = [
        (f"less:{figure.name}", f"{figure.heading}, less the preset") for figure in gains
    ] + [(RMS.name, RMS.heading), (SECONDS.name, SECONDS.heading)]
    return Table(
        title, _CAPTION, columns, tuple(cells), (0, 1, 3, 4, 5, 6, 8, 10, 11), tuple(values),
        tuple(plotted), label_columns=2,
    )  # fmt: skip


def _signed(figure: Figure, interval: Interval | None) -> str:
    return replace(figure, kind="+.2f").cell(interval)
