"""The tables of an evaluation of guided generation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from doodl.evaluation.guided.methods import GUIDED_METHODS
from doodl.evaluation.guided.run import GuidedEvaluation
from doodl.evaluation.rows import Row
from doodl.evaluation.tables import Table, plain
from doodl.measures.figures import SHARE, Figure, paired, summarise
from doodl.measures.frechet import frechet_distance

_PAIRS = (
    ("doodl", "original"),
    ("one-step", "original"),
    ("hybrid", "original"),
    ("doodl-belm", "original"),
    ("doodl-belm", "original-belm"),
    ("doodl", "one-step"),
    ("doodl", "hybrid"),
    ("doodl-belm", "one-step"),
    ("doodl-belm", "doodl"),
)
DRAW_MARGIN = 0.1
"""Points of a score within which two pictures are even."""

_AIMS = {
    "text": ("cosine to the caption", ".3f"),
    "classes": ("probability of the class", ".3f"),
    "personalize": ("cosine to the subject", ".3f"),
    "aesthetic": ("score", ".2f"),
}
_INTERVAL = "[low, high]: 95 % bootstrap interval over pictures."

CHANGE = Figure(
    "change", "RMS %", lambda row: None if row["change"] is None else 100 * row["change"], ".1f"
)
COSTS = (
    Figure("cpu_seconds", "CPU s", lambda row: row["cpu_seconds"], ".1f"),
    Figure("unet_calls", "UNet calls", lambda row: row["unet_calls"], ".0f"),
)


def guided_tables(
    evaluation: GuidedEvaluation,
    features: dict[tuple[str, str], np.ndarray] | None = None,
    real: dict[str, np.ndarray] | None = None,
) -> list[Table]:
    """Return every table.

    Args:
        features: by (method, class), embeddings (N, D) of the pictures. real: by class, those of
            photos; both or neither.
    """
    tables = [_levels(evaluation), *_differences(evaluation)]
    if evaluation.spec.task == "aesthetic":
        tables += _contests(evaluation)
    tables += _categories(evaluation)
    if features and real:
        tables.append(_distances(evaluation, features, real))
    return [*tables, *_strengths(evaluation)]


def _mine(evaluation: GuidedEvaluation, method: str) -> list[Row]:
    return [row for row in evaluation.rows if row["method"] == method]


def column(name: str, heading: str, kind: str) -> Figure:
    """Return the figure that is a row's own value."""
    return Figure(name, heading, lambda row: row.get(name), kind)


def aims_of(evaluation: GuidedEvaluation, sign: str = "") -> list[Figure]:
    """Return what the task asks for, by each measure; `sign`: of differences, `+`."""
    what, kind = _AIMS[evaluation.spec.task]
    return [
        column(f"aim:{measure}", f"{what}, {measure}", sign + kind)
        for measure in evaluation.spec.measures
    ]


def _others(evaluation: GuidedEvaluation, sign: str = "") -> list[Figure]:
    """Return what else is measured: that the rest of the picture has not been given up."""
    spec, figures = evaluation.spec, []
    for measure in spec.measures:
        if spec.task == "classes" and not sign:
            figures.append(column(f"right:{measure}", f"class found, {measure}", SHARE))
        if spec.task in ("personalize", "aesthetic"):
            heading = f"cosine to the prompt, {measure}"
            figures.append(column(f"prompt:{measure}", heading, sign + ".3f"))
        if spec.task != "aesthetic":
            figures.append(column(f"score:{measure}", f"score, {measure}", sign + ".2f"))
    return figures


def _levels(evaluation: GuidedEvaluation) -> Table:
    spec = evaluation.spec
    figures = [*aims_of(evaluation), *_others(evaluation), CHANGE, *COSTS]
    if any(row["status"] == "failed" for row in evaluation.rows):
        figures.append(Figure("failed", "failed", lambda r: float(r["status"] == "failed"), SHARE))
    cells, values = [], []
    for method in spec.methods:
        rows = _mine(evaluation, method)
        summary = summarise(rows, figures, seed=spec.seed)
        sampler = GUIDED_METHODS[method].sampler(spec.config)
        line = (f.cell(summary[f.name]) for f in figures)
        cells.append((method, sampler, str(len(rows)), *line))
        values.append(
            {"method": method, "sampler": sampler, "pictures": len(rows), **plain(summary)}
        )
    caption = (
        f"By {', '.join(spec.measures)}, none of which guided. Guides: "
        f"{', '.join(spec.config.guides)}. RMS %: from the unguided picture of the same noise and "
        f"sampler. {_INTERVAL}"
    )
    columns = ("method", "sampler", "pictures", *(figure.heading for figure in figures))
    brief = (*range(3 + len(aims_of(evaluation))), columns.index(COSTS[0].heading))
    plotted = tuple((f.name, f.heading) for f in (*aims_of(evaluation), CHANGE, COSTS[0]))
    title = f"{spec.task}: methods"
    return Table(title, caption, columns, tuple(cells), brief, tuple(values), plotted)


def _strengths(evaluation: GuidedEvaluation) -> list[Table]:
    """Return how the rivals were made as strong as DOODL, trial by trial."""
    spec, cells, values = evaluation.spec, [], []
    for method, found in evaluation.strengths.items():
        trials = "; ".join(f"{value:.3g}: {100 * change:.1f}" for value, change in found.trials)
        cells.append((
            method, f"{GUIDED_METHODS[method].knob} {found.value:.3g}", f"{100 * found.change:.1f}",
            f"{100 * found.target:.1f}", trials, "yes" if found.matched else "no",
        ))  # fmt: skip
        values.append({"method": method, **vars(found)})
    if not cells:
        return []
    caption = (
        f"Mean RMS change of {spec.validation} pictures of seeds that are in no other table, in % "
        "of the range; a knob is turned until it is DOODL's own."
    )
    columns = ("method", "strength", "RMS %", "target", "trials", "met")
    title = f"{spec.task}: equal strength"
    return [Table(title, caption, columns, tuple(cells), (0, 1, 2, 3, 5), tuple(values))]


def _differences(evaluation: GuidedEvaluation) -> list[Table]:
    """Return each method less another on the same picture, and how often it is ahead."""
    spec = evaluation.spec
    pairs = [pair for pair in _PAIRS if set(pair) <= set(spec.methods)]
    if not pairs:
        return []
    aims = aims_of(evaluation, "+")
    figures = [*aims, *_others(evaluation, "+")]
    cells, values = [], []
    for first, second in pairs:
        mine, other = _mine(evaluation, first), _mine(evaluation, second)
        summary = paired(mine, other, figures, seed=spec.seed)
        ahead = _ahead(mine, other, aims)
        shares = summarise(ahead, [_share(aim) for aim in aims], seed=spec.seed)
        cells.append((
            f"{first} less {second}",
            str(len(ahead)),
            *(_share(aim).cell(shares[aim.name]) for aim in aims),
            *(figure.cell(summary[figure.name]) for figure in figures),
        ))  # fmt: skip
        values.append({
            "first": first, "second": second, "pictures": len(ahead), **plain(summary),
            **{f"ahead:{name}": value for name, value in plain(shares).items()},
        })  # fmt: skip
    columns = (
        "pair", "pictures", *(f"ahead, {aim.heading.rsplit(', ', 1)[1]}" for aim in aims),
        *(figure.heading for figure in figures),
    )  # fmt: skip
    caption = f"Of the same item and seed; ahead: how often the first has more. {_INTERVAL}"
    brief = tuple(range(2 + 2 * len(aims)))
    title = f"{spec.task}: picture by picture"
    plotted = tuple((f.name, f.heading) for f in aims)
    return [Table(title, caption, columns, tuple(cells), brief, tuple(values), plotted)]


def _share(aim: Figure) -> Figure:
    return Figure(aim.name, aim.heading, lambda row: row[aim.name], SHARE)


def _ahead(mine: Sequence[Row], other: Sequence[Row], aims: Sequence[Figure]) -> list[Row]:
    others = {row["case"]: row for row in other}
    return [
        {aim.name: _more(row[aim.name], others[row["case"]][aim.name]) for aim in aims}
        for row in mine
    ]


def _more(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else float(first > second)


def _contests(evaluation: GuidedEvaluation) -> list[Table]:
    """Return wins, draws and losses by score, as the paper's figures of aesthetics are told."""
    spec, cells, values = evaluation.spec, [], []
    for rival in spec.methods:
        if "doodl" not in spec.methods or rival in ("doodl", "original-belm"):
            continue
        others = {row["case"]: row for row in _mine(evaluation, rival)}
        for measure in spec.measures:
            name = f"aim:{measure}"
            gains = [
                row[name] - others[row["case"]][name]
                for row in _mine(evaluation, "doodl")
                if row[name] is not None and others[row["case"]][name] is not None
            ]
            wins = sum(gain > DRAW_MARGIN for gain in gains)
            losses = sum(gain < -DRAW_MARGIN for gain in gains)
            counts = (wins, len(gains) - wins - losses, losses)
            cells.append((rival, measure, str(len(gains)), *map(str, counts)))
            values.append({"rival": rival, "measure": measure, "wins": wins, "draws": counts[1],
                           "losses": losses})  # fmt: skip
    if not cells:
        return []
    caption = f"DOODL against the rival by score; within {DRAW_MARGIN} points they are even."
    columns = ("rival", "by", "pictures", "wins", "draws", "losses")
    return [Table("aesthetic: wins", caption, columns, tuple(cells), values=tuple(values))]


def _categories(evaluation: GuidedEvaluation) -> list[Table]:
    """Return the aim by category of the item, or by the item itself where there are few."""
    spec = evaluation.spec
    if "doodl" not in spec.methods or "original" not in spec.methods:
        return []
    key = "category" if any(item.category for item in spec.items) else "item"
    names = list(dict.fromkeys(row[key] for row in evaluation.rows))
    if not 2 <= len(names) <= 24:
        return []
    figures = aims_of(evaluation, "+")
    cells, values = [], []
    for name in names:
        rows = [row for row in evaluation.rows if row[key] == name]
        mine = [row for row in rows if row["method"] == "doodl"]
        summary = paired(mine, [r for r in rows if r["method"] == "original"], figures,
                         seed=spec.seed)  # fmt: skip
        cells.append((name or "–", str(len(mine)), *(f.cell(summary[f.name]) for f in figures)))
        values.append({key: name, "pictures": len(mine), **plain(summary)})
    caption = f"DOODL less the unguided picture. {_INTERVAL}"
    columns = (key, "pictures", *(figure.heading for figure in figures))
    title = f"{spec.task}: by {key}"
    plotted = tuple((f.name, f.heading) for f in figures)
    return [Table(title, caption, columns, tuple(cells), values=tuple(values), plotted=plotted)]


def _distances(
    evaluation: GuidedEvaluation,
    features: dict[tuple[str, str], np.ndarray],
    real: dict[str, np.ndarray],
) -> Table:
    spec = evaluation.spec
    cells, values = [], []
    classes = [name for name in real if (spec.methods[0], name) in features]
    for name in [*classes, "all"]:
        photos = np.concatenate([real[c] for c in classes]) if name == "all" else real[name]
        found = {}
        for method in spec.methods:
            parts = [features[method, c] for c in (classes if name == "all" else [name])]
            found[method] = frechet_distance(photos, np.concatenate(parts))
        base = found.get("original")
        line = [name, str(len(photos)), str(sum(map(len, parts)))]
        for method in spec.methods:
            relative = "" if base is None or method == "original" else (
                f" ({100 * (found[method] / base - 1):+.0f} %)"
            )  # fmt: skip
            line.append(f"{found[method]:.3f}{relative}")
        cells.append(tuple(line))
        values.append({"class": name, "photos": len(photos), **found})
    caption = (
        f"Squared Fréchet distance to the photos of the class on embeddings of "
        f"{spec.measures[-1]}'s tower, which did not guide; in brackets the change relative to "
        "the unguided pictures. Few pictures of each class: the distances are biased upwards, "
        "alike for all methods. Inception's features cannot be had offline."
    )
    columns = ("class", "photos", "pictures", *spec.methods)
    title = f"{spec.task}: distance to real photos"
    return Table(title, caption, columns, tuple(cells), values=tuple(values))
