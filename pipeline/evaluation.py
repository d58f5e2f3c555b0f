"""Evaluations of photos from folders, manifests and Parquet files; their rows as Parquet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from doodl.evaluation.cases import Draw, Source
from doodl.evaluation.generated import SampleSpec
from doodl.evaluation.methods import METHODS
from doodl.evaluation.output import Written, write_evaluation
from doodl.evaluation.referee import default_referee
from doodl.evaluation.rows import COLUMNS, Row
from doodl.evaluation.run import Evaluation, Observer, run_evaluation
from doodl.evaluation.samples import SampleReport, run_samples, write_samples
from doodl.evaluation.store import write_whole
from doodl.evaluation.work import EvaluationSpec
from manifests.errors import ManifestError
from manifests.inline import read_input
from manifests.rows import manifest_rows
from pipeline.inputs import load_input
from pipeline.spec import make_spec

__all__ = [
    "SampleSpec",
    "evaluate_enhance",
    "evaluate_samples",
    "make_evaluation_spec",
    "read_sources",
    "write_rows",
]

_TEXT = ("photo", "label", "set", "type", "method", "direction", "status", "stop_reason", "error",
         "recipe", "case")  # fmt: skip
_WHOLE = ("num_optim_steps", "width_px", "height_px")


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
    out.mkdir(parents=True, exist_ok=True)
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
    report = run_samples(read_sources(photos, out), spec, message)
    out.mkdir(parents=True, exist_ok=True)
    return report, write_samples(report, out, command)


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
        methods=tuple(methods) or tuple(METHODS),
        directions=tuple(directions),
        batch_size=batch_size,
    )


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
