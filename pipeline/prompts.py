"""A job's prompts as rows: typed or from a manifest, each with its guides and its seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from doodl.errors import ModelError
from doodl.guidance.revisions import check_guides
from doodl.guidance.spec import absolute_guide, join_guides, parse_guides, split_guides
from manifests.errors import ManifestError
from manifests.naming import RowNames, prompt_name, with_seed
from manifests.reader import read_manifest
from manifests.schemas import INPUT_SCHEMA, PROMPT_SCHEMA
from pipeline.inputs import check_options, mark
from pipeline.spec import JobSpec, row_guides

PROMPT_KEY_COLUMNS = ("negative_prompt", "guides", "label")
"""What changes a picture beside a row's prompt, seed and subjects. `label` is the class that a
classifier guide aims at: an ordinary column of the manifest, carried through to the results."""

MAX_PROMPT_CHARS = 10_000


def load_prompts(spec: JobSpec) -> pa.Table:
    """Return a generation job's rows as a table of INPUT_SCHEMA, `guides` and `negative_prompt`.

    Each prompt is a row for each of its seeds. A row that could not run says why in row_error.
    Raises: ManifestError if there is no manifest where one is named.
    """
    base = Path.cwd()
    if spec.photos:
        path = Path(spec.photos)
        if not path.is_file():
            raise ManifestError(
                f"{path} is no manifest; give a table (.csv, .jsonl, .parquet) with a column "
                "prompt, or --prompt."
            )
        base = path.parent
        table = read_manifest(path, needs_image=False, own_columns=PROMPT_SCHEMA)
    else:
        table = _typed(spec.prompts)
    table = _with_guides(_with_subjects(table, spec.subjects), base)
    return _with_seeds(_checked(check_options(table), spec), spec)


def _typed(prompts: Sequence[str]) -> pa.Table:
    columns = {
        "row_id": pa.array([prompt_name(prompt) for prompt in prompts], pa.string()),
        "prompt": pa.array(prompts, pa.string()),
    }
    count = len(prompts)
    return pa.table(
        [columns.get(f.name, pa.nulls(count, f.type)) for f in INPUT_SCHEMA], schema=INPUT_SCHEMA
    )


def _with_subjects(table: pa.Table, subjects: Sequence[str]) -> pa.Table:
    """Return the table with the job's subject photos in the rows that name none."""
    if not subjects:
        return table
    own = table["subject_uris"].to_pylist()
    return _set(table, "subject_uris", [uris or list(subjects) for uris in own])


def _with_guides(table: pa.Table, base: Path) -> pa.Table:
    """Return the table with its guides as one text a row, paths in full; errors where they lie."""
    if "guides" not in table.column_names:
        return table
    cells = [tuple(written or ()) for written in table["guides"].to_pylist()]
    # Rows mostly share a few; each has files to look at.
    known = {cell: _full_guides(cell, base) for cell in set(cells)}
    texts, errors = ([known[cell][part] for cell in cells] for part in (0, 1))
    index = table.schema.get_field_index("guides")
    table = table.set_column(index, "guides", pa.array(texts, pa.string()))
    return _with_errors(table, errors)


def _full_guides(written: Sequence[str | None], base: Path) -> tuple[str | None, str | None]:
    """Return a cell's guides as one text, paths in full, and why it cannot be used."""
    try:
        parts = [part for cell in written if cell for part in split_guides(cell)]
        guides = [absolute_guide(spec, base) for spec in parse_guides(parts)]
        check_guides(guides)
    except (ValueError, ModelError) as problem:
        return None, str(problem)
    return join_guides(guides) or None, None


def _checked(table: pa.Table, spec: JobSpec) -> pa.Table:
    """Return the table with an error in each row whose guides lack what they need."""
    errors = [
        _problem(prompt or "", negative or "", subjects, guides, spec)
        for prompt, negative, subjects, guides in zip(
            table["prompt"].to_pylist(),
            _values(table, "negative_prompt"),
            table["subject_uris"].to_pylist(),
            _values(table, "guides"),
            strict=True,
        )
    ]
    return _with_errors(table, errors)


def _problem(
    prompt: str, negative: str, subjects: list[str] | None, guides: str | None, spec: JobSpec
) -> str | None:
    if max(len(prompt), len(negative)) > MAX_PROMPT_CHARS:
        return f"the prompt is longer than {MAX_PROMPT_CHARS:,} characters; shorten it."
    needed = row_guides(guides, spec)
    if not prompt.strip() and any(g.kind == "text" and g.value is None for g in needed):
        return 'guide text takes the row\'s prompt, which is empty; write one, or text:"words".'
    if spec.task == "personalize" and not subjects:
        return "no subject photo; give --subject, or a column subject_uris."
    if not subjects and any(g.kind == "subject" for g in needed):
        return "guide subject needs subject photos; give them in a column subject_uris."
    return None


def _with_seeds(table: pa.Table, spec: JobSpec) -> pa.Table:
    """Return a row for each seed of each row: its own one, or the job's; named after both.

    A row that cannot run stays one row.
    """
    first = spec.seed or 0
    rows: list[int] = []
    seeds: list[int | None] = []
    names: list[str] = []
    given = RowNames(set())
    for row, (name, own, error) in enumerate(
        zip(
            table["row_id"].to_pylist(),
            table["seed"].to_pylist(),
            table["row_error"].to_pylist(),
            strict=True,
        )
    ):
        single = own is not None or error is not None
        for seed in [own] if single else range(first, first + spec.num_seeds):
            named = name if single else with_seed(name, seed)
            names.append(given.give(named, len(rows), is_explicit=False))
            rows.append(row)
            seeds.append(seed)
    table = table.take(pa.array(rows, pa.int64()))
    return _set(_set(table, "seed", seeds), "row_id", names)


def _values(table: pa.Table, name: str) -> list[Any]:
    return table[name].to_pylist() if name in table.column_names else [None] * table.num_rows


def _set(table: pa.Table, name: str, values: list[Any]) -> pa.Table:
    index = table.schema.get_field_index(name)
    field = table.schema.field(index)
    return table.set_column(index, field, pa.array(values, field.type))


def _with_errors(table: pa.Table, errors: Sequence[str | None]) -> pa.Table:
    messages = pa.array(errors, pa.string())
    return mark(table, pc.is_valid(messages), messages)
