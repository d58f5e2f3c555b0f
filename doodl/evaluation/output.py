"""What an evaluation leaves to look at: tables.md, rows.csv, evaluation.json and sheets/*.png."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from doodl.engine.software import __version__
from doodl.evaluation.cases import Case
from doodl.evaluation.plots import write_plots
from doodl.evaluation.rows import COLUMNS, Row, case_id
from doodl.evaluation.run import Evaluation
from doodl.evaluation.sheets import Cell, write_sheets
from doodl.evaluation.store import Store, picture_name, write_whole
from doodl.evaluation.tables import Table, all_tables, markdown, markdown_text

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class Written:
    """The tables, and where everything lies."""

    tables: list[Table]
    tables_path: Path
    rows_path: Path
    sheets: list[Path]


def write_evaluation(
    evaluation: Evaluation,
    out: Path,
    command: str,
    *,
    tables: list[Table] | None = None,
    title: str = "Evaluation of the enhance edit",
) -> Written:
    """Write everything that is read or looked at.

    Args:
        command: the full command line, put below every table.
        tables: other ones than those that compare the edit with its rivals.
    """
    tables = all_tables(evaluation) if tables is None else tables
    tables_path, rows_path = out / "tables.md", out / "rows.csv"
    plots = write_plots(out / "plots", tables)
    document = _document(evaluation, tables, command, title, plots)
    write_whole(tables_path, document.encode())
    write_whole(rows_path, _csv(evaluation.rows).encode("utf-8", "surrogateescape"))
    record = json.dumps(_record(evaluation, tables, command), indent=1, default=str) + "\n"
    write_whole(out / "evaluation.json", record.encode())
    return Written(tables, tables_path, rows_path, _sheets(evaluation, out))


def provenance(evaluation: Evaluation, command: str) -> str:
    """Return one line of Markdown: models with their revisions, version, seed and command."""
    spec, revisions = evaluation.spec, evaluation.revisions
    models = f"model {markdown_text(spec.model)} {revisions['model']}"
    scorers = ", ".join(f"{name} {revisions[name]}" for name in ("guide", "judge", "referee"))
    return (
        f"{models}, {scorers} ({markdown_text(Path(spec.referee).name)}), doodl-batch "
        f"{__version__}, seed {spec.draw.seed}. `{command.replace('`', '')}`"
    )


def _document(
    evaluation: Evaluation,
    tables: Sequence[Table],
    command: str,
    title: str,
    plots: dict[str, Path],
) -> str:
    footer = provenance(evaluation, command)
    parts = [f"# {title}\n", *(markdown(t, footer, plots.get(t.title)) for t in tables)]
    if evaluation.drawn.unreadable:
        names = [
            f"- {markdown_text(n)}: {markdown_text(w)}" for n, w in evaluation.drawn.unreadable
        ]
        parts.append("## Photos that could not be used\n\n" + "\n".join(names) + "\n")
    return "\n".join(parts)


def _record(evaluation: Evaluation, tables: Sequence[Table], command: str) -> dict[str, Any]:
    spec = evaluation.spec
    return {
        "command": command,
        "version": __version__,
        "model": spec.model,
        "revisions": evaluation.revisions,
        "config": spec.config.to_dict(),
        "draw": vars(spec.draw) | {"cycle": spec.draw.cycle},
        "photos_used": len({case.source.name for case in evaluation.cases}),
        "tables": [{"title": t.title, "caption": t.caption, "values": t.values} for t in tables],
        "referee_check": evaluation.referee_check,
        "unreadable": evaluation.drawn.unreadable,
    }


def _csv(rows: Sequence[Row]) -> str:
    """Return the rows as CSV; text that a spreadsheet would run as a formula is quoted."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, extrasaction="ignore")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _inert(value) for name, value in row.items()})
    return buffer.getvalue()


def _inert(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def _sheets(evaluation: Evaluation, out: Path) -> list[Path]:
    store, paths = Store(out), []
    for direction in evaluation.spec.directions:
        methods = [method for method, way in evaluation.spec.runs if way == direction]
        for what in ("dulled", "untouched"):
            cases = [case for case in evaluation.cases if case.set == what]
            if not cases:
                continue
            cases.sort(key=lambda case: (case.type or "", case.source.name))
            rows = {
                (row["case"], row["method"]): row
                for row in evaluation.rows
                if row["direction"] == direction
            }
            cells = [_line(store, case, methods, rows) for case in cases]
            shown = ["clean", "dulled"] if what == "dulled" else ["photo"]
            compared = "to the clean original" if what == "dulled" else "to the photo itself"
            title = f"{what} photos, {direction}: change of the referee's score, PSNR {compared}"
            paths += write_sheets(
                out / "sheets", f"{what}-{direction}", title, [*shown, *methods], cells
            )
    return paths


def _line(
    store: Store, case: Case, methods: Sequence[str], rows: dict[tuple[str, str], Row]
) -> list[Cell]:
    name = case_id(case)
    first = rows[name, methods[0]]
    source = store.picture(picture_name(name, "source"))
    before = first["referee_before"]
    referee = "" if before is None else f"referee {before:.2f}"
    if case.type is None:
        cells = [Cell(source, (case.source.name, referee))]
    else:
        clean = store.picture(picture_name(name, "clean"))
        db = first["clean_db_before"]
        cells = [
            Cell(clean, (case.source.name,)),
            Cell(
                source,
                (
                    f"{case.type} {case.severity:.2f}",
                    referee + ("" if db is None else f", {db:.1f} dB"),
                ),
            ),
        ]
    for method in methods:
        cells.append(_edited(store, rows[name, method]))
    return cells


def _edited(store: Store, row: Row) -> Cell:
    """Return an edit as it came out, delivered or not, with what it would have come to."""
    picture = store.picture(picture_name(row["case"], row["recipe"]))
    before, edited = row["referee_before"], row["referee_edited"]
    change = 0.0 if before is None or edited is None else edited - before
    db = row["clean_db_edited"]
    if db is not None and row["clean_db_before"] is not None:
        gain = f", {db - row['clean_db_before']:+.1f} dB"
    else:
        gain = "" if row["source_db"] is None else f", {row['source_db']:.1f} dB to it"
    wanted = change if row["direction"] == "up" else -change
    status = "" if row["status"] == "ok" else row["status"]
    return Cell(picture, (f"{change:+.2f}{gain}", status), wanted)
