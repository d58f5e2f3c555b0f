"""The table of ablations of guided generation: what each part earns, picture by picture."""

from __future__ import annotations

from collections.abc import Sequence

from doodl.evaluation.ablation_tables import described, left_out_note
from doodl.evaluation.guided.methods import GUIDED_METHODS
from doodl.evaluation.guided.run import GuidedEvaluation
from doodl.evaluation.guided.tables import CHANGE, COSTS, aims_of, column
from doodl.evaluation.tables import Table, plain
from doodl.measures.bootstrap import Interval
from doodl.measures.figures import SHARE, Figure, paired, summarise

BASE = "doodl"


def guided_ablation_tables(
    evaluation: GuidedEvaluation, left_out: Sequence[tuple[str, str]] = ()
) -> list[Table]:
    """Return the table.

    Args:
        left_out: ablations that were asked for and make no row, with why.
    """
    spec = evaluation.spec
    aims, signed = aims_of(evaluation), aims_of(evaluation, "+")
    scores = [column(f"score:{m}", f"score, {m}", ".2f") for m in spec.measures]
    others = [*(scores if spec.task != "aesthetic" else ()), CHANGE, *COSTS]
    if any(row["status"] == "failed" for row in evaluation.rows):
        others.append(Figure("failed", "failed", lambda r: float(r["status"] == "failed"), SHARE))
    base = [row for row in evaluation.rows if row["method"] == BASE]
    cells, values = [], []
    for method in spec.methods:
        rows = [row for row in evaluation.rows if row["method"] == method]
        levels = summarise(rows, [*aims, *others], seed=spec.seed)
        less: dict[str, Interval | None] = dict.fromkeys(figure.name for figure in signed)
        if method != BASE:
            less = paired(rows, base, signed, seed=spec.seed)
        part, value = described(method)
        line = [part, value, GUIDED_METHODS[method].sampler(spec.config), str(len(rows))]
        for level, difference in zip(aims, signed, strict=True):
            line += [level.cell(levels[level.name]), difference.cell(less[difference.name])]
        line += [figure.cell(levels[figure.name]) for figure in others]
        cells.append(tuple(line))
        values.append({
            "method": method, "part": part, "value": value, "pictures": len(rows),
            **plain(levels), **{f"less:{name}": v for name, v in plain(less).items()},
        })  # fmt: skip
    headings = [h for aim in aims for h in (aim.heading, "less the preset")]
    columns = ("part", "value", "sampler", "pictures", *headings, *(f.heading for f in others))
    caption = (
        "The preset with one part changed, of the same items and seeds, by "
        f"{', '.join(spec.measures)}, none of which guided. Strengths are not made equal: RMS % is "
        "how far the picture moved from the unguided one of the same noise and sampler. Less the "
        "preset: picture by picture. [low, high]: 95 % bootstrap interval over pictures."
        f"{left_out_note(left_out)}"
    )
    brief = (0, 1, *range(4, 4 + 2 * len(aims)), columns.index(CHANGE.heading),
             columns.index(COSTS[0].heading))  # fmt: skip
    plotted = [(f"less:{f.name}", f"less the preset, {f.name.partition(':')[2]}") for f in signed]
    plotted += [(CHANGE.name, CHANGE.heading), (COSTS[0].name, COSTS[0].heading)]
    title = f"ablations: {spec.task}"
    return [Table(title, caption, columns, tuple(cells), brief, tuple(values), tuple(plotted), 2)]
