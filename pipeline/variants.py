"""Evaluations of one recipe under changes: ablations of its parts, and its learning rates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from doodl.evaluation import ablation_tables as photo_tables
from doodl.evaluation.ablations import RATES, acting
from doodl.evaluation.guided import ablation_tables as guided_tables
from doodl.evaluation.guided.output import write_guided
from doodl.evaluation.guided.run import run_guided
from doodl.evaluation.guided.spec import GuidedSpec
from doodl.evaluation.output import Written, write_evaluation
from doodl.evaluation.rows import Row
from doodl.evaluation.run import Observer, run_evaluation
from doodl.evaluation.tables import Table
from doodl.evaluation.tuning import guided_tuning_tables, photo_tuning_tables
from doodl.evaluation.work import EvaluationSpec
from pipeline.evaluation import (
    claim_evaluation,
    make_evaluation_spec,
    make_guided_spec,
    read_sources,
    write_guided_rows,
    write_rows,
)

ENHANCE = "enhance"


@dataclass(frozen=True)
class Variants:
    """What is made of one recipe, and the tables and the document that tell of it."""

    spec: EvaluationSpec | GuidedSpec
    tables: Callable[[Any], list[Table]]
    title: str


@dataclass(frozen=True)
class Found:
    """What came of it: the rows, photos that could not be used, and what was written."""

    rows: list[Row]
    revisions: dict[str, str]
    unreadable: list[tuple[str, str]]
    written: Written


def make_ablations(task: str, options: dict[str, Any], only: Sequence[str] = ()) -> Variants:
    """Return the recipe of a task and its ablations.

    Args:
        task: enhance, or one of guided generation. options: as `make_evaluation_spec` or
            `make_guided_spec`, less methods. only: names of ablations; none means all.
    Raises: ValueError, ModelError, ManifestError, DoodlError.
    """
    if task == ENHANCE:
        spec = make_evaluation_spec(methods=(photo_tables.BASE,), **options)
        found = acting("photo", spec.config, only)
        methods = (photo_tables.BASE, *found.names)
        return Variants(
            replace(spec, methods=methods, equal_strength=False),
            partial(photo_tables.ablation_tables, left_out=found.left_out),
            "Ablations of the enhance edit",
        )
    guided = make_guided_spec(task=task, methods=(guided_tables.BASE,), **options)
    found = acting("generation", guided.config, only)
    return Variants(
        replace(guided, methods=("original", guided_tables.BASE, *found.names), validation=0),
        partial(guided_tables.guided_ablation_tables, left_out=found.left_out),
        f"Ablations of guided generation: {task}",
    )


def make_tuning(task: str, options: dict[str, Any]) -> Variants:
    """Return the recipe of a task at several learning rates, on what no table is made of.

    Arguments and errors are `make_ablations`'.
    """
    if task == ENHANCE:
        spec = make_evaluation_spec(methods=(photo_tables.BASE, *RATES), **options)
        spec = replace(spec, equal_strength=False, on_validation=True)
        return Variants(spec, photo_tuning_tables, "Learning rate of the enhance edit")
    methods = ("original", guided_tables.BASE, *RATES)
    guided = make_guided_spec(task=task, methods=methods, **options)
    return Variants(
        replace(guided, on_validation=True),
        guided_tuning_tables,
        f"Learning rate of guided generation: {task}",
    )


def evaluate_variants(
    variants: Variants,
    photos: Sequence[Path],
    out: Path,
    observer: Observer,
    *,
    command: str,
    workers: int,
    redo: bool,
) -> Found:
    """Make what the folder does not hold yet, write what was found, and return it.

    Args:
        photos: of task enhance.
    Raises: ManifestError, ModelError, DoodlError.
    """
    spec = variants.spec
    if isinstance(spec, GuidedSpec):
        claim_evaluation(out)
        guided = run_guided(spec, out, observer, workers=workers, redo=redo)
        written = write_guided(
            guided, out, command, tables=variants.tables(guided), title=variants.title
        )
        write_guided_rows(guided.rows, written.rows_path)
        return Found(guided.rows, guided.revisions, [], written)
    sources = read_sources(photos, out)
    claim_evaluation(out)
    evaluation = run_evaluation(sources, spec, out, observer, workers=workers, redo=redo)
    written = write_evaluation(
        evaluation, out, command, tables=variants.tables(evaluation), title=variants.title
    )
    write_rows(evaluation.rows, out / "rows.parquet")
    unreadable = evaluation.drawn.unreadable
    return Found(evaluation.rows, evaluation.revisions, unreadable, written)
