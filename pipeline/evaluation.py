"""Evaluations of photos from folders, manifests and Parquet files; their rows as Parquet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from doodl.evaluation.cases import Draw, Source
from doodl.evaluation.generated import CAPTIONS, SampleSpec
from doodl.evaluation.guided.output import write_guided
from doodl.evaluation.guided.run import GuidedEvaluation, run_guided
from doodl.evaluation.guided.spec import (
    TASKS,
    GuidedSpec,
    Item,
    class_items,
    read_prompts,
    subject_items,
)
from doodl.evaluation.methods import DEFAULT_METHODS
from doodl.evaluation.output import Written, write_evaluation
from doodl.evaluation.referee import default_referee
from doodl.evaluation.rows import COLUMNS, Row
from doodl.evaluation.run import Evaluation, Observer, run_evaluation
from doodl.evaluation.samplers import SamplersReport, SamplersSpec, run_samplers, write_samplers
from doodl.evaluation.samples import SampleReport, run_samples, write_samples
from doodl.evaluation.store import write_whole
from doodl.evaluation.work import EvaluationSpec
from doodl.guidance.networks import load_classifier
from doodl.guidance.spec import parse_guides
from manifests.claims import claim_folder
from manifests.errors import ManifestError
from manifests.inline import read_input
from manifests.rows import manifest_rows
from manifests.scan import unlisted
from pipeline.inputs import load_input
from pipeline.spec import make_spec

__all__ = [
    "SampleSpec",
    "claim_evaluation",
    "evaluate_enhance",
    "evaluate_guided",
    "evaluate_samplers",
    "evaluate_samples",
    "make_evaluation_spec",
    "make_guided_spec",
    "make_samplers_spec",
    "read_sources",
    "write_rows",
]

MARK = "_evaluation.json"
"""The file that marks a folder as an evaluation's, from its start on."""

_OLDER_MARKS = ("_work", "evaluation.json", "samples.json")
_TEXT = ("photo", "label", "set", "type", "method", "direction", "status", "stop_reason", "error",
         "recipe", "case")  # fmt: skip
_WHOLE = ("num_optim_steps", "width_px", "height_px")


def claim_evaluation(out: Path) -> None:
    """Mark a folder as an evaluation's. Raises: OriginalError if it holds anything else."""
    claim_folder(out, MARK, {}, "--out", older_marks=_OLDER_MARKS)


def read_sources(photos: Sequence[Path], out: Path) -> list[Source]:
    """Return the photos of folders, manifests or Parquet files, each by a name of its own.

    A row that cannot be run is left out. Raises: ManifestError if there is none, or if the results
    would lie among the photos, where the next run would take them for photos.
    """
    sources: list[Source] = []
    names: set[str] = set()
    for path in photos:
        if path.is_dir() and out.is_relative_to(path):
            raise ManifestError(f"{out} lies inside {path}; put the results elsewhere with --out.")
        stem = path.stem
        prefix = "" if len(photos) == 1 else f"{_unused(stem, names)}/"
        table = load_input(str(path))
        for left_out, reason in unlisted(table):
            raise ManifestError(
                f"{left_out} cannot be listed ({reason}): the figures would leave its photos out."
            )
        errors = table["row_error"].to_pylist()
        for row, error in zip(manifest_rows(table), errors, strict=True):
            if error is None and row.image_uri is not None:
                label = row.extra.get("label")
                read = partial(read_input, row.image_uri)
                sources.append(
                    Source(prefix + row.row_id, label if isinstance(label, str) else "", read)
                )
    if not sources:
        raise ManifestError(f"{', '.join(map(str, photos))}: no photo there.")
    return sources


def evaluate_enhance(
    photos: Sequence[Path],
    spec: EvaluationSpec,
    out: Path,
    observer: Observer,
    *,
    command: str,
    workers: int,
    redo: bool,
) -> tuple[Evaluation, Written]:
    """Run the evaluation, write what it found, and return both.

    Raises: ManifestError, ModelError, DoodlError.
    """
    sources = read_sources(photos, out)
    claim_evaluation(out)
    evaluation = run_evaluation(sources, spec, out, observer, workers=workers, redo=redo)
    written = write_evaluation(evaluation, out, command)
    write_rows(evaluation.rows, out / "rows.parquet")
    return evaluation, written


def evaluate_samples(
    photos: Sequence[Path],
    spec: SampleSpec,
    out: Path,
    message: Callable[[str], None],
    *,
    command: str,
) -> tuple[SampleReport, list[Path]]:
    """Draw samples, compare them with the photos, write what was found; return it and the sheets.

    Raises: ManifestError, ModelError, DoodlError.
    """
    sources = read_sources(photos, out)
    claim_evaluation(out)
    report = run_samples(sources, spec, message)
    return report, write_samples(report, out, command)


def make_samplers_spec(
    *, samplers: Sequence[str], steps: Sequence[int], **options: Any
) -> SamplersSpec:
    """Return what is compared: `options` are SampleSpec's. Raises: ValueError."""
    return SamplersSpec(SampleSpec(**options), tuple(samplers), tuple(steps))


def evaluate_samplers(
    photos: Sequence[Path],
    spec: SamplersSpec,
    out: Path,
    message: Callable[[str], None],
    *,
    command: str,
) -> tuple[SamplersReport, list[Path]]:
    """Draw the same pictures by several samplers, write what was found; return it and the sheets.

    Raises: ManifestError, ModelError, DoodlError.
    """
    sources = read_sources(photos, out)
    claim_evaluation(out)
    report = run_samplers(sources, spec, message)
    sheets = write_samplers(report, out, command)
    write_guided_rows(report.rows, out / "rows.parquet")
    return report, sheets


def make_evaluation_spec(
    *,
    recipe: dict[str, Any],
    referee: Path | None,
    methods: Sequence[str],
    directions: Sequence[str],
    batch_size: int,
    draw: dict[str, Any],
) -> EvaluationSpec:
    """Return the spec of a command line's options.

    Args:
        recipe: model, preset and overrides, as a job's. referee: None means the shipped one.
        methods: none means all. draw: the fields of `Draw`.
    Raises: ValueError for a value that makes no sense; ModelError for a model that is not there.
    """
    job = make_spec("photos", **recipe)
    return EvaluationSpec(
        referee=str(default_referee() if referee is None else referee),
        draw=Draw(**draw),
        config=job.edit_config,
        model=job.model,
        methods=tuple(methods) or DEFAULT_METHODS,
        directions=tuple(directions),
        batch_size=batch_size,
    )


def make_guided_spec(
    *,
    task: str,
    recipe: dict[str, Any],
    out: Path,
    measures: Sequence[str] = (),
    methods: Sequence[str] = (),
    prompts: Sequence[str] | None = None,
    prompts_text: str | None = None,
    labels: Sequence[str] | None = None,
    prompt: str = "",
    photos: Sequence[Path] = (),
    subjects: int = 0,
    **others: Any,
) -> GuidedSpec:
    """Return the spec of a command line's options; what is not named has GuidedSpec's default.

    Args:
        recipe: model, preset and overrides, as a job's; the preset's default is the task's.
        prompts_text: a prompts file's content. labels: classes; none means all there are.
        photos: exemplars, of which `subjects` are taken (personalize).
    Raises: ValueError for a value that makes no sense; ModelError, ManifestError, DoodlError.
    """
    overrides = recipe.get("overrides", {})
    preset = recipe.get("preset") or (
        TASKS[task] if recipe["model"] == "pocket" else TASKS[task].replace("pocket", "paper")
    )
    job_task = "personalize" if task == "personalize" else "generate"
    job = make_spec(
        None, out, task=job_task, prompts=["-"], model=recipe["model"], preset=preset,
        overrides=overrides, subjects=["-"] if task == "personalize" else [],
    )  # fmt: skip
    config = job.edit_config
    if task == "classes":
        items = class_items(labels or _known_classes(config.guides, job.model), prompt)
    elif task == "personalize":
        items = subject_items(_spread(read_sources(photos, out), subjects), prompt)
    elif prompts_text is not None:
        items = read_prompts(prompts_text)
    else:
        items = tuple(Item(one) for one in prompts or CAPTIONS)
    revisions = job.guide_revisions | job.beside_revisions
    chosen: dict[str, Any] = {"guide_revisions": tuple(sorted(revisions.items()))}
    if methods:
        chosen["methods"] = tuple(methods)
    if measures:
        chosen["measures"] = tuple(measures)
    return GuidedSpec(task=task, items=items, config=config, model=job.model, **chosen, **others)


def evaluate_guided(
    spec: GuidedSpec,
    out: Path,
    observer: Observer,
    *,
    command: str,
    workers: int,
    redo: bool,
    photos: Sequence[Path] = (),
) -> tuple[GuidedEvaluation, Written]:
    """Run the evaluation, write what it found, and return both.

    Args:
        photos: real ones with classes, for the distance of `classes`.
    Raises: ManifestError, ModelError, DoodlError.
    """
    sources = read_sources(photos, out) if photos and spec.task == "classes" else []
    claim_evaluation(out)
    evaluation = run_guided(spec, out, observer, workers=workers, redo=redo)
    written = write_guided(evaluation, out, command, sources)
    write_guided_rows(evaluation.rows, written.rows_path)
    return evaluation, written


def _known_classes(guides: Sequence[str], model: str) -> Sequence[str]:
    """Return the classes of the first classifier guide. Raises: ValueError if nothing says them."""
    for spec in parse_guides(guides):
        if spec.kind == "classifier":
            value = spec.value or ("pocket" if model == "pocket" else None)
            if value is not None:
                classifier, _ = load_classifier(value)
                if classifier.labels:
                    return classifier.labels
    raise ValueError("nothing says what classes there are; name them with --class.")


def _spread(sources: Sequence[Source], count: int) -> list[Source]:
    """Return `count` of the sources, spread evenly over them. Raises: ValueError for none."""
    if not 1 <= count <= len(sources):
        raise ValueError(f"subjects (={count}) must be from 1 to the {len(sources)} photos.")
    return [sources[i * len(sources) // count] for i in range(count)]


def write_guided_rows(rows: Sequence[Row], path: Path) -> None:
    """Write rows of generated pictures as one Parquet file; each measure has columns of its own, so
    their types come from the values."""
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(list(rows)), buffer)
    write_whole(path, buffer.getvalue().to_pybytes())


def write_rows(rows: Sequence[Row], path: Path) -> None:
    """Write the rows as one Parquet file, each column with its meaning in the field metadata."""
    fields = [
        pa.field(name, _kind(name), metadata={"description": meaning})
        for name, meaning in COLUMNS.items()
    ]
    table = pa.Table.from_pylist(list(rows), schema=pa.schema(fields))
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer)
    write_whole(path, buffer.getvalue().to_pybytes())


def _kind(name: str) -> pa.DataType:
    return pa.string() if name in _TEXT else pa.int64() if name in _WHOLE else pa.float64()


def _unused(stem: str, names: set[str]) -> str:
    name, number = stem, 1
    while name in names:
        number += 1
        name = f"{stem}~{number}"
    names.add(name)
    return name
