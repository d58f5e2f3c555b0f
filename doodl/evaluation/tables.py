"""The tables of an evaluation, as values; Markdown and a terminal show the same ones."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from doodl.evaluation.cases import GROUPS
from doodl.evaluation.methods import METHODS
from doodl.evaluation.rows import Row
from doodl.evaluation.run import Evaluation
from doodl.measures.bootstrap import Interval
from doodl.measures.figures import (
    CLEAN_GAIN,
    DOWN,
    DULLED,
    FAILED,
    MOVED,
    NEARER,
    NOT_AGAINST,
    REFEREE,
    RMS,
    SECONDS,
    SHARE,
    SOURCE_DB,
    UNTOUCHED,
    WHITES,
    Figure,
    paired,
    summarise,
)

# What fits a terminal; the Markdown has every figure, with intervals.
_BRIEF = (MOVED, NOT_AGAINST, REFEREE, NEARER, CLEAN_GAIN, SOURCE_DB, WHITES, SECONDS)
_FAIR = (
    "A photo that is rejected, skipped or failed is delivered as it was: it counts as not "
    "improved, its change is 0. [low, high]: 95 % bootstrap interval over photos."
)
_WHITES = (
    "Whites: mean shift of chroma, in % of the range, of pixels with chroma < 0.05 and luma > 0.6 "
    "in the clean original, or in the source where there is none."
)


@dataclass(frozen=True)
class Table:
    """A table with its caption; `values` are the numbers behind the cells, for programs.

    Attributes:
        brief: places of the columns that a terminal shows; empty means all.
        plotted: (name among the values, heading) of the figures that a plot shows, each an
            interval; the plot's rows are named by the first `label_columns` cells.
    """

    title: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    brief: tuple[int, ...] = ()
    values: tuple[dict[str, Any], ...] = field(default=(), compare=False)
    plotted: tuple[tuple[str, str], ...] = ()
    label_columns: int = 1

    def shortened(self) -> Table:
        """Return the table with its brief columns only, and means without their intervals."""
        if not self.brief:
            return self
        rows = tuple(tuple(row[i].split(" [")[0] for i in self.brief) for row in self.rows)
        return replace(self, columns=tuple(self.columns[i] for i in self.brief), rows=rows)


def all_tables(evaluation: Evaluation) -> list[Table]:
    """Return every table that the evaluation's rows fill."""
    seed = evaluation.spec.draw.seed
    tables = []
    for direction in evaluation.spec.directions:
        for what in ("dulled", "untouched"):
            rows = [r for r in evaluation.rows if r["set"] == what and r["direction"] == direction]
            if rows:
                tables += _tables_of(rows, what, direction, evaluation, seed)
    tables.append(_strengths(evaluation))
    if evaluation.referee_check is not None:
        tables.append(_referee(evaluation.referee_check))
    return tables


def _tables_of(
    rows: list[Row], what: str, direction: str, evaluation: Evaluation, seed: int
) -> list[Table]:
    methods = [name for name, way in evaluation.spec.runs if way == direction]
    title = f"{what} photos, {direction}"
    if what == "untouched":
        figures = UNTOUCHED if direction == "up" else DOWN
        return [_comparison(title, _caption(figures), rows, methods, figures, seed)]
    if direction == "down":
        return [_comparison(title, _caption(DOWN), rows, methods, DOWN, seed)]
    draw = evaluation.spec.draw
    drawn = (
        f"Damage of one type at a severity drawn from {draw.severity[0]:g} to "
        f"{draw.severity[1]:g}; types that neither guide nor judge trained on are drawn thrice "
        f"as often. {_caption(DULLED)}"
    )
    tables = [_comparison(title, drawn, rows, methods, DULLED, seed)]
    explained = {
        "trained": "Types that the guide trained on",
        "unseen": "Types that neither guide nor judge trained on",
        "no stretch": "Types that no global stretch undoes",
    }
    for group, types in GROUPS.items():
        part = [row for row in rows if row["type"] in types]
        if part:
            caption = f"{explained[group]}: {', '.join(types)}. {_caption(DULLED)}"
            tables.append(_comparison(f"{title}: {group}", caption, part, methods, DULLED, seed))
    tables += _paired(title, rows, methods, seed)
    tables += _by_type(title, rows, methods, seed)
    return tables


def _caption(figures: Sequence[Figure]) -> str:
    return f"{_FAIR} {_WHITES}" if WHITES in figures else _FAIR


def _comparison(
    title: str,
    caption: str,
    rows: Sequence[Row],
    methods: Sequence[str],
    figures: Sequence[Figure],
    seed: int,
) -> Table:
    if any(row["status"] == "failed" for row in rows):
        figures = (*figures, FAILED)
    cells, values = [], []
    for method in methods:
        mine = [row for row in rows if row["method"] == method]
        summary = summarise(mine, figures, seed=seed)
        cells.append(
            (method, str(len(mine)), *(figure.cell(summary[figure.name]) for figure in figures))
        )
        values.append({"method": method, "photos": len(mine), **plain(summary)})
    headings = tuple(_heading(figure, rows) for figure in figures)
    brief = (0, 1, *(i + 2 for i, figure in enumerate(figures) if figure in _BRIEF))
    columns = ("method", "photos", *headings)
    return Table(title, caption, columns, tuple(cells), brief, tuple(values), plotted(figures))


def plotted(figures: Sequence[Figure]) -> tuple[tuple[str, str], ...]:
    """Return the figures that a plot of a comparison shows: what is gained, and for what."""
    shown = (REFEREE, CLEAN_GAIN, RMS, SECONDS)
    return tuple((figure.name, figure.heading) for figure in figures if figure in shown)


def _heading(figure: Figure, rows: Sequence[Row]) -> str:
    up = rows[0]["direction"] == "up"
    if figure is MOVED:
        return "referee rises" if up else "referee falls"
    if figure is NOT_AGAINST:
        return "does not fall" if up else "does not rise"
    return figure.heading


def _paired(title: str, rows: Sequence[Row], methods: Sequence[str], seed: int) -> list[Table]:
    """Return the edit less each rival, photo by photo, over all and by group."""
    rivals = [method for method in methods if method != "edit"]
    if "edit" not in methods or not rivals:
        return []
    figures = (REFEREE, CLEAN_GAIN, WHITES)
    groups = {"all": None, **GROUPS}
    cells, values = [], []
    for group, types in groups.items():
        part = [row for row in rows if types is None or row["type"] in types]
        mine = [row for row in part if row["method"] == "edit"]
        for rival in rivals if mine else ():
            summary = paired(
                mine, [row for row in part if row["method"] == rival], figures, seed=seed
            )
            cells.append(
                (group, rival, str(len(mine)), *(_signed(f, summary[f.name]) for f in figures))
            )
            values.append({"group": group, "rival": rival, "photos": len(mine), **plain(summary)})
    caption = (
        "The edit's figure less the rival's on the same photo. Above 0 is better for the referee "
        f"and for the distance to the clean original, below 0 for the whites. {_FAIR}"
        f"{_what_the_prior_earns(values)}"
    )
    columns = ("types", "rival", "photos", *(figure.heading for figure in figures))
    return [
        Table(
            f"{title}: edit less rival", caption, columns, tuple(cells), values=tuple(values),
            plotted=tuple((f.name, f.heading) for f in (REFEREE, CLEAN_GAIN)), label_columns=2,
        )
    ]  # fmt: skip


def _what_the_prior_earns(values: Sequence[dict[str, Any]]) -> str:
    """Return a plain sentence on the edit against the two rivals that lack a trained diffusion."""
    told = []
    for rival, lacking in (("autoencoder", "no diffusion"), ("zero-unet", "a UNet of zeros")):
        found = [v for v in values if v["rival"] == rival and v["group"] == "all"]
        if not found or found[0]["clean_gain_db"] is None or found[0]["referee_change"] is None:
            continue
        said = [
            f"{_verdict(found[0][name], more, less)} ({found[0][name]['mean']:+.2f}{unit})"
            for name, more, less, unit in (
                ("clean_gain_db", "nearer to the clean original", "farther from it", " dB"),
                ("referee_change", "higher with the referee", "lower with the referee", ""),
            )
        ]
        told.append(f"than with {lacking} the edit ends {' and '.join(said)}")
    return f" What the diffusion prior earns: {'; '.join(told)}." if told else ""


def _verdict(interval: dict[str, float], more: str, less: str) -> str:
    if interval["low"] > 0:
        return more
    return less if interval["high"] < 0 else f"not measurably {more}"


def _by_type(title: str, rows: Sequence[Row], methods: Sequence[str], seed: int) -> list[Table]:
    """Return what each type of damage comes to under the edit, and under the toy beside it."""
    if "edit" not in methods:
        return []
    figures = (MOVED, REFEREE, NEARER, CLEAN_GAIN, WHITES)
    toy = "auto-contrast" if "auto-contrast" in methods else None
    cells, values = [], []
    for kind in sorted({row["type"] for row in rows}):
        part = [row for row in rows if row["type"] == kind]
        mine = [row for row in part if row["method"] == "edit"]
        summary = summarise(mine, figures, seed=seed)
        line = [kind, _groups_of(kind), str(len(mine))]
        line += [figure.cell(summary[figure.name]) for figure in figures]
        value: dict[str, Any] = {"type": kind, "photos": len(mine), **plain(summary)}
        if toy:
            other = summarise(
                [row for row in part if row["method"] == toy], (REFEREE, CLEAN_GAIN), seed=seed
            )
            line += [figure.cell(other[figure.name]) for figure in (REFEREE, CLEAN_GAIN)]
            value |= {f"toy_{name}": number for name, number in plain(other).items()}
        cells.append(tuple(line))
        values.append(value)
    columns = ("type", "groups", "photos", *(_heading(f, rows) for f in figures))
    columns += ("toy: Δ referee", "toy: → clean dB") if toy else ()
    caption = f"The edit by type of damage; few photos of each: read the intervals. {_FAIR}"
    brief = tuple(i for i in range(len(columns)) if columns[i] != "groups")
    return [Table(f"{title}: by type", caption, columns, tuple(cells), brief, tuple(values))]


def _groups_of(kind: str) -> str:
    return ", ".join(group for group, types in GROUPS.items() if kind in types) or "–"


def _signed(figure: Figure, interval: Interval | None) -> str:
    return replace(figure, kind="+.2f").cell(interval) if figure.kind != SHARE else "–"


def _strengths(evaluation: Evaluation) -> Table:
    validation = len(evaluation.drawn.validation)
    cells, values = [], []
    for method, direction in evaluation.spec.runs:
        found = evaluation.strengths.get((method, direction))
        knob = METHODS[method].knob
        tuned = found is not None and knob is not None
        value = METHODS[method].start if found is None else found.value
        cells.append((
            method,
            METHODS[method].summary,
            direction,
            "as it is" if knob is None else f"{knob} {value:.3g}",
            f"{100 * found.change:.2f}" if tuned and found is not None else "–",
            f"{100 * found.target:.2f}" if tuned and found is not None else "–",
            str(len(found.trials)) if tuned and found is not None else "–",
            "–" if not tuned or found is None else "yes" if found.matched else "no",
        ))  # fmt: skip
        values.append({
            "method": method, "direction": direction, "knob": knob, "value": value,
            "change": None if found is None else found.change,
            "target": None if found is None else found.target,
            "trials": None if found is None else found.trials,
        })  # fmt: skip
    caption = (
        f"Mean RMS change of the edited file, in % of the range, on {validation} photos that are "
        "in no other table; a knob is turned until it is the edit's own. The toy has none."
        if validation
        else "No photos to tune on: every method runs at its own start, and strengths differ."
    )
    columns = ("method", "what it is", "direction", "strength", "RMS %", "target", "trials", "met")
    return Table("equal strength", caption, columns, tuple(cells), (0, 2, 3, 4, 5, 7),
                 tuple(values))  # fmt: skip


def _referee(check: dict[str, Any]) -> Table:
    left_out = set(check["left_out"])
    cells = tuple(
        (kind, "no" if kind in left_out else "yes", f"{v['pairs']:.2f}", f"{v['mildest']:.2f}",
         f"{v['score_at_1']:.2f}")
        for kind, v in check["per_type"].items()
    )  # fmt: skip
    caption = (
        f"How often the referee scores the less damaged of two versions of a photo higher, on "
        f"{check['photos']} photos: over all pairs of none and five severities, and for none "
        f"against the mildest. Over all types {check['pairs_all_types']}, mildest "
        f"{check['mildest_all_types']}; of types it never saw {check['pairs_left_out_types']}. "
        f"Undamaged photos score {check['natural_score_mean']} ± {check['natural_score_std']}."
    )
    columns = ("type", "trained on", "pairs", "mildest", "score at 1")
    return Table(f"the referee's own check ({check['recipe']})", caption, columns, cells)


def plain(summary: dict[str, Interval | None]) -> dict[str, Any]:
    return {name: None if i is None else vars(i) for name, i in summary.items()}


_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>|#])")


def markdown_text(text: str) -> str:
    """Return the text so that Markdown shows it as it is, on one line."""
    return _MARKDOWN.sub(r"\\\1", " ".join(text.split()))


def markdown(table: Table, footer: str = "", plot: Path | None = None) -> str:
    """Return the table as a section of Markdown; brackets in our own cells need no escape.

    Args:
        plot: its picture, in a folder beside the document.
    """
    lines = [f"## {table.title}", "", table.caption, ""]
    lines.append("| " + " | ".join(table.columns) + " |")
    lines.append("|" + "---|" * len(table.columns))
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in r) + " |" for r in table.rows]
    if plot is not None:
        lines += ["", f"![{markdown_text(table.title)}]({plot.parent.name}/{plot.name})"]
    if footer:
        lines += ["", footer]
    return "\n".join(lines) + "\n"
