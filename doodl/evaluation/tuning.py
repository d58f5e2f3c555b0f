"""Which learning rate a recipe does best with, on photos or seeds that no table is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from doodl.evaluation.ablation_tables import ablation_tables
from doodl.evaluation.ablations import ABLATIONS, changed
from doodl.evaluation.guided.ablation_tables import guided_ablation_tables
from doodl.evaluation.guided.run import GuidedEvaluation
from doodl.evaluation.run import Evaluation
from doodl.evaluation.tables import Table
from doodl.measures.figures import CLEAN_GAIN
from doodl.recipes.config import EditConfig


def photo_tuning_tables(evaluation: Evaluation) -> list[Table]:
    """Return the edit at each learning rate, and the choice by the distance to the clean photos.

    That distance, since no network's opinion is in it: a scorer rises with nearly every rate.
    """
    tables = [replace(t, title=_titled(t.title)) for t in ablation_tables(evaluation)]
    config = evaluation.spec.config
    choices = [
        _choice(table, table.title, CLEAN_GAIN.name, "distance to the clean photos, in dB", config)
        for table in tables
        if "dulled" in table.title and ", up" in table.title
    ]
    return [*tables, *choices]


def guided_tuning_tables(evaluation: GuidedEvaluation) -> list[Table]:
    """Return the preset at each learning rate, and the choice by the first measure's aim."""
    spec = evaluation.spec
    tables = [replace(t, title=_titled(t.title)) for t in guided_ablation_tables(evaluation)]
    what = f"aim of the task by {spec.measures[0]}"
    aim = f"aim:{spec.measures[0]}"
    return [*tables, *(_choice(t, t.title, aim, what, spec.config) for t in tables)]


def _titled(title: str) -> str:
    return title.replace("ablations", "learning rates, kept apart")


def _choice(table: Table, title: str, figure: str, what: str, config: EditConfig) -> Table:
    """Return the rates ordered by the figure's mean, the best first."""
    rows = [row for row in table.values if row["method"] != "original" and row[figure]]
    rows.sort(key=lambda row: row[figure]["mean"], reverse=True)
    cells = [(f"{_rate(row['method'], config):g}", f"{row[figure]['mean']:+.4g}") for row in rows]
    values: Sequence[dict[str, Any]] = [
        {"learning_rate": _rate(row["method"], config), **row[figure]} for row in rows
    ]
    said = (
        f" The best has --set optimiser.learning_rate={cells[0][0]}, the preset is at "
        f"{config.optimiser.learning_rate:g}."
        if cells
        else ""
    )
    caption = (
        f"Learning rates by the mean {what}, the best first; the table before has the intervals, "
        f"and with few pictures they overlap.{said} Nothing is changed by this command."
    )
    columns = ("learning rate", "mean")
    return Table(f"{title}: choice", caption, columns, tuple(cells), values=tuple(values))


def _rate(method: str, config: EditConfig) -> float:
    ablation = ABLATIONS.get(method)
    return (changed(ablation, config) if ablation else config).optimiser.learning_rate
