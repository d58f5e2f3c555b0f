"""`evaluate`: the tables of how good the edits and the samples are, as a person sees them."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jobs import console, exits


def command_line() -> str:
    """Return the command as it was typed, to be run again."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def run_evaluate_enhance(
    photos: Sequence[Path],
    out: Path,
    options: dict[str, Any],
    *,
    workers: int,
    redo: bool,
    as_json: bool,
) -> int:
    """Run the evaluation, print its tables and return an exit code."""
    from pipeline.evaluation import evaluate_enhance, make_evaluation_spec

    _check_there(photos)
    _check_workers(workers)
    with exits.usage_errors():
        spec = make_evaluation_spec(**options)
    with console.RunProgress(quiet=as_json) as progress:
        evaluation, written = evaluate_enhance(
            photos, spec, out, progress, command=command_line(), workers=workers, redo=redo
        )
    unreadable = evaluation.drawn.unreadable
    return _told(evaluation.rows, evaluation.revisions, unreadable, written, as_json=as_json)


def run_evaluate_variants(
    kind: str,
    task: str,
    photos: Sequence[Path],
    out: Path,
    options: dict[str, Any],
    *,
    workers: int,
    redo: bool,
    as_json: bool,
) -> int:
    """Run the ablations or the tuning of a task, print the tables and return an exit code.

    Args:
        kind: ablations | tune.
    """
    from pipeline.variants import evaluate_variants, make_ablations, make_tuning

    _check_there(photos)
    _check_workers(workers)
    with exits.usage_errors():
        if kind == "tune":
            variants = make_tuning(task, options)
        else:
            variants = make_ablations(task, options, only=options.pop("only"))
    with console.RunProgress(quiet=as_json) as progress:
        found = evaluate_variants(
            variants, photos, out, progress, command=command_line(), workers=workers, redo=redo
        )
    return _told(found.rows, found.revisions, found.unreadable, found.written, as_json=as_json)


def _told(
    rows: Sequence[dict[str, Any]],
    revisions: dict[str, str],
    unreadable: Sequence[tuple[str, str]],
    written: Any,
    *,
    as_json: bool,
) -> int:
    """Print what an evaluation found and return its exit code."""
    if as_json:
        tables = [{"title": t.title, "values": t.values} for t in written.tables]
        console.print_json({"tables": tables, "revisions": revisions, "unreadable": unreadable})
    else:
        for name, why in unreadable:
            console.error(f"{name}: {why}", "left out")
        other = "" if written.rows_path.name == "rows.parquet" else " and rows.parquet"
        _print_written(written, f"{written.rows_path}{other}")
    return _exit_code(rows)


def _check_workers(workers: int) -> None:
    if workers < 1:
        raise exits.UsageError(f"--workers (={workers}) must be at least 1.")


def run_evaluate_samples(
    photos: Sequence[Path], out: Path, options: dict[str, Any], *, as_json: bool
) -> int:
    """Draw the samples, print their tables and return an exit code.

    Args:
        options: SampleSpec's, but for `samplers` and `steps`, of which there may be several.
    """
    from pipeline import evaluation

    _check_there(photos)
    samplers, steps = options.pop("samplers"), options.pop("steps")
    message = _silence if as_json else console.say
    report: Any
    run: Callable[..., Any]
    with exits.usage_errors():
        if len(samplers) == len(steps) == 1:
            spec = evaluation.SampleSpec(
                sampler=samplers[0], num_inference_steps=steps[0], **options
            )
            run = partial(evaluation.evaluate_samples, photos, spec)
        else:
            several = evaluation.make_samplers_spec(samplers=samplers, steps=steps, **options)
            run = partial(evaluation.evaluate_samplers, photos, several)
    report, sheets = run(out, message, command=command_line())
    if as_json:
        tables = [{"title": t.title, "values": t.values} for t in report.tables]
        console.print_json({"tables": tables, "revisions": report.revisions})
        return exits.OK
    for name, why in report.unreadable:
        console.error(f"{name}: {why}", "left out")
    _print_tables(report.tables)
    console.result(f"tables: {out / 'samples.md'}")
    for sheet in sheets:
        console.result(f"sheet:  {sheet}")
    return exits.OK


def run_evaluate_guided(
    out: Path, options: dict[str, Any], *, workers: int, redo: bool, as_json: bool
) -> int:
    """Run an evaluation of guided generation, print its tables and return an exit code."""
    from pipeline.evaluation import evaluate_guided, make_guided_spec

    photos = options.get("photos", [])
    _check_there(photos)
    _check_workers(workers)
    with exits.usage_errors():
        spec = make_guided_spec(out=out, **options)
    with console.RunProgress(quiet=as_json) as progress:
        evaluation, written = evaluate_guided(
            spec, out, progress, command=command_line(), workers=workers, redo=redo, photos=photos
        )
    if as_json:
        tables = [{"title": t.title, "values": t.values} for t in written.tables]
        console.print_json({"tables": tables, "revisions": evaluation.revisions})
    else:
        _print_written(written, str(written.rows_path))
    return _exit_code(evaluation.rows)


def _print_written(written: Any, rows: str) -> None:
    """Print the tables, and where everything lies."""
    _print_tables(written.tables)
    console.result(f"tables: {written.tables_path}  (with intervals and every figure)")
    console.result(f"rows:   {rows}")
    for sheet in written.sheets:
        console.result(f"sheet:  {sheet}")


def _exit_code(rows: Sequence[dict[str, Any]]) -> int:
    return exits.ROWS_FAILED if any(row["status"] == "failed" for row in rows) else exits.OK


def _silence(message: str) -> None:
    del message


def _check_there(photos: Sequence[Path]) -> None:
    for path in photos:
        if not path.exists():
            raise exits.UsageError(f"{path} does not exist; give a folder or a Parquet of photos.")


def _print_tables(tables: Sequence[Any]) -> None:
    for table in tables:
        short = table.shortened()
        console.print_table(short.title, short.columns, short.rows)
        console.result("")
